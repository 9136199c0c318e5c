"""Loss of scalar values: squared or Huber, and clipped about the values when the advantages were formed."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.interfaces import Component
from ..core.losses import clipped_value_loss


class ValueLoss(Component):
    """Loss of a scalar critic in `guerdon.RewardToGo`; see `guerdon.core.losses.clipped_value_loss`.

    VLA-RL (arXiv 2505.18719) clips half the squared error at 0.2. RL4VLA (arXiv 2505.19789) clips Huber's loss with
    δ = 10 at 0.2.

    Args:
        clip: Largest distance of a value from what it was when the advantages were formed, above 0; None does not clip.
        huber: Threshold δ of Huber's loss, above 0; None takes half the squared error.
        value_range: Lowest and highest value that advantages are formed with, such as (0, 1) in LOOP's critic baseline
            (arXiv 2502.01600); the loss sees values as they are. None takes any value.

    Raises:
        ValueError: If a number is not positive, or the range is not in order.
    """

    def __init__(
        self, clip: float | None = None, huber: float | None = None, value_range: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        for name, number in (("clip", clip), ("huber", huber)):
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name} {number}: expected a positive finite number, or None")
        if value_range is not None and not (len(value_range) == 2 and value_range[0] < value_range[1]):
            raise ValueError(f"value_range {list(value_range)}: expected the lowest and the highest value, or None")
        self.clip, self.huber = clip, huber
        self.value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))

    def within_range(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Clip values to the range, if there is one.

        Args:
            values: Values when advantages are formed.
        """
        return values if self.value_range is None else values.clamp(*self.value_range)

    def forward(
        self, value: Float[Tensor, " M"], target: Float[Tensor, " M"], old: Float[Tensor, " M"] | None
    ) -> tuple[Float[Tensor, " M"], dict[str, Tensor]]:
        """Compute the loss of M values, and the metric ``value_clipped`` if there is a clip.

        Args:
            value: Values of the critic as it is now.
            target: Returns.
            old: Values when the advantages were formed.

        Returns:
            The losses (M,), and the share of values that are further from the old ones than the clip.

        Raises:
            ValueError: If there is a clip and no old values.
        """
        each = clipped_value_loss(value, target, old, self.clip, self.huber)
        if self.clip is None or old is None:
            return each, {}
        beyond = (value.detach() - old).abs() > self.clip
        return each, {"value_clipped": beyond.to(torch.float32).mean()}


__all__ = ["ValueLoss"]
