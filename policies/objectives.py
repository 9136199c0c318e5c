"""Objectives that a policy minimises on a minibatch of decisions."""

import warnings
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..core.batch import Advantages, Decision, Observation, TrajectoryBatch
from ..core.interfaces import Objective, Policy
from ..core.losses import clipped_surrogate
from .measures import ratio_metrics, require_finite_advantages
from .ranks import over_ranks
from .weights import Weighting, effective_share

Unit = Literal["token", "action", "chunk", "trajectory"]

_FEW = 0.2  # effective share below which imitation rests on a few samples
_PATIENCE = 3  # batches in a row


class ClippedSurrogate(Objective):
    """Clipped surrogate objective of PPO (Schulman et al. 2017, arXiv:1707.06347, Eq. 7).

    Published recipes differ in what one ratio is of, and in how its losses are averaged. By default the ratio of a
    decision is the product over the units that were executed, so that a chunk of h' steps is one action of a
    semi-Markov decision process, and all decisions of a minibatch weigh alike.

    Args:
        clip_low: Distance of the lower clip of the ratio from 1; see ``clip_mode``.
        clip_high: Distance of the upper clip of the ratio from 1: it is clipped above at 1 + ``clip_high``.
        entropy_weight: Weight of the entropy bonus of the executed steps.
        unit: What one ratio is of. ``"token"``: each unit of the log-probability, a token or an action dimension (LOOP,
            RIPT-VLA with QueST, SimpleVLA-RL); ``"action"``: each executed step (RIPT-VLA with OpenVLA-OFT, VLA-RL,
            RL4VLA); ``"chunk"``: each decision; ``"trajectory"``: each row of the batch, which leaves the clip soon.
        average: ``"step"``: mean over all units of a minibatch; ``"trajectory"``: mean over the units of each row, then
            over the rows; a number: sum of the rows' means over this number (LOOP divides by the configured number of
            rollouts). The last two need whole rows in a minibatch, as does the unit ``"trajectory"``: set
            ``minibatch_episodes`` of `guerdon.PolicyOptimizer`.
        clip_mode: ``"linear"``: the ratio is clipped below at 1 − ``clip_low``; ``"reciprocal"``: at 1/(1 +
            ``clip_low``), as in LOOP's released code.
        dual_clip: Largest loss of a unit whose advantage is negative, as a multiple of its size, above 1 (Ye et al.
            2020, arXiv:1912.09729, Eq. 3); None sets no limit.

    Raises:
        ValueError: If an argument makes no sense.
    """

    ratios = True

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        entropy_weight: float = 0.0,
        unit: Unit = "chunk",
        average: Literal["step", "trajectory"] | float | int = "step",
        clip_mode: Literal["linear", "reciprocal"] = "linear",
        dual_clip: float | int | None = None,
    ) -> None:
        super().__init__()
        if unit not in get_args(Unit):
            raise ValueError(f"unit {unit!r}: expected {', '.join(get_args(Unit))}")
        nothing = torch.zeros(0, 1)
        clipped_surrogate(nothing, nothing, None, clip_low, clip_high, average, clip_mode, dual_clip)  # checks them
        self.clip_low, self.clip_high, self.entropy_weight = clip_low, clip_high, entropy_weight
        self.unit: Unit = unit
        self.average: Literal["step", "trajectory"] | float | int = average
        self.clip_mode: Literal["linear", "reciprocal"] = clip_mode
        self.dual_clip = dual_clip

    @property
    def whole_rows(self) -> bool:
        """Whether a minibatch must hold all decisions of its rows."""
        return self.unit == "trajectory" or self.average != "step"

    def forward(
        self,
        policy: Policy,
        observation: Observation,
        decision: Decision,
        advantage: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> dict[str, Tensor]:
        """Compute the loss, the surrogate, the entropy, and the metrics of `guerdon.policies.measures.ratio_metrics`.

        Within ``on_minibatch`` rows are those of the batch; otherwise each decision is a row of its own.

        Args:
            policy: Policy that is trained.
            observation: M observations.
            decision: Decisions of the policy that acted, with its log-probabilities.
            advantage: Advantage of each decision.
            weight: Weight of each decision, as ``weights`` returned it.

        Raises:
            ValueError: If the decisions carry no log-probability of the policy that took them, or one of other units,
                or if the decisions of a trajectory have different advantages and the ratio is of the trajectory.
        """
        if decision.log_prob is None:
            raise ValueError(
                "the clipped surrogate needs the log-probability of the policy that acted, and these logs have none: "
                "use rollouts of a policy, or an imitation objective for logged data"
            )
        now = self.evaluate(policy, observation, decision)
        if now.log_prob.shape != decision.log_prob.shape:
            raise ValueError(
                f"expected recorded log-probabilities {tuple(now.log_prob.shape)}, got "
                f"{tuple(decision.log_prob.shape)}: another kind of policy made these rollouts"
            )
        units = (now.log_prob - decision.log_prob).masked_fill(~now.unit_mask, 0.0)
        ratios = self._ratios(units, now.unit_mask, decision.chunk.shape[1], advantage * weight)
        surrogate = clipped_surrogate(
            ratios.log_ratio,
            ratios.advantage,
            ratios.mask,
            self.clip_low,
            self.clip_high,
            self.average,
            self.clip_mode,
            self.dual_clip,
        )
        loss = surrogate
        if self.entropy_weight and now.entropy is not None:
            loss = loss - self.entropy_weight * now.entropy.mean()
        metrics = self._metrics(units.detach().sum(1), ratios, advantage)
        metrics["surrogate"] = surrogate.detach()
        if now.entropy is not None:
            metrics["entropy"] = now.entropy.detach().mean()
        return {"loss": loss, **metrics}

    def _ratios(self, units: Tensor, mask: Tensor, steps: int, advantage: Tensor) -> "_Ratios":
        """Combine the log-ratios (M, U) of units, in rows where the average or the ratio is by row."""
        if self.unit == "action":
            units, mask = by_action(units, mask, steps)
        elif self.unit != "token":
            if not self.whole_rows:
                return _Ratios(units.sum(1, keepdim=True), advantage[:, None], None)
            units, mask = units.sum(1, keepdim=True), torch.ones_like(mask[:, :1])
        if not self.whole_rows:
            return _Ratios(units, advantage[:, None].expand_as(units), mask)
        count = len(units)
        rows = torch.arange(count, device=units.device) if self._shared is None else self._shared.rows
        place = _Places(rows)
        if self.unit == "trajectory":
            return _Ratios(place.sum(units), place.common(advantage), None)
        return _Ratios(place.padded(units), place.padded(advantage[:, None].expand_as(units)), place.padded(mask))

    def _metrics(self, log_ratio: Tensor, ratios: "_Ratios", advantage: Tensor) -> dict[str, Tensor]:
        """Compute the metrics of the ratios that are clipped; the divergence is of decisions always."""
        low = self.clip_low / (1 + self.clip_low) if self.clip_mode == "reciprocal" else self.clip_low
        if ratios.mask is None and ratios.log_ratio.shape[0] == len(log_ratio):
            return ratio_metrics(log_ratio, advantage, low, self.clip_high)
        real = torch.ones_like(ratios.log_ratio, dtype=torch.bool) if ratios.mask is None else ratios.mask
        if not bool(real.any()):
            return ratio_metrics(log_ratio, advantage, low, self.clip_high)
        metrics = ratio_metrics(ratios.log_ratio.detach()[real], ratios.advantage[real], low, self.clip_high)
        if self.unit in ("token", "action"):  # the terms of a decision add up, with less noise than their product
            metrics["kl"] = metrics["kl"] * real.sum() / len(log_ratio)
        else:
            metrics["kl"] = (log_ratio.expm1() - log_ratio).mean()
        return metrics


class _Ratios(NamedTuple):
    """Logarithms of ratios (B, T) with their advantages; the mask is None where all are real."""

    log_ratio: Tensor
    advantage: Tensor
    mask: Tensor | None


class _Places:
    """Place of each of M decisions among those of its row.

    Args:
        rows: Row of each decision, in any order.
    """

    def __init__(self, rows: Int[Tensor, " M"]) -> None:
        self._row = torch.unique(rows, return_inverse=True)[1]
        order = torch.argsort(self._row, stable=True)
        count = torch.bincount(self._row)
        self._shape = (len(count), int(count.max()) if len(count) else 0)
        start = count.cumsum(0) - count
        self._place = torch.empty_like(self._row)
        self._place[order] = torch.arange(len(rows), device=rows.device) - start[self._row[order]]

    def padded(self, values: Shaped[Tensor, "M K"]) -> Shaped[Tensor, "R NK"]:
        """Put the values of the decisions of each row side by side; padding is 0 or False."""
        found = values.new_zeros((*self._shape, values.shape[1]))
        return found.index_put((self._row, self._place), values).flatten(1)

    def sum(self, values: Float[Tensor, "M K"]) -> Float[Tensor, "R 1"]:
        """Sum the values of the decisions of each row."""
        return values.new_zeros(self._shape[0]).index_add(0, self._row, values.sum(1))[:, None]

    def common(self, values: Float[Tensor, " M"]) -> Float[Tensor, "R 1"]:
        """Return the one value that all decisions of a row have.

        Raises:
            ValueError: If they differ.
        """
        found = values.new_zeros(self._shape[0]).index_put((self._row,), values)
        apart = (found[self._row] - values).abs()
        if len(values) and bool((apart > 1e-5 * values.abs().clamp(min=1)).any()):
            raise ValueError(
                f"the decisions of a trajectory have advantages that differ by {float(apart.max()):.3g}, and one ratio "
                "of a trajectory has one advantage: use an advantage source of whole episodes, such as GroupScore, or "
                "another unit"
            )
        return found[:, None]


def by_action(
    units: Float[Tensor, "M U"], mask: Bool[Tensor, "M U"], steps: int
) -> tuple[Float[Tensor, "M H"], Bool[Tensor, "M H"]]:
    """Sum the units of each of the H steps of a chunk; units are in the order (step, dimension).

    Args:
        units: Numbers of the units, 0 where masked.
        mask: True on the units that were executed.
        steps: Number H of steps.

    Raises:
        ValueError: If the units cannot be split into that many steps.
    """
    if units.shape[1] % steps or not units.shape[1]:
        raise ValueError(
            f"unit 'action': the policy has {units.shape[1]} units for chunks of {steps} steps, so they are no action "
            "dimensions; use the unit 'token' or 'chunk'"
        )
    split = (steps, units.shape[1] // steps)
    return units.unflatten(1, split).sum(2), mask.unflatten(1, split).any(2)


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
