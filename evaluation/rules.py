"""Which episodes enter each figure of merit, and how weighted ones give its value."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..core.metrics import mean_absolute_error, reliability_curve
from .predictions import BLIND, MODEL, Basis, Judged
from .weighted import (
    ordered_pairs,
    weighted_auroc,
    weighted_margin,
    weighted_mean,
    weighted_precision,
    weighted_tau_a,
    weighted_tau_b,
)

BINS = 15
"""Of the calibration error and the reliability curve."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Episodes that enter a figure, and its value for weights (S, n) of them."""

    rows: Sequence[Judged]
    compute: Callable[[np.ndarray], np.ndarray]
    missing: int = 0
    """Episodes that should have entered and could not."""
    as_zero: float = math.nan
    chance: float = math.nan


Rule = Callable[[Sequence[Judged], str, Basis], Sample]
"""From episodes, the name of a reading and the basis to the episodes that enter a figure."""


def mean_sample(
    rows: Sequence[Judged], values: Sequence[float], as_zero: bool = False, chance: float = math.nan
) -> Sample:
    """Mean of a number per episode, NaN where it has none."""
    found = np.array(values, float)
    known = ~np.isnan(found)
    kept = found[known]
    return Sample(
        rows=[j for j, k in zip(rows, known, strict=True) if k],
        compute=lambda weight: weighted_mean(weight, kept),
        missing=int((~known).sum()),
        as_zero=float(np.where(known, found, 0.0).mean()) if as_zero and len(found) else math.nan,
        chance=chance,
    )


def _order(rows: Sequence[Judged], name: str) -> Sample:
    used = [j for j in rows if name in j.readings]
    return mean_sample(used, [j.readings[name].order for j in used], as_zero=True, chance=0.0)


def _rising_order(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _order(basis.rising(rows), name)


def _failed_order(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _order(basis.failed(rows), name)


def _scored(
    rows: Sequence[Judged], scores: Sequence[float]
) -> tuple[list[Judged], Float[np.ndarray, " n"], Float[np.ndarray, " n"], int]:
    """Episodes with score and outcome, both, and how many lack one."""
    score, success = np.array(scores, float), np.array([j.success for j in rows], float)
    known = ~(np.isnan(score) | np.isnan(success))
    kept = [j for j, k in zip(rows, known, strict=True) if k]
    return kept, score[known], success[known], int((~known).sum())


def _auroc(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    kept, score, success, missing = _scored(rows, [j.readings[name].score for j in rows])
    compute = _computing(lambda weight: weighted_auroc(weight, score, success >= 0.5))
    return Sample(rows=kept, compute=compute, missing=missing, chance=0.5)


def _auprc(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    kept, score, success, missing = _scored(rows, [j.readings[name].score for j in rows])
    share = float((success >= 0.5).mean()) if 0 < (success >= 0.5).sum() < len(success) else math.nan
    compute = _computing(lambda weight: weighted_precision(weight, score, success >= 0.5))
    return Sample(rows=kept, compute=compute, missing=missing, chance=share)


def _computing(compute: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Undefined on no episode, rather than a question to sorted emptiness."""
    return lambda weight: compute(weight) if weight.shape[1] else np.full(len(weight), math.nan)


def _pairs(rows: Sequence[Judged], name: str, ties: bool) -> Sample:
    kept, total, success, missing = _scored(rows, [j.readings[name].total for j in rows])
    task = np.unique([j.task for j in kept], return_inverse=True)[1].astype(np.int64)

    def compute(weight: np.ndarray) -> np.ndarray:
        wins, tied, pairs = ordered_pairs(weight, total, success, task)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, (tied if ties else wins) / pairs, math.nan)

    return Sample(rows=kept, compute=compute, missing=missing, chance=math.nan if ties else 0.5)


def _pairwise(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _pairs(rows, name, ties=False)


def _tie_rate(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _pairs(rows, name, ties=True)


def _said_yes(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    used = [j for j in rows if name in j.readings]
    scores = [j.readings[name].score for j in used]
    said = [math.nan if math.isnan(s + basis.threshold) else float(s >= basis.threshold) for s in scores]
    return mean_sample(used, said)


def _false_positives(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _said_yes(basis.failed(rows), name, basis)


def _true_positives(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _said_yes([j for j in rows if j.success >= 0.5], name, basis)


def calibration_pair(judged: Judged, name: str, basis: Basis) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and what happened: of single observations, or of the episode's end."""
    reading = judged.readings[name]
    if basis.per_observation:
        known = ~np.isnan(reading.probability)
        return reading.probability[known], reading.label[known]
    # a total reward is no probability
    if math.isnan(judged.success) or math.isnan(reading.score) or not 0 <= reading.score <= 1:
        return np.zeros(0), np.zeros(0)
    return np.array([reading.score]), np.array([judged.success])


def _calibration(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    pieces = [calibration_pair(j, name, basis) for j in rows]
    used = [(j, p) for j, p in zip(rows, pieces, strict=True) if len(p[0])]
    excess, count = np.zeros((len(used), BINS)), np.zeros(len(used))
    for row, (_, (probability, label)) in enumerate(used):
        # one episode's share of every bin; the figure is the sum over bins of the absolute total
        predicted, happened, members = reliability_curve(probability, label, BINS)
        excess[row] = np.where(members > 0, (predicted - happened) * members, 0.0)
        count[row] = len(probability)

    def compute(weight: np.ndarray) -> np.ndarray:
        total = weight @ count
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, np.abs(weight @ excess).sum(1) / total, math.nan)

    return Sample(rows=[j for j, _ in used], compute=compute, missing=len(rows) - len(used))


def _progress_error(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    labelled = [j for j in rows if len(j.readings[name].target)]
    errors = [mean_absolute_error(j.readings[name].progress, j.readings[name].target) for j in labelled]
    found = mean_sample(labelled, errors)
    return Sample(rows=found.rows, compute=found.compute, missing=found.missing + len(rows) - len(labelled))


def _instruction_pairs(rows: Sequence[Judged], name: str, basis: Basis) -> list[tuple[Judged, float, float]]:
    """Episodes with their end under the right and under a wrong instruction; NaN where either is unknown."""
    pairs: list[tuple[Judged, float, float]] = []
    for j in basis.rising(rows):
        wrong = j.readings.get("wrong_instruction")
        if wrong is None or name not in (MODEL, *BLIND) or name not in j.readings:
            pairs.append((j, math.nan, math.nan))
        elif name in BLIND:
            pairs.append((j, 0.5, 0.5))
        else:
            right = j.readings[name]
            graded = not (math.isnan(right.final) or math.isnan(wrong.final))
            pairs.append((j, right.final, wrong.final) if graded else (j, right.score, wrong.score))
    return pairs


def _instruction_accuracy(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    pairs = _instruction_pairs(rows, name, basis)
    wins = [math.nan if math.isnan(a + b) else float(a > b) + 0.5 * (a == b) for _, a, b in pairs]
    return mean_sample([j for j, _, _ in pairs], wins, as_zero=True, chance=0.5)


def _instruction_auroc(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    pairs = _instruction_pairs(rows, name, basis)
    known = [(j, a, b) for j, a, b in pairs if not math.isnan(a + b)]
    scores = np.array([a for _, a, _ in known] + [b for _, _, b in known], float)
    right = np.arange(2 * len(known)) < len(known)
    return Sample(
        rows=[j for j, _, _ in known],
        compute=_computing(lambda weight: weighted_auroc(np.concatenate([weight, weight], axis=1), scores, right)),
        missing=len(pairs) - len(known),
        chance=0.5,
    )


def _margin(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    """Of the videos of one task."""
    used = [j for j in rows if j.under and j.task in j.under and name in (MODEL, *BLIND)]
    if not used:
        return mean_sample([], [])
    places = sorted({t for j in used for t in j.under})
    under = np.array([[j.under.get(t, math.nan) for t in places] for j in used], float)
    under = np.where(np.isnan(under) | (name not in BLIND), under, 0.5)
    own = places.index(used[0].task)
    kept = ~np.isnan(under[:, own])
    table = under[kept]
    return Sample(
        rows=[j for j, k in zip(used, kept, strict=True) if k],
        compute=_computing(lambda weight: weighted_margin(weight, table, own)),
        missing=int((~kept).sum()),
        chance=0.5,
    )


def _ranking(rows: Sequence[Judged], name: str, basis: Basis, robometer: bool) -> Sample:
    """Of the episodes of one task."""
    named = [j for j in rows if j.quality in basis.levels]
    used = [j for j in named if not math.isnan(j.readings[name].end)]
    ends = np.array([j.readings[name].end for j in used], float)
    levels = np.array([basis.levels[j.quality] for j in used], float)
    tau = weighted_tau_a if robometer else weighted_tau_b
    compute = _computing(lambda weight: tau(weight, ends, levels))
    return Sample(rows=used, compute=compute, missing=len(rows) - len(used), chance=0.0)


def _quality_ranking(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _ranking(rows, name, basis, robometer=False)


def _robometer(rows: Sequence[Judged], name: str, basis: Basis) -> Sample:
    return _ranking(rows, name, basis, robometer=True)


RULES: Mapping[str, Rule] = {
    "value_order_correlation": _rising_order,
    "success_auroc": _auroc,
    "pairwise_accuracy": _pairwise,
    "calibration_error": _calibration,
    "instruction_accuracy": _instruction_accuracy,
    "instruction_auroc": _instruction_auroc,
    "value_order_failures": _failed_order,
    "success_auprc": _auprc,
    "false_positive_rate": _false_positives,
    "true_positive_rate": _true_positives,
    "tie_rate": _tie_rate,
    "progress_error": _progress_error,
    "instruction_margin": _margin,
    "quality_ranking": _quality_ranking,
    "robometer_tau_a": _robometer,
}
"""Every field of `Figures`."""
BY_TASK = ("instruction_margin", "quality_ranking", "robometer_tau_a")
"""Defined inside a task only: their value is the mean over tasks."""


def point(sample: Sample) -> float:
    """The figure of the episodes as they are."""
    return float(sample.compute(np.ones((1, len(sample.rows))))[0]) if sample.rows else math.nan
