"""The metrics of a critic over logged episodes, and the JSON they are written as."""

import json
import math

import numpy as np
import pytest

from guerdon.critics.value import ValueCritic
from guerdon.datasets.episodes import BadEpisodeError
from guerdon.evaluation.critics.evaluate import EvaluationSubject, evaluate_critic, read_values
from guerdon.evaluation.critics.logs import LoggedValues, LogReader
from guerdon.rewards.step_cost import StepCost

WHO = EvaluationSubject(model={"path": "critic"}, reward="step cost", split="val", version="9")


@pytest.fixture
def reader(logs):
    return LogReader(
        ValueCritic(12, hidden=(8,), gamma=0.9).eval(),
        StepCost(failure_cost=1.0, scale=1.0, gamma=0.9),
        logs,
        [1, 2, 3, 4],
    )


def episode(number, v, success, q=None, members=None, source=0, returns=None, replan=None):
    v = np.array(v, float)
    given = [np.full(len(v), math.nan) if values is None else np.array(values, float) for values in (returns, None)]
    return LoggedValues(
        place=number, episode=number, success=success, source=source, v=v, returns=given[0],
        q=None if q is None else np.array(q, float), members=None if members is None else np.array(members, float),
        residual=np.arange(len(v), dtype=float), replan=None if replan is None else np.array(replan, bool),
    )  # fmt: skip


def test_values_along_the_episodes_by_hand(reader):
    found = [
        episode(0, [0.0, 2.0, 1.0], 1.0, q=[1.0, 1.0, 4.0]),
        episode(1, [2.0, 4.0], 1.0, q=[3.0, 0.0]),
        episode(2, [5.0, 1.0], 0.0, q=[1.0, 1.0], source=7),
        episode(3, [1.0], None, q=[2.0]),
    ]
    result = evaluate_critic(found, reader, WHO, bad=[BadEpisodeError(8, "video", "cut short")], notes=["a remark"])
    success = result.along["success"]
    assert list(result.along) == ["success", "failure", "unknown"]
    assert (success.episodes, success.v_start, success.v_end) == (2, 1.0, 2.5)
    assert (success.q_start, success.q_end) == (2.0, 2.0)
    assert success.drop == pytest.approx((-1.0 + 2.0) / 2)  # the end minus the maximum before: 1 − 2 and 4 − 2
    assert result.along["failure"].drop == -4.0
    assert result.counts == {
        "episodes": 4, "steps": 8, "success": 2, "failure": 1, "unknown": 1, "known": 0, "bad": 1,
    }  # fmt: skip
    assert {source: r.n for source, r in result.residuals.items()} == {0: 6, 7: 2}
    assert result.residuals[7].mean == 0.5 and result.gamma == 0.9
    assert result.notes[0] == "a remark" and "no return of the log is known" in result.notes[1]
    assert (result.model, result.reward, result.split, result.version) == ({"path": "critic"}, "step cost", "val", "9")
    assert result.bad == ({"episode": 8, "status": "video", "reason": "cut short"},)


def test_predictions_are_compared_with_known_returns_only(reader):
    returns = [-1.0, -2.0, math.nan]
    found = [episode(0, [-1.0, -2.0, 50.0], 1.0, returns=returns), episode(1, [-3.0], 0.0, returns=[-3.0])]
    result = evaluate_critic(found, reader, WHO)
    assert (result.v.rank.value, result.v.rank.n) == (1.0, 3)
    assert result.v.calibration.slope == pytest.approx(1.0) and result.v.calibration.mean_error == 0.0
    assert result.q is None and result.members == 0 and math.isnan(result.weight_share)


def test_members_and_weights(reader):
    members = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    one = episode(0, [0.0, 0.0, 0.0], 1.0, q=[1.0, 1.0, 1.0], members=members, returns=[1.0, 2.0, 3.0])
    result = evaluate_critic([one], reader, WHO)
    assert result.members == 2 and result.member_correlation == pytest.approx(1.0)
    assert result.weight_share == 1.0  # advantages that are all equal weigh alike
    other = episode(0, [0.0, 0.0, 0.0], 1.0, q=[1.0, 0.0, -5.0])
    assert 0 < evaluate_critic([other], reader, WHO).weight_share < 1


def test_chunks_past_replans_are_counted_where_the_logs_record_them(reader, monkeypatch):
    monkeypatch.setattr(LogReader, "horizon", 2)
    silent, flagged = episode(0, [0.0] * 3, 1.0), episode(1, [0.0] * 4, 1.0, replan=[1, 0, 1, 0])
    assert evaluate_critic([flagged], reader, WHO).spanning == pytest.approx(1 / 4)  # the chunk from step 1
    assert math.isnan(evaluate_critic([silent, flagged], reader, WHO).spanning)
    none = episode(0, [0.0] * 3, 1.0, replan=[0, 0, 0])
    assert math.isnan(evaluate_critic([none], reader, WHO).spanning)


def test_the_json_has_the_keys_that_scripts_read_and_null_for_the_unknown(reader):
    result = evaluate_critic([episode(0, [0.0, 1.0], None)], reader, WHO).to_json()
    assert set(result) == {
        "kind", "model", "policy", "reward", "gamma", "data", "split", "version", "counts", "along", "v", "q",
        "residuals", "members", "member_correlation", "error_correlation", "spread_error", "spanning", "weight_share",
        "rolled_out", "notes", "bad",
    }  # fmt: skip
    assert result["kind"] == "critic"
    assert set(result["along"]["unknown"]) == {"episodes", "v_start", "v_end", "q_start", "q_end", "drop"}
    assert set(result["v"]) == {"rank", "calibration"} and set(result["v"]["rank"]) == {"value", "low", "high", "n"}
    assert result["v"]["rank"]["value"] is None and result["weight_share"] is None
    json.dumps(result, allow_nan=False)


def test_episodes_are_read_in_order_whatever_the_batches(reader, logs):
    one, many = (read_values(reader, "", size, {}) for size in (1, 8))
    assert [found.place for found in one] == [found.place for found in many] == list(range(len(logs)))
    for mine, other in zip(one, many, strict=True):
        assert mine.v == pytest.approx(other.v, abs=1e-5)
    with pytest.raises(ValueError, match="at least one episode at once, got 0"):
        read_values(reader, "", 0, {})
