"""Turns what a model says of progress and success into other rewards."""

import math

import torch
from torch import Tensor

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .observed import RewardInputs, inputs_of


class FirstHit(RewardModel):
    """Pays every new best of Φ = progress + success_weight · success once: r_t = max(0, Φ_{t+1} − max_{k≤t} Φ_k).

    Where every estimate is known this sums over a row to the best Φ minus the first: reaching something is paid,
    leaving it again costs nothing, and going back and forth earns nothing. It suits tasks that are done once they were
    done, where the change of Φ would take the reward back from a policy that succeeds and moves on. It is causal, but
    not a potential: it depends on the best so far.

    Args:
        reward: A model that estimates progress, success or both; it is not trained here.
        success_weight: Weight of the success probability in Φ, at least 0.
    """

    def __init__(self, reward: RewardModel, success_weight: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(success_weight) and success_weight >= 0):
            raise ValueError(f"success_weight is {success_weight}: expected a finite number of at least 0")
        self.reward = reward.requires_grad_(False)
        self.success_weight = success_weight
        self.causal = reward.causal

    @property
    def inputs(self) -> RewardInputs:
        """What the model inside reads."""
        return inputs_of(self.reward)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Pay new bests; steps next to an observation without an estimate are invalid, and the best so far is kept.

        Raises:
            ValueError: If the model estimates neither progress nor success.
        """
        inner = self.reward(batch)
        parts = [(1.0, inner.progress), (self.success_weight, inner.success)]
        used = [(weight, part) for weight, part in parts if part is not None and weight]
        if not used:
            raise ValueError(f"{type(self.reward).__name__} estimates neither progress nor success: nothing to reach")
        known = torch.stack([part.valid for _, part in used]).all(0)
        phi = torch.stack([weight * _filled(part) for weight, part in used]).sum(0)
        best = torch.where(known, phi, -torch.inf).cummax(1).values
        valid = known[:, 1:] & known[:, :-1] & batch.mask.to(known.device)
        gained = torch.where(valid, (phi[:, 1:] - best[:, :-1]).clamp(min=0), 0.0)
        return RewardEstimates(
            rewards=gained, valid=valid, progress=inner.progress, success=inner.success, std=inner.std
        )


def _filled(part: Labelled) -> Tensor:
    return torch.where(part.valid, part.values.float(), 0.0)
