"""Monte-Carlo values of chunks: the control that off-policy evaluation is judged against."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch, terminated_from
from guerdon.critics.chunks import REPLAN
from guerdon.critics.monte_carlo import MonteCarloCritic, returns_to_go
from guerdon.critics.networks import ChunkNetwork, ChunkPerceptron
from guerdon.testing import check_critic, trajectory_batches


class Table(ChunkNetwork):
    """A number for every state and first action 0 or 1."""

    def __init__(self, states: int, horizon: int = 1) -> None:
        super().__init__(states, 1, horizon, 1)
        self.entries = nn.Parameter(torch.zeros(1, states, 2))

    def members_of(self, state, actions, mask, observation):
        right = actions[:, 0]
        return torch.einsum("ms,ma,ksa->km", state, torch.cat([1 - right, right], 1), self.entries)


class Always:
    version = 0

    def __init__(self, action):
        self.action = action

    def __call__(self, batch, rows, steps, n):
        return torch.full((n, len(rows), 1, 1), self.action)


def fragments():
    """A … B cut after 4 steps at -1, and B … goal in 5 steps."""
    mask = torch.arange(5) < torch.tensor([[4], [5]])
    state = torch.eye(10)[torch.tensor([[0, 1, 2, 3, 4, 4], [4, 5, 6, 7, 8, 9]])]
    rewards = torch.where(mask, -1.0, 0.0)
    rewards[1, 4] = 0.0
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(2, 5, 1),
        mask=mask,
        end=torch.tensor([int(End.CUT), int(End.SUCCESS)]),
        recorded={REPLAN: Labelled(values=torch.zeros(2, 5), valid=mask)},
    )
    return batch, RewardEstimates(rewards=rewards, valid=mask)


def test_a_fragment_that_is_cut_has_no_return():
    # T8: left out, the first fragment teaches nothing; taken as an end it says -(1 - 0.9^4) / 0.1 = -3.439 for A,
    # where the truth is -3.439 - 0.9^4 · 3.439
    batch, rewards = fragments()
    critic = MonteCarloCritic(Table(10), gamma=0.9)
    points = critic.points(batch, rewards)
    assert points.rows.tolist() == [1] * 5
    truth = [-(1 - 0.9**left) / 0.1 for left in (4, 3, 2, 1, 0)]
    torch.testing.assert_close(critic.targets(batch, rewards, points, None)[0], torch.tensor(truth))
    naive = MonteCarloCritic(Table(10), gamma=0.9, cuts="end")
    points = naive.points(batch, rewards)
    assert points.rows.tolist() == [0] * 4 + [1] * 5
    assert float(naive.targets(batch, rewards, points, None)[0, 0]) == pytest.approx(-3.439)


@given(st.data())
def test_returns_agree_with_a_walk(data):
    batch = data.draw(trajectory_batches(state_size=1, action_size=1, stored_labels=False))
    rows, steps = batch.mask.shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    valid = torch.rand(rows, steps, generator=generator) < 0.8
    ends = data.draw(st.sets(st.sampled_from(list(End))))
    batch = replace(batch, terminated=terminated_from(batch.end, ends))
    values = torch.randn(rows, steps, generator=generator)
    rewards = RewardEstimates(rewards=torch.where(valid & batch.mask, values, math.nan), valid=valid)
    cuts, gamma = data.draw(st.sampled_from(["leave_out", "end"])), 0.8
    found, known = returns_to_go(batch, rewards, gamma, cuts)
    for row in range(rows):
        last = int(batch.steps[row])
        for start in range(steps):
            later = range(start, last)
            sure = start < last and all(bool(valid[row, t]) for t in later)
            sure = sure and (cuts == "end" or bool(batch.terminated[row]))
            assert bool(known[row, start]) == sure
            wanted = sum(gamma ** (t - start) * float(values[row, t]) for t in later) if sure else 0.0
            assert float(found[row, start]) == pytest.approx(wanted, abs=1e-5)
    critic = MonteCarloCritic(ChunkPerceptron(1, 1, 3, 1, (4,)), gamma, cuts)
    flagged = replace(batch, recorded={REPLAN: Labelled(values=torch.zeros(rows, steps), valid=batch.mask)})
    points = critic.points(flagged, rewards)
    assert torch.equal(torch.stack([points.rows, points.steps]), torch.stack(known.nonzero(as_tuple=True)))
    torch.testing.assert_close(critic.targets(flagged, rewards, points, None)[0], found[points.rows, points.steps])


def test_it_learns_the_value_of_whoever_acted():
    # T2: on the corridor, data of a behaviour that goes right half of the time give V(0) = -6.738 for it, whatever
    # policy is asked about (the one that goes right nine times in ten is worth -4.578)
    generator = torch.Generator().manual_seed(0)
    episodes, steps = 6000, 80
    state = torch.zeros(episodes, steps + 1, dtype=torch.long)
    actions = (torch.rand(episodes, steps, generator=generator) < 0.5).long()
    moved = actions * (torch.rand(episodes, steps, generator=generator) < 0.8).long()
    for t in range(steps):
        state[:, t + 1] = (state[:, t] + moved[:, t]).clamp(max=5)
    length = (state < 5).sum(1)
    kept = length <= steps
    state, actions, length = state[kept], actions[kept], length[kept]
    mask = torch.arange(steps) < length[:, None]
    assert len(state) > 0.999 * episodes
    rewards = torch.where(mask & (torch.arange(steps) < length[:, None] - 1), -1.0, 0.0)
    batch = TrajectoryBatch(
        state=nn.functional.one_hot(state, 6).float(),
        actions=actions.float()[..., None],
        mask=mask,
        end=torch.full((len(state),), int(End.SUCCESS)),
        weight=mask.float() * (torch.arange(steps) == 0),
    )
    critic: Any = MonteCarloCritic(Table(6), gamma=0.9)
    estimates = RewardEstimates(rewards=rewards, valid=mask)
    points = critic.points(batch, estimates)
    target = critic.targets(batch, estimates, points, None)[0]
    first = batch.actions[points.rows, 0, 0]
    q = torch.stack([target[first == a].mean() for a in (0, 1)])
    error = 4 * float(target.std()) / math.sqrt(len(target))
    assert float(q.mean()) == pytest.approx(-6.738023, abs=error) and error < 0.15
    # the real loss has its smallest value there: one full step of its gradient leads to the mean of each action
    loss = critic.loss(batch, estimates)["loss"]
    (gradient,) = torch.autograd.grad(loss, [critic.network.entries])
    share = torch.stack([(first == a).float().mean() for a in (0, 1)])
    torch.testing.assert_close(-gradient[0, 0] / (2 * share), q, atol=1e-4, rtol=0)


def test_v_is_the_mean_over_proposals():
    batch, _ = fragments()
    critic: Any = MonteCarloCritic(Table(10))
    with torch.no_grad():
        critic.network.entries[0] = torch.stack([torch.zeros(10), torch.arange(10.0)], 1)
    found = critic(batch, Always(0.5))
    torch.testing.assert_close(found.v[1], torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0, 4.5]))
    with pytest.raises(ValueError, match="pass a proposer"):
        critic(batch)
    assert math.isfinite(float(critic.loss(*fragments())["loss"].detach()))  # learning asks nobody


def test_it_keeps_what_every_critic_promises():
    batch, rewards = fragments()
    critic = MonteCarloCritic(ChunkPerceptron(10, 1, 3, 2, hidden=(8,)))
    critic.fit_scales(batch)
    check_critic(critic, batch, rewards, Always(0.5))
    torch.testing.assert_close(critic.target.state_dict(), critic.network.state_dict())


@pytest.mark.parametrize("wrong", [{"cuts": "bootstrap"}, {"value_samples": 0}, {"gamma": 2.0}])
def test_arguments_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=r"expected|Expected type"):
        MonteCarloCritic(ChunkPerceptron(1, 1), **wrong)
