"""Aggregates of policies over runs and tasks, and of success rates over episodes, with intervals.

The interquartile mean and the probability of improvement are those of rliable (Agarwal et al., "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", NeurIPS 2021, arXiv 2108.13264). Scores are tables (R, K): one row
per run, one column per task. Tensors, arrays and nested lists are taken; one dimension (R,) counts as R runs of one
task. NaN scores are left out, as if the run had not been made, and what is undefined is NaN.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, norm, trim_mean

from ..core.arrays import Array, Numbers, as_array
from ..core.intervals import Estimate

__all__ = [
    "episodes_to_tell",
    "interquartile_mean",
    "interquartile_mean_estimate",
    "paired_counts",
    "paired_episodes_to_tell",
    "paired_rates_estimate",
    "probability_of_improvement",
    "probability_of_improvement_estimate",
    "rates_estimate",
    "sign_test",
]


def interquartile_mean(scores: Numbers) -> float:
    """Compute the mean of the middle half of all scores of all tasks.

    ``floor(n / 4)`` of the n = R·K scores are cut at either end, as `scipy.stats.trim_mean` with 0.25 does.

    Args:
        scores: Scores (R, K) of R runs on K tasks.

    Returns:
        The interquartile mean; NaN where there is no score.

    Raises:
        ValueError: If the scores are no table.
    """
    known = np.concatenate([np.zeros(0), *_columns("scores", scores)])
    return float(trim_mean(known, 0.25)) if known.size else math.nan


def probability_of_improvement(a: Numbers, b: Numbers) -> float:
    """Compute the probability that a run of ``a`` scores higher than one of ``b`` on a task, averaged over tasks.

    For each task this is the mean over all pairs of runs of 1[a > b] + ½·1[a = b]: the Mann-Whitney U statistic over
    the number of pairs. A task without a pair is left out.

    Args:
        a: Scores (R_a, K) of the first policy or method.
        b: Scores (R_b, K) of the second one, on the same tasks in the same order.

    Returns:
        The probability, in [0, 1]; above ½ where ``a`` improves on ``b``; NaN where no task has a pair of runs.

    Raises:
        ValueError: If the scores are no tables, or have different numbers of tasks.
    """
    found = [float(_wins(x, y).mean()) for x, y in _both(a, b) if x.size and y.size]
    return sum(found) / len(found) if found else math.nan


def interquartile_mean_estimate(
    scores: Numbers, level: float | int = 0.95, samples: int = 2000, seed: int = 0
) -> Estimate:
    """Estimate the interquartile mean with a percentile interval of the stratified bootstrap.

    Runs are drawn with replacement within each task, independently from task to task. The interval covers the choice of
    runs, not that of tasks.

    Args:
        scores: Scores (R, K) of R runs on K tasks.
        level: Confidence level, in (0, 1).
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        The estimate; its interval is NaN where no task has two runs.

    Raises:
        ValueError: If the scores are no table, the level is outside (0, 1), or there is no resample.
    """
    _check_settings(level, samples)
    columns = _columns("scores", scores)
    value = interquartile_mean(scores)
    if all(column.size < 2 for column in columns):
        return Estimate(value=value)
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([column[_draws(generator, samples, column.size)] for column in columns], 1)
    return Estimate.resampled(value, np.asarray(trim_mean(drawn, 0.25, axis=1), np.float64), level)


def probability_of_improvement_estimate(
    a: Numbers, b: Numbers, level: float | int = 0.95, samples: int = 2000, seed: int = 0
) -> Estimate:
    """Estimate the probability of improvement with a percentile interval of the stratified bootstrap.

    Runs of ``a`` and of ``b`` are drawn with replacement within each task, independently of each other.

    Args:
        a: Scores (R_a, K) of the first policy or method.
        b: Scores (R_b, K) of the second one, on the same tasks in the same order.
        level: Confidence level, in (0, 1).
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        The estimate; its interval is NaN where no task has two runs of either.

    Raises:
        ValueError: If the scores are no tables or have different numbers of tasks, the level is outside (0, 1), or
            there is no resample.
    """
    _check_settings(level, samples)
    value = probability_of_improvement(a, b)
    pairs = [(x, y) for x, y in _both(a, b) if x.size and y.size]
    if all(x.size < 2 and y.size < 2 for x, y in pairs):
        return Estimate(value=value)
    generator = np.random.default_rng(seed)
    total = np.zeros(samples)
    for x, y in pairs:
        times_x, times_y = (_times(generator, samples, size) for size in (x.size, y.size))
        total += ((times_x @ _wins(x, y)) * times_y).sum(1) / (x.size * y.size)
    return Estimate.resampled(value, total / len(pairs), level)


Statistic = Callable[[Float[np.ndarray, " K"]], float]


def rates_estimate(
    statistic: Statistic, outcomes: Sequence[Numbers], level: float | int = 0.95, samples: int = 2000, seed: int = 0
) -> Estimate:
    """Estimate a statistic of the tasks' success rates, such as `interquartile_mean`, by a bootstrap over episodes.

    Episodes are drawn with replacement within each task. The interval covers the choice of episodes of one policy, not
    that of tasks or of training seeds.

    Args:
        statistic: Function of the success rates (K,) of the tasks.
        outcomes: Outcome of each episode of each task, 0 or 1, K sequences of any length of at least one.
        level: Confidence level, in (0, 1).
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        The estimate; its interval is NaN where no task has two episodes.

    Raises:
        ValueError: If a task has no episode, an outcome is NaN, or a setting makes no sense.
    """
    return _rates([outcomes], lambda rates: statistic(rates[0]), (float(level), samples, seed))


def paired_rates_estimate(
    statistic: Callable[[Float[np.ndarray, " K"], Float[np.ndarray, " K"]], float],
    first: Sequence[Numbers],
    second: Sequence[Numbers],
    level: float | int = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic of two policies' success rates on the same starts, by a bootstrap over starts.

    A start is drawn for both policies together, so that whatever makes it easy or hard for both cancels.

    Args:
        statistic: Function of the success rates (K,) of the first policy and (K,) of the second one.
        first: Outcome of each start of each task, 0 or 1, for the first policy.
        second: Outcomes of the second policy on the same starts in the same order.
        level: Confidence level, in (0, 1).
        samples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Returns:
        The estimate; its interval is NaN where no task has two starts.

    Raises:
        ValueError: If numbers of starts differ, a task has none, an outcome is NaN, or a setting makes no sense.
    """
    return _rates([first, second], lambda rates: statistic(rates[0], rates[1]), (float(level), samples, seed))


def _rates(
    policies: Sequence[Sequence[Numbers]],
    statistic: Callable[[Float[np.ndarray, "P K"]], float],
    setting: tuple[float, int, int],
) -> Estimate:
    level, samples, seed = setting
    _check_settings(level, samples)
    tasks = [np.stack([as_array(one).astype(np.float64).ravel() for one in _same(task)]) for task in _zipped(policies)]
    for place, task in enumerate(tasks):
        if not task.shape[1] or np.isnan(task).any():
            raise ValueError(f"task {place}: expected at least one outcome and none NaN, got {task.shape[1]} outcomes")
    value = statistic(np.stack([task.mean(1) for task in tasks], 1))
    if all(task.shape[1] < 2 for task in tasks):
        return Estimate(value=value)
    generator = np.random.default_rng(seed)
    drawn = np.stack([_times(generator, samples, task.shape[1]) @ task.T / task.shape[1] for task in tasks], 2)
    return Estimate.resampled(value, np.array([statistic(rates) for rates in drawn]), level)


def _zipped(policies: Sequence[Sequence[Numbers]]) -> list[tuple[Numbers, ...]]:
    if len({len(tasks) for tasks in policies}) > 1 or not len(policies[0]):
        raise ValueError(f"expected the same tasks for both, at least one, got {[len(tasks) for tasks in policies]}")
    return list(zip(*policies, strict=True))


def _same(task: Sequence[Numbers]) -> Sequence[Numbers]:
    counts = [as_array(one).size for one in task]
    if len(set(counts)) > 1:
        raise ValueError(f"expected both policies on the same starts, got {counts[0]} outcomes and {counts[1]}")
    return task


def episodes_to_tell(
    difference: float | int, rate: float | int = 0.5, power: float | int = 0.8, level: float | int = 0.95
) -> int:
    """Count the episodes of each of two policies that tell two success rates apart, on independent starts.

    n = ⌈(z_α √(2 p̄ (1 − p̄)) + z_β √(p₁ (1 − p₁) + p₂ (1 − p₂)))² / d²⌉ with p₁ = ``rate``, p₂ = p₁ + d (p₁ − d where
    that exceeds 1) and p̄ their mean (Fleiss, Levin and Paik, "Statistical Methods for Rates and Proportions", 2003,
    equation 4.14): a two-sided test of equal proportions.

    Args:
        difference: Difference d of the success rates, in (0, 1].
        rate: Success rate of the first policy, in [0, 1]; about 0.5 needs most episodes.
        power: Probability that the test finds the difference, in (0, 1).
        level: Confidence level of the test, 1 − α, in (0, 1).

    Returns:
        Number of episodes of each policy.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 < difference <= 1 or not 0 <= rate <= 1 or not 0 < power < 1 or not 0 < level < 1:
        raise ValueError(
            f"expected 0 < difference <= 1, 0 <= rate <= 1, power and level in (0, 1), got {difference}, {rate}, "
            f"{power}, {level}"
        )
    other = rate + difference if rate + difference <= 1 else max(rate - difference, 0.0)
    mean = (rate + other) / 2
    alone = norm.ppf((1 + level) / 2) * math.sqrt(2 * mean * (1 - mean))
    together = norm.ppf(power) * math.sqrt(rate * (1 - rate) + other * (1 - other))
    return math.ceil(((alone + together) / difference) ** 2 - 1e-9)


def paired_episodes_to_tell(
    difference: float | int, discordant: float | int, power: float | int = 0.8, level: float | int = 0.95
) -> int:
    """Count the starts that tell two success rates apart where both policies play the same ones.

    n = ⌈(z_α √ψ + z_β √(ψ − d²))² / d²⌉ with ψ the share of discordant starts (Connor, "Sample size for testing
    differences in proportions for the paired-sample design", Biometrics 1987): McNemar's test.

    Args:
        difference: Difference d of the success rates, in (0, 1].
        discordant: Share ψ of starts on which the outcomes differ, in [0, 1]; a share below d is taken as d, because
            a difference of d needs as many.
        power: Probability that the test finds the difference, in (0, 1).
        level: Confidence level of the test, 1 − α, in (0, 1).

    Returns:
        Number of starts.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 < difference <= 1 or not 0 <= discordant <= 1 or not 0 < power < 1 or not 0 < level < 1:
        raise ValueError(
            f"expected 0 < difference <= 1, 0 <= discordant <= 1, power and level in (0, 1), got {difference}, "
            f"{discordant}, {power}, {level}"
        )
    share = max(float(discordant), float(difference))
    alone = norm.ppf((1 + level) / 2) * math.sqrt(share)
    together = norm.ppf(power) * math.sqrt(max(share - difference**2, 0.0))
    return math.ceil(((alone + together) / difference) ** 2 - 1e-9)


def paired_counts(first: Numbers, second: Numbers) -> tuple[int, int]:
    """Count the discordant starts: those that only the first policy solved, and those that only the second solved.

    Args:
        first: Outcome of each start, 0 or 1, for the first policy.
        second: Outcomes of the second policy on the same starts in the same order.

    Raises:
        ValueError: If lengths differ, or an outcome is neither 0 nor 1.
    """
    one, two = as_array(first).ravel(), as_array(second).ravel()
    if one.shape != two.shape:
        raise ValueError(f"expected both policies on the same starts, got {one.size} outcomes and {two.size}")
    if not (np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all()):
        raise ValueError("expected outcomes that are 0 or 1 each")
    return int((one > two).sum()), int((one < two).sum())


def sign_test(wins: int, losses: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test, which is the sign test on discordant pairs.

    Under equal success rates, the number of wins among the discordant starts is binomial with probability ½.

    Args:
        wins: Number of starts that only the first policy solved.
        losses: Number of starts that only the second policy solved.

    Returns:
        The p-value; 1 where there is no discordant start.

    Raises:
        ValueError: If a count is negative.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"expected counts of at least 0, got {wins} and {losses}")
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _columns(name: str, scores: Numbers) -> list[Float[np.ndarray, " _"]]:
    """Split a table of scores (R, K) by task, without its NaN."""
    table = as_array(scores).astype(np.float64)
    if table.ndim not in (1, 2):
        raise ValueError(f"{name}: expected a table (runs, tasks), got an array of {table.ndim} dimensions")
    table = table[:, None] if table.ndim == 1 else table
    return [column[~np.isnan(column)] for column in table.T]


def _both(a: Numbers, b: Numbers) -> list[tuple[Array, Array]]:
    first, second = _columns("a", a), _columns("b", b)
    if len(first) != len(second):
        raise ValueError(f"expected scores of the same tasks, got {len(first)} tasks and {len(second)}")
    return list(zip(first, second, strict=True))


def _wins(x: Array, y: Array) -> Float[np.ndarray, "a b"]:
    """Return for each pair 1 where the first is higher, ½ where both are equal."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


def _draws(generator: np.random.Generator, samples: int, count: int) -> Array:
    """Draw the entries (samples, count) of each resample."""
    return generator.integers(count, size=(samples, count)) if count else np.zeros((samples, 0), int)


def _times(generator: np.random.Generator, samples: int, count: int) -> Float[np.ndarray, "S n"]:
    """Count how often each of ``count`` entries occurs in each resample."""
    flat = _draws(generator, samples, count) + count * np.arange(samples)[:, None]
    return np.bincount(flat.ravel(), minlength=samples * count).reshape(samples, count).astype(np.float64)


def _check_settings(level: float | int, samples: int) -> None:
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"expected level in (0, 1) and at least 1 sample, got level={level}, samples={samples}")
