"""Draws what `guerdon evaluate --json` wrote: figures beside controls, the reliability diagram, the instruction matrix.

Every text goes through ``html.escape``; a null of the JSON is a figure that is undefined and is drawn as a dash.
"""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

from ..evaluation.metric import MetricValue
from ..evaluation.metrics import METRICS
from ..evaluation.predictions import CONTROLS, MODEL
from ..evaluation.table import CONTROL_NOTES, HEADINGS

STYLE = """
td.n, th.n { text-align: right; white-space: nowrap; }
tr.head td { padding-top: 14px; color: var(--soft); border-bottom: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 12px; align-items: start; }
.pair .card { margin: 0; min-width: 0; } .ideal { stroke: var(--soft); stroke-dasharray: 3 4; }
.bar { fill: var(--soft); opacity: .35; } .reliable { fill: var(--progress); }
td.task { min-width: 170px; } td.cell { text-align: right; border-radius: 4px; } td.own { font-weight: 600; }
ul.notes { margin: 8px 0 0; padding-left: 18px; color: var(--soft); font-size: 13.5px; }
"""
_SIDE, _STRIP, _LEFT, _TOP = 300, 46, 34, 10


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Read the figures that ``guerdon evaluate --json`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there are no figures at {file}: write them with `guerdon evaluate --json {file}`")
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON: {error}; expected what `guerdon evaluate --json` writes") from error
    if isinstance(found, dict) and cast(Any, found).get("kind") == "critic":
        raise ValueError(
            f"{file} holds figures of a critic, which the report does not draw: leave them out; values are drawn from "
            "the scores"
        )
    if not (
        isinstance(found, dict) and isinstance(cast(Any, found).get("figures"), dict) and MODEL in found["figures"]
    ):
        raise ValueError(f"{file} holds no figures of a model: expected what `guerdon evaluate --json` writes")
    return cast(dict[str, Any], found)


def render_evaluation(evaluation: Mapping[str, Any]) -> str:
    """The section about the figures: tables, diagram, matrix, comparison, notes."""
    counts: Mapping[str, Any] = evaluation.get("counts") or {}
    split = f", split {evaluation['split']}" if evaluation.get("split") else ""
    said = (
        f"{counts.get('episodes', '?')} episodes of {counts.get('tasks', '?')} tasks of {evaluation.get('data')}{split}"
    )
    parts = [
        f'<h2>Figures</h2><p class="soft">On {escape(said)}. A figure means something only beside the controls; '
        "in grey, 95 % intervals.</p>",
        _figures(evaluation),
    ]
    pair = [_reliability(evaluation), _confusion(evaluation.get("confusion"))]
    if any(pair):
        parts.append(f'<div class="pair">{"".join(pair)}</div>')
    parts += [_comparison(evaluation.get("comparison")), _tasks(evaluation.get("tasks") or [])]
    return "\n".join(part for part in parts if part)


def _number(value: float, signed: bool = False) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}" if signed else f"{value:.2f}"


def _interval(low: float, high: float, signed: bool = False) -> str:
    return "" if math.isnan(low) else f' <span class="soft">{_number(low, signed)} … {_number(high, signed)}</span>'


def _figures(evaluation: Mapping[str, Any]) -> str:
    figures: Mapping[str, Mapping[str, Any]] = evaluation["figures"]
    threshold = evaluation.get("threshold")
    names = [name for name in (MODEL, *CONTROLS) if name in figures]
    heads = "".join(
        f'<th class="n" title="{escape(CONTROL_NOTES.get(name, ""))}">{escape(HEADINGS[name])}</th>' for name in names
    )
    rows: list[str] = []
    for title, section in (("", "headline"), ("details", "detail")):
        if title:
            rows.append(f'<tr class="head"><td colspan="{len(names) + 3}">{title}</td></tr>')
        for metric in METRICS:
            key = metric.key
            if metric.section != section or key not in figures[MODEL]:
                continue
            figure = MetricValue.from_json(figures[MODEL][key])
            name = metric.title.of(figure, math.nan if threshold is None else float(threshold), False)
            cells = "".join(
                f'<td class="n">{_number(MetricValue.from_json(figures[control].get(key) or {}).value)}</td>'
                for control in names[1:]
            )
            undefined = f" ({figure.n_undefined} undefined)" if figure.n_undefined else ""
            rows.append(
                f'<tr><td>{escape(name)}</td><td class="n"><b>{_number(figure.value)}</b>'
                f'{_interval(figure.low, figure.high)}</td>{cells}<td class="n">{_number(figure.macro.value)}</td>'
                f'<td class="n">{figure.n}{undefined}</td></tr>'
            )
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in evaluation.get("notes") or [])
    conventions: Mapping[str, Any] = evaluation.get("conventions") or {}
    legend = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>"
        for k, v in {**{HEADINGS[c]: w for c, w in CONTROL_NOTES.items()}, **conventions}.items()
    )
    return (
        f'<div class="card"><div class="scroll"><table><thead><tr><th></th>{heads}<th class="n">mean of tasks</th>'
        f'<th class="n">episodes</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<ul class="notes">{notes}</ul>'
        f'<details><summary>What they are computed of</summary><dl class="facts">{legend}</dl></details></div>'
    )


def _reliability(evaluation: Mapping[str, Any]) -> str:
    """What happened against what was said, a dot for each bin; below how many fall into it, on a logarithmic scale."""
    curve: Mapping[str, Sequence[float | None]] | None = evaluation.get("reliability")
    if not curve:
        return ""
    error = MetricValue.from_json(evaluation["figures"][MODEL].get("calibration_error") or {})
    bins = [
        (float(said), float(was), int(count))
        for said, was, count in zip(curve["probability"], curve["happened"], curve["count"], strict=True)
        if said is not None and was is not None and count
    ]
    between = "" if math.isnan(error.low) else f" ({_number(error.low)} … {_number(error.high)})"
    width, base, foot = _SIDE + _LEFT + 8, _TOP + _SIDE, _TOP + _SIDE + 10 + _STRIP

    def place(said: float, was: float) -> str:
        return f"{_LEFT + _SIDE * said:.1f},{base - _SIDE * was:.1f}"

    shapes: list[str] = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _LEFT + _SIDE * level, base - _SIDE * level
        shapes.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{base}"/>')
        shapes.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y}" y2="{y}"/>')
        shapes.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{level:g}</text>')
        shapes.append(f'<text x="{x}" y="{foot + 14}" text-anchor="middle">{level:g}</text>')
    shapes.append(f'<line class="ideal" x1="{_LEFT}" y1="{base}" x2="{_LEFT + _SIDE}" y2="{_TOP}"/>')
    points = " ".join(place(said, was) for said, was, _ in bins)
    shapes.append(f'<polyline class="curve progress" points="{points}"/>')
    most = max((count for _, _, count in bins), default=1)
    step = _SIDE / len(curve["count"])
    for said, was, count in bins:
        x, y = place(said, was).split(",")
        words = f"said {said:.2f}, was {was:.2f}, {count} times"
        shapes.append(f'<circle class="reliable" cx="{x}" cy="{y}" r="4"><title>{words}</title></circle>')
        tall = _STRIP * math.log1p(count) / math.log1p(most)
        left = _LEFT + step * min(int(said * len(curve["count"])), len(curve["count"]) - 1)
        shapes.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{foot - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}">'
            f"<title>{words}</title></rect>"
        )
    return (
        f'<div class="card"><h3>Reliability</h3><p class="soft">Calibration error {_number(error.value)}'
        f"{between}. Across: what the model said; up: how often it was so; dashed: what a "
        "calibrated model gives. Bars: how often it said so, on a logarithmic scale.</p>"
        f'<svg viewBox="0 0 {width} {foot + 20}" style="max-width: 380px" role="img" aria-label="reliability diagram">'
        f"{''.join(shapes)}</svg></div>"
    )


def _confusion(confusion: Mapping[str, Any] | None) -> str:
    if not confusion:
        return ""
    cells: Sequence[Sequence[float | None]] = confusion["cells"]
    names: Sequence[str] = confusion["instructions"]
    known = [value for row in cells for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    rows: list[str] = []
    for row, (name, values) in enumerate(zip(names, cells, strict=True)):
        drawn = ""
        for column, value in enumerate(values):
            kind = "cell own" if row == column else "cell"
            if value is None:
                drawn += f'<td class="{kind} soft" title="not asked, or no answer">–</td>'
                continue
            share = 70 * (value - low) / (high - low) if high > low else 0
            shade = f"background: color-mix(in srgb, var(--progress) {share:.0f}%, transparent)"
            drawn += f'<td class="{kind}" style="{shade}">{value:.2f}</td>'
        rows.append(f"<tr><td>{row + 1} {escape(str(name))}</td>{drawn}</tr>")
    heads = "".join(f'<th class="n" title="{escape(str(name))}">{column + 1}</th>' for column, name in enumerate(names))
    missing = "".join(f"<li>{escape(str(one))}</li>" for one in confusion.get("missing") or [])
    notes = f'<ul class="notes">{missing}</ul>' if missing else ""
    return (
        '<div class="card"><h3>Instructions and videos</h3><p class="soft">Mean score of each task\'s videos (columns) '
        "under each task's instruction (rows). In a column the highest cell should be the bold one.</p>"
        f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"</div>{notes}</div>"
    )


def _comparison(comparison: Mapping[str, Any] | None) -> str:
    if not comparison:
        return ""
    model: Mapping[str, Any] = comparison.get("model") or {}
    verdict = {"first": ("good", "this is better"), "second": ("bad", "the other is better")}
    rows: list[str] = []
    titles = {metric.key: metric.title.text for metric in METRICS}
    for key, told in cast(Mapping[str, Mapping[str, Any]], comparison["differences"]).items():
        values = {k: math.nan if v is None else v for k, v in told.items()}
        style, words = verdict.get(str(told.get("better")), ("soft", ""))
        rows.append(
            f'<tr><td>{escape(titles[key])}</td><td class="n">{_number(values["first"])}</td>'
            f'<td class="n">{_number(values["second"])}</td><td class="n"><b>{_number(values["difference"], True)}</b>'
            f'{_interval(values["low"], values["high"], True)}</td><td class="n">{told.get("n")}</td>'
            f'<td class="{style}">{words}</td></tr>'
        )
    other = str(model.get("path") or model.get("class_path") or "another model")
    return (
        f'<h2>Against {escape(other)}</h2><p class="soft">Both on the same {comparison.get("episodes")} episodes and '
        "the same resamples; a difference is clear where its interval leaves out 0.</p>"
        '<div class="card scroll"><table><thead><tr><th></th><th class="n">this</th><th class="n">other</th>'
        '<th class="n">difference</th>'
        f'<th class="n">episodes</th><th></th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    if not tasks:
        return ""
    shown = {m.key: m.title.text for m in METRICS if m.task_tables != "none"}
    heads = "".join(f'<th class="n">{escape(title)}</th>' for title in shown.values())
    rows: list[str] = []
    for task in tasks:
        found = {key: MetricValue.from_json(task["figures"].get(key) or {}) for key in shown}
        cells = "".join(f'<td class="n">{_number(f.value)}<br>{_interval(f.low, f.high)}</td>' for f in found.values())
        name = f"{task.get('instruction') or 'task ' + str(task.get('task'))} ({task.get('episodes')})"
        rows.append(f'<tr><td class="task">{escape(name)}</td>{cells}</tr>')
    return (
        f'<h2>By task</h2><div class="card scroll"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
