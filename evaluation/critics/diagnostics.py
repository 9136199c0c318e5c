"""Metrics of critics: calibration, order, over-estimation, ranking of chunks, residuals, ensembles, weights.

All metrics are pure functions of arrays. NaN entries are left out, and what cannot be computed is NaN: a constant has
no correlation, a single member no standard deviation. Intervals resample whole clusters, such as episodes, because the
steps of one episode are not independent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.stats import rankdata

from ...core import intervals
from ...core.arrays import Array, Numbers, as_array, paired
from ...core.intervals import bootstrap_interval, percentile_interval
from ..series import drop, largest_fall

SAMPLES = 500
"""Default number of resamples of an interval."""


@dataclass(frozen=True, kw_only=True)
class Estimate(intervals.Estimate):
    """Metric with its 95 % interval and the size of its sample."""

    n: int = 0
    """Number of entries that the metric is computed from."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """States whose predictions are of similar size."""

    count: int
    """Number of states."""
    predicted: float
    """Mean prediction."""
    observed: float
    """Mean return."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Predicted against observed returns: observed ≈ intercept + slope · predicted."""

    slope: float
    """1 for a calibrated critic; below 1 where it spreads its values too far. NaN for a constant prediction."""
    intercept: float
    """0 for a calibrated critic. NaN for a constant prediction."""
    mean_error: float
    """Mean of predicted − observed: over-estimation if positive."""
    n: int
    """Number of predictions."""
    bins: tuple[CalibrationBin, ...]
    """Bins in the order of the predictions."""


def calibration(predicted: Numbers, observed: Numbers, bins: int = 10) -> Calibration:
    """Fit observed to predicted returns by least squares, and tabulate both in bins of about equally many predictions.

    Equal predictions share a bin, so that there may be fewer bins than requested.

    Args:
        predicted: Predictions.
        observed: Return of each.
        bins: Largest number of bins.

    Raises:
        ValueError: If lengths differ, or there is no bin.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    x, y = _floats(predicted, observed)
    if not x.size:
        return Calibration(slope=math.nan, intercept=math.nan, mean_error=math.nan, n=0, bins=())
    slope, intercept = _line(x, y)
    edges = np.unique(np.quantile(x, np.arange(1, bins) / bins))
    place = np.searchsorted(edges, x, side="right")
    table = [
        CalibrationBin(count=int(here.sum()), predicted=float(x[here].mean()), observed=float(y[here].mean()))
        for here in (place == b for b in range(edges.size + 1))
        if here.any()
    ]
    return Calibration(
        slope=slope, intercept=intercept, mean_error=float((x - y).mean()), n=int(x.size), bins=tuple(table)
    )


def rank_correlation(predicted: Numbers, observed: Numbers) -> float:
    """Compute Spearman's correlation with mean ranks for ties; NaN for a constant, or fewer than two pairs.

    Raises:
        ValueError: If lengths differ.
    """
    return _spearman(*_floats(predicted, observed))


def rank_correlation_interval(
    predicted: Numbers, observed: Numbers, clusters: Numbers, samples: int = SAMPLES, seed: int = 0
) -> Estimate:
    """Compute `rank_correlation`, with an interval from resampling whole clusters.

    Args:
        predicted: Predictions.
        observed: Return of each.
        clusters: Label of the cluster of each entry, such as the episode.
        samples: Number of resamples.
        seed: Random seed of the resampling.

    Raises:
        ValueError: If lengths differ.
    """
    x, y, names = _clustered(predicted, observed, clusters)
    low, high = resampled(lambda place: _spearman(x[place], y[place]), names, samples, seed)
    return Estimate(value=_spearman(x, y), low=low, high=high, n=int(x.size))


def over_estimation(predicted: Numbers, observed: Numbers, clusters: Numbers, seed: int = 0) -> Estimate:
    """Compute the mean of predicted − observed: positive if the critic values too high.

    At initial states this is the error that ALOE is most concerned with.

    Args:
        predicted: Values of states.
        observed: Mean return of each state.
        clusters: Label of the cluster of each state, such as the episode.
        seed: Random seed of the interval.

    Raises:
        ValueError: If lengths differ.
    """
    x, y, names = _clustered(predicted, observed, clusters)
    low, high = bootstrap_interval(x - y, names, seed=seed)
    return Estimate(value=float((x - y).mean()) if x.size else math.nan, low=low, high=high, n=int(x.size))


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkRanking:
    """How often a critic ranks the better of two chunks at the same state first."""

    auc: float
    """Mean over states; ½ is chance."""
    by_state: Float[np.ndarray, " M"]
    """Share of correctly ranked pairs at each state; NaN where no two returns differ."""
    states: int
    """Number of states with at least one pair."""
    pairs: int
    """Number of pairs whose returns differ."""


def chunk_ranking_auc(predicted: Numbers, returns: Numbers, margin: float | int = 0.0) -> ChunkRanking:
    """Compute the share of pairs of chunks at one state that the critic ranks as their returns do; mean over states.

    Args:
        predicted: Q of C chunks at each of M states, (M, C); equal ones count ½.
        returns: Re-rolled return of each chunk, (M, C).
        margin: Smallest difference in return of a pair, exclusive; returns are means of few rollouts.

    Raises:
        ValueError: If shapes differ, or the margin is negative.
    """
    q, g = as_array(predicted).astype(np.float64), as_array(returns).astype(np.float64)
    if q.ndim != 2 or q.shape != g.shape or not margin >= 0:
        raise ValueError(
            f"expected Q and returns of one shape (M, C) and a margin of 0 or more, got {q.shape}, {g.shape}"
        )
    difference, order = g[:, :, None] - g[:, None, :], q[:, :, None] - q[:, None, :]
    compared = (difference > margin) & ~np.isnan(order)
    won = np.where(compared, (order > 0) + 0.5 * (order == 0), 0.0).sum((1, 2))
    pairs = compared.sum((1, 2))
    by_state = np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)
    known = by_state[pairs > 0]
    return ChunkRanking(
        auc=float(known.mean()) if known.size else math.nan,
        by_state=by_state,
        states=int(known.size),
        pairs=int(pairs.sum()),
    )


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Targets minus predictions of one source."""

    mean: float
    """Mean."""
    rms: float
    """Root mean square."""
    n: int
    """Number of steps."""


def td_residual_by_source(residual: Numbers, source: Numbers) -> dict[int, Residual]:
    """Compute mean and root mean square of temporal-difference residuals for each source that has any.

    Args:
        residual: Residual of each step; NaN where it is unknown.
        source: Number of the source of each step.

    Raises:
        ValueError: If lengths differ.
    """
    error, who = as_array(residual).ravel().astype(np.float64), as_array(source).ravel()
    if error.shape != who.shape:
        raise ValueError(f"expected as many of both, got {error.size} and {who.size}")
    found: dict[int, Residual] = {}
    for one in np.unique(who):
        here = error[(who == one) & ~np.isnan(error)]
        if here.size:
            rms = float(np.sqrt(np.square(here).mean()))
            found[int(one)] = Residual(mean=float(here.mean()), rms=rms, n=int(here.size))
    return found


def ensemble_correlation(members: Numbers) -> float:
    """Compute the mean Pearson correlation of the pairs of members, of their errors or of their values.

    Members that err together give no protection: with a correlation ρ the smaller of two is below their mean by only
    0.5642 · √(1 − ρ) of their standard deviation.

    Args:
        members: Errors or values (K, N); a place where any is NaN is left out.

    Returns:
        A number in [−1, 1]; NaN for one member, a constant one, or fewer than two places.

    Raises:
        ValueError: If the shape is not (K, N).
    """
    values = _members(members)
    values = values[:, ~np.isnan(values).any(0)]
    if len(values) < 2 or values.shape[1] < 2 or not (values.max(1) > values.min(1)).all():
        return math.nan
    found = np.corrcoef(values)[np.triu_indices(len(values), 1)]
    return float(np.clip(found.mean(), -1, 1))


def spread_error_correlation(members: Numbers, observed: Numbers) -> float:
    """Compute the rank correlation of the members' standard deviation and the absolute error of their mean.

    It is positive if the ensemble disagrees where it is wrong; NaN for one member.

    Args:
        members: Values (K, N).
        observed: Return (N,) of each place.

    Raises:
        ValueError: If shapes do not fit.
    """
    values, target = _members(members), as_array(observed).ravel().astype(np.float64)
    if values.shape[1] != target.size:
        raise ValueError(f"expected a return for each of {values.shape[1]} places, got {target.size}")
    return math.nan if len(values) < 2 else rank_correlation(values.std(0), np.abs(values.mean(0) - target))


def effective_sample_share(weights: Numbers) -> float:
    """Compute (Σw)² / (n Σw²), the effective share of n weighted samples: 1 for equal weights, 1/n for a single one.

    Raises:
        ValueError: If a weight is negative.
    """
    w = as_array(weights).ravel().astype(np.float64)
    w = w[~np.isnan(w)]
    if w.size and w.min() < 0:
        raise ValueError(f"expected weights of 0 or more, got {w.min()}")
    largest = w.max(initial=0.0)
    if not largest > 0:
        return math.nan
    w = w / largest  # squares of large weights would overflow
    return float(w.sum() ** 2 / (w.size * np.square(w).sum()))


def spanning_share(replan: Numbers, mask: Numbers, horizon: int) -> float:
    """Compute the share of logged chunks that go on past a re-plan, with one chunk from every real step.

    Args:
        replan: Flags (B, T), true where the policy decided anew.
        mask: Mask (B, T), true on real steps, which come first.
        horizon: Largest number of steps in a chunk.

    Raises:
        ValueError: If shapes differ, or the horizon is below 1.
    """
    flags, real = as_array(replan).astype(bool), as_array(mask).astype(bool)
    if flags.shape != real.shape or flags.ndim != 2 or horizon < 1:
        raise ValueError(
            f"expected (B, T) twice and a horizon of 1 or more, got {flags.shape}, {real.shape}, {horizon}"
        )
    if not real.any():
        return math.nan
    spans = np.zeros(real.shape, bool)
    for ahead in range(1, min(horizon, real.shape[1])):
        spans[:, :-ahead] |= (flags & real)[:, ahead:]
    return float(spans[real].mean())


def resampled(
    figure: Callable[[npt.NDArray[np.int64]], float], clusters: Numbers, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile interval of any metric by resampling whole clusters.

    Args:
        figure: Metric as a function of the places of the entries in a resample, with repeats.
        clusters: Label of the cluster of each entry.
        samples: Number of resamples.
        seed: Random seed of the resampling.

    Returns:
        (low, high); NaN with fewer than two clusters, or if the metric is undefined in most resamples.
    """
    index = np.unique(as_array(clusters).ravel(), return_inverse=True)[1]
    count = int(index.max()) + 1 if index.size else 0
    if count < 2:
        return math.nan, math.nan
    places = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    generator = np.random.default_rng(seed)
    drawn = [figure(np.concatenate([places[i] for i in generator.integers(count, size=count)])) for _ in range(samples)]
    return percentile_interval(np.array(drawn))


def _floats(x: Numbers, y: Numbers) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    left, right = paired(x, y)
    return left.astype(np.float64), right.astype(np.float64)


def _clustered(x: Numbers, y: Numbers, clusters: Numbers) -> tuple[Array, Array, Array]:
    left, right, names = (as_array(part).ravel() for part in (x, y, clusters))
    if not left.shape == right.shape == names.shape:
        raise ValueError(f"expected as many of each, got {left.size}, {right.size} and {names.size} clusters")
    kept = ~(np.isnan(left) | np.isnan(right))
    return left[kept].astype(np.float64), right[kept].astype(np.float64), names[kept]


def _members(members: Numbers) -> Float[np.ndarray, "K N"]:
    values = as_array(members).astype(np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"expected members (K, N), got {values.shape}")
    return values


def _line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Compute slope and intercept of least squares; NaN if x does not vary."""
    away = x - x.mean()
    scale = float(away @ away)
    if x.size < 2 or x.min() == x.max() or scale == 0:
        return math.nan, math.nan
    slope = float(away @ (y - y.mean())) / scale
    return slope, float(y.mean() - slope * x.mean())


def _spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    if x.size < 2 or x.min() == x.max() or y.min() == y.max():
        return math.nan
    one, two = (rankdata(part) - (x.size + 1) / 2 for part in (x, y))
    return float(np.clip((one @ two) / math.sqrt((one @ one) * (two @ two)), -1, 1))


__all__ = [
    "Calibration",
    "CalibrationBin",
    "ChunkRanking",
    "Estimate",
    "Residual",
    "calibration",
    "chunk_ranking_auc",
    "drop",
    "effective_sample_share",
    "ensemble_correlation",
    "largest_fall",
    "over_estimation",
    "rank_correlation",
    "rank_correlation_interval",
    "resampled",
    "spanning_share",
    "spread_error_correlation",
    "td_residual_by_source",
]
