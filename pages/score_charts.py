"""Geometry of charts of scores and probabilities, in SVG units; `templates/charts.html` draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .time_charts import WIDTH, Tick

_SIDE, _STRIP, _LEFT, _HEAD = 300.0, 46.0, 34.0, 10.0  # of the reliability diagram: plot, bars, margins


@dataclass(frozen=True, kw_only=True)
class OutcomeRow:
    """Final scores of the episodes of one outcome."""

    name: str
    y: float
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class OutcomeChart:
    """Final scores by true outcome, one row per outcome."""

    left: float
    """Where the axis of scores begins."""
    height: float
    rows: tuple[OutcomeRow, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """A bin of the reliability diagram: a dot of the curve and a bar below it."""

    predicted: float
    observed: float
    count: int
    x: float
    y: float
    bar_left: float
    bar_top: float
    bar_width: float
    bar_height: float


@dataclass(frozen=True, kw_only=True)
class ReliabilityChart:
    """Observed frequency over predicted probability, and how many predictions each bin holds."""

    left: float
    right: float
    top: float
    base: float
    """Lower edge of the plot."""
    foot: float
    """Lower edge of the bars."""
    width: float
    levels: tuple[tuple[float, float, str], ...]
    """x, y and label of each grid line."""
    points: str
    bins: tuple[ReliabilityBin, ...]


def outcome_chart(outcomes: Mapping[str, Sequence[float]], unit: bool) -> OutcomeChart | None:
    """Chart every episode's final score as a dot, one row for each true outcome; None without a score.

    Args:
        outcomes: Outcome → final scores of its episodes; those that are not finite are left out.
        unit: Whether scores are expected in [0, 1], which the axis then covers.
    """
    scores = {name: [v for v in values if math.isfinite(v)] for name, values in outcomes.items()}
    scores = {name: values for name, values in scores.items() if values}
    if not scores:
        return None
    every = [v for values in scores.values() for v in values]
    low, high = min(every), max(every)
    if unit:
        low, high = min(0.0, low), max(1.0, high)
    high = high if high > low else low + 1
    left, row_height = 90.0, 34.0

    def place(value: float) -> float:
        return left + (WIDTH - 8 - left) * (value - low) / (high - low)

    rows: list[OutcomeRow] = []
    for number, (name, values) in enumerate(scores.items()):
        y = 16 + row_height * number
        # golden-ratio steps spread dots without randomness
        dots = [(place(v), y + 8 * ((i * 0.618) % 1 - 0.5)) for i, v in enumerate(values)]
        rows.append(OutcomeRow(name=name, y=y, dots=tuple(dots)))
    levels = (low, (low + high) / 2, high)
    return OutcomeChart(
        left=left,
        height=16 + row_height * len(rows) + 12,
        rows=tuple(rows),
        ticks=tuple(Tick(at=place(level), label=f"{level:.2g}") for level in levels),
    )


def reliability_chart(
    predicted: Sequence[float | None], observed: Sequence[float | None], counts: Sequence[int]
) -> ReliabilityChart:
    """Chart observed frequencies over predicted probabilities; bars count predictions on a logarithmic scale.

    Args:
        predicted: Mean predicted probability of each bin; None where it is empty.
        observed: Mean label of each bin; None where it is empty.
        counts: Number of predictions in each bin.
    """
    base, foot = _HEAD + _SIDE, _HEAD + _SIDE + 10 + _STRIP
    filled = [
        (float(p), float(o), int(count))
        for p, o, count in zip(predicted, observed, counts, strict=True)
        if p is not None and o is not None and count
    ]
    most = max((count for _, _, count in filled), default=1)
    step = _SIDE / len(counts)
    bins: list[ReliabilityBin] = []
    for p, o, count in filled:
        tall = _STRIP * math.log1p(count) / math.log1p(most)
        bins.append(
            ReliabilityBin(
                predicted=p,
                observed=o,
                count=count,
                x=_LEFT + _SIDE * p,
                y=base - _SIDE * o,
                bar_left=_LEFT + step * min(int(p * len(counts)), len(counts) - 1) + 1,
                bar_top=foot - tall,
                bar_width=step - 2,
                bar_height=tall,
            )
        )
    return ReliabilityChart(
        left=_LEFT,
        right=_LEFT + _SIDE,
        top=_HEAD,
        base=base,
        foot=foot,
        width=_SIDE + _LEFT + 8,
        levels=tuple((_LEFT + _SIDE * v, base - _SIDE * v, f"{v:g}") for v in (0.0, 0.25, 0.5, 0.75, 1.0)),
        points=" ".join(f"{b.x:.1f},{b.y:.1f}" for b in bins),
        bins=tuple(bins),
    )
