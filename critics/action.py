"""The ALOE critic: action-level off-policy evaluation of the current policy by chunked temporal differences."""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Proposer
from .chunks import Aggregate, ChunkCritic, Points, Tails, aggregate
from .conservative import CalibratedFloor
from .networks import ChunkNetwork

TargetAggregate = Literal["min", "mean", "lcb", "independent"]


class ActionCritic(ChunkCritic):
    """Q(s, a_{t:t+n}) of the current policy, learned from anybody's trajectories (ALOE, arXiv 2602.12691, Eq. 7–10).

    y = Σ_{k<n} γ^k r_{t+k} + γ^n · E_{a′ ~ π(·|s_{t+n})} AGG_i Q̄_i(s_{t+n}, a′): the next chunk is drawn from the
    current policy through a proposer, which makes this an evaluation of that policy whoever acted, and target networks
    Q̄ follow by Polyak averaging. V is the mean over sampled chunks of the pessimistic Q. The paper leaves open how
    members are reduced inside the target, how many chunks are drawn, and β; each is an argument here or of what turns
    advantages into weights.

    Args:
        network: Q of K members; the paper's is `ChunkTransformer` with K = 2.
        gamma: Discount per control step. Its horizon 1/(1 − γ) should be about the length of an episode: with 0.99 a
            failure 1,000 steps ahead is not felt.
        target_agg: Reduction inside the target: the smallest member, their mean, the mean minus ``lcb`` deviations, or
            each member's own value (independent targets).
        pessimism: Reduction of members everywhere else.
        lcb: Deviations below the mean, where a bound is asked for.
        target_samples: Chunks drawn at each next observation; the mean is taken over their reduced values.
        value_samples: Chunks drawn for V.
        polyak_rate: Of the target network, per update.
        source_weights: Weight of the steps of each source (demonstrations, past policies, people), by its number as
            text; others count 1.
        across_replans: See `ChunkCritic`.
        micro_batch: See `ChunkCritic`.
        tails: See `ChunkCritic`.
        penalty: Keeps Q of chunks that nobody carried out from growing (Cal-QL); ALOE has none.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        network: ChunkNetwork,
        gamma: float = 0.99,
        target_agg: TargetAggregate = "min",
        pessimism: Aggregate = "min",
        lcb: float = 1.0,
        target_samples: int = 1,
        value_samples: int = 4,
        polyak_rate: float = 0.005,
        source_weights: Mapping[str, float] | None = None,
        across_replans: bool = False,
        micro_batch: int = 4096,
        tails: Tails = "complete",
        penalty: CalibratedFloor | None = None,
    ) -> None:
        super().__init__(
            network, gamma, pessimism, lcb, polyak_rate, source_weights, across_replans, micro_batch, tails
        )
        if target_agg not in ("min", "mean", "lcb", "independent") or min(target_samples, value_samples) < 1:
            raise ValueError(
                f"target_agg {target_agg!r}, target_samples {target_samples}, value_samples {value_samples}: expected "
                "min, mean, lcb or independent, and at least one chunk each"
            )
        self.target_agg: TargetAggregate = target_agg
        self.target_samples, self.value_samples = target_samples, value_samples
        self.penalty = penalty

    def bootstrap(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """Mean over chunks of the current policy of the target network's reduced Q."""
        chunks = self.proposals(batch, rows, steps, self.target_samples, proposer)
        members = self.proposed_q(self.target, batch, rows, steps, chunks)
        if self.target_agg == "independent":
            return members.mean(1)
        return aggregate(members, self.target_agg, self.lcb).mean(0, keepdim=True)

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """V of every observation from 0 to L, pessimistic Q and members of the logged chunk at every real step.

        Raises:
            ValueError: If there is no proposer; use ``logged_q`` for Q alone.
        """
        return self.valued_by_proposals(batch, proposer, self.value_samples, "mean")

    def further_losses(
        self,
        batch: TrajectoryBatch,
        rewards: RewardEstimates,
        points: Points,
        members: Float[Tensor, "K M"],
        proposer: Proposer | None,
    ) -> dict[str, Tensor]:
        """The penalty, where there is one."""
        if self.penalty is None:
            return {}
        return self.penalty(self, batch, rewards, points, members, proposer)


__all__ = ["ActionCritic", "TargetAggregate"]
