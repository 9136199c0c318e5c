"""State value as a distribution over evenly spaced returns, after RECAP."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core.batch import Observation
from ..core.losses import from_two_hot, two_hot
from .value import Cuts, StateCritic

_BEYOND = 1e-5  # rounding errors in sums of scaled rewards do not count as clamped


class DistributionalValue(StateCritic):
    """p(return | s) over evenly spaced bins, learned by cross-entropy; V(s) = Σ p z (RECAP, arXiv 2511.14759, Eq. 1).

    The bins are in the unit of the rewards, and the critic normalises nothing. Scale the rewards so that returns lie in
    [−1, 0]; rewards and values then have one unit wherever they are compared. That scale must be a division alone
    (`StepCost` divides by the largest magnitude of a return). A map (R − min)/(max − min) − 1 of returns would shift
    every bootstrapped advantage by −max/(max − min) as soon as the largest return is negative.

    A target outside the bins is moved to the outermost one. The metric ``clamped`` is the share of such targets: if it
    is not 0, widen the bins or scale the rewards.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        hidden: Widths of the hidden layers (tanh).
        feature_sizes: Width of every frozen feature that is read in addition to the state, by its name
            ``encoder/camera``; a width of None is taken from the data.
        bins: Number of bins, at least 2.
        low: Return of the first bin, in the unit of the rewards.
        high: Return of the last bin, in the unit of the rewards.
        gamma: Discount factor per step, in [0, 1]; RECAP has none.
        lam: Parameter λ of TD(λ), in [0, 1]: 1 is Monte-Carlo, as published.
        cuts: Treatment of rows that did not terminate: ``"bootstrap"``, ``"leave_out"`` or ``"end"``; see
            `StateCritic`. As published only whole returns count.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        state_size: int | None = None,
        hidden: Sequence[int] = (128, 128),
        feature_sizes: Mapping[str, int | None] | None = None,
        bins: int = 201,
        low: float = -1.0,
        high: float = 0.0,
        gamma: float = 1.0,
        lam: float = 1.0,
        cuts: Cuts = "leave_out",
    ) -> None:
        if bins < 2 or not low < high:
            raise ValueError(f"bins {bins}, low {low}, high {high}: expected at least two bins, and low below high")
        super().__init__(
            state_size=state_size,
            hidden=hidden,
            feature_sizes=feature_sizes,
            outputs=bins,
            gamma=gamma,
            lam=lam,
            cuts=cuts,
        )
        self.bins, self.low, self.high = bins, low, high

    def log_probabilities(self, observation: Observation) -> Float[Tensor, "M bins"]:
        """Compute the logarithm of the distribution at each of M observations."""
        return self.outputs(observation).float().log_softmax(1)

    def probabilities(self, observation: Observation) -> Float[Tensor, "M bins"]:
        """Compute the distribution at each of M observations; bin i stands for low + i (high − low)/(bins − 1)."""
        return self.log_probabilities(observation).exp()

    def value(self, observation: Observation) -> Float[Tensor, " M"]:
        """Compute the mean of the distribution at each of M observations, in [low, high]."""
        return from_two_hot(self.probabilities(observation), self.low, self.high)

    def loss_of(
        self, observation: Observation, targets: Float[Tensor, " M"]
    ) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"], dict[str, Tensor]]:
        """Compute the cross-entropy to the two bins around each target, and the metrics ``clamped`` and ``entropy``."""
        found = self.log_probabilities(observation)
        wanted = two_hot(targets, self.low, self.high, self.bins)
        beyond = (targets < self.low - _BEYOND) | (targets > self.high + _BEYOND)
        with torch.no_grad():
            certain = found.exp()
            entropy = -(certain * found).sum(1).mean()
        values = from_two_hot(certain, self.low, self.high)
        metrics = {"clamped": beyond.float().mean(), "entropy": entropy}
        return F.cross_entropy(found, wanted, reduction="none"), values, metrics


__all__ = ["DistributionalValue"]
