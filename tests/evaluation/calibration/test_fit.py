"""Calibrating a model on a data set, and what is refused."""

import numpy as np
import pytest
import torch

from guerdon.evaluation.calibration.fit import calibrate
from guerdon.evaluation.dataset import evaluate_dataset
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.calibration_curves import Curve
from guerdon.scoring.dataset import score_dataset
from guerdon.scoring.scores import read_scores

from .state_models import Broken, Memory, Told, dataset, episode, held

pytestmark = pytest.mark.slow


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
