"""Values along logged episodes: they are those of the critic, beside the returns and residuals of the log."""

import math

import numpy as np
import pytest
import torch

from guerdon.core.batch import End, RewardEstimates, ValueEstimates
from guerdon.core.interfaces import Critic, RewardModel
from guerdon.critics.action import ActionCritic
from guerdon.critics.networks import ChunkPerceptron
from guerdon.critics.value import ValueCritic
from guerdon.datasets.collate import collate
from guerdon.evaluation.critics.logs import LoggedValues, LogReader, episode_of_steps, joined_steps
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer
from guerdon.rewards.step_cost import StepCost

ALL_ENDS = [int(end) for end in End if end != End.CUT]


def cost(gamma=0.95):
    return StepCost(failure_cost=20.0, scale=20.0, gamma=gamma).eval()


def reader(logs, critic, reward=None, ends=ALL_ENDS, proposer=None):
    return LogReader(critic.eval(), reward or cost(), logs, ends, proposer)


def test_values_returns_and_residuals_step_by_step(logs):
    critic = ValueCritic(12, hidden=(8,), gamma=0.95)
    for one in reader(logs, critic).values(range(len(logs)), {}):
        episode = logs[one.place]
        with torch.no_grad():
            v = critic(collate([episode])).v[0].double().numpy()
        paid = np.full(episode.steps, -1 / 20)
        paid[-1] = 0.0 if episode.success else -1.0
        assert (one.episode, one.source, one.success) == (episode.index, episode.source, episode.success)
        assert one.outcome == ("success" if episode.success else "failure")
        assert one.v == pytest.approx(v[:-1], abs=1e-5)
        later, tail = np.append(v[1:-1], 0.0), 0.0
        assert one.residual == pytest.approx(paid + 0.95 * later - v[:-1], abs=1e-5)
        for step in reversed(range(episode.steps)):
            tail = paid[step] + 0.95 * tail
            assert one.returns[step] == pytest.approx(tail, abs=1e-5)
        assert one.q is None and one.members is None and one.replan is None


def test_chunks_of_a_policy_are_valued_member_by_member(logs):
    critic = ActionCritic(ChunkPerceptron(12, 3, horizon=4, members=2, hidden=(8,)), gamma=0.95)
    proposer = PolicyProposer(GaussianPolicy(12, 3, horizon=4, execute=4, hidden=(8,)), deterministic=True)
    found = reader(logs, critic, proposer=proposer)
    assert found.horizon == 4 and reader(logs, ValueCritic(12)).horizon == 1
    for one in found.values([0, 3], {}):
        assert one.members.shape == (2, len(one.v))
        assert one.q == pytest.approx(one.members.min(0))
    with pytest.raises(ValueError, match="values observations by chunks of a policy: name it with --policy DIR"):
        reader(logs, critic).values([0], {})


def test_the_return_is_unknown_where_time_limits_do_not_terminate(logs):
    ends = [int(End.SUCCESS), int(End.FAILURE)]
    for one in reader(logs, ValueCritic(12, hidden=(8,), gamma=0.95), ends=ends).values(range(len(logs)), {}):
        assert np.isnan(one.returns).all() == (one.outcome == "failure")


@pytest.mark.parametrize(("success", "outcome"), [(None, "unknown"), (1.0, "success"), (0.5, "failure")])
def test_a_partial_success_counts_as_a_failure(success, outcome):
    empty = np.zeros(0)
    more = {"q": None, "members": None, "replan": None}
    one = LoggedValues(place=0, episode=0, success=success, source=0, v=empty, returns=empty, residual=empty, **more)
    assert one.outcome == outcome


def test_columns_are_joined_end_to_end(logs):
    found = reader(logs, ValueCritic(12, hidden=(8,), gamma=0.95)).values([0, 1], {})
    lengths = [len(one.v) for one in found]
    assert np.array_equal(joined_steps(found, "v"), np.concatenate([one.v for one in found]))
    assert episode_of_steps(found).tolist() == [0] * lengths[0] + [1] * lengths[1]
    assert joined_steps([], "v").shape == (0,)


class Broken(Critic):
    """Values every observation with one number."""

    def __init__(self, number=0.0, gamma: float | None = 0.95):
        super().__init__()
        self.number = number
        if gamma is not None:
            self.gamma = gamma

    def forward(self, batch, proposer=None):
        return ValueEstimates(v=torch.full((len(batch), batch.mask.shape[1] + 1), self.number))


class Says(RewardModel):
    """One known reward everywhere."""

    def forward(self, batch):
        return RewardEstimates(rewards=torch.full(batch.mask.shape, math.inf), valid=batch.mask)


def test_what_is_no_number_is_named(logs):
    with pytest.raises(ValueError, match="the critic gave NaN or infinity as a value in episode 0: it diverged"):
        reader(logs, Broken(math.nan)).values([0], {})
    with pytest.raises(ValueError, match=r"Says gave inf as a known reward at step 0 of episode 0: mark it invalid"):
        reader(logs, Broken(), Says()).values([0], {})
    with pytest.raises(ValueError, match="Broken has no attribute gamma"):
        reader(logs, Broken(gamma=None))
