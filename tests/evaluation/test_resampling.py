"""Intervals of metrics: against literal bootstraps, over episodes and over tasks."""

import math

import numpy as np
import pytest

from guerdon.core.metrics import success_auroc
from guerdon.evaluation.evaluate import METRICS, MODEL, EvaluationSettings, evaluate
from guerdon.evaluation.predictions import MetricContext
from guerdon.evaluation.resampling import Resampling, mean_value, metric_values

from .scripted import scored


@pytest.mark.slow
def test_an_interval_by_a_literal_bootstrap():
    generator = np.random.default_rng(3)
    success = generator.integers(0, 2, 30).astype(float)
    score = success + generator.normal(size=30)
    found = evaluate(scored(score, success)).metrics[MODEL].success_auroc
    drawn = [success_auroc(score[i], success[i]) for i in np.random.default_rng(7).integers(30, size=(3000, 30))]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)
    assert found.low < found.value < found.high


@pytest.mark.slow
def test_the_interval_over_tasks_is_wider_than_over_episodes_of_the_same_tasks():
    generator = np.random.default_rng(0)
    tasks = np.repeat(np.arange(8), 30)
    success = generator.integers(0, 2, 240)
    skill = np.linspace(-1, 3, 8)[tasks]  # how well a task is scored differs by much
    rows = scored(success * skill + generator.normal(size=240), success, tasks.tolist())
    context = MetricContext.of(rows)
    wide, narrow = (
        metric_values(METRICS, rows, MODEL, context, Resampling(samples=400, seed=0, by_task=by_task)).success_auroc
        for by_task in (True, False)
    )
    assert wide.macro.value == narrow.macro.value
    assert wide.macro.low < narrow.macro.low < narrow.macro.value < narrow.macro.high
    assert wide.macro.high - wide.macro.low > 2 * (narrow.macro.high - narrow.macro.low)
    found = evaluate(rows, settings=EvaluationSettings(samples=400)).metrics[MODEL].success_auroc
    assert (found.macro.low, found.macro.high) == (wide.macro.low, wide.macro.high), "eight tasks are several"


def test_whole_tasks_are_resampled_where_there_are_several():
    rows = scored([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], [0, 0, 1, 1])
    by_task = Resampling(samples=50, seed=0, by_task=True)
    weights = by_task.weights(rows)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 3]).all()
    assert (weights.sum(1) == 4).all() and weights.shape == (50, 4)
    episodes = Resampling(samples=50, seed=0, by_task=False).weights(rows)
    assert not (episodes[:, 0] == episodes[:, 1]).all()


def test_one_cluster_has_no_interval():
    rows = scored([0.1, 0.3], [0, 1])
    found = mean_value(rows, [1.0, 3.0], Resampling(samples=50, seed=0, by_task=True))
    assert found.value == 2 and math.isnan(found.low)
    assert not math.isnan(mean_value(rows, [1.0, 3.0], Resampling(samples=50, seed=0, by_task=False)).low)


def test_a_mean_counts_what_it_lacks():
    found = mean_value(scored([0, 0, 0], [1, 1, 1]), [1.0, math.nan, 2.0], Resampling(samples=9, seed=0, by_task=False))
    assert (found.value, found.n, found.n_undefined, found.undefined_as_zero) == (1.5, 2, 1, 1.0)


def test_a_control_that_is_not_there_is_undefined():
    rows = scored([0.1, 0.3], [0, 1])
    resampling = Resampling(samples=9, seed=0, by_task=False)
    found = metric_values(METRICS, rows, "reversed", MetricContext.of(rows), resampling)
    assert math.isnan(found.success_auroc.value) and found.success_auroc.n_undefined == 2
