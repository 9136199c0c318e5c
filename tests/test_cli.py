"""The command, run as a user runs it: tiny data, the real trainer, real files, and every kind of mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from guerdon.backbones.recorded_chat import RecordedChat
from guerdon.cli import main
from guerdon.core.hub import load_component, save_component
from guerdon.datasets.episodes import ArrayFrames, Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.zero_shot.frame_order import ShuffledFrames
from guerdon.scoring.scores import read_scores

pytestmark = pytest.mark.xdist_group("cli")
OBSERVER = "--model.init_args.reward.init_args.observer.init_args"
CONFIG = {
    "model": {
        "class_path": "guerdon.rewards.fit.RewardTraining",
        "init_args": {
            "reward": {
                "class_path": "guerdon.rewards.progress.ProgressReward",
                "init_args": {
                    "state_size": 12,
                    "observer": {
                        "class_path": "guerdon.rewards.observation_encoder.ObservationEncoder",
                        "init_args": {"width": 8, "layers": 1, "heads": 2},
                    },
                },
            }
        },
    },
    "data": {
        "class_path": "guerdon.datasets.module.EpisodeData",
        "init_args": {"val_split": "eval"},
    },
    "trainer": {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, a configuration and a trained run, all made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    for name, split, episodes in (("train", "train", "8"), ("held", "eval", "6")):
        made = main(
            ["collect", "--env", "mujoco/reach", "--episodes", episodes, "--split", split, "--out", str(folder / name),
             "--quality", "expert=0.5,random=0.5", "--states-only"]
        )  # fmt: skip
        assert made == 0
    config = json.loads(json.dumps(CONFIG))
    config["data"]["init_args"]["path"] = [str(folder / "train"), str(folder / "held")]
    (folder / "tiny.yaml").write_text("# guerdon fit --config tiny.yaml\n" + yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    assert main(
        ["score", "--model", str(folder / "run/model"), "--data", str(folder / "held"), "--out", str(folder / "scores")]
    ) == 0  # fmt: skip
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return place


def error_line(capsys):
    """The one line on standard error."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("guerdon: error:")]
    assert len(lines) == 1, text
    return lines[0]


def test_the_version_answers_in_a_second_and_imports_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); from guerdon.cli import main; "
        "assert main(['--version']) == 0; took = time.perf_counter() - start; "
        "heavy = {'torch', 'numpy', 'lightning', 'transformers', 'mujoco', 'rich'} & set(sys.modules); "
        "assert not heavy, heavy; assert took < 1, took"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"guerdon \d+\.\d+\.\d+\S*\n", done.stdout)


def test_a_run_holds_model_configuration_checkpoints_and_logs(place):
    run = place / "run"
    assert {p.name for p in run.iterdir()} == {"model", "config.yaml", "checkpoints", "logs"}
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
    assert load_component(tmp_path / "a/model").observer.width == 4
    assert main(["fit", "--config", "a/config.yaml", "--out", "b", "--trainer.max_epochs", "1"]) == 0
    assert load_component(tmp_path / "b/model").observer.width == 4


def test_resuming_goes_on_where_it_stopped(here, capsys):
    config = ["fit", "--config", str(here / "tiny.yaml"), "--out", "run"]
    assert main(config) == 0
    capsys.readouterr()
    assert main(config) == 2
    assert "holds an earlier run" in error_line(capsys)
    import torch

    first = torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert main([*config, "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_epochs", "3"]) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3 * first
    assert {p.name for p in Path("run/logs").iterdir()} == {"version_0", "version_1"}  # earlier figures stay


def test_validate_prints_figures_and_writes_nothing(here, tmp_path, capsys):
    checkpoint = str(here / "run/checkpoints/last.ckpt")
    assert main(["validate", "--config", str(here / "tiny.yaml"), "--ckpt_path", checkpoint]) == 0
    assert "val_loss" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_evaluate_prints_the_controls_and_writes_json(here, tmp_path, capsys):
    command = ["evaluate", "--model", str(here / "run"), "--data", str(here / "held"), "--json", "out/figures.json"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "clock t/T" in shown and "played in reverse" in shown
    found = json.loads((tmp_path / "out/figures.json").read_text())
    assert found["counts"]["episodes"] == 6 and found["model"]["hash"]
    assert found["figures"]["clock"]["value_order_correlation"]["value"] == pytest.approx(1.0)
    assert found["figures"]["model"]["instruction_accuracy"]["value"] is None  # one task: undefined, not ½
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["figures.json"]


def test_report_and_inspect(here, tmp_path, capsys):
    assert main(["report", "--scores", str(here / "scores"), "--out", "page.html"]) == 0
    assert "<svg" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    for folder, wanted in (("held", "6, of which 0"), ("run", "ProgressReward"), ("scores", str(here / "held"))):
        assert main(["inspect", str(here / folder)]) == 0
        assert wanted in capsys.readouterr().out.replace("\n", "")


def test_inspect_shows_a_feature_cache_and_makes_room(here, tmp_path, capsys):
    import numpy as np

    from guerdon.datasets.episodes import ArrayFrames, Episode
    from guerdon.datasets.features import FeatureCache

    frames = {"front": ArrayFrames(values=np.zeros((5, 3, 8, 8), np.uint8), step=np.arange(5))}
    empty = {"state": np.zeros((6, 0), np.float32), "actions": np.zeros((5, 0), np.float32)}
    FeatureCache("kept").frames(Episode(index=0, frames=frames, **empty), "front", 8)
    assert main(["inspect", "kept"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"frames +8 +1 +5 of 5 +1\.\d+ kB +20\d\d-", shown) and "feature cache" in shown
    assert main(["inspect", "kept", "--evict", "1MB"]) == 0
    assert "removed 0 entries, 0 bytes" in capsys.readouterr().out
    assert main(["inspect", "kept", "--evict", "0.5 kB"]) == 0
    assert re.search(r"removed 1 entries, 1\.\d+ kB\n", capsys.readouterr().out)
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["guerdon-cache.json"]
    assert main(["inspect", "kept", "--evict", "a lot"]) == 2
    assert "expected one such as 20GB" in error_line(capsys)


def test_sizes_as_people_write_them():
    from guerdon.commands.inspecting import parse_size, shown_size

    said = ("0", "20GB", "1.5 GiB", "3m", "7", "2TB", "1 kib")
    assert [parse_size(s) for s in said] == [0, 20 * 10**9, 3 * 2**29, 3 * 10**6, 7, 2 * 10**12, 1024]
    for wrong in ("", "-1", "GB", "1 XB", "1e9", "nan"):
        with pytest.raises(ValueError, match="is no size"):
            parse_size(wrong)
    assert [shown_size(n) for n in (0, 999, 1000, 20_500_000, 3 * 10**12)] == [
        *("0 bytes", "999 bytes", "1 kB", "20.5 MB", "3 TB")
    ]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "the following arguments are required"),
        ("train", "invalid choice: 'train'"),
        ("collect --env mujoco/reach", "--out"),
        ("collect --env mujoco/nothing --out d", "mujoco/nothing"),
        ("collect --env mujoco/reach --out d --episodes 0", "at least one episode"),
        ("collect --env mujoco/reach --out d --quality perfect", "perfect"),
        ("collect --env mujoco/reach --out d --quality expert=lots", "expected shares"),
        ("collect --env mujoco/reach --out {place}/held", "held"),
        ("collect --env mujoco/reach --out {place}/tiny.yaml/d", "tiny.yaml"),
        ("fit", "expected --config"),
        ("fit --config nowhere.yaml", "no configuration nowhere.yaml"),
        ("fit --config {place}/tiny.yaml --out {place}/tiny.yaml/d", "run directory"),
        ("fit --config {place}/tiny.yaml --model.init_args.rate 3", "'rate' is not accepted"),
        ("fit --config {place}/tiny.yaml --trainer.max_epochs many", "many"),
        ("fit --config {place}/tiny.yaml --data.init_args.path nowhere", "there is no data set at nowhere"),
        ("fit --config {place}/tiny.yaml --ckpt_path nowhere.ckpt", "nowhere.ckpt"),
        ("fit --config {place}/tiny.yaml --model.init_args.reward.init_args.state_size 5", "5 numbers"),
        ("validate --config {place}/tiny.yaml --ckpt_path {place}/tiny.yaml", "tiny.yaml"),
        ("score --model {place}/run/model --data nowhere --out s", "nowhere"),
        ("score --model nowhere --data {place}/held --out s", "nowhere"),
        ("evaluate --model {place}/run/model --data {place}/run", "no data set we read"),
        ("evaluate --model {place}/held --data {place}/held", "component.json"),
        ("evaluate --model {place}/run/model --data {place}/held --split test", "it has eval"),
        ("evaluate --model {place}/run/model --data {place}/held --device tpu9", "tpu9"),
        ("evaluate --model {place}/run/model --data {place}/held --json {place}/tiny.yaml/f", "choose another place"),
        ("evaluate --model {place}/run/model --data {place}/held --batch-size 0", "at least one episode"),
        ("evaluate --model {place}/run/model --data {place}/held --nonsense", "--nonsense"),
        ("report --scores {place}/held --out r.html", "scores"),
        ("report --scores {place}/scores --out {place}/run", "is a folder"),
        ("inspect nowhere", "nowhere is no folder"),
        ("inspect {place}/run/logs", "no data set we read"),
        ("inspect {place}/held --evict 1GB", "is no feature cache: --evict removes nothing anywhere else"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(here, tmp_path, capsys, command, says):
    assert main(command.format(place=here).split()) == 2
    assert says in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def without_bar(capsys):
    """What was printed, without the progress bar."""
    return [line for line in capsys.readouterr().out.splitlines() if line.strip() and "scoring" not in line]


def test_score_says_how_much_is_known_and_why_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with LeRobotWriter(tmp_path / "data", fps=10) as writer:
        for number in range(2):
            frames = ArrayFrames(values=np.zeros((4, 3, 16, 16), np.uint8), step=np.arange(4))
            writer.add(
                Episode(
                    index=number,
                    state=np.full((4, 1), number, np.float32),
                    actions=np.zeros((3, 1), np.float32),
                    instruction="reach",
                    fps=10.0,
                    frames={"front": frames},
                )
            )
    line = {"name": "someone", "kind": "reply", "key": "of another prompt", "text": "Yes", "problem": ""}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    chat = RecordedChat("answers.jsonl", missing="problem")
    ShuffledFrames(chat, ["front"]).save_pretrained(tmp_path / "model")
    assert main("score --model model --data data --out scores".split()) == 0
    wanted = [
        "2 of 2 episodes scored",
        "0 of 8 observations have an estimate",
        "  RecordedChat.failures 2: not recorded",
        "  ShuffledFrames.abstained 8: no answer: not recorded",
        "scores/scores.parquet",
    ]
    said = without_bar(capsys)
    assert said[:2] == wanted[:2] and sorted(said) == sorted(wanted)


def test_score_of_a_model_that_knows_says_so_and_nothing_else(here, capsys):
    assert main(["score", "--model", str(here / "run/model"), "--data", str(here / "held"), "--out", "s"]) == 0
    first, second, last = without_bar(capsys)
    count = len(read_scores("s").table)
    assert first == "6 of 6 episodes scored" and second == f"{count} of {count} observations have an estimate"
    assert last == "s/scores.parquet"


def test_debug_shows_the_traceback(here, monkeypatch):
    with pytest.raises(FileNotFoundError):
        main(["inspect", "nowhere", "--debug"])
    monkeypatch.setenv("GUERDON_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["inspect", "nowhere"])


def test_the_unforeseen_keeps_its_traceback(here, monkeypatch):
    import guerdon.commands.inspecting

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(guerdon.commands.inspecting, "describe_folder", broken)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(here)])


def test_a_model_of_another_kind_is_refused(here, capsys):
    from guerdon.policies.gaussian import GaussianPolicy

    policy = GaussianPolicy(state_size=12, action_size=2)
    save_component(policy, "policy")
    assert main(["evaluate", "--model", "policy", "--data", str(here / "held")]) == 2
    assert "expected a reward model" in error_line(capsys)


def test_checkpoints_of_another_shape_are_refused(here, capsys):
    checkpoint = str(here / "run/checkpoints/last.ckpt")
    options = ["--ckpt_path", checkpoint, f"{OBSERVER}.width", "4", "--out", "other"]
    assert main(["fit", "--config", str(here / "tiny.yaml"), *options]) == 2
    assert "does not fit the configuration" in error_line(capsys)


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
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    kept = tmp_path / "run/checkpoints/interrupted.ckpt"
    assert kept.is_file() and "Traceback" not in said
    assert f"--ckpt_path {kept.relative_to(tmp_path)}" in said
    assert not list(tmp_path.rglob("*.part"))
    import torch

    epoch = torch.load(kept, weights_only=True)["epoch"]
    assert main([*command, "--ckpt_path", str(kept), "--trainer.max_epochs", str(epoch + 2)]) == 0
