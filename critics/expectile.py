"""Implicit Q-learning on chunks of actions: the value of the best that was logged, without asking any policy."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Proposer
from ..core.losses import expectile
from .chunks import Aggregate, ChunkCritic, Points, Tails
from .networks import ChunkNetwork
from .observations import ObservationNetwork


class ExpectileCritic(ChunkCritic):
    """Q(s, a_{t:t+n}) and V(s) after IQL (Kostrikov et al., 2021, arXiv 2110.06169, Eq. 5–6), on chunks.

    Q regresses to Σ_{k<n} γ^k r_{t+k} + γ^n · V(s_{t+n}), and V to the upper expectile, by ``expectile``, of the target
    network's pessimistic Q of logged chunks. No policy is asked, so it is cheap and steady; what it values is the best
    of the logged behaviour, not the current policy.

    Args:
        network: Q of K members; the paper's are K = 2 perceptrons.
        hidden: Widths of the hidden layers of V, which reads what ``network`` reads but the actions.
        gamma: Discount per control step.
        expectile: τ of V: 0.5 is the mean over logged behaviour, towards 1 its best; the paper has 0.7 and 0.9.
        pessimism: Reduction of members, in the target of V too.
        lcb: Deviations below the mean, for ``"lcb"``.
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
        hidden: Sequence[int] = (256, 256),
        gamma: float = 0.99,
        expectile: float = 0.7,
        pessimism: Aggregate = "min",
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
        if not 0 < expectile < 1:
            raise ValueError(f"expectile {expectile}: expected a number between 0 and 1, such as 0.7")
        self.expectile = expectile
        self.value = ObservationNetwork(
            network.state_size, hidden, network.cameras, network.encoder, network.text, network.frame_size
        )

    @torch.no_grad()
    def fit_scales(self, batch: TrajectoryBatch) -> None:
        """Take the scales of states and actions from a batch, for Q, its target and V."""
        super().fit_scales(batch)
        self.value.fit_state(batch.state[batch.made])

    @torch.no_grad()
    def bootstrap(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """V of the observations; nobody is asked to propose."""
        parts = torch.arange(len(rows), device=rows.device).split(self.micro_batch)
        return torch.cat([self.value(batch.observe(rows[part], steps[part])) for part in parts])[None]

    def further_losses(
        self,
        batch: TrajectoryBatch,
        rewards: RewardEstimates,
        points: Points,
        members: Float[Tensor, "K M"],
        proposer: Proposer | None,
    ) -> dict[str, Tensor]:
        """The expectile loss of V at the points (equation 5)."""
        with torch.no_grad():
            q = self.pessimistic(
                self.logged_members(batch, points.rows, points.steps, points.lengths, network=self.target)
            )
        v = self.value(batch.observe(points.rows, points.steps))
        weight = points.weight.to(v.device)
        return {"value_loss": (expectile(q - v, self.expectile) * weight).sum() / weight.sum()}

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """V of every observation from 0 to L, pessimistic Q and members of the logged chunk at every real step."""
        return self.estimates(batch, self.bootstrap(batch, *self.observations(batch), proposer)[0])


__all__ = ["ExpectileCritic"]
