"""Q-chunking: the value of taking the best of N chunks that a policy proposes."""

from collections.abc import Mapping
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.batch import TrajectoryBatch, ValueEstimates
from ..core.interfaces import Proposer
from .chunks import Aggregate, ChunkCritic, Tails, aggregate
from .networks import ChunkNetwork


class BestOfCritic(ChunkCritic):
    """Q(s, a_{t:t+n}) of the best-of-N policy (Q-chunking, arXiv 2507.07969): it evaluates an improvement.

    The target is Σ_{k<n} γ^k r_{t+k} + γ^n · Q̄(s_{t+n}, a*), where a* is the one of N chunks of the policy whose
    reduced target Q̄ is the largest. The published code chooses a* by the online network; here the target network
    chooses and values. The largest of N errors is no small one: with mean aggregation over K = 2 members and N = 4 it
    comes out 0.73 deviations too high, with the smallest member 0.28.

    Args:
        network: Q of K members; the paper's are K = 2 perceptrons of four layers of 512.
        gamma: Discount per control step.
        candidates: N.
        target_agg: Reduction of members that a* is chosen and valued by; the mean, as published.
        pessimism: Reduction of members everywhere else.
        lcb: Deviations below the mean, where a bound is asked for.
        polyak_rate: Of the target network, per update.
        source_weights: Weight of the steps of each source, by its number as text; others count 1.
        across_replans: See `ChunkCritic`.
        micro_batch: See `ChunkCritic`.
        tails: See `ChunkCritic`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        network: ChunkNetwork,
        gamma: float = 0.99,
        candidates: int = 32,
        target_agg: Aggregate = "mean",
        pessimism: Aggregate = "mean",
        lcb: float = 1.0,
        polyak_rate: float = 0.005,
        source_weights: Mapping[str, float] | None = None,
        across_replans: bool = False,
        micro_batch: int = 4096,
        tails: Tails = "complete",
    ) -> None:
        super().__init__(
            network, gamma, pessimism, lcb, polyak_rate, source_weights, across_replans, micro_batch, tails
        )
        if target_agg not in get_args(Aggregate) or candidates < 1:
            raise ValueError(
                f"target_agg {target_agg!r}, candidates {candidates}: expected min, mean or lcb, and at least one chunk"
            )
        self.target_agg: Aggregate = target_agg
        self.candidates = candidates

    @torch.no_grad()
    def bootstrap(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """The largest reduced Q of the target network over N chunks of the policy."""
        chunks = self.proposals(batch, rows, steps, self.candidates, proposer)
        members = self.proposed_q(self.target, batch, rows, steps, chunks)
        return aggregate(members, self.target_agg, self.lcb).amax(0, keepdim=True)

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """V (the best of N) of every observation from 0 to L, Q and members of the logged chunk at every real step.

        Raises:
            ValueError: If there is no proposer; use ``logged_q`` for Q alone.
        """
        return self.valued_by_proposals(batch, proposer, self.candidates, "max")


__all__ = ["BestOfCritic"]
