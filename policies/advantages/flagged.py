"""Flags of decisions as an advantage source: +1 desirable, −1 undesirable, unlabelled ones left out."""

import math

import torch

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Proposer
from ...preference.flags import Flag, decision_flags


class FlaggedDecisions(AdvantageSource):
    """Flags of logged decisions from take-overs and success, for `guerdon.UnpairedPreference`.

    A decision is desirable in a success and where a person acted, undesirable in the last seconds before a failure or a
    take-over, and else unlabelled; see `guerdon.preference.flags`. The sign of the advantage is the flag.

    Args:
        seconds: Length of the window before a failure or a take-over, above 0.
        rate: Control steps per second, above 0.
        human: Name of the track that shows who acted; None takes rows that begin where a take-over ended another.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, rate: float | int, seconds: float | int = 2.0, human: str | None = None) -> None:
        super().__init__()
        if not (0 < seconds < math.inf and 0 < rate < math.inf):
            raise ValueError(f"seconds {seconds}, rate {rate}: expected positive numbers")
        self.seconds, self.rate, self.human = seconds, rate, human

    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Return rewards of 0, all of them unknown: flags are no rewards."""
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=torch.zeros_like(batch.mask))

    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute the flags at decisions, as advantages and as returns."""
        flags = decision_flags(batch, self.seconds, self.rate, self.human)
        counted = batch.weight.gather(1, batch.decision_step.clamp(min=0)) > 0
        valid = (flags != Flag.UNLABELLED) & batch.decision_mask & counted
        signs = torch.where(valid, flags.to(batch.weight), 0.0)
        return Advantages(advantages=signs, returns=signs, valid=valid)


__all__ = ["FlaggedDecisions"]
