"""What tests of commands share: data, a configuration and a trained run, all made by the command itself."""

import json

import pytest
import yaml

from guerdon.cli import main

CONFIG = {
    "model": {
        "class_path": "guerdon.RewardTraining",
        "init_args": {
            "reward": {
                "class_path": "guerdon.ProgressReward",
                "init_args": {
                    "observer": {
                        "class_path": "guerdon.ObservationEncoder",
                        "init_args": {"width": 8, "layers": 1, "heads": 2},
                    },
                },
            }
        },
    },
    "data": {
        "class_path": "guerdon.EpisodeData",
        "init_args": {"val_split": "eval"},
    },
    "trainer": {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Folder with the data sets train and held, the configuration tiny.yaml, a trained run and its scores."""
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
    """The folder of `place`, with an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return place


@pytest.fixture
def error_line(capsys):
    """A function that returns the one line on standard error that says what was wrong."""

    def read():
        text = capsys.readouterr().err
        assert "Traceback" not in text
        lines = [line for line in text.splitlines() if line.startswith("guerdon: error:")]
        assert len(lines) == 1, text
        return lines[0]

    return read


@pytest.fixture
def refused(here, tmp_path, error_line):
    """A function that runs a command which makes a mistake, in an empty folder, and checks that nothing is left."""

    def run(command, says):
        assert main(command.format(place=here).split()) == 2
        line = error_line()
        assert says in line, line
        assert list(tmp_path.iterdir()) == []

    return run
