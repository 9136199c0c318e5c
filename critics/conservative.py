"""Penalty that keeps Q of unseen actions low, but not below the return of the log."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import Component, Proposer
from .chunks import ChunkCritic, Points
from .monte_carlo import returns_to_go
from .observations import Scale

Reduce = Literal["mean", "logsumexp"]


class CalibratedFloor(Component):
    """Penalty of Cal-QL (arXiv 2303.05479, Eq. 5.1): α · (E_{a ~ π} max(Q(s, a), V_mc(s)) − E_D Q(s, a)).

    Besides samples of the current policy the expectation takes uniform samples from the range of the data's actions, as
    the published code does. The floor holds for the policy's samples only: what is calibrated is the value of the
    policy, and a uniform sample may be as bad as it likes. The floor V_mc is the discounted return of the log from the
    step on. Where it is unknown (the row is cut, or a later
    reward is unknown) a step gets no penalty, so that little of it is left on fragments. ConRFT (arXiv 2502.05450) uses
    α = 0.1 and a log-sum-exp over its samples; it also clips the gap, which is not done here.

    Args:
        alpha: Weight α of the penalty, above 0.
        proposals: Number of chunks of the current policy at each step.
        uniform: Number of uniform samples from the range of the data's actions at each step.
        reduce: Reduction over the other chunks: ``"mean"``, or ``"logsumexp"`` (log of the mean of exponentials, a soft
            maximum).
        seed: Random seed of the uniform samples; each call draws others, the same ones after a resumption.

    Raises:
        ValueError: If an argument makes no sense.
    """

    draws: Tensor
    """Number of calls that drew samples."""

    def __init__(
        self, alpha: float = 0.1, proposals: int = 4, uniform: int = 4, reduce: Reduce = "mean", seed: int = 0
    ) -> None:
        super().__init__()
        if not alpha > 0 or min(proposals, uniform) < 0 or not proposals + uniform or reduce not in get_args(Reduce):
            raise ValueError(
                f"alpha {alpha}, proposals {proposals}, uniform {uniform}, reduce {reduce!r}: expected alpha above 0, "
                "at least one chunk, and mean or logsumexp"
            )
        self.alpha, self.proposals, self.uniform = alpha, proposals, uniform
        self.reduce: Reduce = reduce
        self.seed = seed
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

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
                value = network(observation, chunk, mask[:, : chunk.shape[1]].to(chunk.device))
                found.append(torch.maximum(value, floor))
        for chunk in self._uniform_chunks(mask, network.action_scale):
            found.append(network(observation, chunk, mask))
        others = torch.stack(found)
        soft = others.mean(0) if self.reduce == "mean" else others.logsumexp(0) - torch.tensor(float(len(found))).log()
        weight = points.weight[chosen].to(members.device)
        gap = (soft - members[:, chosen.to(members.device)]).mean(0)
        return {"penalty": self.alpha * (gap * weight).sum() / weight.sum()}

    def _uniform_chunks(self, mask: Bool[Tensor, "M h"], scale: Scale) -> list[Float[Tensor, "M h A"]]:
        """Draw chunks from the range of the data's actions, on the host so that every device gets the same."""
        if not self.uniform:
            return []
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.draws))
        self.draws += 1
        drawn = torch.rand(self.uniform, *mask.shape, len(scale.low), generator=generator).to(scale.low.device)
        return list(scale.low + drawn * (scale.high - scale.low))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load; earlier versions counted no draws."""
        state_dict.setdefault(f"{prefix}draws", torch.zeros((), dtype=torch.long))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


__all__ = ["CalibratedFloor"]
