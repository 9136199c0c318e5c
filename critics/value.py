"""State values, learned from TD(λ) targets."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.perceptron import Inputs, tanh_network
from ..core.batch import Observation, RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Critic, Proposer
from ..core.returns import gae


class ValueCritic(Critic):
    """V(s) by a multi-layer perceptron on state and frozen features.

    Args:
        state_size: Width S of the state.
        hidden: Widths of the hidden layers (tanh).
        feature_sizes: Frozen features to look at beside the state: name → width.
        gamma: Discount of the targets that ``loss`` computes on its own.
        lam: λ of TD(λ): 1 is Monte-Carlo, 0 is one-step TD.
    """

    def __init__(
        self,
        state_size: int,
        hidden: Sequence[int] = (128, 128),
        feature_sizes: Mapping[str, int] | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
    ) -> None:
        super().__init__()
        self.gamma, self.lam = gamma, lam
        self.inputs = Inputs(state_size, feature_sizes)
        self.network = tanh_network(self.inputs.width, hidden, 1, last_gain=1.0)

    def value(self, observation: Observation) -> Float[Tensor, " M"]:
        """Value of M observations, in float32 whatever the precision of the network's sums."""
        return self.network(self.inputs(observation)).squeeze(1).float()

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """Value every real observation; padding gets 0."""
        real = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)[None] <= batch.steps[:, None]
        rows, steps = real.nonzero(as_tuple=True)
        values = torch.zeros(real.shape, device=batch.state.device)
        return ValueEstimates(v=values.index_put((rows, steps), self.value(batch.observe(rows, steps))))

    def loss(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None
    ) -> dict[str, Tensor]:
        """Squared TD(λ) error over the steps whose reward is known; an unknown reward is taken to be no surprise.

        A step into an observation that was never made cannot be bootstrapped: it is unknown, unless the row terminated.
        """
        values = self.forward(batch).v
        fixed = values.detach()
        last = _last(batch)
        known = rewards.valid & batch.mask & ~(last & ~batch.last_observed[:, None] & ~batch.terminated[:, None])
        after = fixed[:, 1:].masked_fill(last & batch.terminated[:, None], 0.0)
        filled = torch.where(known, rewards.rewards, fixed[:, :-1] - self.gamma * after)
        targets = gae(filled, fixed, batch.mask, batch.terminated, self.gamma, self.lam).returns
        counted = known & (batch.weight > 0)
        error = (values[:, :-1] - targets).square().masked_fill(~counted, 0.0)
        weight = batch.weight.masked_fill(~counted, 0.0)
        return {"loss": (error * weight).sum() / weight.sum().clamp(min=1e-8)}


def _last(batch: TrajectoryBatch) -> Tensor:
    """True on the last real step of every row."""
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    return index[None] == (batch.steps - 1)[:, None]
