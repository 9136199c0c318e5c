"""Q − V at decisions by hand, with a critic that says what it is told, and with real ones."""

import math
from typing import Any

import pytest
import torch

from guerdon.core.batch import End, TrajectoryBatch, ValueEstimates
from guerdon.core.interfaces import Critic
from guerdon.critics.action import ActionCritic
from guerdon.critics.logged import LoggedChunks
from guerdon.critics.networks import ChunkPerceptron
from guerdon.critics.value import ValueCritic
from guerdon.policies.advantages.action_advantage import ActionAdvantage
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import WeightedImitation
from guerdon.policies.proposer import PolicyProposer
from guerdon.policies.weights import Exponential, Positive
from guerdon.rewards.recorded import RecordedReward


class Told(Critic):
    """Has the values it is told, and needs no proposer, as IQL's."""

    def __init__(self, v: list, q: list | None):
        super().__init__()
        self.v, self.q = torch.tensor(v), None if q is None else torch.tensor(q)

    def forward(self, batch, proposer=None):
        return ValueEstimates(v=self.v, q=self.q)


def trajectories(rows=1, steps=4, **more):
    generator = torch.Generator().manual_seed(0)
    return TrajectoryBatch(
        state=torch.randn(rows, steps + 1, 2, generator=generator),
        actions=torch.randn(rows, steps, 3, generator=generator),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        **more,
    )


def advantages(source, batch, proposer=None):
    return source(batch, source.estimate(batch), proposer)


V, Q = [[1.0, 2.0, 3.0, 4.0, 5.0]], [[1.5, 1.0, 3.0, 9.0]]


def test_advantages_are_q_minus_v_at_every_step_of_a_log():
    found = advantages(ActionAdvantage(Told(V, Q)), trajectories())
    assert found.advantages.tolist() == [[0.5, -1.0, 0.0, 5.0]]
    assert found.returns.tolist() == Q and found.values.tolist() == V
    assert found.valid.tolist() == [[True] * 4]


def test_advantages_stand_at_the_decisions_of_a_policy():
    batch = trajectories(decision_step=torch.tensor([[0, 3, -1]]))
    found = advantages(ActionAdvantage(Told(V, Q)), batch)
    assert found.advantages.tolist() == [[0.5, 5.0, 0.0]] and found.returns.tolist() == [[1.5, 9.0, 0.0]]
    assert found.values.tolist() == [[1.0, 4.0, 5.0, 0.0]], "V at decisions, then after the last step"
    assert found.valid.tolist() == [[True, True, False]]


def test_context_and_padding_count_for_nothing():
    batch = trajectories(weight=torch.tensor([[0.0, 1.0, 0.5, 0.0]]))
    found = advantages(ActionAdvantage(Told(V, Q)), batch)
    assert found.valid.tolist() == [[False, True, True, False]]
    assert found.advantages.tolist() == [[0.0, -1.0, 0.0, 0.0]]


def test_w4_a_constant_added_to_q_and_v_changes_nothing():
    shifted = Told([[v + 100 for v in V[0]]], [[q + 100 for q in Q[0]]])
    one, two = (advantages(ActionAdvantage(critic), trajectories()) for critic in (Told(V, Q), shifted))
    assert torch.allclose(one.advantages, two.advantages)
    objective = WeightedImitation(Exponential(beta=1.0))
    assert torch.allclose(objective.weights(trajectories(), one), objective.weights(trajectories(), two))


def test_w4_a_constant_added_to_the_reward_changes_advantages_through_the_length_only():
    """A cost of c more a step moves a return of n steps by c · n: equal lengths keep their difference."""
    steps, cost = torch.tensor([4.0, 4.0, 7.0]), 0.5
    returns = torch.tensor([-4.0, -2.0, -7.0])
    before, after = returns - returns[0], (returns - cost * steps) - (returns[0] - cost * steps[0])
    source = [ActionAdvantage(Told([[0.0] * 4], [a.tolist()])) for a in (before, after)]
    one, two = (advantages(s, trajectories(steps=3)).advantages[0] for s in source)
    assert (two - one).tolist() == pytest.approx([0, 0, -cost * 3])


def test_v_comes_from_chunks_of_the_proposing_policy():
    """Two policies: the one whose chunks the critic likes better leaves the logged chunks less of an advantage."""

    class Sum(ChunkPerceptron):
        """Q is the sum of the actions, for every member."""

        def __init__(self):
            super().__init__(2, 3, horizon=2, hidden=(4,))

        def members_of(self, state, actions, mask, observation):
            return actions.sum((1, 2)).expand(self.members, -1)

    batch = trajectories(rows=3, steps=4)
    critic = ActionCritic(Sum(), value_samples=64, logged=LoggedChunks(across_replans=True))
    source, policies = ActionAdvantage(critic), []
    for mean in (0.0, 1.0):
        policy = GaussianPolicy(2, 3, horizon=2, execute=2, hidden=(), log_std=-4.0)
        last: Any = policy.network[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, mean)
        policies.append(policy)
    low, high = (advantages(source, batch, PolicyProposer(policy)) for policy in policies)
    # chunks of two steps and three dimensions of 1 instead of 0: V is 6 larger
    assert torch.allclose(low.advantages - high.advantages, torch.full((3, 4), 6.0), atol=0.05)
    q = batch.actions.sum(2)
    q = q + torch.cat([q[:, 1:], torch.zeros(3, 1)], 1)  # the last chunk has one step
    assert torch.allclose(low.returns, q, atol=1e-5)
    with pytest.raises(ValueError, match="pass a proposer"):
        advantages(source, batch)


def test_the_critic_is_frozen_and_stays_in_evaluation_mode():
    critic = ActionCritic(ChunkPerceptron(2, 3))
    source = ActionAdvantage(critic).train()
    assert not any(p.requires_grad for p in source.parameters())
    assert not any(m.training for m in critic.modules())
    found = advantages(source, trajectories(), PolicyProposer(GaussianPolicy(2, 3)))
    assert not found.advantages.requires_grad


def test_rewards_are_for_the_log():
    batch = trajectories()
    assert ActionAdvantage(Told(V, Q)).estimate(batch).rewards.tolist() == [[0.0] * 4]
    with pytest.raises(ValueError, match="reward"):  # these trajectories hold none
        ActionAdvantage(Told(V, Q), reward=RecordedReward()).estimate(batch)


def test_sources_taken_for_good_are_never_below_average():
    v, q = [[0.0, 0.0, 0.0]] * 3, [[-2.0, 3.0]] * 3
    batch = trajectories(rows=3, steps=2, source=torch.tensor([0, 7, 9]))
    found = advantages(ActionAdvantage(Told(v, q), force_positive=[7, 9]), batch)
    assert found.advantages[0].tolist() == [-2, 3] and found.advantages[1:, 1].tolist() == [3, 3]
    assert (found.advantages[1:, 0] > 0).all() and (found.advantages[1:, 0] < 1e-30).all()
    assert WeightedImitation(Positive()).weights(batch, found).tolist() == [[0, 1], [1, 1], [1, 1]]
    assert WeightedImitation(Exponential(beta=1.0)).weights(batch, found)[1:, 0].tolist() == [1, 1]


def test_a_critic_of_observations_is_refused_with_what_to_take():
    with pytest.raises(ValueError, match=r"ValueCritic values observations only.*StepAdvantage"):
        advantages(ActionAdvantage(ValueCritic(2)), trajectories(end=torch.tensor([int(End.SUCCESS)])))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_critic_that_diverged_is_named(wrong):
    batch = trajectories(decision_step=torch.tensor([[0, 2]]))
    with pytest.raises(FloatingPointError, match=r"Told gave episode 0 the advantage (nan|inf) at step 2"):
        advantages(ActionAdvantage(Told(V, [[0.0, 0.0, wrong, 0.0]])), batch)
    # where nobody decided, or nothing counts, it does not matter
    assert advantages(ActionAdvantage(Told(V, [[0.0, wrong, 0.0, 0.0]])), batch).valid.all()


def test_saved_and_opened_again(tmp_path):
    batch, proposer = trajectories(), PolicyProposer(GaussianPolicy(2, 3))
    source = ActionAdvantage(ActionCritic(ChunkPerceptron(2, 3)), force_positive=[3])
    before = advantages(source, batch, proposer)
    source.save_pretrained(tmp_path)
    again = ActionAdvantage.from_pretrained(tmp_path)
    assert again.force_positive == (3,)
    assert torch.equal(advantages(again, batch, proposer).advantages, before.advantages)
