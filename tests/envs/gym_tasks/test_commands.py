"""Environments of others through the commands: from logs to a policy that learns from the learned reward."""

import sys
from pathlib import Path

import lightning  # noqa: F401  # before any test renders: after OpenGL in software, importing triton crashes
import pytest
import torchvision  # noqa: F401  # the same

from guerdon.cli import main
from guerdon.datasets.opening import open_dataset

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]

CONFIGS = Path(__file__).resolve().parents[3] / "configs"

TASKS = '''
import numpy as np

from guerdon import GymnasiumTask, InfoThreshold


class Reach(GymnasiumTask):
    def __init__(self, horizon=20, seed=0):
        super().__init__("FetchReach-v4", horizon, seed, instruction="move the gripper to the red ball")

    def expert(self):
        place = self.state_parts

        def act(state):
            error = state[place["desired_goal"]] - state[place["achieved_goal"]]
            return np.append(np.clip(10 * error, -1, 1), 0)

        return act


class PushT(GymnasiumTask):
    """The expert goes where the block is; somewhere between, a little of the target may be covered."""

    def __init__(self, horizon=15, seed=0):
        super().__init__("gym_pusht/PushT-v0", horizon, seed, instruction="push the block onto the target",
                         success=lambda reward, ended, info: info["n_contacts"] > 0, stages=("coverage",),
                         options={"obs_type": "state"})

    def expert(self):
        return lambda state: np.clip(state[2:4] / 256 - 1, -1, 1)
'''


@pytest.mark.parametrize(("task", "sizes"), [("Reach", (16, 4)), ("PushT", (5, 2))])
def test_from_logs_to_a_policy(task, sizes, tmp_path, monkeypatch, capsys):
    module = f"own_tasks_{task.lower()}"
    (tmp_path / f"{module}.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    env = f"{module}:{task}"
    assert main(["collect", "--env", env, "--episodes", "8", "--noise", "0.3", "--states-only", "--out", "logs"]) == 0
    logs = open_dataset("logs")
    assert (logs.state_size, logs.action_size) == sizes
    summaries = [logs.summary(i) for i in range(len(logs))]
    assert {s.quality for s in summaries} == {"expert", "noisy", "aborted", "random"}
    assert sum(s.success or 0 for s in summaries) >= 3 and 0 in {s.success for s in summaries}
    assert logs[0].context == f"{env}#0.0"
    short = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    reward = ["fit", "--config", str(CONFIGS / "progress_state.yaml"), "--out", "reward", *short]
    assert main([*reward, "--data.path", "logs", "--data.repeats", "1"]) == 0
    assert main(["score", "--model", "reward/model", "--data", "logs", "--out", "scores"]) == 0
    assert "8 of 8 episodes scored" in capsys.readouterr().out
    clone = ["fit", "--config", str(CONFIGS / "behaviour_cloning.yaml"), "--out", "clone", *short]
    assert main([*clone, "--data.path", "logs"]) == 0
    ppo = ["fit", "--config", str(CONFIGS / "ppo_learned_reward.yaml"), "--out", "ppo", *short]
    models = {
        "--model.init_args.policy.init_args.path": "clone/model",
        "--model.init_args.advantage.init_args.reward.init_args.reward.init_args.path": "reward/model",
    }
    rollouts = {"task": env, "steps": "64", "rollouts": "2", "envs": "2", "workers": "1", "eval_contexts": "2"}
    words = [word for pair in models.items() for word in pair]
    words += [word for key, value in rollouts.items() for word in (f"--data.{key}", value)]
    assert main([*ppo, *words, "--trainer.val_check_interval", "2", "--model.minibatch_size", "32"]) == 0
    assert (tmp_path / "ppo" / "model").is_dir()
