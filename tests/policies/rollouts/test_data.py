"""Rollouts for a trainer: fresh ones in every batch, counted, sized, with held-out starts and hidden outcomes."""

from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any
from unittest import mock

import lightning
import pytest
import torch
from torch import nn

from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Decision
from guerdon.core.interfaces import Policy
from guerdon.core.sizes import DataSizes
from guerdon.critics.value import ValueCritic
from guerdon.envs.task import EVAL_OFFSET
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.loops.curriculum import Curriculum
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts import setting as setting_module
from guerdon.policies.rollouts.data import RolloutData, RolloutFrames, hash_seed
from guerdon.policies.rollouts.groups import GroupRollouts
from guerdon.policies.rollouts.pieces import GROUPS_APART
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedReward

from .small_tasks import Corridor, Slow, SlowStreet, Street, building


class Versioned(Policy):
    """Writes its only parameter, the number of updates so far, into every sample."""

    horizon = 1

    def __init__(self):
        super().__init__()
        self.version = nn.Parameter(torch.zeros(()))

    def act(self, observation, deterministic=False, generator=None):
        assert not self.training, "an acting policy is in evaluation mode"
        chunk = self.version.detach().expand(len(observation), 1, 3).clone()
        return Decision(chunk=chunk, executed=torch.ones(len(observation), dtype=torch.long))


class Counting(lightning.LightningModule):
    """Adds one to the policy's parameter per rollout and keeps what it was shown."""

    def __init__(self, policy):
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.shown, self.batches, self.judged = policy, [], [], []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch, index):
        assert self.policy.training, "a rollout must leave the policy as it found it"
        fresh = batch.weight > 0  # it decides at every step
        self.shown.append(sorted(set(batch.behaviour["sample"][fresh].flatten().tolist())))
        self.batches.append(batch)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(-self.policy.version)
        optimizer.step()

    def validation_step(self, batch, index):
        self.judged.append(batch)


def trainer(**more: Any):
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return lightning.Trainer(**(quiet | more))


def test_every_rollout_comes_from_the_policy_as_it_is():
    module = Counting(Versioned())
    data = RolloutData("mujoco/reach", steps=6, rollouts=3, envs=2, horizon=4, eval_contexts=2)
    trainer(max_epochs=2).fit(module, data)
    assert module.shown == [[float(i)] for i in range(6)], "a rollout was made before the update that preceded it"
    assert [set(b.behaviour["sample"].flatten().tolist()) for b in module.judged] == [{3.0}, {6.0}]
    assert data._pool is None, "the workers outlive the run"


def test_the_data_know_the_sizes_of_the_task_before_and_after_they_are_set_up():
    data = RolloutData("mujoco/reach", steps=8, envs=1, contexts=1, eval_contexts=0)
    wanted = DataSizes(name="mujoco/reach", state_size=12, action_size=3)
    assert data.sizes == wanted
    policy = GaussianPolicy(hidden=(8,))
    module = PolicyOptimizer(policy, RewardToGo(RecordedReward(), ValueCritic(hidden=(8,))), ClippedSurrogate())
    data = RolloutData("mujoco/reach", steps=8, rollouts=1, envs=1, contexts=1, eval_contexts=0)
    trainer(max_epochs=1).fit(module, data)
    assert data.sizes == wanted
    assert (policy.state_size, policy.action_size) == (12, 3)


def test_the_stream_is_sized_and_counts_what_it_took():
    module = Counting(Versioned())
    data = RolloutData("mujoco/reach", steps=6, rollouts=3, envs=2, horizon=4, eval_contexts=0)
    run = trainer(max_epochs=1)
    run.fit(module, data)
    assert run.num_training_batches == 3
    assert data.env_steps == sum(int(b.weight.sum()) for b in module.batches)
    assert data.rollouts_made == 3
    other = RolloutData("mujoco/reach")
    other.load_state_dict(data.state_dict())
    assert (other.env_steps, other.rollouts_made) == (data.env_steps, 3)
    other.load_state_dict({"env_steps": 7, "rollouts_made": 2})
    assert (other.env_steps, other.rollouts_made) == (7, 2), "checkpoints of before open"


def test_training_and_judging_never_share_a_start():
    module = Counting(Versioned())
    data = RolloutData("mujoco/reach", steps=60, rollouts=2, envs=4, horizon=3, contexts=7, eval_contexts=3)
    trainer(max_epochs=1).fit(module, data)
    trained = {int(g) for b in module.batches for g in b.group}
    assert trained <= set(range(7))
    assert len(trained) > 3
    assert module.judged[0].group.tolist() == [EVAL_OFFSET + i for i in range(3)]


def test_a_hidden_outcome_is_hidden_from_training_only():
    module = Counting(Versioned())
    data = RolloutData(
        "mujoco/reach", steps=8, rollouts=1, envs=2, horizon=4, end_on_success=False, hide_outcome=True, eval_contexts=2
    )
    trainer(max_epochs=1).fit(module, data)
    batch = module.batches[0]
    assert (batch.recorded, batch.labels, bool(batch.success_known.any())) == ({}, {}, False)
    assert module.judged[0].success_known.all()
    with pytest.raises(ValueError, match="end_on_success=False"):
        RolloutData("mujoco/reach", hide_outcome=True)


def test_rollouts_need_a_module_with_a_policy():
    with pytest.raises(TypeError, match="a module with a policy"):
        trainer(max_epochs=1).fit(Counting(nn.Linear(1, 1)), RolloutData("mujoco/reach", horizon=3, eval_contexts=0))


def test_seeds_of_ranks_and_rollouts_never_meet():
    seeds = {hash_seed(*parts) for parts in product(range(12), range(12), range(60))}
    assert len(seeds) == 12 * 12 * 60
    assert all(0 <= s < 1 << 48 for s in seeds)


# --- several tasks, frames ------------------------------------------------------------------------------------------


def fit(module, data, *tasks, **more):
    """Train with tasks of the test's own."""
    built: dict[str, Any] = {task.name: task for task in tasks}
    with ExitStack() as stack:
        stack.enter_context(building(lambda name: built[name]()))
        stack.enter_context(mock.patch.object(setting_module, "make_task", lambda name, horizon, seed: built[name]()))
        run = trainer(max_epochs=1, **more)
        run.fit(module, data)
    return run


def test_training_and_validation_play_every_task():
    module = Counting(Walker())
    data = RolloutData(
        [Corridor.name, Street.name], steps=24, rollouts=2, envs=4, contexts=6, eval_contexts=2, spares=2
    )
    fit(module, data, Corridor, Street)
    assert data.task_names == ("test/corridor", "test/street")
    for batch in module.batches:
        fresh = (batch.weight > 0).sum(1)
        assert [int(fresh[batch.task == number].sum()) for number in range(2)] == [12, 12]
    judged = module.judged[0]
    first = EVAL_OFFSET
    assert judged.group.tolist() == [first, first + 1, GROUPS_APART + first, GROUPS_APART + first + 1]
    assert judged.instructions == ("walk", "walk", "cross", "cross")


class Walker(Versioned):
    """The policy that counts its updates, with one action."""

    def act(self, observation, deterministic=False, generator=None):
        decision = super().act(observation)
        return replace(decision, chunk=decision.chunk[..., :1])


def test_initial_states_are_not_both_trained_and_judged_on():
    data = RolloutData("mujoco/reach", envs=1, contexts=3, eval_contexts=2, eval_split="train")
    with pytest.raises(ValueError, match=r"2 of the 2 initial states of the validation are trained on \(split 'train'"):
        data.setup("fit")


class Winning(Corridor):
    """Every episode from a held-out context succeeds, the first at once."""

    def step(self, action):
        return replace(super().step(action), success=True)


def test_validation_logs_the_success_of_each_task():
    source = RewardToGo(RecordedReward(), ValueCritic(hidden=(8,)))
    module = PolicyOptimizer(GaussianPolicy(hidden=(8,)), source, ClippedSurrogate(), passes=1)
    data = RolloutData([Winning.name, Street.name], steps=12, rollouts=1, envs=2, contexts=2, eval_contexts=3)
    run = fit(module, data, Winning, Street)
    metrics = {name: float(value) for name, value in run.callback_metrics.items() if "val_success" in name}
    assert metrics == {"val_success": 0.5, "val_success/test/corridor": 1.0, "val_success/test/street": 0.0}
    module = PolicyOptimizer(GaussianPolicy(hidden=(8,)), source, ClippedSurrogate(), passes=1)
    run = fit(module, RolloutData(Winning.name, steps=4, rollouts=1, envs=1, eval_contexts=1), Winning)
    assert [name for name in run.callback_metrics if "val_success" in name] == ["val_success"]


def test_tasks_that_cannot_be_trained_together_are_named():
    class Wide(Street):
        state_size = 3

    class Twin(Corridor):
        """Calls itself what the other does."""

    data = RolloutData([Corridor.name, Street.name], envs=2)
    with pytest.raises(ValueError, match=r"test/street has states of width 3.*test/corridor has 2 and 1"):
        fit(Counting(Versioned()), data, Corridor, Wide)
    with (
        mock.patch.object(setting_module, "make_task", lambda name, horizon, seed: Twin()),
        pytest.raises(ValueError, match="two of the tasks call themselves 'test/corridor'"),
    ):
        RolloutData(["one", "two"], envs=2).setup("fit")
    data = RolloutData([Corridor.name, Street.name], envs=1)
    with pytest.raises(ValueError, match="one environment per task, got 1 for 2"):
        fit(Counting(Versioned()), data, Corridor, Street)


class Seeing(GaussianPolicy):
    """Reads the mean of each colour of the frame, and nothing else."""

    def __init__(self):
        super().__init__(0, 1, hidden=(8,), horizon=2, execute=2, feature_sizes={"eye": 3})

    def distribution(self, observation):
        colours = observation.frames["eye"].float().mean((2, 3)) / 255
        blind = replace(observation, state=observation.state[:, :0], features={"eye": colours}, frames={})
        return super().distribution(blind)


def test_a_policy_that_reads_frames_learns_from_a_reward_that_reads_frames():
    torch.manual_seed(1)
    seeing = ObservationEncoder(
        cameras=("eye",), encoder=ConvEncoder(width=8, channels=(4, 8), size=8), width=16, layers=1, heads=2
    )
    module = PolicyOptimizer(
        Seeing(), RewardToGo(ProgressReward(observer=seeing), ValueCritic(2, hidden=(8,))), ClippedSurrogate(), passes=1
    )
    data = RolloutData(
        [Slow.name, SlowStreet.name],
        steps=40,
        rollouts=1,
        envs=2,
        end_on_success=False,
        hide_outcome=False,
        eval_contexts=1,
        frames=RolloutFrames(cameras=["eye"], image_size=8),
    )
    before = [p.clone() for p in module.policy.parameters()]
    run = fit(module, data, Slow, SlowStreet)
    assert float(run.callback_metrics["ratio_error"]) < 1e-5, "training saw what acting saw"
    assert float(run.callback_metrics["reward_unknown"]) == 0
    assert any(not torch.equal(p, b) for p, b in zip(module.policy.parameters(), before, strict=True))


def test_cameras_may_be_given_one_by_one():
    data: Any = RolloutData
    one = data("mujoco/reach", cameras=["top"], image_size=32)
    assert one.setting.frames == RolloutFrames(cameras=["top"], image_size=32)


def test_a_copy_for_one_task_has_the_same_settings_and_has_played_nothing():
    groups = GroupRollouts(size=2, contexts=2, curriculum=Curriculum())
    both = RolloutData(["mujoco/reach", "kitchen/kettle"], steps=40, envs=2, horizon=7, seed=3, groups=groups)
    both.progress.made = 4
    one = both.for_task("kitchen/kettle")
    assert one.task_names == ("kitchen/kettle",) and both.task_names == ("mujoco/reach", "kitchen/kettle")
    assert (one.steps, one.setting.horizon, one.seed, one.rollouts_made) == (40, 7, 3, 0)
    assert both.for_task("mujoco/reach", seed=9).seed == 9
    assert one.groups is not None and one.groups.curriculum is not groups.curriculum  # it remembers what was played
