"""Batches made of pieces: the task, group and instruction of each row, tracks, frames, and outcomes that are hidden."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from guerdon.envs.task import EVAL_OFFSET
from guerdon.policies.advantages.group_score import GroupScore
from guerdon.policies.rollouts.pieces import GROUPS_APART, batch_pieces
from guerdon.rewards.recorded import RecordedReward

from .small_tasks import Numbered, Slow, Street, Tracked, both, contexts, corridor, generator, leaves


def test_no_piece_is_no_batch():
    with pytest.raises(ValueError, match="at least one row"):
        batch_pieces([])


# --- several tasks --------------------------------------------------------------------------------------------------


def test_rows_hold_the_number_and_the_instruction_of_their_task():
    order = [*contexts(0), *contexts(0, 1, task=Street), *contexts(1)]
    batch = batch_pieces(both().play(Numbered(), order, generator()))
    assert batch.task.tolist() == [0, 1, 1, 0]
    assert batch.instructions == ("walk", "cross", "cross", "walk")
    assert batch.steps.tolist() == [7, 5, 5, 7]
    assert batch_pieces(both().play(Numbered(), order, generator()), "go").instructions == ("go",) * 4


def test_two_tasks_never_share_a_group():
    assert GROUPS_APART > 2 * EVAL_OFFSET
    order = [*contexts(0, 1), *contexts(0, 1, task=Street)] * 2
    batch = batch_pieces(both(4).play(Numbered(), order, generator()))
    assert batch.group.tolist() == [0, 1, GROUPS_APART, GROUPS_APART + 1] * 2
    scored = GroupScore(RecordedReward(), normalise="none")
    scored(batch, scored.estimate(batch))
    assert (scored.figures["groups"], scored.figures["groups_compared"]) == (4, 4)


def test_a_track_that_a_task_does_not_have_is_unknown_in_its_rows():
    order = [*contexts(0), *contexts(0, task=Street)]
    car = batch_pieces(both().play(Numbered(), order, generator())).tracks["car"]
    assert car.valid.tolist() == [[False] * 8, [True] * 6 + [False] * 2]
    assert car.values.tolist() == [[0.0] * 8, [0, 1, 2, 3, 4, 5, 0, 0]]


def test_pieces_with_other_tracks_are_refused():
    one = corridor().play(Numbered(), contexts(0), generator())
    other = corridor(task=Tracked).play(Numbered(), contexts(0), generator())
    with pytest.raises(ValueError, match=r"pieces of one task.*\{\} and \{'point': 3, 'sensor': 1\}"):
        batch_pieces([*one, *other])


# --- frames ---------------------------------------------------------------------------------------------------------


def test_pieces_with_other_cameras_are_refused():
    one = corridor(task=Slow).play(Numbered(), contexts(0), generator())
    other = [replace(one[0], frames={"eye": [np.ones((3, 2, 2), np.uint8)]}, frame_step=[0])]
    assert batch_pieces(one).frames == {}
    with pytest.raises(ValueError, match=r"pieces of one run, got frames of \[\] and of \['eye'\]"):
        batch_pieces([*one, *other])


def test_frames_of_rows_of_any_length_stand_at_their_observations():
    one = corridor().play(Numbered(), contexts(0), generator())[0]
    pictures = [np.full((3, 2, 4), value, np.uint8) for value in range(1, 6)]
    pieces = [
        replace(one, frames={"eye": pictures[:3]}, frame_step=[0, 2, 7]),
        replace(one, frames={"eye": pictures[3:]}, frame_step=[0, 5]),
    ]
    eye = batch_pieces(pieces).frames["eye"]
    assert (eye.values.dtype, tuple(eye.values.shape)) == (torch.uint8, (2, 3, 3, 2, 4))
    assert eye.step.tolist() == [[0, 2, 7], [0, 5, -1]]
    assert eye.values[..., 0, 0, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert (eye.values == eye.values[..., :1, :1, :1]).all()


# --- the outcome hidden ---------------------------------------------------------------------------------------------


def test_nothing_of_a_hidden_outcome_is_left_in_a_batch():
    pieces = corridor(end_on_success=False).play(Numbered(), contexts(0, 3), generator())
    pieces += corridor(envs=1, end_on_success=False).collect(Numbered(), 5, contexts(3), generator())
    other = [
        replace(p, reward=[-9.0] * len(p.reward), success=[not s for s in p.success])  # another world, the same motions
        for p in pieces
    ]
    one, two = (
        dict(leaves(batch_pieces(pieces, hide_outcome=True))),
        dict(leaves(batch_pieces(other, hide_outcome=True))),
    )
    assert one.keys() == two.keys()
    for path, value in one.items():
        assert torch.equal(value, two[path]), f"{path} tells the outcome"
    open_book = dict(leaves(batch_pieces(pieces)))
    assert not torch.equal(open_book[".success"], dict(leaves(batch_pieces(other)))[".success"])


@pytest.mark.parametrize("index", [3, 4, 5])
def test_an_outcome_that_shows_in_how_an_episode_ended_is_refused(index):
    pieces = corridor().play(Numbered(), contexts(0, index), generator())
    with pytest.raises(ValueError, match=r"cannot be hidden.*end_on_success=False"):
        batch_pieces(pieces, hide_outcome=True)
