"""Pairs from take-overs: the right pieces from the right start, and reasons where there is no rollback."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.core.edit import concat
from guerdon.preference.rollbacks import interpolated_corrections, rollback_pairs


def row(states: list[float], end: End, **fields) -> TrajectoryBatch:
    """A row through these states, whose actions are the differences."""
    state = torch.tensor(states)[None, :, None]
    mask = torch.ones(1, len(states) - 1, dtype=torch.bool)
    return TrajectoryBatch(
        state=state, actions=state[:, 1:] - state[:, :-1], mask=mask, end=torch.tensor([int(end)]), **fields
    )


def place(episode: int, offset: int, length: int, group: int = 0, **more) -> dict:
    numbers = {"episode": episode, "offset": offset, "length": length, "group": group, **more}
    return {name: torch.tensor([value]) for name, value in numbers.items()}


def rolled_back(start: float = 2.0, **changes) -> TrajectoryBatch:
    """The policy walks 0 … 4 and is stopped; a person begins again at 2 and walks back down."""
    policy = row([0.0, 1.0, 2.0, 3.0, 4.0], End.TAKEOVER, **place(0, 0, 7))
    person = row([start, 1.5, 1.0, 0.5], End.SUCCESS, **(place(0, 4, 7) | changes))
    return concat([policy, person])


def test_the_pieces_begin_at_the_same_observation():
    made = rollback_pairs(rolled_back())
    pairs = made.pairs
    assert made.refused == ()
    assert (pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.label.tolist()) == ([0], [1], [1.0])
    assert pairs.batch.steps.tolist() == [3, 2]
    assert pairs.batch.state[0, :4, 0].tolist() == [2.0, 1.5, 1.0, 0.5]
    assert pairs.batch.state[1, :3, 0].tolist() == [2.0, 3.0, 4.0]
    assert pairs.batch.actions[1, :2, 0].tolist() == [1.0, 1.0]
    assert pairs.batch.offset.tolist() == [4, 2]
    assert pairs.batch.end.tolist() == [End.SUCCESS, End.TAKEOVER]
    assert pairs.batch.group[0] == pairs.batch.group[1]


def test_pieces_may_be_cut_to_a_number_of_steps():
    pairs = rollback_pairs(rolled_back(), steps=1).pairs
    assert pairs.batch.steps.tolist() == [1, 1]
    assert pairs.batch.actions[:, 0, 0].tolist() == [-0.5, 1.0]


def test_the_closest_observation_within_the_tolerance_is_the_start():
    assert len(rollback_pairs(rolled_back(2.0005)).pairs) == 1
    far = rollback_pairs(rolled_back(2.2))
    assert len(far.pairs) == 0
    assert "0.2 from the closest observation (2)" in far.refused[0]
    assert "decision_flags" in far.refused[0]
    assert rollback_pairs(rolled_back(2.2), tolerance=0.3).pairs.batch.offset.tolist() == [4, 2]


def test_without_rollback_there_is_no_pair():
    made = rollback_pairs(rolled_back(4.0))
    assert len(made.pairs) == 0
    assert len(made.pairs.batch) == 0
    assert "no rollback" in made.refused[0]
    alone = rollback_pairs(rolled_back()[0])
    assert "no row of a person" in alone.refused[0]


def test_another_task_or_instruction_is_no_pair():
    batch = rolled_back()
    for changes in (
        {"task": torch.tensor([0, 1])},
        {"instructions": ("open the drawer", "close the drawer"), "task": torch.tensor([0, 0])},
    ):
        made = rollback_pairs(replace(batch, **changes))
        assert len(made.pairs) == 0
        assert "another task or instruction" in made.refused[0]


def test_a_persons_episode_in_the_group_is_found_by_its_track():
    batch = rolled_back(0.0, **place(1, 0, 3))
    assert "no row of a person" in rollback_pairs(batch).refused[0]
    who = torch.tensor([[0.0] * 4, [1.0] * 3 + [0.0]])
    batch = replace(batch, tracks={"human": Labelled(values=who, valid=torch.ones(2, 4, dtype=torch.bool))})
    made = rollback_pairs(batch, human="human")
    assert made.pairs.batch.steps.tolist() == [3, 4]
    assert made.pairs.batch.offset.tolist() == [0, 0]
    other_group = replace(batch, group=torch.tensor([0, 1]))
    assert len(rollback_pairs(other_group, human="human").pairs) == 0


def test_recorded_behaviour_stays_with_its_decisions():
    batch = replace(
        rolled_back(),
        decision_step=torch.tensor([[0, 2, 3], [0, 1, -1]]),
        behaviour={"log_prob": torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [0.0]]])},
    )
    made = rollback_pairs(batch).pairs.batch
    assert made.decision_step.tolist() == [[0, 1, -1], [0, 1, -1]]
    assert made.behaviour["log_prob"][:, :2, 0].tolist() == [[4.0, 5.0], [2.0, 3.0]]
    whole = rollback_pairs(replace(batch, state=batch.state * torch.tensor([[[1.0]], [[0.0]]]))).pairs.batch
    assert whole.behaviour["log_prob"][1, :, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_repeated_last_observation_keeps_its_step():
    made = rollback_pairs(replace(rolled_back(), last_observed=torch.tensor([True, False]))).pairs.batch
    assert made.steps.tolist() == [3, 2]
    policy = rollback_pairs(replace(rolled_back(), last_observed=torch.tensor([False, True]))).pairs.batch
    assert policy.steps.tolist() == [3, 2]
    assert policy.last_observed.tolist() == [True, False]


def test_several_take_overs_make_their_own_pairs():
    more = [replace(rolled_back(), episode=torch.full((2,), n), group=torch.full((2,), n)) for n in range(3)]
    pairs = rollback_pairs(concat(more)).pairs
    assert len(pairs) == 3
    assert pairs.batch.episode.tolist() == [0, 1, 2] * 2
    assert pairs.batch.group.tolist() == [0, 1, 2] * 2
    by_episode = replace(rolled_back(), group=torch.tensor([3, 8]))
    assert rollback_pairs(by_episode).pairs.batch.group.tolist() == [0, 0]


def test_bad_numbers_are_refused():
    wrongs: list[dict[str, Any]] = [{"tolerance": -1}, {"steps": 0}]
    for settings in wrongs:
        with pytest.raises(ValueError, match="expected at least 0"):
            rollback_pairs(rolled_back(), **settings)
    with pytest.raises(ValueError, match="no state"):
        rollback_pairs(replace(rolled_back(), state=torch.zeros(2, 5, 0)))


def test_corrections_rise_over_the_reaction():
    policy, correction = torch.zeros(4, 2, 1), torch.ones(4, 2, 1)
    assert interpolated_corrections(policy, correction)[:, 0, 0].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert torch.equal(interpolated_corrections(policy[:1], correction[:1]), correction[:1])
    with pytest.raises(ValueError, match="at least one state"):
        interpolated_corrections(policy[:0], correction[:0])
