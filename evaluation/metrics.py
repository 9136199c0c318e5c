"""Figures of merit of judged episodes, pooled and by task, with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from ..core.intervals import cluster_weights, nested_interval, percentile_interval
from .predictions import Basis, Judged
from .rules import BY_TASK, RULES, Sample, mean_sample, point

_POOL = 500  # resamples kept of each task, from which the interval over tasks draws


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of merit with its 95 % cluster-bootstrap interval; NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """Episodes it is computed from."""
    n_undefined: int = 0
    """Episodes that could not enter it: no label, or no value (a constant has no order)."""
    undefined_as_zero: float = math.nan
    """Mean with undefined episodes counted as 0, for comparison with tools that do so; per-episode figures only."""
    chance: float = math.nan
    """What a score without information gets; NaN where that depends on the score."""
    macro: float = math.nan
    """Mean over tasks of each task's figure: every task counts the same."""
    macro_low: float = math.nan
    macro_high: float = math.nan
    """Interval of ``macro``: tasks and then episodes are resampled; with few tasks, episodes of each."""
    tasks: int = 0
    """Tasks in which the figure is defined."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures of a model or a control."""

    value_order_correlation: Figure
    """On successes: Spearman of values with time."""
    success_auroc: Figure
    pairwise_accuracy: Figure
    calibration_error: Figure
    instruction_accuracy: Figure
    """Paired: share of episodes whose end is valued higher under their own instruction than under a wrong one."""
    instruction_auroc: Figure
    """Unpaired: P(a right reading ends above a wrong reading), over all pairs of them."""
    value_order_failures: Figure
    """As the first, on failures: a clock has 1 on both."""
    success_auprc: Figure
    false_positive_rate: Figure
    true_positive_rate: Figure
    tie_rate: Figure
    """Of `pairwise_accuracy`."""
    progress_error: Figure
    instruction_margin: Figure
    """From the matrix of instructions by videos: mean over videos of the share of instructions below their own."""
    quality_ranking: Figure
    robometer_tau_a: Figure


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    samples: int
    seed: int
    by_task: bool
    """Resample whole tasks; otherwise episodes."""

    def weights(self, rows: Sequence[Judged]) -> Float[np.ndarray, "S n"]:
        """How often each episode is drawn in each resample."""
        # figures cost samples · episodes: fewer resamples do where episodes are many
        samples = self.samples if len(rows) <= 2000 else min(self.samples, 200)
        return cluster_weights(self.clusters(rows), samples, self.seed)

    def inner_weights(self, rows: Sequence[Judged]) -> Float[np.ndarray, "S n"]:
        """The same inside a task: episodes, from which `nested` draws."""
        return cluster_weights([j.episode for j in rows], min(self.samples, _POOL), self.seed)

    def clusters(self, rows: Sequence[Judged]) -> list[int]:
        """What is resampled as a whole."""
        return [j.task if self.by_task else j.episode for j in rows]

    def interval(self, rows: Sequence[Judged], drawn: np.ndarray) -> tuple[float, float]:
        """Of resampled values; one cluster has none."""
        return percentile_interval(drawn) if len(set(self.clusters(rows))) > 1 else (math.nan, math.nan)

    def nested(self, draws: Sequence[np.ndarray]) -> tuple[float, float]:
        """Over tasks, and the episodes of each."""
        return nested_interval(draws, samples=self.samples, seed=self.seed, fixed_tasks=not self.by_task)


def all_figures(judged: Sequence[Judged], name: str, basis: Basis, resampling: Resampling) -> Figures:
    """Every figure of one model or control.

    Args:
        judged: Episodes.
        name: Of the reading.
        basis: Rules they are computed by.
        resampling: How intervals are made.
    """
    return Figures(**{key: _figure(judged, name, key, basis, resampling) for key in RULES})


def mean_figure(judged: Sequence[Judged], values: Sequence[float], resampling: Resampling) -> Figure:
    """Mean of a number per episode, with its interval."""
    return _pooled(mean_sample(judged, values, as_zero=True), 0, resampling)


def by_task(judged: Sequence[Judged]) -> dict[int, list[Judged]]:
    """Episodes of each task, tasks in the order in which they come."""
    return {task: [j for j in judged if j.task == task] for task in dict.fromkeys(j.task for j in judged)}


def _figure(judged: Sequence[Judged], name: str, key: str, basis: Basis, resampling: Resampling) -> Figure:
    rule = RULES[key]
    present = [j for j in judged if name in j.readings]
    absent = len(judged) - len(present)
    if not present:
        return Figure(value=math.nan, n_undefined=absent)
    samples = [rule(rows, name, basis) for rows in by_task(present).values()]
    macro, low, high, tasks = _macro(samples, resampling)
    if key not in BY_TASK:
        found = _pooled(rule(present, name, basis), absent, resampling)
        if len(samples) == 1:
            macro, low, high = found.value, found.low, found.high
        return replace(found, macro=macro, macro_low=low, macro_high=high, tasks=tasks)
    return Figure(
        value=macro,
        low=low,
        high=high,
        n=sum(len(s.rows) for s in samples) if tasks else 0,
        n_undefined=sum(s.missing for s in samples) + absent,
        chance=next((s.chance for s in samples if not math.isnan(s.chance)), math.nan),
        macro=macro,
        macro_low=low,
        macro_high=high,
        tasks=tasks,
    )


def _pooled(sample: Sample, absent: int, resampling: Resampling) -> Figure:
    value, interval = point(sample), (math.nan, math.nan)
    if not math.isnan(value):
        interval = resampling.interval(sample.rows, sample.compute(resampling.weights(sample.rows)))
    return Figure(
        value=value,
        low=interval[0],
        high=interval[1],
        n=len(sample.rows),
        n_undefined=sample.missing + absent,
        undefined_as_zero=sample.as_zero,
        chance=sample.chance,
    )


def _macro(samples: Sequence[Sample], resampling: Resampling) -> tuple[float, float, float, int]:
    """Mean over tasks, its interval, and the tasks in it."""
    known = [(s, v) for s, v in ((s, point(s)) for s in samples) if not math.isnan(v)]
    if not known:
        return math.nan, math.nan, math.nan, 0
    low, high = math.nan, math.nan
    if any(len(s.rows) > 1 for s, _ in known):
        draws = [s.compute(resampling.inner_weights(s.rows)) for s, _ in known]
        low, high = resampling.nested(draws)
    return sum(v for _, v in known) / len(known), low, high, len(known)
