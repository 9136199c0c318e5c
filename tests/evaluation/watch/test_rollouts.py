"""What a rollout shows of a reward model, and that looking changes nothing."""

import random
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from guerdon.core.batch import End, Labelled
from guerdon.evaluation.watch.claim import SuccessClaim
from guerdon.evaluation.watch.metrics import EpisodeRecord
from guerdon.evaluation.watch.probes import ProbeResult
from guerdon.evaluation.watch.rollouts import (
    RolloutSummary,
    finished_rows,
    outcomes_of,
    records_of,
    reward_of,
    undisturbed,
)
from guerdon.policies.advantages.reward_to_go import Uniform
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import WeightedImitation
from guerdon.policies.optimizer import PolicyOptimizer

from .watched_runs import Abstaining, Told, module, rollout


def one(name, clips=0):
    record = EpisodeRecord(name=name, learned=1.0, score=0.5, success=0.0, recorded=2.0)
    return RolloutSummary(
        episodes=[record], beyond=1, observations=4, probes={f"p{clips}": ProbeResult(clips=clips, paid=0.5)}
    )


def test_summaries_of_processes_are_added():
    total = sum([one("a", 1), one("b", 2), one("c", 2)], RolloutSummary())
    assert [e.name for e in total.episodes] == ["a", "b", "c"]
    assert (total.beyond, total.observations) == (3, 12)
    assert {name: (p.clips, p.paid) for name, p in total.probes.items()} == {"p1": (1, 0.5), "p2": (4, 1.0)}


def test_a_summary_comes_back_from_plain_values():
    state = one("a", 3).to_state()
    assert state["episodes"][0]["name"] == "a" and state["probes"]["p3"]["clips"] == 3
    assert RolloutSummary.from_state(state) == one("a", 3)


def test_whole_episodes_are_finished():
    batch = replace(
        rollout([0.1] * 5),
        end=torch.tensor([End.CUT, End.CUT, End.SUCCESS, End.TIME_LIMIT, End.FAILURE]),
        success_known=torch.tensor([False, True, True, False, False]),
        offset=torch.tensor([0, 0, 2, 0, 0]),
        length=torch.tensor([4, 4, 6, 4, 4]),
    )
    batch.mask[4] = False
    # cut; cut, but its outcome is known; begun before; finished; without a step
    assert finished_rows(batch).tolist() == [1, 3]


def test_outcomes_are_said_known_or_withheld():
    batch = rollout([0.1, 0.2, 0.3], [1.0, 0.5, 0.4])
    assert outcomes_of(batch).tolist() == [1, 1, 0], "graded success counts from one half on"
    assert outcomes_of(batch, withheld=[0.0, 0.0, 0.0]).tolist() == [1, 1, 0], "nothing was withheld"
    found = outcomes_of(batch, lambda b: torch.tensor([0.2, torch.nan, 0.9]))
    assert found[[0, 2]].tolist() == [0, 1] and found[1].isnan()
    unknown = rollout([0.1, 0.2, 0.3])
    assert outcomes_of(unknown).isnan().all()
    assert outcomes_of(unknown, withheld=[1, 0, 0.7]).tolist() == [1, 0, 1]
    for other in (None, [1.0], {"unknown": 1, "success": 2, "failure": 3}, "abc"):
        assert outcomes_of(unknown, withheld=other).isnan().all(), other
    with pytest.raises(ValueError, match="outcome: expected 3 numbers, one a row, got"):
        outcomes_of(batch, lambda b: torch.zeros(2))


def test_records_of_episodes():
    reward = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 2.0, 0.0, 1.0], [1.0] * 4])
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[2, 1] = False
    batch = replace(rollout([0.8, 0.4, -0.2]), recorded={"reward": Labelled(values=reward, valid=valid)})
    outcome = torch.tensor([1.0, 0.0, torch.nan])
    first, second, third = records_of(Abstaining(), batch, outcome, ["a", "b", "c"], SuccessClaim())
    assert [r.name for r in (first, second, third)] == ["a", "b", "c"]
    assert [first.learned, first.score, first.success, first.recorded] == pytest.approx([0.8, 0.8, 1, 1])
    assert [second.learned, second.score, second.success, second.recorded] == pytest.approx([0.4, 0.4, 0, 3])
    # the reward model abstains, the outcome is unknown, and so is one of the rewards of the environment
    values = [third.learned, third.score, third.success, third.recorded]
    assert values == pytest.approx([np.nan] * 4, nan_ok=True)
    (only,) = records_of(Told(), rollout([0.5]), torch.zeros(1), ["d"], SuccessClaim())
    assert np.isnan(only.recorded), "the batch holds no reward of the environment"


def test_the_reward_model_of_a_policy_optimizer_is_found():
    reward = Told()
    assert reward_of(module(reward)) is reward
    cloning = PolicyOptimizer(GaussianPolicy(2, 2, hidden=(4,)), Uniform(), WeightedImitation())
    for other in (cloning, lightning.LightningModule()):
        with pytest.raises(TypeError, match="whose advantage source has a reward model"):
            reward_of(other)


def test_a_reward_model_is_evaluated_without_a_trace():
    reward = Told()
    reward.frozen, reward.learning = nn.Dropout(0.5).eval(), nn.Linear(1, 1)
    reward.train()
    reward.frozen.eval()

    def drawn():
        return torch.rand(1).item(), random.random(), np.random.random()

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = drawn()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    with undisturbed(reward):
        assert not any(part.training for part in reward.modules())
        assert not reward.learning(torch.ones(1)).requires_grad
        drawn()
    assert drawn() == expected
    with pytest.raises(RuntimeError, match="inside"), undisturbed(reward):
        raise RuntimeError("inside")
    assert reward.training and reward.learning.training and not reward.frozen.training
