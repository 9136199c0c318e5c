"""Bins of continuous actions, for policies that choose actions as tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.interfaces import Component


class ActionBins(Component):
    """Evenly spaced bins of every action dimension; an action is the centre of a bin.

    The first centre is the lower bound and the last one the upper bound, so that both can be chosen exactly. The width
    of a bin is (high − low)/(bins − 1); a logged action is within half a width of a centre.

    Args:
        bins: Number of bins of a dimension, at least 2.
        low: Lower bound of every dimension, or one for each of them.
        high: Upper bound of every dimension, or one for each of them.

    Raises:
        ValueError: If there are fewer than two bins, or a lower bound is not below its upper one.
    """

    low: Tensor
    width: Tensor

    def __init__(
        self, bins: int = 256, low: float | int | Sequence[float] = -1.0, high: float | int | Sequence[float] = 1.0
    ) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins {bins}: expected at least 2")
        self.bins = bins
        lower, upper = (torch.tensor(b, dtype=torch.float32).reshape(-1) for b in (low, high))
        if len(lower) != len(upper) and 1 not in (len(lower), len(upper)):
            raise ValueError(f"expected as many lower as upper bounds, got {len(lower)} and {len(upper)}")
        lower, upper = torch.broadcast_tensors(lower, upper)
        if not bool((lower < upper).all() & lower.isfinite().all() & upper.isfinite().all()):
            raise ValueError(f"low {low}, high {high}: expected finite bounds, the lower one first in every dimension")
        self.register_buffer("low", lower.clone(), persistent=False)
        self.register_buffer("width", (upper - lower) / (bins - 1), persistent=False)

    def require_dimensions(self, action_size: int) -> None:
        """Refuse actions of another width than that of the bounds.

        Raises:
            ValueError: If there is a bound for each of another number of dimensions.
        """
        if len(self.low) not in (1, action_size):
            raise ValueError(
                f"the bins have bounds for {len(self.low)} action dimensions, and the actions are {action_size} wide: "
                "give one bound for all, or one for each dimension"
            )

    def centres(self, bins: Int[Tensor, "*shape A"]) -> Float[Tensor, "*shape A"]:
        """Return the centre of every bin.

        Args:
            bins: Number of a bin in every dimension, in 0 … bins − 1.
        """
        return self.low + bins * self.width

    def nearest(self, actions: Float[Tensor, "*shape A"], mask: Bool[Tensor, "*shape"]) -> Int[Tensor, "*shape A"]:
        """Find the bin whose centre is nearest to every action; 0 where the mask is False.

        Args:
            actions: Actions; behind the mask they may be anything.
            mask: Steps that count.

        Raises:
            ValueError: If an action that counts is NaN, or more than half a bin outside of the bounds.
        """
        place = (actions - self.low) / self.width
        slack = 0.5 + 1e-4  # of a width; actions are stored in float32
        outside = mask[..., None] & ~((place >= -slack) & (place <= self.bins - 1 + slack))  # NaN is outside too
        if bool(outside.any()):
            at = outside.nonzero()[0]
            dimension, value = int(at[-1]), float(actions[tuple(at)])
            low = float(self.low.expand(actions.shape[-1])[dimension])
            high = low + float(self.width.expand(actions.shape[-1])[dimension]) * (self.bins - 1)
            what = "is not a number" if value != value else f"lies outside of the bins from {low:g} to {high:g}"
            raise ValueError(
                f"dimension {dimension} of an action is {value:g}, which {what}: expected actions within half a bin of "
                "the bounds; widen low and high of the bins, or clip the actions when the data are written"
            )
        found = place.masked_fill(~mask[..., None], 0.0).round().long()
        return found.clamp(0, self.bins - 1)


__all__ = ["ActionBins"]
