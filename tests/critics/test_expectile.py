"""Implicit Q-learning on chunks: closed forms, and independence of any policy."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates, Sampled, TrajectoryBatch
from guerdon.critics.chunks import REPLAN
from guerdon.critics.expectile import ExpectileCritic
from guerdon.critics.networks import ChunkNetwork, ChunkPerceptron, ChunkTransformer
from guerdon.critics.observations import CriticInputs
from guerdon.testing import check_critic, reopen

from .small_parts import FrozenPixels


class Ladder(ChunkNetwork):
    """A number for every state, first action 0 or 1, and number of steps shown."""

    def __init__(self, states: int, horizon: int, members: int = 1) -> None:
        super().__init__(states, 1, horizon, members)
        self.entries = nn.Parameter(torch.zeros(members, states, 2, horizon))

    def members_of(self, state, actions, mask, observation):
        length = nn.functional.one_hot(mask.sum(1) - 1, self.horizon).float()
        action = nn.functional.one_hot(actions[:, 0, 0].long(), 2).float()
        return torch.einsum("ms,ma,mh,ksah->km", state, action, length, self.entries)


def tabular(states, horizon=1, members=1, **more: Any) -> Any:
    """Q as a table and V as one number a state."""
    critic: Any = ExpectileCritic(Ladder(states, horizon, members), hidden=(), polyak_rate=1.0, **more)
    nn.init.zeros_(critic.value.network[0].weight)
    critic.value.network[0].bias = None
    return critic


def learn(critic, batch, rewards, steps, share):
    """Steps that put an entry on its target where it holds this share of the weight; V goes there from one side."""
    side = max(critic.expectile, 1 - critic.expectile)
    groups = [
        {"params": critic.network.parameters(), "lr": 0.5 / share},
        {"params": critic.value.parameters(), "lr": 0.5 / side / (share if critic.network.state_size > 1 else 1)},
    ]
    optimizer = torch.optim.SGD(groups)
    for _ in range(steps):
        optimizer.zero_grad()
        critic.loss(batch, rewards)["loss"].backward()
        optimizer.step()
        critic.after_step()


def chain(length, end=End.SUCCESS, final=0.0):
    rewards = torch.full((1, length), -1.0)
    rewards[0, -1] = final
    mask = torch.ones(1, length, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.eye(length + 1)[None],
        actions=torch.zeros(1, length, 1),
        mask=mask,
        end=torch.tensor([int(end)]),
        recorded={REPLAN: Labelled(values=torch.zeros(1, length), valid=mask)},
    )
    return batch, RewardEstimates(rewards=rewards, valid=mask)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_chain_with_one_choice_is_its_return(horizon):
    # one action everywhere: V = Q = -(1 - 0.9^(4 - t)) / 0.1 for five steps, whatever the expectile
    batch, rewards = chain(5)
    critic = tabular(6, horizon, gamma=0.9, expectile=0.8)
    learn(critic, batch, rewards, 60, 1 / 5)
    found = critic(batch)
    truth = torch.tensor([-(1 - 0.9**left) / 0.1 for left in (4, 3, 2, 1, 0)])
    torch.testing.assert_close(found.v[0, :5].detach(), truth, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.q[0], truth, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_v_is_the_expectile_of_logged_q(tau):
    # a state with two actions, returns 0 and 1, logged three times and once: V solves
    # 3 (1 - tau) V = tau (1 - V), so V = tau / (3 - 2 tau): 0.25, 0.4375 and 0.75
    state = torch.ones(4, 2, 1)
    actions = torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None, None]
    mask = torch.ones(4, 1, dtype=torch.bool)
    batch = TrajectoryBatch(state=state, actions=actions, mask=mask, end=torch.full((4,), int(End.FAILURE)))
    rewards = RewardEstimates(rewards=actions[:, :, 0], valid=mask)
    critic = tabular(1, expectile=tau)
    learn(critic, batch, rewards, 40, 3 / 4)
    assert float(critic(batch).v[0, 0]) == pytest.approx(tau / (3 - 2 * tau), abs=1e-3)
    torch.testing.assert_close(critic(batch).q[:, 0], actions[:, 0, 0], atol=1e-3, rtol=0)


def test_weights_count_in_v_too():
    # the same, with each row logged once and weight 3 for the first: tau 0.5 gives the weighted mean 1 / 4
    batch = TrajectoryBatch(
        state=torch.ones(2, 2, 1),
        actions=torch.tensor([0.0, 1.0])[:, None, None],
        mask=torch.ones(2, 1, dtype=torch.bool),
        end=torch.full((2,), int(End.FAILURE)),
        source=torch.tensor([5, 6]),
    )
    rewards = RewardEstimates(rewards=batch.actions[:, :, 0], valid=batch.mask)
    critic = tabular(1, expectile=0.5, source_weights={"5": 3.0})
    learn(critic, batch, rewards, 40, 3 / 4)
    assert float(critic(batch).v[0, 0]) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("end", list(End))
def test_targets_at_each_end(end):
    # -1 a step, V = -10 everywhere, gamma 0.5 and chunks of 2: -1.5 - 2.5 inside, -1 - 5 or -1 at the end
    batch, rewards = chain(3, end, final=-1.0)
    critic = tabular(4, horizon=2, gamma=0.5)
    nn.init.constant_(critic.value.network[0].weight, -10.0)
    over = end in (End.SUCCESS, End.FAILURE)
    target = critic.targets(batch, rewards, critic.points(batch, rewards), None)[0]
    torch.testing.assert_close(target, torch.tensor([-4.0, -1.5, -1.0] if over else [-4.0, -4.0, -6.0]))


def test_v_regresses_to_the_smallest_target_member():
    # the target's members are 2 and -3; the online network is far away and must not matter
    batch, rewards = chain(1, End.FAILURE)
    critic = tabular(2, members=2, expectile=0.5)
    with torch.no_grad():
        critic.network.entries.fill_(50.0)
        critic.target.entries[:] = torch.tensor([2.0, -3.0])[:, None, None, None]
    found = critic.loss(batch, rewards)
    assert float(found["value_loss"]) == pytest.approx(0.5 * 9.0)  # tau · (-3 - 0)² is 0.5 · 9
    assert float(found["loss"].detach()) == pytest.approx(float(found["td_loss"] + found["value_loss"]))
    found["loss"].backward()
    assert critic.network.entries.grad is not None and critic.target.entries.grad is None
    # the squared error alone reaches Q: 2 · 50 / K a member
    assert float(critic.network.entries.grad[0, 0, 0, 0]) == pytest.approx(50.0)


def mixed():
    length, steps = torch.tensor([6, 3, 0, 1]), 6
    mask = torch.arange(steps) < length[:, None]
    batch = TrajectoryBatch(
        state=torch.randn(4, steps + 1, 3),
        actions=torch.randn(4, steps, 2).masked_fill(~mask[..., None], math.nan),
        mask=mask,
        end=torch.tensor([1, 2, 0, 3]),
        recorded={REPLAN: Labelled(values=torch.zeros(4, steps), valid=mask)},
    )
    return batch, RewardEstimates(rewards=torch.randn(4, steps).masked_fill(~mask, 0.0), valid=mask)


@pytest.mark.parametrize("members", [1, 2])
def test_it_keeps_what_every_critic_promises_and_asks_nobody(members):
    batch, rewards = mixed()
    network = ChunkTransformer(3, 2, 3, members, width=16, layers=1, heads=2)
    critic = ExpectileCritic(network, hidden=(8,))
    critic.fit_scales(batch)
    assert bool(critic.value.fitted)
    check_critic(critic, batch, rewards)


def test_v_reads_what_q_reads_through_the_same_encoder():
    batch, rewards = mixed()
    frames = torch.randint(0, 256, (4, 7, 3, 8, 8), dtype=torch.uint8)
    step = torch.arange(7).repeat(4, 1)
    batch = replace(batch, frames={"front": Sampled(values=frames, step=step)})
    network = ChunkPerceptron(3, 2, 2, 2, (8,), CriticInputs(("front",), FrozenPixels()))
    critic = ExpectileCritic(network, hidden=(8,)).eval()
    assert critic.value.reads.encoder is critic.network.reads.encoder is critic.target.reads.encoder
    before = critic(batch).v
    other = replace(batch, frames={"front": Sampled(values=255 - frames, step=step)})
    assert not torch.allclose(critic(other).v, before)
    torch.testing.assert_close(reopen(critic)(batch).v, before)
    assert math.isfinite(float(critic.loss(batch, rewards)["loss"].detach()))


@pytest.mark.parametrize("expectile", [0.0, 1.0, -0.5, 1.5])
def test_expectiles_that_make_no_sense_are_refused(expectile):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ExpectileCritic(ChunkPerceptron(1, 1), expectile=expectile)


def test_nothing_to_learn_from_gives_zero_for_v_as_well():
    batch, rewards = chain(2)
    critic = tabular(3)
    critic.loss(batch, replace(rewards, valid=~batch.mask))["loss"].backward()
    assert bool((critic.value.network[0].weight.grad == 0).all())
