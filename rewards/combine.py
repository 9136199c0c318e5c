"""Rewards made of rewards: sums, scales, limits, and a scale taken from data."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbones.model_inputs import ModelInputs, inputs_of
from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel


class Around(RewardModel):
    """Base of a reward that changes another step by step; what the other says of progress and success is passed on.

    Args:
        reward: The reward to change; it is not trained here.
    """

    def __init__(self, reward: RewardModel) -> None:
        super().__init__()
        self.reward = reward.requires_grad_(False)
        self.causal = reward.causal

    @property
    def inputs(self) -> ModelInputs:
        """What the model inside reads."""
        return inputs_of(self.reward)


class Scale(Around):
    """Multiplies a reward, its spread and its terms by a factor.

    Args:
        reward: The reward.
        factor: Finite; a negative one makes it a cost.
    """

    def __init__(self, reward: RewardModel, factor: float) -> None:
        super().__init__(reward=reward)
        if not math.isfinite(factor):
            raise ValueError(f"factor is {factor}: expected a finite number")
        self.factor = factor

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Score and multiply."""
        return _scaled(self.reward(batch), self.factor)


class Clip(Around):
    """Limits every step's reward to [low, high]. The terms stay those of the reward that was limited.

    Args:
        reward: The reward.
        low: Smallest reward.
        high: Largest reward, at least ``low``.
    """

    def __init__(self, reward: RewardModel, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(reward=reward)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"expected finite limits low <= high, got {low} and {high}")
        self.low, self.high = low, high

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Score and limit; what is invalid stays 0."""
        inner = self.reward(batch)
        return replace(inner, rewards=torch.where(inner.valid, inner.rewards.clamp(self.low, self.high), 0.0), std=None)


class Normalise(Around):
    """Divides a reward by its standard deviation over the valid steps of a data set, taken once by ``fit`` and saved.

    The mean is not taken out: in episodes of different lengths a constant on every step changes which policy is best.

    Args:
        reward: The reward.
    """

    deviation: Tensor

    def __init__(self, reward: RewardModel) -> None:
        super().__init__(reward=reward)
        self.register_buffer("deviation", torch.full((), torch.nan))

    @torch.no_grad()
    def fit(self, batches: Iterable[TrajectoryBatch]) -> "Normalise":
        """Measure the deviation (ddof = 0) over all valid steps of all batches, in float64.

        Raises:
            ValueError: If no step is valid, or all rewards are equal.
        """
        found: list[Tensor] = []
        for batch in batches:
            scored = self.reward(batch)
            found.append(scored.rewards[scored.valid].double().cpu())
        rewards = torch.cat(found) if found else torch.zeros(0)
        if not len(rewards) or float(rewards.min()) == float(rewards.max()):
            what = "no step has a valid reward" if not len(rewards) else f"every reward is {float(rewards[0])}"
            raise ValueError(f"Normalise cannot take a scale from this data: {what}")
        self.deviation.copy_(rewards.std(correction=0))
        return self

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Score and divide.

        Raises:
            RuntimeError: If nothing was fitted.
        """
        if bool(self.deviation.isnan()):
            raise RuntimeError("Normalise has no scale yet: call fit(batches) on the data it will be used with")
        return _scaled(self.reward(batch), 1.0 / float(self.deviation))


class Sum(RewardModel):
    """Adds rewards with weights; a step is valid where every part is, and each weighted part is reported as a term.

    Progress and success are those of the first part that estimates them. Parts that need different inputs are asked for
    what each of them reads only if the batch holds all of it: score such a sum on batches collated for all.

    Args:
        rewards: At least one; they are not trained here.
        weights: One each; None weighs all with 1.
    """

    def __init__(self, rewards: Sequence[RewardModel], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(rewards) if weights is None else list(weights)
        if not rewards or len(weights) != len(rewards) or not all(math.isfinite(w) for w in weights):
            raise ValueError(
                f"expected at least one reward and one finite weight each, got {len(rewards)} and {weights}"
            )
        self.rewards = nn.ModuleList(reward.requires_grad_(False) for reward in rewards)
        self.weights = weights
        self.causal = all(reward.causal for reward in rewards)

    @property
    def inputs(self) -> ModelInputs:
        """What the parts read, where at most one of them reads anything.

        Raises:
            ValueError: If several parts say what they read.
        """
        read = [inputs for inputs in map(inputs_of, self._parts()) if inputs != ModelInputs()]
        if any(inputs != read[0] for inputs in read[1:]):
            raise ValueError("the parts of a Sum read different inputs: score them one by one and add the columns")
        return read[0] if read else ModelInputs()

    def _parts(self) -> list[RewardModel]:
        return [part for part in self.rewards if isinstance(part, RewardModel)]

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Score with every part and add."""
        scored = [part(batch) for part in self._parts()]
        valid = torch.stack([part.valid for part in scored]).all(0)
        terms: dict[str, Tensor] = {}
        for weight, part, model in zip(self.weights, scored, self._parts(), strict=True):
            name = type(model).__name__
            name = name if name not in terms else f"{name}_{len(terms)}"
            terms[name] = torch.where(valid, weight * part.rewards, 0.0)
        return RewardEstimates(
            rewards=torch.stack(list(terms.values())).sum(0),
            valid=valid,
            progress=next((part.progress for part in scored if part.progress is not None), None),
            success=next((part.success for part in scored if part.success is not None), None),
            terms=terms,
        )


def _scaled(inner: RewardEstimates, factor: float) -> RewardEstimates:
    return replace(
        inner,
        rewards=inner.rewards * factor,
        std=None if inner.std is None else inner.std * abs(factor),
        terms={name: term * factor for name, term in inner.terms.items()},
    )


__all__ = ["Around", "Clip", "Normalise", "Scale", "Sum"]
