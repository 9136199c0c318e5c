"""The robotic process reward of VLA-RL, learned or computed from tracks, paid in one of three ways.

| mode | reward of step t | summed over an episode |
|---|---|---|
| `additive` | bonus · R_φ(o_t, a_t): is the step labelled? | grows with the time in labelled states |
| `first_hit` | bonus for every milestone passed for the first time | at most bonus · milestones |
| `potential` | β (γ Φ_{t+1} − Φ_t), Φ = progress, 0 after an end | discounted, −β Φ_0 after an end |

The paper pays `additive`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.language import TextEncoder
from ..backbones.vision import VisionEncoder
from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .heads import Heads
from .milestones import MILESTONE, gripper_milestones
from .observed import ObservedReward, Tokens, balanced_bernoulli, required_label

Mode = Literal["additive", "first_hit", "potential"]
MODES: tuple[Mode, ...] = ("additive", "first_hit", "potential")

METAWORLD_POINTS = {"end_effector": (0, 3), "gripper": (3, 4), "object": (4, 7), "goal": (36, 39)}
"""Where Meta-World's 39 numbers hold what its tracks hold: first column, and the one past the last."""

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
        self.set_payment(mode, milestones, bonus, beta, gamma, slack)

    def set_payment(self, mode: Mode, milestones: int, bonus: float, beta: float, gamma: float, slack: float) -> None:
        """Check and keep how it pays; the weights of a model do not depend on it."""
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
            place = torch.arange(z.shape[1], device=z.device)[None]
            over = batch.terminated[:, None] & (place == batch.steps[:, None])
            z_after, known_after = z.masked_fill(over, 0.0), known | over
            rewards = self.beta * (self.gamma * z_after[:, 1:] - z_after[:, :-1])
            valid = known_after[:, 1:] & known_after[:, :-1]
        valid = valid & batch.mask
        bonus = torch.where(valid & labelled.valid, self.bonus * labelled.values.float(), 0.0)
        return RewardEstimates(
            rewards=torch.where(valid, rewards, 0.0), valid=valid, progress=progress, terms={MILESTONE: bonus}
        )


class MilestoneReward(ObservedReward, Paid):
    """A causal model of the milestone labels: which steps lead to a keyframe, and how many milestones are passed.

    A binary head beside the action gives the chance that a step leads to a keyframe (R_φ(o_t, a_t)); a head of 101 bins
    gives progress z (two-hot, as in `ProgressReward`). Train it on the labels of
    `guerdon.rewards.milestones.MilestoneLabels`. The paper generates the word "0" or "1" with a fine-tuned
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
        self.set_payment(mode, milestones, bonus, beta, gamma, slack)
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


class MilestoneOracle(Paid):
    """Milestones computed online from points of the simulator: no training, and nothing is known of the future.

    A stage is either a pair of points that must come within a radius of each other, or ``["gripper"]``, a change of the
    gripper (see `guerdon.rewards.milestones.gripper_milestones`). Stages are passed in order and stay passed. Progress
    is (stages passed + share of the present one) / stages; the share of a pair is how much of its distance, beyond the
    radius and from where the stage began, is gone, and that of a gripper is 0 until it is done.

    Which steps lead to a keyframe is only known afterwards, so `additive` labels the states that the offline labels
    have in common: within ``near`` · radius of the end of a stage, passed or not, and a completed change of the gripper.
    The first can be held, like the states that a model of the offline labels pays for.

    Args:
        stages: Each ``[point, point, radius]`` in metres, or ``["gripper"]``.
        points: Columns of the state, first and one past the last, where a batch has no such track: rollouts carry none.
            `METAWORLD_POINTS` for Meta-World.
        near: At least 1.
        threshold: Of the gripper; see `gripper_milestones`, as the next five.
        settle: Change of the openness below which it is at rest.
        settle_steps: Steps at rest that complete a change.
        start_steps: Changes within the first so many steps do not count.
        merge: Changes closer than so many steps to the one before do not count.
        start_rule: Which changes lie within the first steps.
        mode: What is paid; see `Paid`.
        bonus: Paid for a labelled step, or for a milestone.
        beta: Weight of the potential.
        gamma: Discount of the potential.

    Raises:
        ValueError: If there is no stage, or one is neither a pair with a radius nor the gripper.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[str | float]] = (("end_effector", "object", 0.05), ("object", "goal", 0.05)),
        points: Mapping[str, Sequence[int]] | None = None,
        near: float = 2.0,
        threshold: float = 0.2,
        settle: float = 0.02,
        settle_steps: int = 3,
        start_steps: int = 10,
        merge: int = 8,
        start_rule: Literal["begun", "complete"] = "begun",
        mode: Mode = "potential",
        bonus: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.99,
    ) -> None:
        super().__init__(mode, max(len(stages), 1), bonus, beta, gamma)
        self.stages = [_stage(stage) for stage in stages]
        if not self.stages or near < 1:
            raise ValueError(f"{len(stages)} stages, near {near}: expected at least one stage, and at least 1")
        self.points = {name: (int(columns[0]), int(columns[1])) for name, columns in (points or {}).items()}
        self.near, self.threshold, self.settle, self.settle_steps = near, threshold, settle, settle_steps
        self.start_steps, self.merge = start_steps, merge
        self.start_rule: Literal["begun", "complete"] = start_rule
        self._changes(np.zeros(1))

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Follow the stages of every row and pay.

        Raises:
            ValueError: If a point is neither a track of the batch nor named in ``points``, or is no number where known.
        """
        host = batch.to("cpu")
        names = list(dict.fromkeys(name for a, b, _ in self.stages for name in (a, b) if name))
        found = {name: self._point(host, name) for name in names}
        known = torch.stack([point.valid for point in found.values()]).all(0)
        progress, near = torch.zeros(known.shape), torch.zeros(known.shape)
        for row in range(len(host)):
            count = int(host.steps[row]) + 1
            if count == 1:
                continue
            seen = known[row, :count].numpy()
            tracks = {name: point.values[row, :count].numpy()[seen] for name, point in found.items()}
            if seen.any():
                z, labelled = self._follow(tracks)
                progress[row, :count][known[row, :count]] = torch.from_numpy(z).float()
                near[row, :count][known[row, :count]] = torch.from_numpy(labelled).float()
        device = batch.mask.device
        known = known.to(device)
        labelled = Labelled(values=near[:, 1:].to(device), valid=known[:, 1:] & batch.mask)
        return self.pay(labelled, Labelled(values=progress.to(device), valid=known), batch)

    def _point(self, batch: TrajectoryBatch, name: str) -> Labelled:
        """A point at every observation that was made."""
        track = batch.tracks.get(name)
        if track is not None and track.valid.shape == batch.made.shape:
            values, valid = track.values.double(), track.valid & batch.made
        elif name in self.points:
            first, last = self.points[name]
            if not 0 <= first < last <= batch.state.shape[2]:
                raise ValueError(
                    f"point {name!r}: columns {first} to {last} do not lie in a state of {batch.state.shape[2]} numbers"
                )
            values, valid = batch.state[..., first:last].double(), batch.made
        else:
            held = ", ".join(sorted(batch.tracks)) or "none"
            raise ValueError(
                f"point {name!r} is no track of these trajectories (they have {held}), and points does not name its "
                "columns of the state: pass points, METAWORLD_POINTS for Meta-World"
            )
        values = values.flatten(2) if values.ndim > 2 else values[..., None]
        wrong = valid & ~values.isfinite().all(-1)
        if bool(wrong.any()):
            row, at = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(f"point {name!r} is {values[row, at].tolist()} at observation {at} of row {row}")
        return Labelled(values=torch.where(valid[..., None], values, 0.0), valid=valid)

    def _changes(self, openness: np.ndarray) -> np.ndarray:
        return gripper_milestones(
            openness,
            threshold=self.threshold,
            settle=self.settle,
            settle_steps=self.settle_steps,
            start_steps=self.start_steps,
            merge=self.merge,
            start_rule=self.start_rule,
        )

    def _follow(self, tracks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Progress and label of every observation of one row, (N,) each."""
        count = len(next(iter(tracks.values())))
        changes = self._changes(tracks["gripper"][:, 0]) if "gripper" in tracks else np.zeros(0, np.int64)
        gaps = [None if not b else np.linalg.norm(tracks[a] - tracks[b], axis=1) for a, b, _ in self.stages]
        labelled = np.isin(np.arange(count), changes)
        for (_, _, radius), gap in zip(self.stages, gaps, strict=True):
            labelled |= False if gap is None else gap <= self.near * radius
        progress = np.zeros(count)
        passed, used, entry = 0, 0, 0
        for at in range(count):
            while passed < len(self.stages):
                gap, radius = gaps[passed], self.stages[passed][2]
                if gap is None:
                    done = int(np.searchsorted(changes, at, side="right")) > used
                    used += int(done)
                else:
                    done = bool(gap[at] <= radius)
                if not done:
                    break
                passed, entry = passed + 1, at
            share = 0.0
            if passed < len(self.stages) and (gap := gaps[passed]) is not None:
                radius = self.stages[passed][2]
                share = float(np.clip((gap[entry] - gap[at]) / (gap[entry] - radius), 0.0, 1.0))
            progress[at] = (passed + share) / len(self.stages)
        return progress, labelled


def _stage(stage: Sequence[str | float]) -> tuple[str, str, float]:
    """(point, point, radius), or ("gripper", "", 0) for a change of the gripper."""
    match list(stage):
        case ["gripper"]:
            return "gripper", "", 0.0
        case [str() as a, str() as b, float() | int() as radius] if radius > 0 and math.isfinite(radius):
            return a, b, float(radius)
        case other:
            raise ValueError(f'stage {other}: expected [point, point, radius above 0] or ["gripper"]')


def in_mode(model: MilestoneReward, mode: Mode, beta: float = 0.5, bonus: float = 1.0) -> MilestoneReward:
    """The same trained model, paid in another way; weights are shared, the record of its arguments is not.

    Args:
        model: A trained model.
        mode: What is paid; see `Paid`.
        beta: Weight of the potential.
        bonus: Paid for a labelled step, or for a milestone.
    """
    args: dict[str, Any] = {**model.init_args, "mode": mode, "beta": beta, "bonus": bonus}
    other = MilestoneReward(**args)
    other.load_state_dict(model.state_dict())
    return other.to(model.norm.weight.device).train(model.training)


__all__ = ["METAWORLD_POINTS", "MODES", "MilestoneOracle", "MilestoneReward", "Mode", "Paid", "in_mode"]
