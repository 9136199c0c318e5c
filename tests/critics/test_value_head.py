"""A value head on the policy's hidden state: gradients, freezing, one evaluation, learning, saving, errors."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.core.interfaces import Policy
from guerdon.critics.distributional import DistributionalValue
from guerdon.critics.value import ValueCritic
from guerdon.critics.value_head import ValueHead
from guerdon.critics.value_loss import ValueLoss
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.measures import explained_variance
from guerdon.policies.minibatches import DecisionPoints
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.rewards.recorded import RecordedReward
from guerdon.testing import reopen

from ..policies.test_optimizer import Loader, fit, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Counted(GaussianPolicy):
    """Counts how often it is evaluated, and how often its hidden state alone is asked for."""

    evaluated = asked = 0

    def evaluate(self, observation, decision):
        self.evaluated += 1
        return super().evaluate(observation, decision)

    def hidden(self, observation):
        self.asked += 1
        return super().hidden(observation)


def walk(policy, rows=8, steps=6, seed=0) -> TrajectoryBatch:
    """What a policy did; the reward of a step is the first number of its state."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(rows, steps + 1, 2, generator=generator)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(rows, steps, 2),
        mask=mask,
        end=torch.full((rows,), int(End.FAILURE)),
        recorded={"reward": Labelled(values=state[:, :-1, 0], valid=mask)},
    )
    row = torch.arange(rows).repeat_interleave(steps)
    step = torch.arange(steps).repeat(rows)
    decision = policy.act(batch.observe(row, step), generator=generator)
    behaviour = {
        "sample": decision.chunk.unflatten(0, (rows, steps)),
        "log_prob": decision.log_prob.unflatten(0, (rows, steps)),
    }
    return replace(batch, decision_step=torch.arange(steps).expand(rows, -1), behaviour=behaviour)


def source_of(policy, stop_gradient=True, **more: Any) -> RewardToGo:
    source = RewardToGo(RecordedReward(), ValueHead(hidden=(16,), stop_gradient=stop_gradient), gamma=0.0, **more)
    source.attach(policy)
    return source


def prepared(policy, source, learns=True):
    """Advantages of a rollout, and a minibatch of all of its decisions."""
    batch = walk(policy)
    advantages = source(batch, source.estimate(batch))
    every = torch.arange(int(advantages.valid.sum()))
    return batch, advantages, DecisionPoints(policy, batch, advantages, learns).minibatch(every, every)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_policy_gets_a_gradient_from_the_value_only_if_it_is_let_through(stop_gradient):
    policy = GaussianPolicy(2, 2, hidden=(8,))
    source = source_of(policy, stop_gradient)
    batch, advantages, minibatch = prepared(policy, source)
    source.on_minibatch(batch, advantages, minibatch)["loss"].backward()
    critic: Any = source.critic
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in critic.parameters())
    moved = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    # the layers before the hidden state, not the one that makes the mean out of it
    assert moved == (set() if stop_gradient else {"network.0.weight", "network.0.bias"})


def test_values_are_those_of_the_hidden_state_of_the_policy_that_acted():
    policy = GaussianPolicy(2, 2, hidden=(8,))
    source = source_of(policy, normalise=False)
    batch, advantages, minibatch = prepared(policy, source)
    hidden = minibatch.evaluation.hidden
    assert hidden is not None
    critic: Any = source.critic
    torch.testing.assert_close(advantages.values[:, :-1].flatten(), critic(hidden).detach())
    wanted = (critic(hidden) - advantages.returns.flatten()).square().mean() * 0.5
    torch.testing.assert_close(source.on_minibatch(batch, advantages, minibatch)["loss"], wanted)
    # the same outside of a minibatch, where the policy is asked again
    torch.testing.assert_close(source.loss(batch, advantages, minibatch.rows, minibatch.steps)["loss"], wanted)


def test_the_policy_is_evaluated_once_per_minibatch():
    policy = Counted(2, 2, hidden=(8,))
    batch = walk(policy)
    module = PolicyOptimizer(policy, source_of(policy), ClippedSurrogate(), passes=3, minibatch_size=16)
    fit(module, [batch])
    assert policy.evaluated == 9  # 48 decisions in minibatches of 16, three times
    assert policy.asked == 1  # when the advantages were formed


def test_micro_batches_give_the_gradient_of_the_whole_minibatch_to_head_and_policy():
    found: list[dict[str, torch.Tensor]] = []
    for micro_batch in (None, 7):
        torch.manual_seed(0)
        policy = GaussianPolicy(2, 2, hidden=(8,))
        source = RewardToGo(RecordedReward(), ValueHead(hidden=(16,), stop_gradient=False), gamma=0.0)
        module = PolicyOptimizer(
            policy, source, ClippedSurrogate(), passes=2, minibatch_size=24, micro_batch=micro_batch
        )
        fit(module, [walk(policy)])
        found.append(module.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_a_frozen_policy_stays_as_it_is_while_the_head_learns(stop_gradient):
    policy = GaussianPolicy(2, 2, hidden=(8,))
    policy.inputs.fitted.fill_(True)
    before = copy.deepcopy(policy.state_dict())
    source = RewardToGo(RecordedReward(), ValueHead(hidden=(16,), stop_gradient=stop_gradient), gamma=0.0)
    module = PolicyOptimizer(policy, source, ClippedSurrogate(), passes=2, freeze_policy_batches=2)
    batches = [walk(policy, seed=seed) for seed in range(3)]
    fit(module, batches[:2])
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    head: Any = source.critic
    assert head.width == 8
    start = ValueHead(8, hidden=(16,))
    assert any(not torch.equal(a, b) for a, b in zip(head.parameters(), start.parameters(), strict=True))


def test_the_head_learns_what_the_hidden_state_shows():
    gained: list[float] = []
    for seed in range(5):
        torch.manual_seed(seed)
        policy = GaussianPolicy(2, 2, hidden=(32,))
        source = RewardToGo(RecordedReward(), ValueHead(hidden=(32,)), gamma=0.0)
        module = PolicyOptimizer(
            *(policy, source, ClippedSurrogate()),
            passes=10,
            minibatch_size=64,
            optimizer=PolicyAdam(critic_learning_rate=1e-2),
            freeze_policy_batches=10,
        )
        fit(module, [walk(policy, rows=32, seed=10 * seed + i) for i in range(6)])
        fresh = walk(policy, rows=32, seed=999 + seed)
        after = explained_variance(source(fresh, source.estimate(fresh))).item()
        blank = source_of(policy)
        gained.append(after - max(0.0, explained_variance(blank(fresh, blank.estimate(fresh))).item()))
        assert after > 0.8, f"seed {seed}: explained variance {after}"
    mean = sum(gained) / len(gained)
    error = math.sqrt(sum((x - mean) ** 2 for x in gained) / (len(gained) - 1) / len(gained))
    assert mean > 3 * error


def test_a_checkpoint_holds_the_head_once_and_the_policy_once(tmp_path):
    policy = GaussianPolicy(2, 2, hidden=(8,))
    source = RewardToGo(RecordedReward(), ValueHead(hidden=(16,)))
    module = PolicyOptimizer(policy, source, ClippedSurrogate(), passes=1)
    run = fit(module, [walk(policy)])
    names = [name for name in module.state_dict() if name.startswith("advantage.critic")]
    assert names == [f"advantage.critic.network.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")]
    run.save_checkpoint(tmp_path / "kept.ckpt")
    other_policy = GaussianPolicy(2, 2, hidden=(8,))
    other = PolicyOptimizer(
        other_policy, RewardToGo(RecordedReward(), ValueHead(hidden=(16,))), ClippedSurrogate(), passes=1
    )
    # the epoch of the checkpoint is over: it is opened, and nothing more is learned
    trainer().fit(other, Loader(lambda i: walk(policy), 1), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    kept = other.state_dict()
    assert kept.keys() == module.state_dict().keys()
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())


def test_a_head_is_saved_with_the_width_of_its_policy():
    head = ValueHead(hidden=(4,), activation="gelu", last_std=0.02)
    policy = GaussianPolicy(2, 2, hidden=(8,))
    head.attach(policy)
    again = reopen(head)
    assert again.width == 8
    hidden = torch.randn(5, 8)
    assert torch.equal(again(hidden), head(hidden))


def test_the_networks_of_the_papers():
    # RL4VLA: GELU, 512 and 128 wide, the last layer without a bias and drawn with standard deviation 0.02
    head = ValueHead(64, hidden=(512, 128), activation="gelu", last_std=0.02)
    kinds = [type(layer) for layer in head.network]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    last: Any = head.network[-1]
    assert last.bias is None and 0.015 < last.weight.std().item() < 0.025
    assert [type(layer) for layer in ValueHead(64, (), "relu").network] == [nn.Linear]


def test_clipped_values_and_values_in_a_range():
    policy = GaussianPolicy(2, 2, hidden=(8,))
    plain, given = source_of(policy, normalise=False), {"clip": 0.2, "huber": 10.0, "value_range": (0.0, 0.1)}
    ranged = RewardToGo(
        RecordedReward(), ValueHead(hidden=(16,)), gamma=1.0, lam=1.0, normalise=False, value_loss=ValueLoss(**given)
    )
    ranged.critic = plain.critic
    batch, advantages, minibatch = prepared(policy, ranged)
    # Σ of later rewards minus the value in its range; the values themselves are reported as they are
    later = batch.recorded["reward"].values.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages.advantages, later - advantages.values[:, :-1].clamp(0.0, 0.1))
    assert bool((advantages.values[:, :-1] < 0).any())
    found = ranged.on_minibatch(batch, advantages, minibatch)
    error = (advantages.values[:, :-1] - advantages.returns).abs()
    huber = torch.where(error < 10, 0.5 * error.square(), 10 * (error - 5))
    torch.testing.assert_close(found["loss"], 0.5 * huber.mean())
    assert found["value_clipped"].item() == 0.0  # nothing was learned yet


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="DistributionalValue has a loss of its own"):
        RewardToGo(RecordedReward(), DistributionalValue(2), value_loss=ValueLoss(clip=0.2))
    assert RewardToGo(RecordedReward(), ValueCritic(2), value_loss=ValueLoss(clip=0.2)).value_loss is not None
    with pytest.raises(ValueError, match="expected widths of at least 1"):
        ValueHead(hidden=(0,))
    with pytest.raises(ValueError, match="last_std 0"):
        ValueHead(last_std=0.0)
    policy = GaussianPolicy(2, 2, hidden=(8,))
    with pytest.raises(ValueError, match="width 5, and those of GaussianPolicy are 8 wide"):
        ValueHead(5).attach(policy)
    with pytest.raises(ValueError, match="not built yet"):
        ValueHead()(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="expected hidden states of width 4, got 8"):
        ValueHead(4)(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="none is attached"):
        ValueHead(8).value(walk(policy).observe(torch.zeros(1).long(), torch.zeros(1).long()))


class Blind(GaussianPolicy):
    """Evaluates decisions without a hidden state."""

    def evaluate(self, observation, decision):
        return replace(super().evaluate(observation, decision), hidden=None)


def test_a_policy_whose_evaluation_holds_no_hidden_state_is_named():
    policy = Blind(2, 2, hidden=(8,))
    source = source_of(policy)
    batch, advantages, minibatch = prepared(policy, source)
    with pytest.raises(ValueError, match="Blind evaluates decisions without a hidden state"):
        source.on_minibatch(batch, advantages, minibatch)


def test_a_policy_without_a_hidden_state_is_named():
    class Plain(Policy):
        horizon = 1

    with pytest.raises(NotImplementedError, match="Plain has no hidden state"):
        ValueHead().attach(Plain())
