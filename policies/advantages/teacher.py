"""Advantages of on-policy distillation: how much more likely a teacher finds what the policy did."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Policy, Proposer, RewardModel
from ...core.returns import discounted_returns


class TeacherAdvantage(AdvantageSource):
    """Advantage A = log π_teacher(a|s) − log π(a|s) of decisions that the policy made itself (on-policy distillation).

    Log-probabilities are summed over the units that were executed; that of the policy is the one that was recorded when
    it acted. The expectation of A·∇log π is minus the gradient of KL(π ‖ π_teacher) at the observations that the policy
    visits, so that the teacher's most likely behaviour is learned, where the student goes (Agarwal et al. 2024, GKD,
    arXiv 2306.13649, with reverse KL). No reward is needed.

    The teacher is frozen and kept in evaluation mode. It must read what the student's rollouts hold and have the same
    units: the same horizon, action size and, for tokens, the same bins.

    Args:
        teacher: Policy that is imitated.
        gamma: Discount factor per decision of the advantages of later decisions of a row, in [0, 1]; 0 makes each
            decision answer for itself. With 1 the sequence-level KL is minimised, by a noisier gradient.
        reward: Reward model whose rewards are logged; None logs 0.
        micro_batch: Number of decisions that the teacher evaluates at a time.

    Raises:
        ValueError: If the teacher cannot evaluate decisions, or a number makes no sense.
    """

    def __init__(
        self, teacher: Policy, gamma: float = 0.0, reward: RewardModel | None = None, micro_batch: int = 1024
    ) -> None:
        super().__init__()
        if type(teacher).evaluate is Policy.evaluate:
            raise ValueError(
                f"{type(teacher).__name__} cannot evaluate decisions, and the advantage is made of the teacher's "
                "log-probabilities: take a policy with evaluate(observation, decision)"
            )
        if not 0 <= gamma <= 1 or micro_batch < 1:
            raise ValueError(
                f"gamma {gamma}, micro_batch {micro_batch}: expected a discount in [0, 1], and at least one decision"
            )
        self.teacher = teacher.requires_grad_(False).eval()
        self.reward = None if reward is None else reward.requires_grad_(False).eval()
        self.gamma, self.micro_batch = gamma, micro_batch
        self.figures: dict[str, float] = {}

    def train(self, mode: bool = True) -> "TeacherAdvantage":
        """Set the mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def attach(self, policy: Policy) -> None:
        """Compare the teacher with the policy that is trained.

        Raises:
            ValueError: If they have chunks of different lengths or actions of different sizes.
        """
        super().attach(policy)
        own = {id(parameter) for parameter in self.teacher.parameters()}
        if any(id(parameter) in own for parameter in policy.parameters()):
            raise ValueError(
                "the teacher shares weights with the policy that is trained, so they are frozen: give the teacher a "
                "copy of its own"
            )
        for name in ("horizon", "action_size"):
            own, other = getattr(self.teacher, name, None), getattr(policy, name, None)
            if None not in (own, other) and own != other:
                raise ValueError(
                    f"the teacher {type(self.teacher).__name__} has {name} {own}, and {type(policy).__name__} has "
                    f"{other}: a teacher evaluates the student's chunks, so take one of the same {name}"
                )

    @torch.no_grad()
    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards that are logged; without a reward model every step gets 0 and is valid."""
        if self.reward is not None:
            return self.reward(batch)
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask)

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute the advantage of each decision; decisions that are context only are not valid.

        Raises:
            ValueError: If no log-probability was recorded, or the teacher has other units than the policy that acted.
        """
        mask = batch.decision_mask
        gaps = torch.zeros(mask.shape, dtype=batch.weight.dtype, device=mask.device)
        rows, decisions = mask.nonzero(as_tuple=True)
        for some, numbers in zip(rows.split(self.micro_batch), decisions.split(self.micro_batch), strict=True):
            if len(some):
                gaps[some, numbers] = self._gaps(batch, some, batch.decision_step[some, numbers]).to(gaps)
        advantages = gaps if self.gamma == 0 else discounted_returns(gaps, mask, self.gamma)
        step = batch.decision_step.clamp(0, max(batch.weight.shape[1] - 1, 0))
        valid = mask & (batch.weight.gather(1, step) > 0)
        self.figures = {"teacher_gap": float(gaps[valid].mean())} if bool(valid.any()) else {}
        advantages = advantages.masked_fill(~valid, 0.0)
        return Advantages(advantages=advantages, returns=advantages, valid=valid)

    def loss(self, batch: TrajectoryBatch, advantages: Advantages, rows: Tensor, steps: Tensor) -> dict[str, Tensor]:
        """Return the metric ``teacher_gap``: mean of log π_teacher − log π per decision; nothing is trained here."""
        return {name: torch.tensor(value, device=rows.device) for name, value in self.figures.items()}

    def _gaps(self, batch: TrajectoryBatch, rows: Tensor, steps: Tensor) -> Float[Tensor, " M"]:
        """Compute log π_teacher − log π of M decisions, over the units that were executed."""
        observation, decision = batch.at(rows, steps, self.teacher.horizon)
        if decision.log_prob is None:
            raise ValueError(
                "TeacherAdvantage needs the log-probability of the policy that acted, and these logs have none: use "
                "rollouts of a policy that records it"
            )
        found = self.teacher.evaluate(observation, decision)
        if found.log_prob.shape != decision.log_prob.shape:
            raise ValueError(
                f"the teacher {type(self.teacher).__name__} evaluates {found.log_prob.shape[1]} units per decision, "
                f"and the policy that acted recorded {decision.log_prob.shape[1]}: take a teacher of the same kind, "
                "horizon and action size"
            )
        executed: Bool[Tensor, "M U"] = found.unit_mask
        if "unit_mask" in decision.extras:
            executed = executed & decision.extras["unit_mask"].bool()
        return (found.log_prob - decision.log_prob).masked_fill(~executed, 0.0).sum(1)


__all__ = ["TeacherAdvantage"]
