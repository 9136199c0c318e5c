"""Initial states of an iteration: each task alike, and none twice as long as there are enough."""

from collections import Counter

import pytest
import torch

from guerdon.envs.task import Context
from guerdon.policies.loops.curriculum import Curriculum
from guerdon.policies.loops.grape_rollouts import device_of, states_of_parts
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.rollouts.groups import GroupRollouts
from guerdon.rewards.recorded import RecordedSuccess

STATES = [Context(task, index, "train") for task in ("a", "b") for index in range(10)]


def dealt(rollouts: int, contexts: int, seed: int = 0, **more: object) -> list[list[Context]]:
    groups = GroupRollouts(size=2, contexts=contexts, **({"rejection": "none"} | more))  # pyright: ignore[reportArgumentType]
    return states_of_parts(RolloutData(["a", "b"], rollouts=rollouts, groups=groups), STATES, seed)


@pytest.mark.parametrize(("rollouts", "contexts"), [(5, 4), (2, 4), (1, 20), (10, 2)])
def test_each_state_is_played_at_most_once_and_each_task_alike(rollouts, contexts):
    parts = dealt(rollouts, contexts)
    assert [len(part) for part in parts] == [contexts] * rollouts
    every = [state for part in parts for state in part]
    assert len(set(every)) == len(every)
    for part in parts:
        assert Counter(state.task for state in part) == {"a": contexts // 2, "b": contexts // 2}


def test_states_come_again_only_where_there_are_too_few():
    every = [state for part in dealt(5, 8) for state in part]
    assert set(Counter(every).values()) == {2} and len(every) == 40


def test_batches_go_where_the_tensors_of_a_reward_are():
    assert device_of(RecordedSuccess()).type == "cpu"
    held = RecordedSuccess()
    held.register_buffer("mean", torch.zeros(1, device="meta"))
    assert device_of(held).type == "meta"


def test_the_order_follows_the_seed():
    assert dealt(2, 4) == dealt(2, 4) != dealt(2, 4, seed=1)


def test_resampling_gets_all_states_and_a_curriculum_draws_by_itself():
    assert [len(part) for part in dealt(2, 4, rejection="resample")] == [10, 10]
    assert dealt(2, 4, curriculum=Curriculum()) == [STATES, STATES]
