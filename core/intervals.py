"""Intervals around figures of merit: whole clusters are resampled, alone, in pairs, or by task and then trajectory."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from .arrays import Numbers, as_array


def bootstrap_interval(
    values: Numbers,
    clusters: Numbers,
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


def paired_bootstrap(
    first: Numbers,
    second: Numbers,
    clusters: Numbers,
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
    """Mean over tasks of each task's mean, and its interval when tasks are drawn first and trajectories after.

    Every task counts the same, however many trajectories it has. The interval says what other tasks would have given;
    with ``fixed_tasks`` it says what other trajectories of these tasks would have.

    Args:
        values: one per trajectory; NaN ones are left out, and so is a task without any other.
        tasks: one label per value.
        clusters: what belongs together inside a task; None takes each value alone.
        level: probability the interval should hold, in (0, 1).
        samples: resamples drawn.
        seed: of the resampling.
        fixed_tasks: resample trajectories only.

    Returns:
        (macro mean, low, high); the interval is NaN with fewer than two tasks (or, with ``fixed_tasks``, with no task
        of two clusters), all are NaN where there is no value.

    Raises:
        ValueError: lengths that differ, level outside (0, 1), or fewer than one sample.
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


_POOL = 500  # resamples kept of each task; two draws of a task take two of them


def nested_interval(
    draws: Sequence[Float[np.ndarray, " P"]],
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
    fixed_tasks: bool = False,
) -> tuple[float, float]:
    """Percentile interval of the mean over tasks, when every task's figure was resampled beforehand.

    Args:
        draws: per task, its figure on resamples of its trajectories; NaN where a resample left it undefined.
        level: probability the interval should hold.
        samples: resamples drawn.
        seed: of the resampling.
        fixed_tasks: take every task once, rather than as many with replacement.

    Returns:
        (low, high); NaN where there is no task, or most resamples are undefined.
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
    """(low, high) of resampled figures; NaN where most of the resamples left the figure undefined."""
    known = drawn[~np.isnan(drawn)]
    if known.size == 0 or known.size < 0.5 * drawn.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cluster_weights(clusters: Numbers, samples: int, seed: int = 0) -> Float[np.ndarray, "S n"]:
    """How often each entry counts in each resample of whole clusters, as float32.

    With it the resampled value of any figure that takes weights is one matrix product.
    """
    index = np.unique(as_array(clusters).ravel(), return_inverse=True)[1]
    count = int(index.max()) + 1 if index.size else 0
    drawn = np.random.default_rng(seed).integers(count, size=(samples, count))
    flat = (drawn + count * np.arange(samples)[:, None]).ravel()
    times = np.bincount(flat, minlength=samples * count).reshape(samples, count)
    return times[:, index].astype(np.float32)


def wilson_interval(hits: int, count: int, level: float | int = 0.95) -> tuple[float, float]:
    """Interval of a proportion that stays inside [0, 1] and holds for few trials too (Wilson 1927).

    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n) with p = hits / n and z the (1 + level)/2 quantile of the normal
    distribution. Trials count as independent.

    Returns:
        (low, high); NaN twice without a trial.

    Raises:
        ValueError: If the level is outside (0, 1), or there are more hits than trials.
    """
    if not 0 < level < 1 or not 0 <= hits <= count:
        raise ValueError(f"expected a level in (0, 1) and 0 … count hits, got {level} and {hits} of {count}")
    if not count:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, extra = hits / count, z * z / count
    centre, half = share + extra / 2, z * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    low, high = (centre - half) / (1 + extra), (centre + half) / (1 + extra)
    return max(0.0, low) if hits else 0.0, min(1.0, high) if hits < count else 1.0


def _check_settings(level: float | int, samples: int) -> None:
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"expected level in (0, 1) and at least 1 sample, got level={level}, samples={samples}")
