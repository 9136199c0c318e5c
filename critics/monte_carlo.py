"""Monte-Carlo values of chunks of actions: what followed in the log, whoever acted."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Proposer
from ..core.returns import discounted_returns
from .chunks import Aggregate, ChunkCritic, Points, Tails
from .logged import chunk_lengths
from .networks import ChunkNetwork
from .value import known_onwards, known_returns

Cuts = Literal["leave_out", "end"]


@torch.no_grad()
def returns_to_go(
    batch: TrajectoryBatch, rewards: RewardEstimates, gamma: float | int, cuts: Cuts = "leave_out"
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Discounted return of the log from each step on, and where it is known; 0 elsewhere.

    It is known where all later rewards of the row are, and the row terminates. ``cuts="end"`` takes rows that are cut
    as if nothing followed, which is what Monte-Carlo values of fragments come down to.
    """
    known = rewards.valid & batch.mask
    later = known_returns(batch, known) if cuts == "leave_out" else known_onwards(batch, known)
    returns = discounted_returns(torch.where(known, rewards.rewards, 0.0), batch.mask, gamma)
    return torch.where(later, returns, 0.0), later


class MonteCarloCritic(ChunkCritic):
    """Q(s, a_{t:t+n}) of whoever acted, by regression on the discounted return of the log.

    It is what off-policy evaluation is judged against: the same network, but the future is the one of the log. The
    value of the current policy it gives only where the data are that policy's own, and of a row that is cut short it
    can say nothing. Windows of episodes are cut rows: it needs whole episodes.

    Args:
        network: Q of K members.
        gamma: Discount per control step.
        cuts: Rows that are cut: left out, or taken as if nothing followed.
        pessimism: Reduction of members.
        lcb: Deviations below the mean, for ``"lcb"``.
        value_samples: Chunks of a policy that V is the mean over.
        source_weights: Weight of the steps of each source, by its number as text; others count 1.
        across_replans: See `ChunkCritic`; the return of the log is the same, the chunk that is shown is longer.
        micro_batch: See `ChunkCritic`.
        tails: See `ChunkCritic`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        network: ChunkNetwork,
        gamma: float = 0.99,
        cuts: Cuts = "leave_out",
        pessimism: Aggregate = "min",
        lcb: float = 1.0,
        value_samples: int = 4,
        source_weights: Mapping[str, float] | None = None,
        across_replans: bool = False,
        micro_batch: int = 4096,
        tails: Tails = "complete",
    ) -> None:
        # nothing is bootstrapped: the target network follows at once and is never asked
        super().__init__(network, gamma, pessimism, lcb, 1.0, source_weights, across_replans, micro_batch, tails)
        if cuts not in get_args(Cuts) or value_samples < 1:
            raise ValueError(
                f"cuts {cuts!r}, value_samples {value_samples}: expected leave_out or end, and at least one chunk"
            )
        self.cuts: Cuts = cuts
        self.value_samples = value_samples

    def lengths(self, batch: TrajectoryBatch, rewards: RewardEstimates) -> Int[Tensor, "B T"]:
        """Steps of the logged chunk where the return is known, 0 elsewhere."""
        known = returns_to_go(batch, rewards, self.gamma, self.cuts)[1]
        return torch.where(known, chunk_lengths(batch, self.horizon, self.across_replans), 0)

    def targets(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, points: Points, proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """The return of the log from each point on; nobody is asked to propose."""
        return returns_to_go(batch, rewards, self.gamma, self.cuts)[0][None, points.rows, points.steps]

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """V (mean Q of a policy's chunks) of every observation, Q and members of the logged chunk at every real step.

        Raises:
            ValueError: If there is no proposer; use ``logged_q`` for Q alone.
        """
        return self.valued_by_proposals(batch, proposer, self.value_samples, "mean")


__all__ = ["Cuts", "MonteCarloCritic", "returns_to_go"]
