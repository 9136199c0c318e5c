"""Contexts, steps, names and termination of the simulated tasks."""

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task as MetaWorldTask

from guerdon.envs.experts import scripted_expert
from guerdon.envs.instructions import KITCHEN, METAWORLD
from guerdon.envs.reach import BASE, LINK, Reach, joint_angles, tip_position
from guerdon.envs.task import EVAL_OFFSET
from guerdon.envs.vector import Context, Task, VectorEnv, make_task, task_names

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


def test_contexts_of_the_two_splits_are_disjoint_and_any_number_exists(task):
    train, evaluation = task.contexts("train", 300), task.contexts("eval")
    assert len(evaluation) >= 100
    assert not {c.index for c in train} & {c.index for c in evaluation}
    assert train == task.contexts("train", 400)[:300]
    first = [tuple(task.reset(c)) for c in train[:5] + evaluation[:5]]
    assert len(set(first)) == 10  # ten contexts are ten different first states


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


def test_another_seed_has_other_initial_states(task):
    other = make_task(task.name, seed=1)
    context = task.contexts("train", 1)[0]
    assert np.abs(task.reset(context) - other.reset(context)).max() > 0
    other.close()


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


def test_actions_are_clipped_to_the_bounds(task):
    context = task.contexts("train", 1)[0]
    task.reset(context)
    inside = task.step(task.action_high).state
    task.reset(context)
    assert np.array_equal(task.step(100 * task.action_high).state, inside)


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


def test_metaworld_states_and_rewards_are_those_of_metaworld_itself():
    import pickle

    task = make_task("metaworld/sweep-v3")  # its reward reads stored views of the simulator
    context = task.contexts("train", 1)[0]
    play(task, task.contexts("eval", 1)[0])
    states, rewards = play(task, context)
    cls = ALL_V3_ENVIRONMENTS["sweep-v3"]
    env = cls()
    data = {"rand_vec": task._draw(context.index), "env_cls": cls, "partially_observable": False}
    env.set_task(MetaWorldTask("sweep-v3", pickle.dumps(data)))
    observation, _ = env.reset()
    assert np.array_equal(states[0], observation.astype(np.float32))
    for i, action in enumerate(np.random.default_rng(3).uniform(-1, 1, (15, 4))):
        observation, reward, *_ = env.step(action)
        assert np.array_equal(states[i + 1], observation.astype(np.float32))
        assert rewards[i] == reward
    assert np.abs(states[0, 36:39]).max() > 0  # the goal is in view
    task.close()
    env.close()


def test_every_metaworld_task_has_an_instruction_and_a_scripted_policy():
    assert set(METAWORLD) == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert len(METAWORLD) == 50
    for name in task_names():
        if name.startswith("metaworld/"):
            assert callable(scripted_expert(name))
    sentences = [*METAWORLD.values(), *KITCHEN.values()]
    assert len(set(sentences)) == len(sentences)
    assert all(len(sentence.split()) >= 3 for sentence in sentences)


@pytest.mark.parametrize(
    ("name", "near"),
    [("metaworld/push", "metaworld/push-v3"), ("kitchen/kettel", "kitchen/kettle"), ("reach", "mujoco/reach")],
)
def test_an_unknown_name_lists_near_ones(name, near):
    with pytest.raises(ValueError, match=f"unknown task '{name}': did you mean .*{near}"):
        make_task(name)


def test_an_impossible_horizon_is_refused():
    with pytest.raises(ValueError, match="horizon of at least one step, got 0"):
        make_task("mujoco/reach", horizon=0)


def test_a_missing_simulator_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "guerdon.envs.sawyer", None)
    with pytest.raises(ModuleNotFoundError):
        make_task("metaworld/push-v3")
    monkeypatch.delitem(sys.modules, "guerdon.envs.sawyer")
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs metaworld.*pip install 'guerdon\[sim\]'"):
        make_task("metaworld/push-v3")


def test_kinematics_by_hand_and_inverse_kinematics_undo_each_other():
    # Yaw 90°, upper arm level, forearm straight down: 0.3 m along y, 0.3 m below the shoulder's height.
    assert tip_position(np.array([np.pi / 2, 0, -np.pi / 2])) == pytest.approx([0, LINK, BASE - LINK])
    generator = np.random.default_rng(0)
    for joints in generator.uniform([-1.5, 0.1, -2.2], [1.5, 1.3, -0.6], (50, 3)):
        assert joint_angles(tip_position(joints)) == pytest.approx(joints)
    task = Reach()
    state = task.reset(task.contexts("train", 1)[0])
    assert state[6:9] == pytest.approx(tip_position(state[:3]), abs=1e-6)  # the XML says the same as the formula
    task.close()


def test_reach_reward_and_success_are_the_distance():
    task, expert = Reach(), scripted_expert("mujoco/reach")
    state = task.reset(task.contexts("train", 1)[0])
    for _ in range(task.horizon):
        step = task.step(expert(state))
        state = step.state
        distance = float(np.linalg.norm(state[6:9] - state[9:12]))
        assert step.stages["distance"] == pytest.approx(distance, abs=1e-6)
        assert step.success == (distance <= 0.04)
        assert step.reward == pytest.approx(step.success - distance, abs=1e-6)
    assert step.success
    task.close()


@pytest.mark.parametrize("name", ["mujoco/reach", "metaworld/reach-v3", "metaworld/window-open-v3"])
def test_the_scripted_expert_solves(name):
    task, expert = make_task(name), scripted_expert(name)
    for context in task.contexts("eval", 4):
        state = task.reset(context)
        for _ in range(task.horizon):
            step = task.step(expert(state))
            state = step.state
            if step.success:
                break
        assert step.success
    task.close()


def test_the_kitchen_has_no_expert_and_says_so():
    with pytest.raises(ValueError, match="kitchen/kettle has no scripted expert"):
        scripted_expert("kitchen/kettle")


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
        from dataclasses import replace

        self._count += 1
        return replace(self._task.step(action), terminated=self._count == 3)


@pytest.mark.parametrize(("horizon", "terminated", "truncated"), [(2, False, True), (3, True, False), (9, True, False)])
def test_termination_and_truncation_are_kept_apart(horizon, terminated, truncated):
    vector = VectorEnv([Trapdoor(horizon)])
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
