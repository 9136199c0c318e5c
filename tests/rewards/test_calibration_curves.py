"""Maps of probabilities: by hand, by loop, and against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from guerdon.core.metrics import success_auroc
from guerdon.rewards.calibration_curves import Curve, fit_curve

from ..evaluation.calibration.state_models import drawn

METHODS = ("temperature", "platt", "isotonic")


def test_curves_by_hand():
    # logit of 0.8 is log 4; at temperature 2 it is log 2, so p = 2/3; shifted by log 3, p = 4 · 3 / (1 + 12)
    assert Curve(slope=0.5)(np.array([0.8]))[0] == pytest.approx(2 / 3)
    assert Curve(bias=math.log(3))(np.array([0.8]))[0] == pytest.approx(12 / 13)
    knots = Curve(x=np.array([0.2, 0.4, 0.8]), y=np.array([0.0, 0.5, 0.6]))
    assert knots(np.array([0.1, 0.2, 0.3, 0.6, 0.9])).tolist() == pytest.approx([0.0, 0.0, 0.25, 0.55, 0.6])
    assert Curve(x=np.array([0.3]), y=np.array([0.7]))(np.array([0.0, 1.0])).tolist() == [0.7, 0.7]
    # pool adjacent violators: 1 at 0.2 and 0 at 0.5 share ½, then 1
    fitted = fit_curve(np.array([0.1, 0.2, 0.5, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]), "isotonic")
    assert fitted(np.array([0.1, 0.2, 0.5, 0.9])).tolist() == pytest.approx([0.0, 0.5, 0.5, 1.0])
    # two values only, so Platt goes through the smoothed frequencies: (3 + 1 of 4 happened at 0.8, 1 of 4 at 0.2);
    # targets are 5/6 and 1/6: (3 · 5/6 + 1/6) / 4 = 2/3, and 1/3 by symmetry
    platt = fit_curve(np.array([0.8] * 4 + [0.2] * 4), np.array([1.0, 1, 1, 0, 1, 0, 0, 0]), "platt")
    assert platt(np.array([0.8, 0.2])).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-6)
    # without bias the same data want logit / τ = log 3, and logit is log 4
    scaled = fit_curve(np.array([0.8] * 4 + [0.2] * 4), np.array([1.0, 1, 1, 0, 1, 0, 0, 0]), "temperature")
    assert 1 / scaled.slope == pytest.approx(math.log(4) / math.log(3), rel=1e-4) and scaled.bias == 0


def test_temperature_against_a_search_and_isotonic_against_a_loop():
    probability, label = drawn(300, slope=0.4)

    def loss(temperature):
        p = expit(logit(probability) / temperature)
        return -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))

    found = 1 / fit_curve(probability, label, "temperature").slope
    assert all(loss(found) <= loss(found * factor) for factor in (0.98, 1.02, 0.5, 2.0))
    order = np.argsort(probability)
    blocks: list[list[float]] = []
    for happened in label[order]:  # pool adjacent violators, one by one
        blocks.append([happened])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    expected = np.concatenate([[np.mean(block)] * len(block) for block in blocks])
    assert np.allclose(fit_curve(probability, label, "isotonic")(probability[order]), expected)


def test_a_known_distortion_is_found():
    probability, label = drawn(40_000, slope=0.5, bias=-1.0)
    platt = fit_curve(probability, label, "platt")
    assert platt.slope == pytest.approx(0.5, abs=0.03) and platt.bias == pytest.approx(-1.0, abs=0.05)
    probability, label = drawn(40_000, slope=0.5)
    assert 1 / fit_curve(probability, label, "temperature").slope == pytest.approx(2.0, abs=0.1)


@given(p=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_temperature_one_is_the_identity(p):
    values = np.array(p, np.float32)
    assert np.array_equal(Curve()(values).astype(np.float32), values)


def test_isotonic_leaves_what_is_calibrated_nearly_alone():
    probability, label = drawn(20_000)
    mapped = fit_curve(probability, label, "isotonic")(probability)
    assert np.abs(mapped - probability).mean() < 0.02
    distorted = fit_curve(probability**3, label, "isotonic")(probability**3)
    assert np.abs(distorted - probability).mean() < 0.02 < np.abs(probability**3 - probability).mean()


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(4, 60),
    method=st.sampled_from(METHODS),
)
def test_no_map_turns_an_order_around(seed, count, method):
    rng = np.random.default_rng(seed)
    probability = rng.permutation(np.linspace(0.001, 0.999, count))
    label = (rng.random(count) < probability).astype(float)
    label[:2] = (0.0, 1.0)
    curve = fit_curve(probability, label, method)
    mapped = curve(probability)
    assert ((mapped >= 0) & (mapped <= 1)).all()
    assert (np.diff(mapped[np.argsort(probability)]) >= 0).all()
    if method != "isotonic" and curve.slope > 0.05:
        assert success_auroc(mapped, label) == pytest.approx(success_auroc(probability, label), abs=1e-12)
    # no map of its family can be worse than leaving things as they are, on what it was fitted on
    if method == "isotonic":
        assert np.mean((mapped - label) ** 2) <= np.mean((probability - label) ** 2) + 1e-12


def test_what_falls_with_success_becomes_the_base_rate():
    probability, label = drawn(400, slope=-1.0)
    curve = fit_curve(probability, label, "platt")
    assert curve.slope == 0 and curve(np.array([0.1, 0.9])).tolist() == pytest.approx([label.mean()] * 2, abs=0.01)
    constant = fit_curve(np.full(10, 0.3), np.array([1.0] * 5 + [0.0] * 5), "platt")
    assert constant(np.array([0.3])).tolist() == pytest.approx([0.5])


def test_saturated_and_separable_probabilities_stay_finite():
    probability = np.array([0.0, 0.0, 1e-30, 1.0, 1.0, 1.0])
    label = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    for method in METHODS:
        mapped = fit_curve(probability, label, method)(probability)
        assert np.isfinite(mapped).all() and (mapped[3:] > mapped[:3]).all()
    # every positive at (3 + 1) / (3 + 2) and every negative at 1 / (3 + 2): Platt's targets
    assert fit_curve(np.array([0.1, 0.9]).repeat(3), label, "platt")(np.array([0.1, 0.9])).tolist() == pytest.approx(
        [0.2, 0.8], abs=1e-6
    )


def test_isotonic_agrees_with_scikit_learn_between_its_knots():
    probability, label = drawn(200)
    reference = IsotonicRegression(out_of_bounds="clip").fit(probability, label)
    grid = np.linspace(0, 1, 301)
    assert np.allclose(fit_curve(probability, label, "isotonic")(grid), reference.predict(grid))


def test_curves_refuse_what_they_cannot_be_fitted_on():
    for probability, label, message in (
        ([0.1, 0.2], [1.0, 1.0], "2 positive and 0 negative"),
        ([0.1, math.nan], [1.0, 0.0], "probability: expected numbers"),
        ([0.1, 0.2], [1.0, 2.0], "label: expected numbers"),
        ([], [], "probability: expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_curve(np.array(probability, float), np.array(label, float), "platt")
