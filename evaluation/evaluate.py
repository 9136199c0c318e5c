"""Evaluation of a reward model from its predictions: metrics with intervals, for the model and its controls.

Everything here is computation on the predictions of every episode (`EpisodePredictions`). `controls` makes these,
`dataset` walks over a data set, and `table` prints the result. An undefined metric is NaN, counted, and explained in a
note; it is never 0 or ½.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .. import __version__
from ..core.files import without_nan
from ..core.metrics import instruction_confusion, reliability_curve
from .comparison import Comparison, Opponent, compare
from .metric import Findings, Metric, MetricValue, MetricValues
from .metrics import METRICS
from .notes import notes_of
from .predictions import CONTROLS, MODEL, EpisodePredictions, MetricContext, Prediction, by_task
from .resampling import Resampling, mean_value, metric_values
from .rules import BINS, calibration_pair

__all__ = [
    "CONTROLS",
    "METRICS",
    "MODEL",
    "SEVERAL_TASKS",
    "Confusion",
    "EpisodePredictions",
    "Evaluation",
    "EvaluationSettings",
    "MetricValue",
    "MetricValues",
    "Prediction",
    "Provenance",
    "QualityValue",
    "Reliability",
    "TaskMetrics",
    "evaluate",
]
SEVERAL_TASKS = 5
"""Number of tasks from which whole tasks are resampled; an interval over fewer tasks would mean little."""
CONFUSION = 5
"""Default number of episodes of each task that are scored under every instruction."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation."""

    threshold: float | int | None = None
    """Score from which an episode counts as called a success; None takes ½ where all scores are in [0, 1]."""
    quality_order: Sequence[str] = ()
    """Qualities from worst to best; empty takes a known order, or that of numbers."""
    confusion: int = CONFUSION
    """Number of episodes of each task that `evaluate_dataset` runs with every instruction; 0 leaves the matrix out."""
    samples: int = 2000
    """Number of bootstrap resamples."""
    seed: int = 0
    """Random seed of shuffled playback, wrong instructions and the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where predictions come from; shown with an evaluation and not used in it."""

    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Class, hash, folder and arguments of the model, as far as they are known."""
    data: str = ""
    """Name of the data set."""
    split: str = ""
    """Split of the data set; empty for all episodes."""
    bad: Sequence[Mapping[str, Any]] = ()
    """Episodes that could not be used, each with ``episode``, ``status`` and ``reason``."""


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """The model's metrics on one task."""

    task: int
    instruction: str
    episodes: int
    """Number of episodes of the task."""
    metrics: MetricValues

    @property
    def figures(self) -> MetricValues:
        """The metrics, under their name before 0.2."""
        return self.metrics


@dataclass(frozen=True, kw_only=True)
class QualityValue:
    """Mean final progress (score, for a model without progress) of the episodes of one quality."""

    quality: str
    final: MetricValue


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """The reliability curve of the model: one entry per bin of the calibration error."""

    probability: tuple[float, ...]
    """Mean predicted probability; NaN where a bin is empty."""
    happened: tuple[float, ...]
    """Mean label; NaN where a bin is empty."""
    count: tuple[int, ...]
    """Number of predictions."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Mean final score of each task's videos (columns) under each task's instruction (rows)."""

    tasks: tuple[int, ...]
    instructions: tuple[str, ...]
    cells: tuple[tuple[float, ...], ...]
    """Mean scores; NaN where there is no score, never 0."""
    counts: tuple[tuple[int, ...], ...]
    """Number of scores in each cell."""
    missing: tuple[str, ...]
    """The empty cells in words."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation of one model on one data set."""

    model: Mapping[str, Any]
    data: str
    split: str
    version: str
    """Version of guerdon."""
    counts: Mapping[str, int]
    """Number of episodes, tasks and outcomes."""
    bad: tuple[Mapping[str, Any], ...]
    """Episodes that could not be used, each with ``episode``, ``status`` and ``reason``."""
    conventions: Mapping[str, str]
    """What each metric is computed from, in words."""
    metrics: Mapping[str, MetricValues]
    """Values of the metrics by prediction: `MODEL`, then the `CONTROLS`."""
    tasks: tuple[TaskMetrics, ...]
    qualities: tuple[QualityValue, ...]
    notes: tuple[str, ...]
    threshold: float
    """Score from which an episode counts as called a success; NaN where that is undefined."""
    reliability: Reliability | None = None
    confusion: Confusion | None = None
    comparison: Comparison | None = None
    definitions: tuple[Metric, ...] = METRICS
    """The metrics that were computed; not part of the JSON."""

    @property
    def figures(self) -> Mapping[str, MetricValues]:
        """The metrics, under their name before 0.2."""
        return self.metrics

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; NaN becomes null, which JSON has instead."""
        optional = (self.reliability, self.confusion)
        reliability, confusion = (None if part is None else asdict(part) for part in optional)
        comparison = None
        if self.comparison is not None:
            differences = {key: found.to_json() for key, found in self.comparison.differences.items()}
            comparison = {**vars(self.comparison), "differences": differences}
        found: dict[str, Any] = without_nan(
            {
                "model": self.model,
                "data": self.data,
                "split": self.split,
                "version": self.version,
                "counts": self.counts,
                "bad": self.bad,
                "conventions": self.conventions,
                "figures": {name: _json_of(values) for name, values in self.metrics.items()},
                "tasks": [
                    {
                        "task": one.task,
                        "instruction": one.instruction,
                        "episodes": one.episodes,
                        "figures": _json_of(one.metrics),
                    }
                    for one in self.tasks
                ],
                "qualities": [{"quality": one.quality, "final": one.final.to_json()} for one in self.qualities],
                "notes": self.notes,
                "threshold": self.threshold,
                "reliability": reliability,
                "confusion": confusion,
                "comparison": comparison,
            }
        )
        return found


def _json_of(values: MetricValues) -> dict[str, Any]:
    return {key: value.to_json() for key, value in values.items()}


def evaluate(
    episodes: Sequence[EpisodePredictions],
    conventions: Mapping[str, str] | None = None,
    settings: EvaluationSettings | None = None,
    provenance: Provenance | None = None,
    instructions: Mapping[int, str] | None = None,
    against: Sequence[EpisodePredictions] = (),
    against_model: Mapping[str, Any] | None = None,
    metrics: Sequence[Metric] = METRICS,
) -> Evaluation:
    """Evaluate a model from its predictions and those of its controls.

    Args:
        episodes: Predictions for every episode that could be read.
        conventions: What values, scores and probabilities are, in words; shown as they are.
        settings: Settings of the evaluation; None takes the defaults.
        provenance: Model and data set, to be shown; None shows nothing.
        instructions: Task → instruction, the rows and columns of the instruction matrix; None takes those that occur.
        against: Predictions of another model for the same episodes, to compare with.
        against_model: Identity of that model, to be shown.
        metrics: Metrics to compute, in the order of the tables.

    Raises:
        ValueError: If there is no episode, or the order of qualities fits none of them.
    """
    settings, provenance = settings or EvaluationSettings(), provenance or Provenance()
    if not episodes:
        bad = provenance.bad
        reasons = f" ({len(bad)} could not be read, the first: {bad[0]['reason']})" if bad else ""
        raise ValueError(f"expected at least one episode to evaluate on, got none{reasons}; check --data and --split")
    groups = by_task(episodes)
    context = MetricContext.of(episodes, settings.threshold, settings.quality_order)
    resampling = Resampling(samples=settings.samples, seed=settings.seed, by_task=len(groups) >= SEVERAL_TASKS)
    one_task = Resampling(samples=settings.samples, seed=settings.seed, by_task=False)
    own = [metric for metric in metrics if metric.section != "comparison"]
    values = {name: metric_values(own, episodes, name, context, resampling) for name in (MODEL, *CONTROLS)}
    counts = _counts(episodes, len(groups), len(provenance.bad))
    comparison = None
    if against:
        other = MetricContext.of(against, settings.threshold, settings.quality_order)
        opponent = Opponent(episodes=against, context=other, model=against_model or {})
        comparison = compare(episodes, context, opponent, metrics, resampling)
    return Evaluation(
        model=dict(provenance.model),
        data=provenance.data,
        split=provenance.split,
        version=__version__,
        counts=counts,
        bad=tuple(dict(b) for b in provenance.bad),
        conventions={**(conventions or {}), **_conventions(context, resampling)},
        metrics=values,
        tasks=tuple(
            TaskMetrics(
                task=task,
                instruction=rows[0].instruction,
                episodes=len(rows),
                metrics=metric_values(own, rows, MODEL, context, one_task),
            )
            for task, rows in groups.items()
            if len(groups) > 1
        ),
        qualities=_qualities(episodes, context, resampling),
        notes=notes_of(Findings(episodes=episodes, context=context, counts=counts, metrics=values), own),
        threshold=context.threshold,
        reliability=_reliability(episodes, context),
        confusion=_confusion(episodes, instructions),
        comparison=comparison,
        definitions=tuple(metrics),
    )


def _conventions(context: MetricContext, resampling: Resampling) -> dict[str, str]:
    drawn = "tasks" if resampling.by_task else "episodes"
    inner = "tasks, then over episodes" if resampling.by_task else "the episodes of each task"
    found = {
        "value order over": "all episodes: no outcome is labelled" if context.unlabelled else "successful episodes",
        "pairs": "of one task, labels by success, scores by summed reward; a tie counts ½",
        "intervals": f"95 %, bootstrap over {drawn}; of means over tasks, over {inner}",
    }
    if not math.isnan(context.threshold):
        found["called a success"] = f"an episode whose score is at least {context.threshold:g}"
    if context.levels:
        order = sorted(context.levels, key=lambda name: context.levels[name])
        found["qualities"] = f"{' < '.join(order)}, ranked inside a task by final progress or score"
    return found


def _counts(episodes: Sequence[EpisodePredictions], tasks: int, bad: int) -> dict[str, int]:
    success = np.array([e.success for e in episodes])
    return {
        "episodes": len(episodes),
        "bad": bad,
        "tasks": tasks,
        "successes": int((success == 1).sum()),
        "failures": int((success == 0).sum()),
        "partial": int(((success > 0) & (success < 1)).sum()),
        "unknown": int(np.isnan(success).sum()),
    }


def _qualities(
    episodes: Sequence[EpisodePredictions], context: MetricContext, resampling: Resampling
) -> tuple[QualityValue, ...]:
    """Average the final score by quality: best first where the order is known, the others last, by name."""
    names = sorted({e.quality for e in episodes if e.quality}, key=lambda q: (-context.levels.get(q, -math.inf), q))
    found: list[QualityValue] = []
    for quality in names:
        rows = [e for e in episodes if e.quality == quality]
        final = mean_value(rows, [e.predictions[MODEL].final_score for e in rows], resampling)
        found.append(QualityValue(quality=quality, final=final))
    return tuple(found)


def _reliability(episodes: Sequence[EpisodePredictions], context: MetricContext) -> Reliability | None:
    pairs = [calibration_pair(e, MODEL, context) for e in episodes]
    probability, label = (np.concatenate([p[i] for p in pairs]) for i in (0, 1))
    if len(probability) == 0:
        return None
    predicted, happened, count = reliability_curve(probability, label, BINS)
    return Reliability(
        probability=tuple(predicted.tolist()), happened=tuple(happened.tolist()), count=tuple(count.tolist())
    )


def _confusion(episodes: Sequence[EpisodePredictions], instructions: Mapping[int, str] | None) -> Confusion | None:
    shown = [e for e in episodes if e.under_instruction]
    if not shown:
        return None
    tasks = tuple(sorted({t for e in shown for t in e.under_instruction}) if instructions is None else instructions)
    place = {task: i for i, task in enumerate(tasks)}
    texts = dict(instructions or {})
    for e in shown:
        texts.setdefault(e.task, e.instruction)
    scores = [
        (e.task, task, score)
        for e in shown
        for task, score in e.under_instruction.items()
        if task in place and e.task in place
    ]
    cells, counts = instruction_confusion(
        [score for _, _, score in scores],
        [place[task] for _, task, _ in scores],
        [place[video] for video, _, _ in scores],
        len(tasks),
    )
    names = [texts.get(t, f"task {t}") for t in tasks]
    missing: list[str] = []
    for column, name in enumerate(names):
        rows = [names[row] for row in range(len(tasks)) if counts[row, column] == 0]
        if len(rows) == len(tasks):
            missing.append(f"no video of {name!r} was evaluated")
        else:
            missing.extend(f"videos of {name!r} have no score under {row!r}" for row in rows)
    return Confusion(
        tasks=tasks,
        instructions=tuple(names),
        cells=tuple(tuple(row) for row in cells.tolist()),
        counts=tuple(tuple(row) for row in counts.tolist()),
        missing=tuple(missing),
    )
