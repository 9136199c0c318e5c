"""``guerdon loop``, as a user runs it: a tiny iRe-VLA, Ctrl-C and requests to terminate, and every kind of mistake."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from guerdon.cli import main
from guerdon.core.hub import load_component
from guerdon.policies.gaussian import GaussianPolicy

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]

ROLLOUTS = "--loop.init_args.rollouts.init_args"
SMALL = [
    *(f"{ROLLOUTS}.task", "mujoco/reach", f"{ROLLOUTS}.steps", "64", f"{ROLLOUTS}.rollouts", "2"),
    *(f"{ROLLOUTS}.envs", "2", f"{ROLLOUTS}.workers", "0", f"{ROLLOUTS}.contexts", "4"),
    *("--loop.init_args.sft.init_args.epochs", "2", "--loop.init_args.sl.init_args.epochs", "1"),
    *("--loop.init_args.sl.init_args.without_success", "expert"),
]


@pytest.fixture
def command(here):
    path = ["--loop.init_args.expert.init_args.path", str(here / "train")]
    return ["loop", "--config", "ire_vla", *path, *SMALL]


def test_a_run_ends_with_its_model_and_can_be_asked_for_again(command, tmp_path, capsys):
    assert main([*command, "--out", "run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run/model"
    assert isinstance(load_component(tmp_path / "run" / "model"), GaussianPolicy)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["loop"]["init_args"]["rollouts"]["init_args"]["steps"] == 64
    names = {"config.yaml", "model", "0_sft", "1_mujoco-reach_rl", "1_mujoco-reach_sl"}
    assert {path.name for path in (tmp_path / "run").iterdir()} - {"online"} == names
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main([*command, "--out", "run"]) == 0  # every stage is complete
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    shown = capsys.readouterr()
    assert "stage 1" not in shown.err and "warning" not in shown.err
    # the saved configuration describes the run
    assert main(["loop", "--config", "run/config.yaml", "--out", "again"]) == 0
    one, two = (load_component(tmp_path / name / "model").state_dict() for name in ("run", "again"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_fit_runs_a_loop_too(command, tmp_path, capsys):
    assert main(["fit", *command[1:], "--out", "run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run/model"
    assert main([*command, "--out", "run"]) == 0  # the same run, complete
    shown = capsys.readouterr()
    assert "stage 1" not in shown.err and "warning" not in shown.err


def test_a_run_that_goes_on_with_other_settings_says_so_and_keeps_both(command, tmp_path, capsys):
    assert main([*command, "--out", "run"]) == 0
    capsys.readouterr()
    assert main([*command, "--out", "run", "--loop.init_args.sl.init_args.epochs", "9"]) == 0
    said = capsys.readouterr().err
    assert "began with other settings: loop.init_args.sl.init_args.epochs is 9, but was 1" in said
    assert {path.name for path in (tmp_path / "run").glob("*.yaml")} == {"config.yaml", "config-2.yaml"}


def test_help_and_the_configuration_are_printed_without_a_run(here, tmp_path, capsys):
    assert main(["loop", "--help"]) == 0
    assert "usage: guerdon loop --config FILE.yaml" in capsys.readouterr().out
    assert main(["loop", "--config", "ire_vla", "--print_config"]) == 0
    assert "guerdon.IReVLA" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("loop", "expected --config"),
        ("loop --config nowhere.yaml", "no configuration nowhere.yaml"),
        ("loop --config behaviour_cloning", "has the sections model, data, trainer, and a loop has one, loop"),
        ("loop --config ire_vla --loop.init_args.rate 3", "rate"),
        ("fit --config ire_vla --loop.init_args.rate 3", "rate"),
        ("fit --config ire_vla --config behaviour_cloning", "has the sections model, data, trainer"),
        ("validate --config ire_vla", "a loop has nothing to validate"),
        ("fit --config grape --loop.init_args.rollouts.init_args.groups.size 1", "groups of 2 or more"),
        ("fit --config grape --loop.init_args.reward.init_args.costs [nothing/here]", "no costs for 'nothing/here'"),
        (
            "loop --config ire_vla --loop.init_args.expert.init_args.path nowhere",
            "to name another, give --loop.init_args.expert.init_args.path PATH",
        ),
        (
            "loop --config ire_vla --loop.init_args.expert.init_args.path {place}/train "
            "--loop.init_args.rollouts.init_args.task mujoco/reech",
            "give --loop.init_args.rollouts.init_args.task TASK",
        ),
        (
            "loop --config ire_vla --loop.init_args.expert.init_args.path {place}/train",
            "metaworld/push-v3 has states of 39",
        ),
        ("loop --config ire_vla --loop.init_args.rl.init_args.warmup -1", "warmup -1"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(refused, command, says):
    refused(command, says)


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_does(command, tmp_path, number, code):
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job may have it ignored
        "from guerdon.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    long = [*command, "--out", "run", f"{ROLLOUTS}.rollouts", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *long], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    last, deadline = Path("run/1_mujoco-reach_rl/checkpoints/last.ckpt"), time.time() + 120
    while not last.is_file() and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    try:
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "go on with the same command and --out run" in said and "Traceback" not in said and "model" not in printed
    assert last.is_file() and not Path("run/model").exists() and not list(tmp_path.rglob("*.part*"))
    done = torch.load(last, weights_only=True)["global_step"]
    assert main([*command, "--out", "run", f"{ROLLOUTS}.rollouts", "1"]) == 0
    assert torch.load(last, weights_only=True)["global_step"] >= done > 0
    assert Path("run/model").is_dir()
