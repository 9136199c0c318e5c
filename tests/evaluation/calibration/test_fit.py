"""Calibrating a model on a data set, and what is refused."""

import json
import warnings

import numpy as np
import pytest
import torch

from guerdon.cli import main
from guerdon.commands.calibrate import unseen_warning
from guerdon.core.hub import load_component
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.evaluation.calibration.fit import calibrate
from guerdon.evaluation.dataset import evaluate_dataset
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.calibration_curves import Curve
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.progress import ProgressReward
from guerdon.scoring.dataset import score_dataset
from guerdon.scoring.scores import read_scores

from .state_models import Broken, Memory, Told, dataset, episode, held


def test_calibrating_a_data_set_lowers_the_error_evaluation_finds_on_another(tmp_path):
    fitted_on, other = dataset(40, seed=0), dataset(40, seed=1)
    _, before = calibrate(Told(), fitted_on)
    for method in ("platt", "isotonic"):
        model, report = calibrate(Told(), fitted_on, method=method)
        assert report.change.value < 0 and report.counts["successes"] == report.counts["failures"] == 20
        raw, now = (evaluate_dataset(m, other).metrics["model"] for m in (Told(), model))
        assert now.calibration_error.value < 0.5 * raw.calibration_error.value
        if method == "platt":
            assert now.success_auroc.value == pytest.approx(raw.success_auroc.value)
    on_itself = evaluate_dataset(Told(), fitted_on).metrics["model"].calibration_error.value
    assert before.before.calibration_error.value == pytest.approx(on_itself, abs=1e-6), "the same observations"


def test_progress_is_calibrated_on_its_labels():
    model, report = calibrate(Told(), dataset(40), progress=True)
    # the model says t², the label is t
    assert report.after.progress_error.value < 0.02 < report.before.progress_error.value
    mapped = model(held([0.1] * 5, (np.linspace(0, 1, 5) ** 2).tolist())).progress.values[0]
    assert torch.allclose(mapped, torch.linspace(0, 1, 5), atol=0.06)


def test_scores_are_null_where_the_model_abstains(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [episode(i, bool(i % 2), rng) for i in range(2)]
    for one in episodes:
        one.state[:, 2] = [0.0, 0.1, 0.5, 0.5, 0.1, 0.1, 0.1]
    model = Calibrated.from_curves(Told(), "temperature", Curve(), spread_limit=0.2)
    report = score_dataset(model, Memory(episodes), tmp_path / "scores", device="cpu", progress_bar=False)
    table = read_scores(report.path).table
    first = table.filter([index == 0 for index in table["episode_index"].to_pylist()])
    # steps 1 and 2 lead to observations 2 and 3; of observation 3 the next step is known, of 2 nothing is
    assert first["valid"].to_pylist() == [True, True, False, True, True, True, True]
    assert [value is None for value in first["success"].to_pylist()] == [False, False, True, True, False, False, False]
    assert [value is None for value in first["reward"].to_pylist()] == [False, True, True, False, False, False, True]


def test_one_outcome_no_label_and_no_number_are_refused():
    rng = np.random.default_rng(0)
    for outcome, message in (
        (True, "the split 'val' has 6 labelled successes and 0 failures"),
        (False, "the split 'val' has 0 labelled successes and 6 failures"),
        (None, "no observation of the split 'val' has both a known success label and an estimate"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(Told(), Memory([episode(i, outcome, rng) for i in range(6)]))
    with pytest.raises(ValueError, match="Broken estimates no success"):
        calibrate(Broken("absent"), dataset())
    for what, message in (
        ("success", "gave nan as success of episode"),
        ("progress", "gave nan as progress of episode"),
        ("std", "a spread that is no number"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(Broken(what), dataset())
    with pytest.raises(ValueError, match="gives no spread to abstain on"):
        calibrate(Told(spread=False), dataset(), abstain=0.1, by="spread")
    assert calibrate(Told(spread=False), dataset(), abstain=0.1)[1].by == "confidence"
    with pytest.raises(ValueError, match=r"abstain is -0\.1"):
        calibrate(Told(), dataset(), abstain=-0.1)
    with pytest.raises(ValueError, match="at least one episode at once"):
        calibrate(Told(), dataset(), batch_size=0)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and data on disk: 12 episodes with both outcomes in val, successes only in wins."""
    folder = tmp_path_factory.mktemp("calibrate")
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder / "data", fps=10) as writer:
        for i in range(15):
            writer.add(episode(i, bool(i % 2) or i > 11, rng, split="val" if i < 12 else "wins"))
    torch.manual_seed(0)
    EnsembleReward(ProgressReward(state_size=3, width=8, layers=0), size=2).save_pretrained(folder / "model")
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
