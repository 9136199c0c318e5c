"""Two reward models on the same episodes: the difference of each figure, resampled for both at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import Resampling, by_task
from .predictions import MODEL, Basis, Judged
from .rules import BY_TASK, RULES, Sample, point

COMPARED: Mapping[str, tuple[str, str, int]] = {
    "value_order_correlation": ("value_order_correlation", MODEL, 1),
    "value_order_failures": ("value_order_failures", MODEL, 0),
    "value_order_reversed": ("value_order_correlation", "reversed", -1),
    "success_auroc": ("success_auroc", MODEL, 1),
    "success_auprc": ("success_auprc", MODEL, 1),
    "pairwise_accuracy": ("pairwise_accuracy", MODEL, 1),
    "calibration_error": ("calibration_error", MODEL, -1),
    "false_positive_rate": ("false_positive_rate", MODEL, -1),
    "true_positive_rate": ("true_positive_rate", MODEL, 1),
    "progress_error": ("progress_error", MODEL, -1),
    "instruction_accuracy": ("instruction_accuracy", MODEL, 1),
    "instruction_auroc": ("instruction_auroc", MODEL, 1),
    "instruction_margin": ("instruction_margin", MODEL, 1),
    "quality_ranking": ("quality_ranking", MODEL, 1),
    "robometer_tau_a": ("robometer_tau_a", MODEL, 1),
}
"""Name → figure, reading it is taken from, and 1 where more is better, −1 where less is, 0 where neither."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A figure of both models on the episodes for which both have it."""

    first: float
    second: float
    difference: float
    """First minus second; NaN where no episode has both."""
    low: float
    high: float
    """95 % interval: both models on the same resampled episodes or tasks."""
    n: int
    """Episodes."""
    better: str
    """``"first"`` or ``"second"`` where the interval leaves out 0, else ``""``."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The judged model (first) against another one (second)."""

    model: Mapping[str, Any]
    """Which the second is."""
    episodes: int
    """Both have judged."""
    left_out: int
    """Only one of them could judge."""
    differences: Mapping[str, Difference]
    """By name, see `COMPARED`."""


def compare(
    first: Sequence[Judged],
    second: Sequence[Judged],
    basis: tuple[Basis, Basis],
    resampling: Resampling,
    model: Mapping[str, Any] | None = None,
) -> Comparison:
    """Compare two models on the episodes that both have judged.

    For a figure that is a mean of episodes this is `paired_bootstrap`; the other figures are recomputed on every
    resample. What makes both go up or down together cancels, so a difference may be certain where two separate
    intervals overlap.

    Args:
        first: What the first model said.
        second: What the second said.
        basis: Rules of either; they differ at most in what a model's scores are.
        resampling: How intervals are made.
        model: Which the second is; kept as it is.
    """
    shared = {j.episode for j in first} & {j.episode for j in second}
    one = sorted((j for j in first if j.episode in shared), key=lambda j: j.episode)
    two = sorted((j for j in second if j.episode in shared), key=lambda j: j.episode)
    return Comparison(
        model=dict(model or {}),
        episodes=len(shared),
        left_out=len(first) + len(second) - 2 * len(shared),
        differences={name: _difference(one, two, name, basis, resampling) for name in COMPARED},
    )


def _difference(
    one: Sequence[Judged], two: Sequence[Judged], name: str, basis: tuple[Basis, Basis], resampling: Resampling
) -> Difference:
    key, reading, sign = COMPARED[name]
    if key in BY_TASK:
        tasks = by_task(one)
        pairs = [_both(rows, [j for j in two if j.task == t], key, reading, basis) for t, rows in tasks.items()]
        pairs = [pair for pair in pairs if not math.isnan(point(pair[0]) - point(pair[1]))]
    else:
        pairs = [_both(one, two, key, reading, basis)]
    values = [(point(a), point(b)) for a, b in pairs]
    if not values or any(math.isnan(a - b) for a, b in values):
        nothing = math.nan
        return Difference(first=nothing, second=nothing, difference=nothing, low=nothing, high=nothing, n=0, better="")
    first, second = (float(np.mean([v[i] for v in values])) for i in (0, 1))
    low, high = math.nan, math.nan
    if key in BY_TASK:
        if any(len(a.rows) > 1 for a, _ in pairs):
            low, high = resampling.nested([_drawn(a, b, resampling.inner_weights(a.rows)) for a, b in pairs])
    else:
        a, b = pairs[0]
        low, high = resampling.interval(a.rows, _drawn(a, b, resampling.weights(a.rows)))
    gain = sign if low > 0 else -sign if high < 0 else 0
    return Difference(
        first=first,
        second=second,
        difference=first - second,
        low=low,
        high=high,
        n=sum(len(a.rows) for a, _ in pairs),
        better="first" if gain > 0 else "second" if gain < 0 else "",
    )


def _both(
    one: Sequence[Judged], two: Sequence[Judged], key: str, reading: str, basis: tuple[Basis, Basis]
) -> tuple[Sample, Sample]:
    """The figure of both models on the episodes that enter it for both."""

    def sample(rows: Sequence[Judged], place: int) -> Sample:
        return RULES[key]([j for j in rows if reading in j.readings], reading, basis[place])

    entered = [{j.episode for j in sample(rows, place).rows} for place, rows in enumerate((one, two))]
    common = entered[0] & entered[1]
    first, second = (sample([j for j in rows if j.episode in common], p) for p, rows in enumerate((one, two)))
    return first, second


def _drawn(a: Sample, b: Sample, weight: np.ndarray) -> np.ndarray:
    return a.compute(weight) - b.compute(weight)
