"""Implicit reward of a policy against a reference, and how often it orders preference pairs as they were made."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.batch import PreferencePairs, TrajectoryBatch
from ...core.interfaces import Policy
from ...core.intervals import Estimate, wilson_estimate
from ...preference.surrogate import decision_log_prob
from ..rollouts.stream import evaluating


@torch.no_grad()
def row_log_probs(policy: Policy, batch: TrajectoryBatch, at_once: int = 1024) -> Float[Tensor, " B"]:
    """Compute the log-probability of every row under a policy: the sum over its decisions, in float64.

    Args:
        policy: Policy; it is put into evaluation mode meanwhile.
        batch: Rows with decisions.
        at_once: Largest number of decisions that are evaluated at a time.
    """
    total = torch.zeros(len(batch), dtype=torch.float64)
    rows, places = batch.decision_mask.nonzero(as_tuple=True)
    steps = batch.decision_step[rows, places]
    with evaluating(policy):
        for begin in range(0, len(rows), at_once):
            part = slice(begin, begin + at_once)
            observation, decision = batch.at(rows[part], steps[part], policy.horizon)
            each = decision_log_prob(policy, observation, decision)
            total.index_add_(0, rows[part].cpu(), each.double().cpu())
    return total


@dataclass(frozen=True, kw_only=True)
class PairLogProbs:
    """Log-probabilities of the two sides of pairs under one policy."""

    chosen: Tensor
    rejected: Tensor

    def relative_to(self, reference: "PairLogProbs") -> "PairLogProbs":
        """Return the log-ratios to a reference."""
        return PairLogProbs(chosen=self.chosen - reference.chosen, rejected=self.rejected - reference.rejected)

    def accuracy(self) -> Estimate:
        """Return the share of pairs whose chosen side has the larger value, a tie as half; Wilson's interval."""
        right = (self.chosen > self.rejected).double() + 0.5 * (self.chosen == self.rejected).double()
        found = wilson_estimate(int(right.sum().round()), len(right))
        return Estimate(value=float(right.mean()) if len(right) else found.value, low=found.low, high=found.high)


def pair_log_probs(policy: Policy, pairs: PreferencePairs) -> PairLogProbs:
    """Compute the log-probabilities of both sides of pairs.

    Args:
        policy: Policy.
        pairs: Preference pairs, on the device of the policy.
    """
    each = row_log_probs(policy, pairs.batch) if len(pairs) else torch.zeros(0, dtype=torch.float64)
    return PairLogProbs(chosen=each[pairs.chosen.cpu()], rejected=each[pairs.rejected.cpu()])


def learning_summary(before: PairLogProbs, after: PairLogProbs, reference: PairLogProbs) -> dict[str, Any]:
    """Summarise what training did to the log-probabilities of pairs.

    Args:
        before: Log-probabilities before training.
        after: Log-probabilities after it.
        reference: Those of the policy that the implicit reward is relative to.

    Returns:
        ``accuracy`` of the implicit reward, before and after with its interval, and the mean ``log_prob`` of either
        side, before and after: it shows whether the chosen rollouts became less likely too.
    """
    first, last = before.relative_to(reference).accuracy(), after.relative_to(reference).accuracy()
    return {
        "accuracy": {"before": first.value, "after": last.value, "low": last.low, "high": last.high},
        "log_prob": {
            side: {"before": _mean(one), "after": _mean(two)}
            for side, one, two in (
                ("chosen", before.chosen, after.chosen),
                ("rejected", before.rejected, after.rejected),
            )
        },
    }


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


__all__ = ["PairLogProbs", "learning_summary", "pair_log_probs", "row_log_probs"]
