"""Objectives that a policy minimises on a minibatch of decisions."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import Advantages, Decision, Observation, TrajectoryBatch
from ..core.interfaces import Objective, Policy
from ..core.losses import clipped_surrogate
from .measures import ratio_metrics, require_finite_advantages
from .ranks import over_ranks
from .weights import Weighting, effective_share

_FEW = 0.2  # effective share below which imitation rests on a few samples
_PATIENCE = 3  # batches in a row


class ClippedSurrogate(Objective):
    """Clipped surrogate objective of PPO (Schulman et al. 2017, arXiv:1707.06347, Eq. 7), on decisions.

    The ratio of a decision is the product over the units that were executed, so that a chunk of h' steps is one action
    of a semi-Markov decision process.

    Args:
        clip_low: Distance of the lower clip of the ratio from 1: it is clipped below at 1 − ``clip_low``.
        clip_high: Distance of the upper clip of the ratio from 1: it is clipped above at 1 + ``clip_high``.
        entropy_weight: Weight of the entropy bonus of the executed steps.
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
        """Compute the loss, the surrogate, the entropy, and the metrics of `guerdon.policies.measures.ratio_metrics`.

        Args:
            policy: Policy that is trained.
            observation: M observations.
            decision: Decisions of the policy that acted, with its log-probabilities.
            advantage: Advantage of each decision.
            weight: Weight of each decision, as ``weights`` returned it.

        Raises:
            ValueError: If the decisions carry no log-probability of the policy that took them.
        """
        if decision.log_prob is None:
            raise ValueError(
                "the clipped surrogate needs the log-probability of the policy that acted, and these logs have none: "
                "use rollouts of a policy, or an imitation objective for logged data"
            )
        now = self.evaluate(policy, observation, decision)
        unit_ratio = (now.log_prob - decision.log_prob).masked_fill(~now.unit_mask, 0.0)
        log_ratio = unit_ratio.sum(1)
        surrogate = clipped_surrogate(
            log_ratio[:, None], (advantage * weight)[:, None], None, self.clip_low, self.clip_high, average="step"
        )
        loss = surrogate
        if self.entropy_weight and now.entropy is not None:
            loss = loss - self.entropy_weight * now.entropy.mean()
        metrics = ratio_metrics(log_ratio.detach(), advantage, self.clip_low, self.clip_high)
        metrics["surrogate"] = surrogate.detach()
        if now.entropy is not None:
            metrics["entropy"] = now.entropy.detach().mean()
        return {"loss": loss, **metrics}


class WeightedImitation(Objective):
    """Imitation of logged chunks, weighted by their advantages.

    Without a weighting all chunks have the same weight, which is behaviour cloning. With `guerdon.policies.weights` it
    is advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177, Eq. 9), ALOE's actor (arXiv 2602.12691,
    Eq. 15), or filtered cloning. Weights are computed once per batch over all its decisions. So the weight of a chunk
    depends neither on its minibatch nor on the pass. A warning is given once if the effective sample size stays below a
    fifth of the decisions for three batches.

    Args:
        weighting: Weighting that turns advantages into weights; None ignores them.
        renormalise: Divide the weights of a batch by their mean over its decisions, in all processes (recommended for
            ALOE, where the weights of a bad batch are all small). The weight of a chunk then depends on the batch it
            was loaded with.
    """

    def __init__(self, weighting: Weighting | None = None, renormalise: bool = False) -> None:
        super().__init__()
        self.weighting, self.renormalise = weighting, renormalise
        self._few = 0
        self._warned = False

    @torch.no_grad()
    def weights(self, batch: TrajectoryBatch, advantages: Advantages) -> Float[Tensor, "B N"]:
        """Compute the weight of each decision; 0 where its advantage is not known.

        Args:
            batch: Trajectories.
            advantages: Advantages of their decisions.

        Raises:
            ValueError: If an advantage that counts as known is NaN or infinite.
        """
        valid = advantages.valid
        weight = super().weights(batch, advantages).masked_fill(~valid, 0.0)
        if self.weighting is not None:
            require_finite_advantages(batch, advantages)
            known, task = advantages.advantages[valid], batch.task[valid.nonzero(as_tuple=True)[0]]
            every = over_ranks(known)[0]
            if not len(every):
                return weight
            self.weighting.update(every, over_ranks(task)[0])
            weight[valid] *= self.weighting(known, task).to(weight.dtype)
            self._watch(float(effective_share(over_ranks(weight[valid])[0])))
        if self.renormalise:
            every = over_ranks(weight[valid])[0]
            mean = every.mean() if len(every) else weight.new_ones(())
            weight = weight / torch.where(mean > 0, mean, 1.0)
        return weight

    def _watch(self, share: float) -> None:
        """Warn once if the effective sample size stays small, batch after batch."""
        self._few = self._few + 1 if share < _FEW else 0
        if self._few == _PATIENCE and not self._warned:
            self._warned = True
            warnings.warn(
                f"the weights of the last {_PATIENCE} batches rest on less than {_FEW:.0%} of their decisions "
                f"(effective sample size over number, now {share:.1%}): the policy imitates a few chunks. Weigh more "
                "evenly (a larger beta or kappa, a smaller clip, a larger share), or look for outliers of the critic",
                stacklevel=4,
            )

    def forward(
        self,
        policy: Policy,
        observation: Observation,
        decision: Decision,
        advantage: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> dict[str, Tensor]:
        """Compute the weighted mean of the imitation losses, and the effective share of the minibatch.

        Args:
            policy: Policy that is trained.
            observation: M observations.
            decision: Logged decisions.
            advantage: Not used: it is in the weights already.
            weight: Weight of each decision, as ``weights`` returned it.
        """
        executed = torch.arange(decision.chunk.shape[1], device=weight.device)[None] < decision.executed[:, None]
        error = policy.imitation_loss(observation, decision.chunk, executed)
        loss = (error * weight).sum() / max(1, len(weight))
        return {"loss": loss, "effective_share": effective_share(weight)}
