"""Generalised advantage estimation on the policy's decisions, and uniform advantages for cloning."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Proposer, RewardModel
from ...core.returns import gae, macro_rewards, standardise
from ...critics.value import ValueCritic


def at_decisions(batch: TrajectoryBatch, per_observation: Float[Tensor, "B Tp1"]) -> Float[Tensor, "B Np1"]:
    """Gather values at the decision observations and at the observation after the last step; 0 behind it.

    Args:
        batch: Trajectories.
        per_observation: A value per observation.
    """
    mask = batch.decision_mask
    count = mask.sum(1, keepdim=True)
    steps = torch.cat([batch.decision_step, batch.decision_step.new_zeros(len(mask), 1)], 1)
    index = torch.arange(steps.shape[1], device=steps.device)[None]
    steps = torch.where(index < count, steps, batch.steps[:, None])
    return per_observation.gather(1, steps).masked_fill(index > count, 0.0)


class RewardToGo(AdvantageSource):
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, Eq. 16) over decisions, on any reward.

    Rewards are summed from one decision to the next, then discounted once per decision. A decision with an unknown
    reward gets a TD error of 0 and is not trained on; later rewards still reach earlier decisions. The same holds for a
    decision that leads to an observation that was never made, unless the row terminated there.

    Args:
        reward: Reward model; it is frozen and kept in evaluation mode. One that is not causal is used on whole episodes
            only.
        critic: State values, trained with the policy.
        potential: Reward model whose progress Φ shapes the reward: γΦ(s′) − Φ(s) is added at decision observations,
            with Φ = 0 after termination (Ng et al. 1999). The optimal policy stays the same. None adds nothing.
        gamma: Discount factor per decision, in [0, 1].
        lam: Parameter λ of GAE, in [0, 1].
        normalise: Standardise the advantages over the decisions of the rollout.
        value_weight: Weight of the critic's loss.
    """

    def __init__(
        self,
        reward: RewardModel,
        critic: ValueCritic,
        potential: RewardModel | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
        normalise: bool = True,
        value_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.reward, self.critic, self.potential = reward.requires_grad_(False).eval(), critic, potential
        if potential is not None:
            potential.requires_grad_(False).eval()
        self.gamma, self.lam, self.normalise, self.value_weight = gamma, lam, normalise, value_weight

    @torch.no_grad()
    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards of the rollout.

        Raises:
            ValueError: If the reward is not causal and a row is a piece of an unfinished episode.
            FloatingPointError: If a reward that counts as known is not finite.
        """
        unfinished = batch.offset + batch.steps < batch.length
        cut = (batch.end == 0) & (batch.steps > 0)
        if not self.reward.causal and bool((unfinished | cut).any()):
            raise ValueError(
                f"{type(self.reward).__name__} is not causal: it can score finished episodes only, and this rollout "
                "holds pieces that were cut; collect whole episodes or use a causal reward"
            )
        rewards = self.reward(batch)
        broken = rewards.valid & batch.mask & ~rewards.rewards.isfinite()
        if bool(broken.any()):
            row, step = (int(i) for i in broken.nonzero()[0])
            raise FloatingPointError(
                f"{type(self.reward).__name__} gave {float(rewards.rewards[row, step])} as a known reward (row {row}, "
                f"step {step}; {int(broken.sum())} in all): look for extreme states or frames, or a model that diverged"
            )
        return rewards

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute advantages and value targets (B, N); context-only decisions and unknown rewards are not valid.

        Raises:
            ValueError: If the potential estimates no progress.
        """
        mask = batch.decision_mask
        step = batch.decision_step.clamp(min=0)
        gained = rewards.rewards.masked_fill(~rewards.valid, 0.0)
        macro = macro_rewards(gained, batch.decision_step, batch.mask)
        unknown = macro_rewards((~rewards.valid & batch.mask).float(), batch.decision_step, batch.mask) > 0
        values = at_decisions(batch, self.critic(batch).v)
        last = torch.arange(mask.shape[1], device=mask.device)[None] == (mask.sum(1) - 1)[:, None]
        over = last & batch.terminated[:, None]
        unknown = unknown | (last & ~over & ~batch.last_observed[:, None])
        if self.potential is not None:
            scored = self.potential(batch).progress
            if scored is None:
                raise ValueError(f"{type(self.potential).__name__} gives no progress: it cannot be a potential")
            phi = at_decisions(batch, scored.values.masked_fill(~scored.valid, 0.0))
            known = at_decisions(batch, scored.valid.float()) > 0
            macro = macro + self.gamma * phi[:, 1:].masked_fill(over, 0.0) - phi[:, :-1]
            unknown = unknown | ~known[:, :-1] | (~known[:, 1:] & ~over)
        surprise_free = values[:, :-1] - self.gamma * values[:, 1:].masked_fill(over, 0.0)
        macro = torch.where(unknown, surprise_free, macro)
        estimate = gae(macro, values, mask, batch.terminated, self.gamma, self.lam)
        weight = batch.weight.gather(1, step.clamp(max=max(batch.weight.shape[1] - 1, 0)))
        valid = mask & ~unknown & (weight > 0)
        advantages = standardise(estimate.advantages, valid) if self.normalise else estimate.advantages
        return Advantages(
            advantages=advantages.masked_fill(~valid, 0.0), returns=estimate.returns, valid=valid, values=values
        )

    def loss(
        self, batch: TrajectoryBatch, advantages: Advantages, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
    ) -> dict[str, Tensor]:
        """Compute the mean squared error of the critic at the decisions, times ``value_weight``."""
        observation, decisions = self.taken(batch, rows, steps)
        error = (self.critic.value(observation) - advantages.returns[rows, decisions]).square().mean()
        return {"loss": self.value_weight * error, "value_error": error.detach()}


class Uniform(AdvantageSource):
    """Equal advantages of all logged decisions: with an imitation objective this is behaviour cloning."""

    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Return 0 for every step: no reward is needed."""
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask)

    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Return the advantage 1 on every decision that is not context only."""
        step = batch.decision_step.clamp(min=0)
        valid = batch.decision_mask & (batch.weight.gather(1, step) > 0)
        return Advantages(advantages=valid.float(), returns=valid.float(), valid=valid)
