"""Success rates and differences from outcomes, by hand."""

import json
import math

import pytest

from guerdon.core.intervals import wilson_interval
from guerdon.evaluation.aggregate import episodes_to_tell, sign_test
from guerdon.evaluation.policies.outcomes import Outcome
from guerdon.evaluation.policies.results import PairedResult, PolicyEvaluation, TaskResult


def outcomes(flags, task="a", policy="model"):
    return [
        Outcome(
            policy=policy, task=task, place=place, context=f"{task}#0.{place}", index=place, split="eval", task_seed=0,
            seed=0, success=bool(flag), steps=10 if flag else 50, reward=float(flag) - 2, end="success",
        )
        for place, flag in enumerate(flags)
    ]  # fmt: skip


def evaluation(found, against=None):
    return PolicyEvaluation.of(found, {"path": "m"}, against, {"seed": 0}, {"torch": "2"}, "cpu")


def test_one_task():
    result = TaskResult.of("a", "model", outcomes([1, 0, 1, 1]))
    assert (result.episodes, result.successes, result.success.value) == (4, 3, 0.75)
    assert (result.success.low, result.success.high) == wilson_interval(3, 4)
    assert (result.steps, result.steps_of_successes, result.reward) == (20.0, 10.0, -1.25)
    assert result.to_tell == episodes_to_tell(0.05, 0.75)
    never = TaskResult.of("a", "model", outcomes([0, 0]))
    assert math.isnan(never.steps_of_successes) and never.success.value == 0


def test_the_same_starts_are_paired_whatever_their_order():
    one, two = [1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0]
    mixed = outcomes(one) + outcomes(two, policy="against")[::-1]
    found = evaluation(mixed, {"path": "o"})
    (paired,) = found.paired
    assert paired.difference.value == pytest.approx(1 / 6)
    assert (paired.wins, paired.losses) == (2, 1) and paired.p_value == sign_test(2, 1) == 1.0
    assert paired.difference.low < 1 / 6 < paired.difference.high
    assert not found.interquartile_mean and found.improvement is None


def test_equal_policies_do_not_differ():
    found = PairedResult.of("a", [[0, 1, 1]], [[0, 1, 1]])
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert (found.wins, found.losses, found.p_value) == (0, 0, 1.0)


def test_several_tasks_have_aggregates():
    rates = {"a": [1, 1, 1, 1], "b": [1, 0, 1, 0], "c": [0, 0, 1, 1], "d": [0, 0, 0, 0]}
    worse = {"a": [1, 1, 1, 1], "b": [1, 0, 0, 0], "c": [0, 0, 1, 0], "d": [0, 0, 0, 1]}
    mixed = [o for name in rates for o in outcomes(rates[name], name) + outcomes(worse[name], name, "against")]
    found = evaluation(mixed, {"path": "o"})
    # rates 1, ½, ½, 0: the middle half is ½, ½; the other's 1, ¼, ¼, ¼: the middle half is ¼, ¼
    assert found.interquartile_mean["model"].value == 0.5
    assert found.interquartile_mean["against"].value == 0.25
    # a is a tie, b and c are better, d is worse
    assert found.improvement is not None and found.improvement.value == (0.5 + 1 + 1 + 0) / 4
    assert found.improvement.low <= found.improvement.value <= found.improvement.high
    assert [result.task for result in found.paired] == ["a", "b", "c", "d", ""]
    total = found.paired[-1]
    assert total.difference.value == pytest.approx((0 + 0.25 + 0.25 - 0.25) / 4)
    assert (total.wins, total.losses, total.episodes) == (2, 1, 16)


def test_results_are_json():
    found = evaluation(outcomes([0]))
    kept = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert kept["tasks"][0]["steps_of_successes"] is None and kept["outcomes"][0]["context"] == "a#0.0"
    assert kept["against"] is None and kept["paired"] == []
