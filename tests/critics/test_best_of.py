"""Q-chunking: the best of N chunks in the target and in V."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.critics.best_of import BestOfCritic
from guerdon.critics.chunks import REPLAN
from guerdon.critics.networks import ChunkNetwork, ChunkPerceptron
from guerdon.testing import check_critic


class Table(ChunkNetwork):
    """A number for every state and first action 0 … A-1, the same for any number of steps."""

    def __init__(self, states: int, choices: int, members: int = 1, horizon: int = 1) -> None:
        super().__init__(states, 1, horizon, members)
        self.choices = choices
        self.entries = nn.Parameter(torch.zeros(members, states, choices))

    def members_of(self, state, actions, mask, observation):
        action = nn.functional.one_hot(actions[:, 0, 0].round().long(), self.choices).float()
        return torch.einsum("ms,ma,ksa->km", state, action, self.entries)


class Noise(ChunkNetwork):
    """A number for every state and choice; states are told by a thousandth of their index."""

    def __init__(self, states: int, choices: int, members: int) -> None:
        super().__init__(1, 1, 1, members)
        self.entries = nn.Parameter(torch.zeros(members, states, choices))

    def members_of(self, state, actions, mask, observation):
        return self.entries[:, (state[:, 0] * 1000).round().long(), actions[:, 0, 0].round().long()]


class Each:
    """Proposes every choice once."""

    version = 0

    def __init__(self, choices):
        self.choices = choices

    def __call__(self, batch, rows, steps, n):
        assert n == self.choices
        return torch.arange(float(n))[:, None, None, None].expand(-1, len(rows), 1, 1)


def one_step(end=End.CUT, reward=-1.0):
    mask = torch.ones(1, 1, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.eye(2)[None], actions=torch.zeros(1, 1, 1), mask=mask, end=torch.tensor([int(end)])
    )
    return batch, RewardEstimates(rewards=torch.full((1, 1), reward), valid=mask)


@pytest.mark.parametrize(("how", "target"), [("mean", -1 + 0.5 * 3.0), ("min", -1 + 0.5 * 2.0), ("lcb", -1 + 0.5 * 2)])
def test_the_target_is_the_value_of_the_best_chunk(how, target):
    # members by choice: (6, 0), (2, 2), (1, 3): means 3, 2, 2, smallest 0, 2, 1, and the largest of each
    batch, rewards = one_step()
    critic: Any = BestOfCritic(Table(2, 3, members=2), gamma=0.5, candidates=3, target_agg=how)
    with torch.no_grad():
        critic.target.entries[:, 1] = torch.tensor([[6.0, 2.0, 1.0], [0.0, 2.0, 3.0]])
        critic.network.entries.fill_(-50.0)  # neither chooses nor values
    points = critic.points(batch, rewards)
    assert critic.targets(batch, rewards, points, Each(3)).item() == pytest.approx(target)


def test_v_is_the_largest_q_of_the_online_network():
    batch, _ = one_step()
    critic: Any = BestOfCritic(Table(2, 3, members=2), candidates=3)
    with torch.no_grad():
        critic.network.entries[:, 0] = torch.tensor([[6.0, 2.0, 1.0], [0.0, 2.0, 3.0]])
        critic.network.entries[:, 1] = torch.tensor([[-1.0, -2.0, -3.0]] * 2)
    assert critic(batch, Each(3)).v.tolist() == [[3.0, -1.0]]
    with pytest.raises(ValueError, match="pass a proposer"):
        critic(batch)


@pytest.mark.parametrize("end", [End.SUCCESS, End.FAILURE])
def test_nothing_follows_a_termination(end):
    batch, rewards = one_step(end)
    critic: Any = BestOfCritic(Table(2, 3), gamma=0.5, candidates=3)
    nn.init.constant_(critic.target.entries, 9.0)
    assert critic.targets(batch, rewards, critic.points(batch, rewards), None).item() == -1.0


def test_it_values_an_improvement_of_whoever_acted():
    # three states in a row, right (1) or stay (0), logged with equal chances; the best policy always goes right:
    # Q(0, right) = -1 + 0.9 · 0 = -1, Q(0, stay) = -1 + 0.9 · -1, Q(1, right) = 0, Q(1, stay) = -1
    rows = [(s, a) for s in (0, 1) for a in (0, 1)]
    state = torch.stack([torch.eye(3)[[s, s + a]] for s, a in rows])
    mask = torch.ones(4, 1, dtype=torch.bool)
    goal = torch.tensor([s + a == 2 for s, a in rows])
    batch = TrajectoryBatch(
        state=state,
        actions=torch.tensor([float(a) for _, a in rows])[:, None, None],
        mask=mask,
        end=torch.where(goal, int(End.SUCCESS), int(End.CUT)),
    )
    rewards = RewardEstimates(rewards=torch.where(goal, 0.0, -1.0)[:, None], valid=mask)
    critic = BestOfCritic(Table(3, 2), gamma=0.9, candidates=2, polyak_rate=1.0)
    optimizer = torch.optim.SGD(critic.network.parameters(), lr=2.0)
    for _ in range(4):
        optimizer.zero_grad()
        critic.loss(batch, rewards, Each(2))["loss"].backward()
        optimizer.step()
        critic.after_step()
    torch.testing.assert_close(critic.logged_q(batch)[0, :, 0], torch.tensor([-1.9, -1.0, -1.0, 0.0]))


def test_it_is_the_most_over_estimating_of_the_reductions():
    # E5 through the critic: truth 0 everywhere, errors N(0, 1), K = 2 members, N = 4 candidates
    torch.manual_seed(3)
    states = 4000
    mask = torch.ones(states, 1, dtype=torch.bool)
    state = (torch.arange(states) / 1000)[:, None, None].expand(-1, 2, -1)
    batch = TrajectoryBatch(state=state, actions=torch.zeros(states, 1, 1), mask=mask)
    rewards = RewardEstimates(rewards=torch.zeros(states, 1), valid=mask)
    cases: list[tuple[Literal["mean", "min"], float]] = [("mean", 0.729), ("min", 0.276)]
    for how, expected in cases:
        critic: Any = BestOfCritic(Noise(states, 4, members=2), gamma=1.0, candidates=4, target_agg=how)
        nn.init.normal_(critic.target.entries)
        found = critic.targets(batch, rewards, critic.points(batch, rewards), Each(4))
        assert float(found.mean()) == pytest.approx(expected, abs=0.04)  # 4 standard errors of at most 0.6 / 63


class Drift:
    version = 0

    def __call__(self, batch, rows, steps, n):
        state = batch.state[rows, steps].sum(1)[None, :, None, None]
        return (state + torch.arange(float(n))[:, None, None, None]).expand(-1, -1, 2, 2)


def test_it_keeps_what_every_critic_promises():
    length, steps = torch.tensor([5, 3, 0, 1]), 5
    mask = torch.arange(steps) < length[:, None]
    batch = TrajectoryBatch(
        state=torch.randn(4, steps + 1, 3),
        actions=torch.randn(4, steps, 2).masked_fill(~mask[..., None], math.nan),
        mask=mask,
        end=torch.tensor([1, 4, 0, 3]),
        recorded={REPLAN: Labelled(values=torch.zeros(4, steps), valid=mask)},
    )
    rewards = RewardEstimates(rewards=torch.randn(4, steps).masked_fill(~mask, 0.0), valid=mask)
    critic = BestOfCritic(ChunkPerceptron(3, 2, 2, 2, hidden=(8,)), candidates=4)
    critic.fit_scales(batch)
    check_critic(critic, batch, rewards, Drift())


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"target_agg": "independent"}])
def test_arguments_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=r"expected min, mean or lcb|Expected type"):
        BestOfCritic(ChunkPerceptron(1, 1), **wrong)
