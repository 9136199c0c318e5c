"""The policy optimizer in a real trainer: what is used when and how often, resuming, two processes, learning."""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from guerdon.core.batch import Advantages, End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import AdvantageSource, Minibatch, RewardModel
from guerdon.core.returns import leave_one_out
from guerdon.core.sizes import DataSizes
from guerdon.critics.action import ActionCritic
from guerdon.critics.networks import ChunkPerceptron
from guerdon.critics.value import ValueCritic
from guerdon.critics.value_head import ValueHead
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.advantages.action_advantage import ActionAdvantage
from guerdon.policies.advantages.reward_to_go import RewardToGo, Uniform
from guerdon.policies.advantages.step_advantage import StepAdvantage
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate, WeightedImitation
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.weights import Exponential, RewardAligned, TopShare, Weighting
from guerdon.rewards.recorded import RecordedReward

# most runs here have nothing to judge on
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Loader:
    """A sized stream: a list of batches, or a function called for each."""

    def __init__(self, make, length):
        self.make, self.length = make, length

    def __len__(self):
        return self.length

    def __iter__(self):
        return (self.make(i) for i in range(self.length))


def trainer(**more: Any):
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "max_epochs": 1,
    }
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return lightning.Trainer(**(quiet | more))


def fit(module, batches, **more):
    run = trainer(**more)
    run.fit(module, Loader(lambda i: batches[i], len(batches)))
    return run


def rollout(policy, rows=6, steps=7, seed=0, **more):
    """What a policy did from random states; rewards are noise. Decisions as far apart as it carries out."""
    generator = torch.Generator().manual_seed(seed)
    decision_step = torch.arange(0, steps, policy.execute).expand(rows, -1)
    count = decision_step.shape[1]
    state = torch.randn(rows, steps + 1, 2, generator=generator)
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(rows, steps, policy.action_size),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        end=torch.full((rows,), int(End.TIME_LIMIT)),
        recorded={
            "reward": Labelled(
                values=torch.randn(rows, steps, generator=generator), valid=torch.ones(rows, steps, dtype=torch.bool)
            )
        },
    )
    where = torch.arange(rows).repeat_interleave(count)
    decision = policy.eval().act(batch.observe(where, decision_step.flatten()), generator=generator)
    policy.train()
    behaviour = {
        "sample": decision.chunk.view(rows, count, policy.horizon, policy.action_size),
        "log_prob": decision.log_prob.view(rows, count, -1),
    }
    return replace(batch, decision_step=decision_step, behaviour=behaviour, **more)


class Watching(ClippedSurrogate):
    """Keeps which decisions it saw and how far their ratios were from 1."""

    def __init__(self):
        super().__init__()
        self.seen, self.ratio_error = [], []

    def forward(self, policy, observation, decision, advantage, weight):
        parts = super().forward(policy, observation, decision, advantage, weight)
        self.seen.append(decision.chunk[:, 0, 0].tolist())
        self.ratio_error.append(float(parts["ratio_error"]))
        return parts


def made(horizon=1, execute=1, objective=None, advantage=None, **options: Any) -> Any:
    policy = GaussianPolicy(2, 2, horizon=horizon, execute=execute, hidden=(8,))
    source = advantage or RewardToGo(RecordedReward(), ValueCritic(2, hidden=(8,)))
    return PolicyOptimizer(policy, source, objective or Watching(), **options)


# --- what is used when, and how often -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("horizon, execute", [(1, 1), (3, 2)])
def test_the_first_ratio_is_one_and_the_next_is_not(horizon, execute, precision):
    module = made(horizon, execute, passes=2, minibatch_size=10)
    fit(module, [rollout(module.policy)], precision=precision)
    errors = module.objective.ratio_error
    assert errors[0] < 1e-5, "the policy that learns is not the policy that acted"
    assert all(error > 1e-5 for error in errors[1:]), "nothing moves"


def test_every_decision_is_used_once_in_every_pass():
    module = made(passes=3, minibatch_size=10)
    batch = rollout(module.policy, rows=6, steps=7)  # 42 decisions in 5 minibatches
    fit(module, [batch])
    seen = module.objective.seen
    assert [len(s) for s in seen] == [9, 9, 8, 8, 8] * 3
    each = sorted(batch.behaviour["sample"][..., 0, 0].flatten().tolist())
    passes = [[x for s in seen[5 * i : 5 * i + 5] for x in s] for i in range(3)]
    assert [sorted(p) for p in passes] == [each] * 3
    assert passes[0] != passes[1] != passes[2], "the order is drawn anew for every pass"


def test_context_and_unknown_decisions_are_never_used():
    module = made(passes=2, minibatch_size=4)
    batch = rollout(module.policy, rows=2, steps=4)
    weight = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    valid = torch.tensor([[True] * 4, [True, False, True, True]])
    reward = replace(batch.recorded["reward"], valid=valid)
    fit(module, [replace(batch, weight=weight, recorded={"reward": reward})])
    used = {x for s in module.objective.seen for x in s}
    sample = batch.behaviour["sample"][..., 0, 0]
    assert used == {float(x) for x in sample[(weight > 0) & valid]}


def test_a_batch_without_a_decision_changes_nothing():
    module = made()
    batch = rollout(module.policy)
    before = [p.clone() for p in module.parameters()]
    fit(module, [replace(batch, weight=torch.zeros_like(batch.weight))])
    assert all(torch.equal(b, p) for b, p in zip(before, module.parameters(), strict=True))
    assert int(module.batches_seen) == 1


class Counted(RewardToGo):
    """Counts how often it is asked."""

    def __init__(self, reward: RewardModel, critic: ValueCritic):
        super().__init__(reward, critic)
        self.calls = {"estimate": 0, "forward": 0, "loss": 0}
        self.seen = []

    def estimate(self, batch):
        self.calls["estimate"] += 1
        return super().estimate(batch)

    def forward(self, batch, rewards, proposer=None):
        self.calls["forward"] += 1
        return super().forward(batch, rewards)

    def loss(self, batch, advantages, rows, steps):
        self.calls["loss"] += 1
        self.seen.append(batch.behaviour["sample"][rows, steps, 0, 0].tolist())  # it decides at every step
        return super().loss(batch, advantages, rows, steps)


def test_estimates_and_advantages_are_computed_once_per_batch():
    source = Counted(RecordedReward(), ValueCritic(2, hidden=(4,)))
    module = made(advantage=source, passes=4, minibatch_size=21)
    fit(module, [rollout(module.policy, seed=0), rollout(module.policy, seed=1)])
    assert source.calls == {"estimate": 2, "forward": 2, "loss": 2 * 4 * 2}
    assert source.seen == module.objective.seen, "critic and policy are shown different decisions"


class HeadAdvantage(AdvantageSource):
    """Values by a linear head on the hidden layer of the policy, which it does not train (stop-gradient)."""

    def __init__(self, policy: GaussianPolicy, stop: bool = True):
        super().__init__()
        self.policy, self.head, self.stop = policy, nn.Linear(8, 1), stop

    def estimate(self, batch):
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask)

    @torch.no_grad()
    def forward(self, batch, rewards, proposer=None):
        returns = batch.state[:, :-1].sum(2)
        return Advantages(advantages=torch.zeros_like(returns), returns=returns, valid=batch.decision_mask)

    def on_minibatch(self, batch, advantages, minibatch):
        hidden = minibatch.evaluation.hidden
        value = self.head(hidden.detach() if self.stop else hidden).squeeze(1)
        error = (value - advantages.returns[minibatch.rows, minibatch.decisions]).square().mean()
        return {"loss": error, "value_error": error.detach()}


class Evaluating(GaussianPolicy):
    """Counts its evaluations."""

    evaluations = 0

    def evaluate(self, observation, decision):
        self.evaluations += 1
        return super().evaluate(observation, decision)


class OwnObjective(ClippedSurrogate):
    """An objective as users wrote it before minibatches were shared: it asks the policy itself."""

    def forward(self, policy, observation, decision, advantage, weight):
        now = policy.evaluate(observation, decision)
        assert decision.log_prob is not None
        return {"loss": ((now.log_prob - decision.log_prob).sum(1) * weight).mean()}


def errors_of_a_head(stop=True, objective=None, **options):
    policy = Evaluating(2, 2, hidden=(8,))
    module = PolicyOptimizer(policy, HeadAdvantage(policy, stop), objective or Watching(), **options)
    found = []

    class Noting(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            found.append(float(trainer.callback_metrics["value_error"]))

    batch = rollout(policy, rows=6, steps=7)
    policy.evaluations = 0
    fit(module, [batch] * 3, callbacks=[Noting()])
    return module, found


def test_the_policy_is_evaluated_once_per_minibatch_for_objective_and_value():
    module, errors = errors_of_a_head(passes=4, minibatch_size=21, learning_rate=0.02)
    assert module.policy.evaluations == 3 * 4 * 2
    assert errors[2] < 0.7 * errors[0], "the head on the hidden layer learns nothing"
    own, _ = errors_of_a_head(objective=OwnObjective(), passes=4, minibatch_size=21)
    assert own.policy.evaluations == 2 * 3 * 4 * 2, "an objective of one's own evaluates by itself, as before"


def test_what_the_value_loss_does_to_the_policy_is_up_to_the_source():
    for stop in (True, False):
        torch.manual_seed(0)
        module, _ = errors_of_a_head(stop=stop, passes=2)  # advantages of 0: the objective moves nothing
        torch.manual_seed(0)
        start = Evaluating(2, 2, hidden=(8,))
        first, trained = (policy.get_submodule("network.0").weight for policy in (start, module.policy))
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(trained)) == stop


def test_a_frozen_policy_lends_its_hidden_layer_and_stays_as_it_is():
    torch.manual_seed(0)
    module, errors = errors_of_a_head(stop=False, passes=4, freeze_policy_batches=3, learning_rate=0.02)
    torch.manual_seed(0)
    start = Evaluating(2, 2, hidden=(8,))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), module.policy.parameters(), strict=True))
    assert errors[2] < errors[0] and module.objective.seen == []


class Dropping(RewardModel):
    """A trained reward with dropout, which must never drop."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.9))
        self.modes = []

    def forward(self, batch):
        self.modes.append(any(m.training for m in self.modules()))
        rewards = self.network(batch.state[:, 1:]).squeeze(2)
        return RewardEstimates(rewards=rewards, valid=batch.mask)


def test_the_reward_stays_as_it_was_trained():
    reward = Dropping()
    module = made(advantage=RewardToGo(reward, ValueCritic(2, hidden=(4,))), passes=2)
    before = {k: v.clone() for k, v in reward.state_dict().items()}
    fit(module, [rollout(module.policy, seed=0), rollout(module.policy, seed=1)])
    assert reward.modes == [False, False]
    assert all(p.grad is None and not p.requires_grad for p in reward.parameters())
    assert all(torch.equal(before[k], v) for k, v in reward.state_dict().items())


def test_the_policy_waits_while_the_critic_warms_up():
    module = made(passes=1, freeze_policy_batches=1)
    batch = rollout(module.policy)
    policy = {k: v.clone() for k, v in module.policy.state_dict().items()}
    critic = {k: v.clone() for k, v in module.advantage.critic.network.state_dict().items()}
    fit(module, [batch])
    assert all(torch.equal(policy[k], v) for k, v in module.policy.state_dict().items())
    assert not all(torch.equal(critic[k], v) for k, v in module.advantage.critic.network.state_dict().items())
    assert module.objective.seen == []
    fit(module, [batch])
    assert not all(torch.equal(policy[k], v) for k, v in module.policy.state_dict().items())


def test_passes_stop_once_the_policy_has_moved_far_enough():
    quiet, bold = (made(passes=20, minibatch_size=50, target_kl=k, learning_rate=0.01) for k in (None, 1e-4))
    for module in (quiet, bold):
        fit(module, [rollout(module.policy)])
    assert len(quiet.objective.seen) == 20
    assert 1 < len(bold.objective.seen) < 20


def test_learning_rates_are_kept_apart():
    groups = made(learning_rate=1e-3, critic_learning_rate=1e-2).configure_optimizers().param_groups
    assert [g["lr"] for g in groups] == [1e-3, 1e-2]
    assert [g["lr"] for g in made(learning_rate=1e-3).configure_optimizers().param_groups] == [1e-3, 1e-3]
    assert len(made(advantage=Uniform()).configure_optimizers().param_groups) == 1


def test_a_parameter_that_policy_and_source_share_is_the_policys_alone():
    policy = GaussianPolicy(2, 2, hidden=(8,))
    source = HeadAdvantage(policy)
    groups = PolicyAdam(1e-3, critic_learning_rate=1e-2).make(policy, source).param_groups
    assert [g["lr"] for g in groups] == [1e-3, 1e-2]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in policy.parameters()}
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in source.head.parameters()}


def test_parts_of_the_policy_have_learning_rates_of_their_own():
    policy = GaussianPolicy(2, 2, hidden=(8,))
    adam = PolicyAdam(1e-3, part_learning_rates={"network.2": 1e-4, "network": 1e-5, "log_std": 1e-2})
    rates = {id(p): g["lr"] for g in adam.make(policy, Uniform()).param_groups for p in g["params"]}
    expected = {"network.0": 1e-5, "network.2": 1e-4, "log_std": 1e-2}
    for name, parameter in policy.named_parameters():
        assert rates[id(parameter)] == next(rate for part, rate in expected.items() if name.startswith(part)), name
    module = made(part_learning_rates={"log_std": 1e-9}, learning_rate=0.1)
    before = {k: v.detach().clone() for k, v in module.policy.named_parameters()}
    fit(module, [rollout(module.policy)])
    moved = {k: float((v.detach() - before[k]).abs().max()) for k, v in module.policy.named_parameters()}
    assert moved.pop("log_std") < 1e-6 < 1e-2 < min(moved.values())


def test_a_part_that_the_policy_lacks_is_refused_naming_those_it_has():
    policy = GaussianPolicy(2, 2, hidden=(8,))
    for part in ("head", "net", "network.0.weights"):
        with pytest.raises(ValueError, match=f"'{part}' names no parameter of GaussianPolicy.* log_std, network"):
            PolicyAdam(part_learning_rates={part: 1e-4}).make(policy, Uniform())
    with pytest.raises(ValueError, match=r"log_std has 0\.0, expected a positive number"):
        PolicyAdam(part_learning_rates={"log_std": 0.0})


def test_flat_arguments_become_the_optimizer():
    flat = made(learning_rate=0.5, max_grad_norm=2.0)
    assert (flat.optimizer.learning_rate, flat.optimizer.critic_learning_rate) == (0.5, 0.5)
    assert flat.optimizer.max_grad_norm == 2.0
    with pytest.raises(TypeError, match="optimizer and learning_rate are both given"):
        made(optimizer=PolicyAdam(), learning_rate=0.5)


@pytest.mark.parametrize("name", ["learning_rate", "critic_learning_rate", "max_grad_norm"])
def test_settings_of_the_optimizer_are_positive(name):
    with pytest.raises(ValueError, match=name):
        settings: dict[str, Any] = {name: 0.0}
        PolicyAdam(**settings)


def test_what_does_not_learn_is_left_out_of_the_optimizer():
    policy, source = GaussianPolicy(2, 2, hidden=(4,)), RewardToGo(RecordedReward(), ValueCritic(2, hidden=(4,)))
    assert len(PolicyAdam().make(policy, source).param_groups) == 2
    assert len(PolicyAdam().make(policy, source.requires_grad_(False)).param_groups) == 1


# --- sizes from the data --------------------------------------------------------------------------------------------


class Sized(lightning.LightningDataModule):
    """Rollouts of a policy, with the sizes of their states and actions."""

    def __init__(self, batches, state_size=2, action_size=2):
        super().__init__()
        self.batches, self.sizes = batches, DataSizes(name="here", state_size=state_size, action_size=action_size)

    def train_dataloader(self):
        return Loader(lambda i: self.batches[i], len(self.batches))


def test_policy_and_critic_without_sizes_take_them_from_the_data():
    policy = GaussianPolicy(hidden=(8,))
    source = RewardToGo(RecordedReward(), ValueCritic(hidden=(8,)))
    module = PolicyOptimizer(policy, source, WeightedImitation(), passes=1, optimizer=PolicyAdam(learning_rate=0.1))
    batch = rollout(GaussianPolicy(2, 2, hidden=(8,)))
    trainer().fit(module, datamodule=Sized([batch]))
    assert (policy.state_size, policy.action_size, source.critic.state_size) == (2, 2, 2)
    assert policy.init_args["state_size"] == 2 and int(module.batches_seen) == 1
    assert not any(p.requires_grad for p in source.reward.parameters())
    assert module._proposer.policy is policy


def test_sizes_that_are_not_those_of_the_data_are_refused_naming_both():
    module = made()
    with pytest.raises(ValueError, match="GaussianPolicy has action_size 2, and the actions of here are 3 wide"):
        trainer().fit(module, datamodule=Sized([rollout(module.policy)], action_size=3))


def test_batches_that_name_no_sizes_cannot_build_a_policy():
    module = PolicyOptimizer(GaussianPolicy(), Uniform(), WeightedImitation())
    missing = r"PolicyOptimizer is not built yet, GaussianPolicy.state_size and GaussianPolicy.action_size unknown"
    with pytest.raises(ValueError, match=missing):
        fit(module, [rollout(GaussianPolicy(2, 2, hidden=(8,)))])


# --- what the objective and the source are told ---------------------------------------------------------------------


class Asking(AdvantageSource):
    """Asks the proposer for chunks, and gives their first number as the advantage."""

    def __init__(self):
        super().__init__()
        self.versions, self.chunks, self.expected = [], [], []

    def estimate(self, batch):
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask)

    def forward(self, batch, rewards, proposer=None):
        rows, steps = batch.mask.nonzero(as_tuple=True)
        chunks = proposer(batch, rows, steps, 1)[0]
        self.versions.append(proposer.version)
        self.chunks.append(chunks)
        value = chunks[:, 0, 0].view(batch.mask.shape)
        return Advantages(advantages=value, returns=value, valid=batch.mask)


def test_a_source_may_ask_the_policy_as_it_is_when_a_batch_begins():
    source = Asking()
    module = made(horizon=3, execute=2, objective=WeightedImitation(), advantage=source, freeze_policy_batches=1)
    weights = []

    class Noting(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            weights.append(module.policy.network[0].weight.clone())

    batch = logged()
    fit(module, [batch, batch, batch, batch], callbacks=[Noting()])
    assert [c.shape for c in source.chunks] == [(40, 2, 2)] * 4, "cut to the steps that are carried out"
    # the first batch is not for the policy, so it is the same for the second
    same = [torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert same == [True, False, False]
    assert [a == b for a, b in itertools.pairwise(source.versions)] == same
    assert [torch.equal(a, b) for a, b in itertools.pairwise(source.chunks)] == same
    assert not any("propos" in name for name in module.state_dict()), "the policy would be saved twice"
    assert [m for m in module.modules() if m is module.policy] == [module.policy]


def test_another_run_does_not_see_the_chunks_of_an_earlier_one():
    source = Asking()
    module = made(objective=WeightedImitation(), advantage=source, freeze_policy_batches=9)
    batch = logged()
    fit(module, [batch])
    with torch.no_grad():
        module.policy.network[-1].bias += 100  # another policy, say from a checkpoint
    fit(module, [batch])
    assert source.versions == [0, 0]
    assert (source.chunks[1] > 50).all() and (source.chunks[0] < 50).all()


class Weights(WeightedImitation):
    """Keeps the weights that it was handed."""

    def __init__(self, weighting: Weighting):
        super().__init__(weighting)
        self.asked, self.handed = 0, []

    def weights(self, batch, advantages):
        self.asked += 1
        return super().weights(batch, advantages)

    def forward(self, policy, observation, decision, advantage, weight):
        self.handed.append(dict(zip(advantage.tolist(), weight.tolist(), strict=True)))
        return super().forward(policy, observation, decision, advantage, weight)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [Exponential, TopShare, RewardAligned])
def test_weights_do_not_depend_on_the_minibatch_or_the_pass(weighting):
    values = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    told = Advantages(advantages=values, returns=values, valid=torch.ones(8, 5, dtype=torch.bool))
    handed = []
    for size in (40, 7):
        module = made(objective=Weights(weighting()), advantage=Fixed(told), passes=3, minibatch_size=size)
        fit(module, [logged()])
        assert module.objective.asked == 1
        assert int(module.objective.weighting.memory.count) == 40, "statistics move once per batch, not per pass"
        for part in module.objective.handed:
            assert len(part) <= size
        each = {a: {part[a] for part in module.objective.handed if a in part} for a in values.flatten().tolist()}
        assert all(len(found) == 1 for found in each.values())
        handed.append(each)
    assert handed[0] == handed[1]
    assert len({w for found in handed[0].values() for w in found}) > 1


def test_statistics_of_weights_are_resumed(tmp_path):
    values = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    told = Advantages(advantages=values, returns=values, valid=torch.ones(8, 5, dtype=torch.bool))

    def fresh():
        return made(objective=WeightedImitation(Exponential()), advantage=Fixed(told), passes=1)

    module = fresh()
    fit(module, [logged()]).save_checkpoint(tmp_path / "one.ckpt")
    again = fresh()
    trainer(max_epochs=2).fit(again, Loader(lambda i: logged(), 1), ckpt_path=tmp_path / "one.ckpt")
    assert int(again.objective.weighting.memory.count) == 80


def test_a_trained_critic_stays_as_it_was():
    critic = ActionCritic(ChunkPerceptron(2, 2))
    module = made(objective=WeightedImitation(Exponential()), advantage=ActionAdvantage(critic), passes=2)
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    policy = {k: v.clone() for k, v in module.policy.state_dict().items()}
    figures = fit(module, [logged(seed=i) for i in range(2)]).callback_metrics
    assert all(torch.equal(before[k], v) for k, v in critic.state_dict().items())
    assert not all(torch.equal(policy[k], v) for k, v in module.policy.state_dict().items())
    assert 0 < float(figures["effective_share"]) < 1
    values = ValueCritic(2, hidden=(4,))  # trained without fitting its inputs
    stepped = made(objective=WeightedImitation(Exponential()), advantage=StepAdvantage(values, RecordedReward()))
    fit(stepped, [rollout(stepped.policy)])
    assert not bool(values.reads.fitted) and bool(stepped.objective.weighting.memory.count > 0)


@pytest.mark.slow
def test_imitation_weighted_by_advantages_learns_the_better_of_two_habits():
    """W2: actions −1 and 1 in equal numbers, advantages −1 and 1 with beta 1. The mean is (e − 1/e)/(e + 1/e) = 0.7616,
    where cloning has 0."""
    found = {}
    for weighting in (None, Exponential(beta=1.0)):
        means = []
        for seed in range(3):
            torch.manual_seed(seed)
            actions = torch.tensor([-1.0, 1.0]).repeat(32)[:, None, None].expand(-1, 5, 2)
            batch = TrajectoryBatch(
                state=torch.randn(64, 6, 2), actions=actions.clone(), mask=torch.ones(64, 5, dtype=torch.bool)
            )
            value = actions[:, :, 0].clone()
            told = Advantages(advantages=value, returns=value, valid=batch.mask)
            objective = WeightedImitation(weighting, renormalise=True)
            module = made(objective=objective, advantage=Fixed(told), passes=60, learning_rate=0.02)
            fit(module, [batch])
            with torch.no_grad():
                means.append(float(module.policy.act(observe(torch.randn(200, 2)), deterministic=True).chunk.mean()))
        found[weighting is not None] = torch.tensor(means)
    assert (found[True] - 0.7616).abs().max() < 0.06
    assert found[False].abs().max() < 0.06


# --- input scales ---------------------------------------------------------------------------------------------------


def logged(rows=8, steps=5, seed=0):
    """Demonstrations of action = 2 · state: no sample, no log-probability."""
    state = 3 + torch.randn(rows, steps + 1, 2, generator=torch.Generator().manual_seed(seed))
    return TrajectoryBatch(
        state=state, actions=2 * state[:, :-1], mask=torch.ones(rows, steps, dtype=torch.bool), success=torch.ones(rows)
    )


def test_scales_come_from_logs_but_never_change_under_a_policy_that_acted():
    cloned = made(objective=WeightedImitation(), advantage=Uniform())
    batch = logged()
    fit(cloned, [batch])
    states = batch.state[:, :-1].flatten(0, 1)
    assert torch.allclose(cloned.policy.inputs.mean, states.mean(0), atol=1e-5)
    acting = made()
    fit(acting, [rollout(acting.policy)])
    assert not bool(acting.policy.inputs.fitted)
    assert bool(acting.advantage.critic.reads.fitted)


def test_a_reward_keeps_the_scales_it_was_trained_with():
    from guerdon.backbones.perceptron import Inputs

    reward = Dropping()
    reward.inputs = Inputs(2)  # never fitted: it was trained without
    module = made(advantage=RewardToGo(reward, ValueCritic(2, hidden=(4,))))
    fit(module, [rollout(module.policy)])
    assert not bool(reward.inputs.fitted)
    assert reward.inputs.std.tolist() == [1, 1]


# --- behaviour cloning, validation ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_cloning_learns_the_demonstrations():
    module = made(objective=WeightedImitation(), advantage=Uniform(), passes=1, minibatch_size=40, learning_rate=0.02)
    before = imitation(module.policy)
    fit(module, [logged(32, seed=i) for i in range(10)], max_epochs=4)
    assert imitation(module.policy) < 0.1 * before


def imitation(policy):
    batch = logged(seed=99)
    rows, steps = batch.mask.nonzero(as_tuple=True)
    observation, decision = batch.at(rows, steps, policy.horizon)
    with torch.no_grad():
        return policy.imitation_loss(observation, decision.chunk, torch.ones(len(rows), 1, dtype=torch.bool)).mean()


def test_validation_counts_known_outcomes_only_and_imitates_only_others():
    module = made()
    rolled = rollout(module.policy, rows=4)
    known = replace(
        rolled, success=torch.tensor([1.0, 0.0, 1.0, 1.0]), success_known=torch.tensor([True, True, False, True])
    )
    run = trainer()
    run.validate(module, Loader(lambda i: known, 1), verbose=False)
    assert float(run.callback_metrics["val_success"]) == pytest.approx(2 / 3)
    assert "val_imitation" not in run.callback_metrics
    run.validate(module, Loader(lambda i: logged(), 1), verbose=False)
    assert math.isfinite(run.callback_metrics["val_imitation"])


def test_the_success_of_logged_episodes_is_not_called_that_of_the_policy():
    batch = logged()
    known = torch.ones(len(batch), dtype=torch.bool)
    recorded = replace(batch, success=torch.ones(len(batch)), success_known=known)
    run = trainer()
    run.validate(made(), Loader(lambda i: recorded, 1), verbose=False)
    assert float(run.callback_metrics["data_success"]) == 1
    assert "val_success" not in run.callback_metrics


# --- figures --------------------------------------------------------------------------------------------------------


class Fixed(AdvantageSource):
    """Says what it is told."""

    def __init__(self, advantages: object = None):
        super().__init__()
        self.told = advantages

    def estimate(self, batch):
        return RewardEstimates(rewards=torch.full_like(batch.weight, 2.0), valid=batch.mask & (batch.weight > 0))

    def forward(self, batch, rewards, proposer=None):
        return self.told


def test_what_is_logged_by_hand():
    returns = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    # valid: errors 1, 0, -1 with variance 1 against returns with variance 1: nothing explained
    told = Advantages(
        advantages=torch.ones(1, 4),
        returns=returns,
        valid=torch.tensor([[True, True, True, False]]),
        values=torch.tensor([[0.0, 2.0, 4.0, 0.0, 0.0]]),
    )
    module = made(advantage=Fixed(told), passes=2, minibatch_size=2)
    batch = rollout(module.policy, rows=1, steps=4, weight=torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    figures = {k: float(v) for k, v in fit(module, [batch]).callback_metrics.items()}
    assert figures["reward_per_row"] == 6
    assert figures["reward_unknown"] == 0.25
    assert (figures["decisions"], figures["updates"]) == (3, 4)
    assert figures["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert {"kl", "clipped", "entropy"} <= figures.keys()
    assert "critic_loss" not in figures


def test_the_ratio_error_is_that_of_the_first_minibatch_and_the_largest_stands_beside_it():
    module = made(passes=5, minibatch_size=20, learning_rate=0.05)
    figures = {k: float(v) for k, v in fit(module, [rollout(module.policy)]).callback_metrics.items()}
    errors = module.objective.ratio_error
    assert figures["ratio_error"] == pytest.approx(errors[0], abs=1e-7) and errors[0] < 1e-5
    assert figures["ratio_error_max"] == pytest.approx(max(errors)) and max(errors) > 0.01


@pytest.mark.parametrize("objective", [ClippedSurrogate(), WeightedImitation(Exponential())])
@pytest.mark.parametrize("field", ["advantages", "returns"])
def test_a_known_advantage_that_is_no_number_is_refused(objective, field):
    values = {"advantages": torch.ones(1, 4), "returns": torch.ones(1, 4)}
    values[field][0, 2] = torch.nan
    module = made(advantage=Fixed(Advantages(**values, valid=torch.ones(1, 4, dtype=torch.bool))), objective=objective)
    batch = rollout(module.policy, rows=1, steps=4)
    with pytest.raises(ValueError, match=r"decision 2 of episode 0 is nan and counts as known \(1 in all\)"):
        fit(module, [batch])
    hidden = Advantages(**values, valid=torch.tensor([[True, True, False, True]]))
    fit(made(advantage=Fixed(hidden), objective=objective), [batch])


# --- bad input ------------------------------------------------------------------------------------------------------


class Exploding(ClippedSurrogate):
    """Has a gradient that is no number."""

    def forward(self, policy, observation, decision, advantage, weight):
        return {"loss": super().forward(policy, observation, decision, advantage, weight)["loss"] * torch.nan}


def test_a_gradient_that_is_no_number_stops_the_run_before_it_does_harm():
    module = made(objective=Exploding())
    batch = rollout(module.policy)
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(FloatingPointError, match="gradient became nan after 0 batches: lower the learning rate"):
        fit(module, [batch])
    assert all(torch.equal(b, p) for b, p in zip(before, module.parameters(), strict=True))


def test_a_reward_that_is_no_number_is_refused():
    module = made()
    batch = rollout(module.policy)
    batch.recorded["reward"].values[0, 0] = torch.nan
    with pytest.raises(ValueError, match="recorded 'reward' of episode 0 is nan at step 0"):
        fit(module, [batch])


@pytest.mark.parametrize("options", [{"passes": 0}, {"minibatch_size": 0}])
def test_at_least_one_pass_and_one_decision(options):
    with pytest.raises(ValueError, match="at least one pass and one decision"):
        made(**options)


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    batches = [rollout(GaussianPolicy(2, 2, hidden=(8,)), seed=i) for i in range(2)]

    def fresh():
        torch.manual_seed(7)
        return made(passes=2, minibatch_size=10, freeze_policy_batches=1)

    whole = fresh()
    fit(whole, batches, max_epochs=3)
    half = fresh()
    fit(half, batches, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(123)
    resumed = made(passes=2, minibatch_size=10, freeze_policy_batches=1)
    run = trainer(max_epochs=3)
    run.fit(resumed, Loader(lambda i: batches[i], 2), ckpt_path=tmp_path / "half.ckpt")
    assert int(resumed.batches_seen) == int(whole.batches_seen) == 6
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(half.policy.network[0].weight, whole.policy.network[0].weight)


# --- several processes ----------------------------------------------------------------------------------------------

TWO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
import test_optimizer as here
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData

torch.set_num_threads(1)
torch.manual_seed(0)
module = here.made(passes=2, minibatch_size=8, freeze_policy_batches=1)  # the policy gets no gradient at first
def unequal(i):
    rank = module.global_rank
    batch = here.rollout(module.policy, rows=1 + 5 * rank, steps=7, seed=10 * i + rank)  # 7 and 42 decisions
    if i == 1 and rank == 0:
        batch = replace(batch, weight=torch.zeros_like(batch.weight))                    # none and 42
    if i == 2 and rank == 0:
        batch = replace(batch, weight=torch.nn.functional.one_hot(torch.tensor([3]), 7).float())  # one and 42
    return batch
run = here.trainer(strategy="ddp_fork", devices=2)
class Saving(here.lightning.Callback):
    def on_train_end(self, trainer, module):
        moments = trainer.optimizers[0].state
        steps = {int(moments[p]["step"]) for p in module.policy.parameters()}
        torch.save({"state": module.state_dict(), "seen": module.objective.seen, "steps": steps},
                   f"{sys.argv[2]}/unequal{module.global_rank}.pt")
run.callbacks.append(Saving())
run.fit(module, here.Loader(unequal, 4))

policy = here.GaussianPolicy(12, 3, hidden=(8,))
source = here.RewardToGo(here.RecordedReward(), here.ValueCritic(12, hidden=(8,)))
module = PolicyOptimizer(policy, source, here.Watching(), passes=1, minibatch_size=16)
data = RolloutData("mujoco/reach", steps=20, rollouts=2, envs=2, horizon=6, eval_contexts=0)
run = here.trainer(strategy="ddp_fork", devices=2)
class Rolled(here.lightning.Callback):
    def on_train_end(self, trainer, module):
        torch.save({"state": module.state_dict(), "seen": module.objective.seen,
                    "errors": module.objective.ratio_error}, f"{sys.argv[2]}/rolled{module.global_rank}.pt")
run.callbacks.append(Rolled())
run.fit(module, data)

module = PolicyOptimizer(here.GaussianPolicy(2, 2, hidden=(8,)), here.Uniform(), here.WeightedImitation(), passes=2)
def logged(i):  # an imitation loss gives the deviation of the policy no gradient
    return replace(here.rollout(module.policy, rows=3, steps=4, seed=10 * i + module.global_rank), behaviour={})
run = here.trainer(strategy="ddp_fork", devices=2)
class Cloned(here.lightning.Callback):
    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), f"{sys.argv[2]}/cloned{module.global_rank}.pt")
run.callbacks.append(Cloned())
run.fit(module, here.Loader(logged, 2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_two_processes_with_unequal_rollouts_stay_in_step(tmp_path):
    here = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-c", TWO, str(here), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,  # a deadlock would wait for ever
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    for name in ("unequal", "rolled"):
        first, second = (torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2))
        for key, value in first["state"].items():
            assert torch.equal(value, second["state"][key]), f"{name}: {key} differs between the processes"
        assert len(first["seen"]) == len(second["seen"]), f"{name}: different numbers of updates"
        assert all(first["seen"] + second["seen"]), f"{name}: an empty minibatch"
        mine, theirs = ({x for s in part["seen"] for x in s} for part in (first, second))
        assert not mine & theirs, f"{name}: both processes saw the same decisions"
    first, second = (torch.load(tmp_path / f"cloned{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    # ⌈7/8⌉ and ⌈42/8⌉: 1 and 6, so 3 each, in two passes; none: nothing; one decision: 1 each. The first batch is the
    # critic's alone, the second has no decision on one rank.
    assert [len(s) for s in torch.load(tmp_path / "unequal0.pt")["seen"]] == [1] * 2 + [3, 2, 2] * 2
    # Adam counts the steps of the policy's own updates: with those of the warm-up its first step would be too large
    assert torch.load(tmp_path / "unequal0.pt")["steps"] == {8}
    assert all(torch.load(tmp_path / f"rolled{rank}.pt")["errors"][0] < 1e-5 for rank in range(2))


# --- learning -------------------------------------------------------------------------------------------------------


def walk(policy, rows, seed, deterministic=False, steps=8):
    """A point at x moves by its action, at most 0.3 a dimension; the reward is minus its distance to the origin."""
    generator = torch.Generator().manual_seed(seed)
    state = [2 * torch.rand(rows, 2, generator=generator) - 1]
    actions, samples, log_probs = [], [], []
    policy.eval()
    for _ in range(0, steps, policy.execute):
        decision = policy.act(observe(state[-1]), deterministic, generator)
        samples.append(decision.chunk)
        log_probs.append(decision.log_prob)
        for k in range(policy.execute):
            actions.append(decision.chunk[:, k].clamp(-0.3, 0.3))
            state.append(state[-1] + actions[-1])
    policy.train()
    seen = torch.stack(state, 1)
    reward = -seen[:, 1:].norm(dim=2)
    known = torch.ones(rows, steps, dtype=torch.bool)
    return TrajectoryBatch(
        state=seen,
        actions=torch.stack(actions, 1),
        mask=known,
        end=torch.full((rows,), int(End.TIME_LIMIT)),
        recorded={"reward": Labelled(values=reward, valid=known)},
        decision_step=torch.arange(0, steps, policy.execute).expand(rows, -1),
        behaviour={"sample": torch.stack(samples, 1), "log_prob": torch.stack(log_probs, 1)},
    )


def observe(state):
    batch = TrajectoryBatch(
        state=state[:, None].expand(-1, 2, -1),
        actions=torch.zeros(len(state), 1, 2),
        mask=torch.ones(len(state), 1, dtype=torch.bool),
    )
    return batch.observe(torch.arange(len(state)), torch.zeros(len(state)).long())


@pytest.mark.slow
@pytest.mark.parametrize("horizon, execute", [(1, 1), (4, 2)])
def test_ppo_learns_to_walk_home(horizon, execute):
    gains = []
    for seed in range(3):
        torch.manual_seed(seed)
        policy = GaussianPolicy(2, 2, horizon=horizon, execute=execute, hidden=(32,), log_std=-1.0)
        source = RewardToGo(RecordedReward(), ValueCritic(2, hidden=(32,)), gamma=0.95)
        module = PolicyOptimizer(
            policy, source, ClippedSurrogate(), passes=4, minibatch_size=256, optimizer=PolicyAdam(learning_rate=6e-3)
        )

        def judged(policy=policy):
            return walk(policy, 200, seed=10_000, deterministic=True).recorded["reward"].values.sum(1)

        before = judged()
        run = trainer()
        run.fit(module, Loader(lambda i, p=policy, s=seed: walk(p, 64, seed=1000 * s + i), 16))
        gains.append(judged() - before)  # the same 200 starts: paired
    for gain in gains:
        interval = 1.96 * gain.std() / math.sqrt(len(gain))
        assert gain.mean() - interval > 0, "no gain beyond chance"
    # walking straight home from E|x| = 0.77 costs about 1.3 in all, standing still 8 · 0.77 = 6.1
    assert torch.stack(gains).mean() > 3


# --- minibatches of whole rows, and frozen parts ----------------------------------------------------------------------


class Rows(ClippedSurrogate):
    """Keeps the rows of each minibatch."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.rows: list[list[int]] = []

    def on_minibatch(self, minibatch, advantage, weight):
        self.rows.append(minibatch.rows.tolist())
        return super().on_minibatch(minibatch, advantage, weight)


def test_minibatches_of_whole_rows_hold_every_decision_of_them_once_in_a_pass():
    module = made(objective=Rows(average="trajectory"), passes=2, minibatch_episodes=4)
    fit(module, [rollout(module.policy, rows=6, steps=5)])
    found = module.objective.rows
    assert [len(rows) for rows in found] == [15, 15, 15, 15]  # two minibatches of three rows each
    for one in (found[:2], found[2:]):
        assert sorted(one[0] + one[1]) == [row for row in range(6) for _ in range(5)]
        assert not set(one[0]) & set(one[1])


def test_an_objective_of_trajectories_refuses_minibatches_that_cut_them():
    module = made(objective=Rows(average=32))
    with pytest.raises(ValueError, match=r"Rows averages over the decisions of each trajectory.*minibatch_episodes"):
        fit(module, [rollout(module.policy)])
    with pytest.raises(ValueError, match="at least one pass and one decision or episode"):
        made(minibatch_episodes=0)


def test_one_pass_over_one_full_batch_is_the_gradient_of_reinforce_with_a_baseline():
    """LOOP's reduction: at ratio 1 the clipped surrogate of whole rollouts is leave-one-out REINFORCE."""
    generator = torch.Generator().manual_seed(0)
    module = made(advantage=Uniform(), objective=ClippedSurrogate(unit="token", average="trajectory"))
    policy, batch = module.policy, rollout(module.policy, rows=4, steps=3)
    gain = leave_one_out(torch.randn(4, generator=generator), torch.zeros(4, dtype=torch.long))
    rows, steps = batch.mask.nonzero(as_tuple=True)
    observation, decision = batch.at(rows, steps, 1)
    minibatch = Minibatch(
        policy=policy, rows=rows, decisions=steps, steps=steps, observation=observation, decision=decision
    )
    module.objective.on_minibatch(minibatch, gain[rows], torch.ones(len(rows)))["loss"].backward()
    found = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    tokens = policy.evaluate(observation, decision).log_prob  # 12 decisions, 2 tokens each
    (-(gain[rows, None] * tokens).sum() / (3 * 2 * 4)).backward()
    for one, other in zip(found, policy.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-6, rtol=1e-4)


def test_frozen_parts_keep_their_bits_and_learn_again_afterwards():
    module = made(optimizer=PolicyAdam(learning_rate=1e-2, frozen_parts=("network.0", "log_std")), passes=2)
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    critic = [p.detach().clone() for p in module.advantage.parameters()]
    fit(module, [rollout(module.policy)])
    for name, parameter in module.policy.named_parameters():
        frozen = name in ("network.0.weight", "network.0.bias", "log_std")
        assert torch.equal(before[name], parameter) == frozen, name
        assert parameter.requires_grad
    assert any(not torch.equal(b, p) for b, p in zip(critic, module.advantage.parameters(), strict=True))
    module.optimizer = PolicyAdam(learning_rate=1e-2)
    fit(module, [rollout(module.policy, seed=1)])
    assert all(not torch.equal(before[name], p) for name, p in module.policy.named_parameters())


def test_a_frozen_part_that_does_not_exist_is_refused():
    module = made(optimizer=PolicyAdam(frozen_parts=("backbone",)))
    with pytest.raises(ValueError, match=r"frozen_parts: 'backbone' names no parameter.*log_std, network"):
        fit(module, [rollout(module.policy)])


class Attached(RewardToGo):
    """Keeps the policy that it was built for, and no part of it."""

    def attach(self, policy):
        self.__dict__["attached"] = policy


def test_an_advantage_source_is_attached_to_the_policy_before_training():
    source = Attached(RecordedReward(), ValueCritic(2, hidden=(4,)))
    module = made(advantage=source)
    fit(module, [rollout(module.policy)])
    assert source.__dict__["attached"] is module.policy


class Widest(GaussianPolicy):
    """Keeps the largest number of decisions that it evaluated at once."""

    widest = 0

    def evaluate(self, observation, decision):
        self.widest = max(self.widest, len(decision))
        return super().evaluate(observation, decision)


@pytest.mark.parametrize("options", [{}, {"unit": "token", "average": "trajectory"}, {"unit": "trajectory"}])
def test_micro_batches_take_the_steps_of_the_whole_minibatch(options):
    found = []
    for micro_batch in (None, 4):
        torch.manual_seed(0)
        policy = Widest(2, 2, horizon=2, execute=2, hidden=(8,))
        objective = ClippedSurrogate(entropy_weight=0.1, **options)
        module: Any = PolicyOptimizer(
            policy, Uniform(), objective, passes=3, minibatch_episodes=3, micro_batch=micro_batch
        )
        fit(module, [rollout(policy, rows=6, steps=7)])
        assert policy.widest == (12 if micro_batch is None else 4)
        found.append([p.detach().clone() for p in policy.parameters()])
    for whole, split in zip(*found, strict=True):
        torch.testing.assert_close(whole, split, atol=1e-6, rtol=1e-4)
    torch.manual_seed(0)
    start = GaussianPolicy(2, 2, horizon=2, execute=2, hidden=(8,))
    assert any(not torch.allclose(one, p, atol=1e-4) for one, p in zip(found[0], start.parameters(), strict=True))


class Unruly(GaussianPolicy):
    """Drops half of its inputs while it is in training mode."""

    def __init__(self, **options: Any):
        super().__init__(2, 2, hidden=(8,), **options)
        self.drop = nn.Dropout(0.5)

    def encoded(self, observation):
        return self.drop(super().encoded(observation))


def test_a_policy_with_dropout_learns_in_the_mode_in_which_it_acted():
    torch.manual_seed(0)
    module: Any = PolicyOptimizer(Unruly(), Uniform(), Watching(), passes=2, minibatch_size=100)
    fit(module, [rollout(module.policy)])
    assert module.objective.ratio_error[0] < 1e-5
    cloning: Any = PolicyOptimizer(Unruly(), Uniform(), WeightedImitation(), passes=1)
    fit(cloning, [rollout(cloning.policy)])
    assert cloning.policy.training  # cloning has no ratio, and drops inputs


class Tied(GaussianPolicy):
    """Has a weight under two names."""

    def __init__(self):
        super().__init__(2, 2, hidden=(8,))
        self.zcopy = nn.Linear(2, 8)
        first: Any = self.network[0]
        self.zcopy.weight = first.weight


def test_a_weight_that_is_tied_to_a_frozen_part_is_frozen():
    module: Any = PolicyOptimizer(
        Tied(), Uniform(), Watching(), optimizer=PolicyAdam(1e-2, frozen_parts=("zcopy",)), passes=1
    )
    before = module.policy.network[0].weight.detach().clone()
    fit(module, [rollout(module.policy)])
    assert torch.equal(before, module.policy.network[0].weight)
    assert module.policy.network[0].weight.requires_grad


class Breaking(Watching):
    """Fails at its first minibatch."""

    def forward(self, *parts):
        raise RuntimeError("broken")


def test_frozen_parts_learn_again_after_a_run_that_failed():
    module = made(objective=Breaking(), optimizer=PolicyAdam(1e-2, frozen_parts=("network",)))
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, [rollout(module.policy)])
    assert all(p.requires_grad for p in module.policy.parameters())


def test_a_policy_without_anything_that_learns_is_refused():
    module = made(advantage=Uniform(), optimizer=PolicyAdam(frozen_parts=("network", "log_std")))
    with pytest.raises(ValueError, match=r"no parameter of GaussianPolicy or of Uniform learns.*network, log_std"):
        fit(module, [rollout(module.policy)])


@pytest.mark.parametrize(
    "frozen, options",
    [
        (("network.0",), {"stop_gradient": False}),
        (("network", "log_std"), {"stop_gradient": False}),
        (("log_std",), {"stop_gradient": True}),
    ],
)
def test_micro_batches_with_frozen_parts_take_the_same_steps(frozen, options):
    found = []
    for micro_batch in (None, 5):
        torch.manual_seed(0)
        policy = GaussianPolicy(2, 2, hidden=(8, 8))
        module = PolicyOptimizer(
            policy,
            RewardToGo(RecordedReward(), ValueHead(hidden=(4,), **options)),
            ClippedSurrogate(entropy_weight=0.1),
            passes=2,
            minibatch_size=20,
            optimizer=PolicyAdam(frozen_parts=frozen),
            micro_batch=micro_batch,
        )
        fit(module, [rollout(policy)])
        found.append([p.detach().clone() for p in module.parameters()])
    for whole, split in zip(*found, strict=True):
        torch.testing.assert_close(whole, split, atol=1e-6, rtol=1e-4)


def test_micro_batches_of_an_objective_without_log_probabilities_are_refused():
    module = made(advantage=Uniform(), objective=WeightedImitation(), micro_batch=4)
    with pytest.raises(ValueError, match="micro_batch splits log-probabilities, which WeightedImitation does not use"):
        fit(module, [rollout(module.policy)])


@pytest.mark.parametrize(
    "bad", [{"learning_rate": math.nan}, {"max_grad_norm": math.nan}, {"critic_learning_rate": -1.0}]
)
def test_rates_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        PolicyAdam(**bad)


def test_a_large_seed_of_the_order_is_fine():
    module = made(passes=1, seed=2**60)
    fit(module, [rollout(module.policy)])
    assert len(module.objective.seen) == 1
