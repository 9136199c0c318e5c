"""How far a logged chunk brought its task, by a progress model: what reward-aligned behaviour cloning weighs by."""

import torch

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Proposer, RewardModel
from .reward_to_go import at_decisions


class ProgressGain(AdvantageSource):
    """Δ = progress(s_{t+n}) − progress(s_t) at decisions (SARM, arXiv:2509.25358), for `RewardAligned` weights.

    A window that would run past the last observation slides back until it ends there: the last chunk of a success gains
    what the end of the episode gained, instead of next to nothing. A row shorter than a window is scaled to its length.
    Where the progress is unknown at either end, so is the gain: it gets no weight.

    Args:
        reward: A reward model that gives progress; it is frozen and kept in evaluation mode.
        steps: n, the length of a chunk.

    Raises:
        ValueError: If there is not at least one step.
    """

    def __init__(self, reward: RewardModel, steps: int) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps {steps}: expected at least one")
        self.reward, self.steps = reward.requires_grad_(False).eval(), steps

    @torch.no_grad()
    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Score the batch."""
        return self.reward(batch)

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Gains at decisions, as advantages and as returns; progress as the value.

        Raises:
            ValueError: If the reward gives no progress.
        """
        if rewards.progress is None:
            raise ValueError(f"{type(self.reward).__name__} gives no progress: a gain needs a progress model")
        step = batch.decision_step.clamp(0, max(batch.mask.shape[1] - 1, 0))
        last = (batch.steps - (~batch.last_observed).long()).clamp(min=0)[:, None]
        end = torch.minimum(step + self.steps, last)
        start = torch.minimum(step, (end - self.steps).clamp(min=0))
        seen = rewards.progress.valid & batch.made
        progress = rewards.progress.values.masked_fill(~seen, 0.0)
        change = progress.gather(1, end) - progress.gather(1, start)
        gain = change * self.steps / (end - start).clamp(min=1)
        known = (end > start) & seen.gather(1, start) & seen.gather(1, end)
        valid = batch.decision_mask & known & (batch.weight.gather(1, step) > 0)
        gain = gain.masked_fill(~valid, 0.0)
        return Advantages(advantages=gain, returns=gain, valid=valid, values=at_decisions(batch, progress))


__all__ = ["ProgressGain"]
