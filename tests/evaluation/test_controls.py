"""Controls: the same model on altered episodes, and predictions without a model."""

from dataclasses import replace

import pytest
import torch

from guerdon.evaluation.controls import OtherTasks, predict_episodes, shuffle_map, with_constant
from guerdon.evaluation.predictions import CONTROLS, MODEL

from .scripted import TASKS, Scripted, episodes, matrix_of


def test_every_control_is_there_where_it_is_defined():
    batch = episodes([1, 0], tasks=[0, 1])
    found = with_constant(predict_episodes(Scripted(), batch, OtherTasks(instructions=TASKS)))
    assert all(set(e.predictions) == {MODEL, *CONTROLS} for e in found)
    alone = predict_episodes(Scripted(), batch[[0]], OtherTasks(instructions={0: TASKS[0]}))
    assert set(alone[0].predictions) == {MODEL, "clock", "reversed", "shuffled"}


def test_reversed_playback_turns_the_values_around():
    (found,) = predict_episodes(Scripted("blind"), episodes([1]), OtherTasks(instructions={0: TASKS[0]}))
    forward, backward = found.predictions[MODEL].values, found.predictions["reversed"].values
    assert backward.tolist() == forward[::-1].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert sorted(found.predictions["shuffled"].values) == sorted(forward)


def test_a_wrong_instruction_is_that_of_another_task():
    others = OtherTasks(instructions={0: "open", 1: "close", 2: "open", 3: "push"})
    drawn = {others.wrong_instruction(number, 0, "open") for number in range(40)}
    assert drawn == {(1, "close"), (3, "push")}, "task 2 has the same words"
    assert others.wrong_instruction(5, 0, "open") == others.wrong_instruction(5, 0, "open")
    assert OtherTasks(instructions={0: "open"}).wrong_instruction(5, 0, "open") is None
    other_seed = replace(others, seed=1)
    assert any(other_seed.wrong_instruction(n, 0, "open") != others.wrong_instruction(n, 0, "open") for n in range(40))


def test_shuffling_visits_every_observation_once_and_is_fixed_by_the_seed():
    batch = replace(episodes([1, 0], length=9), last_observed=torch.tensor([True, False]))
    first, again, other = shuffle_map(batch, 0), shuffle_map(batch, 0), shuffle_map(batch, 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert sorted(first[0].tolist()) == list(range(10))
    assert sorted(first[1, :9].tolist()) == list(range(9)) and first[1, 9] == -1


def test_episodes_of_the_matrix_are_scored_under_every_instruction():
    batch = episodes([1, 1, 1, 0], tasks=[0, 0, 1, 1])
    others = OtherTasks(instructions=TASKS)
    found = predict_episodes(Scripted("perfect"), batch, others, matrix=matrix_of(batch, [0, 1, 2]))
    assert [e.under_instruction for e in found] == [{0: 1.0, 1: 0.0}, {0: 1.0, 1: 0.0}, {1: 1.0, 0: 0.0}, {}]


def test_the_constant_is_the_share_of_successes():
    batch = episodes([1, 0, 0, None], length=4)
    found = with_constant(predict_episodes(Scripted("blind"), batch, OtherTasks(instructions=TASKS)))
    # the model predicts success, which is labelled at every observation: one of fifteen is a success
    assert {e.predictions["constant"].score for e in found} == {1 / 15}
    graded = with_constant(predict_episodes(Scripted("blind", success=False), batch, OtherTasks(instructions=TASKS)))
    assert all(e.predictions["constant"].score == pytest.approx(1 / 3) for e in graded), "of the known outcomes"
    # progress is known of the success alone: 0 ¼ ½ ¾ 1
    assert graded[0].predictions["constant"].progress.tolist() == [0.5] * 5
