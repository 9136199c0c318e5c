"""Milestones of a manipulation: where the gripper changes for good, where the hand comes to rest, what they label.

The labels are those of VLA-RL's robotic process reward (Lu et al. 2025, arXiv:2505.18719, §3.3). The paper cuts a
successful trajectory where the openness of the gripper changes and labels the actions that lead to a stop of the hand;
it gives no thresholds, windows or negatives. Every number here is therefore an argument.

Indices: a milestone is an **observation** 1 … T, a keyframe is a **step** 0 … T − 1; step t leads from observation t to
t + 1, so the last step of a segment that ends at milestone m is m − 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

_OVERSHOOT = 0.05  # of a given range: fingers that press on something close or open a little further than when free
_NOISE = 1e-4  # of an openness that is said to be in 0 … 1: rounding, no other unit


@dataclass(frozen=True, kw_only=True, eq=False)
class Milestones:
    """What a detector found in one trajectory."""

    observations: Int64[np.ndarray, " M"]
    """Milestones, ascending; the last of a success is the observation of its success."""
    keyframes: Int64[np.ndarray, " K"]
    """Steps that lead to a stop of the hand, ascending; at least one in every segment."""
    gripper: int
    """How many of the milestones the gripper gave."""
    fallback: bool
    """True where the gripper gave none and shares of the hand's path took their place."""


def unit_openness(gripper: np.ndarray, gripper_range: Sequence[float | int] | None = None) -> Float[np.ndarray, " N"]:
    """Openness from 0, closed, to 1, open, of a gripper recorded in any unit.

    Args:
        gripper: (N,) as recorded.
        gripper_range: What is recorded of a closed and of an open gripper, such as (0, 0.08) for a width in metres, or
            (255, 0) where 255 is closed. Values up to 5 % of the range outside are taken for its ends. None for an
            openness that is recorded in 0 … 1.

    Raises:
        ValueError: If a value is no number or lies outside, or the range is not two different numbers.
    """
    ends = (0.0, 1.0) if gripper_range is None else tuple(float(end) for end in gripper_range)
    if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] == ends[1]:
        raise ValueError(f"gripper_range is {gripper_range}: expected two different numbers, (closed, open)")
    recorded = finite_array("gripper", gripper, dimensions=1)
    openness = (recorded - ends[0]) / (ends[1] - ends[0])
    slack = _NOISE if gripper_range is None else _OVERSHOOT
    outside = (openness < -slack) | (openness > 1 + slack)
    if outside.any():
        at = int(np.argmax(outside))
        if gripper_range is None:
            wanted = "expected an openness in 0 … 1; for another unit pass gripper_range=(closed, open)"
        else:
            wanted = f"expected at most {_OVERSHOOT:.0%} outside gripper_range {ends}, (closed, open)"
        raise ValueError(f"gripper is {recorded[at]} at observation {at}: {wanted}")
    return openness.clip(0, 1)


def gripper_milestones(
    gripper: np.ndarray,
    threshold: float = 0.2,
    settle: float = 0.02,
    settle_steps: int = 3,
    start_steps: int = 10,
    merge: int = 8,
    start_rule: Literal["begun", "complete"] = "begun",
) -> Int64[np.ndarray, " M"]:
    """Observations at which a change of the gripper is complete, ascending.

    A change begins where the openness is more than ``threshold`` away from its reference, and is complete when the
    last ``settle_steps`` changes from one observation to the next were all below ``settle``; then the openness becomes
    the new reference. It counts unless it falls into the first ``start_steps`` steps (scripted experts close an empty
    gripper at the start), comes less than ``merge`` steps after the one before that counts, or went back to within
    ``threshold`` of the old reference. What is found up to an observation depends on nothing after it.

    Args:
        gripper: (N,) openness at every observation. Only its changes count; the defaults are meant for 0 closed to 1
            open (`unit_openness`), in another unit thresholds are in that unit.
        threshold: On the openness, above 0.
        settle: On its change in one step, above 0.
        settle_steps: At least 1.
        start_steps: At least 0.
        merge: At least 0.
        start_rule: Whether a change that has begun, or only one that is complete, within the first steps is left out.
            In Meta-World closing an empty gripper takes 18 steps, so the second rule leaves none of these out.

    Raises:
        ValueError: If the openness is no series of numbers, or an argument makes no sense.
    """
    if not (threshold > 0 and settle > 0 and settle_steps >= 1 and start_steps >= 0 and merge >= 0):
        raise ValueError(
            f"threshold {threshold}, settle {settle}, settle_steps {settle_steps}, start_steps {start_steps}, merge "
            f"{merge}: expected the first two above 0, the third at least 1, the others at least 0"
        )
    if start_rule not in ("begun", "complete"):
        raise ValueError(f"start_rule is {start_rule!r}: expected 'begun' or 'complete'")
    openness = finite_array("gripper", gripper, dimensions=1)
    found: list[int] = []
    reference, moving, calm, begun = openness[0], False, 0, 0
    for at in range(1, len(openness)):
        if not moving:
            moving, calm, begun = bool(abs(openness[at] - reference) > threshold), 0, at
            continue
        calm = calm + 1 if abs(openness[at] - openness[at - 1]) < settle else 0
        if calm < settle_steps:
            continue
        changed = abs(openness[at] - reference) > threshold
        late = (begun if start_rule == "begun" else at) > start_steps
        if changed and late and (not found or at - found[-1] >= merge):
            found.append(at)
        reference, moving = openness[at], False
    return np.array(found, np.int64)


def smoothed_speed(position: np.ndarray, smooth: int = 5) -> Float[np.ndarray, " T"]:
    """Distance moved in each step, averaged over the ``smooth`` steps around it (fewer at both ends).

    Args:
        position: (T+1, D) in metres.
        smooth: Steps, at least 1.

    Raises:
        ValueError: If a position is no number, or ``smooth`` is below 1.
    """
    if smooth < 1:
        raise ValueError(f"smooth is {smooth}: expected at least one step")
    points = finite_array("end effector", position, dimensions=2)
    sums = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    step = np.arange(len(points) - 1)
    first, last = np.maximum(step - (smooth - 1) // 2, 0), np.minimum(step + smooth // 2 + 1, len(step))
    return np.maximum(sums[last] - sums[first], 0.0) / (last - first)


def keyframe_steps(speed: np.ndarray, milestones: np.ndarray, ratio: float = 0.1) -> Int64[np.ndarray, " K"]:
    """Steps at which the hand nearly stops: the slowest of every slow stretch, or the last step of a segment.

    Slow is below ``ratio`` · the largest speed before the last milestone. A slow stretch counts once, in the segment
    that its slowest step (the first of equals) lies in. One that begins with the episode is the hand before it moved,
    and counts nowhere. A segment without any takes its last step.

    Args:
        speed: (T,) of each step, at least 0.
        milestones: (M,) observations, ascending, in 1 … T.
        ratio: In [0, 1].

    Raises:
        ValueError: If the milestones are not ascending observations after the first, or the ratio is outside [0, 1].
    """
    cuts = _checked_milestones(milestones, len(speed))
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}: expected 0 … 1")
    if not len(cuts):
        return cuts
    before = np.asarray(speed, np.float64)[: cuts[-1]]
    slow = before < ratio * before.max()
    found: list[int] = []
    at = int(np.argmin(slow)) if not slow.all() else len(slow)
    while at < len(slow):
        if not slow[at]:
            at += 1
            continue
        end = at + int(np.argmin(np.append(slow[at:], False)))
        found.append(at + int(np.argmin(before[at:end])))
        at = end
    segment = np.searchsorted(cuts, found, side="right")  # step t lies in the first segment whose milestone is past t
    missing = [int(cut) - 1 for k, cut in enumerate(cuts) if k not in segment]
    return np.array(sorted([*found, *missing]), np.int64)


def arc_length_milestones(
    position: np.ndarray, end: int, shares: Sequence[float] = (0.25, 0.5, 0.75)
) -> Int64[np.ndarray, " M"]:
    """First observations by which the hand has covered given shares of its path to observation ``end``.

    Args:
        position: (N, D) in metres.
        end: Observation 1 … N − 1; what comes after it is left out.
        shares: Of the path's length, each in (0, 1).

    Returns:
        Observations in 1 … ``end`` − 1, ascending, each once; none where the hand never moved.

    Raises:
        ValueError: If a position is no number, ``end`` lies outside, or a share is none.
    """
    points = finite_array("end effector", position, dimensions=2)
    if not 1 <= end < len(points):
        raise ValueError(f"end is {end}: expected an observation 1 … {len(points) - 1}")
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares of the path {list(shares)}: expected numbers between 0 and 1")
    covered = np.concatenate([[0.0], np.linalg.norm(np.diff(points[: end + 1], axis=0), axis=1).cumsum()])
    if covered[-1] <= 0:
        return np.zeros(0, np.int64)
    reached = np.unique(np.searchsorted(covered, np.asarray(shares) * covered[-1]))
    return reached[(reached > 0) & (reached < end)].astype(np.int64)


def milestone_progress(observations: int, milestones: np.ndarray) -> Float[np.ndarray, " N"]:
    """Z of each of N observations: (milestones passed + share of the segment's steps done) / number of milestones.

    0 at the first observation, k/M at the k-th of M milestones, 1 from the last one on.

    Raises:
        ValueError: If there is no milestone, or they are not ascending observations after the first.
    """
    cuts = _checked_milestones(milestones, observations - 1)
    if not len(cuts):
        raise ValueError("progress by milestones: expected at least one milestone, got none")
    places = np.concatenate([[0], cuts])
    return np.interp(np.arange(observations), places, np.arange(len(places)) / len(cuts))


def step_labels(
    steps: int, keyframes: np.ndarray, success: int | None = None, window: int = 5, margin: int = 0
) -> tuple[Float[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Y of each step, and where it is known: 1 on the ``window`` steps that end at a keyframe, and after success.

    Args:
        steps: T.
        keyframes: (K,) steps.
        success: Observation of the success; the steps that leave it and all later ones are labelled 1.
        window: At least 1.
        margin: So many steps before a window are unknown rather than 0: they are hard to tell from those inside.

    Raises:
        ValueError: If the window is below 1 or the margin negative.
    """
    if window < 1 or margin < 0:
        raise ValueError(f"window {window}, margin {margin}: expected at least 1 and at least 0")
    values, known = np.zeros(steps, np.float32), np.ones(steps, bool)
    for key in np.asarray(keyframes, np.int64).tolist():
        known[max(key - window + 1 - margin, 0) : max(key - window + 1, 0)] = False
        values[max(key - window + 1, 0) : key + 1] = 1
    if success is not None:
        values[success:] = 1
    return values, known | (values > 0)


class MilestoneDetector:
    """Finds the milestones and keyframes of one trajectory; the arguments are all its thresholds.

    Args:
        threshold: Of the gripper's openness; see `gripper_milestones`, as the next four.
        settle: Change of the openness in one step below which it is at rest.
        settle_steps: Steps at rest that complete a change.
        start_steps: Changes within the first so many steps do not count.
        merge: Changes closer than so many steps to the one before, or to the success, do not count.
        shares: Of the hand's path, which stand in for the gripper where it gave no milestone; empty turns this off.
        ratio: Of the largest speed, below which the hand is at rest; see `keyframe_steps`.
        smooth: Steps over which the speed is averaged.
        start_rule: Which changes lie within the first steps; see `gripper_milestones`.
        gripper_range: Recorded closed and open, in the unit of the track; see `unit_openness`. None where it is an
            openness in 0 … 1. A width in metres lies in 0 … 1 too, changes by less than the threshold and would look
            like a gripper that never moves: it needs (0, 0.08), or whatever the width of the open gripper is.
    """

    def __init__(
        self,
        threshold: float = 0.2,
        settle: float = 0.02,
        settle_steps: int = 3,
        start_steps: int = 10,
        merge: int = 8,
        shares: Sequence[float] = (0.25, 0.5, 0.75),
        ratio: float = 0.1,
        smooth: int = 5,
        start_rule: Literal["begun", "complete"] = "begun",
        gripper_range: Sequence[float | int] | None = None,
    ) -> None:
        self.threshold, self.settle, self.settle_steps = threshold, settle, settle_steps
        self.start_steps, self.merge, self.shares = start_steps, merge, tuple(shares)
        self.ratio, self.smooth = ratio, smooth
        self.start_rule: Literal["begun", "complete"] = start_rule
        self.gripper_range = None if gripper_range is None else tuple(gripper_range)
        # what makes no sense is named now, not at the first episode
        self.gripper(np.zeros(1) if self.gripper_range is None else np.array(self.gripper_range[:1], np.float64))
        self(None, np.zeros((2, 3)), 1)

    def gripper(self, openness: np.ndarray) -> Int64[np.ndarray, " M"]:
        """Milestones of the gripper alone; see `unit_openness` and `gripper_milestones`."""
        return gripper_milestones(
            unit_openness(openness, self.gripper_range),
            threshold=self.threshold,
            settle=self.settle,
            settle_steps=self.settle_steps,
            start_steps=self.start_steps,
            merge=self.merge,
            start_rule=self.start_rule,
        )

    def __call__(self, openness: np.ndarray | None, position: np.ndarray, success: int) -> Milestones:
        """Find the milestones of a success.

        Args:
            openness: (N,) of the gripper, in 0 … 1 or in ``gripper_range``; None for a robot without one.
            position: (N, 3) of the end effector, in metres.
            success: Observation 1 … N − 1 of the success; always the last milestone. What comes after is left out.

        Raises:
            ValueError: If a track holds something that is no number, the openness lies outside its range (at any
                observation), their lengths differ, or the success lies outside.
        """
        if openness is not None and len(openness) != len(position):
            raise ValueError(f"gripper has {len(openness)} observations, the end effector {len(position)}")
        if not 1 <= success < len(position):
            raise ValueError(f"success at observation {success}: expected one in 1 … {len(position) - 1}")
        # nothing found up to an observation depends on what comes later, so all of it is read, and checked
        found = np.zeros(0, np.int64) if openness is None else self.gripper(openness)
        found = found[found <= success - max(self.merge, 1)]
        count = len(found)
        if not count and self.shares:
            found = arc_length_milestones(position, success, self.shares)
        observations = np.append(found, success)
        keyframes = keyframe_steps(smoothed_speed(position[: success + 1], self.smooth), observations, self.ratio)
        return Milestones(observations=observations, keyframes=keyframes, gripper=count, fallback=not count)


def _checked_milestones(milestones: np.ndarray, steps: int) -> Int64[np.ndarray, " M"]:
    cuts = np.asarray(milestones, np.int64)
    inside = not len(cuts) or (cuts[0] >= 1 and cuts[-1] <= steps)
    if cuts.ndim != 1 or not inside or bool((np.diff(cuts) <= 0).any()):
        raise ValueError(f"milestones {cuts.tolist()}: expected ascending observations in 1 … {steps}")
    return cuts


def finite_array(what: str, values: Any, dimensions: int) -> np.ndarray:
    """A finite array with the given number of dimensions and at least one observation, in float64."""
    array = np.asarray(values, np.float64)
    if array.ndim != dimensions or not len(array):
        shape = "(N,)" if dimensions == 1 else "(N, 3)"
        raise ValueError(f"{what}: expected an array of shape {shape} with N at least 1, got {array.shape}")
    wrong = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"{what} is {array[at].tolist()} at observation {at}: expected numbers")
    return array


__all__ = [
    "MilestoneDetector",
    "Milestones",
    "arc_length_milestones",
    "finite_array",
    "gripper_milestones",
    "keyframe_steps",
    "milestone_progress",
    "smoothed_speed",
    "step_labels",
    "unit_openness",
]
