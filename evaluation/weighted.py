"""Metrics of weighted episodes, computed for many bootstrap resamples at once.

Weights (S, n) count how often each of S resamples holds each of n episodes. Results are (S,), NaN where a resample
leaves a metric undefined. With all weights 1 they equal the metrics of `core/metrics.py`.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

Weights = Float[np.ndarray, "S n"]
Drawn = Float[np.ndarray, " S"]
_FEW_LABELS = 6  # up to this number, a loop over pairs of labels is cheaper than a matrix of episodes


def weighted_mean(weight: Weights, values: Float[np.ndarray, " n"]) -> Drawn:
    """Compute the mean of a number per episode."""
    return _ratio(weight @ values, weight.sum(1))


def weighted_mean_absolute(weight: Weights, excess: Float[np.ndarray, "n K"], count: Float[np.ndarray, " n"]) -> Drawn:
    """Compute Σ over bins of abs(Σ over episodes of their excess), divided by the summed count.

    With the excess n_b · (mean probability − mean label) of each bin b this is the expected calibration error.
    """
    return _ratio(np.abs(weight @ excess).sum(1), weight @ count)


def discordance(positive: Weights, negative: Weights, scores: Float[np.ndarray, " n"]) -> tuple[Drawn, Drawn, Drawn]:
    """Count how positives compare with negatives: wins (ties ½), ties, and pairs.

    Wins divided by pairs are the area under the ROC curve. The cost is S · n after sorting.
    """
    order, starts = _ties(scores)
    high = np.add.reduceat(positive[:, order].astype(np.float64), starts, axis=1)
    low = np.add.reduceat(negative[:, order].astype(np.float64), starts, axis=1)
    tied = (high * low).sum(1)
    below = np.cumsum(low, axis=1) - low
    return (high * below).sum(1) + 0.5 * tied, tied, high.sum(1) * low.sum(1)


def weighted_auroc(weight: Weights, scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> Drawn:
    """Compute the area under the ROC curve, ties ½."""
    wins, _, pairs = discordance(weight * positive, weight * ~positive, scores)
    return _ratio(wins, pairs)


def weighted_precision(weight: Weights, scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> Drawn:
    """Compute the average precision; equal scores enter together."""
    order, starts = _ties(-scores)
    hits = np.cumsum(np.add.reduceat((weight * positive)[:, order].astype(np.float64), starts, axis=1), axis=1)
    all_ = np.cumsum(np.add.reduceat(weight[:, order].astype(np.float64), starts, axis=1), axis=1)
    total = hits[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(all_ > 0, hits / all_, 0.0)
        found = (np.diff(hits, axis=1, prepend=0.0) / total * precision).sum(1)
    return np.where((total[:, 0] > 0) & (total[:, 0] < all_[:, -1]), found, np.nan)


def ordered_pairs(
    weight: Weights, scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], task: Int[np.ndarray, " n"]
) -> tuple[Drawn, Drawn, Drawn]:
    """Count, over pairs of one task with different labels, wins of the better one (ties ½), ties, and pairs."""
    sums = [np.zeros(len(weight)) for _ in range(3)]
    for one in np.unique(task):
        here = task == one
        for place, part in enumerate(_pairs_of_task(weight[:, here], scores[here], labels[here])):
            sums[place] += part
    return sums[0], sums[1], sums[2]


def _pairs_of_task(
    weight: Float[np.ndarray, "S m"], scores: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]
) -> tuple[Drawn, Drawn, Drawn]:
    levels = np.unique(labels)
    if len(levels) <= _FEW_LABELS:
        sums = [np.zeros(len(weight)) for _ in range(3)]
        for i, worse in enumerate(levels):
            for better in levels[i + 1 :]:
                parts = discordance(weight * (labels == better), weight * (labels == worse), scores)
                for place, part in enumerate(parts):
                    sums[place] += part
        return sums[0], sums[1], sums[2]
    better = (labels[:, None] > labels[None]).astype(np.float32)
    tie = better * (scores[:, None] == scores[None])
    win = better * (scores[:, None] > scores[None]) + 0.5 * tie
    found = [((weight @ table.astype(np.float32)) * weight).sum(1, dtype=np.float64) for table in (win, tie, better)]
    return found[0], found[1], found[2]


def weighted_tau_b(weight: Weights, scores: Float[np.ndarray, " n"], levels: Float[np.ndarray, " n"]) -> Drawn:
    """Compute Kendall's τ-b of scores and levels; copies of one episode tie in both and drop out."""
    wins, _, pairs = _pairs_of_task(weight, scores, levels)
    return _ratio(2 * wins - pairs, np.sqrt(_untied(weight, scores) * _untied(weight, levels)))


def weighted_tau_a(weight: Weights, scores: Float[np.ndarray, " n"], levels: Float[np.ndarray, " n"]) -> Drawn:
    """Compute the mean over pairs of levels of P(better above worse) − P(below): `robometer_tau_a` of one task."""
    found: list[Drawn] = []
    distinct = np.unique(levels)
    for i, worse in enumerate(distinct):
        for better in distinct[i + 1 :]:
            wins, _, pairs = discordance(weight * (levels == better), weight * (levels == worse), scores)
            found.append(2 * _ratio(wins, pairs) - 1)
    if not found:
        return np.full(len(weight), np.nan)
    table = np.stack(found)
    known = ~np.isnan(table)  # a resample may lack a level
    return _ratio(np.where(known, table, 0.0).sum(0), known.sum(0).astype(np.float64))


def weighted_margin(weight: Weights, under: Float[np.ndarray, "n N"], own: int) -> Drawn:
    """Compute the share of other instructions that score lower on a task's videos than its own does, ties ½.

    Scores are means over the videos.

    Args:
        weight: Weights (S, n) of the task's episodes.
        under: Score (n, N) of each episode under each instruction; NaN where there is none.
        own: Column of the task's own instruction.
    """
    known = ~np.isnan(under)
    cells = _ratio(weight.astype(np.float64) @ np.where(known, under, 0.0), weight.astype(np.float64) @ known)
    mine = cells[:, own : own + 1]
    compared = ~np.isnan(cells) & ~np.isnan(mine) & (np.arange(under.shape[1]) != own)
    # means of equal numbers may differ in the last digits
    tie = np.isclose(mine, cells, rtol=1e-12, atol=0.0)
    won = np.where(compared, np.where(tie, 0.5, mine > cells), 0.0).sum(1)
    return _ratio(won, compared.sum(1).astype(np.float64))


def _ties(values: Float[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " g"]]:
    """Return the order that sorts the values, and where each group of equal values starts in it."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = [0, *(place for place, (a, b) in enumerate(pairwise(ranked), 1) if a != b)] if len(ranked) else []
    return order, np.array(starts, dtype=np.int64)


def _untied(weight: Weights, values: Float[np.ndarray, " n"]) -> Drawn:
    """Count pairs that differ in their values."""
    order, starts = _ties(values)
    groups = np.add.reduceat(weight[:, order].astype(np.float64), starts, axis=1)
    return (groups.sum(1) ** 2 - (groups**2).sum(1)) / 2


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(under > 0, over / under, np.nan)
