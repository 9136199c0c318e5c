"""Advantages of logged chunks over the policy: Q − V of a trained critic, at decisions."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Critic, Proposer, RewardModel
from .reward_to_go import at_decisions


class CriticAdvantage(AdvantageSource):
    """Base of the advantages from a trained critic; a subclass writes ``forward``.

    Critic and reward are frozen and kept in evaluation mode: nothing is trained with the policy. A critic that is
    trained again afterwards in the same program needs ``requires_grad_(True)``.

    Args:
        critic: Critic that was trained before.
        reward: Reward model whose rewards are logged, and used if the advantage is made of them; None gives 0.
        force_positive: Numbers of sources whose advantages are never below the smallest positive number. RECAP
            (arXiv 2511.14759) takes the corrections of a person as good whatever the value function estimates. Their
            exponential weight is then at least 1, and a filter for positive advantages keeps them; a quantile may still
            leave them out.
    """

    def __init__(self, critic: Critic, reward: RewardModel | None, force_positive: Sequence[int]) -> None:
        super().__init__()
        self.critic = critic.requires_grad_(False).eval()
        self.reward = None if reward is None else reward.requires_grad_(False).eval()
        self.force_positive = tuple(int(source) for source in force_positive)

    def train(self, mode: bool = True) -> "CriticAdvantage":
        """Set the mode; critic and reward stay in evaluation mode: they were trained before."""
        super().train(mode)
        self.critic.eval()
        return self

    @torch.no_grad()
    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards of the batch; without a reward model every step gets 0 and is valid."""
        if self.reward is not None:
            return self.reward(batch)
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask)

    def finished(
        self,
        batch: TrajectoryBatch,
        advantages: Float[Tensor, "B N"],
        returns: Float[Tensor, "B N"],
        values: Float[Tensor, "B Np1"],
        known: Bool[Tensor, "B N"],
    ) -> Advantages:
        """Mask context-only and unknown decisions, and raise the advantages of the forced sources.

        Args:
            batch: Trajectories.
            advantages: Advantage of each decision.
            returns: Return of each decision.
            values: V at each decision, and after the last one.
            known: Decisions whose advantage is known.

        Raises:
            FloatingPointError: If a known advantage is not finite.
        """
        step = batch.decision_step.clamp(0, max(batch.weight.shape[1] - 1, 0))
        valid = known & batch.decision_mask & (batch.weight.gather(1, step) > 0)
        wrong = valid & ~advantages.isfinite()
        if bool(wrong.any()):
            row, decision = (int(i) for i in wrong.nonzero()[0])
            raise FloatingPointError(
                f"{type(self.critic).__name__} gave episode {int(batch.episode[row])} the advantage "
                f"{float(advantages[row, decision])} at step {int(batch.decision_step[row, decision])}: look for a "
                "critic that diverged, or for extreme states"
            )
        forced = torch.isin(batch.source, batch.source.new_tensor(self.force_positive))[:, None]
        lifted = torch.where(forced, advantages.clamp(min=torch.finfo(advantages.dtype).tiny), advantages)
        return Advantages(
            advantages=lifted.masked_fill(~valid, 0.0),
            returns=returns.masked_fill(~valid, 0.0),
            valid=valid,
            values=values,
        )


class ActionAdvantage(CriticAdvantage):
    """Advantage A = Q(s, a) − V(s) of logged chunks (ALOE, arXiv 2602.12691, Eq. 10), with V of the current policy.

    It works with any critic that values actions: ALOE's samples chunks from the proposer, IQL's has a V of its own.
    `PolicyOptimizer` proposes with the policy it trains, as it is at the beginning of each batch.

    Args:
        critic: Trained critic that estimates Q.
        reward: Reward model whose rewards are logged; None logs 0.
        force_positive: Numbers of sources whose advantages are never below the smallest positive number.
    """

    def __init__(self, critic: Critic, reward: RewardModel | None = None, force_positive: Sequence[int] = ()) -> None:
        super().__init__(critic=critic, reward=reward, force_positive=force_positive)

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute Q − V at decisions, with Q as the return; context-only decisions (weight 0) are not valid.

        Raises:
            ValueError: If the critic values no actions, or needs a proposer and there is none.
            FloatingPointError: If an advantage is not finite.
        """
        valued = self.critic(batch, proposer)
        if valued.q is None:
            raise ValueError(
                f"{type(self.critic).__name__} values observations only, and an action's advantage needs Q: take a "
                "critic of actions, or guerdon.StepAdvantage for this one"
            )
        last = max(batch.mask.shape[1] - 1, 0)
        q = valued.q.gather(1, batch.decision_step.clamp(0, last))
        values = at_decisions(batch, valued.v)
        return self.finished(batch, q - values[:, :-1], q, values, batch.decision_mask)


__all__ = ["ActionAdvantage", "CriticAdvantage"]
