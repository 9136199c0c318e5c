"""Scripted experts: they solve their tasks, keep to the bounds, and are missing where they say so."""

import warnings

import numpy as np
import pytest

from guerdon.envs.experts import MetaWorldExpert, has_expert, reach_expert, scripted_expert
from guerdon.envs.reach import joint_angles
from guerdon.envs.vector import make_task, task_names


@pytest.mark.slow
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


def test_meta_world_and_reach_have_experts_that_read_the_state_alone():
    for name in task_names():
        assert has_expert(name) == name.startswith(("metaworld/", "mujoco/"))


def test_the_reach_expert_turns_every_joint_towards_the_goal():
    state = np.zeros(12)
    state[:3], state[9:12] = [0.1, 0.5, -1.0], [0.3, 0.1, 0.4]
    error = joint_angles(state[9:12]) - state[:3]
    assert reach_expert(state, gain=0.2) == pytest.approx(np.clip(0.2 * error / 2.0, -1, 1))
    assert np.abs(reach_expert(state, gain=1e6)).max() == 1.0


def test_actions_of_metaworlds_policies_are_clipped_and_their_warnings_kept_quiet():
    class Loud:
        def get_action(self, observation):
            warnings.warn("Constant(s) may be too high", stacklevel=2)
            assert observation.dtype == np.float64
            return [3.0, -2.0, 0.5, 0.0]

    assert MetaWorldExpert(Loud())(np.zeros(39, np.float32)).tolist() == [1.0, -1.0, 0.5, 0.0]
