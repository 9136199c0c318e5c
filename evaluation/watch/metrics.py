"""What a watch keeps of an episode, and the figures it makes of many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.batch import RewardEstimates, TrajectoryBatch
from ...core.intervals import wilson_interval
from ...core.metrics import kendall_tau, success_auroc

Score = Literal["success", "progress", "return"]
"""What a reward's claim is read off: its success probability, its progress, or what it has paid so far."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One finished episode of the policy, as the reward sees it and as it was."""

    name: str
    """``rollout-rank-row``."""
    learned: float
    """Sum of the learned reward over the steps where it is known; NaN where it is known nowhere."""
    score: float
    """Largest or last score (`score_track`); NaN where the reward abstains."""
    success: float
    """1 or 0 as the environment or a person says, NaN where nobody does."""
    recorded: float
    """Sum of the environment's reward, NaN where it is unknown."""
    drawn: str = ""
    """``"random"`` or ``"doubtful"`` where a person was asked, and the outcome is a person's to say."""

    def claimed(self, threshold: float | int) -> bool:
        """Whether the reward says that this is a success; an abstention says nothing."""
        return self.score >= threshold


def score_kind(estimates: RewardEstimates) -> Score:
    """The score a reward offers: success where it estimates that, else progress, else what it has paid so far."""
    if estimates.success is not None:
        return "success"
    return "progress" if estimates.progress is not None else "return"


def score_track(
    estimates: RewardEstimates, batch: TrajectoryBatch, kind: Score
) -> tuple[Float[Tensor, "B Tp1"], Bool[Tensor, "B Tp1"]]:
    """A score per observation, and where there is one.

    For ``"return"`` it is the reward paid until then, unknown steps counting as nothing; at the first observation it is
    0, and a row whose reward is known at no step has none.

    Raises:
        ValueError: If the reward does not estimate what the score should be read off.
    """
    if kind == "return":
        known = estimates.valid & batch.mask.to(estimates.valid.device)
        paid = torch.where(known, estimates.rewards, 0.0).float().cumsum(1)
        track = torch.nn.functional.pad(paid, (1, 0))
        index = torch.arange(track.shape[1], device=track.device)
        return track, (index[None] <= batch.steps.to(index.device)[:, None]) & known.any(1, keepdim=True)
    found = estimates.success if kind == "success" else estimates.progress
    if found is None:
        raise ValueError(
            f"the reward estimates no {kind}: choose another score, {score_kind(estimates)!r} for this one"
        )
    index = torch.arange(found.valid.shape[1], device=found.valid.device)
    valid = found.valid & (index[None] <= batch.steps.to(index.device)[:, None])
    return torch.where(valid, found.values.float(), 0.0), valid


def best_and_last(
    track: Float[Tensor, "B Tp1"], valid: Bool[Tensor, "B Tp1"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Largest and last known score of every row; NaN where there is none."""
    some = valid.any(1)
    best = torch.where(valid, track, -torch.inf).max(1).values
    place = torch.where(valid, torch.arange(track.shape[1], device=track.device), -1).max(1).values
    last = track.gather(1, place.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(some, best, torch.nan), torch.where(some, last, torch.nan)


def compare(records: Sequence[EpisodeRecord], threshold: float | int, level: float | int = 0.95) -> dict[str, float]:
    """Figures of the learned reward against what happened.

    Args:
        records: Finished episodes. Those a person was asked about because they were doubtful are left out: they are no
            sample of what the policy does.
        threshold: Score from which on the reward claims a success.
        level: Of the intervals.

    Returns:
        ``episodes``, ``outcome_known`` and ``reward_unknown`` (the reward abstains) are counts. Of the episodes where
        both are known: ``failures``, ``false_positive_rate`` (claimed failures / failures) with ``_low`` and ``_high``,
        ``successes``, ``false_negative_rate`` likewise. ``auroc`` and ``tau`` (Kendall's τ-b) hold the learned return
        against the outcome, ``tau_recorded`` against the environment's return. NaN where undefined.
    """
    sample = [r for r in records if r.drawn != "doubtful"]
    outcome = [r for r in sample if not math.isnan(r.success)]
    both = [r for r in outcome if not math.isnan(r.score)]
    failures = [r.claimed(threshold) for r in both if r.success == 0]
    successes = [not r.claimed(threshold) for r in both if r.success == 1]
    figures = {
        "episodes": float(len(sample)),
        "outcome_known": float(len(outcome)),
        "reward_unknown": float(sum(math.isnan(r.score) for r in sample)),
        "failures": float(len(failures)),
        "successes": float(len(successes)),
    }
    for name, wrong in (("false_positive_rate", failures), ("false_negative_rate", successes)):
        figures[name] = sum(wrong) / len(wrong) if wrong else math.nan
        figures[f"{name}_low"], figures[f"{name}_high"] = wilson_interval(sum(wrong), len(wrong), level)
    learned = [r.learned for r in sample]
    happened = [r.success for r in sample]
    figures["auroc"] = success_auroc(learned, happened)
    figures["tau"] = kendall_tau(learned, happened)
    figures["tau_recorded"] = kendall_tau(learned, [r.recorded for r in sample])
    return figures
