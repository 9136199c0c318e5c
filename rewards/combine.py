"""Rewards composed of other rewards: sum, scale, clip, and normalisation by data."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbones.model_inputs import ModelInputs, inputs_of
from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel


class Around(RewardModel):
    """Base of rewards that change another reward step by step and pass on its progress and success.

    Args:
        reward: Reward model to change; its parameters are frozen.
    """

    def __init__(self, reward: RewardModel) -> None:
        super().__init__()
        self.reward = reward.requires_grad_(False)
        self.causal = reward.causal

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the inner reward reads."""
        return inputs_of(self.reward)


class Scale(Around):
    """Reward multiplied by a factor, with its standard deviation and its terms.

    Args:
        reward: Reward model to scale; its parameters are frozen.
        factor: Finite factor; a negative one makes a cost of the reward.

    Raises:
        ValueError: If the factor is not finite.
    """

    def __init__(self, reward: RewardModel, factor: float) -> None:
        super().__init__(reward=reward)
        if not math.isfinite(factor):
            raise ValueError(f"factor is {factor}: expected a finite number")
        self.factor = factor

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the inner reward and multiply it."""
        return _scaled(self.reward(batch), self.factor)


class Clip(Around):
    """Reward clipped to [low, high] at every step; its terms stay those of the inner reward.

    Args:
        reward: Reward model to clip; its parameters are frozen.
        low: Smallest reward of a step.
        high: Largest reward of a step, at least ``low``.

    Raises:
        ValueError: If the limits are not finite or not in order.
    """

    def __init__(self, reward: RewardModel, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(reward=reward)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"expected finite limits low <= high, got {low} and {high}")
        self.low, self.high = low, high

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the inner reward and clip it; invalid entries stay 0."""
        inner = self.reward(batch)
        return replace(inner, rewards=torch.where(inner.valid, inner.rewards.clamp(self.low, self.high), 0.0), std=None)


class Normalise(Around):
    """Reward divided by its standard deviation over a data set, which ``fit`` measures once and which is saved.

    The mean is not subtracted: in episodes of different lengths a constant on every step changes which policy is best.

    Args:
        reward: Reward model to normalise; its parameters are frozen.
    """

    deviation: Tensor

    def __init__(self, reward: RewardModel) -> None:
        super().__init__(reward=reward)
        self.register_buffer("deviation", torch.full((), torch.nan))

    @torch.no_grad()
    def fit(self, batches: Iterable[TrajectoryBatch]) -> "Normalise":
        """Measure the standard deviation (ddof = 0) over all valid steps of all batches, in float64.

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
            raise ValueError(f"Normalise cannot measure a scale on these data: {what}")
        self.deviation.copy_(rewards.std(correction=0))
        return self

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the inner reward and divide it.

        Raises:
            RuntimeError: If ``fit`` has not been called.
        """
        if bool(self.deviation.isnan()):
            raise RuntimeError("Normalise has no scale yet: call fit(batches) on the data it will be used with")
        return _scaled(self.reward(batch), 1.0 / float(self.deviation))


class Sum(RewardModel):
    """Weighted sum of rewards; a step is valid where every part is, and each weighted part is reported as a term.

    Progress and success are those of the first part that estimates them. Where parts read different inputs, the batch
    has to hold all of them: evaluate such a sum on batches collated for all parts.

    Args:
        rewards: Reward models, at least one; their parameters are frozen.
        weights: Finite weight of each reward; None weighs all with 1.

    Raises:
        ValueError: If there is no reward, or the weights are not one finite number each.
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
        """Inputs that the parts read.

        Raises:
            ValueError: If parts read different inputs.
        """
        read = [inputs for inputs in map(inputs_of, self._parts()) if inputs != ModelInputs()]
        if any(inputs != read[0] for inputs in read[1:]):
            raise ValueError("the parts of a Sum read different inputs: score each alone and add the columns")
        return read[0] if read else ModelInputs()

    def _parts(self) -> list[RewardModel]:
        return [part for part in self.rewards if isinstance(part, RewardModel)]

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute every part and add them."""
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
