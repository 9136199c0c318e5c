"""Values of metrics with bootstrap intervals, over all episodes and as means over tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from ..core.intervals import Estimate, cluster_weights, nested_interval
from .metric import Metric, MetricValue, MetricValues, Sample, mean_sample
from .predictions import EpisodePredictions, MetricContext, by_task

_TASK_SAMPLES = 500  # resamples kept of each task, from which the interval over tasks draws
_MANY = 2000  # a resample costs as many operations as there are episodes: above this number fewer of them do
_FEWER_SAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Settings of the bootstrap."""

    samples: int
    """Number of resamples."""
    seed: int
    """Random seed of the resampling."""
    by_task: bool
    """Resample whole tasks; otherwise episodes."""

    def weights(self, episodes: Sequence[EpisodePredictions]) -> Float[np.ndarray, "S n"]:
        """Count how often each episode is drawn in each resample."""
        samples = self.samples if len(episodes) <= _MANY else min(self.samples, _FEWER_SAMPLES)
        return cluster_weights(self.clusters(episodes), samples, self.seed)

    def task_weights(self, episodes: Sequence[EpisodePredictions]) -> Float[np.ndarray, "S n"]:
        """Count the same for episodes of one task; `nested` draws from these resamples."""
        return cluster_weights([e.episode for e in episodes], min(self.samples, _TASK_SAMPLES), self.seed)

    def clusters(self, episodes: Sequence[EpisodePredictions]) -> list[int]:
        """Return the label of what each episode is resampled with."""
        return [e.task if self.by_task else e.episode for e in episodes]

    def estimate(
        self, value: float, episodes: Sequence[EpisodePredictions], drawn: Float[np.ndarray, " S"]
    ) -> Estimate:
        """Put an interval around a value from its resamples; episodes of one cluster have none."""
        several = len(set(self.clusters(episodes))) > 1
        return Estimate.resampled(value, drawn) if several else Estimate(value=value)

    def nested(self, value: float, draws: Sequence[Float[np.ndarray, " S"]]) -> Estimate:
        """Put an interval around a mean over tasks from resamples of each task."""
        low, high = nested_interval(draws, samples=self.samples, seed=self.seed, fixed_tasks=not self.by_task)
        return Estimate(value=value, low=low, high=high)


def metric_values(
    metrics: Sequence[Metric],
    episodes: Sequence[EpisodePredictions],
    name: str,
    context: MetricContext,
    resampling: Resampling,
) -> MetricValues:
    """Compute metrics of the model or of a control.

    Args:
        metrics: Metrics to compute.
        episodes: Episodes with their predictions.
        name: Name of the prediction: `MODEL` or one of the controls.
        context: Facts about all episodes of the evaluation.
        resampling: Settings of the bootstrap.
    """
    return MetricValues({m.key: _metric_value(m, episodes, name, context, resampling) for m in metrics})


def mean_value(episodes: Sequence[EpisodePredictions], values: Sequence[float], resampling: Resampling) -> MetricValue:
    """Compute the mean of one number per episode, with its interval; NaN entries count as undefined."""
    return _pooled(mean_sample(episodes, values, as_zero=True), 0, resampling)


def _metric_value(
    metric: Metric,
    episodes: Sequence[EpisodePredictions],
    name: str,
    context: MetricContext,
    resampling: Resampling,
) -> MetricValue:
    present = [e for e in episodes if name in e.predictions]
    absent = len(episodes) - len(present)
    if not present:
        return MetricValue(value=math.nan, n_undefined=absent)
    samples = [metric.rule(group, name, context) for group in by_task(present).values()]
    macro, tasks = _mean_of_tasks(samples, resampling)
    if metric.within_task:
        return MetricValue(
            value=macro.value,
            low=macro.low,
            high=macro.high,
            n=sum(len(s.episodes) for s in samples) if tasks else 0,
            n_undefined=sum(s.missing for s in samples) + absent,
            chance=next((s.chance for s in samples if not math.isnan(s.chance)), math.nan),
            macro=macro,
            tasks=tasks,
        )
    whole = samples[0] if len(samples) == 1 else metric.rule(present, name, context)
    pooled = _pooled(whole, absent, resampling)
    if len(samples) == 1:
        macro = Estimate(value=pooled.value, low=pooled.low, high=pooled.high)
    return replace(pooled, macro=macro, tasks=tasks)


def _pooled(sample: Sample, absent: int, resampling: Resampling) -> MetricValue:
    value = sample.value
    found = Estimate(value=value)
    if not math.isnan(value):
        drawn = sample.compute(resampling.weights(sample.episodes))
        found = resampling.estimate(value, sample.episodes, drawn)
    return MetricValue(
        value=value,
        low=found.low,
        high=found.high,
        n=len(sample.episodes),
        n_undefined=sample.missing + absent,
        undefined_as_zero=sample.as_zero,
        chance=sample.chance,
    )


def _mean_of_tasks(samples: Sequence[Sample], resampling: Resampling) -> tuple[Estimate, int]:
    """Average a metric over the tasks in which it is defined; return their number too."""
    known = [(s, value) for s, value in ((s, s.value) for s in samples) if not math.isnan(value)]
    if not known:
        return Estimate(value=math.nan), 0
    mean = sum(value for _, value in known) / len(known)
    if not any(len(s.episodes) > 1 for s, _ in known):
        return Estimate(value=mean), len(known)
    return resampling.nested(mean, [s.compute(resampling.task_weights(s.episodes)) for s, _ in known]), len(known)
