"""Geometry of charts over time, in SVG units; `templates/charts.html` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

WIDTH, HEIGHT = 960, 150
"""Size of a chart over time; the film strip above it is as wide, so that both share one time axis."""
TOP, BOTTOM = 8, 22
"""Margins of a chart over time; labels stand in the lower one."""
_POINTS = 480  # more would not be seen at this width
_UNIT_LEVELS = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
_STATE_COLOURS = ("#2563eb", "#d97706", "#0d9488", "#be185d", "#7c3aed", "#65a30d", "#0891b2", "#b91c1c")


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A grid line with its label."""

    at: float
    """Place on the axis."""
    label: str
    anchor: str = "middle"
    """How a label on the time axis is aligned: start, middle or end."""
    below: bool = True
    """Whether a label on the other axis stands below its line."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Grid of a chart over time."""

    levels: tuple[Tick, ...]
    times: tuple[Tick, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart."""

    kind: str
    """What it shows, which decides how it is drawn: progress, success, value, or the colour of a state dimension."""
    points: str
    """Points as SVG writes them."""


@dataclass(frozen=True, kw_only=True)
class CurveChart:
    """Progress with its band and success probability over time."""

    axes: Axes
    bands: tuple[str, ...]
    """Outlines of progress ± standard deviation, as SVG points."""
    lines: tuple[Line, ...]

    @property
    def kinds(self) -> list[str]:
        """Return the names of what lines are drawn of."""
        return list(dict.fromkeys(line.kind for line in self.lines))


@dataclass(frozen=True, kw_only=True)
class Fall:
    """The largest fall of a value."""

    left: float
    width: float
    markers: tuple[tuple[float, float], tuple[float, float]]
    """Peak and trough."""
    label_at: float
    anchor: str
    amount: float
    """Value at the peak − value at the trough."""
    start: float
    """Time of the peak, in seconds."""
    stop: float
    """Time of the trough, in seconds."""


@dataclass(frozen=True, kw_only=True)
class ValueChart:
    """A critic's value over time."""

    axes: Axes
    lines: tuple[Line, ...]
    fall: Fall | None


@dataclass(frozen=True, kw_only=True)
class StateChart:
    """State dimensions over time, each scaled to its own range."""

    lines: tuple[Line, ...]
    dimensions: int
    """Number of all state dimensions."""


def across(seconds: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """Place times on the time axis."""
    span = float(seconds[-1] - seconds[0])
    return WIDTH * (seconds - seconds[0]) / span if span > 0 else np.full(len(seconds), WIDTH / 2)


def down(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Place numbers in [0, 1] on the other axis, which points down in SVG: 1 is at the top."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - np.clip(values, 0, 1))


def points(x: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> list[str]:
    """Write the points of a line through numbers in [0, 1]."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x[chosen], down(values[chosen]), strict=True)]


def runs(known: Bool[np.ndarray, " n"]) -> list[slice]:
    """Find stretches without a gap, so that no line is drawn over what is not known."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(int), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def time_axes(seconds: Float[np.ndarray, " F"], levels: Sequence[tuple[float, str]]) -> Axes:
    """Make the grid of a chart over time.

    Args:
        seconds: Time of each frame.
        levels: Numbers in [0, 1] with their labels.
    """
    start, stop = float(seconds[0]), float(seconds[-1])
    digits = 2 if stop - start < 4 else 1
    return Axes(
        levels=tuple(
            Tick(at=float(down(np.array([level]))[0]), label=label, below=level != 0) for level, label in levels
        ),
        times=tuple(
            Tick(
                at=WIDTH * part / 8,
                label=f"{start + (stop - start) * part / 8:.{digits}f} s",
                anchor="start" if part == 0 else "end" if part == 8 else "middle",
            )
            for part in range(9)
        ),
    )


def _lines(kind: str, x: Float[np.ndarray, " F"], values: Float[np.ndarray, " F"]) -> list[Line]:
    return [Line(kind=kind, points=" ".join(points(x[run], values[run]))) for run in runs(~np.isnan(values))]


def curve_chart(
    seconds: Float[np.ndarray, " F"],
    progress: Float[np.ndarray, " F"],
    success: Float[np.ndarray, " F"],
    std: Float[np.ndarray, " F"],
) -> CurveChart:
    """Chart progress, its standard deviation and success probability over time; NaN where one is unknown."""
    x = across(seconds)
    bands: list[str] = []
    upper, lower = progress + std, progress - std
    for run in runs(~np.isnan(upper)):
        bands.append(" ".join([*points(x[run], upper[run]), *points(x[run], lower[run])[::-1]]))
    lines = [*_lines("progress", x, progress), *_lines("success", x, success)]
    return CurveChart(axes=time_axes(seconds, _UNIT_LEVELS), bands=tuple(bands), lines=tuple(lines))


def value_chart(
    seconds: Float[np.ndarray, " F"],
    value: Float[np.ndarray, " F"],
    limits: tuple[float, float],
    fall: tuple[int, int] | None = None,
) -> ValueChart | None:
    """Chart a critic's value over time, with its largest fall marked; None where no value is known.

    Args:
        seconds: Time of each frame.
        value: Value at each frame; NaN where it is unknown.
        limits: Smallest and largest value of the page, so that its charts can be compared.
        fall: Frames of the peak and the trough; None marks none.
    """
    known = ~np.isnan(value)
    if not known.any():
        return None
    low, high = limits
    scale = (value - low) / (high - low) if high > low else np.where(known, 0.5, np.nan)
    x = across(seconds)
    levels = [(0.0, f"{low:.3g}"), (0.5, f"{(low + high) / 2:.3g}"), (1.0, f"{high:.3g}")] if high > low else []
    return ValueChart(
        axes=time_axes(seconds, levels),
        lines=tuple(_lines("value", x, scale)),
        fall=None if fall is None else _fall(seconds, value, x, down(scale), fall),
    )


def _fall(
    seconds: Float[np.ndarray, " F"],
    value: Float[np.ndarray, " F"],
    x: Float[np.ndarray, " F"],
    y: Float[np.ndarray, " F"],
    frames: tuple[int, int],
) -> Fall:
    peak, trough = frames
    left, right = float(x[peak]), float(x[trough])
    near_edge = right > WIDTH * 0.85
    return Fall(
        left=left,
        width=max(right - left, 2.0),
        markers=((left, float(y[peak])), (right, float(y[trough]))),
        label_at=left - 6 if near_edge else right + 6,
        anchor="end" if near_edge else "start",
        amount=float(value[peak] - value[trough]),
        start=float(seconds[peak]),
        stop=float(seconds[trough]),
    )


def state_chart(seconds: Float[np.ndarray, " F"], state: Float[np.ndarray, "F S"]) -> StateChart:
    """Chart the state dimensions that vary most, at most eight of them."""
    x, lines = across(seconds), list[Line]()
    moving = np.argsort(-state.std(0), kind="stable")[: len(_STATE_COLOURS)]
    for colour, dimension in zip(_STATE_COLOURS, sorted(moving.tolist()), strict=False):
        values = state[:, dimension]
        span = float(values.max() - values.min())
        scaled = (values - values.min()) / span if span > 0 else np.full(len(values), 0.5)
        lines.append(Line(kind=colour, points=" ".join(points(x, scaled))))
    return StateChart(lines=tuple(lines), dimensions=state.shape[1])
