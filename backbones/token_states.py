"""Interface of the backbones of policies and values: vectors of tokens from observations."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core.batch import Observation
from ..core.interfaces import Component
from .model_inputs import ModelInputs
from .revision import DIGITS


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservationTokens:
    """Token vectors of M observations."""

    hidden: Float[Tensor, "M L D"]
    """Vectors; padding may hold anything."""
    mask: Bool[Tensor, "M L"]
    """True on real tokens."""


class TokenBackbone(Component):
    """Base of the backbones: observations in, token vectors out; a subclass writes ``forward`` and ``read``.

    Backbones do not know a policy. A policy or a value pools their tokens with a `TokenLearner`.
    """

    width: int
    """D, numbers per token."""

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the backbone reads."""
        return ModelInputs()

    def read(self, observation: Observation) -> Observation:
        """Return the part of observations that the backbone reads, as it was given; the rest is left out.

        Equal parts give equal tokens, so this is what a cache of tokens compares.

        Raises:
            ValueError: If something that is read is missing.
        """
        raise NotImplementedError(f"{type(self).__name__} reads nothing: write read(observation)")

    def forward(self, observation: Observation) -> ObservationTokens:
        """Compute the tokens of M observations, with gradients where the backbone learns."""
        raise NotImplementedError(f"{type(self).__name__} encodes nothing: write forward(observation)")

    @property
    def learns(self) -> bool:
        """Whether a gradient reaches a weight at present: one of them requires it."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the weights and buffers that training may change, by name; here all."""
        yield from self.named_parameters()
        yield from self.named_buffers()

    @property
    def version(self) -> str:
        """Checksum of the weights that training may change; equal weights have equal versions, in any process.

        It is computed anew at every call, from the sum of the bits of each weight: torch's own count of changes misses
        the steps of a fused optimizer. A million weights take about two milliseconds on a CPU.
        """
        weights = list(self.own_weights())
        sums = torch.stack([_sum_of_bits(weight) for _, weight in weights]).tolist() if weights else []
        held = [f"{name} {w.dtype} {tuple(w.shape)} {total}" for (name, w), total in zip(weights, sums, strict=True)]
        return hashlib.sha256("\n".join(held).encode()).hexdigest()[:DIGITS]


_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def _sum_of_bits(weight: Tensor) -> Tensor:
    """Add up the bits of each number, read as an integer, modulo 2⁶⁴: any change of a single number changes it."""
    flat = weight.detach().reshape(-1)
    return flat.view(_BITS[flat.dtype]).sum(dtype=torch.int64) if flat.dtype in _BITS else flat.sum(dtype=torch.int64)


def tokens_of(parts: Sequence[ObservationTokens]) -> ObservationTokens:
    """Concatenate the tokens of different observations, padded to the longest.

    Args:
        parts: At least one part, all of the same width.
    """
    longest = max(part.mask.shape[1] for part in parts)
    if all(part.mask.shape[1] == longest for part in parts):
        return ObservationTokens(hidden=torch.cat([p.hidden for p in parts]), mask=torch.cat([p.mask for p in parts]))
    pad: Any = nn.functional.pad
    return ObservationTokens(
        hidden=torch.cat([pad(p.hidden, (0, 0, 0, longest - p.hidden.shape[1])) for p in parts]),
        mask=torch.cat([pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts]),
    )


__all__ = ["ObservationTokens", "TokenBackbone", "tokens_of"]
