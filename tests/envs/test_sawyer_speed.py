"""Faster steps of Meta-World's environments: the same numbers, and Meta-World's own classes untouched."""

from typing import Any

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from guerdon.envs.sawyer import MetaWorld
from guerdon.envs.sawyer_speed import faster_class, quaternion, tolerance

REPLACED = {"touching_object", "_get_curr_obs_combined_no_goal", "_get_quat_objects", "compute_reward"}


def as_shipped(name: str) -> MetaWorld:
    """Return a task whose environment is of Meta-World's own class."""
    task = MetaWorld(name)
    task._env.__class__ = ALL_V3_ENVIRONMENTS[name]
    return task


def everything(task: MetaWorld, step) -> list[bytes]:
    """Return what a step gives and leaves behind, to the last bit."""
    numbers = [step.reward, step.success, *step.stages.values()]
    env = task._env
    return [
        step.state.tobytes(),
        np.array(numbers, np.float64).tobytes(),
        env._last_stable_obs.tobytes(),
        env.data.qpos.tobytes(),
    ]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("drawer-open-v3", "stick-pull-v3", "pick-place-v3")]


@pytest.mark.parametrize("name", ["push-v3", *SLOW])
def test_steps_are_metaworlds_own_to_the_last_bit(name):
    ours, theirs = MetaWorld(name), as_shipped(name)
    draw, touched = np.random.default_rng(4), 0
    for number, context in enumerate(ours.contexts("train", 2)):
        state = ours.reset(context)
        assert np.array_equal(state, theirs.reset(context))
        expert = ours.expert()
        for _ in range(80):
            action = draw.uniform(-1, 1, 4) if number == 0 else expert(state)
            step = ours.step(action)
            state = step.state
            assert everything(ours, step) == everything(theirs, theirs.step(action))
        for geom in range(ours._env.model.ngeom):
            found = [bool(task._env.touching_object(geom)) for task in (ours, theirs)]
            assert found[0] == found[1]
            touched += found[0]
    # An expert that holds an object touches its geom with both pads.
    assert touched > 0 or name == "drawer-open-v3"
    ours.close()
    theirs.close()


def test_states_are_restored_in_and_from_an_environment_of_the_package():
    ours, theirs = MetaWorld("push-v3"), as_shipped("push-v3")
    context = ours.contexts("train", 1)[0]
    state, expert = ours.reset(context), ours.expert()
    for _ in range(40):
        state = ours.step(expert(state)).state
    theirs.restore(ours.save())
    for action in np.random.default_rng(0).uniform(-1, 1, (15, 4)):
        assert everything(ours, ours.step(action)) == everything(theirs, theirs.step(action))
    ours.restore(theirs.save())
    for action in np.random.default_rng(1).uniform(-1, 1, (15, 4)):
        assert everything(ours, ours.step(action)) == everything(theirs, theirs.step(action))
    ours.close()
    theirs.close()


def test_the_classes_of_the_package_stay_as_they_are():
    cls = ALL_V3_ENVIRONMENTS["push-v3"]
    before = [dict(vars(part)) for part in (cls, SawyerXYZEnv, reward_utils)]
    faster = faster_class.__wrapped__(cls)
    assert issubclass(faster, cls) and set(vars(faster)) >= REPLACED
    assert [dict(vars(part)) for part in (cls, SawyerXYZEnv, reward_utils)] == before
    assert cls._get_quat_objects.__globals__["Rotation"] is Rotation
    reward: Any = cls.__dict__["compute_reward"]
    assert reward.__globals__["reward_utils"] is reward_utils


def test_a_method_of_another_version_is_kept(monkeypatch):
    cls = ALL_V3_ENVIRONMENTS["push-v3"]

    def touching_object(self, object_geom_id):
        return False

    monkeypatch.setattr(SawyerXYZEnv, "touching_object", touching_object)
    faster = faster_class.__wrapped__(cls)
    assert faster.touching_object is touching_object
    assert faster._get_curr_obs_combined_no_goal is not SawyerXYZEnv._get_curr_obs_combined_no_goal
    monkeypatch.delattr(SawyerXYZEnv, "_get_curr_obs_combined_no_goal")
    assert "_get_curr_obs_combined_no_goal" not in vars(faster_class.__wrapped__(cls))
    monkeypatch.setattr(reward_utils, "_sigmoids", lambda x, value_at_1, sigmoid: x)
    assert set(vars(faster_class.__wrapped__(cls))) & REPLACED == {"_get_quat_objects"}


def test_a_method_without_source_code_is_kept(monkeypatch):
    def none(method):
        raise OSError("could not get source code")

    monkeypatch.setattr("guerdon.envs.sawyer_speed.inspect.getsource", none)
    # What turns matrices into quaternions is recognised without its source code, and this class does not.
    cls = ALL_V3_ENVIRONMENTS["drawer-open-v3"]
    assert faster_class.__wrapped__(cls) is cls


def test_what_an_environment_overrides_itself_is_kept():
    class Own(ALL_V3_ENVIRONMENTS["push-v3"]):
        def touching_object(self, object_geom_id):
            return True

        def _get_quat_objects(self):
            return Rotation.from_matrix(np.eye(3)).inv().as_quat()

    faster = faster_class.__wrapped__(Own)
    assert REPLACED & set(vars(faster)) == {"_get_curr_obs_combined_no_goal", "compute_reward"}


def test_quaternions_are_those_of_scipy_to_the_last_bit():
    drawn = Rotation.random(2000, rng=np.random.default_rng(0)).as_matrix()
    turns = Rotation.from_rotvec(np.pi * np.vstack([np.eye(3), 0.5 * np.eye(3), np.zeros((1, 3))])).as_matrix()
    exact = np.array([np.eye(3), np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1]), np.diag([-1.0, -1, 1])])
    for matrix in np.concatenate([drawn, turns, exact]):
        assert quaternion(matrix).tobytes() == Rotation.from_matrix(matrix).as_quat().tobytes()


def test_what_is_no_rotation_is_left_to_scipy():
    turn = Rotation.random(rng=np.random.default_rng(3)).as_matrix()
    for matrix in (1.001 * turn, turn + 1e-10, turn + 3e-13):
        assert quaternion(matrix).tobytes() == Rotation.from_matrix(matrix).as_quat().tobytes()
    for wrong in (-turn, np.zeros((3, 3))):
        with pytest.raises(ValueError, match="determinant"):
            quaternion(wrong)
    stacked = np.stack([turn, turn])
    assert np.array_equal(quaternion(stacked), Rotation.from_matrix(stacked).as_quat())


def test_rewards_by_distance_are_those_of_metaworld_to_the_last_bit():
    draw = np.random.default_rng(0)
    for x, lower, size, margin in draw.uniform(-0.5, 1.5, (4000, 4)) * [1, 0.1, 0.1, 1]:
        bounds = (lower, lower + abs(size)) if margin > 0.5 else (0, 0.05)
        number = x if margin > 0.2 else float(x)
        found = tolerance(number, bounds, abs(margin), "long_tail")
        expected = reward_utils.tolerance(number, bounds, abs(margin), "long_tail")
        assert type(found) is type(expected) and np.float64(found).tobytes() == np.float64(expected).tobytes()
    assert {tolerance(x, (0.0, 0.1), 1.0, "long_tail") for x in (0.0, 0.05, 0.1)} == {1.0}
    assert np.isnan(tolerance(float("nan"), (0.0, 0.1), 1.0, "long_tail"))


def test_what_is_not_one_number_with_a_long_tail_is_left_to_metaworld():
    x = np.linspace(-1, 1, 5)
    numbers: Any = (x, 0.3, np.float32(0.3), 2)
    for number in numbers:
        more: Any
        for more in ({"margin": 0.4}, {"margin": 0.0, "sigmoid": "long_tail"}, {"margin": 0.4, "sigmoid": "linear"}):
            found = tolerance(number, (0.0, 0.1), **more)
            assert np.array_equal(found, reward_utils.tolerance(number, (0.0, 0.1), **more))
    assert np.array_equal(
        tolerance(x, (0.0, 0.1), 0.4, "long_tail"), reward_utils.tolerance(x, (0.0, 0.1), 0.4, "long_tail")
    )
    with pytest.raises(ValueError, match="non-negative"):
        tolerance(0.3, (0.0, 0.1), -1.0, "long_tail")
    with pytest.raises(ValueError, match="Lower bound"):
        tolerance(0.3, (0.2, 0.1), 1.0, "long_tail")
    with pytest.raises(ValueError, match="between 0 and 1"):
        tolerance(0.3, (0.0, 0.1), 1.0, "long_tail", 1.0)
