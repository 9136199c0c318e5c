"""Generalised advantage estimation on the policy's decisions, and uniform advantages for cloning."""

import warnings
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.batch import Advantages, Observation, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Policy, Proposer, RewardModel
from ...core.returns import gae, macro_rewards
from ...critics.value import ValueFunction
from ...critics.value_head import ValueHead
from ...critics.value_loss import ValueLoss
from ..ranks import standardise_over_ranks

Discount = Literal["decision", "step"]


def at_decisions(batch: TrajectoryBatch, per_observation: Float[Tensor, "B Tp1"]) -> Float[Tensor, "B Np1"]:
    """Gather values at the decision observations and at the observation after the last step; 0 behind it.

    Args:
        batch: Trajectories.
        per_observation: A value per observation.
    """
    steps, real = _decision_observations(batch)
    return per_observation.gather(1, steps).masked_fill(~real, 0.0)


@torch.no_grad()
def values_at_decisions(
    critic: ValueFunction | ValueHead, batch: TrajectoryBatch, micro_batch: int
) -> Float[Tensor, "B Np1"]:
    """Estimate the value of the decision observations and of the observation after the last step; 0 behind it.

    Args:
        critic: Values of observations.
        batch: Trajectories.
        micro_batch: Number of observations that are valued at a time.
    """
    steps, real = _decision_observations(batch)
    rows, places = real.nonzero(as_tuple=True)
    values = torch.zeros(real.shape, device=batch.state.device)
    for row, place in zip(rows.split(micro_batch), places.split(micro_batch), strict=True):
        if len(row):
            values[row, place] = critic.value(batch.observe(row, steps[row, place])).to(values)
    return values


def executed_steps(batch: TrajectoryBatch) -> Int[Tensor, "B N"]:
    """Count the steps from each decision to the next, or to the end of the row; 0 on padding."""
    steps = _decision_observations(batch)[0]
    return (steps[:, 1:] - steps[:, :-1]).masked_fill(~batch.decision_mask, 0)


def _decision_observations(batch: TrajectoryBatch) -> tuple[Int[Tensor, "B Np1"], Bool[Tensor, "B Np1"]]:
    """Return the observation of each decision and the one after the last step, and a mask of these."""
    mask = batch.decision_mask
    count = mask.sum(1, keepdim=True)
    steps = torch.cat([batch.decision_step, batch.decision_step.new_zeros(len(mask), 1)], 1)
    index = torch.arange(steps.shape[1], device=steps.device)[None]
    return torch.where(index < count, steps, batch.steps[:, None]), index <= count


class RewardToGo(AdvantageSource):
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, Eq. 16) over decisions, on any reward.

    Rewards are summed from one decision to the next. A decision with an unknown reward gets a TD error of 0 and is not
    trained on; later rewards still reach earlier decisions. The same holds for a decision that leads to an observation
    that was never made, unless the row terminated there.

    Args:
        reward: Reward model; it is frozen and kept in evaluation mode. One that is not causal is used on whole episodes
            only.
        critic: State values, trained with the policy on the returns: a network of its own, or a `guerdon.ValueHead` on
            the policy's hidden state.
        potential: Reward model whose progress Φ shapes the reward: γΦ(s′) − Φ(s) is added at decision observations,
            with Φ = 0 after termination (Ng et al. 1999). The optimal policy stays the same. None adds nothing.
        gamma: Discount factor, in [0, 1].
        lam: Parameter λ of GAE per decision, in [0, 1].
        normalise: Standardise the advantages over the decisions of the rollout, those of all processes together.
        value_weight: Weight of the critic's loss.
        value_loss: Loss of a scalar critic, and the range of its values when advantages are formed; None takes the
            critic's own loss (the whole squared error for scalar critics).
        discount: Clock of ``gamma``. ``"decision"`` discounts once per decision. ``"step"`` discounts once per control
            step: a reward inside a chunk by the steps since its decision, and the value after k executed steps by γ^k.
            The two agree where every decision executes one step; where decisions execute different numbers of steps,
            only the second compares them on one clock.
        micro_batch: Number of observations that are valued at a time.

    Raises:
        ValueError: If ``discount`` is unknown, ``micro_batch`` is below 1, or there is a ``value_loss`` for a critic
            whose value is no regressed number.
    """

    def __init__(
        self,
        reward: RewardModel,
        critic: ValueFunction | ValueHead,
        potential: RewardModel | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
        normalise: bool = True,
        value_weight: float = 0.5,
        discount: Discount = "decision",
        micro_batch: int = 4096,
        value_loss: ValueLoss | None = None,
    ) -> None:
        super().__init__()
        if discount not in get_args(Discount) or micro_batch < 1:
            raise ValueError(
                f"discount {discount!r}, micro_batch {micro_batch}: expected {' or '.join(get_args(Discount))}, and at "
                "least one observation at a time"
            )
        if value_loss is not None and not critic.scalar:
            raise ValueError(
                f"value_loss: {type(critic).__name__} has a loss of its own, and clipping or Huber's loss need a value "
                "that is regressed, such as that of guerdon.ValueCritic or guerdon.ValueHead; leave value_loss out"
            )
        self.reward, self.critic, self.potential = reward.requires_grad_(False).eval(), critic, potential
        if potential is not None:
            potential.requires_grad_(False).eval()
        self.gamma, self.lam, self.normalise, self.value_weight = gamma, lam, normalise, value_weight
        self.discount: Discount = discount
        self.micro_batch, self.value_loss = micro_batch, value_loss
        self._warned = False

    def attach(self, policy: Policy) -> None:
        """Let a value head read the hidden state of the policy that is trained; other critics need nothing."""
        super().attach(policy)
        if isinstance(self.critic, ValueHead):
            self.critic.attach(policy)

    @torch.no_grad()
    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards of the rollout.

        Raises:
            ValueError: If the reward is not causal and a row is a piece of an unfinished episode.
            FloatingPointError: If a reward that counts as known is not finite.
        """
        unfinished = batch.offset + batch.steps < batch.length
        cut = (batch.end == 0) & (batch.steps > 0)
        if not self.reward.causal and bool((unfinished | cut).any()):
            raise ValueError(
                f"{type(self.reward).__name__} is not causal: it can score finished episodes only, and this rollout "
                "holds pieces that were cut; set groups of RolloutData, which plays whole episodes, or use a causal "
                "reward"
            )
        rewards = self.reward(batch)
        broken = rewards.valid & batch.mask & ~rewards.rewards.isfinite()
        if bool(broken.any()):
            row, step = (int(i) for i in broken.nonzero()[0])
            raise FloatingPointError(
                f"{type(self.reward).__name__} gave {float(rewards.rewards[row, step])} as a known reward (row {row}, "
                f"step {step}; {int(broken.sum())} in all): look for extreme states or frames, or a model that diverged"
            )
        return rewards

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute advantages and value targets (B, N); context-only decisions and unknown rewards are not valid.

        Raises:
            ValueError: If the potential estimates no progress.
            FloatingPointError: If a value is not finite.
        """
        mask = batch.decision_mask
        step = batch.decision_step.clamp(min=0)
        gained = rewards.rewards.masked_fill(~rewards.valid, 0.0)
        executed = executed_steps(batch)
        if self.discount == "step":
            inside, gamma = self.gamma, torch.pow(self.gamma, executed.double()).to(gained.dtype)
        else:
            inside, gamma = 1.0, self.gamma
            self._warn_of_lengths(executed)
        macro = macro_rewards(gained, batch.decision_step, batch.mask, inside)
        unknown = macro_rewards((~rewards.valid & batch.mask).float(), batch.decision_step, batch.mask) > 0
        raw = self._values(batch)
        values = raw if self.value_loss is None else self.value_loss.within_range(raw)
        last = torch.arange(mask.shape[1], device=mask.device)[None] == (mask.sum(1) - 1)[:, None]
        over = last & batch.terminated[:, None]
        unknown = unknown | (last & ~over & ~batch.last_observed[:, None])
        if self.potential is not None:
            scored = self.potential(batch).progress
            if scored is None:
                raise ValueError(f"{type(self.potential).__name__} gives no progress: it cannot be a potential")
            phi = at_decisions(batch, scored.values.masked_fill(~scored.valid, 0.0))
            known = at_decisions(batch, scored.valid.float()) > 0
            macro = macro + gamma * phi[:, 1:].masked_fill(over, 0.0) - phi[:, :-1]
            unknown = unknown | ~known[:, :-1] | (~known[:, 1:] & ~over)
        surprise_free = values[:, :-1] - gamma * values[:, 1:].masked_fill(over, 0.0)
        macro = torch.where(unknown, surprise_free, macro)
        estimate = gae(macro, values, mask, batch.terminated, gamma, self.lam)
        weight = batch.weight.gather(1, step.clamp(max=max(batch.weight.shape[1] - 1, 0)))
        valid = mask & ~unknown & (weight > 0)
        advantages = standardise_over_ranks(estimate.advantages, valid) if self.normalise else estimate.advantages
        return Advantages(
            advantages=advantages.masked_fill(~valid, 0.0), returns=estimate.returns, valid=valid, values=raw
        )

    def loss(
        self, batch: TrajectoryBatch, advantages: Advantages, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
    ) -> dict[str, Tensor]:
        """Compute the critic's loss of the returns at the decisions, times ``value_weight``, and its metrics.

        A `ValueCritic` and a `ValueHead` learn by squared errors, or by ``value_loss``; a `DistributionalValue` by
        cross-entropy to two bins. Within ``on_minibatch`` a value head reads the evaluation that the objective uses.

        Raises:
            ValueError: If a value head is used with a policy whose evaluation holds no hidden state.
        """
        observation, decisions = self.taken(batch, rows, steps)
        target = advantages.returns[rows, decisions]
        if isinstance(self.critic, ValueFunction) and self.value_loss is None:
            each, values, metrics = self.critic.loss_of(observation, target)
        else:
            values = self._value_with_gradient(observation, rows, steps)
            if self.value_loss is None:
                each, metrics = (values - target).square(), {}
            else:
                old = None if advantages.values is None else advantages.values[rows, decisions]
                each, metrics = self.value_loss(values, target, old)
        error = (values.detach() - target).square().mean()
        return {**metrics, "loss": self.value_weight * each.mean(), "value_error": error}

    def _value_with_gradient(
        self, observation: Observation, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
    ) -> Float[Tensor, " M"]:
        shared = self._shared
        if not isinstance(self.critic, ValueHead) or shared is None or rows is not shared.rows:
            return self.critic.value(observation)
        hidden = shared.evaluation.hidden
        if hidden is None:
            raise ValueError(
                f"{type(shared.policy).__name__} evaluates decisions without a hidden state, which a value head reads: "
                "return Evaluation(hidden=…), or take guerdon.ValueCritic"
            )
        return self.critic(hidden)

    def _values(self, batch: TrajectoryBatch) -> Float[Tensor, "B Np1"]:
        values = values_at_decisions(self.critic, batch, self.micro_batch)
        wrong = ~values.isfinite()
        if bool(wrong.any()):
            row, place = (int(i) for i in wrong.nonzero()[0])
            raise FloatingPointError(
                f"{type(self.critic).__name__} gave decision {place} of episode {int(batch.episode[row])} the value "
                f"{float(values[row, place])}: look for a critic that diverged (a smaller critic_learning_rate), or "
                "for extreme states"
            )
        return values

    def _warn_of_lengths(self, executed: Int[Tensor, "B N"]) -> None:
        """Warn once if decisions execute different numbers of steps; the last of a row may be cut."""
        if self._warned or self.gamma == 1:
            return
        followed = executed[:, :-1][executed[:, 1:] > 0]
        if len(followed) and bool(followed.amin() != followed.amax()):
            self._warned = True
            warnings.warn(
                f"the decisions of this batch execute {int(followed.amin())} to {int(followed.amax())} steps, and "
                f"gamma {self.gamma} discounts each of them once, however long it takes: set discount='step' (with a "
                "gamma per control step)",
                stacklevel=3,
            )


class Uniform(AdvantageSource):
    """Equal advantages of all logged decisions: with an imitation objective this is behaviour cloning."""

    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Return 0 for every step: no reward is needed."""
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask)

    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Return the advantage 1 on every decision that is not context only."""
        step = batch.decision_step.clamp(min=0)
        valid = batch.decision_mask & (batch.weight.gather(1, step) > 0)
        return Advantages(advantages=valid.float(), returns=valid.float(), valid=valid)
