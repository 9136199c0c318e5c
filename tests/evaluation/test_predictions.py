"""Predictions of an episode, and what is derived from all of them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from guerdon.evaluation.predictions import MODEL, MetricContext, Prediction, by_task, quality_levels

from .scripted import scored


def test_order_and_final_score():
    rising = Prediction(values=np.array([0.0, 0.2, 0.9]), score=0.4, total=1.0)
    assert rising.order == pytest.approx(1.0) and rising.final_score == 0.4
    assert replace(rising, final=0.9).final_score == 0.9
    assert replace(rising, values=np.array([3.0, 2.0, 1.0])).order == pytest.approx(-1.0)
    assert math.isnan(replace(rising, values=np.zeros(3)).order)
    assert math.isnan(replace(rising, values=np.zeros(1)).order)


def test_orders_of_qualities():
    assert quality_levels({"expert", "random"}) == {"random": 0, "expert": 3}
    assert quality_levels({"better", "worse", "odd"}) == {"worse": 0, "better": 2}
    assert quality_levels({"1", "2.5"}) == {"1": 1, "2.5": 2.5}
    assert quality_levels({"poor", "fine"}, ["poor", "fair", "fine"]) == {"poor": 0, "fine": 2}
    assert quality_levels(set()) == {}
    with pytest.raises(ValueError, match="none of the qualities good occurs: expected some of fine, poor"):
        quality_levels({"poor", "fine"}, ["good"])
    with pytest.raises(ValueError, match="each quality once"):
        quality_levels({"poor"}, ["poor", "poor"])


def test_a_threshold_is_half_for_probabilities_and_undefined_for_other_scores():
    assert MetricContext.of(scored([0.9, math.nan], [1, 0])).threshold == 0.5
    assert math.isnan(MetricContext.of(scored([0.9, 1.1], [1, 0])).threshold)
    assert MetricContext.of(scored([0.9, 1.1], [1, 0]), threshold=3).threshold == 3


def test_values_should_rise_in_successes_or_everywhere_where_nothing_is_labelled():
    rows = scored([0.9, 0.6, 0.2, 0.1], [1, 0.5, 0.4, math.nan])
    context = MetricContext.of(rows)
    assert [e.episode for e in context.rising(rows)] == [0, 1] and [e.episode for e in context.failed(rows)] == [2]
    unlabelled = scored([0.9, 0.6], [math.nan, math.nan])
    assert len(MetricContext.of(unlabelled).rising(unlabelled)) == 2


def test_calibration_is_of_single_observations_where_one_is_labelled():
    rows = scored([0.9, 0.6], [1, 0])
    assert not MetricContext.of(rows).per_observation
    labelled = replace(rows[0].predictions[MODEL], probability=np.array([0.5]), label=np.array([1.0]))
    rows[0] = replace(rows[0], predictions={MODEL: labelled})
    assert MetricContext.of(rows).per_observation


def test_tasks_come_in_order_of_their_first_episode():
    rows = scored([0.1] * 4, [1] * 4, [7, 2, 7, 5])
    assert {task: [e.episode for e in group] for task, group in by_task(rows).items()} == {7: [0, 2], 2: [1], 5: [3]}
    assert list(by_task(rows)) == [7, 2, 5]
