"""The base of the critics of chunks: target networks, scales, padding, sizes, and arguments of before."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from guerdon.core.batch import Labelled, RewardEstimates
from guerdon.core.sizes import DataSizes, take_sizes
from guerdon.critics.action import ActionCritic
from guerdon.critics.best_of import BestOfCritic
from guerdon.critics.ensembles import Aggregation
from guerdon.critics.expectile import ExpectileCritic
from guerdon.critics.logged import REPLAN, LoggedChunks
from guerdon.critics.monte_carlo import MonteCarloCritic
from guerdon.critics.networks import ChunkPerceptron
from guerdon.testing import pad_steps, reopen

from .small_parts import rows_of


def stepwise(batch):
    """The same rows, with a decision at every step: no chunk spans a re-plan."""
    flags = Labelled(values=torch.ones(batch.mask.shape), valid=batch.mask)
    return replace(batch, recorded={REPLAN: flags})


class Zero:
    version = 0

    def __call__(self, batch, rows, steps, n):
        return torch.zeros(n, len(rows), 2, 1)


def test_scales_and_the_moved_target_are_saved():
    batch, rewards = rows_of([3, 2])
    critic = ActionCritic(ChunkPerceptron(2, 1, 2, hidden=(8,)))
    critic.fit_scales(batch)
    torch.testing.assert_close(critic.target.state_scale.mean, batch.state[batch.made].mean(0))
    assert bool(critic.target.fitted)
    with torch.no_grad():
        for parameter in critic.network.parameters():
            parameter += 1.0
    critic.after_step()
    again = reopen(critic)
    for name, value in critic.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    mine, theirs = (dict(n.named_parameters()) for n in (again.network, again.target))
    assert all(not torch.equal(mine[name], theirs[name]) for name in mine)
    found = [c.targets(stepwise(batch), rewards, c.points(stepwise(batch), rewards), Zero()) for c in (critic, again)]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_the_target_stays_in_evaluation_mode_and_gets_no_gradient():
    batch, rewards = rows_of([3, 2])
    critic = ActionCritic(ChunkPerceptron(2, 1, 2, hidden=(8,))).train()
    assert critic.network.training and not critic.target.training
    critic.loss(stepwise(batch), rewards, Zero())["loss"].backward()
    assert all(p.grad is not None for p in critic.network.parameters())
    assert all(p.grad is None and not p.requires_grad for p in critic.target.parameters())


def test_a_critic_that_was_frozen_learns_again_without_its_target():
    # an advantage source freezes its critic; the next iteration goes on training it
    critic = ExpectileCritic(ChunkPerceptron(2, 1, 2, hidden=(8,)))
    learns = [p.requires_grad for p in critic.parameters()]
    assert True in learns and False in learns
    assert not any(p.requires_grad for p in critic.requires_grad_(False).parameters())
    assert [p.requires_grad for p in critic.requires_grad_(True).parameters()] == learns


def test_padding_changes_neither_loss_nor_gradient():
    batch, rewards = rows_of([4, 2, 0])
    once = (torch.arange(4) == 0).float().repeat(3, 1)
    batch = replace(batch, recorded={REPLAN: Labelled(values=once, valid=batch.mask)})
    critic = ActionCritic(ChunkPerceptron(2, 1, 3, hidden=(8,)))
    found = []
    for extra in (0, 3):
        longer = pad_steps(batch, extra)
        padded = nn.functional.pad(rewards.rewards, (0, extra), value=math.nan)
        known = nn.functional.pad(rewards.valid, (0, extra))
        critic.zero_grad()
        loss = critic.loss(longer, RewardEstimates(rewards=padded, valid=known), Zero())["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in critic.network.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_small_micro_batches_give_the_same():
    batch, _ = rows_of([5, 3, 0, 1])
    network = ChunkPerceptron(2, 1, 2, hidden=(8,))
    large, small = (ActionCritic(network, micro_batch=size, value_samples=3)(batch, Zero()) for size in (4096, 2))
    for part in ("v", "q", "members"):
        torch.testing.assert_close(getattr(large, part), getattr(small, part))


def test_rows_without_a_step_are_legal_alone():
    batch, rewards = rows_of([2])
    empty = replace(batch, mask=torch.zeros(1, 2, dtype=torch.bool), decision_step=torch.full((1, 2), -1))
    critic = ActionCritic(ChunkPerceptron(2, 1, 2, hidden=(8,)))
    found = critic(empty, Zero())
    assert bool((found.q == 0).all()) and bool((found.v[:, 1:] == 0).all())
    assert float(critic.loss(empty, replace(rewards, valid=empty.mask), Zero())["loss"].detach()) == 0.0


CRITICS = [ActionCritic, BestOfCritic, ExpectileCritic, MonteCarloCritic]


@pytest.mark.parametrize("kind", CRITICS)
def test_the_arguments_of_the_objects_may_be_given_one_by_one(kind):
    flat = kind(
        ChunkPerceptron(2, 1, 2, hidden=(8,)),
        pessimism="lcb",
        lcb=0.5,
        source_weights={"1": 3.0},
        across_replans=True,
        tails="mask",
    )
    assert (flat.aggregation.pessimism, flat.aggregation.lcb) == ("lcb", 0.5)
    assert (flat.logged.source_weights, flat.logged.across_replans, flat.logged.tails) == ({1: 3.0}, True, "mask")
    again = reopen(flat)
    assert (again.aggregation.lcb, again.logged.tails) == (0.5, "mask")
    assert set(flat.init_args) == set(kind(ChunkPerceptron(2, 1)).init_args)


@pytest.mark.parametrize("kind", CRITICS)
def test_one_object_serves_several_critics(kind):
    rules, reduction = LoggedChunks(tails="mask"), Aggregation("mean")
    pair = [kind(ChunkPerceptron(2, 1), aggregation=reduction, logged=rules) for _ in range(2)]
    assert pair[0].logged is pair[1].logged is rules and pair[0].aggregation is pair[1].aggregation is reduction


def test_members_are_reduced_pessimistically_unless_the_best_of_many_is_taken():
    assert [kind(ChunkPerceptron(2, 1)).aggregation.pessimism for kind in CRITICS] == ["min", "mean", "min", "min"]


@pytest.mark.parametrize("kind", CRITICS)
def test_a_critic_without_sizes_is_built_from_those_of_the_data(kind):
    batch, rewards = rows_of([3, 2])
    critic = kind(ChunkPerceptron(hidden=(8,), horizon=2))
    with pytest.raises(ValueError, match=r"ChunkPerceptron.state_size and ChunkPerceptron.action_size"):
        critic.fit_scales(batch)
    with pytest.raises(ValueError, match="is not built yet"):
        critic.loss(stepwise(batch), rewards, Zero())
    with pytest.raises(ValueError, match="is not built yet"):
        critic(batch, Zero())
    torch.manual_seed(3)
    assert take_sizes(critic, DataSizes(name="here", state_size=2, action_size=1))
    torch.manual_seed(3)
    same = kind(ChunkPerceptron(2, 1, hidden=(8,), horizon=2))
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in critic.state_dict().items())
    assert [p.requires_grad for p in critic.parameters()] == [p.requires_grad for p in same.parameters()]
    assert bool(critic(batch, Zero()).v.isfinite().all())
    assert reopen(critic).network.state_size == 2


def test_a_critic_made_for_another_robot_is_refused_naming_both():
    critic = ActionCritic(ChunkPerceptron(2, 1))
    with pytest.raises(ValueError, match="ChunkPerceptron has action_size 1, and the actions of here are 4 wide"):
        take_sizes(critic, DataSizes(name="here", state_size=2, action_size=4))
