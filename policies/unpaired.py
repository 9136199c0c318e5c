"""Preference optimisation on single decisions that are desirable or not, by the Kahneman–Tversky loss."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import Advantages, Decision, Observation, TrajectoryBatch
from ..core.interfaces import Objective, Policy
from ..core.losses import kto
from ..preference.flags import class_weights, reference_point
from ..preference.surrogate import HasSurrogate, decision_log_prob, masked_sum


class UnpairedPreference(Objective):
    """Kahneman–Tversky loss on flags of decisions (KTO, arXiv 2402.01306): for logs with flags and without pairs.

    With r = log π − log π_ref of a decision, a desirable one costs λ_D (1 − σ(β(r − z))) and an undesirable one
    λ_U (1 − σ(β(z − r))). The sign of the advantage is the flag, see `guerdon.FlaggedDecisions`. The reference point
    is z = max(0, mean of r over the minibatch), without a gradient: the mismatched pairs of the paper are off the
    support of continuous actions. The weights are those of the paper's rule for the numbers of both labels in a batch:
    λ_D n_D / (λ_U n_U) in [1, 4/3].

    Choose β so that β times the standard deviation of r is about 1.

    Args:
        beta: How fast the loss saturates, above 0.
        reference: Policy that log-ratios are taken against; None takes a copy of the policy before its first update.
        seed: Random seed of the times and noises of a policy that has a surrogate in place of a density.

    Raises:
        ValueError: If β is not positive.
    """

    ratios = True

    def __init__(self, beta: float | int = 0.1, reference: Policy | None = None, seed: int = 0) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta {beta}: expected a positive number")
        self.beta, self.seed = beta, seed
        self.reference = None if reference is None else reference.requires_grad_(False).eval()

    def attach(self, policy: Policy) -> None:
        """Copy the policy as the reference, unless there is one already."""
        if self.reference is None:
            self.reference = copy.deepcopy(policy).requires_grad_(False).eval()

    def weights(self, batch: TrajectoryBatch, advantages: Advantages) -> Float[Tensor, "B N"]:
        """Weigh each label by the paper's rule, and decisions by the weight of their step.

        A batch with one label only keeps weights of 1.
        """
        desirable = advantages.valid & (advantages.advantages > 0)
        undesirable = advantages.valid & (advantages.advantages < 0)
        counts = int(desirable.sum()), int(undesirable.sum())
        factors = class_weights(*counts) if min(counts) > 0 else (1.0, 1.0)
        return super().weights(batch, advantages) * torch.where(desirable, factors[0], factors[1])

    def forward(
        self,
        policy: Policy,
        observation: Observation,
        decision: Decision,
        advantage: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> dict[str, Tensor]:
        """Compute the loss of M flagged decisions.

        Returns:
            ``loss``, and without gradients: ``desirable_reward`` and ``undesirable_reward``, mean β r of either label
            (NaN without one), ``reference_point`` z, and ``desirable_share`` of the decisions.

        Raises:
            ValueError: If no reference is attached.
        """
        if self.reference is None:
            raise ValueError("there is no reference yet: train with PolicyOptimizer, or call attach(policy) first")
        with torch.no_grad():
            base = decision_log_prob(self.reference, observation, decision, self.seed)
        ratio = self._log_prob(policy, observation, decision) - base
        desirable, point = advantage > 0, reference_point(ratio)
        rewards = self.beta * ratio.detach()
        return {
            "loss": kto(ratio, desirable, point, self.beta, weight=weight),
            "desirable_reward": rewards[desirable].mean(),
            "undesirable_reward": rewards[~desirable].mean(),
            "reference_point": point,
            "desirable_share": desirable.float().mean(),
        }

    def _log_prob(self, policy: Policy, observation: Observation, decision: Decision) -> Float[Tensor, " M"]:
        if isinstance(policy, HasSurrogate):
            return decision_log_prob(policy, observation, decision, self.seed)
        evaluation = self.evaluate(policy, observation, decision)
        return masked_sum(evaluation.log_prob, evaluation.unit_mask)


__all__ = ["UnpairedPreference"]
