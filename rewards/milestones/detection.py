"""Detection of milestones: lasting changes of the gripper, stops of the hand, and the labels they give.

The labels are those of VLA-RL's robotic process reward (Lu et al. 2025, arXiv:2505.18719, §3.3). The paper cuts a
successful trajectory where the openness of the gripper changes and labels the actions that lead to a stop of the hand.
It gives no thresholds, windows or negatives, so every number here is an argument.

Indices: a milestone is an **observation** 1 … T, a keyframe is a **step** 0 … T − 1; step t leads from observation t to
t + 1, so the last step of a segment that ends at milestone m is m − 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

_OVERSHOOT = 0.05  # of a given range: fingers that press on an object close or open a little further than when free
_NOISE = 1e-4  # of an openness in 0 … 1: more than rounding is another unit


@dataclass(frozen=True, kw_only=True, eq=False)
class Milestones:
    """Milestones and keyframes of one trajectory."""

    observations: Int64[np.ndarray, " M"]
    """Observations of the milestones, ascending; the last one is the observation of the success."""
    keyframes: Int64[np.ndarray, " K"]
    """Steps that lead to a stop of the hand, ascending; at least one in every segment."""
    gripper: int
    """Number of the milestones that the gripper gave."""
    fallback: bool
    """Whether the gripper gave none, so that shares of the hand's path were taken instead."""


def unit_openness(gripper: np.ndarray, gripper_range: Sequence[float | int] | None = None) -> Float[np.ndarray, " N"]:
    """Convert a gripper recorded in any unit into an openness from 0, closed, to 1, open.

    Args:
        gripper: (N,) recorded values.
        gripper_range: Recorded values (closed, open) of the gripper, such as (0, 0.08) for a width in metres, or
            (255, 0) where 255 is closed. Values outside by up to 5 % of the range are clipped. None for an openness
            that is recorded in 0 … 1.

    Raises:
        ValueError: If a value is not finite or outside, or the range is not two different finite numbers.
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
    """Find the observations at which a change of the gripper is complete, ascending.

    A change begins where the openness is more than ``threshold`` away from its reference, and is complete when the
    last ``settle_steps`` changes from one observation to the next were all below ``settle``; then the openness becomes
    the new reference. A change does not count if it falls into the first ``start_steps`` steps (scripted experts close
    an empty gripper at the start), comes less than ``merge`` steps after the last one that counts, or returned to
    within ``threshold`` of the old reference. The result up to an observation depends on nothing after it.

    Args:
        gripper: (N,) openness at every observation. Only its changes count. The defaults are for 0 closed to 1 open
            (`unit_openness`); in another unit the thresholds are in that unit.
        threshold: Difference of the openness from its reference at which a change begins, above 0.
        settle: Change of the openness in one step below which it is at rest, above 0.
        settle_steps: Number of steps at rest that complete a change, at least 1.
        start_steps: Number of first steps in which changes do not count, at least 0.
        merge: Smallest number of steps between two changes that count, at least 0.
        start_rule: Whether a change that has begun, or only one that is complete, within the first steps is left out.
            In Meta-World closing an empty gripper takes 18 steps, so the second rule leaves none of these out.

    Raises:
        ValueError: If the openness is not a finite series, or an argument is out of its range.
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
    """Compute the distance moved in each step, averaged over the ``smooth`` steps around it (fewer at both ends).

    Args:
        position: (T+1, D) positions in metres.
        smooth: Number of steps in the average, at least 1.

    Raises:
        ValueError: If a position is not finite, or ``smooth`` is below 1.
    """
    if smooth < 1:
        raise ValueError(f"smooth is {smooth}: expected at least one step")
    points = finite_array("end effector", position, dimensions=2)
    sums = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    step = np.arange(len(points) - 1)
    first, last = np.maximum(step - (smooth - 1) // 2, 0), np.minimum(step + smooth // 2 + 1, len(step))
    return np.maximum(sums[last] - sums[first], 0.0) / (last - first)


def keyframe_steps(speed: np.ndarray, milestones: np.ndarray, ratio: float = 0.1) -> Int64[np.ndarray, " K"]:
    """Find the steps at which the hand nearly stops: the slowest of every slow stretch, or the last of a segment.

    A step is slow below ``ratio`` · the largest speed before the last milestone. A slow stretch counts once, in the
    segment of its slowest step (the first of equals). A slow stretch at the start of the episode is the hand before it
    moved, and does not count. A segment without any takes its last step.

    Args:
        speed: (T,) speed of each step, at least 0.
        milestones: (M,) observations of the milestones, ascending, in 1 … T.
        ratio: Share of the largest speed below which a step is slow, in [0, 1].

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
    """Find the first observations by which the hand has covered given shares of its path to observation ``end``.

    Args:
        position: (N, D) positions in metres.
        end: Last observation of the path, in 1 … N − 1.
        shares: Shares of the path's length, each in (0, 1).

    Returns:
        Observations in 1 … ``end`` − 1, ascending, each once; none where the hand never moved.

    Raises:
        ValueError: If a position is not finite, ``end`` lies outside, or a share is not in (0, 1).
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
    """Compute progress z of N observations: (milestones passed + share of the segment's steps) / M.

    It is 0 at the first observation, k/M at the k-th of M milestones, and 1 from the last one on.

    Args:
        observations: N, number of observations.
        milestones: (M,) observations of the milestones, ascending, in 1 … N − 1.

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
    """Compute label y of each step, 1 on the ``window`` steps that end at a keyframe and after success, else 0.

    Args:
        steps: T, number of steps.
        keyframes: (K,) steps of the keyframes.
        success: Observation of the success; the steps that leave it and all later ones are labelled 1.
        window: Number of steps labelled 1 up to a keyframe, at least 1.
        margin: Number of steps before a window that are unknown rather than 0, because they are hard to tell from
            those inside; at least 0.

    Returns:
        The labels, and where they are known.

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
    """Detector of the milestones and keyframes of one trajectory.

    Args:
        threshold: Difference of the openness at which a change begins, above 0; see `gripper_milestones`, as the next
            four.
        settle: Change of the openness in one step below which it is at rest, above 0.
        settle_steps: Number of steps at rest that complete a change, at least 1.
        start_steps: Number of first steps in which changes do not count, at least 0.
        merge: Smallest number of steps from a change to the next one, or to the success, at least 0.
        shares: Shares of the hand's path, each in (0, 1), that are milestones where the gripper gave none; empty turns
            this off.
        ratio: Share of the largest speed below which the hand is at rest, in [0, 1]; see `keyframe_steps`.
        smooth: Number of steps over which the speed is averaged, at least 1.
        start_rule: Which changes lie within the first steps; see `gripper_milestones`.
        gripper_range: Recorded values (closed, open) of the gripper; see `unit_openness`. None where the track is an
            openness in 0 … 1. A width in metres lies in 0 … 1 too, but changes by less than the threshold and looks
            like a gripper that never moves: give (0, 0.08), or the width of the open gripper.

    Raises:
        ValueError: If an argument is out of its range.
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
        # bad settings are refused here, not at the first episode
        self.gripper(np.zeros(1) if self.gripper_range is None else np.array(self.gripper_range[:1], np.float64))
        self(None, np.zeros((2, 3)), 1)

    def gripper(self, openness: np.ndarray) -> Int64[np.ndarray, " M"]:
        """Find the milestones of the gripper alone; see `unit_openness` and `gripper_milestones`.

        Args:
            openness: (N,) recorded values of the gripper.
        """
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
            openness: (N,) recorded values of the gripper, in 0 … 1 or in ``gripper_range``; None for a robot without
                one.
            position: (N, 3) positions of the end effector, in metres.
            success: Observation of the success, in 1 … N − 1. It is the last milestone, and later ones are left out.

        Raises:
            ValueError: If a value is not finite, the openness lies outside its range (at any observation), the lengths
                differ, or the success lies outside.
        """
        if openness is not None and len(openness) != len(position):
            raise ValueError(f"gripper has {len(openness)} observations, the end effector {len(position)}")
        if not 1 <= success < len(position):
            raise ValueError(f"success at observation {success}: expected one in 1 … {len(position) - 1}")
        # the milestones up to an observation depend on nothing later, so the whole track is read and checked
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
    """Convert values to a finite float64 array with at least one observation.

    Args:
        what: Name of the values, for errors.
        values: Array of N observations.
        dimensions: Number of dimensions the array must have.

    Raises:
        ValueError: If the array has another number of dimensions, no observation, or a value that is not finite.
    """
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
