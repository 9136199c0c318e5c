"""ALOE's critic: off-policy evaluation of the current policy's chunks by temporal differences."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from ..core.arguments import folds
from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Proposer
from .chunks import ChunkCritic, Points
from .conservative import CalibratedFloor
from .ensembles import Aggregation, aggregate
from .logged import LoggedChunks
from .networks import ChunkNetwork

TargetAggregate = Literal["min", "mean", "lcb", "independent"]


class ActionCritic(ChunkCritic):
    """Q(s, a_{t:t+n}) of the current policy, learned from anybody's trajectories (ALOE, arXiv 2602.12691, Eq. 7–10).

    y = Σ_{k<n} γ^k r_{t+k} + γ^n · E_{a′ ~ π(·|s_{t+n})} AGG_i Q̄_i(s_{t+n}, a′). The next chunk a′ is sampled from the
    current policy through a proposer, which makes this an evaluation of that policy, whatever policy acted. Target
    networks Q̄ follow by Polyak averaging. V is the mean over sampled chunks of the pessimistic Q. The paper leaves
    open how members are reduced inside the target, how many chunks are sampled, and β. The first two are arguments
    here, and β is one of the weighting that turns advantages into weights.

    Args:
        network: Ensemble of K Q-networks; the paper's is `ChunkTransformer` with K = 2.
        gamma: Discount factor per control step, in [0, 1]. Its horizon 1/(1 − γ) should be about the length of an
            episode: with 0.99 a failure 1,000 steps ahead is not felt.
        target_agg: Reduction of the members inside the target: ``"min"``, ``"mean"``, ``"lcb"`` (with the bound of
            ``aggregation``), or ``"independent"``, which gives each member a target of its own.
        target_samples: Number of chunks sampled at each next observation; the target takes the mean of their values.
        value_samples: Number of chunks sampled for V at each observation.
        polyak_rate: Share of the network that its target takes over in each update, in (0, 1].
        micro_batch: Number of chunks that are valued at a time where no gradient is needed.
        penalty: Penalty that keeps Q of chunks from growing that were never executed (Cal-QL); None, as in ALOE.
        aggregation: Reduction of the members to one pessimistic Q outside of the target; None takes the smallest.
        logged: Rules for reading logged chunks; None takes the defaults of `LoggedChunks`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    @folds(aggregation=Aggregation, logged=LoggedChunks)
    def __init__(
        self,
        network: ChunkNetwork,
        gamma: float = 0.99,
        target_agg: TargetAggregate = "min",
        target_samples: int = 1,
        value_samples: int = 4,
        polyak_rate: float = 0.005,
        micro_batch: int = 4096,
        penalty: CalibratedFloor | None = None,
        aggregation: Aggregation | None = None,
        logged: LoggedChunks | None = None,
    ) -> None:
        super().__init__(
            network=network,
            gamma=gamma,
            polyak_rate=polyak_rate,
            micro_batch=micro_batch,
            aggregation=Aggregation() if aggregation is None else aggregation,
            logged=logged,
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
        """Estimate values as the mean over chunks of the current policy of the target network's reduced Q."""
        chunks = self.proposals(batch, rows, steps, self.target_samples, proposer)
        members = self.proposed_q(self.target, batch, rows, steps, chunks)
        if self.target_agg == "independent":
            return members.mean(1)
        return aggregate(members, self.target_agg, self.aggregation.lcb).mean(0, keepdim=True)

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """Estimate V of every observation from 0 to L, and pessimistic Q and members of the logged chunk at every step.

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
        """Compute the penalty, if there is one."""
        if self.penalty is None:
            return {}
        return self.penalty(self, batch, rewards, points, members, proposer)


__all__ = ["ActionCritic", "TargetAggregate"]
