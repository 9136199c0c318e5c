"""Errors about a value of a configuration name the key that sets it; through the real command too."""

import pytest

from guerdon.cli import main
from guerdon.commands.key_hints import key_hint

CONFIG = {
    "model": {"init_args": {"policy": {"init_args": {"path": "runs/a/model"}}, "reward": {"init_args": {"path": ""}}}},
    "data": {"init_args": {"task": "mujoco/reach", "steps": 3, "note": "runs/b"}},
    "trainer": {"callbacks": [{"init_args": {"data": {"init_args": {"path": ["data/x", "data/y"]}}}}]},
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("there is no data set at data/y", "give --trainer.callbacks.init_args.data.init_args.path PATH"),
        ("runs/a/model: no such folder", "give --model.init_args.policy.init_args.path PATH"),
        ("unknown task 'mujoco/reach'", "give --data.init_args.task TASK"),
        ("data/x and mujoco/reach", "give --data.init_args.task TASK or --trainer.callbacks.init_args.data"),
    ],
)
def test_the_key_of_a_value_is_named(message, expected):
    assert expected in key_hint(message, CONFIG)


@pytest.mark.parametrize("message", ["passes 0", "runs/a/model2", "mydata/x", "runs/b is odd", "steps 3", "data/x-2"])
def test_other_messages_get_no_hint(message):
    assert key_hint(message, CONFIG) == ""


def test_sizes_that_disagree_name_the_task_and_the_models():
    message = "GaussianPolicy has state_size 39, and the states of mujoco/reach are 12 wide: leave it out"
    hint = key_hint(message, CONFIG)
    assert "--data.init_args.task TASK" in hint and "come from --model.init_args.policy.init_args.path" in hint
    assert "reward" not in hint  # its path is not set


@pytest.mark.slow
def test_a_policy_of_another_task_is_refused_before_the_first_rollout(here, tmp_path, error_line):
    cloned = ["fit", "--config", "behaviour_cloning", "--data.init_args.path", str(here / "train")]
    assert main([*cloned, "--trainer.fast_dev_run", "1", "--out", "cloned"]) == 0
    reward = "--model.init_args.advantage.init_args.reward.init_args.reward.init_args.path"
    ppo = ["fit", "--config", "ppo_learned_reward", "--model.init_args.policy.init_args.path", "cloned/model"]
    ppo += [reward, str(here / "run/model"), "--data.init_args.workers", "0", "--out", "ppo"]
    ppo += ["--data.init_args.task", "metaworld/push-v3"]
    assert main(ppo) == 2
    line = error_line()
    assert "has state_size 12, and the states of metaworld/push-v3 are 39 wide" in line
    assert "--data.init_args.task TASK" in line and reward in line
    assert not (tmp_path / "ppo").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("fit --config progress_state", "no data set at data/push; to name another, give --data.init_args.path PATH"),
        (
            "fit --config ppo_learned_reward --data.init_args.workers 0",
            "; to name another, give --model.init_args.policy.init_args.path PATH",
        ),
    ],
)
def test_what_is_missing_names_its_key(refused, command, says):
    refused(command, says)
