"""Metrics of a learned reward against the outcomes of episodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.batch import RewardEstimates, TrajectoryBatch
from ...core.intervals import wilson_estimate
from ...core.metrics import kendall_tau, success_auroc

Score = Literal["success", "progress", "return"]
"""Prediction that serves as the score of an observation: success probability, progress, or sum of rewards so far."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One finished episode of the policy: what the reward model predicted, and what happened."""

    name: str
    """``rollout-rank-row``."""
    learned: float
    """Sum of the learned reward over the steps where it is known; NaN where it is known at none."""
    score: float
    """Score of the episode (`SuccessClaim`); NaN where the reward model abstains."""
    success: float
    """Outcome, 1 or 0; NaN where it is unknown."""
    recorded: float
    """Sum of the environment's reward; NaN where it is unknown."""
    drawn: str = ""
    """``"random"`` or ``"doubtful"`` where a person was asked for the outcome, else empty."""

    def claimed(self, threshold: float | int) -> bool:
        """Return whether the reward model claims a success; it claims none where it abstains.

        Args:
            threshold: Smallest score that claims a success.
        """
        return self.score >= threshold


def score_kind(estimates: RewardEstimates) -> Score:
    """Return the score a reward model offers: success where it estimates that, else progress, else the return so far.

    Args:
        estimates: Predictions of the reward model.
    """
    if estimates.success is not None:
        return "success"
    return "progress" if estimates.progress is not None else "return"


def score_track(
    estimates: RewardEstimates, batch: TrajectoryBatch, kind: Score
) -> tuple[Float[Tensor, "B Tp1"], Bool[Tensor, "B Tp1"]]:
    """Return the score of every observation, and where there is one.

    For ``"return"`` it is the sum of the rewards until then, where an unknown reward counts as 0. It is 0 at the first
    observation, and a row whose reward is known at no step has no score.

    Args:
        estimates: Predictions of the reward model on the batch.
        batch: Trajectories.
        kind: Prediction that serves as the score.

    Returns:
        Scores (B, T+1) and their validity (B, T+1).

    Raises:
        ValueError: If the reward model does not make that prediction.
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
    """Return the largest and the last known score of every row.

    Args:
        track: Scores (B, T+1).
        valid: Observations that have a score (B, T+1).

    Returns:
        Largest and last score, (B,) each; NaN where a row has none.
    """
    some = valid.any(1)
    best = torch.where(valid, track, -torch.inf).max(1).values
    place = torch.where(valid, torch.arange(track.shape[1], device=track.device), -1).max(1).values
    last = track.gather(1, place.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(some, best, torch.nan), torch.where(some, last, torch.nan)


def compare(records: Sequence[EpisodeRecord], threshold: float | int, level: float | int = 0.95) -> dict[str, float]:
    """Compute the metrics of the learned reward against the outcomes.

    Args:
        records: Finished episodes. Those drawn because they were doubtful are left out: they are no sample of what the
            policy does.
        threshold: Smallest score that claims a success.
        level: Confidence level of the intervals, in (0, 1).

    Returns:
        The counts ``episodes``, ``outcome_known`` and ``reward_unknown`` (the reward model abstains). Of the episodes
        with an outcome and a score: ``failures``, ``false_positive_rate`` (claimed failures / failures) with its Wilson
        interval ``_low`` to ``_high``, ``successes``, and ``false_negative_rate`` (unclaimed successes / successes)
        likewise. ``auroc`` and ``tau`` (Kendall's τ-b) compare the learned return with the outcome, ``tau_recorded``
        compares it with the environment's return. A metric that is undefined is NaN.
    """
    sample = [r for r in records if r.drawn != "doubtful"]
    outcome = [r for r in sample if not math.isnan(r.success)]
    both = [r for r in outcome if not math.isnan(r.score)]
    failures = [r.claimed(threshold) for r in both if r.success == 0]
    successes = [not r.claimed(threshold) for r in both if r.success == 1]
    metrics = {
        "episodes": float(len(sample)),
        "outcome_known": float(len(outcome)),
        "reward_unknown": float(sum(math.isnan(r.score) for r in sample)),
        "failures": float(len(failures)),
        "successes": float(len(successes)),
    }
    for name, wrong in (("false_positive_rate", failures), ("false_negative_rate", successes)):
        rate = wilson_estimate(sum(wrong), len(wrong), level)
        metrics |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    learned = [r.learned for r in sample]
    happened = [r.success for r in sample]
    metrics["auroc"] = success_auroc(learned, happened)
    metrics["tau"] = kendall_tau(learned, happened)
    metrics["tau_recorded"] = kendall_tau(learned, [r.recorded for r in sample])
    return metrics
