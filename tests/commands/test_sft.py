"""The ``sft`` command, as a user runs it: a tiny model, the real trainer, Ctrl-C and every kind of mistake."""

import json
import shutil
import signal
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import yaml
from trl import SFTTrainer

from guerdon.cli import main
from guerdon.core.hub import load_component
from guerdon.datasets.episodes import ArrayFrames
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.envs.collect import collect
from guerdon.envs.vector import make_task
from guerdon.rewards.stages.decomposer import VlmDecomposer
from guerdon.rewards.stages.decomposer_training import DecomposerTraining
from guerdon.testing.vlm_checkpoints import tiny_vlm

pytestmark = [pytest.mark.xdist_group("sft"), pytest.mark.slow]
DECOMPOSER = "--model.init_args.decomposer.init_args"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four short episodes with pictures, a model, the configuration that teaches it, and a run that has ended."""
    folder = tmp_path_factory.mktemp("sft")
    vlm = tiny_vlm(folder / "vlm")
    with closing(make_task("mujoco/reach")) as task, LeRobotWriter(folder / "seen", task.fps) as writer:
        for episode in collect(task, {"expert": 1.0}, 4, frames=False):
            pictures = np.random.default_rng(0).integers(0, 255, (episode.steps + 1, 3, 16, 16), np.uint8)
            shown = ArrayFrames(values=pictures, step=np.arange(episode.steps + 1), identity=str(episode.index))
            writer.add(replace(episode, frames={"corner2": shown}))
    lora = {"class_path": "guerdon.LoRA", "init_args": {"rank": 2}}
    chat = {"name": str(vlm), "dtype": "float32", "lora": lora}
    decomposer = {"cameras": ["corner2"], "frame_size": 16, "frames_every": 8, "max_new_tokens": 4, "attempts": 1}
    config = {
        "model": {
            "class_path": "guerdon.DecomposerTraining",
            "init_args": {
                "decomposer": {
                    "class_path": "guerdon.VlmDecomposer",
                    "init_args": {"chat": {"class_path": "guerdon.VLM", "init_args": chat}, **decomposer},
                },
                "teacher": {"class_path": "guerdon.RuleDecomposer"},
                "frames_per_episode": 3,
                "tuning": {
                    "class_path": "guerdon.FineTuning",
                    "init_args": {"max_steps": 4},
                },
            },
        },
        "data": {
            "class_path": "guerdon.EpisodeData",
            "init_args": {
                "path": str(folder / "seen"),
                "cameras": ["corner2"],
                "frame_size": 16,
                "frames_every": 8,
            },
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    del chat["lora"]  # which the configuration holds
    (folder / "frozen.yaml").write_text(yaml.safe_dump(config))
    del config["data"]["init_args"]["path"]
    (folder / "no_path.yaml").write_text(yaml.safe_dump(config))
    del config["data"]
    (folder / "no_data.yaml").write_text(yaml.safe_dump(config))
    assert main(["sft", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return place


@pytest.fixture
def command(here):
    return ["sft", "--config", str(here / "tiny.yaml"), "--out", "run"]


def error_line(capsys):
    """The one line on standard error that says what was wrong."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("guerdon: error:")]
    assert len(lines) == 1, text
    return lines[0]


def interrupt_in(monkeypatch, owner, method, call):
    """Press Ctrl-C at the start of the given call of a method, counted from 1, and only then."""
    plain, calls = getattr(owner, method), [0]

    def pressed(*arguments, **named):
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(signal.SIGINT)
        return plain(*arguments, **named)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
    monkeypatch.setattr(owner, method, pressed)
    return before


def test_a_run_holds_model_configuration_examples_and_figures(place):
    run = place / "run"
    files = {"model", "config.yaml", "checkpoints", "examples.json", "figures.json", "history.json"}
    assert {p.name for p in run.iterdir()} == files
    assert isinstance(load_component(run / "model"), VlmDecomposer)
    assert set(json.loads((run / "figures.json").read_text())) == {"before", "after", "examples"}


def test_ctrl_c_in_training_says_how_to_go_on_and_that_works(command, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        before = interrupt_in(patch, SFTTrainer, "training_step", 4)
        try:
            assert main(command) == 130
        finally:
            signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert "kept run/checkpoints/checkpoint-3; go on with the same command and --out run --resume" in said
    assert "nothing" not in said and "Traceback" not in said
    assert not (tmp_path / "run/model").exists()
    steps = []
    plain = SFTTrainer.training_step
    monkeypatch.setattr(SFTTrainer, "training_step", lambda *a, **k: (steps.append(1), plain(*a, **k))[1])
    assert main([*command, "--resume"]) == 0
    assert len(steps) == 1  # the fourth of four: the first three were kept
    assert capsys.readouterr().out.splitlines()[-1] == "run/model"
    assert isinstance(load_component(tmp_path / "run/model"), VlmDecomposer)


def test_ctrl_c_before_the_first_update_leaves_nothing(command, tmp_path, monkeypatch, capsys):
    before = interrupt_in(monkeypatch, DecomposerTraining, "evaluate", 1)
    try:
        assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "nothing was kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_again_names_resume(here, capsys):
    assert main(["sft", "--config", str(here / "tiny.yaml"), "--out", str(here / "run")]) == 2
    line = error_line(capsys)
    assert line.endswith("holds an earlier run: choose another --out, or go on with it: --resume")


def test_a_run_that_failed_early_is_taken_back_and_the_corrected_command_runs(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("stays")

    def full(*_, **__):
        raise OSError(28, "No space left on device", "run/checkpoints")

    with monkeypatch.context() as patch:
        patch.setattr(DecomposerTraining, "fit", full)
        assert main(command) == 2
    assert "No space left" in error_line(capsys)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]
    assert main([*command, "--model.tuning.max_steps", "1"]) == 0


def test_resuming_without_a_checkpoint_fails_before_anything_is_read(command, tmp_path, monkeypatch, capsys):
    def read(*_, **__):
        raise AssertionError("data were read")

    monkeypatch.setattr("guerdon.EpisodeData.setup", read)
    monkeypatch.setattr("guerdon.VLM.__init__", read)
    assert main([*command, "--resume"]) == 2
    assert "no checkpoint" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_resuming_keeps_to_the_settings_of_the_run(here, tmp_path, capsys):
    shutil.copytree(here / "run", tmp_path / "run")
    saved = (tmp_path / "run/config.yaml").read_text()
    other = ["--model.seed", "5", "--model.tuning.max_steps", "6"]
    assert main(["sft", "--config", str(here / "tiny.yaml"), "--out", "run", "--resume", *other]) == 2
    line = error_line(capsys)
    assert "model.init_args.tuning.init_args.max_steps is 6, but was 4" in line
    assert (tmp_path / "run/config.yaml").read_text() == saved
    # what is edited there is meant: without --config the run's own settings are read
    (tmp_path / "run/config.yaml").write_text(saved.replace("max_steps: 4", "max_steps: 5"))
    assert main(["sft", "--out", "run", "--resume"]) == 0
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert history[-1]["step"] == 5


def test_help_names_every_argument(capsys):
    assert main(["sft", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("--config", "--out", "--resume", "--model", "--data"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to fine-tune: expected --config FILE.yaml"),
        (["--resume"], "--resume goes on with the run in --out DIR: name it"),
        (["--config", "nowhere.yaml"], "no configuration nowhere.yaml"),
        (["--config", "progress_state"], "does not correspond to a subclass of DecomposerTraining"),
        (["--config", "{place}/no_data.yaml"], "arguments are required: data"),
        (["--config", "{place}/no_path.yaml"], "EpisodeData': the following arguments are required: path"),
        (["--config", "{place}/tiny.yaml", "--data.path", "nowhere"], "there is no data set at nowhere"),
        (["--config", "{place}/tiny.yaml", "--nonsense", "3"], "--nonsense"),
        (["--config", "{place}/tiny.yaml", "--model.nonsense", "3"], "'nonsense' is not accepted"),
        (["--config", "{place}/tiny.yaml", "--model.tuning.max_steps", "many"], "Expected a int. Got value: many"),
        (
            ["--config", "{place}/tiny.yaml", "--model.tuning.learning_rate", "-1"],
            "error: learning_rate -1",
        ),
        (
            ["--config", "{place}/frozen.yaml"],
            "error: nothing of this decomposer can be trained",
        ),
        (
            ["--config", "{place}/tiny.yaml", f"{DECOMPOSER}.chat.init_args.name", "no/such/vlm"],
            "error: there is no folder no/such/vlm",
        ),
        (
            ["--config", "{place}/tiny.yaml", "--data.labels.init_args.stall", "2"],
            "error: shares rewind, reverse",
        ),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(here, tmp_path, capsys, arguments, says):
    assert main(["sft", *(a.replace("{place}", str(here)) for a in arguments)]) == 2
    line = error_line(capsys)
    assert says in line and "Union" not in line and "Namespace" not in line
    assert list(tmp_path.iterdir()) == []
