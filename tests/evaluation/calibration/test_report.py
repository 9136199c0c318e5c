"""The report of a calibration: cross-validated on other families, with intervals, limits and risks."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.metrics import expected_calibration_error
from guerdon.evaluation.calibration.fit import calibrate_on
from guerdon.evaluation.calibration.report import change_of_error, choose_limit, cross_validate
from guerdon.rewards.calibration_curves import fit_curve

from .state_models import Told, data, drawn


def test_what_is_evaluated_was_fitted_on_other_families():
    """Outcomes are coin flips that each family repeats: a map that had seen the family would know them."""
    rng = np.random.default_rng(0)
    family = np.arange(40).repeat(5)
    probability, label = rng.random(40).repeat(5), (np.arange(40) % 2).astype(float).repeat(5)
    coins = data(probability, label, episode=np.arange(200), family=family)
    flattering = fit_curve(probability, label, "isotonic")(probability)
    crossed = cross_validate(coins, "isotonic", False, 0.0, "confidence", 0)
    assert crossed.folds == 5 and not np.isnan(crossed.probability).any()
    assert expected_calibration_error(flattering, label) < 1e-9
    assert expected_calibration_error(crossed.probability, label) > 0.05
    assert np.mean((crossed.probability - label) ** 2) > np.mean((flattering - label) ** 2) + 0.02


def test_too_few_families_are_not_evaluated_at_all():
    few = data([0.1, 0.9, 0.2, 0.8], [0, 1, 0, 1], episode=[0, 1, 2, 3], family=np.zeros(4, int))
    with pytest.warns(UserWarning, match="calibrated on 2 successes and 2 failures: fewer than 5"):
        _, report = calibrate_on(Told(), few, "temperature")
    assert report.folds == 0 and math.isnan(report.after.calibration_error.value)
    assert not math.isnan(report.before.calibration_error.value) and math.isnan(report.change.value)
    assert any("could not be evaluated" in note for note in report.notes) and len(report.notes) == 2
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["after"]["calibration_error"]["value"] is None


def test_intervals_hold_the_value_and_equal_maps_have_no_change():
    probability, label = drawn(2000, slope=0.3, bias=-1.0)
    sample = data(probability, label, family=np.arange(2000) // 10)
    model, report = calibrate_on(Told(), sample, "platt")
    before, after = report.before.calibration_error, report.after.calibration_error
    assert before.value == pytest.approx(expected_calibration_error(probability, label))
    assert before.low < before.value < before.high and after.high < before.low and report.change.high < 0
    assert report.change.value == pytest.approx(after.value - before.value)
    assert change_of_error(sample, probability, probability, 0).high == 0
    assert report.temperature == pytest.approx(1 / 0.3, rel=0.2) and report.bias == pytest.approx(-1, abs=0.2)
    assert float(model.slope) == pytest.approx(1 / report.temperature)
    count = sum(bin.count for bin in report.before.reliability)
    excess = sum(b.count * abs(b.frequency - b.probability) for b in report.before.reliability if b.count)
    assert count == 2000 and excess / count == pytest.approx(before.value)
    assert report.before.brier.value == pytest.approx(np.mean((probability - label) ** 2))
    assert report.base_brier == pytest.approx(label.mean() * (1 - label.mean()))


def test_doubt_that_knows_where_the_model_is_wrong_lowers_the_risk():
    rng = np.random.default_rng(0)
    probability, label = drawn(3000)
    spread = rng.random(3000)
    random = spread > 0.7
    probability = np.where(random, rng.random(3000), probability)
    sample = data(probability, label, family=np.arange(3000) // 10, spread=spread)
    _, report = calibrate_on(Told(), sample, "isotonic", abstain=0.3)
    risks = [point.brier for point in report.risk_coverage]
    assert report.by == "spread" and report.risk_coverage[0].coverage == 1.0
    assert risks[0] > risks[-1] + 0.01 and risks[0] == pytest.approx(report.after.brier.value)
    found = report.abstention
    assert found.coverage == pytest.approx(0.7, abs=0.01) and found.limit == pytest.approx(0.7, abs=0.03)
    assert found.kept.brier.high < found.everything.brier.value == pytest.approx(report.after.brier.value)


@given(doubt=st.lists(st.floats(0, 1), min_size=1, max_size=40), share=st.floats(0, 0.99))
def test_a_limit_abstains_on_at_most_the_share(doubt, share):
    values = np.array(doubt)
    limit = choose_limit(values, share)
    assert (values > limit).mean() <= share + 1e-9
    if len(np.unique(values)) == len(values) and share:
        assert (values > limit).sum() == math.floor(share * len(values) + 1e-9)


def test_a_limit_by_hand():
    assert choose_limit(np.arange(1.0, 11.0), 0.2) == 8 and choose_limit(np.arange(1.0, 11.0), 0.0) == math.inf
    assert choose_limit(np.ones(10), 0.5) == 1, "ties stay together, on the side of what is kept"
    with pytest.raises(ValueError, match=r"abstain is 1\.0"):
        choose_limit(np.ones(3), 1.0)
