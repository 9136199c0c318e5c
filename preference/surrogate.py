"""Log-probabilities of decisions, and the surrogate of policies that have no tractable density, such as flows."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.batch import Decision, Observation
from ..core.interfaces import Policy


@runtime_checkable
class HasSurrogate(Protocol):
    """A policy whose log-probabilities cannot be computed, such as a flow: it gives a surrogate instead."""

    def surrogate_log_prob(self, observation: Observation, decision: Decision, seed: int) -> Float[Tensor, " M"]:
        """Compute −l(θ; a): minus the flow-matching error of each chunk over random times and noises.

        The times and noises must depend on the seed alone. Policy and reference, and both trajectories of a pair, are
        then compared on the same ones; with others each the difference of two errors would mostly be noise.
        """
        ...


def decision_log_prob(
    policy: Policy, observation: Observation, decision: Decision, seed: int = 0
) -> Float[Tensor, " M"]:
    """Compute log π(a|s) of M decisions: the sum over their executed units, or the surrogate of a policy without one.

    Differences of the surrogate between two policies are in place of a log-ratio: Diffusion-DPO (arXiv 2311.12908) and
    Flow-DPO. It is proportional to the log-ratio where only the mean of the actions moves, and not where their spread
    does.

    Args:
        policy: Policy.
        observation: M observations.
        decision: M decisions.
        seed: Random seed of the surrogate's times and noises.
    """
    if isinstance(policy, HasSurrogate):
        return policy.surrogate_log_prob(observation, decision, seed)
    evaluation = policy.evaluate(observation, decision)
    return masked_sum(evaluation.log_prob, evaluation.unit_mask)


def masked_sum(values: Float[Tensor, "M U"], mask: Bool[Tensor, "M U"]) -> Float[Tensor, " M"]:
    """Sum the units of each decision that were executed; the others may hold anything."""
    return torch.where(mask, values, 0.0).sum(1)


def flow_matching_error(
    velocity: Float[Tensor, "R M H A"],
    chunk: Float[Tensor, "M H A"],
    noise: Float[Tensor, "R _ H A"],
    mask: Bool[Tensor, "M H A"],
    weight: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, " M"]:
    """Compute l(θ; a) = mean over R draws of w ‖(ε − a) − v_θ(tε + (1 − t)a, t)‖² of each chunk.

    The convention is t = 1 noise, t = 0 data. The squared error is summed over the real entries of a chunk, so that
    −l stands for a log-probability of the whole chunk.

    Args:
        velocity: Velocities v_θ at R times and noises.
        chunk: Chunks a.
        noise: Noises ε of the draws, one for each chunk or one for all.
        mask: Entries of a chunk that are real and were executed; the others may hold anything.
        weight: Weight w(t) of each draw; None takes 1.
    """
    known = torch.where(mask, chunk, 0.0)
    error = torch.where(mask, (noise - known) - velocity, 0.0).square().sum((2, 3))
    return (error if weight is None else weight[:, None] * error).mean(0)


__all__ = ["HasSurrogate", "decision_log_prob", "flow_matching_error", "masked_sum"]
