"""N-step advantages for critics that value observations only."""

from collections.abc import Sequence

import torch

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import Critic, Proposer, RewardModel
from ...core.returns import chunk_td_targets
from .action_advantage import CriticAdvantage
from .reward_to_go import at_decisions


class StepAdvantage(CriticAdvantage):
    """N-step advantage A_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t), n ≤ N (RECAP, arXiv 2511.14759).

    Here n is N, or the number of steps that are left. Nothing is bootstrapped at a termination. A window that would end
    at an observation that was never made ends one step earlier. The advantage is unknown if a reward of the window is,
    or if no step is left. Rewards and values must have one unit: what divides returns into [−1, 0] for the critic has
    to divide the rewards too, and by division alone. A map that also shifts them (such as (x − min)/(max − min) − 1)
    shifts every window but the last ones.

    Args:
        critic: Trained critic of observations.
        reward: Reward model that it was trained on.
        steps: Largest number N of steps in a window.
        gamma: Discount factor per step, in [0, 1]; None takes the critic's own, or 1 if it has none.
        force_positive: Numbers of sources whose advantages are never below the smallest positive number; see
            `CriticAdvantage`.

    Raises:
        ValueError: If N or γ makes no sense.
    """

    def __init__(
        self,
        critic: Critic,
        reward: RewardModel,
        steps: int = 50,
        gamma: float | None = None,
        force_positive: Sequence[int] = (),
    ) -> None:
        super().__init__(critic=critic, reward=reward, force_positive=force_positive)
        self.gamma = float(getattr(critic, "gamma", 1.0)) if gamma is None else gamma
        if steps < 1 or not 0 <= self.gamma <= 1:
            raise ValueError(f"steps {steps}, gamma {self.gamma}: expected at least one step, and a discount in [0, 1]")
        self.steps = steps

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute N-step advantages and N-step returns at decisions, and V.

        Raises:
            ValueError: If a known reward is not finite.
            FloatingPointError: If an advantage is not finite.
        """
        value = self.critic(batch, proposer).v
        index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        unseen = (~batch.last_observed & ~batch.terminated).long()
        length = ((batch.steps - unseen)[:, None] - index).clamp(0, self.steps)
        length = length.masked_fill(~batch.mask, 0)
        unknown = ~(rewards.valid & batch.mask)
        so_far = torch.nn.functional.pad(unknown.long().cumsum(1), (1, 0))
        known = (length > 0) & (so_far.gather(1, index + length) == so_far[:, :-1])
        gained = torch.where(rewards.valid & batch.mask, rewards.rewards, 0.0)
        target = chunk_td_targets(
            gained, value.to(gained), batch.mask, batch.terminated, length.clamp(min=1), self.gamma
        )
        step = batch.decision_step.clamp(0, max(batch.mask.shape[1] - 1, 0))
        returns, values = target.gather(1, step), at_decisions(batch, value)
        return self.finished(batch, returns - values[:, :-1], returns, values, known.gather(1, step))


__all__ = ["StepAdvantage"]
