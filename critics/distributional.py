"""A state value as a distribution over evenly spaced returns, after RECAP."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core.batch import Observation
from ..core.losses import from_two_hot, two_hot
from .value import Cuts, StateCritic

_BEYOND = 1e-5  # rounding in sums of scaled rewards is no clamping


class DistributionalValue(StateCritic):
    """p(return | s) over evenly spaced bins, learned by cross-entropy; V(s) = Σ p z (RECAP, arXiv 2511.14759, Eq. 1).

    The bins lie in the units of the rewards. Nothing is normalised in here: scale the rewards, so that returns reach
    from −1 to 0, and whatever compares rewards with values compares like with like. That scale must be a division alone
    (`StepCost` does it, by the largest magnitude of a return). A map (R − min)/(max − min) − 1 of returns would shift
    every bootstrapped advantage by −max/(max − min) as soon as the largest return is negative.

    A target outside the bins is moved to the outermost one and counted: ``clamped`` is the share of such targets. If it
    is not 0, widen the bins or scale the rewards.

    Args:
        state_size: Width S of the state.
        hidden: Widths of the hidden layers (tanh).
        feature_sizes: Frozen features to look at beside the state: name → width.
        bins: Number of bins.
        low: Return of the first bin.
        high: Return of the last bin.
        gamma: Discount per step; RECAP has none.
        lam: λ of TD(λ): 1 is Monte-Carlo, as published.
        cuts: What a row that did not terminate means; see `StateCritic`. As published only whole returns count.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        state_size: int,
        hidden: Sequence[int] = (128, 128),
        feature_sizes: Mapping[str, int] | None = None,
        bins: int = 201,
        low: float = -1.0,
        high: float = 0.0,
        gamma: float = 1.0,
        lam: float = 1.0,
        cuts: Cuts = "leave_out",
    ) -> None:
        if bins < 2 or not low < high:
            raise ValueError(f"bins {bins}, low {low}, high {high}: expected at least two bins, and low below high")
        super().__init__(state_size, hidden, feature_sizes, bins, gamma, lam, cuts)
        self.bins, self.low, self.high = bins, low, high

    def log_probabilities(self, observation: Observation) -> Float[Tensor, "M bins"]:
        """Logarithm of the distribution at each of M observations."""
        return self.network(self.reads(observation)).float().log_softmax(1)

    def probabilities(self, observation: Observation) -> Float[Tensor, "M bins"]:
        """Distribution over the bins at each of M observations; bin i stands for low + i (high − low)/(bins − 1)."""
        return self.log_probabilities(observation).exp()

    def value(self, observation: Observation) -> Float[Tensor, " M"]:
        """Mean of the distribution at each of M observations, in [low, high]."""
        return from_two_hot(self.probabilities(observation), self.low, self.high)

    def loss_of(
        self, observation: Observation, targets: Float[Tensor, " M"]
    ) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"], dict[str, Tensor]]:
        """Cross-entropy to the two bins around each target; the share of targets outside, and the mean entropy."""
        found = self.log_probabilities(observation)
        wanted = two_hot(targets, self.low, self.high, self.bins)
        beyond = (targets < self.low - _BEYOND) | (targets > self.high + _BEYOND)
        with torch.no_grad():
            certain = found.exp()
            entropy = -(certain * found).sum(1).mean()
        values = from_two_hot(certain, self.low, self.high)
        figures = {"clamped": beyond.float().mean(), "entropy": entropy}
        return F.cross_entropy(found, wanted, reduction="none"), values, figures


__all__ = ["DistributionalValue"]
