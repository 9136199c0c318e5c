"""Monte-Carlo values of chunks of actions: regression on the return of the log."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.arguments import folds
from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Proposer
from ..core.returns import discounted_returns
from .chunks import ChunkCritic, Points
from .ensembles import Aggregation
from .logged import LoggedChunks
from .networks import ChunkNetwork
from .value import known_onwards, known_returns

Cuts = Literal["leave_out", "end"]


@torch.no_grad()
def returns_to_go(
    batch: TrajectoryBatch, rewards: RewardEstimates, gamma: float | int, cuts: Cuts = "leave_out"
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Compute the discounted return of the log from each step on, and where it is known.

    A return is known where all later rewards of the row are known and the row terminates. With ``cuts="end"`` a cut row
    also counts, as if nothing followed; Monte-Carlo values of fragments are such returns.

    Args:
        batch: Trajectories.
        rewards: Rewards of their steps.
        gamma: Discount factor per control step, in [0, 1].
        cuts: Treatment of rows that are cut: ``"leave_out"`` or ``"end"``.

    Returns:
        Returns (B, T), 0 where they are not known, and a mask (B, T) that is True where they are.
    """
    known = rewards.valid & batch.mask
    later = known_returns(batch, known) if cuts == "leave_out" else known_onwards(batch, known)
    returns = discounted_returns(torch.where(known, rewards.rewards, 0.0), batch.mask, gamma)
    return torch.where(later, returns, 0.0), later


class MonteCarloCritic(ChunkCritic):
    """Q(s, a_{t:t+n}) of the behaviour policy, by regression on the discounted return of the log.

    This is the baseline of off-policy evaluation: the same network, but the future is that of the log. It gives the
    value of the current policy only where the data are that policy's own, and nothing for a row that is cut short.
    Windows of episodes are cut rows: it needs whole episodes.

    Args:
        network: Ensemble of K Q-networks.
        gamma: Discount factor per control step, in [0, 1].
        cuts: Treatment of rows that are cut: ``"leave_out"``, or ``"end"`` as if nothing followed.
        value_samples: Number of a policy's chunks over which V takes the mean.
        micro_batch: Number of chunks that are valued at a time where no gradient is needed.
        aggregation: Reduction of the members to one pessimistic Q; None takes the smallest.
        logged: Rules for reading logged chunks; None takes the defaults of `LoggedChunks`. With ``across_replans`` the
            return of the log stays the same, and the chunk that the critic is shown gets longer.

    Raises:
        ValueError: If an argument makes no sense.
    """

    @folds(aggregation=Aggregation, logged=LoggedChunks)
    def __init__(
        self,
        network: ChunkNetwork,
        gamma: float = 0.99,
        cuts: Cuts = "leave_out",
        value_samples: int = 4,
        micro_batch: int = 4096,
        aggregation: Aggregation | None = None,
        logged: LoggedChunks | None = None,
    ) -> None:
        super().__init__(
            network=network,
            gamma=gamma,
            polyak_rate=1.0,  # nothing is bootstrapped: the target network follows at once and is never used
            micro_batch=micro_batch,
            aggregation=Aggregation() if aggregation is None else aggregation,
            logged=logged,
        )
        if cuts not in get_args(Cuts) or value_samples < 1:
            raise ValueError(
                f"cuts {cuts!r}, value_samples {value_samples}: expected leave_out or end, and at least one chunk"
            )
        self.cuts: Cuts = cuts
        self.value_samples = value_samples

    def lengths(self, batch: TrajectoryBatch, rewards: RewardEstimates) -> Int[Tensor, "B T"]:
        """Compute the number of steps of each logged chunk whose return is known; 0 elsewhere."""
        known = returns_to_go(batch, rewards, self.gamma, self.cuts)[1]
        return torch.where(known, self.logged.lengths(batch, self.horizon), 0)

    def targets(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, points: Points, proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """Return the return of the log from each point on; the proposer is not used."""
        return returns_to_go(batch, rewards, self.gamma, self.cuts)[0][None, points.rows, points.steps]

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """Estimate V (mean Q of a policy's chunks) of every observation, Q and members of the logged chunk at each one.

        Raises:
            ValueError: If there is no proposer; use ``logged_q`` for Q alone.
        """
        return self.valued_by_proposals(batch, proposer, self.value_samples, "mean")


__all__ = ["Cuts", "MonteCarloCritic", "returns_to_go"]
