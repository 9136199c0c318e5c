"""How milestones are paid: the robotic process reward of VLA-RL (Lu et al. 2025, arXiv:2505.18719), and two others.

| mode | reward of step t | summed over an episode |
|---|---|---|
| `additive` | bonus · R_φ(o_t, a_t): does the step lead to a keyframe? | grows with the time in labelled states |
| `first_hit` | bonus for every milestone passed for the first time | at most bonus · milestones |
| `potential` | β (γ Φ_{t+1} − Φ_t), Φ = progress, 0 after an end | discounted, −β Φ_0 after an end |

The paper pays `additive`.
"""

import math
from typing import Literal

import torch

from ...core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ...core.interfaces import Component
from ..shaping import potential_difference
from .labels import MILESTONE

Mode = Literal["additive", "first_hit", "potential"]
MODES: tuple[Mode, ...] = ("additive", "first_hit", "potential")


class MilestonePayment(Component):
    """Rewards of trajectories whose labelled steps and passed milestones are known or estimated.

    Args:
        mode: Rule of payment: ``"additive"``, ``"first_hit"`` or ``"potential"``; see the module.
        milestones: Number of milestones of an episode, at least 1: progress k / milestones means that k are passed.
            None takes that of the model: 4 in `MilestoneReward`, the number of stages in `MilestoneOracle`.
        bonus: Reward of a labelled step (`additive`) or of a milestone (`first_hit`).
        beta: Weight of the potential.
        gamma: Discount factor of the potential, in [0, 1]: that of the returns that will be taken.
        slack: Progress that may be missing when a milestone counts as passed in `first_hit`, in [0, 1). None takes
            that of the model: 0.05 in `MilestoneReward`, which estimates progress, 0 in `MilestoneOracle`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        mode: Mode = "potential",
        milestones: int | None = None,
        bonus: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.99,
        slack: float | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}: expected one of {', '.join(MODES)}")
        if (milestones is not None and milestones < 1) or not math.isfinite(bonus) or not math.isfinite(beta):
            raise ValueError(
                f"milestones {milestones}, bonus {bonus}, beta {beta}: expected at least 1 and two finite numbers"
            )
        if not 0 <= gamma <= 1 or not 0 <= (slack or 0.0) < 1:
            raise ValueError(f"gamma {gamma}, slack {slack}: expected 0 … 1, and at least 0 and below 1")
        self.mode: Mode = mode
        self.milestones, self.bonus, self.beta = milestones, bonus, beta
        self.gamma, self.slack = gamma, slack

    def filled(self, milestones: int, slack: float) -> "MilestonePayment":
        """Return the payment with the numbers of a model where it names none.

        Args:
            milestones: Number of milestones of an episode, at least 1.
            slack: Progress that may be missing when a milestone counts as passed, in [0, 1).
        """
        return MilestonePayment(
            mode=self.mode,
            milestones=milestones if self.milestones is None else self.milestones,
            bonus=self.bonus,
            beta=self.beta,
            gamma=self.gamma,
            slack=slack if self.slack is None else self.slack,
        )

    def pay(self, labelled: Labelled, progress: Labelled, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards of a batch.

        Args:
            labelled: (B, T) in [0, 1]: how much each step counts as leading to a keyframe.
            progress: (B, T+1) in [0, 1].
            batch: The trajectories, on the same device.

        Returns:
            ``terms["milestone"]`` is what `additive` would pay, in every mode, where the reward is valid.

        Raises:
            ValueError: If `first_hit` is to be paid without a number of milestones.
        """
        z = torch.where(progress.valid, progress.values.float(), 0.0)
        known = progress.valid
        if self.mode == "additive":
            rewards, valid = self.bonus * labelled.values.float(), labelled.valid
        elif self.mode == "first_hit":
            if self.milestones is None:
                raise ValueError("first_hit needs the number of milestones: give milestones")
            # half a millionth, because 3 · (1/3) may fall short of 1
            passed = torch.where(known, ((z + (self.slack or 0.0)) * self.milestones + 5e-7).floor(), -1.0)
            best = passed.clamp(max=self.milestones).cummax(1).values
            rewards = self.bonus * torch.where(best[:, :-1] >= 0, best[:, 1:] - best[:, :-1], 0.0)
            valid = known[:, 1:] & known[:, :-1]
        else:
            change, valid = potential_difference(z, known, batch, self.gamma)
            rewards = self.beta * change
        valid = valid & batch.mask
        bonus = torch.where(valid & labelled.valid, self.bonus * labelled.values.float(), 0.0)
        return RewardEstimates(
            rewards=torch.where(valid, rewards, 0.0), valid=valid, progress=progress, terms={MILESTONE: bonus}
        )


__all__ = ["MODES", "MilestonePayment", "Mode"]
