"""Draws the report: one HTML page with its styles, pictures and curves inside, and nothing to load.

Every text that comes from data goes through ``html.escape``. Curves are hand-written SVG: they need no script, print
well, and follow the reader's light or dark colours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

from .curves import HEIGHT, WIDTH, across, points, render_value, runs, time_axis
from .curves import STYLE as CURVE_STYLE
from .report_metrics import STYLE as FIGURE_STYLE
from .report_metrics import render_evaluation

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --soft: #667085; --line: #e3e7ee;
  --progress: #2563eb; --success: #0d9488; --value: #7c3aed; --good: #15803d; --bad: #b42318; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1a1f28; --ink: #e7eaf0; --soft: #98a2b3;
  --line: #2d3441; --progress: #7aa8ff; --success: #4fd1c5; --value: #c4a5fd; --good: #6ee7a0; --bad: #ff9c92;
  --warn: #fbc46d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 36px 0 4px; } h3 { font-size: 16px; margin: 0; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 14px 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.counts { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; }
.counts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px 16px; }
.counts b { display: block; font-size: 22px; line-height: 1.25; } .counts span { color: var(--soft); font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px;
  margin: 12px 0; }
.head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 12px; margin-bottom: 10px; }
.head .say { flex: 1 1 300px; } .pill { border: 1px solid currentColor; border-radius: 99px; padding: 0 9px;
  font-size: 12.5px; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.strip { display: flex; width: 100%; border-radius: 6px 6px 0 0; overflow: hidden; background: var(--line); gap: 1px; }
.strip img { flex: 1 1 0; min-width: 0; display: block; object-fit: cover; aspect-ratio: 4 / 3; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } .grid { stroke: var(--line); stroke-width: 1; }
.progress { stroke: var(--progress); } .success { stroke: var(--success); stroke-dasharray: 6 4; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .band { fill: var(--progress); opacity: .16; }
.state { fill: none; stroke-width: 1.4; opacity: .85; } .dot { opacity: .55; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12.5px; color: var(--soft); margin-top: 4px; }
.key i { display: inline-block; width: 22px; border-top: 2px solid; margin-right: 6px; vertical-align: middle; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } details { margin: 8px 0; }
pre { white-space: pre-wrap; font-size: 12.5px; }
"""
VALUE = "final value"
"""What episodes are ranked by where a critic was asked."""
_LEVELS = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
_STATE_COLOURS = ("#2563eb", "#d97706", "#0d9488", "#be185d", "#7c3aed", "#65a30d", "#0891b2", "#b91c1c")


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """One episode as the page shows it; arrays have one entry per recorded frame, NaN where nothing is known."""

    index: int
    instruction: str
    outcome: float | None
    """True success in [0, 1]; None where nobody said."""
    seconds: Float[np.ndarray, " F"]
    progress: Float[np.ndarray, " F"]
    success: Float[np.ndarray, " F"]
    std: Float[np.ndarray, " F"]
    remark: str
    """Why it is shown, such as the figure it was ranked by."""
    jpegs: Sequence[str] = ()
    """Film strip: base64, each frame from the middle of its share of the time axis."""
    state: Float[np.ndarray, "F S"] | None = None
    """Shown where there is no film strip."""
    note: str = ""
    value: Float[np.ndarray, " F"] | None = None
    """A critic's; None where a reward model was asked."""
    limits: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest value of the page."""
    fall: tuple[int, int] | None = None
    """Frames between which the value falls furthest, to be marked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """All that the report says."""

    title: str
    facts: Mapping[str, str]
    counts: Mapping[str, str]
    configuration: Mapping[str, Any]
    outcomes: Mapping[str, Sequence[float]]
    """Final score of every scored episode, by true outcome."""
    score_name: str
    sections: Mapping[str, tuple[str, Sequence[Card]]]
    """Heading → a line under it and its episodes."""
    bad: Sequence[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    """Episode, status, reason."""
    evaluation: Mapping[str, Any] | None = None
    """Figures, as `Evaluation.to_json` gives them."""


def render(page: Page) -> str:
    """The whole page."""
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in page.facts.items())
    counts = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in page.counts.items())
    configuration = escape(json.dumps(page.configuration, indent=2, ensure_ascii=False))
    parts = [
        f"<h1>{escape(page.title)}</h1>",
        f'<dl class="facts">{facts}</dl>',
        f'<div class="counts">{counts}</div>',
        f"<details><summary>Configuration</summary><pre>{configuration}</pre></details>" if page.configuration else "",
        render_evaluation(page.evaluation) if page.evaluation else "",
        _outcomes(page.outcomes, page.score_name),
    ]
    for heading, (line, cards) in page.sections.items():
        parts.append(f'<h2>{escape(heading)}</h2><p class="soft">{escape(line)}</p>')
        parts.extend(_card(card) for card in cards)
    parts.append(_bad(page.bad))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{STYLE}{CURVE_STYLE}{FIGURE_STYLE}</style></head>\n"
        f"<body><main>{chr(10).join(p for p in parts if p)}</main></body></html>\n"
    )


def _bad(bad: Sequence[tuple[int, str, str]]) -> str:
    if not bad:
        return ""
    rows = "".join(
        f'<tr><td>{index}</td><td class="bad">{escape(status)}</td><td>{escape(reason)}</td></tr>'
        for index, status, reason in bad
    )
    return (
        '<h2>Episodes that could not be scored</h2><div class="card scroll"><table>'
        f"<thead><tr><th>episode</th><th>status</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _card(card: Card) -> str:
    if card.outcome is None:
        pill = '<span class="pill soft">outcome unknown</span>'
    elif card.outcome in (0.0, 1.0):
        pill = (
            f'<span class="pill {"good" if card.outcome else "bad"}">{"success" if card.outcome else "failure"}</span>'
        )
    else:
        pill = f'<span class="pill warn">partial success {card.outcome:.2f}</span>'
    head = (
        f'<div class="head"><h3>Episode {card.index}</h3><span class="say">{escape(card.instruction)}</span>'
        f'{pill}<span class="soft">{escape(card.remark)}</span></div>'
    )
    strip = ""
    if card.jpegs:
        pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{j}">' for j in card.jpegs)
        strip = f'<div class="strip">{pictures}</div>'
    elif card.state is not None and card.state.size:
        strip = _states(card)
    note = f'<p class="soft">{escape(card.note)}</p>' if card.note else ""
    value = "" if card.value is None else render_value(card.seconds, card.value, card.limits, card.fall)
    told = not np.isnan(card.progress).all() or not np.isnan(card.success).all()
    curves = "" if value and not told else _curves(card)
    return f'<article class="card">{head}{strip}{curves}{value}{note}</article>'


def _curves(card: Card) -> str:
    """Progress with its band and success over time, on the strip's axis."""
    seconds = card.seconds
    x = across(seconds)
    shapes: list[str] = []
    known = ~np.isnan(card.progress) & ~np.isnan(card.std)
    if known.any():
        upper, lower = card.progress + card.std, card.progress - card.std
        for run in runs(known):
            edge = [*points(x[run], upper[run]), *points(x[run], lower[run])[::-1]]
            shapes.append(f'<polygon class="band" points="{" ".join(edge)}"/>')
    keys: list[str] = []
    for name, values in (("progress", card.progress), ("success", card.success)):
        drawn = [points(x[run], values[run]) for run in runs(~np.isnan(values))]
        for line in drawn:
            shapes.append(f'<polyline class="curve {name}" points="{" ".join(line)}"/>')
        if drawn:
            dashed = "; border-top-style: dashed" if name == "success" else ""
            label = "progress" if name == "progress" else "success probability"
            keys.append(f'<span><i style="border-color: var(--{name}){dashed}"></i>{label}</span>')
    if known.any():
        band = "border-top: 8px solid var(--progress); opacity: .2"
        keys.append(f'<span><i style="{band}"></i>± standard deviation of the reward</span>')
    if not keys:
        return '<p class="soft">The model gave neither progress nor success for this episode.</p>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="progress and success over time">'
        f"{time_axis(seconds, _LEVELS)}"
        f'{"".join(shapes)}</svg><div class="key">{"".join(keys)}</div>'
    )


def _states(card: Card) -> str:
    """Up to eight state dimensions, each scaled to its own range: there is no picture to show."""
    assert card.state is not None
    x, shapes = across(card.seconds), list[str]()
    moving = np.argsort(-card.state.std(0), kind="stable")[: len(_STATE_COLOURS)]
    for colour, dimension in zip(_STATE_COLOURS, sorted(moving.tolist()), strict=False):
        values = card.state[:, dimension]
        span = float(values.max() - values.min())
        scaled = (values - values.min()) / span if span > 0 else np.full(len(values), 0.5)
        shapes.append(f'<polyline class="state" stroke="{colour}" points="{" ".join(points(x, scaled))}"/>')
    said = f"No camera: {len(moving)} of {card.state.shape[1]} state dimensions, each over its own range"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT - 14}" role="img" aria-label="state over time">{"".join(shapes)}</svg>'
        f'<p class="soft" style="font-size: 12.5px">{said}</p>'
    )


def _outcomes(outcomes: Mapping[str, Sequence[float]], score_name: str) -> str:
    """Every episode's final score as a dot, one row for each true outcome."""
    rows = {k: [v for v in values if np.isfinite(v)] for k, values in outcomes.items()}
    rows = {k: v for k, v in rows.items() if v}
    if not rows:
        return ""
    every = [v for values in rows.values() for v in values]
    low, high = min(every), max(every)
    if score_name != VALUE:  # a value has a scale of its own
        low, high = min(0.0, low), max(1.0, high)
    high = high if high > low else low + 1
    left, row_height = 90, 34
    colours = {"success": "good", "failure": "bad", "partial": "warn"}
    shapes: list[str] = []
    for place, (name, values) in enumerate(rows.items()):
        y = 16 + row_height * place
        shapes.append(f'<text x="0" y="{y + 4}">{escape(name)} ({len(values)})</text>')
        shapes.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/>')
        for number, value in enumerate(values):
            x = left + (WIDTH - 8 - left) * (value - low) / (high - low)
            jitter = 8 * ((number * 0.618) % 1 - 0.5)  # golden-ratio steps spread dots without randomness
            shapes.append(
                f'<circle class="dot {colours.get(name, "soft")}" fill="currentColor" cx="{x:.1f}" '
                f'cy="{y + jitter:.1f}" r="4"/>'
            )
    height = 16 + row_height * len(rows) + 12
    for level in (low, (low + high) / 2, high):
        x = left + (WIDTH - 8 - left) * (level - low) / (high - low)
        shapes.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{level:.2g}</text>')
    return (
        f"<h2>Final score by true outcome</h2>"
        f'<p class="soft">Each dot is an episode; the score is {escape(score_name)}.</p>'
        f'<div class="card"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="final score by true outcome">'
        f"{''.join(shapes)}</svg></div>"
    )
