"""Hidden features of the observations that a reward model evaluates, and how they are read between them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..core.batch import Labelled, TrajectoryBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedObservations:
    """Hidden features of the evaluated observations of a batch; between them an estimate holds its last value."""

    step: Int[Tensor, "B K"]
    """Index of each evaluated observation, ascending; −1 pads, at the end."""
    hidden: Float[Tensor, "B K D"]
    """Features of each evaluated observation."""

    @property
    def mask(self) -> Bool[Tensor, "B K"]:
        """True on evaluated observations, False on padding."""
        return self.step >= 0

    def match_device(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Move a batch to the device of the features; a batch that is there already is returned as it is."""
        return batch if batch.mask.device == self.step.device else batch.to(self.step.device)

    def last_at_observations(self, batch: TrajectoryBatch) -> tuple[Int[Tensor, "B Tp1"], Bool[Tensor, "B Tp1"]]:
        """Find the last evaluated observation at or before every observation.

        Returns:
            Its place in 0 … K − 1, and whether there is one and the observation was really made. Where it is False the
            place is any valid index.
        """
        index = torch.arange(batch.mask.shape[1] + 1, device=self.step.device).expand(len(batch), -1)
        place = last_at_or_before(self.step, index.contiguous())
        return place.clamp(min=0), (place >= 0) & batch.made

    def select(self, label: Labelled) -> Labelled:
        """Select the entries of a label per observation (B, T+1) at the evaluated observations, invalid on padding."""
        step = self.step.clamp(min=0)
        valid = label.valid.gather(1, step) & self.mask
        values = label.values.gather(1, step).float()
        return Labelled(values=torch.where(valid, values, 0.0), valid=valid)

    def weights(self, batch: TrajectoryBatch) -> Float[Tensor, "B K"]:
        """Weigh each evaluated observation with the larger weight of the two steps next to it; padding weighs 0."""
        weight = torch.where(batch.mask, batch.weight, 0.0)
        around = torch.maximum(functional.pad(weight, (0, 1)), functional.pad(weight, (1, 0)))
        return torch.where(self.mask, around.gather(1, self.step.clamp(min=0)), 0.0)


def last_at_or_before(step: Int[Tensor, "B K"], wanted: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Find the place of the last of the ascending steps (−1 pads) at or before each wanted one; −1 without any."""
    far = torch.iinfo(step.dtype).max
    ascending = torch.where(step >= 0, step, far).contiguous()
    return torch.searchsorted(ascending, wanted.to(step.dtype), right=True) - 1


__all__ = ["EncodedObservations", "last_at_or_before"]
