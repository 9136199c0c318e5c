"""Agreement of two segmentations of an episode into stages."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def stage_accuracy(
    predicted: Int[Tensor, " T1"], true: Int[Tensor, " T1"], valid: Bool[Tensor, " T1"], known: Bool[Tensor, " T1"]
) -> float:
    """Compute the share of observations with the right predicted stage.

    Args:
        predicted: Predicted stage of each observation; a missing prediction (``known`` False) is wrong.
        true: True stage of each observation.
        valid: True where the true stage is known.
        known: True where there is a prediction.

    Returns:
        Accuracy in [0, 1]; NaN where no true stage is known.
    """
    return float(((predicted == true) & known)[valid].double().mean()) if bool(valid.any()) else float("nan")


def stage_iou(
    predicted: Int[Tensor, " T1"], true: Int[Tensor, " T1"], valid: Bool[Tensor, " T1"], known: Bool[Tensor, " T1"]
) -> float:
    """Compute the intersection over union of the observations of a stage, averaged over the stages of either one.

    A stage that is predicted and not there, or missed altogether, counts 0, however short it is. Only observations
    whose true stage is known count.

    Args:
        predicted: Predicted stage of each observation.
        true: True stage of each observation.
        valid: True where the true stage is known.
        known: True where there is a prediction.

    Returns:
        IoU in [0, 1]; NaN where no true stage is known.
    """
    one, other = torch.where(known, predicted, -1)[valid], true[valid]
    stages = torch.cat([one, other]).unique()
    shares = [
        float(((one == k) & (other == k)).sum() / ((one == k) | (other == k)).sum()) for k in stages.tolist() if k >= 0
    ]
    return sum(shares) / len(shares) if shares else float("nan")


__all__ = ["stage_accuracy", "stage_iou"]
