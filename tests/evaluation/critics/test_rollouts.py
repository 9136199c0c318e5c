"""A critic against re-rolled returns: one that knows them, the chunks that are compared, and what is refused."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from guerdon.core.batch import ValueEstimates
from guerdon.critics.action import ActionCritic
from guerdon.critics.networks import ChunkPerceptron
from guerdon.critics.value import ValueCritic
from guerdon.evaluation.critics.logs import LogReader
from guerdon.evaluation.critics.reroll import step_cost
from guerdon.evaluation.critics.rollouts import RolledOut, Rollouts, roll_out
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer
from guerdon.rewards.step_cost import StepCost


class Idle(ValueCritic):
    """Values every state as an idle policy earns: −(1 − γⁿ)/(1 − γ) for the steps that are left of 50."""

    def forward(self, batch, proposer=None):
        left = 50 - torch.arange(batch.mask.shape[1] + 1)
        v = (-(1 - 0.95**left) / 0.05).float().expand(len(batch), -1).clone()
        return ValueEstimates(v=v)


def idle():
    policy: Any = GaussianPolicy(12, 3, hidden=(), log_std=-20.0, log_std_range=(-20.0, 0.0))
    torch.nn.init.zeros_(policy.network[-1].weight)
    torch.nn.init.zeros_(policy.network[-1].bias)
    return policy


def read(logs, critic, proposer=None):
    reward = StepCost(failure_cost=1.0, scale=1.0, gamma=0.95)
    return LogReader(critic.eval(), reward, logs, [1, 2, 3, 4], proposer)


def test_a_critic_that_knows_the_returns_is_found_to_know_them(logs):
    reader = read(logs, Idle(12, gamma=0.95))
    found = reader.values(range(8), {})
    setting = Rollouts(env="mujoco/reach", states=10, rollouts=1, seed=3)
    result = roll_out([one for one in found if one.success == 0], reader, idle(), step_cost(1.0), setting)
    assert result.success == 0 and (result.states, result.episodes) == (10, 4)  # there are four failures
    assert result.over_estimation.value == pytest.approx(0, abs=1e-4)
    assert result.v_calibration.slope == pytest.approx(1, abs=1e-3)
    assert result.v_rank.value == pytest.approx(1)
    assert result.candidates == 0 and "no chunks were compared" in result.notes[0]


@pytest.mark.slow
def test_candidates_are_the_logged_chunk_the_policys_and_random_ones(logs, monkeypatch):
    critic = ActionCritic(ChunkPerceptron(12, 3, horizon=4, members=2, hidden=(8,)), gamma=0.95, value_samples=2)
    policy = GaussianPolicy(12, 3, horizon=4, execute=4, hidden=(8,))
    reader = read(logs, critic, PolicyProposer(policy))
    asked = []
    proposals = ActionCritic.proposals

    def counted(self, batch, rows, steps, count, proposer):
        asked.append(count)
        return proposals(self, batch, rows, steps, count, proposer)

    found = reader.values(range(8), {})
    monkeypatch.setattr(ActionCritic, "proposals", counted)
    setting = Rollouts(env="mujoco/reach", states=4, rollouts=1, candidates=4)
    result = roll_out(found, reader, policy, step_cost(1.0), setting)
    assert (result.states, result.candidates) == (4, 4)
    assert set(asked) == {2}  # of three others, two are the policy's
    assert result.ranking_pairs <= 4 * 6 and result.q_rank.n == 4
    again = roll_out(found, reader, policy, step_cost(1.0), setting)
    exact = [f.name for f in fields(RolledOut) if f.name in ("states", "episodes", "success", "candidates")]
    assert [getattr(again, name) for name in exact] == [getattr(result, name) for name in exact]


def test_without_a_proposer_the_other_candidates_are_random(logs):
    class Blind(ActionCritic):
        """Values observations as 0, so that no policy has to be asked."""

        def forward(self, batch, proposer=None):
            return self.estimates(batch, torch.zeros(len(self.observations(batch)[0])))

    reader = read(logs, Blind(ChunkPerceptron(12, 3, horizon=2, hidden=(8,)), gamma=0.95))
    setting = Rollouts(env="mujoco/reach", states=2, rollouts=1, candidates=3)
    result = roll_out(reader.values([0, 1], {}), reader, idle(), step_cost(1.0), setting)
    assert result.candidates == 3 and np.isfinite(result.v_calibration.mean_error)


@pytest.mark.parametrize("wrong", [{"states": 0}, {"rollouts": 0}, {"candidates": -1}])
def test_settings_that_make_no_sense_are_refused(logs, wrong):
    reader = read(logs, Idle(12, gamma=0.95))
    with pytest.raises(ValueError, match="at least one state and one rollout"):
        roll_out(reader.values([0], {}), reader, idle(), step_cost(), Rollouts(env="mujoco/reach", **wrong))


def test_episodes_of_another_task_cannot_be_rolled_out(logs):
    reader = read(logs, Idle(12, gamma=0.95))
    found = reader.values([0, 1], {})
    with pytest.raises(ValueError, match=r"unknown task 'mujoco/reech': did you mean mujoco/reach\?"):
        roll_out(found, reader, idle(), step_cost(), Rollouts(env="mujoco/reech"))
    with pytest.raises(ValueError, match=r"2 episodes is from metaworld/reach-v3 \(2 are from other tasks, 0 do"):
        roll_out(found, reader, idle(), step_cost(), Rollouts(env="metaworld/reach-v3"))
