"""Prints an evaluation: each headline with its interval, and under it the controls that put it in proportion."""

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .evaluation import CONTROLS, MODEL, Evaluation, Figure, Figures

_NAMES = {
    MODEL: "this model",
    "clock": "clock t/T, no model",
    "constant": "one constant",
    "reversed": "played in reverse",
    "shuffled": "time shuffled",
    "wrong_instruction": "wrong instruction",
}
_COLUMNS = {
    "value_order_correlation": "value order",
    "success_auroc": "success AUROC",
    "pairwise_accuracy": "pairwise",
    "calibration_error": "calibration error",
    "instruction_accuracy": "right > wrong instr.",
}
_TASKS_SHOWN, _TASK_EPISODES = 20, 3


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the headline table, tasks and qualities where there are several, bad episodes, and what to know."""
    out = console or Console()
    counts = evaluation.counts
    model = evaluation.model
    out.print(Text(f"{model.get('class_path', 'reward model')} {model.get('hash', '')}".strip(), style="bold"))
    split = f", split {evaluation.split}" if evaluation.split else ""
    out.print(Text(f"on {evaluation.data or 'the episodes given'}{split}"))
    out.print(
        f"{counts['episodes']} episodes of {counts['tasks']} task{'s' * (counts['tasks'] != 1)}: "
        f"{counts['successes']} successes, {counts['failures']} failures, {counts['partial']} partial, "
        f"{counts['unknown']} of unknown outcome; {counts['bad']} could not be used",
        highlight=False,
    )
    out.print(_headline(evaluation))
    for what, of in evaluation.conventions.items():
        out.print(Text(f"  {what}: {of}", style="dim"))
    for note in evaluation.notes:
        out.print(Text(f"  note: {note}"))
    if evaluation.tasks:
        _print_tasks(evaluation, out)
    if evaluation.qualities:
        out.print(_qualities(evaluation))
    for bad in evaluation.bad:
        out.print(Text(f"  episode {bad['episode']} not used, {bad['status']}: {bad['reason']}", style="red"))


def _headline(evaluation: Evaluation) -> Table:
    table = _table("")
    for name in (MODEL, *CONTROLS):
        style = "bold" if name == MODEL else "dim"
        table.add_row(_NAMES[name], *_cells(evaluation.figures[name]), style=style, end_section=name == MODEL)
    figures = evaluation.figures[MODEL]
    table.columns[0].footer = "episodes in it"
    for column, key in zip(table.columns[1:], _COLUMNS, strict=True):
        figure: Figure = getattr(figures, key)
        column.footer = f"{figure.n}" + (f" ({figure.n_undefined} undefined)" if figure.n_undefined else "")
    table.show_footer = True
    return table


def _print_tasks(evaluation: Evaluation, out: Console) -> None:
    """The largest tasks; figures of one or two episodes say nothing and are left to the JSON."""
    large = sorted((t for t in evaluation.tasks if t.episodes >= _TASK_EPISODES), key=lambda t: -t.episodes)
    shown = large[:_TASKS_SHOWN]
    rest = len(evaluation.tasks) - len(shown)
    if shown:
        table = _table("by task")
        for task in shown:
            table.add_row(Text(f"{task.instruction or f'task {task.task}'} ({task.episodes})"), *_cells(task.figures))
        out.print(table)
    if rest:
        out.print(Text(f"  {rest} {'more ' if shown else ''}tasks of few episodes: their figures are in --json FILE"))


def _qualities(evaluation: Evaluation) -> Table:
    table = Table(title="by quality", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("quality")
    table.add_column("episodes", justify="right")
    table.add_column("mean final progress", justify="right")
    for row in evaluation.qualities:
        table.add_row(Text(row.quality), str(row.final.n), _cell(row.final))
    return table


def _table(title: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold", max_width=34)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    return table


def _cells(figures: Figures) -> list[str]:
    return [_cell(getattr(figures, key)) for key in _COLUMNS]


def _cell(figure: Figure) -> str:
    if math.isnan(figure.value):
        return "–"
    # rich reads square brackets as markup, hence the round ones
    interval = "" if math.isnan(figure.low) else f" ({figure.low:.2f}…{figure.high:.2f})"
    return f"{figure.value:.2f}{interval}"
