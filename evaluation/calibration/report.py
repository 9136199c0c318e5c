"""Report of a calibration: errors before and after, cross-validated over families of episodes."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.model_selection import StratifiedGroupKFold

from ...core.files import without_nan
from ...core.intervals import Estimate, cluster_weights
from ...core.metrics import expected_calibration_error, mean_absolute_error, reliability_curve
from ...rewards.calibration_curves import Curve, Method, fit_curve, fit_isotonic
from .data import CalibrationData, Doubt

FEW = 5
"""Number of episodes of each outcome below which a calibration is little more than a guess."""
FOLDS = 5
"""Largest number of folds of the cross-validation."""
BINS = 15
"""Number of bins of the calibration error."""
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of the observations that the risk-coverage curve keeps."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """One bin of the reliability curve."""

    count: int
    """Number of predictions."""
    probability: float
    """Mean predicted probability; NaN for an empty bin."""
    frequency: float
    """Mean label; NaN for an empty bin."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Errors of predicted probabilities and progress."""

    calibration_error: Estimate
    brier: Estimate
    """Mean of (p − label)²."""
    reliability: tuple[Reliability, ...]
    progress_error: Estimate
    """Mean absolute error of progress; NaN where it is not calibrated or has no labels."""


@dataclass(frozen=True, kw_only=True)
class RiskPoint:
    """Errors of the most certain share of the observations."""

    coverage: float
    """Share that is kept."""
    brier: float
    calibration_error: float


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """Abstention, and the errors of what is kept."""

    by: Doubt
    share: float
    """Share of the observations to abstain on, as it was requested."""
    limit: float
    """Doubt above which the model abstains."""
    coverage: float
    """Share that is kept of episodes on which the limit was not chosen."""
    kept: Quality
    """Errors of what is kept."""
    everything: Quality
    """Errors of all observations."""


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """A calibration and its errors on episodes that it was not fitted on."""

    method: Method
    data: str
    split: str
    counts: Mapping[str, int]
    folds: int
    """Number of folds of the cross-validation; 0 where there are too few families."""
    before: Quality
    """Errors of the model as it is."""
    after: Quality
    """Errors of the calibrated model; each observation is mapped by a curve that was fitted on the other folds."""
    base_brier: float
    """Brier score of the base rate, a constant whose calibration error is 0."""
    change: Estimate
    """Calibration error after − before, with the same resamples for both."""
    temperature: float
    """1 / slope of the logit; NaN for isotonic regression."""
    bias: float
    """Shift of the logit; NaN for isotonic regression."""
    knots: int
    """Number of knots of isotonic regression; 0 for the other methods."""
    by: Doubt
    risk_coverage: tuple[RiskPoint, ...]
    """Errors of the ``after`` probabilities; the most doubtful observations are left out first."""
    abstention: Abstention | None
    bad: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; NaN becomes null, which JSON has instead."""
        found: dict[str, Any] = without_nan(asdict(self))
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Crossed:
    """Cross-validated predictions: each by a map fitted on other families; NaN where none could be fitted."""

    probability: Float[np.ndarray, " N"]
    progress: Float[np.ndarray, " N"]
    kept: Bool[np.ndarray, " N"]
    folds: int


def choose_limit(doubt: Float[np.ndarray, " N"], share: float) -> float:
    """Return the limit above which at most a share of the entries lies, and as many of them as ties allow.

    Args:
        doubt: Doubt of each observation.
        share: Share of the observations, in [0, 1); 0 gives ∞.

    Raises:
        ValueError: If the share is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"abstain is {share}: expected a share of at least 0 and below 1")
    if share == 0:
        return math.inf
    kept = len(doubt) - math.floor(share * len(doubt) + 1e-9)
    return float(np.sort(doubt)[kept - 1])


def cross_validate(
    data: CalibrationData, method: Method, progress: bool, abstain: float, by: Doubt, seed: int
) -> Crossed:
    """Fit on all folds but one and map that one; folds hold whole families and about as many successes each."""
    _, reached, family = data.outcomes()
    folds = min(FOLDS, int(reached.sum()), int((~reached).sum()), len(np.unique(family)))
    unknown = np.full(len(data.label), math.nan)
    found = Crossed(probability=unknown, progress=unknown.copy(), kept=np.ones(len(unknown), bool), folds=max(folds, 0))
    if folds < 2:
        return Crossed(probability=unknown, progress=found.progress, kept=found.kept, folds=0)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for _, held in splitter.split(np.zeros(len(family)), reached, family):
        test = np.isin(data.family, family[held])
        train = ~test
        classes = data.label[train] >= 0.5
        if not classes.any() or classes.all():
            continue  # one family holds all of a class; the report counts the entries that are left out
        curve = fit_curve(data.probability[train], data.label[train], method)
        found.probability[test] = curve(data.probability[test])
        if abstain:
            limit = choose_limit(data.doubt(by, curve(data.probability))[train], abstain)
            found.kept[test] = data.doubt(by, curve(data.probability))[test] <= limit
        if progress:
            fitted = fit_progress(data, train)
            if fitted is not None and data.progress is not None:
                found.progress[test] = fitted(np.nan_to_num(data.progress[test]))
    return found


def fit_progress(data: CalibrationData, rows: Bool[np.ndarray, " N"]) -> Curve | None:
    """Fit an isotonic regression of labelled progress on the model's; None where nothing is labelled."""
    if data.progress is None or data.target is None:
        return None
    known = rows & ~np.isnan(data.progress) & ~np.isnan(data.target)
    return fit_isotonic(data.progress[known], data.target[known]) if known.any() else None


def quality(
    data: CalibrationData,
    probability: Float[np.ndarray, " N"],
    progress: Float[np.ndarray, " N"] | None,
    rows: Bool[np.ndarray, " N"],
    seed: int,
) -> Quality:
    """Compute the errors of some of the observations, with intervals over families.

    Args:
        data: All observations.
        probability: Probability of each observation; NaN entries are left out.
        progress: Progress of each observation; None leaves its error undefined.
        rows: Observations to use.
        seed: Random seed of the bootstrap.
    """
    used = rows & ~np.isnan(probability)
    predicted, happened = probability[used], data.label[used]
    mean, frequency, count = reliability_curve(predicted, happened, BINS)
    return Quality(
        calibration_error=Estimate.resampled(
            expected_calibration_error(predicted, happened, BINS),
            _drawn_error(data, probability, used, seed),
        ),
        brier=_mean(data, (probability - data.label) ** 2, used, seed),
        reliability=tuple(
            Reliability(count=int(n), probability=float(p), frequency=float(f))
            for n, p, f in zip(count, mean, frequency, strict=True)
        ),
        progress_error=_progress_error(data, progress, rows, seed),
    )


def change_of_error(
    data: CalibrationData, before: Float[np.ndarray, " N"], after: Float[np.ndarray, " N"], seed: int
) -> Estimate:
    """Estimate the calibration error of ``after`` minus that of ``before``, with the same resamples for both."""
    used = ~np.isnan(before) & ~np.isnan(after)
    if not used.any():
        return Estimate(value=math.nan)
    errors = [expected_calibration_error(p[used], data.label[used], BINS) for p in (after, before)]
    drawn = [_drawn_error(data, p, used, seed) for p in (after, before)]
    return Estimate.resampled(errors[0] - errors[1], drawn[0] - drawn[1])


def risk_coverage(
    data: CalibrationData, probability: Float[np.ndarray, " N"], doubt: Float[np.ndarray, " N"]
) -> tuple[RiskPoint, ...]:
    """Compute the errors of the least doubtful shares; they fall where doubt is large where the model is wrong."""
    known = ~np.isnan(probability)
    order = np.argsort(doubt[known], kind="stable")
    predicted, happened = probability[known][order], data.label[known][order]
    found: list[RiskPoint] = []
    for coverage in COVERAGES if len(order) else ():
        kept = max(1, round(coverage * len(order)))
        found.append(
            RiskPoint(
                coverage=kept / len(order),
                brier=float(((predicted[:kept] - happened[:kept]) ** 2).mean()),
                calibration_error=expected_calibration_error(predicted[:kept], happened[:kept], BINS),
            )
        )
    return tuple(found)


def _progress_error(
    data: CalibrationData, progress: Float[np.ndarray, " N"] | None, rows: Bool[np.ndarray, " N"], seed: int
) -> Estimate:
    if progress is None or data.target is None:
        return Estimate(value=math.nan)
    known = rows & ~np.isnan(progress) & ~np.isnan(data.target)
    found = _mean(data, np.abs(progress - data.target), known, seed)
    return Estimate(value=mean_absolute_error(progress[known], data.target[known]), low=found.low, high=found.high)


def _families(data: CalibrationData, used: np.ndarray) -> tuple[np.ndarray, int]:
    names, place = np.unique(data.family[used], return_inverse=True)
    return place, len(names)


def _weights(count: int, seed: int) -> Float[np.ndarray, "S F"]:
    return cluster_weights(np.arange(count), 2000 if count <= 2000 else 500, seed)


def _drawn_error(
    data: CalibrationData, probability: np.ndarray, used: np.ndarray, seed: int
) -> Float[np.ndarray, " S"]:
    """Compute the calibration error on resampled families; each family adds its excess of every bin."""
    place, count = _families(data, used)
    if count < 2:
        return np.zeros(0)
    predicted = probability[used]
    bins = np.searchsorted(np.arange(1, BINS) / BINS, predicted, side="right")
    excess = np.bincount(place * BINS + bins, predicted - data.label[used], count * BINS).reshape(count, BINS)
    weight = _weights(count, seed).astype(np.float64)
    return np.abs(weight @ excess).sum(1) / (weight @ np.bincount(place, minlength=count))


def _mean(data: CalibrationData, values: np.ndarray, used: np.ndarray, seed: int) -> Estimate:
    if not used.any():
        return Estimate(value=math.nan)
    place, count = _families(data, used)
    drawn = np.zeros(0)
    if count > 1:
        weight = _weights(count, seed).astype(np.float64)
        drawn = (weight @ np.bincount(place, values[used], count)) / (weight @ np.bincount(place, minlength=count))
    return Estimate.resampled(float(values[used].mean()), drawn)


__all__ = ["Abstention", "CalibrationReport", "Quality", "RiskPoint"]
