"""How well one segmentation of an episode into stages agrees with another."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def stage_accuracy(
    predicted: Int[Tensor, " T1"], true: Int[Tensor, " T1"], valid: Bool[Tensor, " T1"], known: Bool[Tensor, " T1"]
) -> float:
    """Share of observations that are given the right stage.

    Args:
        predicted: Stage of each observation; where ``known`` is False none was given, which is wrong.
        true: The right one.
        valid: Where it is known.
        known: Where there is a prediction.

    Returns:
        In [0, 1]; NaN where no observation has a right stage.
    """
    return float(((predicted == true) & known)[valid].double().mean()) if bool(valid.any()) else float("nan")


def stage_iou(
    predicted: Int[Tensor, " T1"], true: Int[Tensor, " T1"], valid: Bool[Tensor, " T1"], known: Bool[Tensor, " T1"]
) -> float:
    """Intersection over union of the observations of a stage, mean over the stages that either of the two has.

    A stage that was made up, or missed altogether, counts 0, however short it is. Only observations whose right stage
    is known are looked at.

    Returns:
        In [0, 1]; NaN where no observation has a right stage.
    """
    one, other = torch.where(known, predicted, -1)[valid], true[valid]
    stages = torch.cat([one, other]).unique()
    shares = [
        float(((one == k) & (other == k)).sum() / ((one == k) | (other == k)).sum()) for k in stages.tolist() if k >= 0
    ]
    return sum(shares) / len(shares) if shares else float("nan")


__all__ = ["stage_accuracy", "stage_iou"]
