"""The report's section about what ``guerdon evaluate --json`` wrote: metrics, reliability, instructions, comparison."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..core.files import read_json
from ..core.intervals import Estimate
from ..evaluation.metric import MetricValue, Title
from ..evaluation.metrics import METRICS
from ..evaluation.predictions import CONTROLS, MODEL
from ..evaluation.table import CONTROL_NOTES, HEADINGS
from .score_charts import ReliabilityChart, reliability_chart


@dataclass(frozen=True, kw_only=True)
class Column:
    """Heading of a column, with the text that is shown when one points at it."""

    heading: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric of the model with its values for the controls."""

    title: str
    value: MetricValue
    controls: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """Mean score of a task's videos under an instruction."""

    value: float
    """Mean score; NaN where there is none."""
    shade: float
    """Depth of the colour, in percent."""
    own: bool
    """Whether the instruction is the videos' own."""


@dataclass(frozen=True, kw_only=True)
class InstructionMatrix:
    """Mean scores of instructions by videos."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MatrixCell, ...]], ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DifferenceRow:
    """A metric of two models."""

    title: str
    first: float
    second: float
    difference: Estimate
    n: int
    better: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The evaluated model against another one."""

    other: str
    episodes: int
    rows: tuple[DifferenceRow, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """All that the section shows."""

    summary: str
    columns: tuple[Column, ...]
    headlines: tuple[MetricRow, ...]
    details: tuple[MetricRow, ...]
    notes: tuple[str, ...]
    legend: Mapping[str, str]
    calibration_error: Estimate
    reliability: ReliabilityChart | None
    matrix: InstructionMatrix | None
    comparison: Comparison | None
    task_columns: tuple[str, ...]
    tasks: tuple[tuple[str, tuple[MetricValue, ...]], ...]
    """Name of each task and its metrics."""


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Read the metrics that ``guerdon evaluate --json`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds something else.
    """
    file = Path(path)
    found = read_json(file, f"the metrics that `guerdon evaluate --json {file}` writes")
    if isinstance(found, dict) and cast(Any, found).get("kind") == "critic":
        raise ValueError(
            f"{file} holds metrics of a critic, which the report does not draw: leave them out; values are drawn from "
            "the scores"
        )
    if not (
        isinstance(found, dict) and isinstance(cast(Any, found).get("figures"), dict) and MODEL in found["figures"]
    ):
        raise ValueError(f"{file} holds no metrics of a model: expected what `guerdon evaluate --json` writes")
    return cast(dict[str, Any], found)


def evaluation_section(evaluation: Mapping[str, Any]) -> EvaluationSection:
    """Prepare what the section shows.

    Args:
        evaluation: What `guerdon.evaluation.evaluate.Evaluation.to_json` gives. Null is undefined, and what an older
            file does not hold is left out. A metric that is not in `METRICS` is shown under its key.
    """
    counts: Mapping[str, Any] = evaluation.get("counts") or {}
    split = f", split {evaluation['split']}" if evaluation.get("split") else ""
    of = f"{counts.get('episodes', '?')} episodes of {counts.get('tasks', '?')} tasks"
    values: Mapping[str, Mapping[str, Any]] = evaluation["figures"]
    names = [name for name in (MODEL, *CONTROLS) if name in values]
    conventions: Mapping[str, Any] = evaluation.get("conventions") or {}
    headlines, details = _metric_rows(evaluation, names[1:])
    curve: Mapping[str, Any] | None = evaluation.get("reliability")
    by_task = [metric for metric in METRICS if metric.task_tables != "none"]
    return EvaluationSection(
        summary=f"{of} of {evaluation.get('data')}{split}",
        columns=tuple(Column(heading=HEADINGS[name], hint=CONTROL_NOTES.get(name, "")) for name in names),
        headlines=headlines,
        details=details,
        notes=tuple(str(note) for note in evaluation.get("notes") or []),
        legend={HEADINGS[c]: note for c, note in CONTROL_NOTES.items()} | {k: str(v) for k, v in conventions.items()},
        calibration_error=_value(values[MODEL], "calibration_error"),
        reliability=reliability_chart(curve["probability"], curve["happened"], curve["count"]) if curve else None,
        matrix=_matrix(evaluation.get("confusion")),
        comparison=_comparison(evaluation.get("comparison")),
        task_columns=tuple(metric.title.text for metric in by_task),
        tasks=tuple(
            (
                f"{task.get('instruction') or 'task ' + str(task.get('task'))} ({task.get('episodes')})",
                tuple(_value(task["figures"], metric.key) for metric in by_task),
            )
            for task in cast(Sequence[Mapping[str, Any]], evaluation.get("tasks") or [])
        ),
    )


def _value(values: Mapping[str, Any], key: str) -> MetricValue:
    return MetricValue.from_json(values.get(key) or {})


def _metric_rows(
    evaluation: Mapping[str, Any], controls: Sequence[str]
) -> tuple[tuple[MetricRow, ...], tuple[MetricRow, ...]]:
    values: Mapping[str, Mapping[str, Any]] = evaluation["figures"]
    counts: Mapping[str, Any] = evaluation.get("counts") or {}
    given = evaluation.get("threshold")
    threshold = math.nan if given is None else float(given)
    unlabelled = "unknown" in counts and counts["unknown"] == counts.get("episodes")

    def row(key: str, title: Title) -> MetricRow:
        value = _value(values[MODEL], key)
        return MetricRow(
            title=title.of(value, threshold, unlabelled),
            value=value,
            controls=tuple(_value(values[name], key).value for name in controls),
        )

    known = [metric for metric in METRICS if metric.key in values[MODEL]]
    unknown = [key for key in values[MODEL] if key not in {metric.key for metric in METRICS}]
    headlines = [row(metric.key, metric.title) for metric in known if metric.section == "headline"]
    details = [row(metric.key, metric.title) for metric in known if metric.section == "detail"]
    return tuple(headlines), (*details, *(row(key, Title(text=key)) for key in unknown))


def _matrix(confusion: Mapping[str, Any] | None) -> InstructionMatrix | None:
    if not confusion:
        return None
    cells: Sequence[Sequence[float | None]] = confusion["cells"]
    names = tuple(str(name) for name in confusion["instructions"])
    known = [value for row in cells for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)

    def cell(value: float | None, own: bool) -> MatrixCell:
        if value is None:
            return MatrixCell(value=math.nan, shade=0.0, own=own)
        return MatrixCell(value=float(value), shade=70 * (value - low) / (high - low) if high > low else 0.0, own=own)

    rows = tuple(
        (name, tuple(cell(value, row == column) for column, value in enumerate(values)))
        for row, (name, values) in enumerate(zip(names, cells, strict=True))
    )
    return InstructionMatrix(names=names, rows=rows, missing=tuple(str(one) for one in confusion.get("missing") or []))


def _comparison(comparison: Mapping[str, Any] | None) -> Comparison | None:
    if not comparison:
        return None
    model: Mapping[str, Any] = comparison.get("model") or {}
    titles = {metric.key: metric.title.text for metric in METRICS}
    rows: list[DifferenceRow] = []
    for key, found in cast(Mapping[str, Mapping[str, Any]], comparison["differences"]).items():
        numbers = {
            name: math.nan if found.get(name) is None else float(found[name])
            for name in ("first", "second", "difference", "low", "high")
        }
        rows.append(
            DifferenceRow(
                title=titles.get(key, key),
                first=numbers["first"],
                second=numbers["second"],
                difference=Estimate(value=numbers["difference"], low=numbers["low"], high=numbers["high"]),
                n=int(found.get("n") or 0),
                better=str(found.get("better")),
            )
        )
    other = str(model.get("path") or model.get("class_path") or "another model")
    return Comparison(other=other, episodes=int(comparison.get("episodes") or 0), rows=tuple(rows))
