import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.datasets.collate import Window, collate
from guerdon.datasets.episodes import BadEpisodeError, Column, Episode
from guerdon.datasets.labels import KINDS
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
from guerdon.rewards.milestones.labels import MilestoneLabels, with_milestones
from guerdon.rewards.milestones.oracle import METAWORLD_POINTS, MilestoneOracle
from guerdon.rewards.milestones.payment import MODES, MilestonePayment
from guerdon.rewards.milestones.reward import MilestoneReward, in_mode
from guerdon.rewards.shaping import Potential
from guerdon.testing import check_reward_model, trajectory_batches

openness = st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.31, 0.6, 1.0]), min_size=1, max_size=60).map(np.array)
modes = st.sampled_from(MODES)


# --- the detector ---------------------------------------------------------------------------------------------------


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


@settings(max_examples=50, deadline=None)
@given(g=openness, start=st.integers(0, 12), merge=st.integers(0, 9))
def test_changes_are_those_of_a_literal_search(g, start, merge):
    found = gripper_milestones(g, start_steps=start, merge=merge)
    assert found.tolist() == literal(g, start=start, merge=merge)
    assert (np.diff(found) >= max(merge, 1)).all()


@settings(max_examples=50, deadline=None)
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


@settings(max_examples=40, deadline=None)
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


# --- labels of episodes and batches ---------------------------------------------------------------------------------


def episode(steps=30, success: float | None = 1.0, index=0, last_observed=True, closed_at=15, **more):
    """A hand that moves on at 1 m a step, and a gripper that closes at once (complete three steps later)."""
    g = np.ones(steps + 1)
    g[closed_at:] = 0.4
    hand = np.arange(steps + 1.0)[:, None] * [1, 0, 0]
    tracks = {"gripper": Column.known(g), "end_effector": Column.known(hand)}
    tracks.update(more.pop("tracks", {}))
    end = {1.0: End.SUCCESS, 0.0: End.FAILURE, None: End.CUT}[success]
    return Episode(
        index=index,
        state=np.concatenate([hand, g[:, None]], 1).astype(np.float32),
        actions=np.zeros((steps, 2), np.float32),
        success=success,
        end=end,
        last_observed=last_observed,
        tracks=tracks,
        **more,
    )


def test_labels_of_a_success_by_hand():
    batch = MilestoneLabels(margin=0).targets(collate([episode()]))
    # milestones 18 and 30; no stop: keyframes are the last steps of both segments, 17 and 29
    y = batch.labels["milestone"]
    assert y.values[0].nonzero().flatten().tolist() == [13, 14, 15, 16, 17, 25, 26, 27, 28, 29]
    assert bool(y.valid.all())
    z = batch.labels["progress"]
    assert z.values.shape == (1, 31)
    assert z.values[0, [0, 9, 18, 24, 30]].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert batch.labels["success"].values[0].sum() == 1


def test_failures_are_negative_and_what_is_unknown_stays_so():
    batch = collate([episode(success=0.0), episode(success=None)])
    labelled = MilestoneLabels().targets(batch)
    assert labelled.labels["milestone"].values.sum() == 0
    assert labelled.labels["milestone"].valid.all(1).tolist() == [True, False]
    assert not bool(labelled.labels["milestone"].valid[1].any())
    assert not bool(labelled.labels["progress"].valid.any())
    told = MilestoneLabels(failed_progress="zero").targets(batch)
    assert told.labels["progress"].valid.all(1).tolist() == [True, False]
    assumed = MilestoneLabels(assume_success=True, margin=0).targets(batch)
    assert assumed.labels["milestone"].values.sum(1).tolist() == [0, 10]


def test_an_episode_that_runs_on_after_its_success():
    flags = np.zeros(31, np.float32)
    flags[26:29] = 1  # lost again later
    won = Column(values=flags, valid=np.arange(31) > 0)
    batch = MilestoneLabels(margin=0).targets(collate([episode(labels={"success": won})]))
    y = batch.labels["milestone"].values[0]
    assert y.nonzero().flatten().tolist() == [*range(13, 18), *range(21, 30)]  # 21 … 25 lead to it, 26 … 29 leave it
    assert batch.labels["progress"].values[0, 26:].tolist() == [1.0] * 5


@pytest.mark.parametrize("last_observed", [True, False])
def test_flags_per_step_show_one_observation_later(last_observed):
    steps = np.zeros(30, np.float32)
    steps[25:28] = 1  # step 25 leads to success: at observation 26, as in the test above
    observations = np.concatenate([[0], steps]).astype(np.float32)
    made = [
        MilestoneLabels(margin=0).label(episode(last_observed=last_observed, labels={"success": Column.known(flags)}))
        for flags in (steps, observations)
    ]
    for found in made:
        assert found["milestone"].values.nonzero()[0].tolist() == [*range(13, 18), *range(21, 30)]
        assert found["milestone_progress"].values[26:30].tolist() == [1.0] * 4
        assert found["milestone_progress"].valid.tolist() == [True] * 30 + [last_observed]
        assert found["milestone_progress"].values[25] < 1
    assert np.array_equal(made[0]["milestone_progress"].values, made[1]["milestone_progress"].values)


def test_a_flag_at_an_observation_that_was_not_made_is_the_last_one_made():
    last = Column.known(np.arange(30) == 29)  # would show at observation 30, which repeats 29
    found = MilestoneLabels(margin=0).label(episode(last_observed=False, labels={"success": last}))
    assert np.argmax(found["milestone_progress"].values) == 29
    with pytest.raises(BadEpisodeError, match=r"recorded success: expected one number each, got \(31, 1\)"):
        MilestoneLabels().label(episode(labels={"success": Column.known(np.ones((31, 1)))}))


def test_an_episode_that_begins_in_success_is_all_milestone():
    begun = episode(labels={"success": Column.known(np.ones(31, np.float32))})
    batch = MilestoneLabels().targets(collate([begun, episode(index=1)]))
    assert batch.labels["milestone"].values[0].tolist() == [1.0] * 30
    assert batch.labels["progress"].values[0].tolist() == [1.0] * 31
    assert bool(batch.labels["milestone"].valid[0].all())
    assert bool(batch.labels["progress"].valid[0].all())
    assert batch.labels["progress"].values[1, 0] == 0
    found = with_milestones(episode(steps=1, last_observed=False))  # its only observation is the last one made
    assert found.labels["milestone"].values.tolist() == [1]
    assert found.labels["milestone_progress"].valid.tolist() == [True, False]
    assert found.labels["milestone_progress"].values.tolist() == [1, 0]


def test_a_partial_success_is_no_failure():
    half = replace(episode(), success=0.5, end=End.CUT)
    for labels in (MilestoneLabels(), MilestoneLabels(failed_progress="zero"), MilestoneLabels(assume_success=True)):
        batch = labels.targets(collate([half, episode(success=0.0, index=1)]))
        for name in ("milestone", "progress"):
            assert not bool(batch.labels[name].valid[0].any())
            assert float(batch.labels[name].values.abs().sum()) == 0
        assert bool(batch.labels["milestone"].valid[1].all())


def test_labels_of_a_gripper_in_metres():
    plain, grip = episode(), episode().tracks["gripper"].values
    wanted = MilestoneLabels().label(plain)
    metres = episode(tracks={"gripper": Column.known(0.08 * grip)})
    ranged = MilestoneDetector(gripper_range=(0, 0.08))
    for labels in (MilestoneLabels(gripper_range=[0.0, 0.08]), MilestoneLabels(ranged)):
        for name, column in labels.label(metres).items():
            assert np.array_equal(column.values, wanted[name].values)
    assert not np.array_equal(MilestoneLabels().label(metres)["milestone"].values, wanted["milestone"].values)
    counts = episode(index=3, tracks={"gripper": Column.known(255 * grip)})
    with pytest.raises(BadEpisodeError, match=r"episode 3: gripper is 255\.0 at observation 0: .*pass gripper_range"):
        MilestoneLabels().label(counts)
    assert np.array_equal(
        MilestoneLabels(gripper_range=(0, 255)).label(counts)["milestone"].values, wanted["milestone"].values
    )
    with pytest.raises(ValueError, match=r"gripper_range \(0, 1\), and the detector has \(0, 0\.08\): give one"):
        MilestoneLabels(ranged, gripper_range=(0, 1))
    with pytest.raises(ValueError, match="expected two different numbers"):
        MilestoneLabels(gripper_range=(2, 2))


def test_a_repeated_last_observation_is_no_stop_and_has_no_label():
    shown = episode(last_observed=False)
    hand = shown.tracks["end_effector"].values.copy()
    hand[-1] = hand[-2]
    shown = replace(shown, tracks={**shown.tracks, "end_effector": Column.known(hand)})
    batch = MilestoneLabels(margin=0).targets(collate([shown]))
    # 30 observations, the success at 29: keyframes 17 and 28; the last step leaves the success
    assert batch.labels["milestone"].values[0].nonzero().flatten().tolist() == [*range(13, 18), *range(24, 30)]
    assert float(batch.labels["progress"].values[0, 29]) == 1
    assert batch.labels["progress"].valid[0].tolist() == [True] * 30 + [False]


def test_windows_need_stored_labels_and_agree_with_the_whole():
    labels = MilestoneLabels()
    whole = labels.targets(collate([episode()]))
    with pytest.raises(ValueError, match="row 0 is a window of an episode: milestones need all of it"):
        labels.targets(collate([Window(episode=episode(), offset=5, steps=10)]))
    kept = with_milestones(episode())
    part = labels.targets(collate([Window(episode=kept, offset=12, steps=10)]))
    assert torch.equal(part.labels["milestone"].values[0], whole.labels["milestone"].values[0, 12:22])
    assert torch.equal(part.labels["milestone"].valid[0], whole.labels["milestone"].valid[0, 12:22])
    assert torch.equal(part.labels["progress"].values[0], whole.labels["progress"].values[0, 12:23])
    assert "milestone_progress" not in part.labels
    assert "milestone_progress" in kept.labels


def test_another_instruction_makes_every_step_a_negative():
    batch = collate([episode(instruction="open"), episode(instruction="close", task=1, index=1)])
    drawn, counts = MilestoneLabels(wrong_instruction=1.0).draw(batch, torch.Generator().manual_seed(0))
    assert counts["wrong_instruction"] == 2
    assert bool(drawn.labels["milestone"].valid.all())
    assert float(drawn.labels["milestone"].values.sum()) == 0
    assert float(drawn.labels["progress"].values.sum()) == 0
    rewound, counts = MilestoneLabels(rewind=1.0).draw(batch, torch.Generator().manual_seed(0))
    assert counts["rewind"] == 2
    assert int(rewound.labels["negative"].values[0, 0]) == KINDS.index("rewind")
    back = rewound.labels["progress"].values[0].diff() < 0
    assert bool(back.any())
    assert not bool(rewound.labels["milestone"].valid[0][back].any())  # no action leads backwards in time


def test_a_track_that_does_not_serve_is_named():
    labels, good = MilestoneLabels(), episode(index=7)
    alone = replace(good, tracks={"end_effector": good.tracks["end_effector"]})
    with pytest.raises(BadEpisodeError, match=r"episode 7: no track 'gripper'.*end_effector; for a robot without"):
        labels.label(alone)
    assert labels.targets(collate([good])).labels["progress"].values.shape == (1, 31)
    assert MilestoneLabels(gripper=None).label(alone)["milestone"].values.sum() == 4 * 5  # a quarter each, 7 or 8 steps
    with pytest.raises(BadEpisodeError, match=r"no track 'gripper' and none 'end_effector': its tracks are none"):
        labels.label(replace(good, tracks={}))
    broken = np.ones(31)
    broken[4] = np.nan
    with pytest.raises(BadEpisodeError, match=r"episode 7: track 'gripper' is nan at observation 4"):
        labels.label(episode(index=7, tracks={"gripper": Column.known(broken)}))
    gap = Column(values=np.ones(31), valid=np.arange(31) != 3)
    with pytest.raises(BadEpisodeError, match=r"track 'gripper' is unknown at observation 3"):
        labels.label(episode(tracks={"gripper": gap}))
    with pytest.raises(BadEpisodeError, match="expected one entry per observation, got 30"):
        labels.label(episode(tracks={"gripper": Column.known(np.ones(30))}))
    with pytest.raises(BadEpisodeError, match="no track 'gripper'"):
        labels.targets(collate([alone]))


# --- how it is paid -------------------------------------------------------------------------------------------------


def paid(mode, end=End.CUT, **more):
    z = torch.tensor([[0, 0.3, 0.5, 0.4, 1.0]])
    y = torch.tensor([[0, 1, 1, 0.0]])
    every = torch.ones(1, 5, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.zeros(1, 5, 1), actions=torch.zeros(1, 4, 0), mask=every[:, 1:], end=torch.tensor([int(end)])
    )
    payment = MilestonePayment(mode, milestones=2, gamma=0.9, **more)
    return payment.pay(Labelled(values=y, valid=every[:, 1:]), Labelled(values=z, valid=every), batch)


def test_the_three_modes_by_hand():
    assert paid("additive", bonus=0.5).rewards.tolist() == [[0, 0.5, 0.5, 0]]
    # milestones passed 0, 0, 1, 0, 2: falling back loses none, and the second is paid once it comes
    assert paid("first_hit").rewards.tolist() == [[0, 1, 0, 1]]
    assert paid("first_hit", slack=0.2).rewards.tolist() == [[1, 0, 0, 1]]  # 0.3 + 0.2 passes the first
    # ½ (0.9 · 0.3 − 0), ½ (0.9 · 0.5 − 0.3), ½ (0.9 · 0.4 − 0.5), and ½ (0.9 · 1 − 0.4), or ½ (0 − 0.4) after an end
    assert paid("potential").rewards[0].tolist() == pytest.approx([0.135, 0.075, -0.07, 0.25])
    ended = paid("potential", End.SUCCESS)
    assert ended.rewards[0].tolist() == pytest.approx([0.135, 0.075, -0.07, -0.2])
    assert sum(0.9**t * r for t, r in enumerate(ended.rewards[0].tolist())) == pytest.approx(0, abs=1e-6)  # −½ Φ_0
    assert ended.terms["milestone"].tolist() == [[0, 1, 1, 0]]


@settings(max_examples=4, deadline=None)
@given(batch=trajectory_batches(state_size=2, action_size=2, stored_labels=False), mode=modes)
def test_every_promise_of_the_model_is_kept(batch, mode):
    labels = {
        "milestone": ((batch.actions[..., 0] > 0).float(), batch.mask),
        "progress": (torch.full_like(batch.state[..., 0], 0.5), batch.made),
    }
    labelled = replace(batch, labels={k: Labelled(values=v * valid, valid=valid) for k, (v, valid) in labels.items()})
    model = MilestoneReward(state_size=2, action_size=2, width=8, bins=11, mode=mode, layers=1)
    if bool(labelled.mask.any()):
        check_reward_model(model, labelled)


@settings(max_examples=10, deadline=None)
@given(batch=trajectory_batches(state_size=2, action_size=2))
def test_the_potential_is_the_one_of_shaping(batch):
    model = MilestoneReward(state_size=2, action_size=2, width=8, bins=11, beta=0.5, gamma=0.9).eval()
    with torch.no_grad():
        mine, theirs = model(batch), Potential(model, gamma=0.9)(batch)
    assert torch.equal(mine.valid, theirs.valid)
    assert torch.allclose(mine.rewards, 0.5 * theirs.rewards, atol=1e-6)


def test_a_trained_model_can_be_paid_in_another_way(tmp_path):
    model = MilestoneReward(state_size=4, action_size=2, width=8, threshold=None).eval()
    additive = in_mode(model, "additive", bonus=0.1)
    assert (model.payment.mode, additive.payment.mode, additive.training) == ("potential", "additive", False)
    batch = collate([episode()])
    with torch.no_grad():
        assert torch.equal(model(batch).progress.values, additive(batch).progress.values)
        chance = additive(batch)
    assert torch.allclose(chance.rewards, chance.terms["milestone"])
    assert bool(((chance.rewards > 0) & (chance.rewards < 0.1)).all())
    additive.save_pretrained(tmp_path / "additive")
    assert torch.equal(MilestoneReward.from_pretrained(tmp_path / "additive")(batch).rewards, chance.rewards)


def test_how_it_pays_is_kept_by_files_and_by_other_modes(tmp_path):
    batch = collate([episode()])
    torch.manual_seed(3)
    model = MilestoneReward(
        state_size=4, action_size=2, width=8, milestones=3, bonus=0.2, beta=0.7, gamma=0.9, slack=0.3
    )
    first = in_mode(model.eval(), "first_hit")
    for number, made in enumerate((model, first, in_mode(first, "potential"), in_mode(first, "potential", beta=0.1))):
        opened = MilestoneReward.from_pretrained(_saved(made, tmp_path / str(number)))
        for one in (made, opened):
            kept = one.payment
            assert (kept.milestones, kept.bonus, kept.gamma, kept.slack) == (3, 0.2, 0.9, 0.3)
            assert kept.beta == (0.1 if number == 3 else 0.7)
        with torch.no_grad():
            assert torch.equal(opened.eval()(batch).rewards, made(batch).rewards)
    with torch.no_grad():
        assert torch.equal(in_mode(first, "potential")(batch).rewards, model(batch).rewards)


def _saved(model, folder):
    model.save_pretrained(folder)
    return folder


def points(seed, rows=24, steps=20):
    """A point that wanders; a step that moves it up while it is in the upper half leads to a keyframe."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.rand(rows, steps + 1, 2, generator=generator)
    actions = torch.randn(rows, steps, 1, generator=generator)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    y = ((state[:, :-1, 0] > 0.5) & (actions[..., 0] > 0)).float()
    labels = {
        "milestone": Labelled(values=y, valid=mask),
        "progress": Labelled(values=state[..., 1], valid=torch.ones(rows, steps + 1, dtype=torch.bool)),
    }
    return TrajectoryBatch(state=state, actions=actions, mask=mask, labels=labels)


def test_it_learns_labels_that_depend_on_state_and_action():
    right, wrong, error = [], [], []
    for seed in range(3):
        torch.manual_seed(seed)
        logs, held_out = points(seed), points(100 + seed)
        for size, kept in ((1, right), (0, wrong)):
            model = MilestoneReward(state_size=2, action_size=size, width=16, bins=21, mode="additive")
            optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
            for _ in range(60):
                optimiser.zero_grad()
                model.loss(logs)["loss"].backward()
                optimiser.step()
            with torch.no_grad():
                said = model.eval()(held_out)
            kept.append(float((said.rewards == held_out.labels["milestone"].values).float().mean()))
        error.append(float((said.progress.values - held_out.state[..., 1]).abs().mean()))
    assert np.mean(right) > 0.93
    assert np.mean(wrong) < 0.85  # half of the steps in the upper half are positive: who sees no action must guess
    assert np.mean(error) < 0.05


def test_positives_and_negatives_weigh_the_same_and_pseudo_rewards_weigh_positives():
    batch = points(0)
    few = batch.labels["milestone"].values.clone()
    few[1:] = 0
    batch = replace(batch, labels={"milestone": Labelled(values=few, valid=batch.mask)})
    model = MilestoneReward(state_size=2, action_size=1, width=8).eval()
    torch.nn.init.zeros_(model.step_head[2].weight)
    torch.nn.init.constant_(model.step_head[2].bias, 1.0)
    # −log σ(1) = 0.31326 on every positive, −log σ(−1) = 1.31326 on every negative, however many of each
    with torch.no_grad():
        parts = model.loss(batch)
        heavy = MilestoneReward(state_size=2, action_size=1, width=8, pseudo_reward=3.0)
        heavy.load_state_dict(model.state_dict())
        heavier = heavy.loss(batch)
    assert float(parts["milestone_loss"]) == pytest.approx(0.5 * 0.31326 + 0.5 * 1.31326, abs=1e-4)
    assert float(heavier["milestone_loss"]) == pytest.approx(1.5 * 0.31326 + 0.5 * 1.31326, abs=1e-4)
    assert float(parts["milestone_positives"]) == float(few.sum())


def test_a_model_names_what_it_cannot_use():
    model, batch = MilestoneReward(state_size=2, action_size=1, width=8), points(0)
    with pytest.raises(ValueError, match="learns from labels milestone and progress, this batch holds none"):
        model.loss(replace(batch, labels={}))
    with pytest.raises(ValueError, match="reads actions of 3 numbers, these trajectories have 1"):
        MilestoneReward(state_size=2, action_size=3, width=8)(batch)
    broken = batch.actions.clone()
    broken[0, 0] = math.nan
    with pytest.raises(ValueError, match="an action is NaN or infinite"):
        model(replace(batch, actions=broken))
    per_observation = Labelled(values=torch.zeros(24, 21), valid=torch.ones(24, 21, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"labels\['milestone'\]: expected one number per step \(24, 20\)"):
        model.loss(replace(batch, labels={"milestone": per_observation}))
    with pytest.raises(ValueError, match="threshold is 1"):
        MilestoneReward(state_size=2, threshold=1.0)
    with pytest.raises(ValueError, match="milestones 0"):
        MilestonePayment(milestones=0)
    with pytest.raises(ValueError, match=r"gamma 1\.5"):
        MilestonePayment(gamma=1.5)


# --- the oracle -----------------------------------------------------------------------------------------------------

STAGES = (("hand", "object", 0.1), ("gripper",), ("object", "goal", 0.1))
COLUMNS = {"hand": (0, 1), "object": (1, 2), "goal": (2, 3), "gripper": (3, 4)}


def test_the_oracle_by_hand():
    hand = [1.0, 0.55, 0.05, 0.05, 0.05, 0.05, 0.05, 0.5, 0.9, 0.3]
    obj = [0.0] * 7 + [0.45, 0.95, 0.95]
    goal = [1.0] * 10
    grip = [1.0, 1, 1, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]  # closed at 3, complete at 6
    state = torch.tensor([list(zip(hand, obj, goal, grip, strict=True))])
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(1, 9, 0),
        mask=torch.ones(1, 9, dtype=torch.bool),
        end=torch.tensor([int(End.SUCCESS)]),
    )
    oracle = MilestoneOracle(STAGES, points=COLUMNS, near=2.0, start_steps=0, mode="first_hit")
    scored = oracle(batch)
    # reaching, from 1 to 0.1 m: 0, then (1 − 0.55)/0.9 = 0.5, both thirds; reached at 2; gripper done at 6; then the
    # object is 1 m away: at 7 (1 − 0.55)/0.9 = 0.5 of the last third; at 8 it is 0.05 m from the goal: done, for good
    wanted = [0, 1 / 6, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 5 / 6, 1, 1]
    assert scored.progress.values[0].tolist() == pytest.approx(wanted)
    assert scored.rewards.tolist() == [[0, 1, 0, 0, 0, 1, 0, 1, 0]]
    # labelled: within 0.2 of the object (2 … 8, at 7 and 8 by 0.05 too), the change complete at 6, the goal at 8, 9
    assert scored.terms["milestone"].tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1]]


def graspings(grip, stages, hand=None, **more):
    """The oracle's progress on one row of a gripper, of a hand as far from the object, and of an object at rest."""
    count = len(grip)
    hand = [0.0] * count if hand is None else hand
    state = torch.tensor([list(zip(hand, [0.0] * count, [1.0] * count, grip, strict=True))])
    batch = TrajectoryBatch(
        state=state, actions=torch.zeros(1, count - 1, 0), mask=torch.ones(1, count - 1, dtype=torch.bool), **more
    )
    return MilestoneOracle(stages, points=COLUMNS, start_steps=0, mode="first_hit")(batch)


def test_a_change_before_its_turn_is_not_paid():
    early = [1.0, 1, 0.4, 0.4, 0.4, 0.4, *[0.4] * 14]  # closed at 2, complete at 5
    hand = [1.0] * 10 + [0.0] * 10  # reached at 10
    stages = STAGES[:2]
    scored = graspings(early, stages, hand)
    assert scored.progress.values[0].tolist() == [0] * 10 + [0.5] * 10  # the grasp was over: nothing held
    assert scored.rewards[0].nonzero().flatten().tolist() == [9]
    again = [*early[:12], *[1.0] * 8]  # opened at 12, complete at 15
    scored = graspings(again, stages, hand)
    assert scored.progress.values[0].tolist() == [0] * 10 + [0.5] * 5 + [1] * 5
    # a change that is complete just as the stage before it is passed came before its turn too; one step later counts
    assert graspings(early, stages, [1.0] * 5 + [0.0] * 15).progress.values[0, -1] == 0.5
    assert graspings(early, stages, [1.0] * 4 + [0.0] * 16).progress.values[0].tolist() == [0] * 4 + [0.5] + [1] * 15
    # two stages of the gripper take two changes
    twice = graspings(again, (("gripper",), ("gripper",)))
    assert twice.progress.values[0].tolist() == [0] * 5 + [0.5] * 10 + [1] * 5


def literal_stages(distance, changes, stages):
    """How many stages are passed at each observation, one search a stage: from its beginning for what ends it."""
    ends, begin = [], 0
    for stage in stages:
        if stage == ("gripper",):
            hits = [t for t in changes if t > begin]
        else:
            hits = [t for t in range(begin, len(distance)) if distance[t] <= stage[2]]
        if not hits:
            break
        begin = hits[0]
        ends.append(begin)
    return [sum(end <= t for end in ends) for t in range(len(distance))]


@settings(max_examples=30, deadline=None)
@given(
    data=st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.5])), min_size=2, max_size=8),
    order=st.permutations([("hand", "object", 0.1), ("gripper",), ("gripper",)]),
)
def test_stages_are_those_of_a_literal_search(data, order):
    grip, hand = ([pair[i] for pair in data for _ in range(5)] for i in (0, 1))
    scored = graspings(grip, tuple(order), hand)
    changes = gripper_milestones(np.array(grip), start_steps=0).tolist()
    passed = (scored.progress.values[0] * 3 + 1e-4).floor().tolist()
    assert passed == literal_stages(hand, changes, order)


@pytest.mark.parametrize("mode", MODES)
def test_a_window_does_not_show_what_was_passed_before_it(mode):
    whole = TrajectoryBatch(
        state=torch.rand(2, 11, 4), actions=torch.zeros(2, 10, 0), mask=torch.ones(2, 10, dtype=torch.bool)
    )
    oracle = MilestoneOracle(STAGES, points=COLUMNS, start_steps=0, mode=mode)
    begun = oracle(replace(whole, offset=torch.tensor([0, 3]), length=torch.tensor([13, 13])))
    assert begun.valid.all(1).tolist() == [True, False]
    assert not bool(begun.valid[1].any() | begun.progress.valid[1].any())
    assert float(begun.rewards[1].abs().sum() + begun.progress.values[1].sum() + begun.terms["milestone"][1].sum()) == 0
    assert torch.equal(begun.rewards[0], oracle(whole).rewards[0])


@settings(max_examples=4, deadline=None)
@given(batch=trajectory_batches(state_size=4), mode=modes)
def test_every_promise_of_the_oracle_is_kept(batch, mode):
    check_reward_model(MilestoneOracle(STAGES, points=COLUMNS, start_steps=1, merge=2, mode=mode), batch)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), cut=st.integers(1, 19))
def test_the_oracle_does_not_look_ahead(seed, cut):
    generator = torch.Generator().manual_seed(seed)
    batch = TrajectoryBatch(
        state=torch.rand(2, 21, 4, generator=generator).cumsum(1) % 1,
        actions=torch.zeros(2, 20, 0),
        mask=torch.ones(2, 20, dtype=torch.bool),
    )
    start = replace(
        TrajectoryBatch(state=batch.state[:, : cut + 1], actions=batch.actions[:, :cut], mask=batch.mask[:, :cut])
    )
    for mode in MODES:
        oracle = MilestoneOracle(STAGES, points=COLUMNS, start_steps=1, mode=mode)
        whole, prefix = oracle(batch), oracle(start)
        assert torch.equal(whole.rewards[:, :cut], prefix.rewards)
        assert torch.equal(whole.progress.values[:, : cut + 1], prefix.progress.values)


def test_tracks_come_before_columns_and_missing_points_are_named(tmp_path):
    batch = collate([episode()])
    stages = (("end_effector", "mug", 0.1),)
    with pytest.raises(ValueError, match=r"point 'mug' is no track of these trajectories \(they have end_effector"):
        MilestoneOracle(stages)(batch)
    mug = Labelled(values=torch.tensor([[[30.0, 0, 0]]]).repeat(1, 31, 1), valid=torch.ones(1, 31, dtype=torch.bool))
    scored = MilestoneOracle(stages, points={"end_effector": (0, 1)})(
        replace(batch, tracks={**batch.tracks, "mug": mug})
    )
    assert scored.progress.values[0, [0, 30]].tolist() == [0, 1]  # 30 m in steps of one, by the track of three numbers
    unseen = Labelled(values=mug.values * math.nan, valid=~mug.valid)
    scored = MilestoneOracle(stages)(replace(batch, tracks={**batch.tracks, "mug": unseen}))
    assert not bool(scored.valid.any())
    with pytest.raises(ValueError, match=r"point 'mug' is \[nan, nan, nan\] at observation 0 of row 0"):
        known = Labelled(values=mug.values * math.nan, valid=mug.valid)
        MilestoneOracle(stages)(replace(batch, tracks={**batch.tracks, "mug": known}))
    with pytest.raises(ValueError, match="columns 36 to 39 do not lie in a state of 4 numbers"):
        MilestoneOracle((("end_effector", "goal", 0.1),), points=METAWORLD_POINTS)(batch)
    for wrong in (("hand",), ("hand", "object"), ("hand", "object", 0.0), ("hand", "object", "near")):
        with pytest.raises(ValueError, match="expected \\[point, point, radius above 0\\]"):
            MilestoneOracle((wrong,))
    with pytest.raises(ValueError, match="0 stages"):
        MilestoneOracle(())
    MilestoneOracle(STAGES, points=COLUMNS, mode="first_hit").save_pretrained(tmp_path / "oracle")
    assert MilestoneOracle.from_pretrained(tmp_path / "oracle").stages == MilestoneOracle(STAGES).stages


# --- real and simulated data ----------------------------------------------------------------------------------------


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


def test_simulated_episodes_give_what_the_labels_need(tmp_path):
    pytest.importorskip("metaworld")
    from guerdon.datasets.opening import open_dataset
    from guerdon.envs.collect import collect_dataset

    collect_dataset("metaworld/pick-place-v3", tmp_path / "logs", 1, quality="expert", frames=False)
    recorded = open_dataset(tmp_path / "logs")[0]
    assert recorded.success == 1
    labels = MilestoneLabels(margin=0)
    batch = labels.targets(collate([recorded]))
    found = labels.detector(recorded.tracks["gripper"].values, recorded.tracks["end_effector"].values, recorded.steps)
    assert (found.gripper, found.fallback) == (1, False)  # one grasp
    z = batch.labels["progress"].values[0]
    assert z[found.observations].tolist() == pytest.approx([0.5, 1])
    assert batch.labels["milestone"].values[0, -1] == 1
    scored = MilestoneOracle(points=METAWORLD_POINTS)(replace(batch, tracks={}))
    assert torch.equal(scored.rewards, MilestoneOracle()(batch).rewards)  # columns of the state are the tracks
