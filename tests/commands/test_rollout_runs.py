"""Runs of `guerdon fit` on rollouts that are terminated or killed, and go on as if nothing had happened."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow  # every test starts processes

GAE = {
    "class_path": "guerdon.RewardToGo",
    "init_args": {"reward": "guerdon.RecordedReward", "critic": "guerdon.ValueCritic"},
}
POLICY = {"class_path": "guerdon.GaussianPolicy", "init_args": {"hidden": [16], "horizon": 2, "execute": 2}}


def configuration(path: Path, **data: Any) -> Path:
    settings = {"task": "mujoco/reach", "steps": 60, "rollouts": 12, "envs": 3, "horizon": 20, "contexts": 6}
    model = {"policy": POLICY, "advantage": GAE, "objective": "guerdon.ClippedSurrogate", "minibatch_size": 32}
    config = {
        "seed_everything": 0,
        "model": {"class_path": "guerdon.PolicyOptimizer", "init_args": {**model, "passes": 2}},
        "data": {"class_path": "guerdon.RolloutData", "init_args": {**settings, "eval_contexts": 2, **data}},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "val_check_interval": 5,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path, run: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "guerdon.cli", "fit", "--config", str(config), "--out", str(run), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: "subprocess.Popen[str]", code: int = 0) -> str:
    _, error = process.communicate(timeout=300)
    assert process.returncode == code, error
    return error


def wait_for_checkpoint(process: "subprocess.Popen[str]", run: Path) -> Path:
    last = run / "checkpoints" / "last.ckpt"
    until = time.monotonic() + 200
    while not last.is_file():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.05)
    return last


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_from_outside_goes_on_as_the_uninterrupted_one(tmp_path, number):
    config = configuration(tmp_path / "run.yaml", workers=2)
    whole = fit(config, tmp_path / "whole")
    stopped = fit(config, tmp_path / "stopped")
    last = wait_for_checkpoint(stopped, tmp_path / "stopped")
    workers = children_of(stopped)
    stopped.send_signal(number)
    if number == signal.SIGTERM:
        for pid in workers:  # a batch system signals the whole group
            os.kill(pid, number)
        error = finished(stopped, code=143)
        resume = re.search(r"--ckpt_path (\S+)", error)
        assert resume is not None and shlex.split(resume[1]) == [str(last)]
    else:
        stopped.communicate()
    before = torch.load(last, weights_only=True)["RolloutData"]["ranks"][0]["rollouts_made"]
    assert 1 <= before < 12
    finished(fit(config, tmp_path / "stopped", "--ckpt_path", str(last)))
    finished(whole)
    one, other = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "stopped")
    )
    assert one["RolloutData"]["ranks"][0]["rollouts_made"] == other["RolloutData"]["ranks"][0]["rollouts_made"] == 12
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    curves = [(tmp_path / run / "curves.png").stat().st_size for run in ("whole", "stopped")]
    assert min(curves) > 1_000
    for pid in workers:
        assert not Path(f"/proc/{pid}/fd").exists() or "guerdon" not in Path(f"/proc/{pid}/cmdline").read_text()
