"""A Gaussian policy over chunks of continuous actions."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.perceptron import Inputs, tanh_network
from ..core.batch import Decision, Evaluation, Observation
from ..core.interfaces import Policy


class GaussianPolicy(Policy):
    """Predicts the mean of H actions at once and carries out the first ``execute`` of them.

    The log-probability has one unit per action dimension, H·A in all; units of steps that were not carried out are
    masked. Sampling, log-probability and entropy come from the same mean and standard deviation, and the sample is kept
    as drawn: clipping to the bounds is the environment's business.

    Args:
        state_size: Width S of the state.
        action_size: Width A of an action.
        horizon: Steps H in a chunk.
        execute: Steps carried out before the next decision, 1 … H.
        hidden: Widths of the hidden layers (tanh).
        log_std: Initial logarithm of the standard deviation of every action dimension.
        log_std_range: Bounds the learned logarithm is clamped to, the same in every use.
        feature_sizes: Frozen features to look at beside the state: name → width.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        horizon: int = 1,
        execute: int = 1,
        hidden: Sequence[int] = (128, 128),
        log_std: float = -1.0,
        log_std_range: Sequence[float] = (-4.0, 0.5),
        feature_sizes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= execute <= horizon:
            raise ValueError(f"expected 1 <= execute <= horizon, got execute={execute}, horizon={horizon}")
        self.action_size, self.horizon, self.execute = action_size, horizon, execute
        self.inputs = Inputs(state_size, feature_sizes)
        self.network = tanh_network(self.inputs.width, hidden, horizon * action_size, last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((horizon, action_size), float(log_std)))
        self.log_std_range = (float(log_std_range[0]), float(log_std_range[1]))

    def distribution(self, observation: Observation) -> tuple[Float[Tensor, "M H A"], Float[Tensor, "H A"]]:
        """Mean of every action and the (state-independent) logarithm of its standard deviation."""
        inputs = self.inputs(observation)
        # lower precision while learning than while acting would move every ratio of probabilities away from 1
        with torch.autocast(inputs.device.type, enabled=False):
            mean = self.network(inputs)
        return mean.unflatten(1, (self.horizon, self.action_size)), self.log_std.clamp(*self.log_std_range)

    @torch.no_grad()
    def act(
        self, observation: Observation, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> Decision:
        """Sample a chunk, or take its mean; noise is drawn where the generator lives."""
        mean, log_std = self.distribution(observation)
        chunk = mean
        if not deterministic:
            place = mean.device if generator is None else generator.device
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=place)
            chunk = mean + noise.to(mean.device) * log_std.exp()
        executed = torch.full((len(chunk),), self.execute, device=chunk.device)
        return Decision(chunk=chunk, executed=executed, log_prob=_log_density(chunk, mean, log_std).flatten(1))

    def evaluate(self, observation: Observation, decision: Decision) -> Evaluation:
        """Log-density of every unit of earlier chunks, and the entropy of the steps that were carried out."""
        self._check(decision.chunk)
        mean, log_std = self.distribution(observation)
        carried = self._carried(decision.executed)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(1)
        return Evaluation(
            log_prob=_log_density(decision.chunk, mean, log_std).flatten(1),
            unit_mask=carried[..., None].expand(-1, -1, self.action_size).flatten(1),
            entropy=(carried * entropy).sum(1),
        )

    def imitation_loss(
        self, observation: Observation, chunk: Float[Tensor, "M H A"], chunk_mask: Bool[Tensor, "M H"]
    ) -> Float[Tensor, " M"]:
        """Squared distance of the mean to the logged actions, averaged over the real steps of each chunk.

        The spread is left alone: maximum likelihood on a handful of demonstrations would shrink it to nothing, and with
        it the exploration that reinforcement learning starts from.
        """
        self._check(chunk)
        mean, _ = self.distribution(observation)
        # masked before the square: a NaN behind the mask would come back in the gradient
        error = (mean - chunk).masked_fill(~chunk_mask[..., None], 0.0).square().mean(2)
        return error.sum(1) / chunk_mask.sum(1).clamp(min=1)

    def _carried(self, executed: Tensor) -> Tensor:
        return torch.arange(self.horizon, device=executed.device)[None] < executed[:, None]

    def _check(self, chunk: Tensor) -> None:
        if tuple(chunk.shape[1:]) != (self.horizon, self.action_size):
            got = tuple(chunk.shape[1:])
            raise ValueError(f"expected chunks of {self.horizon} steps, {self.action_size} dimensions each, got {got}")


def _log_density(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
