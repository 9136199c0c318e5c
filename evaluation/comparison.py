"""Comparison of two reward models on the same episodes, with the same resamples for both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.intervals import Estimate
from .metric import Metric, Sample
from .predictions import EpisodePredictions, MetricContext, by_task
from .resampling import Resampling


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """Difference of a metric, first minus second, on the episodes that enter it for both models."""

    first: float = math.nan
    """Value of the first model."""
    second: float = math.nan
    """Value of the second model."""
    n: int = 0
    """Number of episodes; 0 where no episode enters for both."""
    better: str = ""
    """``"first"`` or ``"second"`` where the 95 % interval leaves out 0, else ``""``."""

    @property
    def difference(self) -> float:
        """First minus second; NaN where no episode enters for both."""
        return self.value

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, the value as ``difference``."""
        numbers = {"first": self.first, "second": self.second, "difference": self.value}
        return {**numbers, "low": self.low, "high": self.high, "n": self.n, "better": self.better}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The evaluated model (first) against another one (second)."""

    model: Mapping[str, Any]
    """Identity of the second model."""
    episodes: int
    """Number of episodes that both models can read."""
    left_out: int
    """Number of episodes that only one of them can read."""
    differences: Mapping[str, Difference]
    """Differences by key of the metric."""


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """The second model of a comparison."""

    episodes: Sequence[EpisodePredictions]
    """Its predictions for the same episodes."""
    context: MetricContext
    """Context of these predictions, which may differ in what scores are."""
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Identity of the model."""


def compare(
    episodes: Sequence[EpisodePredictions],
    context: MetricContext,
    opponent: Opponent,
    metrics: Sequence[Metric],
    resampling: Resampling,
) -> Comparison:
    """Compare two models on the episodes that both can read.

    For a metric that is a mean over episodes this is `paired_bootstrap`; other metrics are recomputed on every
    resample. Whatever changes both models alike cancels, so a difference may be clear where two separate intervals
    overlap.

    Args:
        episodes: Predictions of the first model.
        context: Context of these predictions.
        opponent: The second model.
        metrics: Metrics to compare; those with ``compared`` False are left out.
        resampling: Settings of the bootstrap.
    """
    shared = {e.episode for e in episodes} & {e.episode for e in opponent.episodes}
    first, second = (
        sorted((e for e in predictions if e.episode in shared), key=lambda e: e.episode)
        for predictions in (episodes, opponent.episodes)
    )
    pair = _Pair(contexts=(context, opponent.context), resampling=resampling)
    return Comparison(
        model=dict(opponent.model),
        episodes=len(shared),
        left_out=len(episodes) + len(opponent.episodes) - 2 * len(shared),
        differences={m.key: pair.difference(m, first, second) for m in metrics if m.compared},
    )


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Computes differences of two models."""

    contexts: tuple[MetricContext, MetricContext]
    resampling: Resampling

    def difference(
        self, metric: Metric, first: Sequence[EpisodePredictions], second: Sequence[EpisodePredictions]
    ) -> Difference:
        if metric.within_task:
            tasks = by_task(first)
            pairs = [self.samples(metric, rows, [e for e in second if e.task == t]) for t, rows in tasks.items()]
            pairs = [(a, b) for a, b in pairs if not math.isnan(a.value - b.value)]
        else:
            pairs = [self.samples(metric, first, second)]
        values = [(a.value, b.value) for a, b in pairs]
        if not values or any(math.isnan(a - b) for a, b in values):
            return Difference(value=math.nan)
        one, two = (float(np.mean([v[i] for v in values])) for i in (0, 1))
        found = self.interval(metric, pairs, one - two)
        rising = found.low > 0
        clear = (rising or found.high < 0) and metric.direction is not None
        return Difference(
            value=found.value,
            low=found.low,
            high=found.high,
            first=one,
            second=two,
            n=sum(len(a.episodes) for a, _ in pairs),
            better=("first" if rising == (metric.direction == "higher") else "second") if clear else "",
        )

    def interval(self, metric: Metric, pairs: Sequence[tuple[Sample, Sample]], value: float) -> Estimate:
        if not metric.within_task:
            a, b = pairs[0]
            weight = self.resampling.weights(a.episodes)
            return self.resampling.estimate(value, a.episodes, a.compute(weight) - b.compute(weight))
        if not any(len(a.episodes) > 1 for a, _ in pairs):
            return Estimate(value=value)
        weights = [self.resampling.task_weights(a.episodes) for a, _ in pairs]
        return self.resampling.nested(
            value, [a.compute(w) - b.compute(w) for (a, b), w in zip(pairs, weights, strict=True)]
        )

    def samples(
        self, metric: Metric, first: Sequence[EpisodePredictions], second: Sequence[EpisodePredictions]
    ) -> tuple[Sample, Sample]:
        """Make the samples of both models from the episodes that enter for both."""

        def sample(episodes: Sequence[EpisodePredictions], place: int) -> Sample:
            present = [e for e in episodes if metric.source in e.predictions]
            return metric.rule(present, metric.source, self.contexts[place])

        entered = [{e.episode for e in sample(rows, place).episodes} for place, rows in enumerate((first, second))]
        common = entered[0] & entered[1]
        one, two = (
            sample([e for e in rows if e.episode in common], place) for place, rows in enumerate((first, second))
        )
        return one, two
