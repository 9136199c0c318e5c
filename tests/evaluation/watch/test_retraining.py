"""Retraining collects false positives, and happens when it is due and not more often."""

import math

import pytest
import torch

from guerdon.evaluation.watch.metrics import EpisodeRecord
from guerdon.evaluation.watch.push_back import Retrain
from guerdon.evaluation.watch.retraining import Retraining

from .watched_runs import Told, rollout


class Counting(Retrain):
    """Returns how many episodes there were, and their last states."""

    def __call__(self, reward, fooled):
        return {"last": fooled.state[:, -1, 0]}


def records(*scored):
    return [
        EpisodeRecord(name=f"{i}", learned=0.0, score=score, success=success, recorded=math.nan)
        for i, (score, success) in enumerate(scored)
    ]


def test_claimed_failures_are_collected_and_the_latest_kept():
    batch = rollout([0.9, 0.8, 0.1, 0.7, 0.6])
    found = records((0.9, 0.0), (0.8, 1.0), (0.1, 0.0), (0.7, math.nan), (0.6, 0.0))
    retraining = Retraining(Counting())
    retraining.collect(batch, found, 0.5)
    assert [name for name, _ in retraining.collected] == ["0", "4"]
    assert [len(row) for _, row in retraining.collected] == [1, 1]
    latest = Retraining(Counting(), keep=1)
    latest.collect(batch, found, 0.5)
    assert [name for name, _ in latest.collected] == ["4"]
    never = Retraining()
    never.collect(batch, found, 0.5)
    assert never.collected == [], "nothing is kept that nobody uses"


def test_weights_are_computed_of_all_false_positives():
    retraining = Retraining(Counting())
    fooled = {"a": rollout([0.9]), "b": rollout([0.6], steps=4)}
    assert retraining.weights(Told(), fooled)["last"].tolist() == pytest.approx([0.9, 0.6])
    assert retraining.weights(Told(), {}) is None and Retraining().weights(Told(), fooled) is None


def test_retraining_is_due_on_false_positives_until_it_was_done_often_enough():
    retraining = Retraining(Counting(), max_retrains=2)
    retraining.collect(rollout([0.9]), records((0.9, 0.0)), 0.5)
    for done in range(2):
        assert retraining.is_due(["drift", "false_positives"]) and not retraining.is_due(["drift"])
        assert retraining.retrained == done
        retraining.finish()
    assert not retraining.is_due(["false_positives"]) and retraining.collected == []
    assert not Retraining().is_due(["false_positives"])
    again = Retraining(Counting(), max_retrains=2)
    again.load_state_dict({**retraining.state_dict(), "of something else": 1})
    assert again.retrained == 2 and not again.is_due(["false_positives"])


def test_a_recipe_must_be_written():
    with pytest.raises(NotImplementedError, match=r"Retrain does not retrain: implement __call__\(reward, fooled\)"):
        Retrain()(Told(), rollout([0.9]))
    assert torch.is_tensor(Counting()(Told(), rollout([0.9]))["last"])


@pytest.mark.parametrize("options", [{"max_retrains": -1}, {"keep": 0}])
def test_arguments_that_make_no_sense(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} {value}"):
        Retraining(**options)
