"""Prints an evaluation: each headline with its interval, and beside it the controls that put it in proportion."""

import math
from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .comparison import Comparison
from .evaluate import Confusion, Evaluation
from .metrics import Figure, Figures
from .predictions import CONTROLS, MODEL

HEADINGS: Mapping[str, str] = {
    MODEL: "this model",
    "clock": "clock",
    "constant": "constant",
    "reversed": "reversed",
    "shuffled": "shuffled",
    "wrong_instruction": "wrong",
}
CONTROLS_SAID: Mapping[str, str] = {
    "clock": "clock t/T, no model",
    "constant": "one number, the share of successes",
    "reversed": "the model on each episode played in reverse",
    "shuffled": "… with its time shuffled",
    "wrong_instruction": "… told another task's instruction (a wrong instruction)",
}
HEADLINES: Mapping[str, str] = {
    "value_order_correlation": "value order, successes",
    "value_order_failures": "value order, failures",
    "success_auroc": "success AUROC",
    "pairwise_accuracy": "pairwise",
    "calibration_error": "calibration error",
    "instruction_accuracy": "right > wrong instr.",
    "instruction_auroc": "right vs wrong AUROC",
}
DETAILS: Mapping[str, str] = {
    "success_auprc": "AUPRC",
    "false_positive_rate": "false positives",
    "true_positive_rate": "true positives",
    "tie_rate": "ties in pairs",
    "progress_error": "progress error",
    "instruction_margin": "instruction margin",
    "quality_ranking": "quality ranking, τ-b",
    "robometer_tau_a": "Robometer's τ-a",
}
_BY_TASK = {
    "value_order_correlation": "value order",
    "success_auroc": "success AUROC",
    "calibration_error": "calibration",
    "instruction_accuracy": "right > wrong",
}
_NAMES = {**HEADLINES, **DETAILS, "value_order_reversed": "value order, reversed"}
_KINDS = {"successes": "successes", "failures": "failures", "partial": "partial", "unknown": "of unknown outcome"}
_TASKS_SHOWN, _TASK_EPISODES, _MATRIX_SHOWN = 20, 3, 8


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the headline table, then details, tasks, instructions, qualities, bad episodes, and what to know.

    Tables fit into 100 columns.
    """
    out = console or Console()
    counts, model = evaluation.counts, evaluation.model
    out.print(Text(f"{model.get('class_path', 'reward model')} {model.get('hash', '')}".strip(), style="bold"))
    split = f", split {evaluation.split}" if evaluation.split else ""
    out.print(Text(f"on {evaluation.data or 'the episodes given'}{split}"))
    said = [f"{counts[kind]} {words}" for kind, words in _KINDS.items() if counts[kind]]
    tasks = f"{counts['episodes']} episodes of {counts['tasks']} task{'s' * (counts['tasks'] != 1)}"
    out.print(Text(f"{tasks}: {', '.join(said)}; {counts['bad']} could not be used"))
    _print_table("", _figures(evaluation, HEADLINES), out)
    _print_table("details", _figures(evaluation, DETAILS), out)
    for note in evaluation.notes:
        out.print(_indented(Text(f"note: {note}")))
    if evaluation.comparison is not None:
        _print_comparison(evaluation.comparison, out)
    if evaluation.tasks:
        _print_tasks(evaluation, out)
    if evaluation.confusion is not None:
        _print_confusion(evaluation.confusion, out)
    if evaluation.qualities:
        _print_table("by quality", _qualities(evaluation), out)
    out.print()
    for control, words in CONTROLS_SAID.items():
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
    """Also where it goes on in the next line."""
    return Padding(text, (0, 0, 0, 2), expand=False)


def name_of(key: str, figure: Figure | None = None, threshold: float = math.nan) -> str:
    """A figure in words, with its threshold or with what chance is where that depends on the data."""
    name = _NAMES[key]
    if key in ("false_positive_rate", "true_positive_rate") and not math.isnan(threshold):
        return f"{name} at {threshold:g}"
    if key == "success_auprc" and figure is not None and not math.isnan(figure.chance):
        return f"{name} (chance {figure.chance:.2f})"
    return name


def _figures(evaluation: Evaluation, keys: Mapping[str, str]) -> Table:
    table = _table()
    table.add_column("", min_width=22)
    for name in (MODEL, *CONTROLS):
        table.add_column(HEADINGS[name], justify="right", style="" if name == MODEL else "dim")
    table.add_column("episodes", justify="right")
    model = evaluation.figures[MODEL]
    for key in keys:
        figure: Figure = getattr(model, key)
        controls = [_number(getattr(evaluation.figures[name], key)) for name in CONTROLS]
        count = f"{figure.n}" + (f" ({figure.n_undefined} undef.)" if figure.n_undefined else "")
        words = name_of(key, figure, evaluation.threshold)
        if key == "value_order_correlation" and not evaluation.counts["successes"] and figure.n:
            words = "value order, unlabelled"  # of episodes that nobody called successes
        table.add_row(Text(words), Text(_cell(figure), style="bold"), *controls, count)
    return table


def _print_comparison(comparison: Comparison, out: Console) -> None:
    model = comparison.model
    table = _table()
    for heading in ("", "this", "other", "difference", "episodes", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for key, found in comparison.differences.items():
        if math.isnan(found.difference):
            continue
        interval = "" if math.isnan(found.low) else f" ({found.low:+.2f}…{found.high:+.2f})"
        words = {"first": "this is better", "second": "the other is better"}.get(found.better, "")
        table.add_row(
            Text(_NAMES[key]),
            f"{found.first:.2f}",
            f"{found.second:.2f}",
            f"{found.difference:+.2f}{interval}",
            f"{found.n}",
            words,
        )
    _print_table(f"against {model.get('path') or model.get('class_path', 'another model')}", table, out)
    left = f"; {comparison.left_out} only one of them could judge" if comparison.left_out else ""
    out.print(Text(f"  {comparison.episodes} episodes, the same resamples for both{left}", style="dim"))
    absent = [_NAMES[key] for key, found in comparison.differences.items() if math.isnan(found.difference)]
    if absent:
        out.print(Text(f"  note: undefined for either model: {', '.join(absent)}"))


def _print_tasks(evaluation: Evaluation, out: Console) -> None:
    """The largest tasks; figures of one or two episodes say nothing and are left to the JSON."""
    large = sorted((t for t in evaluation.tasks if t.episodes >= _TASK_EPISODES), key=lambda t: -t.episodes)
    shown = large[:_TASKS_SHOWN]
    rest = len(evaluation.tasks) - len(shown)
    if shown:
        table = _table()
        table.add_column("", overflow="fold", max_width=26)
        for heading in _BY_TASK.values():
            table.add_column(heading, justify="right")
        model = evaluation.figures[MODEL]
        table.add_row("mean of tasks", *(_macro(getattr(model, key)) for key in _BY_TASK), style="bold")
        for task in shown:
            name = Text(f"{task.instruction or f'task {task.task}'} ({task.episodes})")
            table.add_row(name, *_cells(task.figures))
        _print_table("by task", table, out)
    if rest:
        out.print(Text(f"  {rest} {'more ' if shown else ''}tasks of few episodes: their figures are in --json FILE"))


def _print_confusion(confusion: Confusion, out: Console) -> None:
    """Rows are instructions and columns videos; a large matrix is for the page."""
    count = len(confusion.tasks)
    if count > _MATRIX_SHOWN:
        out.print(Text(f"  the matrix of {count} instructions is in --json FILE, and drawn by `guerdon report`"))
        return
    table = _table()
    table.add_column("", overflow="fold", max_width=42)
    for place in range(count):
        table.add_column(str(place + 1), justify="right")
    for row, (name, cells) in enumerate(zip(confusion.instructions, confusion.cells, strict=True)):
        said = [
            Text("–" if math.isnan(value) else f"{value:.2f}", style="bold" if row == column else "")
            for column, value in enumerate(cells)
        ]
        table.add_row(Text(f"{row + 1} {name}"), *said)
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


def _cells(figures: Figures) -> Sequence[str]:
    return [_cell(getattr(figures, key)) for key in _BY_TASK]


def _number(figure: Figure) -> str:
    return "–" if math.isnan(figure.value) else f"{figure.value:.2f}"


def _cell(figure: Figure) -> str:
    return _with_interval(figure.value, figure.low, figure.high)


def _macro(figure: Figure) -> str:
    return _with_interval(figure.macro, figure.macro_low, figure.macro_high)


def _with_interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "–"
    # rich reads square brackets as markup, hence the round ones
    return f"{value:.2f}" + ("" if math.isnan(low) else f" ({low:.2f}…{high:.2f})")
