"""What a metric of an evaluation is: its rule, its title, its place in tables, and its note."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..core.intervals import Estimate
from .predictions import MODEL, EpisodePredictions, MetricContext
from .weighted import weighted_mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The episodes that enter a metric, and the metric as a function of their weights."""

    episodes: Sequence[EpisodePredictions]
    """The n episodes that enter."""
    compute: Callable[[np.ndarray], np.ndarray]
    """Weights (S, n), such as the counts of S resamples → value of the metric (S,), NaN where undefined."""
    missing: int = 0
    """Number of episodes that should have entered and could not."""
    as_zero: float = math.nan
    """Mean with missing episodes counted as 0; NaN for a metric that is no mean of episodes."""
    chance: float = math.nan
    """Value of a score without information; NaN where that depends on the score."""

    @property
    def value(self) -> float:
        """Metric of the episodes, each counted once; NaN without an episode."""
        return float(self.compute(np.ones((1, len(self.episodes))))[0]) if self.episodes else math.nan


Rule = Callable[[Sequence[EpisodePredictions], str, MetricContext], Sample]
"""Episodes, name of a prediction (`MODEL` or one of the controls) and context → the sample of a metric."""


def mean_sample(
    episodes: Sequence[EpisodePredictions], values: Sequence[float], as_zero: bool = False, chance: float = math.nan
) -> Sample:
    """Make the sample of a mean over episodes.

    Args:
        episodes: Episodes that should enter.
        values: One number per episode; NaN where the episode cannot enter.
        as_zero: Also compute the mean with missing episodes counted as 0.
        chance: Value of a score without information.
    """
    found = np.array(values, float)
    known = ~np.isnan(found)
    kept = found[known]
    return Sample(
        episodes=[e for e, k in zip(episodes, known, strict=True) if k],
        compute=lambda weight: weighted_mean(weight, kept),
        missing=int((~known).sum()),
        as_zero=float(np.where(known, found, 0.0).mean()) if as_zero and len(found) else math.nan,
        chance=chance,
    )


@dataclass(frozen=True, kw_only=True)
class MetricValue(Estimate):
    """Value of a metric with its 95 % cluster-bootstrap interval; NaN where undefined."""

    n: int = 0
    """Number of episodes it is computed from."""
    n_undefined: int = 0
    """Number of episodes that could not enter: no label, or no value (a constant has no order)."""
    undefined_as_zero: float = math.nan
    """Mean with undefined episodes counted as 0, for comparison with tools that do so; only for means of episodes."""
    chance: float = math.nan
    """Value of a score without information; NaN where that depends on the score."""
    macro: Estimate = field(default_factory=lambda: Estimate(value=math.nan))
    """Mean over tasks of each task's value. Its interval resamples tasks and then episodes; with few tasks, episodes of
    each task."""
    tasks: int = 0
    """Number of tasks in which the metric is defined."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, with ``macro``, ``macro_low`` and ``macro_high`` as three numbers."""
        values = asdict(self)
        macro, tasks = values.pop("macro"), values.pop("tasks")
        return {
            **values,
            "macro": macro["value"],
            "macro_low": macro["low"],
            "macro_high": macro["high"],
            "tasks": tasks,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "MetricValue":
        """Read what `to_json` gives; null, and what an older file does not hold, is undefined."""

        def number(name: str) -> float:
            found = values.get(name)
            return math.nan if found is None else float(found)

        return cls(
            value=number("value"),
            low=number("low"),
            high=number("high"),
            n=int(values.get("n") or 0),
            n_undefined=int(values.get("n_undefined") or 0),
            undefined_as_zero=number("undefined_as_zero"),
            chance=number("chance"),
            macro=Estimate(value=number("macro"), low=number("macro_low"), high=number("macro_high")),
            tasks=int(values.get("tasks") or 0),
        )


class MetricValues(dict[str, MetricValue]):
    """Values of all metrics of a model or a control, by key and as attributes: ``values.success_auroc.value``."""

    def __getattr__(self, key: str) -> MetricValue:
        """Return the value of a metric.

        Raises:
            AttributeError: If there is no metric of that key.
        """
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no metric {key!r}: expected one of {', '.join(self)}") from None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the note of a metric is written from."""

    episodes: Sequence[EpisodePredictions]
    context: MetricContext
    counts: Mapping[str, int]
    """Number of episodes by outcome."""
    metrics: Mapping[str, MetricValues]
    """Values of the metrics by prediction: `MODEL` and the controls."""

    @property
    def model(self) -> MetricValues:
        """Values of the metrics of the model."""
        return self.metrics[MODEL]


@dataclass(frozen=True, kw_only=True)
class Title:
    """Name of a metric in tables."""

    text: str
    short: str = ""
    """Heading of its column in the printed table by task; empty takes the text."""
    unlabelled: str = ""
    """Name where no outcome is labelled; empty takes the text."""
    with_threshold: bool = False
    """Append the threshold of the score."""
    with_chance: bool = False
    """Append the chance level, because it depends on the data."""

    def of(self, value: MetricValue, threshold: float, unlabelled: bool) -> str:
        """Name a value of the metric.

        Args:
            value: Value of the metric.
            threshold: Score from which an episode counts as called a success; NaN where there is none.
            unlabelled: Whether no episode of the data has a labelled outcome.
        """
        if self.with_threshold and not math.isnan(threshold):
            return f"{self.text} at {threshold:g}"
        if self.with_chance and not math.isnan(value.chance):
            return f"{self.text} (chance {value.chance:.2f})"
        return self.unlabelled if unlabelled and self.unlabelled and value.n else self.text


Note = Callable[["Metric", Findings], str]
"""Metric and findings → a line for the reader, such as why the metric is undefined; empty for none."""


def undefined_note(metric: "Metric", findings: Findings) -> str:
    """Note that no episode enters a metric, where that is so."""
    value = findings.model[metric.key]
    if not math.isnan(value.value):
        return ""
    return f"no episode of {value.n + value.n_undefined} gives it a value: {metric.title.text} undefined"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of an evaluation; tables, comparison, notes and the report page go over a list of these."""

    key: str
    """Name in JSON and of the attribute of `MetricValues`."""
    title: Title
    rule: Rule
    """Which episodes enter, and the value for weights of them."""
    direction: Literal["higher", "lower"] | None
    """Which of two models is the better one; None where neither is."""
    section: Literal["headline", "detail", "comparison"] = "detail"
    """Table it stands in; ``"comparison"`` is computed only where two models are compared."""
    within_task: bool = False
    """Defined inside a task only, so that its value is the mean over tasks."""
    compared: bool = True
    """Whether it stands in the comparison of two models."""
    source: str = MODEL
    """Prediction that a comparison takes it from: `MODEL` or a control."""
    task_tables: Literal["none", "page", "all"] = "none"
    """Tables by task that it is a column of: none, that of the page, or the printed one too."""
    note: Note | None = undefined_note
    """Line for the reader where one is needed; None where another metric's note covers it."""
