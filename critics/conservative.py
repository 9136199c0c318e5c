"""Penalty that keeps Q of unseen actions low, but not below the return of the log."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import Component, Proposer
from .chunks import ChunkCritic, Points
from .monte_carlo import returns_to_go

Reduce = Literal["mean", "logsumexp"]


class CalibratedFloor(Component):
    """Penalty of Cal-QL (arXiv 2303.05479): α · (E_{a ~ other} max(Q(s, a), V_mc(s)) − E_D Q(s, a)).

    The other chunks are samples of the current policy, and uniform samples from the range of the data's actions. The
    floor V_mc is the discounted return of the log from the step on. Where it is unknown (the row is cut, or a later
    reward is unknown) a step gets no penalty, so that little of it is left on fragments. ConRFT (arXiv 2502.05450) uses
    α = 0.1 and a log-sum-exp over its samples; it also clips the gap, which is not done here.

    Args:
        alpha: Weight α of the penalty, above 0.
        proposals: Number of chunks of the current policy at each step.
        uniform: Number of uniform samples from the range of the data's actions at each step.
        reduce: Reduction over the other chunks: ``"mean"``, or ``"logsumexp"`` (log of the mean of exponentials, a soft
            maximum).

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(self, alpha: float = 0.1, proposals: int = 4, uniform: int = 4, reduce: Reduce = "mean") -> None:
        super().__init__()
        if not alpha > 0 or min(proposals, uniform) < 0 or not proposals + uniform or reduce not in get_args(Reduce):
            raise ValueError(
                f"alpha {alpha}, proposals {proposals}, uniform {uniform}, reduce {reduce!r}: expected alpha above 0, "
                "at least one chunk, and mean or logsumexp"
            )
        self.alpha, self.proposals, self.uniform = alpha, proposals, uniform
        self.reduce: Reduce = reduce

    def forward(
        self,
        critic: ChunkCritic,
        batch: TrajectoryBatch,
        rewards: RewardEstimates,
        points: Points,
        members: Float[Tensor, "K M"],
        proposer: Proposer | None,
    ) -> dict[str, Tensor]:
        """Compute the penalty, weighted like the squared error, under ``"penalty"``; empty if no return is known.

        Args:
            critic: Critic that is trained.
            batch: Trajectories.
            rewards: Rewards of their steps.
            points: Steps that are learned from.
            members: Q of each member for the logged chunks at the points, with gradients.
            proposer: Source of the current policy's chunks.

        Raises:
            ValueError: If the range of the actions was not taken from data, or there is no proposer.
        """
        returns, known = returns_to_go(batch, rewards, critic.gamma)
        chosen = known[points.rows, points.steps]
        if not bool(chosen.any()):
            return {}
        network = critic.network
        if self.uniform and not bool(network.fitted):
            raise ValueError("the range of the data's actions is unknown: call fit_scales(batch) of the critic first")
        rows, steps = points.rows[chosen], points.steps[chosen]
        # shown as many steps as the logged chunk: lengths must not distinguish logged chunks from others
        _, mask = critic.logged_input(batch, rows, steps, points.lengths)
        observation, floor = batch.observe(rows, steps), returns[rows, steps].to(members.device)
        found: list[Tensor] = []
        if self.proposals:
            for chunk in critic.proposals(batch, rows, steps, self.proposals, proposer):
                found.append(network(observation, chunk, mask[:, : chunk.shape[1]].to(chunk.device)))
        scale = network.action_scale
        for _ in range(self.uniform):
            drawn = torch.rand(*mask.shape, len(scale.low), device=scale.low.device)
            found.append(network(observation, scale.low + drawn * (scale.high - scale.low), mask))
        others = torch.maximum(torch.stack(found), floor)
        soft = others.mean(0) if self.reduce == "mean" else others.logsumexp(0) - torch.tensor(float(len(found))).log()
        weight = points.weight[chosen].to(members.device)
        gap = (soft - members[:, chosen.to(members.device)]).mean(0)
        return {"penalty": self.alpha * (gap * weight).sum() / weight.sum()}


__all__ = ["CalibratedFloor"]
