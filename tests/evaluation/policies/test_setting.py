"""What outcomes depend on: settings that make sense, versions of the right simulators."""

import json

import mujoco
import pytest
import torch

from guerdon.evaluation.policies.setting import OpenedPolicy, PlaySetting, machine, versions
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.frames import RolloutFrames


def test_versions_name_the_simulators_that_are_played():
    found = versions(["mujoco/reach"], "1.2")
    assert found["guerdon"] == "1.2" and found["torch"] == torch.__version__ and found["mujoco"] == mujoco.__version__
    assert "metaworld" not in found
    more = versions(["mujoco/reach", "metaworld/push-v3", "gymnasium/gym_pusht/PushT-v0", "my_tasks:Mine"], "1.2")
    assert {"metaworld", "gymnasium", "gym_pusht"} <= set(more) and "my_tasks" not in more
    assert machine()


def test_a_setting_is_kept_as_json_and_makes_environments():
    setting = PlaySetting(seed=3, task_seed=4, horizon=5, sampled=True, frames=RolloutFrames(cameras=["front"]))
    kept = json.loads(json.dumps(setting.to_json()))
    assert kept["actions"] == "sampled" and kept["cameras"] == ["front"] and kept["image_size"] == [128, 128]
    made = setting.of("mujoco/reach")
    assert (made.task, made.horizon, made.task_seed, made.frames) == ("mujoco/reach", 5, 4, setting.frames)
    assert made.end_on_success


@pytest.mark.parametrize("bad", [{"seed": -1}, {"task_seed": -2}, {"horizon": 0}])
def test_numbers_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected (seeds|a time limit)"):
        PlaySetting(**bad)


def test_two_policies_are_told_apart_by_their_weights_and_else_by_their_place():
    policy = GaussianPolicy(2, 1)
    first = OpenedPolicy(policy=policy, identity={"path": "a", "class_path": "guerdon.X", "hash": "1"})
    moved = OpenedPolicy(policy=policy, identity={"path": "b", "class_path": "guerdon.X", "hash": "1"})
    trained = OpenedPolicy(policy=policy, identity={"path": "a", "class_path": "guerdon.X", "hash": "2"})
    assert first.key == moved.key != trained.key
    hub = [OpenedPolicy(policy=policy, identity={"path": p, "class_path": "guerdon.X"}).key for p in ("me/a", "me/b")]
    assert hub[0] != hub[1]
