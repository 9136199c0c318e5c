"""Rules of the metrics: by hand, and equal to the metrics of core where every episode counts once."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import Labelled
from guerdon.core.metrics import (
    average_precision,
    expected_calibration_error,
    false_positive_rate,
    pairwise_accuracy,
    quality_ranking,
    robometer_tau_a,
    success_auroc,
)
from guerdon.evaluation.evaluate import METRICS, MODEL, EvaluationSettings, evaluate
from guerdon.evaluation.predictions import EpisodePredictions, MetricContext, Prediction
from guerdon.evaluation.resampling import Resampling, metric_values

from .scripted import FEW, Scripted, episodes, run, scored, value

numbers = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 1.0, math.nan])), min_size=2, max_size=12
)
ranked = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["random", "noisy", "expert"]), st.integers(0, 1)),
    min_size=1,
    max_size=9,
)


def metrics_of(rows, threshold=None):
    """Every metric of the model, without intervals that matter."""
    resampling = Resampling(samples=5, seed=0, by_task=False)
    return metric_values(METRICS, rows, MODEL, MetricContext.of(rows, threshold), resampling)


# --- discrimination -------------------------------------------------------------------------------------------------


@given(rows=numbers)
def test_discrimination_and_calibration_equal_the_core_metrics(rows):
    found = evaluate(scored([v for v, _ in rows], [s for _, s in rows]), settings=EvaluationSettings(samples=20))
    score, success = np.array([v for v, _ in rows]), np.array([s for _, s in rows])
    for key, wanted in (
        ("success_auroc", success_auroc(score, success)),
        ("pairwise_accuracy", pairwise_accuracy(score, success)),
        ("calibration_error", expected_calibration_error(score, success)),
    ):
        got = found.metrics[MODEL][key]
        assert got.value == pytest.approx(wanted, nan_ok=True)
        if not math.isnan(got.low):
            assert 0 <= got.low <= got.high <= 1
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["figures"][MODEL]["success_auroc"]["n"] <= len(rows)


@given(rows=numbers, threshold=st.sampled_from([0.25, 0.4, 1.0]))
def test_precision_and_false_positives_equal_the_core_metrics(rows, threshold):
    score, success = [v for v, _ in rows], [s for _, s in rows]
    found = metrics_of(scored(score, success), threshold)
    assert found.success_auprc.value == pytest.approx(average_precision(score, success), nan_ok=True)
    wanted = false_positive_rate(score, success, threshold)
    assert found.false_positive_rate.value == pytest.approx(wanted, nan_ok=True)


def test_precision_and_rates_at_a_threshold_by_hand():
    # scores 0.9 s, 0.6 f, 0.5 s, 0.2 f: precision 1 at recall ½, 2/3 at recall 1
    rows = scored([0.9, 0.6, 0.5, 0.2], [1, 0, 1, 0])
    found = metrics_of(rows)
    assert found.success_auprc.value == pytest.approx((1 + 2 / 3) / 2) and found.success_auprc.chance == 0.5
    assert (found.false_positive_rate.value, found.true_positive_rate.value) == (0.5, 1.0)
    strict = metrics_of(rows, threshold=0.7)
    assert (strict.false_positive_rate.value, strict.true_positive_rate.value) == (0.0, 0.5)


def test_a_summed_reward_has_no_threshold_of_its_own():
    found = evaluate(scored([9.0, -3.0], [1, 0]), settings=FEW)
    assert math.isnan(found.threshold) and math.isnan(value(found, MODEL, "false_positive_rate"))
    given_one = evaluate(scored([9.0, -3.0], [1, 0]), settings=EvaluationSettings(threshold=1, samples=50))
    assert value(given_one, MODEL, "true_positive_rate") == 1.0


def test_partial_success_is_graded_in_pairs_and_split_at_a_half_for_auroc():
    found = metrics_of(scored([0.9, 0.95, 0.1], [1.0, 0.6, 0.2]))
    assert found.success_auroc.value == 1.0  # 0.9 and 0.95 above 0.1
    assert found.pairwise_accuracy.value == pytest.approx(2 / 3)  # 1 > 0.6 is ordered wrongly


def test_ties_are_counted_where_pairs_are():
    # successes 0.5, 0.5 and failures 0.5, 0.1: of four pairs two tie
    found = metrics_of(scored([0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0]))
    assert found.tie_rate.value == 0.5 and found.pairwise_accuracy.value == 0.75


# --- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_order_on_failures_tells_a_clock_from_a_model_that_looks():
    batch = episodes([1, 0, 1, 0])
    batch.state[1, :, 0] = batch.state[1, :, 0].flip(0)  # a failure that goes back
    found = run(Scripted("blind"), batch)
    assert value(found, MODEL, "value_order_failures") == pytest.approx(0.0)  # −1 and 1
    clock = run(Scripted("clock"), batch)
    assert value(clock, MODEL, "value_order_failures") == pytest.approx(1.0)
    assert value(clock, "clock", "value_order_failures") == pytest.approx(1.0)
    nothing = run(Scripted("blind"), episodes([1, 1]))
    assert math.isnan(value(nothing, MODEL, "value_order_failures"))


# --- calibration and progress ---------------------------------------------------------------------------------------


def test_a_summed_reward_is_not_calibrated_against_outcomes():
    error = metrics_of(scored([9.0, 0.5, -3.0], [1, 0, 0])).calibration_error
    assert error.value == 0.5 and (error.n, error.n_undefined) == (1, 2)


@pytest.mark.slow
def test_progress_error_is_known_for_successes_or_where_it_is_recorded():
    found = run(Scripted("constant"), episodes([1, 0]))
    # the constant 0.3 against 0 ¼ ½ ¾ 1: (0.3 + 0.05 + 0.2 + 0.45 + 0.7) / 5; the control is their mean, ½: 1.5 / 5
    error = found.metrics[MODEL].progress_error
    assert error.value == pytest.approx(0.34) and (error.n, error.n_undefined) == (1, 1)
    assert value(found, "constant", "progress_error") == pytest.approx(0.3)
    assert value(found, "clock", "progress_error") == pytest.approx(0.0)
    stored = Labelled(values=torch.full((2, 5), 0.3), valid=torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
    recorded = run(Scripted("constant"), replace(episodes([None, 0]), labels={"progress": stored}))
    assert value(recorded, MODEL, "progress_error") == pytest.approx(0.0, abs=1e-6)
    assert value(recorded, "clock", "progress_error") == pytest.approx((0.45 + 0.7) / 2)
    assert recorded.metrics[MODEL].progress_error.n == 1


# --- instructions ---------------------------------------------------------------------------------------------------


def test_paired_accuracy_and_auroc_of_instructions_are_two_things():
    def one(episode, right, wrong):
        ends = {MODEL: right, "wrong_instruction": wrong}
        predictions = {k: Prediction(values=np.arange(3.0), score=v, total=v, final=v) for k, v in ends.items()}
        return EpisodePredictions(episode=episode, task=episode, instruction="", success=1.0, predictions=predictions)

    # each video prefers its own instruction, but an easy video under the wrong one outranks a hard one under its own
    found = metrics_of([one(0, 0.9, 0.8), one(1, 0.3, 0.2)])
    assert found.instruction_accuracy.value == 1.0
    assert found.instruction_auroc.value == 0.75  # of 0.9, 0.3 against 0.8, 0.2: 0.3 < 0.8 only
    assert found.instruction_auroc.chance == 0.5


# --- quality --------------------------------------------------------------------------------------------------------


@given(rows=ranked)
def test_quality_rankings_equal_the_core_metrics(rows):
    scores, names, tasks = ([row[i] for row in rows] for i in range(3))
    found = metrics_of(scored(scores, [1] * len(rows), tasks, names))
    level = [{"random": 0, "noisy": 2, "expert": 3}[name] for name in names]
    for key, metric in (("quality_ranking", quality_ranking), ("robometer_tau_a", robometer_tau_a)):
        assert found[key].value == pytest.approx(metric(scores, level, tasks), nan_ok=True)
