"""Calibration of a reward model on a held-out split, with a report from cross-validation."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...core.interfaces import RewardModel
from ...datasets.episodes import BadEpisodeError, EpisodeDataset
from ...rewards.calibration import Calibrated
from ...rewards.calibration_curves import Method, fit_curve
from .data import CalibrationData, Doubt, collect
from .report import (
    FEW,
    Abstention,
    CalibrationReport,
    Crossed,
    change_of_error,
    choose_limit,
    cross_validate,
    fit_progress,
    quality,
    risk_coverage,
)


def calibrate(
    reward: RewardModel,
    dataset: EpisodeDataset,
    split: str = "val",
    method: Method = "isotonic",
    progress: bool = False,
    abstain: float = 0.0,
    by: Doubt | None = None,
    batch_size: int = 8,
    cache: str | Path | None = None,
    seed: int = 0,
) -> tuple[Calibrated, CalibrationReport]:
    """Fit a calibration on the episodes of a split, and evaluate it by cross-validation.

    Use a split that the model was not trained on. The calibration is dense: it uses every observation with a known
    success label, the recorded one or the episode's outcome, as ``guerdon evaluate`` does. The report is
    cross-validated: every episode is mapped by a curve (and abstained on by a limit) that was fitted on other episodes,
    and episodes that share an initial state or a group stay together. The model that is returned is fitted on all.

    Args:
        reward: Reward model that estimates success, on its device and in evaluation mode.
        dataset: Data set with labelled outcomes.
        split: Name of the split; empty for all episodes. Where none is recorded, ``"train"`` and ``"val"`` are those
            that `EpisodeData` makes by default.
        method: Map of success: ``"temperature"``, ``"platt"`` or ``"isotonic"``.
        progress: Also map progress, by isotonic regression on its labels.
        abstain: Share of the observations, those in most doubt, on which the model abstains, in [0, 1).
        by: Measure of doubt, ``"spread"`` or ``"confidence"``; None takes the spread of a model that gives one.
        batch_size: Number of episodes in a forward pass.
        cache: Folder of the cached features of a frozen encoder; None caches nothing.
        seed: Random seed of the folds and the bootstrap.

    Returns:
        The calibrated model, in the mode of the given one, and the report.

    Raises:
        ValueError: If there is no such split, the model estimates no success, an estimate that it marks as valid is not
            in [0, 1], no label is known, or all episodes have one outcome.
    """
    bad: dict[int, BadEpisodeError] = {}
    data = collect(reward, dataset, split, batch_size, cache, bad)
    return calibrate_on(reward, data, method, progress, abstain, by, seed, dataset.name, split, list(bad.values()))


def calibrate_on(
    reward: RewardModel,
    data: CalibrationData,
    method: Method = "isotonic",
    progress: bool = False,
    abstain: float = 0.0,
    by: Doubt | None = None,
    seed: int = 0,
    name: str = "",
    split: str = "",
    bad: Sequence[BadEpisodeError] = (),
) -> tuple[Calibrated, CalibrationReport]:
    """Fit and evaluate a calibration as `calibrate` does, on predictions that were made already.

    Args:
        reward: Reward model that made the predictions.
        data: Predictions of the reward model, and the labels of the same observations.
        method: Map of success: ``"temperature"``, ``"platt"`` or ``"isotonic"``.
        progress: Also map progress, by isotonic regression on its labels.
        abstain: Share of the observations to abstain on, in [0, 1).
        by: Measure of doubt, ``"spread"`` or ``"confidence"``; None takes the spread of a model that gives one.
        seed: Random seed of the folds and the bootstrap.
        name: Name of the data set, to be shown.
        split: Name of the split, to be shown.
        bad: Episodes that could not be used, to be shown.

    Raises:
        ValueError: As `calibrate`.
    """
    counts = _counts(data, len(bad), split)
    chosen: Doubt = by or ("spread" if data.spread is not None else "confidence")
    notes = _notes(counts)
    everything = np.ones(len(data.label), bool)
    success = fit_curve(data.probability, data.label, method)
    mapped = success(data.probability)
    limit = choose_limit(data.doubt(chosen, mapped), abstain)
    progress_curve = fit_progress(data, everything) if progress else None
    if progress and progress_curve is None:
        raise ValueError(
            f"progress cannot be calibrated: {type(reward).__name__} gives none, or no success in the split "
            "labels it; leave progress out"
        )
    crossed = cross_validate(data, method, progress, abstain, chosen, seed)
    left_out = int(np.isnan(crossed.probability).sum())
    if left_out:
        notes.append(
            f"{left_out} of {len(data.label)} observations could not be evaluated by cross-validation: too few "
            "families with each outcome"
        )
    if success.slope == 0:
        notes.append("the model's probability does not rise with success here: it was mapped to the base rate")
    made = Calibrated.from_curves(
        reward,
        method,
        success,
        progress_curve,
        **{"spread_limit" if chosen == "spread" else "doubt_limit": limit},
    )
    after = quality(data, crossed.probability, crossed.progress if progress else None, everything, seed)
    report = CalibrationReport(
        method=method,
        data=name,
        split=split,
        counts=counts,
        folds=crossed.folds,
        before=quality(data, data.probability, data.progress if progress else None, everything, seed),
        after=after,
        base_brier=float(data.label.var()),
        change=change_of_error(data, data.probability, crossed.probability, seed),
        temperature=math.nan if len(success.x) or success.slope == 0 else 1 / success.slope,
        bias=math.nan if len(success.x) else success.bias,
        knots=len(success.x),
        by=chosen,
        risk_coverage=risk_coverage(data, crossed.probability, data.doubt(chosen, _known(crossed.probability))),
        abstention=_abstention(data, crossed, progress, chosen, abstain, limit, seed),
        bad=tuple({"episode": e.index, "status": e.status, "reason": e.reason} for e in bad),
        notes=tuple(notes),
    )
    return made, report


def _known(probability: np.ndarray) -> np.ndarray:
    return np.nan_to_num(probability, nan=0.5)


def _abstention(
    data: CalibrationData, crossed: Crossed, progress: bool, by: Doubt, share: float, limit: float, seed: int
) -> Abstention | None:
    if not share:
        return None
    known = ~np.isnan(crossed.probability)
    columns = (crossed.probability, crossed.progress if progress else None)
    return Abstention(
        by=by,
        share=share,
        limit=limit,
        coverage=float(crossed.kept[known].mean()) if known.any() else math.nan,
        kept=quality(data, *columns, known & crossed.kept, seed),
        everything=quality(data, *columns, known, seed),
    )


def _counts(data: CalibrationData, bad: int, split: str) -> dict[str, int]:
    """Count episodes and observations, and refuse data that cannot be calibrated on.

    Raises:
        ValueError: If nothing is labelled, or all episodes have one outcome.
    """
    where = f"the split {split!r}" if split else "the data"
    if not len(data.label):
        raise ValueError(
            f"no observation of {where} has both a known success label and an estimate: calibrate on episodes whose "
            "outcome is recorded"
        )
    episodes, reached, family = data.outcomes()
    successes, failures = int(reached.sum()), int((~reached).sum())
    if not successes or not failures:
        raise ValueError(
            f"{where} has {successes} labelled successes and {failures} failures: a probability of success cannot be "
            "calibrated on one outcome; take a split with both, or all of the data with an empty split"
        )
    return {
        "episodes": len(episodes),
        "successes": successes,
        "failures": failures,
        "families": len(np.unique(family)),
        "observations": len(data.label),
        "positives": int((data.label >= 0.5).sum()),
        "negatives": int((data.label < 0.5).sum()),
        "bad": bad,
    }


def _notes(counts: Mapping[str, int]) -> list[str]:
    if min(counts["successes"], counts["failures"]) >= FEW:
        return []
    note = (
        f"calibrated on {counts['successes']} successes and {counts['failures']} failures: fewer than {FEW} of either "
        "say little about others; collect more before trusting the probabilities"
    )
    warnings.warn(note, stacklevel=4)
    return [note]


__all__ = ["calibrate", "calibrate_on"]
