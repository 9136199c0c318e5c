"""Milestone labels of episodes, windows and batches, and which tracks they need."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from guerdon.core.batch import End
from guerdon.datasets.collate import Window, collate
from guerdon.datasets.episodes import BadEpisodeError, Column
from guerdon.datasets.labels import KINDS
from guerdon.rewards.milestones.detection import (
    MilestoneDetector,
)
from guerdon.rewards.milestones.labels import MilestoneLabels, MilestoneTracks, with_milestones
from guerdon.rewards.milestones.oracle import METAWORLD_POINTS, MilestoneOracle


def test_labels_of_a_success_by_hand(episode):
    batch = MilestoneLabels(margin=0).targets(collate([episode()]))
    # milestones 18 and 30; no stop: keyframes are the last steps of both segments, 17 and 29
    y = batch.labels["milestone"]
    assert y.values[0].nonzero().flatten().tolist() == [13, 14, 15, 16, 17, 25, 26, 27, 28, 29]
    assert bool(y.valid.all())
    z = batch.labels["progress"]
    assert z.values.shape == (1, 31)
    assert z.values[0, [0, 9, 18, 24, 30]].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert batch.labels["success"].values[0].sum() == 1


def test_failures_are_negative_and_what_is_unknown_stays_so(episode):
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


def test_an_episode_that_runs_on_after_its_success(episode):
    flags = np.zeros(31, np.float32)
    flags[26:29] = 1  # lost again later
    won = Column(values=flags, valid=np.arange(31) > 0)
    batch = MilestoneLabels(margin=0).targets(collate([episode(labels={"success": won})]))
    y = batch.labels["milestone"].values[0]
    assert y.nonzero().flatten().tolist() == [*range(13, 18), *range(21, 30)]  # 21 … 25 lead to it, 26 … 29 leave it
    assert batch.labels["progress"].values[0, 26:].tolist() == [1.0] * 5


@pytest.mark.parametrize("last_observed", [True, False])
def test_flags_per_step_show_one_observation_later(last_observed, episode):
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


def test_a_flag_at_an_observation_that_was_not_made_is_the_last_one_made(episode):
    last = Column.known(np.arange(30) == 29)  # would show at observation 30, which repeats 29
    found = MilestoneLabels(margin=0).label(episode(last_observed=False, labels={"success": last}))
    assert np.argmax(found["milestone_progress"].values) == 29
    with pytest.raises(BadEpisodeError, match=r"recorded success: expected one number each, got \(31, 1\)"):
        MilestoneLabels().label(episode(labels={"success": Column.known(np.ones((31, 1)))}))


def test_an_episode_that_begins_in_success_is_all_milestone(episode):
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


def test_a_partial_success_is_no_failure(episode):
    half = replace(episode(), success=0.5, end=End.CUT)
    for labels in (MilestoneLabels(), MilestoneLabels(failed_progress="zero"), MilestoneLabels(assume_success=True)):
        batch = labels.targets(collate([half, episode(success=0.0, index=1)]))
        for name in ("milestone", "progress"):
            assert not bool(batch.labels[name].valid[0].any())
            assert float(batch.labels[name].values.abs().sum()) == 0
        assert bool(batch.labels["milestone"].valid[1].all())


def test_labels_of_a_gripper_in_metres(episode):
    plain, grip = episode(), episode().tracks["gripper"].values
    wanted = MilestoneLabels().label(plain)
    metres = episode(tracks={"gripper": Column.known(0.08 * grip)})
    ranged = MilestoneDetector(gripper_range=(0, 0.08))
    for labels in (MilestoneLabels(tracks=MilestoneTracks(gripper_range=[0.0, 0.08])), MilestoneLabels(ranged)):
        for name, column in labels.label(metres).items():
            assert np.array_equal(column.values, wanted[name].values)
    assert not np.array_equal(MilestoneLabels().label(metres)["milestone"].values, wanted["milestone"].values)
    counts = episode(index=3, tracks={"gripper": Column.known(255 * grip)})
    with pytest.raises(BadEpisodeError, match=r"episode 3: gripper is 255\.0 at observation 0: .*pass gripper_range"):
        MilestoneLabels().label(counts)
    assert np.array_equal(
        MilestoneLabels(tracks=MilestoneTracks(gripper_range=(0, 255))).label(counts)["milestone"].values,
        wanted["milestone"].values,
    )
    with pytest.raises(ValueError, match=r"gripper_range \(0, 1\), and the detector has \(0, 0\.08\): give one"):
        MilestoneLabels(ranged, tracks=MilestoneTracks(gripper_range=(0, 1)))
    with pytest.raises(ValueError, match="expected two different numbers"):
        MilestoneLabels(tracks=MilestoneTracks(gripper_range=(2, 2)))


def test_a_repeated_last_observation_is_no_stop_and_has_no_label(episode):
    shown = episode(last_observed=False)
    hand = shown.tracks["end_effector"].values.copy()
    hand[-1] = hand[-2]
    shown = replace(shown, tracks={**shown.tracks, "end_effector": Column.known(hand)})
    batch = MilestoneLabels(margin=0).targets(collate([shown]))
    # 30 observations, the success at 29: keyframes 17 and 28; the last step leaves the success
    assert batch.labels["milestone"].values[0].nonzero().flatten().tolist() == [*range(13, 18), *range(24, 30)]
    assert float(batch.labels["progress"].values[0, 29]) == 1
    assert batch.labels["progress"].valid[0].tolist() == [True] * 30 + [False]


def test_windows_need_stored_labels_and_agree_with_the_whole(episode):
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


def test_another_instruction_makes_every_step_a_negative(episode):
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


def test_a_track_that_does_not_serve_is_named(episode):
    labels, good = MilestoneLabels(), episode(index=7)
    alone = replace(good, tracks={"end_effector": good.tracks["end_effector"]})
    with pytest.raises(BadEpisodeError, match=r"episode 7: no track 'gripper'.*end_effector; for a robot without"):
        labels.label(alone)
    assert labels.targets(collate([good])).labels["progress"].values.shape == (1, 31)
    assert (
        MilestoneLabels(tracks=MilestoneTracks(gripper=None)).label(alone)["milestone"].values.sum() == 4 * 5
    )  # a quarter each, 7 or 8 steps
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


@pytest.mark.slow
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


def test_tracks_are_an_object_or_given_flat(episode):
    renamed = episode(tracks={"tool": episode().tracks["end_effector"], "grip": episode().tracks["gripper"]})
    wanted = MilestoneLabels(margin=0).label(episode())
    for labels in (
        MilestoneLabels(margin=0, gripper="grip", hand="tool"),  # pyright: ignore[reportCallIssue]
        MilestoneLabels(margin=0, tracks=MilestoneTracks(gripper="grip", hand="tool")),
    ):
        assert (labels.tracks.gripper, labels.tracks.hand, labels.margin) == ("grip", "tool", 0)
        assert np.array_equal(labels.label(renamed)["milestone"].values, wanted["milestone"].values)
    assert MilestoneTracks(gripper="").gripper is None, "a command line has no None"
