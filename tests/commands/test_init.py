"""``guerdon init``: the configuration fits the data, `guerdon fit` runs it, and data that cannot serve are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import guerdon
from guerdon.cli import main
from guerdon.commands.arguments import JOBS
from guerdon.commands.init import survey, write_config
from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, Column, Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.formats.video import write_video
from guerdon.datasets.opening import open_dataset

pytestmark = pytest.mark.xdist_group("cli")
SETTLED = ("class_path", "seed_everything", "path", "reward")
"""Keys that need no comment: what they hold is explained by the lines around them."""
SOON = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def episode(number: int, *, cameras: tuple[str, ...] = (), steps: int = 5, **changes: Any) -> Episode:
    """State of three numbers, actions of two in [−0.37, 0.52]; every third episode fails."""
    failed = number % 3 == 2
    picture = np.full((steps + 1, 3, 32, 32), 40 + number, np.uint8)
    given: dict[str, Any] = {
        "index": number,
        "state": np.linspace(0, 1, 3 * (steps + 1), dtype=np.float32).reshape(-1, 3),
        "actions": np.linspace(-0.37, 0.52, 2 * steps, dtype=np.float32).reshape(-1, 2),
        "instruction": f"task {number % 2}",
        "success": 0.0 if failed else 1.0,
        "end": End.TIME_LIMIT if failed else End.SUCCESS,
        "context": f"start {number}",
        "frames": {camera: ArrayFrames(values=picture, step=np.arange(steps + 1)) for camera in cameras},
    }
    return Episode(**given | changes)


Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """A function that writes a LeRobot data set of nine episodes, ten steps a second."""

    def write(name: str = "data", count: int = 9, **changes: Any) -> Path:
        with LeRobotWriter(tmp_path / name, fps=10) as writer:
            for number in range(count):
                given: dict[str, Any] = {
                    key: value(number) if callable(value) else value for key, value in changes.items()
                }
                writer.add(episode(number, **given))
        return tmp_path / name

    return write


def configuration(data: Path, job: str, out: Path) -> dict[str, Any]:
    return yaml.safe_load(write_config(data, job, out).read_text())


def reward_arguments(config: dict[str, Any]) -> dict[str, Any]:
    return config["model"]["init_args"]["reward"]["init_args"]


# --- what is written ------------------------------------------------------------------------------------------------


def test_sizes_cameras_splits_and_rates_are_those_of_the_data(written: Write, tmp_path: Path):
    data = written(cameras=("front", "wrist"), split=lambda i: "eval" if i > 5 else "train")
    config = configuration(data, "progress", tmp_path / "progress.yaml")
    arguments = config["data"]["init_args"]
    assert arguments["path"] == str(data)
    assert arguments["cameras"] == ["front", "wrist"]
    assert (arguments["train_split"], arguments["val_split"]) == ("train", "eval")
    assert "val_fraction" not in arguments
    observer = reward_arguments(config)["observer"]["init_args"]
    assert observer["cameras"] == ["front", "wrist"]
    assert observer["frame_size"] == arguments["frame_size"]
    assert observer["frames_every"] == 2  # of ten a second, five are evaluated
    assert observer["state_size"] == 0
    assert observer["text"]["class_path"] == "guerdon.HashedText"  # two instructions
    assert arguments["labels"]["init_args"]["wrong_instruction"] == 0.2
    assert reward_arguments(config)["predicts"] == ["progress", "success"]  # there are failures


def test_states_alone_and_one_instruction(written: Write, tmp_path: Path):
    data = written(instruction="open the door", success=1.0, end=End.SUCCESS)
    config = configuration(data, "progress", tmp_path / "progress.yaml")
    arguments = config["data"]["init_args"]
    assert not {"cameras", "frame_size", "train_split", "val_split"} & arguments.keys()
    assert arguments["val_fraction"] == 0.1
    observer = reward_arguments(config)["observer"]["init_args"]
    assert observer["state_size"] == 3 and not {"cameras", "encoder", "text"} & observer.keys()
    assert arguments["labels"]["init_args"]["wrong_instruction"] == 0.0
    assert reward_arguments(config)["predicts"] == ["progress"]  # no failure


def test_a_critic_gets_the_ends_of_the_data_and_the_range_of_the_actions(written: Write, tmp_path: Path):
    config = configuration(written(), "critic", tmp_path / "critic.yaml")
    assert config["data"]["init_args"]["terminating"] == ["success", "time_limit"]
    network = config["model"]["init_args"]["critic"]["init_args"]["network"]["init_args"]
    assert (network["state_size"], network["action_size"]) == (3, 2)
    assert network["reads"]["init_args"]["action_range"] == [-0.37, 0.52]
    gamma = config["model"]["init_args"]["critic"]["init_args"]["gamma"]
    assert gamma == config["model"]["init_args"]["reward"]["init_args"]["gamma"] == 0.9


def test_ends_that_nobody_recorded_fall_back_with_a_comment(written: Write, tmp_path: Path):
    data = written(end=End.CUT, success=None)
    text = write_config(data, "critic", tmp_path / "critic.yaml").read_text()
    assert "terminating: [success, failure] # no episode of the data says how it ends" in text
    text = write_config(data, "progress", tmp_path / "progress.yaml").read_text()
    assert "assume_success: true # no outcome is recorded" in text


def test_cloning_warns_of_failures_and_takes_both_sizes(written: Write, tmp_path: Path):
    text = write_config(written(), "clone", tmp_path / "clone.yaml").read_text()
    policy = yaml.safe_load(text)["model"]["init_args"]["policy"]["init_args"]
    assert (policy["state_size"], policy["action_size"]) == (3, 2)
    assert "# All of them are imitated, failures too" in text
    data = written("good", success=1.0, end=End.SUCCESS)
    assert "failures too" not in write_config(data, "clone", tmp_path / "good.yaml").read_text()


@pytest.mark.parametrize("job", JOBS)
def test_every_choice_has_a_comment(job: str, written: Write, tmp_path: Path):
    lines = write_config(written(cameras=("front",)), job, tmp_path / "out.yaml").read_text().splitlines()
    assert lines[0] == f"# guerdon fit --config {tmp_path / 'out.yaml'}"
    assert "9 episodes of 5 to 5 steps, 10 a second (6 success, 3 failure)" in " ".join(lines[:4]).replace("# ", "")
    for line in (line for line in lines if not line.startswith("#")):
        key, _, value = line.strip().partition(":")
        assert not value.strip() or key in SETTLED or " # " in line, line


def test_names_from_the_data_cannot_break_the_file(written: Write, tmp_path: Path):
    data = written('odd: "name" #1', cameras=("a.b",), split=lambda i: "te: st" if i > 5 else "on")
    config = configuration(data, "success", tmp_path / "out.yaml")
    assert config["data"]["init_args"]["path"] == str(data)
    assert config["data"]["init_args"]["train_split"] == "on"  # a string, not true


# --- ready for `guerdon fit` ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "made"),
    [("progress", "ProgressReward"), ("success", "SuccessReward"), ("critic", "ExpectileCritic"),
     ("clone", "GaussianPolicy")],
)  # fmt: skip
@pytest.mark.parametrize("cameras", [(), ("front", "wrist")], ids=["states", "frames"])
def test_what_is_written_trains(job: str, made: str, cameras: tuple[str, ...], written: Write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(cameras=cameras, split=lambda i: "val" if i in (1, 2) else "train")
    assert main(["init", "--data", "data", "--job", job, "--out", "made.yaml"]) == 0
    assert main(["fit", "--config", "made.yaml", "--out", "run", *SOON]) == 0
    saved = guerdon.load_component("run/model")
    assert type(saved).__name__ == made
    sizes = [m.state_size for m in saved.modules() if getattr(m, "state_size", None)]
    assert all(size == 3 for size in sizes) and (sizes or cameras)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["progress", "success"])
def test_clips_train_too(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = []
    for number in range(4):
        frames = [np.full((3, 64, 64), 10 * number + 5 * t, np.uint8) for t in range(6)]
        write_video(folder / f"{number}.mp4", frames, 15)
        success = {} if job == "progress" else {"success": number % 2 == 0}
        lines.append(json.dumps({"file": f"{number}.mp4", "instruction": f"do {number % 2}"} | success))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    config = configuration(folder, job, tmp_path / "made.yaml")
    observer = reward_arguments(config)["observer"]["init_args"]
    assert (observer["cameras"], observer["frames_every"]) == (["video"], 3)
    assert main(["fit", "--config", "made.yaml", "--out", "run", *SOON]) == 0
    assert Path("run/model/component.json").is_file()


def test_the_command_names_the_file_and_the_next_command(written: Write, tmp_path: Path, capsys):
    data = written()
    assert main(["init", "--data", str(data), "--job", "progress", "--out", str(tmp_path / "made.yaml")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'made.yaml'}\n"
    assert f"guerdon fit --config {tmp_path / 'made.yaml'}\n" in err


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "job", "says"),
    [
        ({"actions": np.zeros((5, 0), np.float32)}, "critic", "holds no actions: a critic learns from them"),
        ({"actions": np.zeros((5, 0), np.float32)}, "clone", "holds no actions"),
        ({"state": np.zeros((6, 0), np.float32)}, "clone", "holds no state"),
        ({"state": np.zeros((6, 0), np.float32)}, "progress", "holds neither states nor frames"),
        ({"success": 0.0, "end": End.FAILURE}, "progress", "no success and no recorded progress"),
        ({"success": 1.0, "end": End.SUCCESS}, "success", "9 successes and 0 failures"),
        ({"success": None, "end": End.CUT}, "success", "0 successes and 0 failures"),
    ],
)
def test_data_that_cannot_serve_are_refused_and_nothing_is_written(changes, job, says, written, tmp_path, capsys):
    data = written(**changes)
    assert main(["init", "--data", str(data), "--job", job, "--out", str(tmp_path / "made.yaml")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "made.yaml").exists()


def test_a_file_that_is_there_is_kept(written: Write, tmp_path: Path, capsys):
    (tmp_path / "made.yaml").write_text("mine")
    assert main(["init", "--data", str(written()), "--job", "clone", "--out", str(tmp_path / "made.yaml")]) == 2
    assert "made.yaml exists already" in capsys.readouterr().err
    assert (tmp_path / "made.yaml").read_text() == "mine"


def test_data_that_are_not_there(tmp_path: Path, capsys):
    assert main(["init", "--data", "nowhere", "--job", "clone", "--out", str(tmp_path / "made.yaml")]) == 2
    assert "there is no data set at nowhere" in capsys.readouterr().err


def test_an_unknown_job_is_refused_with_the_known_ones(written: Write, tmp_path: Path):
    with pytest.raises(ValueError, match="expected one of progress, success, critic, clone"):
        write_config(written(), "value", tmp_path / "made.yaml")


def test_recorded_progress_serves_where_nothing_succeeded(written: Write, tmp_path: Path):
    progress = {"progress": Column.known(np.linspace(0, 0.5, 6, dtype=np.float32))}
    data = written(success=0.0, end=End.FAILURE, labels=progress)
    assert survey(open_dataset(data)).progress
    assert configuration(data, "progress", tmp_path / "made.yaml")["model"]["class_path"] == "guerdon.RewardTraining"
