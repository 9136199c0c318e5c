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

        It is computed anew at every call, from the sum of the bits of each weight, multiplied by factors that depend on
        the place: torch's own count of changes misses the steps of a fused optimizer. A million weights take about
        ten milliseconds on a CPU.
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


_MIX = 0x9E3779B97F4A7C15 - 2**64  # 2⁶⁴ over the golden ratio: neighbours get factors that are far apart
_PART = 2**20  # numbers at a time: the factors need no memory that grows with a weight


def _sum_of_bits(weight: Tensor) -> Tensor:
    """Add up the bits of each number, read as an integer, times an odd factor of its place, modulo 2⁶⁴.

    Any change of a single number changes the sum, and so does an exchange of two different ones.
    """
    flat = weight.detach().reshape(-1)
    bits = flat.view(_BITS[flat.dtype]) if flat.dtype in _BITS else flat.long()
    factors = torch.arange(min(len(bits), _PART), device=bits.device).mul_(_MIX).bitwise_or_(1)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for part in bits.split(_PART):
        total = total * _MIX + (part * factors[: len(part)]).sum()
    return total


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
