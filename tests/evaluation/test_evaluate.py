"""Evaluations of models whose metrics are known by hand: perfect, clock, constant, blind to instructions."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from guerdon.core.metrics import instruction_margin
from guerdon.evaluation.controls import OtherTasks, predict_episodes, with_constant
from guerdon.evaluation.evaluate import CONTROLS, METRICS, MODEL, EvaluationSettings, Provenance, evaluate
from guerdon.evaluation.metric import Metric, Title, mean_sample

from .scripted import FEW, TASKS, Scripted, episodes, matrix_of, run, scored, value


def test_a_perfect_model():
    found = run(Scripted("perfect"), episodes([1, 0, 1, 0], tasks=[0, 0, 1, 1]))
    assert value(found, MODEL, "value_order_correlation") == pytest.approx(1.0)
    assert value(found, MODEL, "success_auroc") == 1.0
    assert value(found, MODEL, "pairwise_accuracy") == 1.0
    # success probability 1 exactly at the last observation of a success, as the labels have it
    assert value(found, MODEL, "calibration_error") == 0.0
    # under the other task's instruction every value is 0
    assert value(found, MODEL, "instruction_accuracy") == 1.0
    assert math.isnan(value(found, "wrong_instruction", "value_order_correlation"))
    assert value(found, "wrong_instruction", "success_auroc") == 0.5
    # played in reverse: values 1, ¾, ½, ¼, 0 fall all along, and both outcomes end at 0
    assert value(found, "reversed", "value_order_correlation") == pytest.approx(-1.0)
    assert value(found, "reversed", "success_auroc") == 0.5
    assert found.counts == {
        "episodes": 4, "bad": 0, "tasks": 2, "successes": 2, "failures": 2, "partial": 0, "unknown": 0,
    }  # fmt: skip
    assert set(found.metrics) == {MODEL, *CONTROLS}


def test_a_clock_model_is_told_from_a_perfect_one_by_its_controls():
    found = run(Scripted("clock", success=False), episodes([1, 0, 1, 0]))
    for name in (MODEL, "clock", "reversed", "shuffled"):  # it never looks
        assert value(found, name, "value_order_correlation") == pytest.approx(1.0)
        assert value(found, name, "success_auroc") == 0.5
        assert value(found, name, "pairwise_accuracy") == 0.5
    # predicts 1 at every end, half of the episodes failed: |1 − ½|
    assert value(found, MODEL, "calibration_error") == pytest.approx(0.5)


def test_a_constant_model_has_no_order_and_that_is_counted():
    found = run(Scripted("constant"), episodes([1, 1, 0]))
    order = found.metrics[MODEL].value_order_correlation
    assert math.isnan(order.value) and (order.n, order.n_undefined) == (0, 2)
    assert order.undefined_as_zero == 0.0
    assert value(found, MODEL, "success_auroc") == 0.5


def test_the_constant_and_clock_controls_by_hand():
    found = run(Scripted("perfect"), episodes([1, 0], length=4))
    assert value(found, "constant", "success_auroc") == 0.5
    assert value(found, "constant", "calibration_error") == pytest.approx(0.0)
    # labels: 0 0 0 0 1 and 0 0 0 0 0 against 0 ¼ ½ ¾ 1 twice; bins by value: sums of (p − y) are
    # 0, 2·¼, 2·½, 2·¾, 2·1 − 1 over 10 observations: (0 + 0.5 + 1 + 1.5 + 1) / 10
    assert value(found, "clock", "calibration_error") == pytest.approx(0.4)


def test_a_model_blind_to_instructions_ties_on_every_episode():
    found = run(Scripted("blind"), episodes([1, 1, 0], tasks=[0, 1, 1]))
    accuracy = found.metrics[MODEL].instruction_accuracy
    assert accuracy.value == 0.5 and accuracy.n == 2  # successes only
    assert value(found, "wrong_instruction", "value_order_correlation") == pytest.approx(1.0)


def test_unknown_outcomes_leave_the_others_alone():
    known = run(Scripted("blind"), episodes([1, 0, 1]))
    mixed = run(Scripted("blind"), episodes([1, 0, 1, None]))
    for key in ("value_order_correlation", "success_auroc", "pairwise_accuracy", "calibration_error"):
        assert value(mixed, MODEL, key) == value(known, MODEL, key)
    assert mixed.metrics[MODEL].success_auroc.n_undefined == 1


def test_qualities_and_repeated_last_observations():
    batch = replace(episodes([1, 0]), last_observed=torch.tensor([False, True]))
    others = OtherTasks(instructions=TASKS)
    found = with_constant(predict_episodes(Scripted("blind"), batch, others, ["expert", "aborted"]))
    evaluation = evaluate(found)
    # the repeated observation is no evidence: the success ends at its fourth observation, ¾
    assert {q.quality: q.final.value for q in evaluation.qualities} == {"aborted": 0.5, "expert": 0.75}
    assert [q.quality for q in evaluation.qualities] == ["expert", "aborted"], "best first"
    assert len(found[0].predictions[MODEL].values) == 4


def test_no_episode_is_an_error_that_names_the_first_bad_one():
    bad = [{"episode": 3, "status": "video", "reason": "truncated"}]
    with pytest.raises(ValueError, match=r"got none \(1 could not be read, the first: truncated\)"):
        evaluate([], provenance=Provenance(bad=bad))


def test_what_is_shown_about_model_and_data_is_kept():
    shown = Provenance(model={"hash": "abc"}, data="logs", split="val", bad=[{"episode": 3}])
    found = evaluate(scored([0.9, 0.1], [1, 0]), {"pairs": "x", "own": "y"}, FEW, shown)
    assert (found.model, found.data, found.split, found.bad) == ({"hash": "abc"}, "logs", "val", ({"episode": 3},))
    assert found.counts["bad"] == 1 and found.version
    assert found.conventions["own"] == "y" and found.conventions["pairs"].startswith("of one task")


# --- threshold ------------------------------------------------------------------------------------------------------


def test_a_threshold_is_stated_where_there_is_one():
    found = evaluate(scored([0.9, 0.6, 0.5, 0.2], [1, 0, 1, 0]), settings=FEW)
    assert found.threshold == 0.5 and "at least 0.5" in found.conventions["called a success"]
    without = evaluate(scored([9.0, -3.0], [1, 0]), settings=FEW)
    assert math.isnan(without.threshold) and "called a success" not in without.conventions
    given = evaluate(scored([9.0, -3.0], [1, 0]), settings=EvaluationSettings(threshold=1, samples=50))
    assert given.threshold == 1 and value(given, MODEL, "true_positive_rate") == 1.0


def test_an_order_of_qualities_is_stated_and_used():
    rows = scored([0.1, 0.9, 0.5], [1, 1, 1], qualities=["poor", "fine", ""])
    assert "qualities" not in evaluate(rows, settings=FEW).conventions
    found = evaluate(rows, settings=EvaluationSettings(quality_order=["poor", "fine"], samples=50))
    assert value(found, MODEL, "quality_ranking") == 1.0
    assert found.conventions["qualities"].startswith("poor < fine")


# --- the instruction matrix -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_instruction_matrix_and_its_margin():
    batch = episodes([1, 1, 1, 0], tasks=[0, 0, 1, 1])
    others = OtherTasks(instructions=TASKS)
    matrix = matrix_of(batch, [0, 1, 2])
    predicted = with_constant(predict_episodes(Scripted("perfect"), batch, others, matrix=matrix))
    found = evaluate(predicted, instructions=TASKS)
    assert found.confusion is not None and found.confusion.cells == ((1.0, 0.0), (0.0, 1.0))
    assert found.confusion.counts == ((2, 1), (2, 1)) and found.confusion.missing == ()
    margin = found.metrics[MODEL].instruction_margin
    assert margin.value == instruction_margin(found.confusion.cells) == 1.0 and (margin.n, margin.tasks) == (3, 2)
    assert value(found, "clock", "instruction_margin") == value(found, "constant", "instruction_margin") == 0.5
    blind = with_constant(predict_episodes(Scripted("blind"), batch, others, matrix=matrix_of(batch)))
    assert value(evaluate(blind), MODEL, "instruction_margin") == 0.5


def test_missing_cells_are_named_and_never_zero():
    rows = [
        replace(e, under_instruction=u)
        for e, u in zip(scored([0.5, 0.5], [1, 1], [0, 1]), [{0: 0.2, 1: math.nan}, {}], strict=True)
    ]
    found = evaluate(rows, instructions=TASKS)
    assert found.confusion is not None and math.isnan(found.confusion.cells[1][0])
    assert found.confusion.missing == (
        "videos of 'open the drawer' have no score under 'close the drawer'",
        "no video of 'close the drawer' was evaluated",
    )
    assert found.to_json()["confusion"]["cells"] == [[0.2, None], [None, None]]
    assert math.isnan(value(found, MODEL, "instruction_margin"))


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_every_task_counts_the_same_in_the_mean_of_tasks():
    # task 0 holds four episodes ordered rightly, task 1 two ordered wrongly: pooled pairs (4 + 0) / 5, by task ½
    found = evaluate(scored([0.9, 0.8, 0.2, 0.1, 0.3, 0.6], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]), settings=FEW)
    pairs = found.metrics[MODEL].pairwise_accuracy
    assert pairs.value == pytest.approx(0.8) and pairs.macro.value == 0.5 and pairs.tasks == 2
    assert [t.metrics.pairwise_accuracy.value for t in found.tasks] == [1.0, 0.0]
    # a task of one outcome has no AUROC and is not in the mean
    lone = evaluate(scored([0.9, 0.1, 0.5], [1, 0, 1], [0, 0, 1]), settings=FEW).metrics[MODEL].success_auroc
    assert lone.macro.value == 1.0 and lone.tasks == 1
    single = evaluate(scored([0.9, 0.1, 0.5], [1, 0, 1]), settings=FEW).metrics[MODEL].success_auroc
    assert (single.macro.value, single.macro.low, single.macro.high) == (single.value, single.low, single.high)


def test_pairs_are_formed_inside_tasks_only():
    # task 0: 0.2 (success) > 0.1 (failure); task 1: 0.9 > 0.8. Across tasks 0.2 (success) < 0.8 (failure)
    found = evaluate(scored([0.2, 0.1, 0.9, 0.8], [1, 0, 1, 0], [0, 0, 1, 1]))
    assert value(found, MODEL, "pairwise_accuracy") == 1.0
    assert value(found, MODEL, "success_auroc") == 0.75
    assert [t.metrics.success_auroc.value for t in found.tasks] == [1.0, 1.0]


# --- JSON -----------------------------------------------------------------------------------------------------------

KEYS = {
    "model", "data", "split", "version", "counts", "bad", "conventions", "figures", "tasks", "qualities", "notes",
    "threshold", "reliability", "confusion", "comparison",
}  # fmt: skip
METRIC_KEYS = {
    "value_order_correlation", "success_auroc", "pairwise_accuracy", "calibration_error", "instruction_accuracy",
    "instruction_auroc", "value_order_failures", "success_auprc", "false_positive_rate", "true_positive_rate",
    "tie_rate", "progress_error", "instruction_margin", "quality_ranking", "robometer_tau_a",
}  # fmt: skip
VALUE_KEYS = {
    "value", "low", "high", "n", "n_undefined", "undefined_as_zero", "chance", "macro", "macro_low", "macro_high",
    "tasks",
}  # fmt: skip


def test_json_keeps_its_keys():
    """Scripts read these names; they are those of version 0.1."""
    batch = episodes([1, 0, 1, None], tasks=[0, 0, 1, 1])
    others, matrix = OtherTasks(instructions=TASKS), matrix_of(batch)
    rows = with_constant(predict_episodes(Scripted(), batch, others, ["expert", "random", "noisy", ""], matrix=matrix))
    found = json.loads(json.dumps(evaluate(rows, settings=FEW, against=rows).to_json(), allow_nan=False))
    assert set(found) == KEYS
    assert set(found["figures"]) == {MODEL, *CONTROLS}
    for values in (*found["figures"].values(), *(task["figures"] for task in found["tasks"])):
        assert set(values) == METRIC_KEYS and all(set(value) == VALUE_KEYS for value in values.values())
    assert {key for task in found["tasks"] for key in task} == {"task", "instruction", "episodes", "figures"}
    assert {key for row in found["qualities"] for key in row} == {"quality", "final"}
    assert set(found["qualities"][0]["final"]) == VALUE_KEYS
    assert set(found["reliability"]) == {"probability", "happened", "count"}
    assert set(found["confusion"]) == {"tasks", "instructions", "cells", "counts", "missing"}
    comparison = found["comparison"]
    assert set(comparison) == {"model", "episodes", "left_out", "differences"}
    assert set(comparison["differences"]) == METRIC_KEYS - {"tie_rate"} | {"value_order_reversed"}
    assert {key for one in comparison["differences"].values() for key in one} == {
        "first", "second", "difference", "low", "high", "n", "better",
    }  # fmt: skip


def test_json_holds_the_reliability_curve():
    found = json.loads(json.dumps(run(Scripted("perfect"), episodes([1, 0, 1])).to_json(), allow_nan=False))
    curve = found["reliability"]
    # 15 observations: 13 predicted 0 and were so, 2 predicted 1 and were so
    assert curve["count"][0] == 13 and curve["count"][-1] == 2 and sum(curve["count"]) == 15
    assert (curve["probability"][0], curve["happened"][-1], curve["probability"][5]) == (0.0, 1.0, None)
    error = sum(
        c * abs(p - h) for p, h, c in zip(curve["probability"], curve["happened"], curve["count"], strict=True) if c
    )
    assert error / 15 == pytest.approx(found["figures"][MODEL]["calibration_error"]["value"])


def test_metrics_keep_the_name_they_had():
    found = evaluate(scored([0.9, 0.1, 0.8, 0.3], [1, 0, 1, 0], [0, 0, 1, 1]), settings=FEW)
    assert found.figures is found.metrics and found.tasks[0].figures is found.tasks[0].metrics


# --- a metric of one's own ------------------------------------------------------------------------------------------


def test_a_metric_is_one_rule_and_one_entry():
    """Nothing else is edited: values, tasks, comparison and JSON take it from the list of metrics."""

    def longest(rows, name, context):
        return mean_sample(rows, [float(len(e.predictions[name].values)) for e in rows])

    own = Metric(
        key="length", title=Title(text="mean length", short="length"), rule=longest, direction="lower",
        section="headline", task_tables="all",
    )  # fmt: skip
    rows = scored([0.9, 0.1, 0.8, 0.3], [1, 0, 1, 0], [0, 0, 1, 1])
    model = rows[0].predictions[MODEL]
    longer = [replace(e, predictions={MODEL: replace(model, values=np.arange(5.0))}) for e in rows]
    found = evaluate(longer, settings=FEW, against=rows, metrics=[*METRICS, own])
    assert found.metrics[MODEL].length.value == 5 and found.metrics[MODEL].length.macro.value == 5
    assert [task.metrics["length"].value for task in found.tasks] == [5, 5]
    assert found.comparison is not None
    difference = found.comparison.differences["length"]
    assert (difference.first, difference.second, difference.better) == (5, 3, "second")
    told = found.to_json()
    assert told["figures"][MODEL]["length"]["value"] == 5 and told["comparison"]["differences"]["length"]["n"] == 4
    assert any("no episode of 4 gives it a value: mean length" in note for note in _undefined(rows, own).notes)
    assert "length" not in evaluate(rows, settings=FEW).metrics[MODEL], "the list itself is as it was"


def _undefined(rows, metric):
    nothing = replace(metric, rule=lambda rows, name, context: mean_sample(rows, [math.nan] * len(rows)))
    return evaluate(rows, settings=FEW, metrics=[nothing])
