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
    score, outcome = _paired(scores, success)
    if not np.isin(outcome, (0, 1)).all():
        raise ValueError("success: expected 0, 1 or NaN; choose a threshold for graded success first")
    return pairwise_accuracy(score, outcome)


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
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    predicted, happened = _paired(prob, label)
    if predicted.size == 0:
        return math.nan
    for name, array in (("prob", predicted), ("label", happened)):
        if array.min() < 0 or array.max() > 1:
            raise ValueError(f"{name}: expected numbers in [0, 1], got {array.min()} to {array.max()}")
    # Edges in the dtype of the input: a float32 0.7 lies on the edge 0.7, not just below it.
    floating = np.issubdtype(predicted.dtype, np.floating)
    edges = (np.arange(1, bins) / bins).astype(predicted.dtype if floating else np.float64)
    place = np.searchsorted(edges, predicted, side="right")
    excess = np.bincount(place, predicted.astype(np.float64) - happened.astype(np.float64), bins)
    return float(np.abs(excess).sum() / predicted.size)


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
