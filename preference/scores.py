"""Score of a trajectory or segment: its rewards, summed or averaged over the steps that a reward model can score."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.batch import RewardEstimates

Reduce = Literal["sum", "mean"]
"""Reduction of the rewards of a row to its score."""


def row_scores(estimates: RewardEstimates, reduce: Reduce = "sum") -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """Reduce the rewards of every row to a score.

    Args:
        estimates: Rewards (B, T) with their validity.
        reduce: ``"sum"`` over the valid steps, or their ``"mean"``, with which the length of a row does not count.

    Returns:
        Scores with gradients, 0 where there is none; and whether a row has one: a row without a valid step has not.
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f'reduce: expected "sum" or "mean", got {reduce!r}')
    total = torch.where(estimates.valid, estimates.rewards, 0.0).sum(1)
    count = estimates.valid.sum(1)
    return (total if reduce == "sum" else total / count.clamp(min=1)), count > 0


__all__ = ["Reduce", "row_scores"]
