"""``guerdon calibrate``: a model that the other commands accept, a warning where it matters, or one clear line."""

import json
import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit

from guerdon.cli import main
from guerdon.commands.calibrate import unseen_warning
from guerdon.core.batch import End
from guerdon.core.hub import load_component
from guerdon.datasets.episodes import Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.scoring.scores import read_scores

pytestmark = pytest.mark.slow


def episode(index, success, rng, split, steps=6):
    """State 0 is a probability of success that is too sure, state 1 the progress."""
    truth = np.linspace(-3, 3 if success else -1, steps + 1) + rng.normal(0, 0.8, steps + 1)
    progress = np.linspace(0, 1 if success else 0.5, steps + 1) ** 2
    state = np.stack([expit(3 * truth + 1), progress, np.abs(rng.normal(0, 0.1, steps + 1))], 1)
    return Episode(
        index=index,
        state=state.astype(np.float32),
        actions=np.zeros((steps, 1), np.float32),
        end=End.SUCCESS if success else End.TIME_LIMIT,
        success=float(success),
        split=split,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and data on disk: 12 episodes with both outcomes in val, successes only in wins."""
    folder = tmp_path_factory.mktemp("calibrate")
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder / "data", fps=10) as writer:
        for i in range(15):
            writer.add(episode(i, bool(i % 2) or i > 11, rng, split="val" if i < 12 else "wins"))
    torch.manual_seed(0)
    EnsembleReward(
        ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=0)), size=2
    ).save_pretrained(folder / "model")
    return folder


def call(place, out, *more):
    common = ["calibrate", "--model", str(place / "model"), "--data", str(place / "data"), "--out", str(out)]
    return main([*common, "--device", "cpu", *more])


def test_the_command_leaves_a_model_that_the_others_accept(place, tmp_path, capsys):
    figures, out = tmp_path / "figures.json", tmp_path / "calibrated"
    assert call(place, out, "--abstain", "0.2", "--progress", "--json", str(figures)) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(out) and "calibration error" in printed and "coverage, by spread" in printed
    said = json.loads(figures.read_text())
    assert said["counts"] == {
        "episodes": 12, "successes": 6, "failures": 6, "families": 12, "observations": 84, "positives": 6,
        "negatives": 78, "bad": 0,
    }  # fmt: skip
    assert said["folds"] == 5 and said["abstention"]["by"] == "spread" and said["model"]["hash"]
    assert isinstance(load_component(out), Calibrated)
    data = ["--data", str(place / "data"), "--device", "cpu"]
    assert main(["evaluate", "--model", str(out), *data, "--split", "val"]) == 0
    assert main(["score", "--model", str(out), *data, "--out", str(tmp_path / "scores")]) == 0
    assert main(["report", "--scores", str(tmp_path / "scores"), "--out", str(tmp_path / "page.html")]) == 0
    rewards = read_scores(tmp_path / "scores").table["reward"].to_pylist()
    assert 0.1 < np.mean([value is None for value in rewards]) < 0.5, "the last of each, and what is abstained on"


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_the_command_takes_every_method_and_warns_of_few(method, place, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(place, tmp_path / "out", "--method", method, "--split", "", "--by", "confidence") == 0
    assert "temperature" in capsys.readouterr().out
    assert load_component(tmp_path / "out").method == method


def test_the_command_refuses_and_writes_nothing(place, tmp_path, capsys):
    def error(*more, out=tmp_path / "out"):
        assert call(place, out, *more) == 2
        return capsys.readouterr().err

    assert "3 labelled successes and 0 failures" in error("--split", "wins")
    assert "abstain is 1.5" in error("--abstain", "1.5")
    assert "no usable episode of the split 'none': it has val, wins" in error("--split", "none")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine.txt").write_text("keep")
    assert "exists already" in error(out=tmp_path / "held")
    assert "is a folder" in error("--json", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["held"] and len(list((tmp_path / "held").iterdir())) == 1
    assert "exists already" in error(out=place / "model"), "the model it was made from is not replaced"


def test_a_model_that_held_out_something_else_is_named(tmp_path):
    def told(text, split="val"):
        (tmp_path / "config.yaml").write_text(text)
        return unseen_warning(tmp_path / "model", split)

    (tmp_path / "model").mkdir()
    assert unseen_warning(tmp_path / "model", "val") is None  # no run beside it
    assert "trained with val_fraction 0.0" in (told("data: {init_args: {val_fraction: 0.0}}") or "")
    assert told("data: {init_args: {val_fraction: 0.0}}", split="held_out") is None
    assert told("data: {init_args: {val_fraction: 0.1}}") is None and told("data: {init_args: {}}") is None
    assert unseen_warning(tmp_path, "val") is None  # the run directory itself
