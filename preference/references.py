"""References of preference optimisation: the policy that log-ratios are taken against."""

import copy
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from ..core.batch import Decision, Observation
from ..core.interfaces import Policy
from .surrogate import masked_sum

LogProb = Callable[[Policy, Observation, Decision], Float[Tensor, " M"]]
"""Function that computes log π(a|s) of M decisions under a policy."""


class Reference(nn.Module):
    """Reference of preference optimisation. `PreferenceOptimizer` asks it once for each batch, before it learns."""

    def attach(self, policy: Policy) -> None:
        """Build what depends on the policy as it is before its first update. Here: nothing does.

        Args:
            policy: Policy that is trained.

        Raises:
            ValueError: If the policy does not allow this reference.
        """

    def log_prob(
        self, policy: Policy, observation: Observation, decision: Decision, log_prob: LogProb
    ) -> Float[Tensor, " M"]:
        """Compute the log-probability of M decisions under the reference.

        Args:
            policy: Policy that is trained.
            observation: M observations.
            decision: M decisions.
            log_prob: Function that computes log-probabilities under a policy.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no log-probabilities: write log_prob(…)")


class FrozenReference(Reference):
    """Reference that is a frozen copy of a policy.

    Args:
        policy: Policy to compare with in every iteration, such as the one after supervised learning
            (`guerdon.pretrained_policy`). None copies the policy that is trained as it is before its first update:
            the previous iteration's.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        super().__init__()
        self.policy = None if policy is None else policy.requires_grad_(False).eval()

    def attach(self, policy: Policy) -> None:
        """Copy the policy, unless there is one already."""
        if self.policy is None:
            self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.policy.eval()

    def train(self, mode: bool = True) -> "FrozenReference":
        """Stay in evaluation mode."""
        return super().train(False)

    def log_prob(
        self, policy: Policy, observation: Observation, decision: Decision, log_prob: LogProb
    ) -> Float[Tensor, " M"]:
        """Compute the log-probability of M decisions under the copy."""
        if self.policy is None:
            raise ValueError("the reference has no policy yet: call attach(policy) before the first update")
        return log_prob(self.policy, observation, decision)


class RecordedReference(Reference):
    """Reference that is the policy which acted: the log-probabilities that it recorded, row by row, are read.

    It needs no second policy and no second pass. It is the previous iteration's policy where rollouts are fresh, and
    only where they were sampled at the temperature at which the policy is evaluated.
    """

    def log_prob(
        self, policy: Policy, observation: Observation, decision: Decision, log_prob: LogProb
    ) -> Float[Tensor, " M"]:
        """Sum the recorded log-probabilities of the executed units of M decisions.

        Raises:
            ValueError: If none were recorded, or one that counts is not finite.
        """
        if decision.log_prob is None:
            raise ValueError(
                "the decisions hold no log-probabilities of the policy that acted: use FrozenReference, or rollouts "
                "of a policy that records them"
            )
        mask = policy.evaluate(observation, decision).unit_mask
        total = masked_sum(decision.log_prob, mask)
        if not bool(total.isfinite().all()):
            raise ValueError(
                "a recorded log-probability is not finite: use FrozenReference, or leave that trajectory out"
            )
        return total


__all__ = ["FrozenReference", "LogProb", "RecordedReference", "Reference"]
