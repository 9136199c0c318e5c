"""Milestones and keyframes by hand, and against a literal search of the definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.rewards.milestones.detection import (
    MilestoneDetector,
    arc_length_milestones,
    gripper_milestones,
    keyframe_steps,
    milestone_progress,
    smoothed_speed,
    step_labels,
    unit_openness,
)

openness = st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.31, 0.6, 1.0]), min_size=1, max_size=60).map(np.array)


def test_changes_of_the_gripper_by_hand():
    #            0 … 14        15   16   17   18   19   20   21   22   23   24   25   26   27
    g = [*[1.0] * 15, 0.7, 0.4, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4]
    # begun at 15 (0.3 away), at rest at 17, 18, 19: complete at 19. Open again at 20, complete at 23, which is 4 steps
    # after 19 and is merged with it, yet 0.8 is the new reference: closed at 24, complete at 27 = 19 + 8, which counts
    assert gripper_milestones(np.array(g)).tolist() == [19, 27]
    assert gripper_milestones(np.array(g), merge=9).tolist() == [19]
    assert gripper_milestones(np.array(g), merge=0).tolist() == [19, 23, 27]
    assert gripper_milestones(np.array(g), threshold=0.5, merge=0).tolist() == [19]  # 0.6 is more, 0.4 is not
    assert gripper_milestones(np.array(g)[:19]).tolist() == []  # nothing is complete yet


def test_closing_an_empty_gripper_at_the_start_does_not_count():
    slow = np.array([*np.linspace(1, 0.3, 15), *[0.3] * 10])  # 0.05 a step: begun at 5 (0.25 away), complete at 17
    assert gripper_milestones(slow).tolist() == []
    assert gripper_milestones(slow, start_rule="complete").tolist() == [17]
    assert gripper_milestones(slow, start_steps=4).tolist() == [17]
    quick = np.array([1.0, 0.6, 0.3, 0.3, 0.3, 0.3, *[0.3] * 10])  # complete at 5
    assert gripper_milestones(quick, start_rule="complete").tolist() == []


def test_a_flick_and_a_gripper_that_never_settles_are_no_changes():
    flick = np.array([*[1.0] * 15, 0.5, *[1.0] * 10])  # back at the reference when it is at rest again
    assert gripper_milestones(flick).tolist() == []
    shaking = np.array([*[1.0] * 15, *[0.3, 0.35] * 10])  # 0.05 a step
    assert gripper_milestones(shaking).tolist() == []
    assert gripper_milestones(shaking, settle=0.06).tolist() == [18]


def literal(g, threshold=0.2, settle=0.02, settle_steps=3, start=10, merge=8):
    """The definition, read aloud: from each rest to the first time far from it, then to the first rest after that."""
    found, rest = [], 0
    while True:
        far = [t for t in range(rest + 1, len(g)) if abs(g[t] - g[rest]) > threshold]
        if not far:
            return found
        calm = [
            t
            for t in range(far[0] + settle_steps, len(g))
            if all(abs(g[j] - g[j - 1]) < settle for j in range(t - settle_steps + 1, t + 1))
        ]
        if not calm:
            return found
        here = calm[0]
        counts = far[0] > start and abs(g[here] - g[rest]) > threshold
        if counts and not any(here - f < merge for f in found[-1:]):
            found.append(here)
        rest = here


@given(g=openness, start=st.integers(0, 12), merge=st.integers(0, 9))
def test_changes_are_those_of_a_literal_search(g, start, merge):
    found = gripper_milestones(g, start_steps=start, merge=merge)
    assert found.tolist() == literal(g, start=start, merge=merge)
    assert (np.diff(found) >= max(merge, 1)).all()


@given(g=openness, cut=st.integers(1, 60), offset=st.sampled_from([-2.0, 0.25, 4.0]), later=st.integers(0, 5))
def test_no_look_ahead_no_zero_of_openness_no_zero_of_time(g, cut, offset, later):
    found = gripper_milestones(g, start_steps=0)
    assert gripper_milestones(g[:cut], start_steps=0).tolist() == [m for m in found if m < cut]
    assert gripper_milestones(g + offset, start_steps=0).tolist() == found.tolist()
    held = np.concatenate([np.full(later, g[0]), g])
    assert gripper_milestones(held, start_steps=0).tolist() == (found + later).tolist()


def test_speed_by_hand():
    x = np.array([0.0, 1, 3, 3, 3])[:, None] * [0.6, 0.8, 0]  # steps of 1, 2, 0, 0 m
    assert smoothed_speed(x, 1) == pytest.approx([1, 2, 0, 0])
    # means of the step and its neighbours: (1 + 2)/2, (1 + 2 + 0)/3, (2 + 0 + 0)/3, (0 + 0)/2
    assert smoothed_speed(x, 3) == pytest.approx([1.5, 1, 2 / 3, 0])


def test_keyframes_by_hand():
    speed = np.array([1, 1, 0.05, 0.02, 0.04, 1, 1, 1, 1, 1])
    # slow below 0.1: steps 2, 3, 4, slowest 3, in the segment of steps 0 … 5; steps 6 … 9 never are: the last, 9
    assert keyframe_steps(speed, np.array([6, 10])).tolist() == [3, 9]
    assert keyframe_steps(speed, np.array([6, 10]), ratio=0.01).tolist() == [5, 9]
    assert keyframe_steps(np.array([0, 0, 1, 1, 0.01, 1.0]), np.array([6])).tolist() == [4]  # not before it moved
    assert keyframe_steps(np.zeros(4), np.array([4])).tolist() == [3]
    assert keyframe_steps(np.array([1, 0, 1, 0, 1.0]), np.array([5])).tolist() == [1, 3]  # two stops in one segment
    assert keyframe_steps(np.array([1, 1, 0.05, 1, 9.0]), np.array([4])).tolist() == [2]  # what comes later is left out
    assert keyframe_steps(np.ones(3), np.zeros(0, np.int64)).tolist() == []


def test_shares_of_the_path_by_hand():
    even = np.arange(5.0)[:, None]  # 4 m: a quarter, a half and three quarters at observations 1, 2, 3
    assert arc_length_milestones(even, 4).tolist() == [1, 2, 3]
    assert arc_length_milestones(even, 2).tolist() == [1]  # 0.5, 1 and 1.5 m of 2 m: at 1, 1, and 2, which is the end
    rushed = np.array([0, 3, 3.5, 4])[:, None]
    assert arc_length_milestones(rushed, 3).tolist() == [1]  # 1, 2 and 3 m at once
    assert arc_length_milestones(np.zeros((5, 3)), 4).tolist() == []


def test_progress_by_hand():
    # half of it at 2, in steps of 1/4; the rest in 4 steps of 1/8
    assert milestone_progress(9, np.array([2, 6])) == pytest.approx([0, 0.25, 0.5, 0.625, 0.75, 0.875, 1, 1, 1])


def test_step_labels_by_hand():
    y, known = step_labels(12, np.array([6]), success=9, margin=2)
    assert y.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1]  # five steps up to 6; those that leave observation 9 on
    assert known.tolist() == [False, False, *[True] * 10]
    assert step_labels(4, np.array([1]), window=5)[0].tolist() == [1, 1, 0, 0]


def test_the_success_is_always_the_last_milestone():
    g, hand = np.ones(31), np.arange(31.0)[:, None] * [1, 0, 0]
    g[15:] = 0.4  # complete at 18
    found = MilestoneDetector()(g, hand, 30)
    assert (found.observations.tolist(), found.gripper, found.fallback) == ([18, 30], 1, False)
    assert found.keyframes.tolist() == [17, 29]
    # 25 − 18 = 7 steps are too close: merged into the success. The path to 25 then gives 6.25, 12.5, 18.75, rounded up
    found = MilestoneDetector()(g, hand, 25)
    assert (found.observations.tolist(), found.gripper, found.fallback) == ([7, 13, 19, 25], 0, True)
    assert MilestoneDetector(shares=())(None, hand, 25).observations.tolist() == [25]


@given(g=openness.filter(lambda g: len(g) > 1), seed=st.integers(0, 99), data=st.data())
def test_what_a_detector_promises(g, seed, data):
    hand = np.random.default_rng(seed).normal(size=(len(g), 3)).cumsum(0)
    success = data.draw(st.integers(1, len(g) - 1))
    found = MilestoneDetector()(g, hand, success)
    cuts = found.observations
    assert cuts[0] >= 1
    assert cuts[-1] == success
    assert (np.diff(cuts) > 0).all()
    assert found.fallback == (found.gripper == 0)
    assert set(range(len(cuts))) <= set(np.searchsorted(cuts, found.keyframes, side="right"))  # one in each segment
    assert found.keyframes.max() < success
    moved = MilestoneDetector()(g, hand + np.array([1.0, 2, 4]), success)
    assert moved.observations.tolist() == cuts.tolist()
    z = milestone_progress(len(g), cuts)
    assert (np.diff(z[: success + 1]) > 0).all()
    assert z[cuts] == pytest.approx((np.arange(len(cuts)) + 1) / len(cuts))


def test_a_gripper_in_another_unit_needs_its_range():
    g, hand = np.ones(41), np.arange(41.0)[:, None] * [1, 0, 0]
    g[20:] = 0.4  # complete at 23
    metres, counts = 0.08 * g, np.round(255 * (1 - g))  # 0.08 m, or 0 of 255, where open; 153 of 255 where it holds
    assert MilestoneDetector()(g, hand, 40).observations.tolist() == [23, 40]
    for recorded, ends in ((metres, (0, 0.08)), (metres - 1, [-1.0, -0.92]), (counts, (255, 0))):
        found = MilestoneDetector(gripper_range=ends)(recorded, hand, 40)
        assert (found.observations.tolist(), found.fallback) == ([23, 40], False)
    with pytest.raises(ValueError, match=r"gripper is 153\.0 at observation 20: expected an openness in 0 … 1; for .*"):
        MilestoneDetector()(counts, hand, 40)
    with pytest.raises(ValueError, match=r"gripper is -1\.0 at observation 0"):
        MilestoneDetector().gripper(-g)
    late = np.where(np.arange(41) > 30, 2.0, g)  # after the success, yet a sign of another unit
    with pytest.raises(ValueError, match=r"gripper is 2\.0 at observation 31"):
        MilestoneDetector()(late, hand, 30)
    with pytest.raises(ValueError, match=r"gripper is 0\.1 at .*at most 5% outside gripper_range \(0\.0, 0\.08\)"):
        MilestoneDetector(gripper_range=(0, 0.08)).gripper(np.array([0.1, 0.08]))
    for wrong in ((0.0, 0.0), (1.0,), (0.0, math.inf)):
        with pytest.raises(ValueError, match=r"gripper_range is .*expected two different numbers, \(closed, open\)"):
            MilestoneDetector(gripper_range=wrong)


def test_openness_by_hand():
    # (2 − 1)/4, and a little outside, 4 % of the range of 4, is an end
    assert unit_openness(np.array([1.0, 2, 5, 0.84, 5.16]), (1, 5)).tolist() == [0, 0.25, 1, 0, 1]
    assert unit_openness(np.array([1.0, 2, 5, 0.84]), (5, 1)).tolist() == [1, 0.75, 0, 1]
    assert unit_openness(np.array([0, 0.3, 1 + 1e-6])).tolist() == [0, 0.3, 1]
    for outside in (0.76, 5.24):  # 6 %
        with pytest.raises(ValueError, match="at most 5%"):
            unit_openness(np.array([outside]), (1, 5))
    with pytest.raises(ValueError, match=r"gripper is 1\.01"):
        unit_openness(np.array([1.01]))


def test_what_cannot_be_used_is_named():
    with pytest.raises(ValueError, match="gripper is nan at observation 2"):
        gripper_milestones(np.array([0, 1, np.nan]))
    with pytest.raises(ValueError, match=r"gripper: expected an array of shape \(N,\)"):
        gripper_milestones(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"end effector is \[0.0, inf\] at observation 1"):
        smoothed_speed(np.array([[0, 0], [0, np.inf]]))
    with pytest.raises(ValueError, match=r"threshold 0\.0, settle"):
        MilestoneDetector(threshold=0.0)
    with pytest.raises(ValueError, match="ratio is 2"):
        MilestoneDetector(ratio=2.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        MilestoneDetector(shares=[1.0])
    with pytest.raises(ValueError, match="smooth is 0"):
        MilestoneDetector(smooth=0)
    with pytest.raises(ValueError, match=r"milestones \[3, 2\]: expected ascending observations in 1 … 4"):
        milestone_progress(5, np.array([3, 2]))
    with pytest.raises(ValueError, match="at least one milestone"):
        milestone_progress(5, np.array([]))
    with pytest.raises(ValueError, match="gripper has 3 observations, the end effector 4"):
        MilestoneDetector()(np.zeros(3), np.zeros((4, 3)), 2)
    with pytest.raises(ValueError, match=r"success at observation 4: expected one in 1 … 3"):
        MilestoneDetector()(None, np.zeros((4, 3)), 4)
    with pytest.raises(ValueError, match="end is 0"):
        arc_length_milestones(np.zeros((4, 3)), 0)
    with pytest.raises(ValueError, match="window 0"):
        step_labels(3, np.zeros(0), window=0)


def test_people_stacking_cubes(real_data):
    h5py = pytest.importorskip("h5py", reason="h5py reads the recordings")
    file = real_data / "isaaclab_stack_cube" / "annotated_dataset.hdf5"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    with h5py.File(file) as recorded:
        assert len(recorded["data"]) == 10
        for demo in recorded["data"].values():
            fingers = demo["obs/gripper_pos"][:]
            width = fingers[:, 0] - fingers[:, 1]  # in metres
            found = MilestoneDetector(gripper_range=(0, 0.08)).gripper(width)
            assert gripper_milestones(width / 0.08).tolist() == found.tolist()
            assert MilestoneDetector().gripper(width).tolist() == []  # a width lies in 0 … 1: nothing can tell
            signals = demo["obs/datagen_info/subtask_term_signals"]
            onsets = [int(np.argmax(signals[name][:].ravel())) for name in ("grasp_1", "stack_1", "grasp_2")]
            # grasp, release, grasp, release; the recording marks the first three by its own rules
            assert len(found) == 4
            assert np.abs(found[:3] - onsets).max() <= 4
