"""Metrics of rewards and values: order, discrimination, calibration, instructions, ranking of qualities.

Conventions of all metrics here:

* Arguments are tensors, numpy arrays or sequences. Pairs with a NaN entry are left out. What cannot be computed is NaN,
  never 0 or ½: a constant has no order, and one class has no ROC curve. Callers count what was undefined.
* A tie of scores counts ½ wherever pairs are compared. `pairwise_accuracy` with two classes therefore equals
  `success_auroc`, and `tie_rate` is the share of ties. Ranks are average ranks. A tie counts 0 in τ-a and leaves the
  denominator in τ-b.
* Order is a rank correlation over the real observations of one trajectory. A trajectory played by a clock has order 1,
  so compare it with the order on failures and on reversed playback.
* Metrics of trajectories are averaged by task and then over tasks (`macro_bootstrap`), with their counts.
* Intervals resample whole clusters (`bootstrap_interval`), tasks and then trajectories (`macro_bootstrap`), or both
  models at once (`paired_bootstrap`). They are defined in `core/intervals.py` and can be imported from here too.

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
    """Compute the Spearman correlation of each row's L+1 real values with time.

    This is the value-order correlation (VOC) of Ma et al. (2024, arXiv:2411.04549). Short rows are noisy: on n random
    values its standard deviation is 1/√(n − 1), which is 0.5 for five values.

    Args:
        values: Values (B, T+1), one per observation.
        mask: Bool (B, T), True on real steps. Observations at both ends of a real step are real.
        valid: Bool (B, T+1), True where a value counts, such as on evaluated frames; None counts all real ones.

    Returns:
        Correlations (B,) in [−1, 1], on the CPU; ties get average ranks. NaN for a constant row and for fewer than two
        values.

    Raises:
        ValueError: If shapes or types do not fit.
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
    """Compute Kendall's τ: concordant minus discordant pairs, divided by the number of pairs.

    Args:
        x: Numbers.
        y: As many numbers.
        variant: ``"a"`` divides by all pairs, so that ties count 0. ``"b"`` divides by √(pairs untied in x · pairs
            untied in y), and is NaN where x or y is constant.

    Returns:
        A number in [−1, 1]; NaN for fewer than two pairs of numbers.

    Raises:
        ValueError: If lengths differ, or the variant is unknown.
    """
    if variant not in ("a", "b"):
        raise ValueError(f'variant: expected "a" or "b", got {variant!r}')
    balance, pairs, untied_x, untied_y = _concordance(*paired(x, y))
    scale = pairs if variant == "a" else math.sqrt(untied_x * untied_y)
    return max(-1.0, min(1.0, balance / scale)) if scale > 0 else math.nan


def pairwise_accuracy(scores: Numbers, labels: Numbers) -> float:
    """Compute the share of pairs with different labels that the scores order as the labels do; a tie counts ½.

    Returns:
        A number in [0, 1]; NaN where no two labels differ.

    Raises:
        ValueError: If lengths differ.
    """
    balance, _, _, untied_labels = _concordance(*paired(scores, labels))
    return 0.5 * (1 + balance / untied_labels) if untied_labels > 0 else math.nan


def tie_rate(scores: Numbers, labels: Numbers) -> float:
    """Compute the share of pairs with different labels whose scores are equal; `pairwise_accuracy` counts these ½.

    Returns:
        A number in [0, 1], 1 for constant scores; NaN where no two labels differ.

    Raises:
        ValueError: If lengths differ.
    """
    score, label = paired(scores, labels)
    pairs = score.size * (score.size - 1) // 2
    differ = pairs - _ties(label)
    if differ == 0:
        return math.nan
    both = np.unique(np.stack([score, label]), axis=1, return_counts=True)[1]
    return float((_ties(score) - int((both * (both - 1) // 2).sum())) / differ)


def success_auroc(scores: Numbers, success: Numbers) -> float:
    """Compute the area under the ROC curve: the probability that a success scores above a failure, ties ½.

    Args:
        scores: One score per episode.
        success: 0 or 1 (or bool) per episode; NaN where unknown.

    Returns:
        A number in [0, 1]; NaN where a class is missing.

    Raises:
        ValueError: If lengths differ, or a success is neither 0, 1 nor NaN.
    """
    return pairwise_accuracy(*_classes(scores, success))


def expected_calibration_error(
    prob: Numbers,
    label: Numbers,
    bins: int = 15,
) -> float:
    """Compute Σ over bins of (count / n) · abs(mean probability − mean label).

    See Guo et al. (2017, arXiv:1706.04599), equation 3.

    Args:
        prob: Predicted probabilities, in [0, 1].
        label: Observed outcomes, in [0, 1].
        bins: Number of bins of equal width. Bins are closed on the left, the last one on both sides.

    Returns:
        A number in [0, 1]; NaN for empty input.

    Raises:
        ValueError: If lengths differ, there is no bin, or a number is outside [0, 1].
    """
    predicted, happened, place = _binned(prob, label, bins)
    if predicted.size == 0:
        return math.nan
    excess = np.bincount(place, predicted.astype(np.float64) - happened.astype(np.float64), bins)
    return float(np.abs(excess).sum() / predicted.size)


def average_precision(scores: Numbers, success: Numbers) -> float:
    """Compute the area under the precision-recall curve, Σ (recall_n − recall_{n−1}) · precision_n (AUPRC).

    The sum is over distinct scores. Equal scores enter together, so the order in which ties are listed does not matter.
    A constant score has the chance level, which is the share of successes.

    Args:
        scores: One score per episode.
        success: 0 or 1 (or bool) per episode; NaN where unknown.

    Returns:
        A number in (0, 1]; NaN where there is no success or no failure.

    Raises:
        ValueError: If lengths differ, or a success is neither 0, 1 nor NaN.
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
    """Compute the share of failures whose score is at least the threshold; NaN where there is no failure.

    Raises:
        ValueError: If lengths differ, or a success is neither 0, 1 nor NaN.
    """
    score, outcome = _classes(scores, success)
    failed = score[outcome == 0]
    return float((failed >= threshold).mean()) if failed.size else math.nan


def mean_absolute_error(values: Numbers, targets: Numbers) -> float:
    """Compute the mean of abs(value − target), such as of progress and its labels; NaN where nothing is labelled.

    Raises:
        ValueError: If lengths differ.
    """
    value, target = paired(values, targets)
    return float(np.abs(value.astype(np.float64) - target.astype(np.float64)).mean()) if value.size else math.nan


def reliability_curve(
    prob: Numbers, label: Numbers, bins: int = 15
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Compute mean probability, mean label and count of each bin of `expected_calibration_error`.

    Returns:
        Three arrays of length ``bins``; means of empty bins are NaN. The sum of count · abs(mean label − mean
        probability), divided by the number of entries, is the expected calibration error.

    Raises:
        ValueError: As `expected_calibration_error`.
    """
    predicted, happened, place = _binned(prob, label, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, part.astype(np.float64), bins) / count for part in (predicted, happened)]
    return means[0], means[1], count


def instruction_confusion(
    scores: Numbers, instruction: Numbers, video: Numbers, size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Compute the mean score of each task's videos (columns) under each task's instruction (rows), and the counts.

    Args:
        scores: One score per pair of a video and an instruction; NaN entries are left out.
        instruction: Task of the instruction, 0 … size − 1.
        video: Task that the video shows, 0 … size − 1.
        size: Number of tasks N.

    Returns:
        Means (N, N) and counts (N, N). Cells without a score are NaN and never 0, which would change the margin.

    Raises:
        ValueError: If lengths differ, or a task is outside 0 … size − 1.
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
    """Compute how often a video scores higher under its own instruction than under another; chance is ½.

    Only scores of the same video are compared, and only by rank, so the metric does not depend on the model's scale.
    A tie counts ½.

    Args:
        matrix: Scores (N, N) with instructions as rows and videos as columns; matching pairs are on the diagonal. A NaN
            cell leaves its comparison out.

    Returns:
        Mean over videos of the share of other instructions that score lower than their own, in [0, 1]; NaN where
        nothing can be compared.

    Raises:
        ValueError: If the matrix is not square.
    """
    cells = as_array(matrix).astype(np.float64)
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
        raise ValueError(f"expected a square matrix of instructions by videos, got {cells.shape}")
    own = np.diagonal(cells)[None]
    scored = ~np.isnan(cells) & ~np.isnan(own) & ~np.eye(len(cells), dtype=bool)
    won = np.where(scored, (own > cells) + 0.5 * (own == cells), 0.0).sum(0)
    compared = scored.any(0)
    return float((won[compared] / scored.sum(0)[compared]).mean()) if compared.any() else math.nan


def quality_ranking(scores: Numbers, quality: Numbers, task: Numbers) -> float:
    """Compute Kendall's τ-b of score and quality inside each task, and its mean over tasks.

    Args:
        scores: One score per trajectory; NaN entries are left out.
        quality: Quality level of each trajectory, higher is better; NaN entries are left out.
        task: Task label of each trajectory.

    Returns:
        A number in [−1, 1]. Tasks with one level or one score are left out; NaN where no task is left.

    Raises:
        ValueError: If lengths differ.
    """
    found = [kendall_tau(score, level, "b") for score, level in _by_task(scores, quality, task)]
    known = [tau for tau in found if not math.isnan(tau)]
    return sum(known) / len(known) if known else math.nan


def robometer_tau_a(scores: Numbers, quality: Numbers, task: Numbers) -> float:
    """Compute Robometer's policy ranking: τ-a over combinations of one trajectory per quality level.

    Within a task, τ-a of every combination of one trajectory per level is averaged; then tasks are averaged. Every pair
    of levels counts the same, however many trajectories a level has. A tie of scores counts 0, so a coarse score loses
    and a constant has 0. Use it to compare with Robometer's published numbers, and `quality_ranking` otherwise.

    Args:
        scores: One score per trajectory; NaN entries are left out.
        quality: Quality level of each trajectory, higher is better; NaN entries are left out.
        task: Task label of each trajectory.

    Returns:
        A number in [−1, 1]. Tasks with one level are left out; NaN where no task is left.

    Raises:
        ValueError: If lengths differ.
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
    """Return known scores and levels of each task."""
    score, level, name = (as_array(x).ravel() for x in (scores, quality, task))
    if not score.shape == level.shape == name.shape:
        raise ValueError(f"expected as many of each, got {score.size}, {level.size} and {name.size}")
    kept = ~(np.isnan(score) | np.isnan(level))
    return [(score[kept & (name == one)], level[kept & (name == one)]) for one in np.unique(name[kept])]


def _classes(scores: Numbers, success: Numbers) -> tuple[Array, Array]:
    """Return known scores and outcomes; outcomes are 0 or 1."""
    score, outcome = paired(scores, success)
    if not np.isin(outcome, (0, 1)).all():
        raise ValueError("success: expected 0, 1 or NaN; choose a threshold for graded success first")
    return score, outcome


def _binned(prob: Numbers, label: Numbers, bins: int) -> tuple[Array, Array, Array]:
    """Return probabilities, labels, and the bin of each."""
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
    """Compute the Spearman correlation of a row with its own order."""
    from scipy.stats import rankdata

    if row.size < 2 or row.min() == row.max():
        return math.nan
    middle = (row.size + 1) / 2
    rank = rankdata(row) - middle
    time = np.arange(1, row.size + 1) - middle
    return float((rank @ time) / math.sqrt((rank @ rank) * (time @ time)))


def _concordance(x: Array, y: Array) -> tuple[int, int, int, int]:
    """Count concordant minus discordant pairs, all pairs, pairs that differ in x, pairs that differ in y."""
    from scipy.stats import kendalltau

    pairs = x.size * (x.size - 1) // 2
    untied_x, untied_y = pairs - _ties(x), pairs - _ties(y)
    if untied_x == 0 or untied_y == 0:
        return 0, pairs, untied_x, untied_y
    # scipy counts in n log n, but returns the quotient only
    tau = cast(float, kendalltau(x, y)[0])
    return round(tau * math.sqrt(untied_x * untied_y)), pairs, untied_x, untied_y


def _ties(x: Array) -> int:
    """Count pairs of equal entries."""
    count = np.unique(x, return_counts=True)[1]
    return int((count * (count - 1) // 2).sum())
