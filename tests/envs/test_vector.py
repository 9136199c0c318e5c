"""Several copies of one task stepped in lockstep."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from guerdon.envs.experts import scripted_expert
from guerdon.envs.task import Task
from guerdon.envs.vector import VectorEnv, make_task


def test_vector_env_is_the_tasks_side_by_side():
    vector = VectorEnv([make_task("mujoco/reach", horizon=4) for _ in range(3)])
    single = make_task("mujoco/reach")
    contexts = vector.contexts("train", 3)
    states = [vector.reset(i, context) for i, context in enumerate(contexts)]
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 3, 3))
    stepped = [vector.step(step) for step in actions]
    for i, context in enumerate(contexts):
        assert np.array_equal(single.reset(context), states[i])
        for t in range(4):
            alone = single.step(actions[t, i])
            assert np.array_equal(stepped[t].state[i], alone.state)
            assert stepped[t].reward[i] == np.float32(alone.reward)
            assert stepped[t].stages["distance"][i] == np.float32(alone.stages["distance"])
            assert np.array_equal(stepped[t].tracks["end_effector"][i], alone.tracks["end_effector"])
    # Four steps at a horizon of four: truncated at the last, terminated never.
    assert [s.truncated.tolist() for s in stepped] == [[False] * 3] * 3 + [[True] * 3]
    assert not any(s.terminated.any() for s in stepped)
    vector.close()
    single.close()


class Trapdoor:
    """A reach task whose simulator ends the episode at its third step, to tell termination from truncation."""

    def __init__(self, horizon: int) -> None:
        self._task = make_task("mujoco/reach", horizon=horizon)
        self._count = 0

    def __getattr__(self, name):
        return getattr(self._task, name)

    def reset(self, context):
        self._count = 0
        return self._task.reset(context)

    def step(self, action):
        self._count += 1
        return replace(self._task.step(action), terminated=self._count == 3)


@pytest.mark.parametrize(("horizon", "terminated", "truncated"), [(2, False, True), (3, True, False), (9, True, False)])
def test_termination_and_truncation_are_kept_apart(horizon, terminated, truncated):
    trapdoor: Any = Trapdoor(horizon)
    vector = VectorEnv([trapdoor])
    vector.reset(0, vector.contexts("train", 1)[0])
    while vector.running[0]:
        step = vector.step(np.zeros((1, 3)))
    assert (step.terminated[0], step.truncated[0]) == (terminated, truncated)
    vector.close()


def test_a_success_does_not_end_the_episode_of_a_vector_env():
    vector, expert = VectorEnv([make_task("mujoco/reach")]), scripted_expert("mujoco/reach")
    state = vector.reset(0, vector.contexts("train", 1)[0])
    successes = 0
    for _ in range(50):
        step = vector.step(expert(state)[None])
        state = step.state[0]
        successes += int(step.success[0])
    assert successes > 10
    assert step.truncated[0]
    vector.close()


def test_inactive_environments_stand_still_and_finished_ones_are_refused():
    vector = VectorEnv([make_task("mujoco/reach", horizon=2) for _ in range(2)])
    for i, context in enumerate(vector.contexts("train", 2)):
        vector.reset(i, context)
    actions = np.full((2, 3), np.nan)
    actions[0] = 1
    only_first = np.array([True, False])
    before = vector.step(actions, only_first).state[1]
    step = vector.step(actions, only_first)
    assert np.array_equal(step.state[1], before)
    assert np.isnan(step.stages["distance"][1]) and not np.isnan(step.stages["distance"][0])
    assert vector.steps.tolist() == [2, 0] and vector.running.tolist() == [False, True]
    with pytest.raises(RuntimeError, match="environment 0: the episode is over"):
        vector.step(actions, only_first)
    with pytest.raises(ValueError, match="mujoco/reach, environment 1: expected a finite action"):
        vector.step(actions, ~only_first)
    with pytest.raises(ValueError, match="bool mask"):
        vector.step(actions, np.array([1, 0]))
    with pytest.raises(ValueError, match=r"actions of shape \(2, 3\)"):
        vector.step(actions[:1])
    vector.close()


def test_a_vector_env_holds_separate_copies_of_one_task():
    task = make_task("mujoco/reach")
    with pytest.raises(ValueError, match="same task object twice"):
        VectorEnv([task, task])
    with pytest.raises(ValueError, match="at least one"):
        VectorEnv([])
    task.close()


class Renamed:
    """A reach task under another name, with other sizes or tracks."""

    def __init__(self, name, **more):
        self._task = make_task("mujoco/reach", horizon=3)
        self.__dict__.update(more, name=name)

    def __getattr__(self, name):
        return getattr(self._task, name)

    def step(self, action):
        return replace(self._task.step(action), tracks=self.__dict__.get("given", {}))


def test_tasks_of_one_size_keep_their_time_limits_and_bounds():
    tasks: list[Any] = [make_task("mujoco/reach", horizon=2), Renamed("other/reach", action_high=np.full(3, 0.5))]
    vector = VectorEnv(tasks)
    assert vector.action_high.tolist() == [[1] * 3, [0.5] * 3] and vector.action_low.shape == (2, 3)
    for i, task in enumerate(tasks):
        vector.reset(i, make_task("mujoco/reach").contexts("train", 1)[0] if i else task.contexts("train", 1)[0])
    ends = [vector.step(np.zeros((2, 3)), vector.running) for _ in range(3)]
    assert [step.truncated.tolist() for step in ends] == [[False, False], [True, False], [False, True]]
    assert np.isnan(ends[2].tracks.get("goal", np.full((2, 3), np.nan))).all(), "the other task has no track"
    with pytest.raises(RuntimeError, match="other/reach, environment 1: the episode is over"):
        vector.step(np.zeros((2, 3)), np.array([False, True]))
    vector.close()


def test_the_task_of_other_sizes_is_named():
    tasks: list[Any] = [make_task("mujoco/reach"), Renamed("other/odd", action_size=4), make_task("mujoco/reach")]
    message = "other/odd has states of width 12 and actions of width 4, mujoco/reach has 12 and 3.*run other/odd apart"
    with pytest.raises(ValueError, match=message):
        VectorEnv(tasks)


def test_a_track_of_two_widths_is_named():
    points = {"goal": np.zeros(3, np.float32)}, {"goal": np.zeros(1, np.float32)}
    tasks: list[Any] = [Renamed(f"other/{i}", given=given) for i, given in enumerate(points)]
    vector = VectorEnv(tasks)
    for i in range(2):
        vector.reset(i, make_task("mujoco/reach").contexts("train", 1)[0])
    with pytest.raises(ValueError, match="other/1: track 'goal' has 1 numbers, and 3 in another task"):
        vector.step(np.zeros((2, 3)))


def test_a_simulator_is_exchanged_for_one_that_was_reset():
    vector = VectorEnv([make_task("mujoco/reach", horizon=2) for _ in range(2)])
    spare, contexts = make_task("mujoco/reach", horizon=2), make_task("mujoco/reach").contexts("train", 3)
    for i in range(2):
        vector.reset(i, contexts[i])
    vector.step(np.ones((2, 3)))
    vector.step(np.ones((2, 3)))
    before, state = vector.tasks[1], spare.reset(contexts[2])
    assert vector.exchange(1, spare, state) is before
    assert (vector.steps.tolist(), vector.running.tolist()) == ([2, 0], [False, True])
    alone = make_task("mujoco/reach")
    alone.reset(contexts[2])
    assert np.array_equal(vector.step(np.ones((2, 3)), vector.running).state[1], alone.step(np.ones(3)).state)
    other: Any = Renamed("other/reach")
    for wrong, what in ((vector.tasks[0], "another environment's"), (other, "other/reach")):
        with pytest.raises(ValueError, match=f"environment 1: expected a separate copy of mujoco/reach, got {what}"):
            vector.exchange(1, wrong, state)
    vector.close()


def test_the_time_limit_of_a_vector_env_counts_from_the_restored_step():
    vector = VectorEnv([make_task("mujoco/reach", horizon=5) for _ in range(2)])
    state = vector.reset(0, vector.contexts("train", 1)[0])
    first: Any = vector.tasks[0]
    saved = first.save()
    for _ in range(5):
        last = vector.step(np.ones((2, 3)), np.array([True, False]))
    assert last.truncated[0] and not vector.running[0]
    assert np.array_equal(vector.restore(0, saved, steps=3), state)
    assert np.array_equal(vector.restore(1, saved), state)
    assert vector.steps.tolist() == [3, 0] and vector.running.tolist() == [True, True]
    ends = [vector.step(np.ones((2, 3)), vector.running).truncated.tolist() for _ in range(5)]
    # Environment 0 has 5 - 3 = 2 steps left, environment 1 all 5.
    assert ends == [[False, False], [True, False], [False, False], [False, False], [False, True]]
    with pytest.raises(ValueError, match="fewer steps than 5, got 5"):
        vector.restore(0, saved, steps=5)
    vector.close()


def test_a_task_without_save_cannot_be_restored():
    class Bare:
        def __init__(self, task):
            for name in (*Task.__annotations__, "contexts", "reset", "step", "tracks", "render", "close"):
                setattr(self, name, getattr(task, name))

    task: Any = make_task("mujoco/reach")
    task.reset(task.contexts("train", 1)[0])
    bare: Any = Bare(task)
    vector = VectorEnv([bare])
    with pytest.raises(TypeError, match="mujoco/reach: Bare has no save and restore"):
        vector.restore(0, task.save())
    vector.close()
