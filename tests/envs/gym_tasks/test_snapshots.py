"""Snapshots of MuJoCo environments: exact in contact, in another copy, and after a reset that changed the model."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from guerdon.envs.gym_tasks.snapshots import Snapshots, mujoco_parts
from guerdon.envs.gym_tasks.task import GymnasiumTask


def expert_push(state: np.ndarray) -> np.ndarray:
    """Towards the object of FetchPush, and on: its state starts with the object and the goal."""
    gripper, target = state[6:9], state[0:3]
    return np.append(np.clip(10 * (target - gripper), -1, 1), 0)


@pytest.mark.parametrize("name", ["FetchPush-v4", "AdroitHandDoor-v1", "PointMaze_UMaze-v3"])
def test_the_future_after_a_snapshot_is_the_same(name):
    task, copy = GymnasiumTask(name, instruction="x"), GymnasiumTask(name, instruction="x")
    assert task._snapshots is not None
    generator = np.random.default_rng(1)
    touched = 0
    for context in task.contexts("train", 3):
        state = task.reset(context)
        for _ in range(25):
            random = generator.uniform(-1, 1, task.action_size)
            state = task.step(expert_push(state) if name.startswith("FetchPush") else random).state
        touched += task._env.unwrapped.data.ncon > 0  # type: ignore
        saved = task.save()
        actions = generator.uniform(-1, 1, (15, task.action_size))
        future = [task.step(action).state for action in actions]
        copy.reset(copy.contexts("eval", 1)[0])
        for one in (task, copy):
            assert np.array_equal(one.restore(saved), saved.state)
            assert np.array_equal([one.step(action).state for action in actions], future)
    assert touched or not name.startswith("FetchPush")
    for one in (task, copy):
        one.close()


def test_a_reset_does_not_depend_on_what_went_before_it():
    task = GymnasiumTask("FetchPush-v4", instruction="x")
    context, other = task.contexts("train", 2)
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 4))

    def play() -> Any:
        return [task.reset(context), *(task.step(action).state for action in actions)]

    first = play()
    task.reset(other)
    for action in actions:
        task.step(-action)
    assert np.array_equal(play(), first)
    task.close()


def test_other_simulators_have_no_snapshots():
    env = gymnasium.make("Pendulum-v1", disable_env_checker=True)
    assert mujoco_parts(env) is None
    with pytest.raises(ValueError, match="expected a MuJoCo environment with model and data, got <PendulumEnv"):
        Snapshots(env)


def test_an_environment_that_cannot_be_copied_is_restored_by_its_actions(monkeypatch):

    restore, calls = Snapshots.restore, []

    def fails_later(self: Snapshots, snapshot: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise TypeError("no copies")
        restore(self, snapshot)

    monkeypatch.setattr(Snapshots, "restore", fails_later)
    task = GymnasiumTask("PointMaze_UMaze-v3", instruction="x")
    assert task._snapshots is None
    task.reset(task.contexts("train", 1)[0])
    task.step(np.ones(2))
    saved = task.save()
    assert saved.parts.keys() == {"context", "actions"}
    assert np.array_equal(task.restore(saved), saved.state)
    task.close()
