"""Milestones computed online from points of a simulator: no training, and causal."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from ...core.arguments import folds
from ...core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ...core.interfaces import RewardModel
from .detection import gripper_milestones
from .payment import MilestonePayment

METAWORLD_POINTS = {"end_effector": (0, 3), "gripper": (3, 4), "object": (4, 7), "goal": (36, 39)}
"""Columns of Meta-World's state of 39 numbers that hold its tracks: the first one, and the one past the last."""


class MilestoneOracle(RewardModel):
    """Reward for milestones that are computed online from points of a simulator, without training.

    A stage is either a pair of points that must come within a radius of each other, or ``["gripper"]``, a change of the
    gripper (see `gripper_milestones`) that is complete after its stage began; an earlier change does not count. Stages
    are passed in order and stay passed. Progress is (stages passed + share of the present one) / stages. The share of a
    pair is how much of its distance at the beginning of the stage, beyond the radius, is covered. That of a gripper is
    0 until the change is complete.

    Which steps lead to a keyframe is only known afterwards. `additive` therefore labels the states that the offline
    labels have in common: within ``near`` · radius of the end of a stage, passed or not, and a completed change of the
    gripper. A policy can stay in the first kind of state, as in those that a model of the offline labels pays for.

    A window does not show which stages were passed before it, so a row with an offset is invalid at every step.

    Args:
        stages: Stages in their order: each ``[point, point, radius]`` with the radius in metres, or ``["gripper"]``.
        points: Columns of the state that hold a point, first and one past the last, for batches without such a track.
            `METAWORLD_POINTS` for Meta-World.
        near: Factor of the radius within which a step is labelled, at least 1.
        threshold: Difference of the openness at which a change of the gripper begins, in the unit of its point (a width
            in metres needs a smaller one, and a smaller ``settle``); see `gripper_milestones`, as the next five.
        settle: Change of the openness in one step below which it is at rest, above 0.
        settle_steps: Number of steps at rest that complete a change, at least 1.
        start_steps: Number of first steps in which changes do not count, at least 0.
        merge: Smallest number of steps between two changes that count, at least 0.
        start_rule: Which changes lie within the first steps.
        payment: How the estimates are paid; None pays the change of a potential. Its arguments may also be given here
            one by one, such as ``mode="additive"``.

    Raises:
        ValueError: If there is no stage, one is neither a pair with a radius nor the gripper, or the payment counts
            another number of milestones than there are stages.
    """

    @folds(payment=MilestonePayment)
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
        payment: MilestonePayment | None = None,
    ) -> None:
        super().__init__()
        self.stages = [_stage(stage) for stage in stages]
        if not self.stages or near < 1:
            raise ValueError(f"{len(stages)} stages, near {near}: expected at least one stage, and at least 1")
        payment = MilestonePayment() if payment is None else payment
        if payment.milestones not in (None, len(self.stages)):
            raise ValueError(
                f"the payment counts {payment.milestones} milestones, and there are {len(self.stages)} stages: leave "
                "milestones out"
            )
        self.payment = payment.filled(milestones=len(self.stages), slack=0.0)
        self.points = {name: (int(columns[0]), int(columns[1])) for name, columns in (points or {}).items()}
        self.near, self.threshold, self.settle, self.settle_steps = near, threshold, settle, settle_steps
        self.start_steps, self.merge = start_steps, merge
        self.start_rule: Literal["begun", "complete"] = start_rule
        self._changes(np.zeros(1))

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Follow the stages of every row and pay; rows that do not begin with their episode are invalid.

        Raises:
            ValueError: If a point is neither a track of the batch nor named in ``points``, or is not finite where it is
                known.
        """
        host = batch.to("cpu")
        names = list(dict.fromkeys(name for a, b, _ in self.stages for name in (a, b) if name))
        found = {name: self._point(host, name) for name in names}
        known = torch.stack([point.valid for point in found.values()]).all(0) & (host.offset == 0)[:, None]
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
        return self.payment.pay(labelled, Labelled(values=progress.to(device), valid=known), batch)

    def _point(self, batch: TrajectoryBatch, name: str) -> Labelled:
        """Return a point at every observation that was made."""
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
        """Compute progress and label of every observation of one row, (N,) each."""
        count = len(next(iter(tracks.values())))
        changes = self._changes(tracks["gripper"][:, 0]) if "gripper" in tracks else np.zeros(0, np.int64)
        gaps = [None if not b else np.linalg.norm(tracks[a] - tracks[b], axis=1) for a, b, _ in self.stages]
        labelled = np.isin(np.arange(count), changes)
        for (_, _, radius), gap in zip(self.stages, gaps, strict=True):
            labelled |= False if gap is None else gap <= self.near * radius
        progress = np.zeros(count)
        passed, entry = 0, 0
        for at in range(count):
            while passed < len(self.stages):
                gap, radius = gaps[passed], self.stages[passed][2]
                if gap is None:
                    done = bool(((changes > entry) & (changes <= at)).any())
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
    """Check a stage and return (point, point, radius), or ("gripper", "", 0) for a change of the gripper."""
    match list(stage):
        case ["gripper"]:
            return "gripper", "", 0.0
        case [str() as a, str() as b, float() | int() as radius] if radius > 0 and math.isfinite(radius):
            return a, b, float(radius)
        case other:
            raise ValueError(f'stage {other}: expected [point, point, radius above 0] or ["gripper"]')


__all__ = ["METAWORLD_POINTS", "MilestoneOracle"]
