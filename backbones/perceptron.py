"""Perceptrons over state and frozen features, shared by small policies and critics."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.batch import Observation


def tanh_network(inputs: int, hidden: Sequence[int], outputs: int, last_gain: float) -> nn.Sequential:
    """Build a perceptron with tanh between layers and orthogonal weights, as PPO implementations do.

    Args:
        inputs: Number of inputs.
        hidden: Widths of the hidden layers.
        outputs: Number of outputs.
        last_gain: Gain of the last layer's weights.
    """
    layers: list[nn.Module] = []
    width = inputs
    for size in hidden:
        layers += [_orthogonal(nn.Linear(width, size), math.sqrt(2)), nn.Tanh()]
        width = size
    return nn.Sequential(*layers, _orthogonal(nn.Linear(width, outputs), last_gain))


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Inputs(nn.Module):
    """State and frozen features of an observation as one standardised vector.

    Args:
        state_size: Width S of the state; 0 reads no state.
        feature_sizes: Width of every feature that is read, by its name ``encoder/camera``.

    Raises:
        ValueError: If nothing would be read.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, state_size: int, feature_sizes: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.state_size, self.feature_sizes = state_size, dict(feature_sizes or {})
        self.width = state_size + sum(self.feature_sizes.values())
        if self.width == 0:
            raise ValueError("expected a state or at least one feature to look at, got neither: give feature_sizes")
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("std", torch.ones(self.width))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def vector(self, observation: Observation) -> Float[Tensor, "M W"]:
        """Concatenate the state and the features, not standardised.

        Raises:
            ValueError: If the state or a feature has another width, or a feature is missing.
        """
        if observation.state.shape[1] != self.state_size:
            raise ValueError(
                f"expected a state of width {self.state_size}, got {observation.state.shape[1]}: the network was made "
                "for another robot, or other data"
            )
        missing = self.feature_sizes.keys() - observation.features.keys()
        if missing:
            raise ValueError(
                f"expected features {sorted(missing)}, got {sorted(observation.features)}: load the cameras with that "
                "encoder, or leave the names out of feature_sizes"
            )
        parts = [observation.state]
        for name, size in self.feature_sizes.items():
            parts.append(observation.features[name].flatten(1).float())
            if parts[-1].shape[1] != size:
                raise ValueError(
                    f"expected features {name!r} of width {size}, got {parts[-1].shape[1]}: correct feature_sizes, or "
                    "load the features of the encoder that the network was made for"
                )
        return torch.cat([p.to(self.mean.device) for p in parts], 1)

    def forward(self, observation: Observation) -> Float[Tensor, "M W"]:
        """Standardise the inputs, and clip them to ten standard deviations so that no extreme saturates the network."""
        return ((self.vector(observation) - self.mean) / self.std).clamp(-10, 10)

    @torch.no_grad()
    def fit(self, observation: Observation, floor: float = 0.1) -> None:
        """Compute mean and standard deviation of the inputs; an input that hardly varies gets ``floor``.

        A handful of demonstrations shows little of how far an input may move later. With a small floor a cloned policy
        falls apart there (push-v3, 5 demonstrations: 6 and 15 % success at 0.01, 21 and 50 % at 0.1).

        Args:
            observation: M observations, M > 0.
            floor: Smallest standard deviation of an input.

        Raises:
            ValueError: If there is no observation, or an input is NaN or infinite.
        """
        vector = self.vector(observation)
        if not len(vector) or not bool(vector.isfinite().all()):
            what = "a NaN or infinite input" if len(vector) else "no observation"
            raise ValueError(f"expected observations to take scales from, got {what}")
        self.mean.copy_(vector.mean(0))
        self.std.copy_(vector.std(0, correction=0).clamp(min=floor))
        self.fitted.fill_(True)
