"""Figures of merit of rewards and values: order, discrimination, calibration, instructions, ranking of qualities.

Conventions, the same everywhere:

* Arguments are tensors, numpy arrays or sequences. NaN entries are left out, pair by pair; what cannot be computed is
  NaN, never 0 or ½: a constant has no order, one class has no ROC curve. Callers count what was undefined.
* A tie of scores counts ½ wherever pairs are compared, so `pairwise_accuracy` with two classes *is* `success_auroc`;
  `tie_rate` says how many there were. Ranks are average ranks. In τ-a ties count 0, in τ-b they leave the denominator.
* Order is a rank correlation, not a Pearson one, over real observations of one trajectory; a trajectory played by a
  clock has order 1, so order is to be read beside what the same model gives for failures and for reversed playback.
* Figures of trajectories are averaged by task and then over tasks (`macro_bootstrap`), each with its count.
* Intervals resample whole clusters (`bootstrap_interval`), tasks and then trajectories (`macro_bootstrap`), or both
  models at once (`paired_bootstrap`); they live in `core/intervals.py` and are named here too.

scipy is imported where it is used, because `guerdon.core` must not pull it in.
"""

import math
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from .arrays import Array, Numbers, as_array, paired
from .intervals import bootstrap_interval as bootstrap_interval
from .intervals import macro_bootstrap as macro_bootstrap
from .intervals import paired_bootstrap as paired_bootstrap


def value_order_correlation(
    values: Numbers,
    mask: Numbers,
    valid: Numbers | None = None,
) -> Float[Tensor, " B"]:
    """Spearman correlation of each row's L+1 real values with time (VOC; Ma et al., 2024, arXiv 2411.04549).

    Short rows are noise: of random values it has a standard deviation of 1/√(n − 1), 0.5 for five of them.

    Args:
        values: (B, T+1), one value per observation.
        mask: (B, T), True on real steps; observations at both ends of a real step are real.
        valid: (B, T+1), True where a value is to be counted, such as evaluated frames only.

    Returns:
        (B,) in [−1, 1], on the CPU; ties get average ranks. NaN for a constant row and for fewer than two values.

    Raises:
        ValueError: shapes that do not fit.
    """
    value, step = as_array(values), as_array(mask)
    if value.ndim != 2 or step.shape != (value.shape[0], value.shape[1] - 1) or step.dtype != np.bool_:
        raise ValueError(
            f"expected values (B, T+1) and a bool mask (B, T), got {value.shape} and {step.dtype} {step.shape}"
        )
    use = np.pad(step, ((0, 0), (0, 1))) | np.pad(step, ((0, 0), (1, 0)))
    use &= ~np.isnan(value)
    if valid is not None:
        flags = as_array(valid)
        if flags.shape != value.shape or flags.dtype != np.bool_:
            raise ValueError(f"valid: expected bool of shape {value.shape}, got {flags.dtype} {flags.shape}")
        use &= flags
    found = [_order(row[keep]) for row, keep in zip(value, use, strict=True)]
    floating = np.issubdtype(value.dtype, np.floating)
    return torch.from_numpy(np.array(found, dtype=value.dtype if floating else np.float64))


def kendall_tau(
    x: Numbers,
    y: Numbers,
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
    balance, pairs, untied_x, untied_y = _concordance(*paired(x, y))
    scale = pairs if variant == "a" else math.sqrt(untied_x * untied_y)
    return max(-1.0, min(1.0, balance / scale)) if scale > 0 else math.nan


def pairwise_accuracy(scores: Numbers, labels: Numbers) -> float:
    """Share of the pairs with different labels that the scores order as the labels do; a tie of scores counts ½.

    Returns:
        A number in [0, 1]; NaN where no two labels differ.

    Raises:
        ValueError: lengths that differ.
    """
    balance, _, _, untied_labels = _concordance(*paired(scores, labels))
    return 0.5 * (1 + balance / untied_labels) if untied_labels > 0 else math.nan


def tie_rate(scores: Numbers, labels: Numbers) -> float:
    """Share of the pairs with different labels whose scores are equal, which `pairwise_accuracy` counts ½.

    Returns:
        A number in [0, 1], 1 for a constant; NaN where no two labels differ.

    Raises:
        ValueError: lengths that differ.
    """
    score, label = paired(scores, labels)
    pairs = score.size * (score.size - 1) // 2
    differ = pairs - _ties(label)
    if differ == 0:
        return math.nan
    both = np.unique(np.stack([score, label]), axis=1, return_counts=True)[1]
    return float((_ties(score) - int((both * (both - 1) // 2).sum())) / differ)


def success_auroc(scores: Numbers, success: Numbers) -> float:
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
    prob: Numbers,
    label: Numbers,
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


def average_precision(scores: Numbers, success: Numbers) -> float:
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


def false_positive_rate(scores: Numbers, success: Numbers, threshold: float | int) -> float:
    """Share of the failures whose score is at least the threshold; NaN where there is no failure.

    Raises:
        ValueError: lengths that differ, or a success that is neither 0 nor 1.
    """
    score, outcome = _classes(scores, success)
    failed = score[outcome == 0]
    return float((failed >= threshold).mean()) if failed.size else math.nan


def mean_absolute_error(values: Numbers, targets: Numbers) -> float:
    """Mean of abs(value − target), for progress against its labels; NaN where nothing is labelled.

    Raises:
        ValueError: lengths that differ.
    """
    value, target = paired(values, targets)
    return float(np.abs(value.astype(np.float64) - target.astype(np.float64)).mean()) if value.size else math.nan


def reliability_curve(
    prob: Numbers, label: Numbers, bins: int = 15
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


def instruction_confusion(
    scores: Numbers, instruction: Numbers, video: Numbers, size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Mean score of the videos of each task (columns) under the instruction of each task (rows), and the counts.

    Args:
        scores: one per reading of a video under an instruction; NaN ones are left out.
        instruction: task of the instruction, 0 … size − 1.
        video: task that the video shows, 0 … size − 1.
        size: number of tasks N.

    Returns:
        (N, N) means, NaN in cells that were not asked, never 0: a filled-in 0 would move any margin; and (N, N) counts.

    Raises:
        ValueError: lengths that differ, or a task outside 0 … size − 1.
    """
    score, row, column = as_array(scores).ravel(), as_array(instruction).ravel(), as_array(video).ravel()
    if not score.shape == row.shape == column.shape:
        raise ValueError(f"expected as many of each, got {score.size}, {row.size} and {column.size}")
    if row.size and (min(row.min(), column.min()) < 0 or max(row.max(), column.max()) >= size):
        raise ValueError(
            f"expected tasks 0 … {size - 1}, got {min(row.min(), column.min())} … {max(row.max(), column.max())}"
        )
    kept = ~np.isnan(score)
    place = row[kept].astype(np.int64) * size + column[kept].astype(np.int64)
    count = np.bincount(place, minlength=size * size).reshape(size, size)
    total = np.bincount(place, score[kept].astype(np.float64), size * size).reshape(size, size)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan), count


def instruction_margin(matrix: Numbers) -> float:
    """How often a video is valued higher under its own instruction than under another: chance is ½, ties count ½.

    It compares ranks within a video only, so it does not depend on a model's scale as a difference of means does.

    Args:
        matrix: (N, N), rows are instructions and columns videos, the diagonal holds matching pairs; NaN cells were not
            asked and leave their comparison out, rather than counting as 0.

    Returns:
        Mean over videos of the share of other instructions below their own; NaN where nothing can be compared.

    Raises:
        ValueError: if the matrix is not square.
    """
    cells = as_array(matrix).astype(np.float64)
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
        raise ValueError(f"expected a square matrix of instructions by videos, got {cells.shape}")
    own = np.diagonal(cells)[None]
    asked = ~np.isnan(cells) & ~np.isnan(own) & ~np.eye(len(cells), dtype=bool)
    won = np.where(asked, (own > cells) + 0.5 * (own == cells), 0.0).sum(0)
    compared = asked.any(0)
    return float((won[compared] / asked.sum(0)[compared]).mean()) if compared.any() else math.nan


def quality_ranking(scores: Numbers, quality: Numbers, task: Numbers) -> float:
    """Do a task's trajectories score in the order of their quality? Kendall τ-b over a task's trajectories, then tasks.

    Args:
        scores: one per trajectory; NaN ones are left out.
        quality: level of each, higher is better; NaN ones are left out.
        task: label of the task of each.

    Returns:
        A number in [−1, 1]; tasks of one level, or of one score, say nothing and are left out; NaN where all are.

    Raises:
        ValueError: lengths that differ.
    """
    found = [kendall_tau(score, level, "b") for score, level in _by_task(scores, quality, task)]
    known = [tau for tau in found if not math.isnan(tau)]
    return sum(known) / len(known) if known else math.nan


def robometer_tau_a(scores: Numbers, quality: Numbers, task: Numbers) -> float:
    """The policy ranking of Robometer, for comparison with its figures: τ-a of one trajectory per quality level.

    Within a task, τ-a of every combination of one trajectory per level is averaged, then tasks are. Every pair of
    levels enters equally however many trajectories a level has, and a tie of scores counts 0, so a coarse scorer pays
    for it and a constant gets 0; `quality_ranking` is the figure for general use.

    Args:
        scores: one per trajectory; NaN ones are left out.
        quality: level of each, higher is better; NaN ones are left out.
        task: label of the task of each.

    Returns:
        A number in [−1, 1]; NaN where no task has two levels: tasks with one level say nothing and are left out.

    Raises:
        ValueError: lengths that differ.
    """
    found: list[float] = []
    for score, level in _by_task(scores, quality, task):
        groups = [score[level == q].astype(np.float64) for q in np.unique(level)]
        # a mean over combinations of a mean over pairs of levels is the mean over pairs of the mean over their members
        pairs = [
            float(np.sign(better[:, None] - worse[None, :]).mean())
            for i, worse in enumerate(groups)
            for better in groups[i + 1 :]
        ]
        if pairs:
            found.append(sum(pairs) / len(pairs))
    return sum(found) / len(found) if found else math.nan


def _by_task(scores: Numbers, quality: Numbers, task: Numbers) -> list[tuple[Array, Array]]:
    """Known scores and levels of each task."""
    score, level, name = (as_array(x).ravel() for x in (scores, quality, task))
    if not score.shape == level.shape == name.shape:
        raise ValueError(f"expected as many of each, got {score.size}, {level.size} and {name.size}")
    kept = ~(np.isnan(score) | np.isnan(level))
    return [(score[kept & (name == one)], level[kept & (name == one)]) for one in np.unique(name[kept])]


def _classes(scores: Numbers, success: Numbers) -> tuple[Array, Array]:
    """Scores and outcomes that are known, the outcomes 0 or 1."""
    score, outcome = paired(scores, success)
    if not np.isin(outcome, (0, 1)).all():
        raise ValueError("success: expected 0, 1 or NaN; choose a threshold for graded success first")
    return score, outcome


def _binned(prob: Numbers, label: Numbers, bins: int) -> tuple[Array, Array, Array]:
    """Probabilities, labels, and the bin of each."""
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    predicted, happened = paired(prob, label)
    for name, array in (("prob", predicted), ("label", happened)):
        if array.size and (array.min() < 0 or array.max() > 1):
            raise ValueError(f"{name}: expected numbers in [0, 1], got {array.min()} to {array.max()}")
    # Edges in the dtype of the input: a float32 0.7 lies on the edge 0.7, not just below it.
    floating = np.issubdtype(predicted.dtype, np.floating)
    edges = (np.arange(1, bins) / bins).astype(predicted.dtype if floating else np.float64)
    return predicted, happened, np.searchsorted(edges, predicted, side="right")


def _order(row: Array) -> float:
    """Spearman correlation of a row with its own order."""
    from scipy.stats import rankdata

    if row.size < 2 or row.min() == row.max():
        return math.nan
    middle = (row.size + 1) / 2
    rank = rankdata(row) - middle
    time = np.arange(1, row.size + 1) - middle
    return float((rank @ time) / math.sqrt((rank @ rank) * (time @ time)))


def _concordance(x: Array, y: Array) -> tuple[int, int, int, int]:
    """Concordant minus discordant pairs, all pairs, pairs that differ in x, pairs that differ in y."""
    from scipy.stats import kendalltau

    pairs = x.size * (x.size - 1) // 2
    untied_x, untied_y = pairs - _ties(x), pairs - _ties(y)
    if untied_x == 0 or untied_y == 0:
        return 0, pairs, untied_x, untied_y
    # scipy counts in n log n, but returns the quotient only. Its p-value is of no interest here.
    tau = cast(float, kendalltau(x, y)[0])
    return round(tau * math.sqrt(untied_x * untied_y)), pairs, untied_x, untied_y


def _ties(x: Array) -> int:
    """Pairs of equal entries."""
    count = np.unique(x, return_counts=True)[1]
    return int((count * (count - 1) // 2).sum())
