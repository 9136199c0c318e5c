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

from .report_figures import STYLE as FIGURE_STYLE
from .report_figures import render_evaluation

WIDTH, HEIGHT = 960, 150
"""Of a curve, in SVG units; the film strip above it is as wide, so that both share one time axis."""
_POINTS = 480  # more would not be seen at this width
_TOP, _BOTTOM = 8, 22

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --soft: #667085; --line: #e3e7ee;
  --progress: #2563eb; --success: #0d9488; --good: #15803d; --bad: #b42318; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1a1f28; --ink: #e7eaf0; --soft: #98a2b3;
  --line: #2d3441; --progress: #7aa8ff; --success: #4fd1c5; --good: #6ee7a0; --bad: #ff9c92; --warn: #fbc46d; } }
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
        f"<title>{escape(page.title)}</title><style>{STYLE}{FIGURE_STYLE}</style></head>\n"
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
    return f'<article class="card">{head}{strip}{_curves(card)}{note}</article>'


def _curves(card: Card) -> str:
    """Progress with its band and success over time, on the strip's axis."""
    seconds = card.seconds
    x = _across(seconds)
    shapes: list[str] = []
    known = ~np.isnan(card.progress) & ~np.isnan(card.std)
    if known.any():
        upper, lower = card.progress + card.std, card.progress - card.std
        for run in _runs(known):
            edge = [*_points(x[run], upper[run]), *_points(x[run], lower[run])[::-1]]
            shapes.append(f'<polygon class="band" points="{" ".join(edge)}"/>')
    keys: list[str] = []
    for name, values in (("progress", card.progress), ("success", card.success)):
        drawn = [_points(x[run], values[run]) for run in _runs(~np.isnan(values))]
        for points in drawn:
            shapes.append(f'<polyline class="curve {name}" points="{" ".join(points)}"/>')
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
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="progress and success over time">{_axes(seconds)}'
        f'{"".join(shapes)}</svg><div class="key">{"".join(keys)}</div>'
    )


def _axes(seconds: Float[np.ndarray, " F"]) -> str:
    lines: list[str] = []
    for level in (0.0, 0.5, 1.0):
        y = _down(np.array([level]))[0]
        lines.append(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="3" y="{y - 3 if level == 0 else y + 11:.1f}">{level:g}</text>')
    start, stop = float(seconds[0]), float(seconds[-1])
    for part in range(9):
        at = WIDTH * part / 8
        anchor = "start" if part == 0 else "end" if part == 8 else "middle"
        moment = start + (stop - start) * part / 8
        lines.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        said = f"{moment:.2f}" if stop - start < 4 else f"{moment:.1f}"
        lines.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{said} s</text>')
    return "".join(lines)


def _states(card: Card) -> str:
    """Up to eight state dimensions, each scaled to its own range: there is no picture to show."""
    assert card.state is not None
    x, shapes = _across(card.seconds), list[str]()
    moving = np.argsort(-card.state.std(0), kind="stable")[: len(_STATE_COLOURS)]
    for colour, dimension in zip(_STATE_COLOURS, sorted(moving.tolist()), strict=False):
        values = card.state[:, dimension]
        span = float(values.max() - values.min())
        scaled = (values - values.min()) / span if span > 0 else np.full(len(values), 0.5)
        shapes.append(f'<polyline class="state" stroke="{colour}" points="{" ".join(_points(x, scaled))}"/>')
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
    low, high = min(0.0, *every), max(1.0, *every)
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


def _across(seconds: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    span = float(seconds[-1] - seconds[0])
    return WIDTH * (seconds - seconds[0]) / span if span > 0 else np.full(len(seconds), WIDTH / 2)


def _down(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - np.clip(values, 0, 1))


def _points(x: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> list[str]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x[chosen], _down(values[chosen]), strict=True)]


def _runs(known: np.ndarray) -> list[slice]:
    """Stretches without a gap, so that a line is never drawn over what is not known."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(int), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
