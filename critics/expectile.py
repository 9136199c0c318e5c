"""Implicit Q-learning on chunks of actions: the value of the best logged behaviour, without a policy."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.arguments import folds
from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Proposer
from ..core.losses import expectile
from .chunks import ChunkCritic, Points
from .ensembles import Aggregation
from .logged import LoggedChunks
from .networks import ChunkNetwork
from .observations import ObservationNetwork


class ExpectileCritic(ChunkCritic):
    """Q(s, a_{t:t+n}) and V(s) of implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169, Eq. 5–6), on chunks.

    Q regresses to Σ_{k<n} γ^k r_{t+k} + γ^n · V(s_{t+n}). V regresses to the upper expectile of the target network's
    pessimistic Q of logged chunks. No policy is needed, so that training is cheap and steady. The values are those of
    the best logged behaviour, not of the current policy.

    Args:
        network: Ensemble of K Q-networks; the paper's are K = 2 perceptrons.
        hidden: Widths of the hidden layers of V, which reads the same inputs as ``network`` except the actions.
        gamma: Discount factor per control step, in [0, 1].
        expectile: Expectile τ of V, in (0, 1): 0.5 is the mean over logged behaviour, towards 1 its best; the paper has
            0.7 and 0.9.
        polyak_rate: Share of the network that its target takes over in each update, in (0, 1].
        micro_batch: Number of observations or chunks that are valued at a time where no gradient is needed.
        aggregation: Reduction of the members to one pessimistic Q, also in the target of V; None takes the smallest.
        logged: Rules for reading logged chunks; None takes the defaults of `LoggedChunks`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    @folds(aggregation=Aggregation, logged=LoggedChunks)
    def __init__(
        self,
        network: ChunkNetwork,
        hidden: Sequence[int] = (256, 256),
        gamma: float = 0.99,
        expectile: float = 0.7,
        polyak_rate: float = 0.005,
        micro_batch: int = 4096,
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
        if not 0 < expectile < 1:
            raise ValueError(f"expectile {expectile}: expected a number between 0 and 1, such as 0.7")
        self.expectile = expectile
        self.value = ObservationNetwork(state_size=network.state_size, hidden=hidden, reads=network.reads)

    @torch.no_grad()
    def fit_scales(self, batch: TrajectoryBatch) -> None:
        """Compute the scales of states and actions from a batch, for Q, its target and V."""
        super().fit_scales(batch)
        self.value.fit_state(batch.state[batch.made])

    @torch.no_grad()
    def bootstrap(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """Estimate V of the observations; the proposer is not used."""
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
        """Compute the expectile loss of V at the points (equation 5)."""
        with torch.no_grad():
            q = self.pessimistic(
                self.logged_members(batch, points.rows, points.steps, points.lengths, network=self.target)
            )
        v = self.value(batch.observe(points.rows, points.steps))
        weight = points.weight.to(v.device)
        return {"value_loss": (expectile(q - v, self.expectile) * weight).sum() / weight.sum()}

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """Estimate V of every observation from 0 to L, pessimistic Q and members of the logged chunk at every step."""
        return self.estimates(batch, self.bootstrap(batch, *self.observations(batch), proposer)[0])


__all__ = ["ExpectileCritic"]
