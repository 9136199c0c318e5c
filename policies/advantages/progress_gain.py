"""Progress gained by logged chunks, from a progress model: the basis of reward-aligned behaviour cloning."""

import torch

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Proposer, RewardModel
from .reward_to_go import at_decisions


class ProgressGain(AdvantageSource):
    """Gain Δ = progress(s_{t+n}) − progress(s_t) at decisions (SARM, arXiv:2509.25358), for `RewardAligned` weights.

    A window that would pass the last observation is moved back until it ends there. So the last chunk of a success gets
    the gain at the end of the episode, instead of almost none. The gain of a row shorter than a window is scaled to the
    window's length. If the progress at either end is unknown, so is the gain, and it gets no weight.

    Args:
        reward: Reward model that estimates progress; it is frozen and kept in evaluation mode.
        steps: Number n of steps in a chunk.

    Raises:
        ValueError: If n is below 1.
    """

    def __init__(self, reward: RewardModel, steps: int) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps {steps}: expected at least one")
        self.reward, self.steps = reward.requires_grad_(False).eval(), steps

    @torch.no_grad()
    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards and progress of the batch."""
        return self.reward(batch)

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute gains at decisions, as advantages and as returns, with progress as the value.

        Raises:
            ValueError: If the reward model estimates no progress.
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
