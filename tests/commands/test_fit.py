"""``guerdon fit`` and ``guerdon validate``, as a user runs them: tiny data, the real trainer, resuming, Ctrl-C."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from guerdon.cli import main
from guerdon.core.hub import load_component
from guerdon.rewards.progress import ProgressReward

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]
OBSERVER = "--model.init_args.reward.init_args.observer.init_args"


def test_a_run_holds_model_configuration_checkpoints_and_logs(place):
    run = place / "run"
    assert {p.name for p in run.iterdir()} == {"model", "config.yaml", "checkpoints", "logs", "tasks.json"}
    assert isinstance(load_component(run / "model"), ProgressReward)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["reward"]["init_args"]["observer"]["init_args"]["width"] == 8
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "logs" / "version_0" / "metrics.csv").is_file()


def test_the_default_run_directory_and_the_last_line(here, tmp_path, capsys):
    before = sys.argv
    assert main(["fit", "--config", str(here / "tiny.yaml"), "--trainer.fast_dev_run", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"runs/tiny/\d{8}-\d{6}/model", last)
    assert isinstance(load_component(tmp_path / last), ProgressReward)
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]  # nothing else lands where the command was called
    assert sys.argv is before


def test_overrides_reach_the_model_and_the_saved_configuration_runs_again(here, tmp_path):
    assert main(
        ["fit", "--config", str(here / "tiny.yaml"), "--out", "a", f"{OBSERVER}.width", "4"]
    ) == 0  # fmt: skip
    first: Any = load_component(tmp_path / "a/model")
    assert first.observer.width == 4
    assert main(["fit", "--config", "a/config.yaml", "--out", "b", "--trainer.max_epochs", "1"]) == 0
    second: Any = load_component(tmp_path / "b/model")
    assert second.observer.width == 4


def test_resuming_goes_on_where_it_stopped(here, error_line, capsys):
    config = ["fit", "--config", str(here / "tiny.yaml"), "--out", "run"]
    assert main(config) == 0
    capsys.readouterr()
    assert main(config) == 2
    assert "holds an earlier run" in error_line()
    first = torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert main([*config, "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_epochs", "3"]) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3 * first
    assert {p.name for p in Path("run/logs").iterdir()} == {"version_0", "version_1"}  # earlier metrics stay


def test_validate_prints_metrics_and_writes_nothing(here, tmp_path, capsys):
    checkpoint = str(here / "run/checkpoints/last.ckpt")
    assert main(["validate", "--config", str(here / "tiny.yaml"), "--ckpt_path", checkpoint]) == 0
    assert "val_loss" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def validated(arguments, capsys):
    """Metrics that `guerdon validate` prints, and what it says on standard error."""
    assert main(["validate", *arguments]) == 0
    shown = capsys.readouterr()
    table = {r[1]: float(r[2]) for r in re.findall(r"(│)\s*(\w+)\s*│\s*([-\d.e]+)\s*│", shown.out)}
    return table, shown.err


def test_the_configuration_of_a_run_validates_its_trained_weights(here, capsys):
    config = str(here / "run/config.yaml")
    trained, says = validated(["--config", config], capsys)
    assert "run/checkpoints/last.ckpt" in says and "--ckpt_path null" in says
    named, says = validated(["--config", config, "--ckpt_path", str(here / "run/checkpoints/last.ckpt")], capsys)
    assert trained == named and "validating" not in says
    start, says = validated(["--config", config, "--ckpt_path", "null"], capsys)
    assert start["val_loss"] != trained["val_loss"] and "validating" not in says


def test_of_several_checkpoints_the_one_that_was_saved_as_the_model_is_validated(here, tmp_path, capsys):
    keep: dict[str, Any] = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    keep["init_args"] = {"dirpath": "run/checkpoints", "monitor": "val_loss", "mode": "max", "save_last": True}
    config = yaml.safe_load((here / "tiny.yaml").read_text())
    config["trainer"] |= {"callbacks": [keep], "max_epochs": 3}  # the worst epoch, so that it is not the last one
    (tmp_path / "worst.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "worst.yaml", "--out", "run"]) == 0
    capsys.readouterr()
    (worst,) = (path for path in Path("run/checkpoints").glob("*.ckpt") if path.name != "last.ckpt")
    trained, says = validated(["--config", "run/config.yaml"], capsys)
    assert str(worst) in says
    assert trained == validated(["--config", "run/config.yaml", "--ckpt_path", str(worst)], capsys)[0]


def test_the_monitored_checkpoint_counts_wherever_it_stands_among_the_callbacks(here, tmp_path, capsys):
    kind = "lightning.pytorch.callbacks.ModelCheckpoint"
    monitored = {"dirpath": "run/checkpoints", "monitor": "val_loss", "mode": "max", "filename": "worst"}
    keep = [{"class_path": kind, "init_args": {"dirpath": "run/checkpoints", "save_last": True}}]
    keep += [{"class_path": kind, "init_args": monitored}]
    config = yaml.safe_load((here / "tiny.yaml").read_text())
    config["trainer"] |= {"callbacks": keep, "max_epochs": 3}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "two.yaml", "--out", "run"]) == 0
    assert "saving the weights of" in capsys.readouterr().out
    assert "checkpoints/worst.ckpt" in validated(["--config", "run/config.yaml"], capsys)[1]


def test_a_run_that_did_not_end_validates_its_last_checkpoint(here, tmp_path, capsys):
    shutil.copytree(here / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    last = tmp_path / "run/checkpoints/last.ckpt"
    found, says = validated(["--config", "run/config.yaml"], capsys)
    assert "a run that did not end, run/checkpoints/last.ckpt" in says
    assert found == validated(["--config", "run/config.yaml", "--ckpt_path", str(last)], capsys)[0]


def test_a_checkpoint_that_was_written_again_is_not_that_of_the_model(here, tmp_path, error_line):
    shutil.copytree(here / "run", tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    stored = torch.load(last, weights_only=True)
    torch.save(stored | {"global_step": stored["global_step"] + 1}, last)
    assert main(["validate", "--config", "run/config.yaml"]) == 2
    assert "kept no checkpoint with the weights of its model" in error_line()


def test_a_run_without_a_checkpoint_is_refused_with_the_command_that_evaluates_it(here, tmp_path, error_line):
    quick = ["--trainer.enable_checkpointing", "false", "--out", "run"]
    assert main(["fit", "--config", str(here / "tiny.yaml"), *quick]) == 0
    assert main(["validate", "--config", "run/config.yaml"]) == 2
    assert "guerdon evaluate --model run/model" in error_line()


def test_a_policy_that_started_from_another_is_validated_as_it_was_trained(here, tmp_path, capsys, monkeypatch):
    reach = ["--data.init_args.path", str(here / "train"), "--model.init_args.passes", "1"]
    assert main(["fit", "--config", "behaviour_cloning", *reach, "--trainer.max_epochs", "1", "--out", "cloned"]) == 0
    sparse = ["fit", "--config", "behaviour_cloning", *reach, "--trainer.max_epochs", "2", "--out", "more"]
    sparse += ["--model.init_args.policy", "guerdon.pretrained_policy", "--data.init_args.val_fraction", "0.2"]
    sparse += ["--model.init_args.policy.init_args.path", "cloned/model"]
    assert main(sparse) == 0
    capsys.readouterr()
    trained, _ = validated(["--config", "more/config.yaml"], capsys)
    start, _ = validated(["--config", "more/config.yaml", "--ckpt_path", "null"], capsys)
    assert trained["val_imitation"] < start["val_imitation"]


def test_the_configuration_can_be_printed_and_help_asked_for_without_a_run(here, tmp_path, capsys):
    assert main(["fit", "--config", str(here / "tiny.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 1
    for command in ("fit", "validate"):
        assert main([command, "--help"]) == 0
        assert f"usage: guerdon {command} --config FILE.yaml" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_another_shape_are_refused(here, error_line):
    checkpoint = str(here / "run/checkpoints/last.ckpt")
    options = ["--ckpt_path", checkpoint, f"{OBSERVER}.width", "4", "--out", "other"]
    assert main(["fit", "--config", str(here / "tiny.yaml"), *options]) == 2
    assert "does not fit the configuration" in error_line()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("fit", "expected --config"),
        ("fit --config nowhere.yaml", "no configuration nowhere.yaml"),
        ("fit --config {place}/tiny.yaml --out {place}/tiny.yaml/d", "run directory"),
        ("fit --config {place}/tiny.yaml --model.init_args.rate 3", "'rate' is not accepted"),
        ("fit --config {place}/tiny.yaml --trainer.max_epochs many", "many"),
        ("fit --config {place}/tiny.yaml --data.init_args.path nowhere", "there is no data set at nowhere"),
        ("fit --config {place}/tiny.yaml --ckpt_path nowhere.ckpt", "nowhere.ckpt"),
        (
            "fit --config {place}/tiny.yaml --model.init_args.reward.init_args.state_size 5",
            "state_size 5, and the states of",
        ),
        ("validate --config {place}/tiny.yaml --ckpt_path {place}/tiny.yaml", "tiny.yaml"),
        ("validate", "nothing to validate: expected --config"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(refused, command, says):
    refused(command, says)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_keeps_a_checkpoint_that_can_be_resumed(here, tmp_path):
    command = ["fit", "--config", str(here / "tiny.yaml"), "--out", "run"]
    arguments = [*command, "--trainer.max_epochs", "100000", "--trainer.enable_checkpointing", "false"]
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job may have it ignored
        "from guerdon.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.time() + 120
    metrics = tmp_path / "run/logs/version_0/metrics.csv"
    while not metrics.is_file() and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    kept = tmp_path / "run/checkpoints/interrupted.ckpt"
    assert kept.is_file() and "Traceback" not in said and "run/model" not in printed
    assert f"--ckpt_path {kept.relative_to(tmp_path)}" in said
    assert not list(tmp_path.rglob("*.part"))
    epoch = torch.load(kept, weights_only=True)["epoch"]
    assert main([*command, "--ckpt_path", str(kept), "--trainer.max_epochs", str(epoch + 2)]) == 0
