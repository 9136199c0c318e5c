"""One model against another on the same episodes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from guerdon.core.metrics import paired_bootstrap
from guerdon.evaluation.controls import OtherTasks, predict_episodes
from guerdon.evaluation.evaluate import METRICS, MODEL, evaluate
from guerdon.evaluation.predictions import EpisodePredictions, Prediction

from .scripted import FEW, Scripted, episodes, noisy, scored


def compared(first, second, **more):
    found = evaluate(first, against=second, **more).comparison
    assert found is not None
    return found


@pytest.mark.slow
def test_a_better_model_is_called_better_and_the_same_one_is_not():
    good, poor = noisy(0.05), noisy(0.5)
    found = compared(good, poor, against_model={"path": "poor"})
    assert found.model == {"path": "poor"} and (found.episodes, found.left_out) == (60, 0)
    auroc = found.differences["success_auroc"]
    assert auroc.first > auroc.second and auroc.difference == pytest.approx(auroc.first - auroc.second)
    assert 0 < auroc.low < auroc.difference < auroc.high and auroc.better == "first" and auroc.n == 60
    turned = compared(poor, good)
    assert turned.differences["success_auroc"].better == "second"
    assert turned.differences["success_auroc"].high == pytest.approx(-auroc.low)
    same = compared(good, good)
    assert all(d.better == "" and (math.isnan(d.difference) or d.low == d.high == 0) for d in same.differences.values())
    assert math.isnan(found.differences["instruction_auroc"].difference)


def test_less_is_better_where_it_is_an_error():
    sure, unsure = scored([1.0, 0.0] * 20, [1, 0] * 20), scored([0.6, 0.4] * 20, [1, 0] * 20)
    error = compared(sure, unsure).differences["calibration_error"]
    assert error.difference == pytest.approx(-0.4) and error.better == "first"
    assert compared(unsure, sure).differences["calibration_error"].better == "second"


def orders(noise, success=1.0, seed=0):
    generator = np.random.default_rng(seed)
    return [
        EpisodePredictions(
            episode=i, task=0, instruction="", success=success,
            predictions={
                MODEL: Prediction(values=np.arange(8) + noise * generator.normal(size=8), score=1.0, total=1.0)
            },
        )
        for i in range(25)
    ]  # fmt: skip


def test_a_mean_of_episodes_is_compared_by_the_paired_bootstrap():
    first, second = orders(1.0), orders(4.0, seed=1)
    one, other = ([e.predictions[MODEL].order for e in rows] for rows in (first, second))
    found = compared(first, second).differences["value_order_correlation"]
    assert (found.difference, found.low, found.high) == pytest.approx(
        paired_bootstrap(one, other, np.arange(25)), abs=1e-6
    )


def test_an_order_on_failures_is_neither_better_nor_worse():
    found = compared(orders(0.1, success=0.0), orders(9.0, success=0.0, seed=1)).differences["value_order_failures"]
    assert found.low > 0 and found.better == ""


def test_the_order_of_reversed_playback_is_compared_too():
    batch = episodes([1, 1, 1, 1])
    looks, clock = (
        predict_episodes(Scripted(kind), batch, OtherTasks(instructions={0: "open"})) for kind in ("blind", "clock")
    )
    found = compared(looks, clock, settings=FEW).differences["value_order_reversed"]
    assert (found.first, found.second) == (pytest.approx(-1.0), pytest.approx(1.0)) and found.better == "first"


def test_only_shared_episodes_are_compared():
    first, second = scored([0.9, 0.1, 0.8], [1, 0, 1]), scored([0.2, 0.7], [1, 0])
    found = compared(first, [*second, replace(second[0], episode=9)])
    assert (found.episodes, found.left_out) == (2, 2)
    assert found.differences["success_auroc"].difference == 1.0


def test_a_metric_inside_tasks_is_compared_by_task():
    names = ["expert", "random", "expert", "random"]
    right = scored([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], [0, 0, 1, 1], names)
    wrong_once = scored([0.9, 0.1, 0.2, 0.8], [1, 0, 1, 0], [0, 0, 1, 1], names)
    found = compared(right, wrong_once).differences["quality_ranking"]
    assert (found.first, found.second, found.n) == (1.0, 0.0, 4)


def test_every_metric_of_the_list_is_compared_unless_it_says_otherwise():
    found = compared(noisy(0.1), noisy(0.2), settings=FEW)
    assert list(found.differences) == [m.key for m in METRICS if m.compared]
    assert {m.key for m in METRICS if not m.compared} == {"tie_rate"}
