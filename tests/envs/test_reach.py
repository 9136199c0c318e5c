"""The small reach task: its kinematics, reward and success."""

import numpy as np
import pytest

from guerdon.envs.experts import scripted_expert
from guerdon.envs.reach import BASE, LINK, Reach, joint_angles, tip_position


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


def test_a_goal_is_reachable_and_never_close_to_where_the_arm_begins():
    task = Reach(seed=5)
    for context in task.contexts("train", 40):
        state = task.reset(context)
        assert np.linalg.norm(state[6:9] - state[9:12]) >= 0.25 - 1e-6
        assert tip_position(joint_angles(state[9:12])) == pytest.approx(state[9:12], abs=1e-5)
    task.close()


def test_a_full_action_turns_a_joint_by_two_radians_a_second():
    task = Reach()
    before = task.reset(task.contexts("train", 1)[0])
    for _ in range(10):
        state = task.step(np.array([0.5, 0.0, 0.0])).state
    assert state[3] == pytest.approx(0.5 * 2.0, abs=0.05)  # rad/s
    assert state[0] - before[0] == pytest.approx(10 * 0.04 * 1.0, abs=0.06)
    task.close()
