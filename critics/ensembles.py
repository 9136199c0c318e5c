"""One number for the members of an ensemble, and target networks that follow it."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Aggregate = Literal["min", "mean", "lcb"]


def aggregate(members: Float[Tensor, "K ..."], how: Aggregate, lcb: float | int = 1.0) -> Float[Tensor, "..."]:
    """One number for an ensemble of K: the smallest, the mean, or the mean minus ``lcb`` deviations (ddof = 0).

    For K = 2 the smallest is the mean minus one deviation; for K = 1 all three are the member itself.

    Raises:
        ValueError: If there is no such way, or no member.
    """
    if how not in get_args(Aggregate) or not len(members):
        raise ValueError(f"aggregate {how!r} over {len(members)} members: expected min, mean or lcb, and a member")
    if how == "min":
        return members.amin(0)
    mean = members.mean(0)
    return mean if how == "mean" else mean - lcb * members.std(0, correction=0)


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, rate: float | int) -> None:
    """Move a target network: φ⁻ ← rate · φ + (1 − rate) · φ⁻ (ALOE, algorithm 1, line 8); buffers are copied."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        if slow is not fast:  # frozen encoders are shared
            slow.lerp_(fast.to(slow.dtype), rate)
    for slow, fast in zip(target.buffers(), online.buffers(), strict=True):
        if slow is not fast:
            slow.copy_(fast)


__all__ = ["Aggregate", "aggregate", "polyak"]
