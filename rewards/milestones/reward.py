"""The robotic process reward of VLA-RL as a trained model of keyframe steps and of progress over milestones."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...core.arguments import folds
from ...core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..encoded_observations import EncodedObservations
from ..heads import Heads, PredictionSettings
from ..observation_encoder import ObservationEncoder
from ..observed import ObservedReward, balanced_bernoulli, required_label
from .labels import MILESTONE
from .payment import MilestonePayment, Mode

_ACTION_CLIP = 10.0  # a reward must not blow up on a sample far outside the action's range
_MILESTONES, _SLACK = 4, 0.05  # of labels made from the path; of progress that is estimated


class MilestoneReward(ObservedReward):
    """Causal model of the milestone labels: which steps lead to a keyframe, and how many milestones are passed.

    A binary head over observation and action predicts the probability that a step leads to a keyframe (R_φ(o_t, a_t)).
    A head of 101 bins predicts progress z (two-hot, as in `ProgressReward`). Train it on the labels of
    `guerdon.MilestoneLabels`. The paper generates the word "0" or "1" with a fine-tuned
    vision-language model and sums these rewards; here the head is binary and any observer can be used.

    Between evaluated frames both hold their last value, with the action of the step.

    Args:
        state_size: S, numbers per state; 0 reads no state. None takes that of the observer, or of the training data.
        action_size: A, numbers per action; 0 reads no action, so that the binary head reads the observation alone.
            None takes the number from the training data.
        observer: Encoder of observations; None encodes each state alone (0 layers). The encoder's arguments may also
            be given here one by one, such as ``width=128``.
        payment: How the estimates are paid; None pays the change of a potential. Its arguments may also be given here
            one by one, such as ``mode="additive"``. Episodes whose milestones come from the path have 4 of them, others
            as many as the gripper gave and 1.
        bins: Number of centres of progress on [0, 1], at least 2.
        threshold: Probability from which on `additive` pays the whole bonus, in (0, 1), as the paper's 0 or 1; None
            pays the bonus times the probability.
        pseudo_reward: Weight of positives against negatives in the loss, above 0; 1 balances them.
        milestone_loss_weight: Weight of the binary head's loss next to that of progress, at least 0.

    Raises:
        ValueError: If an argument is out of its range, or the observer was made for another state size.
    """

    @folds(observer=partial(ObservationEncoder, layers=0), payment=MilestonePayment)
    def __init__(
        self,
        state_size: int | None = None,
        action_size: int | None = None,
        observer: ObservationEncoder | None = None,
        payment: MilestonePayment | None = None,
        bins: int = 101,
        threshold: float | None = 0.5,
        pseudo_reward: float = 1.0,
        milestone_loss_weight: float = 1.0,
    ) -> None:
        observer = ObservationEncoder(layers=0) if observer is None else observer
        super().__init__(state_size=state_size, observer=observer)
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}: expected one in (0, 1), or None to pay the probability itself")
        if (action_size or 0) < 0 or pseudo_reward <= 0 or milestone_loss_weight < 0:
            raise ValueError(
                f"action_size {action_size}, pseudo_reward {pseudo_reward}, milestone_loss_weight "
                f"{milestone_loss_weight}: expected at least 0, above 0 and at least 0"
            )
        payment = MilestonePayment() if payment is None else payment
        self.payment = payment.filled(milestones=_MILESTONES, slack=_SLACK)
        self.action_size, self.threshold = action_size, threshold
        self.pseudo_reward, self.milestone_loss_weight = pseudo_reward, milestone_loss_weight
        predictions, width = PredictionSettings(predicts=("progress",), bins=bins), self.observer.width
        if self.state_size is not None and action_size is not None:
            self.head = Heads(width, predictions)
            self.step_head = nn.Sequential(nn.Linear(width + action_size, width), nn.GELU(), nn.Linear(width, 1))

    def _step_logits(self, encoded: EncodedObservations, batch: TrajectoryBatch) -> Float[Tensor, "B T"]:
        """Predict the logit of each step from its action and the last evaluated observation."""
        if batch.actions.shape[2] != self.action_size and self.action_size:
            raise ValueError(
                f"{type(self).__name__} reads actions of {self.action_size} numbers, these trajectories have "
                f"{batch.actions.shape[2]}: train a model for this robot, or pass what it was made for"
            )
        place, _ = encoded.last_at_observations(batch)
        hidden = encoded.hidden.gather(1, place[:, :-1, None].expand(-1, -1, encoded.hidden.shape[2]))
        if self.action_size:
            action = torch.where(batch.mask[..., None], batch.actions.float(), 0.0)
            if not bool(action.isfinite().all()):
                raise ValueError("an action is NaN or infinite at a real step: remove or repair the episode")
            hidden = torch.cat([hidden, action.clamp(-_ACTION_CLIP, _ACTION_CLIP)], dim=-1)
        return self.step_head(hidden).squeeze(-1).float()

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate keyframe steps and progress, and pay.

        Raises:
            ValueError: If states or actions have another width, or a real number is NaN.
        """
        encoded = self.observer.encode(batch)
        batch = encoded.match_device(batch)
        progress = self.head.estimates(encoded, batch).progress
        assert progress is not None
        chance = self._step_logits(encoded, batch).sigmoid()
        labelled = chance if self.threshold is None else (chance >= self.threshold).float()
        known = encoded.last_at_observations(batch)[1][:, :-1] & batch.mask
        return self.payment.pay(Labelled(values=torch.where(known, labelled, 0.0), valid=known), progress, batch)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the cross-entropy of the labelled steps, positives and negatives balanced, plus that of progress.

        ½ · pseudo_reward · mean over positives of −log σ(z) + ½ · mean over negatives of −log(1 − σ(z)), on steps whose
        label is known; a side without any gives 0.

        Raises:
            ValueError: If the batch holds neither ``labels["milestone"]`` nor ``labels["progress"]``, or a label that
                is not one number in [0, 1] per step.
        """
        found = required_label(batch, (MILESTONE, "progress"), type(self).__name__)
        encoded = self.observer.encode(batch)
        batch = encoded.match_device(batch)
        logits = self._step_logits(encoded, batch)
        total, parts = 0.0 * logits.sum(), dict[str, Tensor]()
        if "progress" in found:
            parts |= self.head.loss(encoded, batch)
            total = total + parts.pop("loss")
        if MILESTONE in found:
            label = batch.labels[MILESTONE]
            if label.values.shape != batch.mask.shape:
                raise ValueError(
                    f"labels[{MILESTONE!r}]: expected one number per step {tuple(batch.mask.shape)}, got "
                    f"{tuple(label.values.shape)}"
                )
            known = label.valid & batch.mask & encoded.last_at_observations(batch)[1][:, :-1]
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
    """Return the same trained model with another payment; its weights are copied, vision and text encoders are shared.

    Args:
        model: Trained model.
        mode: Rule of payment; see `MilestonePayment`.
        beta: Weight of the potential; None keeps the model's.
        bonus: Reward of a labelled step, or of a milestone; None keeps the model's.
    """
    kept = model.payment
    payment = MilestonePayment(
        mode=mode,
        milestones=kept.milestones,
        bonus=kept.bonus if bonus is None else bonus,
        beta=kept.beta if beta is None else beta,
        gamma=kept.gamma,
        slack=kept.slack,
    )
    observer = ObservationEncoder(**model.observer.init_args)
    arguments: dict[str, Any] = {**model.init_args, "observer": observer, "payment": payment}
    other = MilestoneReward(**arguments)
    other.load_state_dict(model.state_dict())
    return other.to(model.observer.device).train(model.training)


__all__ = ["MilestoneReward", "in_mode"]
