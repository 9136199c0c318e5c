"""Reduction of an ensemble's members to one value, and target networks."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.interfaces import Component

Aggregate = Literal["min", "mean", "lcb"]


def aggregate(members: Float[Tensor, "K ..."], how: Aggregate, lcb: float | int = 1.0) -> Float[Tensor, "..."]:
    """Reduce an ensemble of K members to one value.

    For K = 2 the smallest member is the mean minus one standard deviation; for K = 1 all three are the member itself.

    Args:
        members: Values of the members, (K, …).
        how: The smallest (``"min"``), the mean (``"mean"``), or the mean minus ``lcb`` standard deviations with
            ddof = 0 (``"lcb"``).
        lcb: Number of standard deviations, for ``"lcb"``.

    Raises:
        ValueError: If ``how`` is unknown, or there is no member.
    """
    if how not in get_args(Aggregate) or not len(members):
        raise ValueError(f"aggregate {how!r} over {len(members)} members: expected min, mean or lcb, and a member")
    if how == "min":
        return members.amin(0)
    mean = members.mean(0)
    return mean if how == "mean" else mean - lcb * members.std(0, correction=0)


class Aggregation(Component):
    """Reduction of an ensemble's members to one pessimistic value, everywhere but in a critic's own targets.

    Args:
        pessimism: The smallest member (``"min"``), their mean (``"mean"``), or the mean minus ``lcb`` standard
            deviations (``"lcb"``).
        lcb: Number of standard deviations below the mean, 0 or more, wherever a critic uses ``"lcb"``.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(self, pessimism: Aggregate = "min", lcb: float = 1.0) -> None:
        super().__init__()
        if pessimism not in get_args(Aggregate) or lcb < 0:
            raise ValueError(f"pessimism {pessimism!r}, lcb {lcb}: expected min, mean or lcb, and a bound of 0 or more")
        self.pessimism: Aggregate = pessimism
        self.lcb = lcb

    def forward(self, members: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
        """Reduce members (K, …) to one value."""
        return aggregate(members, self.pessimism, self.lcb)


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, rate: float | int) -> None:
    """Move a target network towards the online one: φ⁻ ← rate · φ + (1 − rate) · φ⁻ (ALOE, algorithm 1, line 8).

    Buffers are copied, and parameters that both share are left alone.

    Args:
        target: Target network, changed in place.
        online: Network of the same shape that learns.
        rate: Share of the online network, in [0, 1].
    """
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        if slow is not fast:  # frozen encoders are shared
            slow.lerp_(fast.to(slow.dtype), rate)
    for slow, fast in zip(target.buffers(), online.buffers(), strict=True):
        if slow is not fast:
            slow.copy_(fast)


__all__ = ["Aggregate", "Aggregation", "aggregate", "polyak"]
