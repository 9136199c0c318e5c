"""Geometry of the report's curves, and the curve of a critic's value."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 960, 150
"""Of a curve, in SVG units; the film strip above it is as wide, so that both share one time axis."""
TOP, BOTTOM = 8, 22
_POINTS = 480  # more would not be seen at this width

STYLE = """
.value { stroke: var(--value); } .fall { fill: var(--bad); opacity: .13; } svg .fallen { fill: var(--bad); }
.marker { fill: var(--bad); }
"""


def across(seconds: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """Where moments lie on the time axis."""
    span = float(seconds[-1] - seconds[0])
    return WIDTH * (seconds - seconds[0]) / span if span > 0 else np.full(len(seconds), WIDTH / 2)


def down(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Where numbers in [0, 1] lie on the other axis."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - np.clip(values, 0, 1))


def points(x: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> list[str]:
    """Points of a line through numbers in [0, 1]."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x[chosen], down(values[chosen]), strict=True)]


def runs(known: np.ndarray) -> list[slice]:
    """Stretches without a gap, so that a line is never drawn over what is not known."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(int), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def time_axis(seconds: Float[np.ndarray, " F"], levels: Sequence[tuple[float, str]]) -> str:
    """Lines and labels of the time axis, and of levels in [0, 1]."""
    lines: list[str] = []
    for level, label in levels:
        y = down(np.array([level]))[0]
        lines.append(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="3" y="{y - 3 if level == 0 else y + 11:.1f}">{label}</text>')
    start, stop = float(seconds[0]), float(seconds[-1])
    for part in range(9):
        at = WIDTH * part / 8
        anchor = "start" if part == 0 else "end" if part == 8 else "middle"
        moment = start + (stop - start) * part / 8
        lines.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        said = f"{moment:.2f}" if stop - start < 4 else f"{moment:.1f}"
        lines.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{said} s</text>')
    return "".join(lines)


def render_value(
    seconds: Float[np.ndarray, " F"],
    value: Float[np.ndarray, " F"],
    limits: tuple[float, float],
    fall: tuple[int, int] | None = None,
) -> str:
    """A critic's value over time, with its largest fall marked; nothing where no value is known.

    Args:
        seconds: Of each frame.
        value: NaN where it is not known.
        limits: Smallest and largest value of the page, so that its curves can be compared.
        fall: Frames of the peak and the trough.
    """
    known = ~np.isnan(value)
    if not known.any():
        return ""
    low, high = limits
    scale = (value - low) / (high - low) if high > low else np.where(known, 0.5, np.nan)
    x = across(seconds)
    shapes: list[str] = []
    keys = ['<span><i style="border-color: var(--value)"></i>value</span>']
    if fall is not None:
        peak, trough = fall
        left, right = x[peak], x[trough]
        shapes.append(
            f'<rect class="fall" x="{left:.1f}" y="{TOP}" width="{max(right - left, 2):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/>'
        )
        y = down(scale[[peak, trough]])
        shapes += [
            f'<circle class="marker" cx="{a:.1f}" cy="{b:.1f}" r="4"/>' for a, b in zip((left, right), y, strict=True)
        ]
        amount = value[peak] - value[trough]
        anchor, place = ("end", left - 6) if right > WIDTH * 0.85 else ("start", right + 6)
        shapes.append(
            f'<text class="fallen" x="{place:.1f}" y="{TOP + 12}" text-anchor="{anchor}">−{amount:.3g}</text>'
        )
        at = f"{seconds[peak]:.2f} s to {seconds[trough]:.2f} s"
        keys.append(f'<span><i style="border-color: var(--bad)"></i>largest fall, {amount:.3g} from {at}</span>')
    for run in runs(known):
        shapes.append(f'<polyline class="curve value" points="{" ".join(points(x[run], scale[run]))}"/>')
    levels = [(0.0, f"{low:.3g}"), (0.5, f"{(low + high) / 2:.3g}"), (1.0, f"{high:.3g}")] if high > low else []
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="value over time">{time_axis(seconds, levels)}'
        f'{"".join(shapes)}</svg><div class="key">{"".join(keys)}</div>'
    )


__all__ = ["HEIGHT", "STYLE", "WIDTH", "across", "down", "points", "render_value", "runs", "time_axis"]
