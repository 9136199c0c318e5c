"""Printed tables of an evaluation: each metric with its interval and its value for the controls."""

import math
from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.intervals import Estimate
from .comparison import Comparison
from .evaluate import Confusion, Evaluation
from .metric import Metric
from .predictions import CONTROLS, MODEL

HEADINGS: Mapping[str, str] = {
    MODEL: "this model",
    "clock": "clock",
    "constant": "constant",
    "reversed": "reversed",
    "shuffled": "shuffled",
    "wrong_instruction": "wrong",
}
"""Prediction → heading of its column."""
CONTROL_NOTES: Mapping[str, str] = {
    "clock": "clock t/T, no model",
    "constant": "one number, the share of successes",
    "reversed": "the model on each episode played in reverse",
    "shuffled": "… with its time shuffled",
    "wrong_instruction": "… with another task's instruction (a wrong instruction)",
}
"""Control → what it is."""
_OUTCOMES = {"successes": "successes", "failures": "failures", "partial": "partial", "unknown": "of unknown outcome"}
_TASKS_SHOWN, _TASK_EPISODES, _MATRIX_SHOWN = 20, 3, 8


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print headlines, details, notes, comparison, tasks, instructions, qualities, conventions and bad episodes.

    Args:
        evaluation: Evaluation to print.
        console: Console to print to; None makes one. Tables fit into 100 columns.
    """
    out = console or Console()
    counts, model = evaluation.counts, evaluation.model
    out.print(Text(f"{model.get('class_path', 'reward model')} {model.get('hash', '')}".strip(), style="bold"))
    split = f", split {evaluation.split}" if evaluation.split else ""
    out.print(Text(f"on {evaluation.data or 'the episodes given'}{split}"))
    outcomes = [f"{counts[kind]} {words}" for kind, words in _OUTCOMES.items() if counts[kind]]
    tasks = f"{counts['episodes']} episodes of {counts['tasks']} task{'s' * (counts['tasks'] != 1)}"
    out.print(Text(f"{tasks}: {', '.join(outcomes)}; {counts['bad']} could not be used"))
    _print_table("", _metrics(evaluation, "headline"), out)
    _print_table("details", _metrics(evaluation, "detail"), out)
    for note in evaluation.notes:
        out.print(_indented(Text(f"note: {note}")))
    if evaluation.comparison is not None:
        _print_comparison(evaluation.comparison, evaluation.definitions, out)
    if evaluation.tasks:
        _print_tasks(evaluation, out)
    if evaluation.confusion is not None:
        _print_confusion(evaluation.confusion, out)
    if evaluation.qualities:
        _print_table("by quality", _qualities(evaluation), out)
    out.print()
    for control, words in CONTROL_NOTES.items():
        out.print(_indented(Text(f"{HEADINGS[control]}: {words}", style="dim")))
    for what, of in evaluation.conventions.items():
        out.print(_indented(Text(f"{what}: {of}", style="dim")))
    for bad in evaluation.bad:
        out.print(Text(f"  episode {bad['episode']} not used, {bad['status']}: {bad['reason']}", style="red"))


def _print_table(title: str, table: Table, out: Console) -> None:
    out.print()
    if title:
        out.print(Text(title, style="italic"))
    out.print(table)


def _indented(text: RenderableType) -> Padding:
    """Indent all lines of a text that wraps."""
    return Padding(text, (0, 0, 0, 2), expand=False)


def _metrics(evaluation: Evaluation, section: str) -> Table:
    table = _table()
    table.add_column("", min_width=22)
    for name in (MODEL, *CONTROLS):
        table.add_column(HEADINGS[name], justify="right", style="" if name == MODEL else "dim")
    table.add_column("episodes", justify="right")
    unlabelled = evaluation.counts["unknown"] == evaluation.counts["episodes"]
    for metric in evaluation.definitions:
        if metric.section != section:
            continue
        value = evaluation.metrics[MODEL][metric.key]
        controls = [_number(evaluation.metrics[name][metric.key].value) for name in CONTROLS]
        count = f"{value.n}" + (f" ({value.n_undefined} undef.)" if value.n_undefined else "")
        title = metric.title.of(value, evaluation.threshold, unlabelled)
        table.add_row(Text(title), Text(_cell(value), style="bold"), *controls, count)
    return table


def _print_comparison(comparison: Comparison, metrics: Sequence[Metric], out: Console) -> None:
    model = comparison.model
    table = _table()
    for heading in ("", "this", "other", "difference", "episodes", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    titles = {metric.key: metric.title.text for metric in metrics}
    absent: list[str] = []
    for key, found in comparison.differences.items():
        if math.isnan(found.value):
            absent.append(titles[key])
            continue
        interval = "" if math.isnan(found.low) else f" ({found.low:+.2f}…{found.high:+.2f})"
        words = {"first": "this is better", "second": "the other is better"}.get(found.better, "")
        numbers = (f"{found.first:.2f}", f"{found.second:.2f}", f"{found.value:+.2f}{interval}", f"{found.n}")
        table.add_row(Text(titles[key]), *numbers, words)
    _print_table(f"against {model.get('path') or model.get('class_path', 'another model')}", table, out)
    left = f"; {comparison.left_out} only one of them could read" if comparison.left_out else ""
    out.print(Text(f"  {comparison.episodes} episodes, the same resamples for both{left}", style="dim"))
    if absent:
        out.print(Text(f"  note: undefined for either model: {', '.join(absent)}"))


def _print_tasks(evaluation: Evaluation, out: Console) -> None:
    """Print the largest tasks; metrics of one or two episodes mean little and are in the JSON only."""
    large = sorted((t for t in evaluation.tasks if t.episodes >= _TASK_EPISODES), key=lambda t: -t.episodes)
    shown = large[:_TASKS_SHOWN]
    rest = len(evaluation.tasks) - len(shown)
    if shown:
        columns = [metric for metric in evaluation.definitions if metric.task_tables == "all"]
        table = _table()
        table.add_column("", overflow="fold", max_width=26)
        for metric in columns:
            table.add_column(metric.title.short or metric.title.text, justify="right")
        model = evaluation.metrics[MODEL]
        table.add_row("mean of tasks", *(_cell(model[metric.key].macro) for metric in columns), style="bold")
        for task in shown:
            name = Text(f"{task.instruction or f'task {task.task}'} ({task.episodes})")
            table.add_row(name, *(_cell(task.metrics[metric.key]) for metric in columns))
        _print_table("by task", table, out)
    if rest:
        out.print(Text(f"  {rest} {'more ' if shown else ''}tasks of few episodes: their metrics are in --json FILE"))


def _print_confusion(confusion: Confusion, out: Console) -> None:
    """Print instructions as rows and videos as columns; a large matrix is left to the page."""
    count = len(confusion.tasks)
    if count > _MATRIX_SHOWN:
        out.print(Text(f"  the matrix of {count} instructions is in --json FILE, and drawn by `guerdon report`"))
        return
    table = _table()
    table.add_column("", overflow="fold", max_width=42)
    for place in range(count):
        table.add_column(str(place + 1), justify="right")
    for row, (name, cells) in enumerate(zip(confusion.instructions, confusion.cells, strict=True)):
        shown = [Text(_number(value), style="bold" if row == column else "") for column, value in enumerate(cells)]
        table.add_row(Text(f"{row + 1} {name}"), *shown)
    _print_table("mean score: instruction (rows) × task of the video (columns)", table, out)
    for missing in confusion.missing:
        out.print(Text(f"  note: {missing}"))


def _qualities(evaluation: Evaluation) -> Table:
    table = _table()
    table.add_column("quality")
    table.add_column("episodes", justify="right")
    table.add_column("mean final progress", justify="right")
    for row in evaluation.qualities:
        table.add_row(Text(row.quality), str(row.final.n), _cell(row.final))
    return table


def _table() -> Table:
    return Table(box=None, padding=(0, 1, 0, 0))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _cell(found: Estimate) -> str:
    # rich reads square brackets as markup, hence the round ones
    interval = "" if math.isnan(found.value + found.low) else f" ({found.low:.2f}…{found.high:.2f})"
    return f"{_number(found.value)}{interval}"
