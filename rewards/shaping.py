"""Rewards computed from the progress and success that another model estimates.

Every class takes one potential per observation from the inner model, Φ = progress + success_weight · success, and pays
for it in its own way:

| class | reward of step t | summed over a row |
|---|---|---|
| `Level` | Φ_{t+1} | grows with the time spent at high Φ |
| `Delta` | Φ_{t+1} − Φ_t | last Φ − first Φ |
| `FirstHit` | max(0, Φ_{t+1} − max_{k≤t} Φ_k) | best Φ − first Φ |
| `Sparse` | 1 when Φ first reaches a threshold | 0 or 1 |
| `Potential` | γ Φ_{t+1} − Φ_t, with Φ = 0 after an end | discounted, −Φ_0 after an end |
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbones.model_inputs import ModelInputs, inputs_of
from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel


class Shaped(RewardModel):
    """Base of rewards that are a function of a model's potential; a subclass writes ``pay``.

    Args:
        reward: Reward model that estimates progress, success or both; its parameters are frozen.
        success_weight: Weight of the success probability in Φ, at least 0.

    Raises:
        ValueError: If the weight is negative or not finite.
    """

    def __init__(self, reward: RewardModel, success_weight: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(success_weight) and success_weight >= 0):
            raise ValueError(f"success_weight is {success_weight}: expected a finite number of at least 0")
        self.reward = reward.requires_grad_(False)
        self.success_weight = success_weight
        self.causal = reward.causal

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the inner model reads."""
        return inputs_of(self.reward)

    def pay(
        self, phi: Float[Tensor, "B T1"], known: Bool[Tensor, "B T1"], batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Compute the rewards (B, T) of potentials (B, T+1), and which of them are valid.

        Args:
            phi: Potential of every observation; 0 where it is not known.
            known: True where the potential is known.
            batch: The trajectories, on the same device.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no reward: write pay(phi, known, batch)")

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Pay for the potential of the inner model; its progress and success are passed on, its deviation is not.

        Raises:
            ValueError: If the model estimates neither progress nor success.
        """
        inner = self.reward(batch)
        batch = batch if batch.mask.device == inner.rewards.device else batch.to(inner.rewards.device)
        parts = [(1.0, inner.progress), (self.success_weight, inner.success)]
        used = [(weight, part) for weight, part in parts if part is not None and weight]
        if not used:
            raise ValueError(
                f"{type(self.reward).__name__} estimates neither progress nor success: wrap a model that estimates one"
            )
        known = torch.stack([part.valid for _, part in used]).all(0)
        phi = torch.stack([weight * _filled(part) for weight, part in used]).sum(0)
        rewards, valid = self.pay(torch.where(known, phi, 0.0), known, batch)
        valid = valid & batch.mask
        paid = torch.where(valid, rewards, 0.0)
        return RewardEstimates(rewards=paid, valid=valid, progress=inner.progress, success=inner.success)


class Level(Shaped):
    """The potential itself as the reward of every step, r_t = Φ_{t+1}.

    A step spent at a level c is paid c every time, up to c/(1 − γ) in all. Where success ends an episode, staying just
    short of it can be worth more than success. Use it to rank or weight steps, not to train a policy.
    """

    def pay(
        self, phi: Float[Tensor, "B T1"], known: Bool[Tensor, "B T1"], batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Pay the potential; valid where the observation after the step is known."""
        return phi[:, 1:], known[:, 1:]


class Delta(Shaped):
    """The change of the potential, r_t = Φ_{t+1} − Φ_t: a gain is paid back when it is lost."""

    def pay(
        self, phi: Float[Tensor, "B T1"], known: Bool[Tensor, "B T1"], batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Pay the change of the potential; valid where both observations are known."""
        return phi[:, 1:] - phi[:, :-1], known[:, 1:] & known[:, :-1]


class FirstHit(Shaped):
    """Reward for every new best potential, once: r_t = max(0, Φ_{t+1} − max_{k≤t} Φ_k).

    Where every estimate is known, it sums over a row to the best Φ minus the first. Reaching a state is paid, leaving
    it costs nothing, and going back and forth earns nothing. It suits tasks that stay done once they were done, where
    the change of Φ would take the reward back from a policy that succeeds and moves on. It is causal, but not
    potential-based, because it depends on the best so far.
    """

    def pay(
        self, phi: Float[Tensor, "B T1"], known: Bool[Tensor, "B T1"], batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Pay the increase of the best potential; valid where both observations are known."""
        best = torch.where(known, phi, -torch.inf).cummax(1).values
        valid = known[:, 1:] & known[:, :-1]
        return torch.where(valid, (phi[:, 1:] - best[:, :-1]).clamp(min=0), 0.0), valid


class Sparse(Shaped):
    """Sparse reward: 1 on the step with which Φ first reaches a threshold in a row, 0 on every other.

    A row that starts above the threshold is paid nothing.

    Args:
        reward: Reward model that estimates progress, success or both; its parameters are frozen.
        success_weight: Weight of the success probability in Φ, at least 0.
        threshold: Finite value of Φ from which on a step is paid.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, reward: RewardModel, success_weight: float = 1.0, threshold: float = 1.5) -> None:
        super().__init__(reward=reward, success_weight=success_weight)
        if not math.isfinite(threshold):
            raise ValueError(f"threshold is {threshold}: expected a finite number")
        self.threshold = threshold

    def pay(
        self, phi: Float[Tensor, "B T1"], known: Bool[Tensor, "B T1"], batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Pay the first step that reaches the threshold; valid where the observation after the step is known."""
        reached = (known & (phi >= self.threshold)).int().cummax(1).values
        return (reached[:, 1:] - reached[:, :-1]).to(phi.dtype), known[:, 1:]


class Potential(Shaped):
    """Potential-based shaping, r_t = γ Φ_{t+1} − Φ_t with Φ = 0 after an end (Ng, Harada and Russell 1999, Eq. 2).

    Add it to a task's reward with `Sum`. The optimal policy stays the same, because the discounted sum over a row
    telescopes to −Φ_0 (plus γ^L Φ_L where the row was only cut). That needs the γ that returns are discounted with, one
    decision per step, and Φ = 0 after success and failure (`TrajectoryBatch.terminated`) but not after a time limit. A
    policy that decides every h′ steps takes `RewardToGo(potential=…)` instead, which shapes at its decisions.

    Args:
        reward: Reward model that estimates progress, success or both; its parameters are frozen.
        success_weight: Weight of the success probability in Φ, at least 0.
        gamma: Discount factor of the returns per control step, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, reward: RewardModel, success_weight: float = 0.0, gamma: float = 0.99) -> None:
        super().__init__(reward=reward, success_weight=success_weight)
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}: expected 0 … 1")
        self.gamma = gamma

    def pay(
        self, phi: Float[Tensor, "B T1"], known: Bool[Tensor, "B T1"], batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Pay the shaping reward; valid where both observations are known, and Φ after an end is known to be 0."""
        return potential_difference(phi, known, batch, self.gamma)


def potential_difference(
    phi: Float[Tensor, "B T1"], known: Bool[Tensor, "B T1"], batch: TrajectoryBatch, gamma: float
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Compute γ Φ_{t+1} − Φ_t, with Φ = 0 and known where a row terminated; see `Potential`.

    Args:
        phi: Potential of every observation; 0 where it is not known.
        known: True where the potential is known.
        batch: The trajectories, on the same device.
        gamma: Discount factor per control step, in [0, 1].

    Returns:
        The shaping rewards (B, T), and True where both observations of a step are known.
    """
    place = torch.arange(phi.shape[1], device=phi.device)[None]
    over = batch.terminated[:, None] & (place == batch.steps[:, None])
    phi, known = phi.masked_fill(over, 0.0), known | over
    return gamma * phi[:, 1:] - phi[:, :-1], known[:, 1:] & known[:, :-1]


def _filled(part: Labelled) -> Tensor:
    return torch.where(part.valid, part.values.float(), 0.0)


__all__ = ["Delta", "FirstHit", "Level", "Potential", "Shaped", "Sparse", "potential_difference"]
