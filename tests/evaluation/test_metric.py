"""A metric, its values and its titles."""

import json
import math

import numpy as np
import pytest

from guerdon.core.intervals import Estimate
from guerdon.evaluation.metric import MetricValue, MetricValues, Title, mean_sample

from .scripted import scored


def test_a_mean_of_episodes_by_hand():
    rows = scored([0, 0, 0], [1, 1, 1])
    found = mean_sample(rows, [1.0, math.nan, 4.0], as_zero=True, chance=0.5)
    assert [e.episode for e in found.episodes] == [0, 2] and found.missing == 1
    assert found.value == 2.5 and found.as_zero == pytest.approx(5 / 3) and found.chance == 0.5
    assert found.compute(np.array([[1.0, 1], [3, 1], [0, 0]])).tolist()[:2] == [2.5, 1.75]
    assert math.isnan(found.compute(np.array([[0.0, 0]]))[0]), "no episode, no mean"
    nothing = mean_sample(rows, [math.nan] * 3, as_zero=True)
    assert math.isnan(nothing.value) and nothing.as_zero == 0
    assert math.isnan(mean_sample([], [], as_zero=True).as_zero)


def test_values_survive_json():
    found = MetricValue(
        value=0.5, low=0.25, high=0.75, n=4, n_undefined=1, undefined_as_zero=0.4, chance=0.5, tasks=2,
        macro=Estimate(value=0.6, low=0.1, high=0.9),
    )  # fmt: skip
    assert MetricValue.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_an_older_file_lacks_is_undefined():
    found = MetricValue.from_json({"value": None, "n": 3})
    assert found.n == 3 and found.tasks == 0
    assert all(math.isnan(x) for x in (found.value, found.low, found.chance, found.macro.value, found.macro.high))


def test_values_by_key_and_by_attribute():
    values = MetricValues({"success_auroc": MetricValue(value=0.5)})
    assert values.success_auroc is values["success_auroc"]
    with pytest.raises(AttributeError, match="no metric 'sucess_auroc': expected one of success_auroc"):
        _ = values.sucess_auroc


def test_titles():
    value = MetricValue(value=0.5, n=3, chance=0.25)
    assert Title(text="a").of(value, 0.5, True) == "a"
    assert Title(text="rate", with_threshold=True).of(value, 0.5, False) == "rate at 0.5"
    assert Title(text="rate", with_threshold=True).of(value, math.nan, False) == "rate"
    assert Title(text="area", with_chance=True).of(value, 0.5, False) == "area (chance 0.25)"
    assert Title(text="area", with_chance=True).of(MetricValue(value=0.5), 0.5, False) == "area"
    named = Title(text="order, successes", unlabelled="order, unlabelled")
    assert (named.of(value, 0.5, True), named.of(value, 0.5, False)) == ("order, unlabelled", "order, successes")
