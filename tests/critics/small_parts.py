"""What tests of critics share: small frozen encoders, and rows of given lengths."""

import math

import torch

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End, RewardEstimates, TrajectoryBatch


class FrozenPixels(ConvEncoder):
    """A small frozen encoder of frames."""

    def __init__(self) -> None:
        super().__init__(6, (4, 4), 16)
        self.trainable = False
        self.requires_grad_(False)


class FrozenWords(HashedText):
    """A small frozen encoder of instructions."""

    def __init__(self) -> None:
        super().__init__(5, 64, 1.0)
        self.trainable = False
        self.requires_grad_(False)


def rows_of(lengths, end=End.CUT):
    """Rows of random states and actions with a reward of −1 a step; actions behind a row's end are NaN."""
    steps = max(lengths)
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    batch = TrajectoryBatch(
        state=torch.randn(len(lengths), steps + 1, 2),
        actions=torch.randn(len(lengths), steps, 1).masked_fill(~mask[..., None], math.nan),
        mask=mask,
        end=torch.full((len(lengths),), int(end)),
    )
    return batch, RewardEstimates(rewards=torch.where(mask, -1.0, 0.0), valid=mask)
