"""The protocol of tasks, kept by every simulator: contexts, steps, actions, and what is refused."""

import numpy as np
import pytest

from guerdon.envs.task import (
    EVAL_OFFSET,
    TRAIN_CONTEXTS,
    Context,
    ResumableTask,
    Task,
    check_action,
    check_state,
    list_contexts,
)
from guerdon.envs.vector import make_task

NAMES = ("mujoco/reach", "metaworld/drawer-open-v3", "kitchen/microwave")


@pytest.fixture(scope="module", params=NAMES)
def task(request):
    built = make_task(request.param)
    yield built
    built.close()


def play(task: Task, context: Context, steps: int = 15):
    actions = np.random.default_rng(3).uniform(-1, 1, (steps, task.action_size))
    states, rewards = [task.reset(context)], []
    for action in actions:
        step = task.step(action)
        states.append(step.state)
        rewards.append(step.reward)
    return np.array(states), np.array(rewards)


@pytest.mark.slow
def test_contexts_of_the_two_splits_are_disjoint_and_any_number_exists(task):
    train, evaluation = task.contexts("train", 300), task.contexts("eval")
    assert len(evaluation) >= 100
    assert not {c.index for c in train} & {c.index for c in evaluation}
    assert train == task.contexts("train", 400)[:300]
    first = [tuple(task.reset(c)) for c in train[:5] + evaluation[:5]]
    assert len(set(first)) == 10  # ten contexts are ten different first states


@pytest.mark.slow
def test_a_context_gives_the_same_episode_in_any_order_and_in_a_fresh_task(task):
    a, b = task.contexts("train", 1) + task.contexts("eval", 1)
    first = play(task, a)
    other = play(task, b)
    again = play(task, a)
    fresh = make_task(task.name)
    elsewhere = play(fresh, b)
    afterwards = play(fresh, a)
    fresh.close()
    for left, right in ((first, again), (first, afterwards), (other, elsewhere)):
        assert np.abs(left[0] - right[0]).max() == 0
        assert np.abs(left[1] - right[1]).max() == 0


@pytest.mark.slow
def test_another_seed_has_other_initial_states(task):
    other = make_task(task.name, seed=1)
    context = task.contexts("train", 1)[0]
    assert np.abs(task.reset(context) - other.reset(context)).max() > 0
    other.close()


@pytest.mark.slow
def test_shapes_types_and_names_are_as_declared(task):
    state = task.reset(task.contexts("train", 1)[0])
    step = task.step(np.zeros(task.action_size))
    assert state.shape == step.state.shape == (task.state_size,)
    assert state.dtype == step.state.dtype == np.float32
    assert task.action_low.shape == task.action_high.shape == (task.action_size,)
    assert tuple(step.stages) == task.stage_names
    assert step.tracks.keys() == task.tracks().keys()
    assert step.tracks["end_effector"].shape == (3,)
    assert not step.terminated and not step.success
    assert task.instruction


@pytest.mark.slow
def test_actions_are_clipped_to_the_bounds(task):
    context = task.contexts("train", 1)[0]
    task.reset(context)
    inside = task.step(task.action_high).state
    task.reset(context)
    assert np.array_equal(task.step(100 * task.action_high).state, inside)


@pytest.mark.slow
def test_bad_actions_and_contexts_are_refused(task):
    context = task.contexts("train", 1)[0]
    task.reset(context)
    with pytest.raises(ValueError, match=rf"{task.name}: expected a finite action"):
        task.step(np.full(task.action_size, np.nan))
    with pytest.raises(ValueError, match=rf"{task.name}: expected an action of shape"):
        task.step(np.zeros(task.action_size + 1))
    with pytest.raises(ValueError, match="expected a context of this task, got one of metaworld/other"):
        task.reset(Context("metaworld/other", 0, "train"))
    with pytest.raises(ValueError, match="'train' or 'eval'"):
        task.contexts("test")
    with pytest.raises(ValueError, match="between 1 and"):
        task.contexts("train", 0)


def test_a_context_cannot_claim_a_split_it_is_not_of():
    with pytest.raises(ValueError, match="train index"):
        Context("mujoco/reach", EVAL_OFFSET, "train")
    with pytest.raises(ValueError, match="eval index"):
        Context("mujoco/reach", 3, "eval")


def test_contexts_are_listed_by_split():
    train, evaluation = list_contexts("mujoco/reach", "train", None), list_contexts("mujoco/reach", "eval", 2)
    assert [c.index for c in train] == list(range(TRAIN_CONTEXTS))
    assert [(c.index, c.split) for c in evaluation] == [(EVAL_OFFSET, "eval"), (EVAL_OFFSET + 1, "eval")]


def test_actions_and_states_are_checked_alone():
    low, high = np.full(2, -1, np.float32), np.full(2, 1, np.float32)
    assert check_action("here", np.array([3.0, -0.5]), low, high).tolist() == [1.0, -0.5]
    with pytest.raises(ValueError, match=r"here: expected an action of shape \(2,\), got \(3,\)"):
        check_action("here", np.zeros(3), low, high)
    assert check_state("here", np.array([1.0, 2.0])).dtype == np.float32
    with pytest.raises(FloatingPointError, match="here: the simulation diverged"):
        check_state("here", np.array([1.0, np.inf]))


def test_every_simulator_is_a_task_that_can_be_resumed(task):
    assert isinstance(task, Task) and isinstance(task, ResumableTask)
