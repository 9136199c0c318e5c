"""What a policy is trained to minimise on a minibatch of decisions."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import Decision, Observation
from ..core.interfaces import Objective, Policy
from ..core.losses import clipped_surrogate


class ClippedSurrogate(Objective):
    """PPO (Schulman et al. 2017, arXiv:1707.06347, Eq. 7) on decisions.

    The ratio of a decision is the product over the units that were carried out, so a chunk of h' steps is one action of
    a semi-Markov decision process.

    Args:
        clip_low: The ratio is clipped below at 1 − clip_low …
        clip_high: … and above at 1 + clip_high.
        entropy_weight: Bonus on the entropy of the steps carried out.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, entropy_weight: float = 0.0) -> None:
        super().__init__()
        self.clip_low, self.clip_high, self.entropy_weight = clip_low, clip_high, entropy_weight

    def forward(
        self,
        policy: Policy,
        observation: Observation,
        decision: Decision,
        advantage: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> dict[str, Tensor]:
        """Loss, approximate KL divergence (Schulman's estimator, ratio − 1 − log ratio) and share of clipped ratios.

        Raises:
            ValueError: If the decisions carry no log-probability of the policy that took them.
        """
        if decision.log_prob is None:
            raise ValueError(
                "the clipped surrogate needs the log-probability of the policy that acted, and these logs have none: "
                "use rollouts of a policy, or an imitation objective for logged data"
            )
        now = policy.evaluate(observation, decision)
        unit_ratio = (now.log_prob - decision.log_prob).masked_fill(~now.unit_mask, 0.0)
        log_ratio = unit_ratio.sum(1)
        every = torch.ones_like(log_ratio, dtype=torch.bool)[:, None]
        surrogate = clipped_surrogate(
            log_ratio[:, None], (advantage * weight)[:, None], every, self.clip_low, self.clip_high, average="step"
        )
        loss = surrogate
        if self.entropy_weight and now.entropy is not None:
            loss = loss - self.entropy_weight * now.entropy.mean()
        with torch.no_grad():
            ratio = log_ratio.exp()
            outside = (ratio < 1 - self.clip_low) | (ratio > 1 + self.clip_high)
            figures = {
                "surrogate": surrogate.detach(),
                "kl": (ratio - 1 - log_ratio).mean(),
                "clipped": outside.float().mean(),
                "ratio_error": (ratio - 1).abs().amax(),
            }
            if now.entropy is not None:
                figures["entropy"] = now.entropy.mean()
        return {"loss": loss, **figures}


class WeightedImitation(Objective):
    """Imitation of logged chunks, each weighted by exp(advantage / temperature).

    Without a temperature every chunk counts the same, which is behaviour cloning. With one it is advantage-weighted
    regression (Peng et al. 2019, arXiv:1910.00177, Eq. 9), the exponent clipped to ±``clip`` before the exponential and
    the weights divided by their mean.

    Args:
        temperature: Scale of the advantages; None ignores them.
        clip: Largest absolute exponent.
    """

    def __init__(self, temperature: float | None = None, clip: float = 3.0) -> None:
        super().__init__()
        if temperature is not None and temperature <= 0:
            raise ValueError(f"expected a positive temperature or None, got {temperature}")
        self.temperature, self.clip = temperature, clip

    def forward(
        self,
        policy: Policy,
        observation: Observation,
        decision: Decision,
        advantage: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> dict[str, Tensor]:
        """Loss, and the effective share of the samples (effective sample size over their number)."""
        carried = torch.arange(decision.chunk.shape[1], device=weight.device)[None] < decision.executed[:, None]
        factor = weight
        if self.temperature is not None:
            factor = weight * (advantage / self.temperature).clamp(-self.clip, self.clip).exp()
        total = factor.sum().clamp(min=1e-8)
        error = policy.imitation_loss(observation, decision.chunk, carried)
        share = total.square() / (factor.square().sum().clamp(min=1e-8) * len(factor))
        return {"loss": (error * factor).sum() / total, "effective_share": share.detach()}
