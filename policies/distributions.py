"""Distributions of actions: one object for sample, log-probability and entropy, so that they cannot disagree.

A ratio of probabilities is right only if the density that is differentiated is the one that was sampled from. Here the
scale (with its bounds and factors), the temperature and the top-k restriction are part of the distribution.
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LOG_TAU = 0.5 * math.log(2 * math.pi)


def gaussian_log_prob(
    x: Float[Tensor, "*x"], mean: Float[Tensor, "*mean"], log_std: Float[Tensor, "*scale"]
) -> Float[Tensor, "*shape"]:
    """Compute the elementwise log-density of a Gaussian, −½((x − μ)/σ)² − log σ − ½ log 2π.

    Args:
        x: Points.
        mean: Mean μ; it broadcasts against the points.
        log_std: Logarithm of the standard deviation σ; it broadcasts too.
    """
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - _LOG_TAU


def laplace_log_prob(
    x: Float[Tensor, "*x"], mean: Float[Tensor, "*mean"], log_scale: Float[Tensor, "*scale"]
) -> Float[Tensor, "*shape"]:
    """Compute the elementwise log-density of a Laplace distribution, −abs(x − μ)/b − log b − log 2.

    Args:
        x: Points.
        mean: Location μ; it broadcasts against the points.
        log_scale: Logarithm of the scale b; it broadcasts too.
    """
    return -(x - mean).abs() * torch.exp(-log_scale) - log_scale - math.log(2)


@runtime_checkable
class ActionDistribution(Protocol):
    """Distribution of chunks of continuous actions (M, H, A), independent in every dimension."""

    @property
    def mean(self) -> Float[Tensor, "M H A"]:
        """Mean of every action dimension."""
        ...

    def __getitem__(self, index: int, /) -> Tensor:
        """Return the mean (0) or the logarithm of the scale (1)."""
        ...

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "M H A"]:
        """Draw actions; noise is drawn on the generator's device."""
        ...

    def log_prob(self, x: Float[Tensor, "M H A"]) -> Float[Tensor, "M H A"]:
        """Compute the elementwise log-density of actions."""
        ...

    def entropy(self) -> Float[Tensor, "M H A"]:
        """Compute the elementwise differential entropy in nats."""
        ...

    def error(self, x: Float[Tensor, "M H A"]) -> Float[Tensor, "M H A"]:
        """Compute the elementwise error of the mean, whose least sum is at the mean of maximum likelihood."""
        ...


class GaussianActions(NamedTuple):
    """Gaussian in every action dimension."""

    mean: Float[Tensor, "M H A"]
    log_std: Float[Tensor, "*scale"]
    """Logarithm of the standard deviation; it broadcasts against the mean."""

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "M H A"]:
        """Draw actions; noise is drawn on the generator's device."""
        place = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=place)
        return self.mean + noise.to(self.mean.device) * self.log_std.exp()

    def log_prob(self, x: Float[Tensor, "M H A"]) -> Float[Tensor, "M H A"]:
        """Compute the elementwise log-density of actions."""
        return gaussian_log_prob(x, self.mean, self.log_std)

    def entropy(self) -> Float[Tensor, "M H A"]:
        """Compute the elementwise differential entropy, log σ + ½ log 2πe."""
        return (self.log_std + (_LOG_TAU + 0.5)).expand_as(self.mean)

    def error(self, x: Float[Tensor, "M H A"]) -> Float[Tensor, "M H A"]:
        """Compute the squared error of the mean."""
        return (self.mean - x).square()


class LaplaceActions(NamedTuple):
    """Laplace distribution in every action dimension, for heads that are trained by absolute errors (RIPT-VLA)."""

    mean: Float[Tensor, "M H A"]
    log_scale: Float[Tensor, "*scale"]
    """Logarithm of the scale b; it broadcasts against the mean. The standard deviation is √2·b."""

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "M H A"]:
        """Draw actions by the inverse of the distribution function; noise is drawn on the generator's device."""
        place = self.mean.device if generator is None else generator.device
        uniform = torch.rand(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=place)
        centred = (uniform - 0.5).to(self.mean.device)  # in [−½, ½): a magnitude of ½ would be infinite
        magnitude = -torch.log1p(-2 * centred.abs().clamp(max=0.5 * (1 - torch.finfo(self.mean.dtype).eps)))
        return self.mean + centred.sign() * magnitude * self.log_scale.exp()

    def log_prob(self, x: Float[Tensor, "M H A"]) -> Float[Tensor, "M H A"]:
        """Compute the elementwise log-density of actions."""
        return laplace_log_prob(x, self.mean, self.log_scale)

    def entropy(self) -> Float[Tensor, "M H A"]:
        """Compute the elementwise differential entropy, 1 + log 2b."""
        return (self.log_scale + (1 + math.log(2))).expand_as(self.mean)

    def error(self, x: Float[Tensor, "M H A"]) -> Float[Tensor, "M H A"]:
        """Compute the absolute error of the mean."""
        return (self.mean - x).abs()


class BinnedActions(NamedTuple):
    """Categorical distribution over the bins of each action dimension: softmax(logits/temperature) of the k likeliest.

    Temperature and top-k are in the sample, the log-probability and the entropy alike. A bin that was recorded and is
    no longer among the k likeliest has the log-probability it would have as one more of them. It is finite, but not
    continuous in the logits: where the bin returns among the k, another one leaves, and the log-probability jumps up by
    at most log((k+1)/k).
    """

    logits: Float[Tensor, "*units bins"]
    """Logits of the bins, not yet divided by the temperature."""
    temperature: float | int = 1.0
    """Temperature, above 0."""
    top_k: int | None = None
    """Number of likeliest bins that can be drawn; None allows all."""

    def mode(self) -> Int[Tensor, "*units"]:
        """Return the likeliest bin."""
        return self.logits.argmax(-1)

    def sample(self, generator: torch.Generator | None = None) -> Int[Tensor, "*units"]:
        """Draw bins; the random numbers are drawn on the generator's device."""
        probabilities = self._allowed().softmax(-1)
        place = self.logits.device if generator is None else generator.device
        flat = probabilities.flatten(0, -2).to(place)
        drawn = torch.multinomial(flat, 1, generator=generator)
        return drawn.to(self.logits.device).view(self.logits.shape[:-1])

    def log_prob(self, x: Int[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        """Compute the log-probability of bins.

        Args:
            x: Number of each bin.
        """
        allowed = self._allowed(x)
        return allowed.log_softmax(-1).gather(-1, x[..., None]).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*units"]:
        """Compute the entropy in nats, of the bins that can be drawn."""
        allowed = self._allowed()
        log = allowed.log_softmax(-1)
        return -(log.exp() * log.masked_fill(allowed == -math.inf, 0.0)).sum(-1)

    def _allowed(self, kept: Tensor | None = None) -> Tensor:
        """Return tempered logits, −∞ outside of the k likeliest bins and of those in ``kept``."""
        if not 0 < self.temperature < math.inf or (self.top_k is not None and self.top_k < 1):
            raise ValueError(
                f"temperature {self.temperature}, top_k {self.top_k}: expected a temperature above 0 and at least one "
                "bin; without noise there is no likelihood, so act deterministically instead"
            )
        tempered = self.logits.float() / self.temperature
        if self.top_k is None or self.top_k >= tempered.shape[-1]:
            return tempered
        allowed = torch.zeros_like(tempered, dtype=torch.bool)
        allowed.scatter_(-1, tempered.topk(self.top_k, -1).indices, True)  # exactly k, whatever is tied
        if kept is not None:
            allowed.scatter_(-1, kept[..., None], True)
        return tempered.masked_fill(~allowed, -math.inf)


__all__ = [
    "ActionDistribution",
    "BinnedActions",
    "GaussianActions",
    "LaplaceActions",
    "gaussian_log_prob",
    "laplace_log_prob",
]
