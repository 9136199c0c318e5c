"""The robotic process reward of VLA-RL as a trained model, paid in one of three ways.

| mode | reward of step t | summed over an episode |
|---|---|---|
| `additive` | bonus · R_φ(o_t, a_t): is the step labelled? | grows with the time in labelled states |
| `first_hit` | bonus for every milestone passed for the first time | at most bonus · milestones |
| `potential` | β (γ Φ_{t+1} − Φ_t), Φ = progress, 0 after an end | discounted, −β Φ_0 after an end |

The paper pays `additive`.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...backbones.language import TextEncoder
from ...backbones.vision import VisionEncoder
from ...core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ...core.interfaces import RewardModel
from ..heads import Heads
from ..observed import ObservedReward, Tokens, balanced_bernoulli, required_label
from ..shaping import potential_difference
from .labels import MILESTONE

Mode = Literal["additive", "first_hit", "potential"]
MODES: tuple[Mode, ...] = ("additive", "first_hit", "potential")

_ACTION_CLIP = 10.0  # a reward must not blow up on a sample far outside the action's range


class Paid(RewardModel):
    """Base of rewards that know which steps are labelled and how many milestones are passed; it pays for them.

    Args:
        mode: What is paid; see the module.
        milestones: How many milestones there are; progress k / milestones means that k are passed.
        bonus: Paid for a labelled step (`additive`), or for a milestone (`first_hit`).
        beta: Weight of the potential.
        gamma: Discount of the potential: that of the returns that will be taken.
        slack: Progress that may be missing when a milestone counts as passed in `first_hit`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        mode: Mode = "potential",
        milestones: int = 4,
        bonus: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.99,
        slack: float = 0.0,
    ) -> None:
        super().__init__()
        self._set_payment(mode, milestones, bonus, beta, gamma, slack)

    def _set_payment(self, mode: Mode, milestones: int, bonus: float, beta: float, gamma: float, slack: float) -> None:
        """Check and keep how it pays. Only for constructors: what is set later is in no record of the arguments."""
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}: expected one of {', '.join(MODES)}")
        if milestones < 1 or not math.isfinite(bonus) or not math.isfinite(beta):
            raise ValueError(
                f"milestones {milestones}, bonus {bonus}, beta {beta}: expected at least 1 and two numbers"
            )
        if not 0 <= gamma <= 1 or not 0 <= slack < 1:
            raise ValueError(f"gamma {gamma}, slack {slack}: expected 0 … 1, and at least 0 and below 1")
        self.mode, self.milestones, self.bonus = mode, milestones, bonus
        self.beta, self.gamma, self.slack = beta, gamma, slack

    def pay(self, labelled: Labelled, progress: Labelled, batch: TrajectoryBatch) -> RewardEstimates:
        """Rewards in this mode.

        Args:
            labelled: (B, T) in [0, 1]: how much each step counts as leading to a keyframe.
            progress: (B, T+1) in [0, 1].
            batch: On the same device.

        Returns:
            ``terms["milestone"]`` is what `additive` would pay, in every mode, where the reward is valid.
        """
        z = torch.where(progress.valid, progress.values.float(), 0.0)
        known = progress.valid
        if self.mode == "additive":
            rewards, valid = self.bonus * labelled.values.float(), labelled.valid
        elif self.mode == "first_hit":
            # half a millionth, because 3 · (1/3) may fall short of 1
            passed = torch.where(known, ((z + self.slack) * self.milestones + 5e-7).floor(), -1.0)
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


class MilestoneReward(ObservedReward, Paid):
    """A causal model of the milestone labels: which steps lead to a keyframe, and how many milestones are passed.

    A binary head beside the action gives the chance that a step leads to a keyframe (R_φ(o_t, a_t)); a head of 101 bins
    gives progress z (two-hot, as in `ProgressReward`). Train it on the labels of
    `guerdon.rewards.milestones.labels.MilestoneLabels`. The paper generates the word "0" or "1" with a fine-tuned
    vision-language model and direct sum of rewards; here the head is binary and any encoder will do.

    Between evaluated frames both hold their last value, with the action of the step.

    Args:
        state_size: S; 0 reads no state.
        action_size: A; 0 reads no action, and the binary head judges the observation alone.
        cameras: Cameras to look through.
        encoder: Turns frames into features; a frozen one takes them from ``batch.features`` where they are there.
        text: Turns instructions into features.
        width: D of the hidden stream.
        layers: Blocks of the causal transformer; 0 looks at each observation alone.
        heads: Attention heads.
        dropout: Of the transformer.
        positions: Tell the transformer the time.
        fusion: Mean or sum of the cameras' projections.
        frame_size: Shorter side of the frames, in pixels; None as recorded.
        frames_every: Every how many recorded frames one is evaluated when scoring; the last one always is.
        since_start: Also show how a camera's features changed since the row's first frame.
        bins: Of progress.
        mode: What is paid; see `Paid`.
        milestones: How many milestones the labels have: 4 where the path gives them, else those of the gripper and 1.
        bonus: Paid for a labelled step, or for a milestone.
        beta: Weight of the potential.
        gamma: Discount of the potential.
        slack: Progress that may be missing when a milestone counts as passed.
        threshold: Chance from which on `additive` pays the whole bonus, as the paper's 0 or 1; None pays the chance.
        pseudo_reward: Weight of positives against negatives in the loss; 1 balances them.
        milestone_loss_weight: Weight of the binary head's loss beside progress.
    """

    def __init__(
        self,
        state_size: int = 0,
        action_size: int = 0,
        cameras: tuple[str, ...] | list[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        width: int = 64,
        layers: int = 0,
        heads: int = 4,
        dropout: float = 0.0,
        positions: bool = False,
        fusion: Literal["mean", "sum"] = "mean",
        frame_size: int | None = None,
        frames_every: int = 1,
        since_start: bool = True,
        bins: int = 101,
        mode: Mode = "potential",
        milestones: int = 4,
        bonus: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.99,
        slack: float = 0.05,
        threshold: float | None = 0.5,
        pseudo_reward: float = 1.0,
        milestone_loss_weight: float = 1.0,
    ) -> None:
        ObservedReward.__init__(
            self,
            state_size=state_size,
            cameras=cameras,
            encoder=encoder,
            text=text,
            width=width,
            layers=layers,
            heads=heads,
            dropout=dropout,
            positions=positions,
            fusion=fusion,
            frame_size=frame_size,
            frames_every=frames_every,
            since_start=since_start,
        )
        self._set_payment(mode, milestones, bonus, beta, gamma, slack)
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}: expected one in (0, 1), or None to pay the chance itself")
        if action_size < 0 or pseudo_reward <= 0 or milestone_loss_weight < 0:
            raise ValueError(
                f"action_size {action_size}, pseudo_reward {pseudo_reward}, milestone_loss_weight "
                f"{milestone_loss_weight}: expected at least 0, above 0 and at least 0"
            )
        self.action_size, self.threshold = action_size, threshold
        self.pseudo_reward, self.milestone_loss_weight = pseudo_reward, milestone_loss_weight
        self.head = Heads(width, predicts=("progress",), bins=bins)
        self.step_head = nn.Sequential(nn.Linear(width + action_size, width), nn.GELU(), nn.Linear(width, 1))

    def _step_logits(self, tokens: Tokens, batch: TrajectoryBatch) -> Float[Tensor, "B T"]:
        """Logit of each step from the token held at its observation and its action."""
        if batch.actions.shape[2] != self.action_size and self.action_size:
            raise ValueError(
                f"{type(self).__name__} reads actions of {self.action_size} numbers, these trajectories have "
                f"{batch.actions.shape[2]}: train a model for this robot, or pass what it was made for"
            )
        place, _ = tokens.held(batch)
        hidden = tokens.hidden.gather(1, place[:, :-1, None].expand(-1, -1, self.width))
        if self.action_size:
            action = torch.where(batch.mask[..., None], batch.actions.float(), 0.0)
            if not bool(action.isfinite().all()):
                raise ValueError("an action is NaN or infinite at a real step: remove or repair the episode")
            hidden = torch.cat([hidden, action.clamp(-_ACTION_CLIP, _ACTION_CLIP)], dim=-1)
        return self.step_head(hidden).squeeze(-1).float()

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate both and pay.

        Raises:
            ValueError: If states or actions have another width, or a real number is NaN.
        """
        tokens = self.look(batch)
        batch = tokens.beside(batch)
        progress = self.head.estimates(tokens, batch).progress
        assert progress is not None
        chance = self._step_logits(tokens, batch).sigmoid()
        labelled = chance if self.threshold is None else (chance >= self.threshold).float()
        known = tokens.held(batch)[1][:, :-1] & batch.mask
        return self.pay(Labelled(values=torch.where(known, labelled, 0.0), valid=known), progress, batch)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Cross-entropy of the labelled steps, positives and negatives counted alike, plus that of progress.

        ½ · pseudo_reward · mean over positives of −log σ(z) + ½ · mean over negatives of −log(1 − σ(z)), on steps whose
        label is known; a side without any gives 0.

        Raises:
            ValueError: If the batch holds neither ``labels["milestone"]`` nor ``labels["progress"]``, or a label that
                is not one number in [0, 1] per step.
        """
        found = required_label(batch, (MILESTONE, "progress"), type(self).__name__)
        tokens = self.look(batch)
        batch = tokens.beside(batch)
        logits = self._step_logits(tokens, batch)
        total, parts = 0.0 * logits.sum(), dict[str, Tensor]()
        if "progress" in found:
            parts |= self.head.loss(tokens, batch)
            total = total + parts.pop("loss")
        if MILESTONE in found:
            label = batch.labels[MILESTONE]
            if label.values.shape != batch.mask.shape:
                raise ValueError(
                    f"labels[{MILESTONE!r}]: expected one number per step {tuple(batch.mask.shape)}, got "
                    f"{tuple(label.values.shape)}"
                )
            known = label.valid & batch.mask & tokens.held(batch)[1][:, :-1]
            if bool((known & ~((label.values >= 0) & (label.values <= 1))).any()):
                raise ValueError(f"labels[{MILESTONE!r}]: expected numbers in [0, 1] where they are known")
            wanted = torch.where(known, label.values.float(), 0.0)
            weight = torch.where(batch.mask, batch.weight, 0.0)
            sides: list[Tensor] = []
            for side, name in ((wanted >= 0.5, "positives"), (wanted < 0.5, "negatives")):
                target = Labelled(values=(wanted >= 0.5).float(), valid=known & side)
                loss, counts = balanced_bernoulli(logits, target, weight)
                sides.append(loss)
                parts[f"milestone_{name}"] = counts[f"success_{name}"]
            parts["milestone_loss"] = self.pseudo_reward * sides[0] + sides[1]
            right = ((logits >= 0) == (wanted >= 0.5)) & known
            parts["milestone_accuracy"] = (right.sum() / known.sum().clamp(min=1)).detach()
            total = total + self.milestone_loss_weight * parts["milestone_loss"]
        return {"loss": total, **parts}


def in_mode(
    model: MilestoneReward, mode: Mode, beta: float | None = None, bonus: float | None = None
) -> MilestoneReward:
    """The same trained model, paid in another way; its own weights are copied, an encoder is shared.

    Args:
        model: A trained model.
        mode: What is paid; see `Paid`.
        beta: Weight of the potential; None keeps the model's.
        bonus: Paid for a labelled step, or for a milestone; None keeps the model's.
    """
    paid = {"mode": mode, "beta": beta, "bonus": bonus}
    args: dict[str, Any] = {**model.init_args, **{name: value for name, value in paid.items() if value is not None}}
    other = MilestoneReward(**args)
    other.load_state_dict(model.state_dict())
    return other.to(model.norm.weight.device).train(model.training)


__all__ = ["MODES", "MilestoneReward", "Mode", "Paid", "in_mode"]
