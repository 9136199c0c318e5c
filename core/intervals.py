"""Confidence intervals of metrics: bootstraps over whole clusters, and the Wilson interval of a proportion.

scipy is imported where it is used, because `guerdon.core` must not pull it in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .arrays import Numbers, as_array


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its confidence interval; NaN where it, or its interval, is undefined."""

    value: float
    low: float = math.nan
    """Lower end of the interval."""
    high: float = math.nan
    """Upper end of the interval."""

    @classmethod
    def resampled(cls, value: float, drawn: Float[np.ndarray, " S"], level: float | int = 0.95) -> "Estimate":
        """Make an estimate from a number and its values on bootstrap resamples; see `percentile_interval`."""
        low, high = percentile_interval(drawn, level)
        return cls(value=value, low=low, high=high)


def bootstrap_interval(
    values: Numbers,
    clusters: Numbers,
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute a percentile interval of the pooled mean by resampling whole clusters.

    This is the cluster bootstrap of Cameron, Gelbach and Miller (2008), section III.

    Args:
        values: Numbers; NaN entries are left out.
        clusters: Cluster label of each value, such as its episode, task or seed.
        level: Confidence level, in (0, 1).
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        (low, high); both are NaN where fewer than two clusters have a value.

    Raises:
        ValueError: If lengths differ, the level is outside (0, 1), or there is no resample.
    """
    _check_settings(level, samples)
    value, label = as_array(values).ravel(), as_array(clusters).ravel()
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


def mean_estimate(values: Numbers, clusters: Numbers | None = None) -> Estimate:
    """Estimate a mean with its `bootstrap_interval` at the default settings.

    Args:
        values: Numbers; NaN entries are left out.
        clusters: Cluster label of each value; None makes each value its own cluster.

    Returns:
        The mean, NaN where no value is left.

    Raises:
        ValueError: If lengths differ.
    """
    value = as_array(values).ravel().astype(np.float64)
    low, high = bootstrap_interval(value, np.arange(value.size) if clusters is None else clusters)
    kept = value[~np.isnan(value)]
    return Estimate(value=float(kept.mean()) if kept.size else math.nan, low=low, high=high)


def paired_bootstrap(
    first: Numbers,
    second: Numbers,
    clusters: Numbers,
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Compute the mean of first − second and its percentile interval, with the same resamples for both.

    Whatever changes both models alike, such as an easy task, cancels. A difference may therefore be clear although the
    two separate intervals overlap.

    Args:
        first: One number per episode, of the first model.
        second: One number for each of the same episodes, of the second model. An episode with a NaN on either side is
            left out of both.
        clusters: Cluster label of each episode.
        level: Confidence level, in (0, 1).
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        (difference, low, high). The interval is NaN with fewer than two clusters. All three are NaN where there is
        nothing to compare.

    Raises:
        ValueError: If lengths differ, the level is outside (0, 1), or there is no resample.
    """
    one, two = as_array(first).ravel().astype(np.float64), as_array(second).ravel().astype(np.float64)
    if one.shape != two.shape:
        raise ValueError(f"expected as many of both, got {one.size} and {two.size}")
    difference = one - two
    low, high = bootstrap_interval(difference, clusters, level, samples, seed)
    kept = difference[~np.isnan(difference)]
    return (float(kept.mean()) if kept.size else math.nan), low, high


def macro_bootstrap(
    values: Numbers,
    tasks: Numbers,
    clusters: Numbers | None = None,
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
    fixed_tasks: bool = False,
) -> tuple[float, float, float]:
    """Compute the mean over tasks of each task's mean, and its interval from a bootstrap over tasks and trajectories.

    Every task counts the same, however many trajectories it has. The interval covers the choice of tasks and of
    trajectories; with ``fixed_tasks`` it covers the choice of trajectories only.

    Args:
        values: One number per trajectory. NaN entries are left out, and so are tasks without any other.
        tasks: Task label of each value.
        clusters: Cluster label of each value inside its task; None makes each value its own cluster.
        level: Confidence level, in (0, 1).
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.
        fixed_tasks: Resample trajectories only.

    Returns:
        (mean over tasks, low, high). The interval is NaN with fewer than two tasks or, with ``fixed_tasks``, with no
        task of two clusters. All three are NaN where there is no value.

    Raises:
        ValueError: If lengths differ, the level is outside (0, 1), or there is no resample.
    """
    _check_settings(level, samples)
    value, name = as_array(values).ravel().astype(np.float64), as_array(tasks).ravel()
    label = np.arange(value.size) if clusters is None else as_array(clusters).ravel()
    if not value.shape == name.shape == label.shape:
        raise ValueError(f"expected as many of each, got {value.size}, {name.size} tasks and {label.size} clusters")
    kept = ~np.isnan(value)
    draws: list[Float[np.ndarray, " P"]] = []
    means: list[float] = []
    several = False
    for place, one in enumerate(np.unique(name[kept])):
        here = kept & (name == one)
        means.append(float(value[here].mean()))
        weight = cluster_weights(label[here], min(samples, _POOL), seed + 1 + place).astype(np.float64)
        draws.append(weight @ value[here] / weight.sum(1))
        several |= np.unique(label[here]).size > 1
    if not means:
        return math.nan, math.nan, math.nan
    enough = several if fixed_tasks else len(means) > 1
    low, high = nested_interval(draws, level, samples, seed, fixed_tasks) if enough else (math.nan, math.nan)
    return sum(means) / len(means), low, high


_POOL = 500  # resamples of each task; a task that is drawn twice takes two of them


def nested_interval(
    draws: Sequence[Float[np.ndarray, " P"]],
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
    fixed_tasks: bool = False,
) -> tuple[float, float]:
    """Compute a percentile interval of the mean over tasks from values that were resampled inside each task.

    Args:
        draws: For each task, its metric on resamples of its trajectories; NaN where a resample leaves it undefined.
        level: Confidence level, in (0, 1).
        samples: Number of resamples of the tasks.
        seed: Random seed of the resampling.
        fixed_tasks: Take every task once, instead of drawing as many tasks with replacement.

    Returns:
        (low, high); both are NaN where there is no task, or most resamples are undefined.
    """
    count = len(draws)
    if count == 0:
        return math.nan, math.nan
    table = np.stack(draws)
    generator = np.random.default_rng(seed)
    shape = (samples, count)
    which = np.broadcast_to(np.arange(count), shape) if fixed_tasks else generator.integers(count, size=shape)
    drawn = table[which, generator.integers(table.shape[1], size=shape)]
    known = ~np.isnan(drawn)
    with np.errstate(invalid="ignore"):
        means = np.where(known, drawn, 0.0).sum(1) / known.sum(1)
    return percentile_interval(means, level)


def percentile_interval(drawn: Float[np.ndarray, " S"], level: float | int = 0.95) -> tuple[float, float]:
    """Compute a percentile interval of resampled values.

    Args:
        drawn: A metric's value on each resample; NaN where a resample leaves it undefined.
        level: Confidence level, in (0, 1).

    Returns:
        (low, high); both are NaN where there is no resample, or more than half of them are undefined.
    """
    known = drawn[~np.isnan(drawn)]
    if known.size == 0 or known.size < 0.5 * drawn.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cluster_weights(clusters: Numbers, samples: int, seed: int = 0) -> Float[np.ndarray, "S n"]:
    """Count how often each entry occurs in each bootstrap resample of whole clusters.

    With these weights, a weighted metric on all resamples is one matrix product.

    Args:
        clusters: Cluster label of each entry.
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        Counts (S, n) as float32, one row per resample.
    """
    index = np.unique(as_array(clusters).ravel(), return_inverse=True)[1]
    count = int(index.max()) + 1 if index.size else 0
    drawn = np.random.default_rng(seed).integers(count, size=(samples, count))
    flat = (drawn + count * np.arange(samples)[:, None]).ravel()
    times = np.bincount(flat, minlength=samples * count).reshape(samples, count)
    return times[:, index].astype(np.float32)


def wilson_interval(hits: int, count: int, level: float | int = 0.95) -> tuple[float, float]:
    """Compute the score interval of a proportion (Wilson, 1927), which stays inside [0, 1] also for few trials.

    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n) with p = hits / n and z the (1 + level)/2 quantile of the normal
    distribution. Trials count as independent.

    Args:
        hits: Number of successful trials.
        count: Number of trials n.
        level: Confidence level, in (0, 1).

    Returns:
        (low, high); both are NaN without a trial.

    Raises:
        ValueError: If the level is outside (0, 1), or there are more hits than trials.
    """
    from scipy.stats import binomtest

    if not 0 < level < 1 or not 0 <= hits <= count:
        raise ValueError(f"expected a level in (0, 1) and 0 … count hits, got {level} and {hits} of {count}")
    if not count:
        return math.nan, math.nan
    interval = binomtest(hits, count).proportion_ci(float(level), method="wilson")
    return float(interval.low), float(interval.high)


def wilson_estimate(hits: int, count: int, level: float | int = 0.95) -> Estimate:
    """Estimate a proportion with its `wilson_interval`; all NaN without a trial."""
    low, high = wilson_interval(hits, count, level)
    return Estimate(value=hits / count if count else math.nan, low=low, high=high)


def _check_settings(level: float | int, samples: int) -> None:
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"expected level in (0, 1) and at least 1 sample, got level={level}, samples={samples}")
