"""Probing picks probes and clips, and counts clips that are always the same once."""

import pytest

from guerdon.evaluation.watch.claim import SuccessClaim
from guerdon.evaluation.watch.probing import Probing
from guerdon.evaluation.watch.rollouts import RolloutSummary

from .watched_runs import Data, Told, rollout, with_instructions


def summaries(probing, rollouts):
    claim = SuccessClaim()
    return [RolloutSummary(probes=dict(probing.run(Told(), batch, claim))) for batch in rollouts]


def test_clips_of_rollouts_are_added_up():
    probing = Probing(probes=("frozen",))
    probing.load()
    found = probing.metrics(summaries(probing, [rollout([0.9, 0.2]), rollout([0.7])]))
    assert found.keys() == {"probe_honest", "probe_clips", "probe_frozen", "probe_frozen_claimed", "probe_frozen_low"}
    assert found["probe_honest"] == pytest.approx((0.9 + 0.2 + 0.7) / 3)
    assert (found["probe_clips"], found["probe_frozen"], found["probe_frozen_claimed"]) == (2, 0, 0)


def test_fixed_clips_are_evaluated_on_the_first_process_and_counted_once():
    probing = Probing(probes=("reversed",), clips=Data([rollout([0.9] * 3), rollout([0.9])]))
    probing.load()
    rollouts = [rollout([0.1])] * 3
    found = probing.metrics(summaries(probing, rollouts))
    assert (found["probe_clips"], found["probe_reversed_claimed"]) == (3, 0), "the first batch, and once"
    assert probing.run(Told(), rollouts[0], SuccessClaim(), rank=1) == {}
    assert Probing().run(Told(), rollouts[0], SuccessClaim(), rank=1), "clips of its own rollout are evaluated"


def test_the_claim_and_the_number_of_clips_are_respected():
    batch = rollout([0.9, 0.7, 0.3])
    found = Probing(probe_rows=2).run(Told(), batch, SuccessClaim(threshold=0.2))
    assert (found["honest"].clips, found["honest"].honest) == (2, 2)
    assert Probing().run(Told(), batch, SuccessClaim(threshold=0.8))["honest"].honest == 1


def test_other_tasks_are_those_given():
    batch = with_instructions(rollout([0.9]), "reach")
    assert "other_task" not in Probing().run(Told(), batch, SuccessClaim())
    assert "other_task" in Probing(instructions=("open",)).run(Told(), batch, SuccessClaim())


def test_no_probe_is_no_metric():
    probing = Probing(probes=())
    assert probing.run(Told(), rollout([0.9]), SuccessClaim()) == {} and probing.metrics([]) == {}
    metrics = Probing(probes=("blank",)).metrics([])
    assert metrics["probe_clips"] == 0 and metrics["probe_blank"] != metrics["probe_blank"], "undefined is NaN"


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="no probe 'upside_down': expected some of frozen, reversed"):
        Probing(probes=("frozen", "upside_down"))
    with pytest.raises(ValueError, match="probe_rows 0: expected at least 1"):
        Probing(probe_rows=0)
