"""The staged reward by hand: latched bonuses, a target that can be left, tracks and flags that are missing."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.rewards.staged_grasp import StagedGraspReward, held_for
from guerdon.testing import reopen


def episode(grasped, on_target, **more):
    """One row whose object is in the hand, and away from its start, where ``grasped`` is 1."""
    steps = len(grasped) - 1
    known = torch.ones(1, steps + 1, dtype=torch.bool)
    flag = torch.tensor(grasped, dtype=torch.float32)[None, :, None]
    thing = torch.cat([flag, torch.zeros(1, steps + 1, 2)], 2)  # 1 m from its start where it is grasped
    hand = torch.where(flag > 0, thing, thing + 5)
    told = torch.arange(steps + 1)[None] > 0
    given = {
        "state": torch.zeros(1, steps + 1, 1),
        "actions": torch.zeros(1, steps, 1),
        "mask": torch.ones(1, steps, dtype=torch.bool),
        "end": torch.tensor([int(End.TIME_LIMIT)]),
        "tracks": {"end_effector": Labelled(values=hand, valid=known), "object": Labelled(values=thing, valid=known)},
        "labels": {"success": Labelled(values=torch.tensor([on_target], dtype=torch.float32), valid=told)},
    }
    return TrajectoryBatch(**given | more)


def test_by_hand():
    # grasped, dropped, grasped for three steps (held at the third), on target, off it, on it again
    batch = episode([0, 1, 0, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 1, 0, 1])
    found = StagedGraspReward(hold_steps=3)(batch)
    assert found.terms["grasp"][0].tolist() == pytest.approx([0.1, 0, 0, 0, 0, 0, 0, 0])
    assert found.terms["hold"][0].tolist() == pytest.approx([0, 0, 0, 0, 0.1, 0, 0, 0])
    assert found.terms["target"][0].tolist() == pytest.approx([0, 0, 0, 0, 0, 1, -1, 1])
    assert found.rewards.sum().item() == pytest.approx(1.2)  # Φ at the end
    assert found.valid.all()


def test_a_literal_loop_over_the_published_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        grasped = [0, *torch.randint(0, 2, (11,), generator=generator).tolist()]
        target = [0, *torch.randint(0, 2, (11,), generator=generator).tolist()]
        ever = held = False
        run, scores = 0, []
        for g, t in zip(grasped, target, strict=True):
            run = run + 1 if g else 0
            ever, held = ever or bool(g), held or run >= 2
            scores.append(0.1 * ever + 0.1 * held + 1.0 * (bool(t) and ever))
        found = StagedGraspReward(hold_steps=2)(episode(grasped, target)).rewards[0]
        wanted = [after - before for before, after in pairwise(scores)]
        assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_target_without_a_grasp_counts_only_if_it_may():
    batch = episode([0, 0, 0], [0, 0, 1])
    assert StagedGraspReward()(batch).rewards.tolist() == [[0, 0]]
    assert StagedGraspReward(needs_grasp=False)(batch).rewards.tolist() == [[0, 1]]


def test_an_object_near_the_hand_that_was_not_moved_is_not_grasped():
    batch = episode([0, 1, 1], [0, 0, 0])
    still = Labelled(values=torch.zeros(1, 3, 3), valid=torch.ones(1, 3, dtype=torch.bool))
    batch = replace(batch, tracks={"end_effector": still, "object": still})
    assert StagedGraspReward()(batch).rewards.tolist() == [[0, 0]]


def test_what_follows_an_unknown_track_and_windows_are_not_valid():
    batch = episode([0, 1, 1, 1], [0, 0, 0, 0])
    gap = batch.tracks["object"].valid.clone()
    gap[0, 2] = False
    hidden = replace(batch, tracks={**batch.tracks, "object": replace(batch.tracks["object"], valid=gap)})
    assert StagedGraspReward()(hidden).valid.tolist() == [[True, False, False]]
    window = replace(batch, offset=torch.tensor([4]), length=torch.tensor([9]))
    assert not StagedGraspReward()(window).valid.any()


def test_missing_tracks_and_hidden_outcomes_are_named():
    batch = episode([0, 1], [0, 0])
    with pytest.raises(ValueError, match=r"track 'object' of points.*end_effector"):
        StagedGraspReward()(replace(batch, tracks={"end_effector": batch.tracks["end_effector"]}))
    with pytest.raises(ValueError, match=r"labels\['success'\].*hide_outcome"):
        StagedGraspReward()(replace(batch, labels={}))
    with pytest.raises(ValueError, match="expected a distance above 0"):
        StagedGraspReward(near=0.0)


def test_runs():
    grasped = torch.tensor([[True, True, False, True, True, True]])
    assert held_for(grasped, 1).tolist() == grasped.tolist()
    assert held_for(grasped, 2).tolist() == [[False, True, False, False, True, True]]
    assert held_for(grasped, 3).tolist() == [[False, False, False, False, False, True]]


def test_it_is_saved_with_its_numbers():
    batch = episode([0, 1, 1, 1], [0, 0, 0, 1])
    reward = StagedGraspReward(hold_steps=2, bonuses=(0.3, 0.2, 2.0))
    again = reopen(reward)
    assert torch.equal(again(batch).rewards, reward(batch).rewards)
    assert reward(batch).rewards.sum().item() == pytest.approx(2.5)
