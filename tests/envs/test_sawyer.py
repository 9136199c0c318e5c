"""Meta-World's tasks are Meta-World's own, to the last bit, with the goal in view."""

import pickle

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task as MetaWorldTask

from guerdon.envs.sawyer import MetaWorld

pytestmark = pytest.mark.slow


def play(task, context, steps=15):
    actions = np.random.default_rng(3).uniform(-1, 1, (steps, task.action_size))
    states, rewards = [task.reset(context)], []
    for action in actions:
        step = task.step(action)
        states.append(step.state)
        rewards.append(step.reward)
    return np.array(states), np.array(rewards)


def test_metaworld_states_and_rewards_are_those_of_metaworld_itself():
    task = MetaWorld("sweep-v3")  # its reward reads stored views of the simulator
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


def test_tracks_are_read_from_the_state_and_stages_from_metaworlds_own_numbers():
    task = MetaWorld("drawer-open-v3")
    task.reset(task.contexts("train", 1)[0])
    step = task.step(np.array([0.1, 0.2, -0.3, 1.0]))
    for name, columns in (("end_effector", slice(0, 3)), ("gripper", slice(3, 4)), ("object", slice(4, 7))):
        assert np.array_equal(step.tracks[name], step.state[columns])
    assert np.array_equal(step.tracks["goal"], step.state[36:39])
    assert set(step.stages) == set(MetaWorld.stage_names)
    task.close()
