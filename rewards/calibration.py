"""Probabilities that can be read as frequencies and abstention where in doubt, both fitted on a held-out split."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from rich.console import Console
from torch import Tensor
from torch.nn.functional import pad

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from ..datasets.episodes import BadEpisodeError, EpisodeDataset
from .calibration_curves import METHODS, Curve, Method, fit_curve, interpolate, rescale_logit
from .calibration_data import CalibrationData, Doubt, collect
from .calibration_report import (
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
from .combine import Around


class Calibrated(Around):
    """A reward model whose success probability was calibrated, and which says where it does not know.

    The rewards themselves stay those of the model inside, so nothing that was trained on them changes its scale. To be
    paid for calibrated progress or success, wrap this: ``FirstHit(Calibrated(…))``.

    Where the model abstains, rewards, progress and success are invalid, and so they are left out of scores, returns and
    losses. Two limits can be set, each ∞ until it is:

    * on the spread: a step whose ``std`` is above it has no reward, and the observation it leads to no estimate. No
      step leads to observation 0, so that one is kept;
    * on the confidence: an observation whose min(p, 1 − p) is above it has no estimate, and the steps on both sides of
      it have no reward.

    Args:
        reward: The model; it is not trained here.
        method: How success is mapped; see `guerdon.rewards.calibration_curves.fit_curve`.
        knots: Of the isotonic map of success; 0 for the other methods.
        progress_knots: Of the isotonic map of progress; 0 leaves progress as it is.

    Raises:
        ValueError: If the method is unknown, or knots do not fit it.
    """

    slope: Tensor
    bias: Tensor
    success_x: Tensor
    success_y: Tensor
    progress_x: Tensor
    progress_y: Tensor
    spread_limit: Tensor
    doubt_limit: Tensor

    def __init__(
        self, reward: RewardModel, method: Method = "isotonic", knots: int = 0, progress_knots: int = 0
    ) -> None:
        super().__init__(reward)
        if method not in METHODS:
            raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
        if progress_knots < 0 or (knots < 1 if method == "isotonic" else knots != 0):
            raise ValueError(
                f"{knots} and {progress_knots} knots with method {method}: isotonic maps have at least one, the others "
                "none; calibrate() makes a model that fits"
            )
        self.method: Method = method
        # NaN until fitted: what nobody fitted must not pass for calibrated
        for name, size in (("slope", ()), ("bias", ()), ("success_x", (knots,)), ("success_y", (knots,))):
            self.register_buffer(name, torch.full(size, torch.nan, dtype=torch.float64))
        for name in ("progress_x", "progress_y"):
            self.register_buffer(name, torch.full((progress_knots,), torch.nan, dtype=torch.float64))
        for name in ("spread_limit", "doubt_limit"):
            self.register_buffer(name, torch.full((), torch.inf, dtype=torch.float64))

    @classmethod
    def from_curves(
        cls,
        reward: RewardModel,
        method: Method,
        success: Curve,
        progress: Curve | None = None,
        spread_limit: float = math.inf,
        doubt_limit: float = math.inf,
    ) -> "Calibrated":
        """Put fitted maps and limits around a model.

        Args:
            reward: The model.
            method: That ``success`` was fitted with.
            success: Map of the success probability.
            progress: Isotonic map of progress; None leaves it as it is.
            spread_limit: Largest ``std`` that is not abstained on.
            doubt_limit: Largest min(p, 1 − p) that is not abstained on.
        """
        made = cls(reward, method, len(success.x), 0 if progress is None else len(progress.x))
        values: dict[str, np.ndarray | float] = {"slope": success.slope, "bias": success.bias}
        values |= {"success_x": success.x, "success_y": success.y}
        values |= {"spread_limit": spread_limit, "doubt_limit": doubt_limit}
        values |= {} if progress is None else {"progress_x": progress.x, "progress_y": progress.y}
        with torch.no_grad():
            for name, value in values.items():
                made.get_buffer(name).copy_(torch.as_tensor(value, dtype=torch.float64))
        device = next((p.device for p in reward.parameters()), torch.device("cpu"))
        return made.to(device).train(reward.training)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Ask the model, map what it says, and take back what it is not sure of.

        Raises:
            RuntimeError: If nothing was fitted.
            ValueError: If the model gives no success, or no spread where there is a limit on it.
        """
        isotonic = self.method == "isotonic"
        if bool(self.success_x.isnan().any() if isotonic else self.slope.isnan()):
            raise RuntimeError("Calibrated has no map yet: make it with guerdon.rewards.calibration.calibrate")
        inner = self.reward(batch)
        if inner.success is None:
            raise ValueError(f"{type(self.reward).__name__} estimates no success: there is nothing to calibrate")
        said = torch.where(inner.success.valid, inner.success.values, 0.5)
        chance = (
            interpolate(said, self.success_x, self.success_y)
            if isotonic
            else rescale_logit(said, self.slope, self.bias)
        )
        steps, observations = self._unsure(inner, torch.minimum(chance, 1 - chance), inner.success.valid)
        progress = inner.progress
        if progress is not None and len(self.progress_x):
            mapped = interpolate(torch.where(progress.valid, progress.values, 0.0), self.progress_x, self.progress_y)
            progress = Labelled(values=mapped.to(progress.values.dtype), valid=progress.valid)
        valid = inner.valid & ~steps
        return RewardEstimates(
            rewards=torch.where(valid, inner.rewards, 0.0),
            valid=valid,
            progress=None if progress is None else _without(progress, observations),
            success=_without(replace(inner.success, values=chance.to(inner.success.values.dtype)), observations),
            std=None if inner.std is None else torch.where(valid, inner.std, 0.0),
            terms={name: torch.where(valid, term, 0.0) for name, term in inner.terms.items()},
        )

    def _unsure(
        self, inner: RewardEstimates, doubt: Tensor, known: Tensor
    ) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, "B Tp1"]]:
        """Steps and observations that are abstained on."""
        observations = torch.zeros_like(known)
        steps = torch.zeros_like(inner.valid)
        if bool(self.doubt_limit.isfinite()):
            observations = known & (doubt > self.doubt_limit)
            steps = observations[:, 1:] | observations[:, :-1]
        if bool(self.spread_limit.isfinite()):
            if inner.std is None:
                raise ValueError(f"{type(self.reward).__name__} gives no spread, but there is a limit on it")
            wide = inner.valid & (inner.std.double() > self.spread_limit)
            steps, observations = steps | wide, observations | pad(wide, (1, 0))
        return steps, observations


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
    console: Console | None = None,
) -> tuple[Calibrated, CalibrationReport]:
    """Fit a calibration on the episodes of a split, and say what it is worth on episodes it was not fitted on.

    Use a split the model was not trained on. The calibration is dense: it is of every observation with a known success
    label, the recorded one or the episode's outcome, as in ``guerdon evaluate``. The figures of the report are
    cross-validated: every episode is mapped by a curve (and abstained on by a limit) fitted on others, and episodes
    that share an initial state or a group are never on both sides. The model that is returned is fitted on all.

    Args:
        reward: On its device, in evaluation mode; it must estimate success.
        dataset: Labelled episodes.
        split: Which of them; empty for all. Where none is recorded, ``"train"`` and ``"val"`` are those `EpisodeData`
            makes by default.
        method: ``"temperature"``, ``"platt"`` or ``"isotonic"``.
        progress: Also map progress, by isotonic regression on its labels.
        abstain: Share of the observations, those in most doubt, on which the model says that it does not know.
        by: Doubt is the ``"spread"`` or the lack of ``"confidence"``; None takes the spread of a model that gives one.
        batch_size: Episodes at once.
        cache: Folder for features of a frozen encoder.
        seed: Of the folds and the bootstrap.
        console: Where the progress bar goes; None shows none.

    Returns:
        The model in the mode of the one given, and the report.

    Raises:
        ValueError: If there is no such split, the model estimates no success (or gives a number where it is none), no
            label is known, or all episodes have one outcome.
    """
    if batch_size < 1:
        raise ValueError(f"expected at least one episode at once, got {batch_size}")
    bad: dict[int, BadEpisodeError] = {}
    data = collect(reward, dataset, split, batch_size, cache, bad, console)
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
    """As `calibrate`, on what the model has said already.

    Args:
        reward: The model that said it.
        data: What it said, and what was true.
        method: Of the map of success.
        progress: Also map progress.
        abstain: Share of the observations to abstain on.
        by: What doubt is.
        seed: Of the folds and the bootstrap.
        name: Of the data set; shown as it is.
        split: Shown as it is.
        bad: Episodes that could not be used.

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
            f"{left_out} of {len(data.label)} observations could not be judged by cross-validation: too few families "
            "with each outcome"
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
    judged = ~np.isnan(crossed.probability)
    columns = (crossed.probability, crossed.progress if progress else None)
    return Abstention(
        by=by,
        share=share,
        limit=limit,
        coverage=float(crossed.kept[judged].mean()) if judged.any() else math.nan,
        kept=quality(data, *columns, judged & crossed.kept, seed),
        everything=quality(data, *columns, judged, seed),
    )


def _counts(data: CalibrationData, bad: int, split: str) -> dict[str, int]:
    """Refuse what cannot be calibrated on.

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


def _without(column: Labelled, unsure: Bool[Tensor, "B Tp1"]) -> Labelled:
    valid = column.valid & ~unsure
    return Labelled(values=torch.where(valid, column.values, 0.0), valid=valid)


__all__ = ["Calibrated", "calibrate", "calibrate_on", "collect"]
