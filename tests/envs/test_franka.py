"""The sub-tasks of the Franka kitchen: one start pose, noise that a context fixes, a reward that is the success."""

import numpy as np
import pytest

from guerdon.envs.franka import Kitchen


@pytest.fixture(scope="module")
def kitchen():
    task = Kitchen("microwave", horizon=9)
    yield task
    task.close()


@pytest.mark.slow
def test_contexts_differ_by_the_noise_of_the_sensors_alone(kitchen):
    states = [kitchen.reset(context) for context in kitchen.contexts("train", 5)]
    assert len({state.tobytes() for state in states}) == 5
    assert np.ptp(np.stack(states)[:, :9], axis=0).max() < 0.2  # radians; the pose is always the same
    assert (kitchen.horizon, kitchen.fps) == (9, 12.5)


@pytest.mark.slow
def test_the_reward_is_the_success_and_the_stage_the_distance_to_the_goal(kitchen):
    kitchen.reset(kitchen.contexts("eval", 1)[0])
    generator = np.random.default_rng(0)
    for _ in range(5):
        step = kitchen.step(generator.uniform(-1, 1, 9))
        assert step.reward == float(step.success) == 0.0 and not step.terminated
        assert step.stages["distance"] > 0.3  # the door is closed; the goal is 0.75 rad away
    assert step.stages["distance"] == pytest.approx(0.75, abs=0.05)


def test_tracks_lie_in_the_kitchen(kitchen):
    kitchen.reset(kitchen.contexts("train", 1)[0])
    tracks = kitchen.tracks()
    assert {name: len(point) for name, point in tracks.items()} == {"end_effector": 3, "object": 3, "gripper": 1}
    assert 0.1 < np.linalg.norm(tracks["end_effector"] - tracks["object"]) < 2.0
    assert 0 <= tracks["gripper"][0] < 0.1  # metres


def test_an_unknown_sub_task_is_refused():
    with pytest.raises(KeyError, match="oven"):
        Kitchen("oven")
