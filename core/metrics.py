"""Figures of merit of rewards and values: order, discrimination, calibration, and intervals around them.

Arguments are tensors, numpy arrays or sequences. NaN entries are left out, pair by pair; an undefined figure is NaN,
never 0. scipy is imported where it is used, because `guerdon.core` must not pull it in.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

_Array = npt.NDArray[Any]
_Numbers = Tensor | npt.NDArray[Any] | Sequence[Any]


def value_order_correlation(
    values: _Numbers,
    mask: _Numbers,
    valid: _Numbers | None = None,
) -> Float[Tensor, " B"]:
    """Spearman correlation of each row's L+1 real values with time (VOC; Ma et al., 2024, arXiv 2411.04549).

    Args:
        values: (B, T+1), one value per observation.
        mask: (B, T), True on real steps; observations at both ends of a real step are real.
        valid: (B, T+1), True where a value is to be counted, such as evaluated frames only.

    Returns:
        (B,) in [−1, 1], on the CPU; ties get average ranks. NaN for a constant row and for fewer than two values.

    Raises:
        ValueError: shapes that do not fit.
    """
    value, step = _as_array(values), _as_array(mask)
    if value.ndim != 2 or step.shape != (value.shape[0], value.shape[1] - 1) or step.dtype != np.bool_:
        raise ValueError(
            f"expected values (B, T+1) and a bool mask (B, T), got {value.shape} and {step.dtype} {step.shape}"
        )
    use = np.pad(step, ((0, 0), (0, 1))) | np.pad(step, ((0, 0), (1, 0)))
    use &= ~np.isnan(value)
    if valid is not None:
        flags = _as_array(valid)
        if flags.shape != value.shape or flags.dtype != np.bool_:
            raise ValueError(f"valid: expected bool of shape {value.shape}, got {flags.dtype} {flags.shape}")
        use &= flags
    found = [_order(row[keep]) for row, keep in zip(value, use, strict=True)]
    floating = np.issubdtype(value.dtype, np.floating)
    return torch.from_numpy(np.array(found, dtype=value.dtype if floating else np.float64))


def kendall_tau(
    x: _Numbers,
    y: _Numbers,
    variant: Literal["a", "b"] = "b",
) -> float:
    """Kendall's τ: concordant minus discordant pairs over all pairs.

    Args:
        x: numbers.
        y: as many numbers.
        variant: "a" divides by all pairs, so that ties count 0; "b" by √(pairs untied in x · pairs untied in y), and is
            NaN where x or y is constant.

    Returns:
        A number in [−1, 1]; NaN for fewer than two pairs of numbers.

    Raises:
        ValueError: lengths that differ or an unknown variant.
    """
    if variant not in ("a", "b"):
        raise ValueError(f'variant: expected "a" or "b", got {variant!r}')
    balance, pairs, untied_x, untied_y = _concordance(*_paired(x, y))
    scale = pairs if variant == "a" else math.sqrt(untied_x * untied_y)
    return max(-1.0, min(1.0, balance / scale)) if scale > 0 else math.nan


def pairwise_accuracy(scores: _Numbers, labels: _Numbers) -> float:
    """Share of the pairs with different labels that the scores order as the labels do; a tie of scores counts ½.

    Returns:
        A number in [0, 1]; NaN where no two labels differ.

    Raises:
        ValueError: lengths that differ.
    """
    balance, _, _, untied_labels = _concordance(*_paired(scores, labels))
    return 0.5 * (1 + balance / untied_labels) if untied_labels > 0 else math.nan


def success_auroc(scores: _Numbers, success: _Numbers) -> float:
    """Probability that a success scores above a failure, ties ½: the area under the ROC curve.

    Args:
        scores: one per episode.
        success: 0 or 1 (or bool) per episode; NaN where unknown.

    Returns:
        A number in [0, 1]; NaN where only one class is there.

    Raises:
        ValueError: lengths that differ, or a success that is neither 0 nor 1.
    """
    return pairwise_accuracy(*_classes(scores, success))


def expected_calibration_error(
    prob: _Numbers,
    label: _Numbers,
    bins: int = 15,
) -> float:
    """Σ over bins of (count / n) · abs(mean probability − mean label) (Guo et al., 2017, arXiv 1706.04599, equation 3).

    Args:
        prob: predicted probabilities, in [0, 1].
        label: what happened, in [0, 1].
        bins: number of bins of equal width, closed on the left, the last on both sides.

    Returns:
        A number in [0, 1]; NaN for empty input.

    Raises:
        ValueError: lengths that differ, fewer than one bin, or a probability outside [0, 1].
    """
    predicted, happened, place = _binned(prob, label, bins)
    if predicted.size == 0:
        return math.nan
    excess = np.bincount(place, predicted.astype(np.float64) - happened.astype(np.float64), bins)
    return float(np.abs(excess).sum() / predicted.size)


def average_precision(scores: _Numbers, success: _Numbers) -> float:
    """Area under the precision-recall curve as Σ (recall_n − recall_{n−1}) · precision_n over distinct scores (AUPRC).

    Equal scores enter together, so the order in which ties are listed does not matter; a constant score gives the share
    of successes, which is what chance is here.

    Args:
        scores: one per episode.
        success: 0 or 1 (or bool) per episode; NaN where unknown.

    Returns:
        A number in (0, 1]; NaN where there is no success or no failure.

    Raises:
        ValueError: lengths that differ, or a success that is neither 0 nor 1.
    """
    score, outcome = _classes(scores, success)
    if outcome.min(initial=1) == outcome.max(initial=0) or outcome.size == 0:
        return math.nan
    order = np.argsort(-score.astype(np.float64), kind="stable")
    ranked, hits = score[order], np.cumsum(outcome[order].astype(np.float64))
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def false_positive_rate(scores: _Numbers, success: _Numbers, threshold: float | int) -> float:
    """Share of the failures whose score is at least the threshold; NaN where there is no failure.

    Raises:
        ValueError: lengths that differ, or a success that is neither 0 nor 1.
    """
    score, outcome = _classes(scores, success)
    failed = score[outcome == 0]
    return float((failed >= threshold).mean()) if failed.size else math.nan


def mean_absolute_error(values: _Numbers, targets: _Numbers) -> float:
    """Mean of abs(value − target), for progress against its labels; NaN where nothing is labelled.

    Raises:
        ValueError: lengths that differ.
    """
    value, target = _paired(values, targets)
    return float(np.abs(value.astype(np.float64) - target.astype(np.float64)).mean()) if value.size else math.nan


def reliability_curve(
    prob: _Numbers, label: _Numbers, bins: int = 15
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Mean probability, mean label and count of each bin of `expected_calibration_error`; means of empty bins are NaN.

    Returns:
        Three arrays of length ``bins``: count · abs(mean label − mean probability), summed and divided by the number of
        entries, is the expected calibration error.

    Raises:
        ValueError: as `expected_calibration_error`.
    """
    predicted, happened, place = _binned(prob, label, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, part.astype(np.float64), bins) / count for part in (predicted, happened)]
    return means[0], means[1], count


def instruction_margin(matrix: _Numbers) -> float:
    """How often a video is valued higher under its own instruction than under another: chance is ½, ties count ½.

    It compares ranks within a video only, so it does not depend on a model's scale as a difference of means does.

    Args:
        matrix: (N, N), rows are videos and columns instructions, the diagonal holds matching pairs; NaN cells were not
            asked and leave their comparison out, rather than counting as 0.

    Returns:
        Mean over videos of the share of other instructions below their own; NaN where nothing can be compared.

    Raises:
        ValueError: if the matrix is not square.
    """
    cells = _as_array(matrix).astype(np.float64)
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
        raise ValueError(f"expected a square matrix of videos by instructions, got {cells.shape}")
    own = np.diagonal(cells)[:, None]
    asked = ~np.isnan(cells) & ~np.isnan(own) & ~np.eye(len(cells), dtype=bool)
    won = np.where(asked, (own > cells) + 0.5 * (own == cells), 0.0).sum(1)
    compared = asked.any(1)
    return float((won[compared] / asked.sum(1)[compared]).mean()) if compared.any() else math.nan


def quality_ranking(scores: _Numbers, quality: _Numbers, task: _Numbers) -> float:
    """Do a task's trajectories score in the order of their quality? Kendall τ-a over triples, one of each level.

    Within a task, τ-a of every combination of one trajectory per quality level is averaged, then tasks are (the policy
    ranking of Robometer). Every pair of levels enters equally however many trajectories a level has, and a tie of
    scores counts 0, so a coarse scorer pays for it; `kendall_tau` over all pairs is the scale to compare with.

    Args:
        scores: one per trajectory; NaN ones are left out.
        quality: level of each, ordered, such as 0 failure, 1 suboptimal, 2 success; NaN where unknown.
        task: task of each.

    Returns:
        A number in [−1, 1]; NaN where no task has two levels. Tasks with one level say nothing and are left out.

    Raises:
        ValueError: lengths that differ.
    """
    score, level, name = (_as_array(x).ravel() for x in (scores, quality, task))
    if not score.shape == level.shape == name.shape:
        raise ValueError(f"expected as many of each, got {score.size}, {level.size} and {name.size}")
    kept = ~(np.isnan(score) | np.isnan(level))
    found: list[float] = []
    for one in np.unique(name[kept]):
        here = kept & (name == one)
        groups = [score[here & (level == q)].astype(np.float64) for q in np.unique(level[here])]
        # a mean over combinations of a mean over pairs of levels is the mean over pairs of the mean over their members
        pairs = [
            float(np.sign(better[:, None] - worse[None, :]).mean())
            for i, worse in enumerate(groups)
            for better in groups[i + 1 :]
        ]
        if pairs:
            found.append(sum(pairs) / len(pairs))
    return sum(found) / len(found) if found else math.nan


def bootstrap_interval(
    values: _Numbers,
    clusters: _Numbers,
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the pooled mean when whole clusters are resampled (Cameron, Gelbach and Miller, 2008).

    Args:
        values: numbers; NaN ones are left out.
        clusters: what belongs together (an episode, a task, a seed), one label per value.
        level: probability the interval should hold, in (0, 1).
        samples: resamples drawn.
        seed: of the resampling.

    Returns:
        (low, high); NaN twice where fewer than two clusters have a value.

    Raises:
        ValueError: lengths that differ, level outside (0, 1), or fewer than one sample.
    """
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"expected level in (0, 1) and at least 1 sample, got level={level}, samples={samples}")
    value, label = _as_array(values).ravel(), _as_array(clusters).ravel()
    if value.shape != label.shape:
        raise ValueError(f"clusters: expected {value.size} labels, one per value, got {label.size}")
    kept = ~np.isnan(value)
    names, index = np.unique(label[kept], return_inverse=True)
    count = names.size
    if count < 2:
        return math.nan, math.nan
    total = np.bincount(index, value[kept].astype(np.float64), count)
    members = np.bincount(index, minlength=count).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, 4_000_000 // count)  # 32 MB of indices at a time, however many clusters there are
    for start in range(0, samples, block):
        drawn = generator.integers(count, size=(min(block, samples - start), count))
        means[start : start + block] = total[drawn].sum(1) / members[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    first: _Numbers,
    second: _Numbers,
    clusters: _Numbers,
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of first − second and its percentile interval, when both are judged on the same resampled clusters.

    What makes both go up or down together, such as an easy task, cancels; that two separate intervals overlap does not
    mean that there is no difference.

    Args:
        first: one number per episode, of the first model.
        second: the same episodes, of the second; where either is NaN the episode is left out of both.
        clusters: what belongs together, one label per episode.
        level: probability the interval should hold, in (0, 1).
        samples: resamples drawn.
        seed: of the resampling.

    Returns:
        (difference, low, high); the interval is NaN with fewer than two clusters, all are NaN with nothing to compare.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    one, two = _as_array(first).ravel().astype(np.float64), _as_array(second).ravel().astype(np.float64)
    if one.shape != two.shape:
        raise ValueError(f"expected as many of both, got {one.size} and {two.size}")
    difference = one - two
    low, high = bootstrap_interval(difference, clusters, level, samples, seed)
    kept = difference[~np.isnan(difference)]
    return (float(kept.mean()) if kept.size else math.nan), low, high


def _as_array(x: _Numbers) -> _Array:
    """A numpy array; half precision becomes float32, which numpy can sort and sum."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
    return np.asarray(x)


def _paired(x: _Numbers, y: _Numbers) -> tuple[_Array, _Array]:
    """Both as flat arrays without the places where either is NaN."""
    left, right = _as_array(x).ravel(), _as_array(y).ravel()
    if left.shape != right.shape:
        raise ValueError(f"expected as many of both, got {left.size} and {right.size}")
    kept = ~(np.isnan(left) | np.isnan(right))
    return left[kept], right[kept]


def _classes(scores: _Numbers, success: _Numbers) -> tuple[_Array, _Array]:
    """Scores and outcomes that are known, the outcomes 0 or 1."""
    score, outcome = _paired(scores, success)
    if not np.isin(outcome, (0, 1)).all():
        raise ValueError("success: expected 0, 1 or NaN; choose a threshold for graded success first")
    return score, outcome


def _binned(prob: _Numbers, label: _Numbers, bins: int) -> tuple[_Array, _Array, _Array]:
    """Probabilities, labels, and the bin of each."""
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    predicted, happened = _paired(prob, label)
    for name, array in (("prob", predicted), ("label", happened)):
        if array.size and (array.min() < 0 or array.max() > 1):
            raise ValueError(f"{name}: expected numbers in [0, 1], got {array.min()} to {array.max()}")
    # Edges in the dtype of the input: a float32 0.7 lies on the edge 0.7, not just below it.
    floating = np.issubdtype(predicted.dtype, np.floating)
    edges = (np.arange(1, bins) / bins).astype(predicted.dtype if floating else np.float64)
    return predicted, happened, np.searchsorted(edges, predicted, side="right")


def _order(row: _Array) -> float:
    """Spearman correlation of a row with its own order."""
    from scipy.stats import rankdata

    if row.size < 2 or row.min() == row.max():
        return math.nan
    middle = (row.size + 1) / 2
    rank = rankdata(row) - middle
    time = np.arange(1, row.size + 1) - middle
    return float((rank @ time) / math.sqrt((rank @ rank) * (time @ time)))


def _concordance(x: _Array, y: _Array) -> tuple[int, int, int, int]:
    """Concordant minus discordant pairs, all pairs, pairs that differ in x, pairs that differ in y."""
    from scipy.stats import kendalltau

    pairs = x.size * (x.size - 1) // 2
    untied_x, untied_y = pairs - _ties(x), pairs - _ties(y)
    if untied_x == 0 or untied_y == 0:
        return 0, pairs, untied_x, untied_y
    # scipy counts in n log n, but returns the quotient only. Its p-value is of no interest here.
    tau = cast(float, kendalltau(x, y)[0])
    return round(tau * math.sqrt(untied_x * untied_y)), pairs, untied_x, untied_y


def _ties(x: _Array) -> int:
    """Pairs of equal entries."""
    count = np.unique(x, return_counts=True)[1]
    return int((count * (count - 1) // 2).sum())
