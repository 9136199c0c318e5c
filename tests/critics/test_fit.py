"""Training a critic through a real trainer on real files: what is drawn, fitted, kept, resumed and refused."""

import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from guerdon.backbones.optimization import ScheduledAdamW
from guerdon.commands.fit import companions
from guerdon.commands.learning_check import trained_component
from guerdon.core.batch import End, RewardEstimates
from guerdon.core.hub import load_component, save_component
from guerdon.core.interfaces import Component, Critic, RewardModel
from guerdon.core.pretrained import pretrained_critic
from guerdon.critics.action import ActionCritic
from guerdon.critics.distributional import DistributionalValue
from guerdon.critics.fit import CriticTraining, explained_variance
from guerdon.critics.networks import ChunkPerceptron
from guerdon.critics.value import ValueCritic
from guerdon.datasets.episodes import Column, Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.policies.advantages.action_advantage import ActionAdvantage
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer
from guerdon.rewards.step_cost import StepCost

pytestmark = pytest.mark.slow

ALL_ENDS = ("success", "failure", "time_limit", "takeover")


def walk(index, rng, **changes: Any):
    """A walk on a line from a random place to 0, which is a success; every third gives up half-way."""
    good = index % 3 != 2
    start = rng.uniform(0.6, 1.0) * rng.choice([-1, 1])
    steps = int(abs(start) * 12)
    place = np.linspace(start, 0 if good else start / 2, steps + 1)
    given: dict[str, Any] = {
        "state": np.stack([place, np.full(steps + 1, float(good))], 1).astype(np.float32),
        "actions": np.diff(place)[:, None].astype(np.float32),
        "instruction": "walk home",
        "task": 0,
        "end": End.SUCCESS if good else End.FAILURE,
        "success": float(good),
        "recorded": {"reward": Column.known(np.full(steps, -1.0, np.float32))},
    }
    return Episode(index=index, **(given | changes))


def write(path, count=30, **changes: Any):
    rng = np.random.default_rng(0)
    with LeRobotWriter(path, fps=10) as writer:
        for index in range(count):
            writer.add(walk(index, rng, **changes))
    return str(path)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "walks")


def logged(path, **more: Any):
    labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
    given = {"batch_size": 8, "val_fraction": 0.2, "labels": labels, "terminating": ALL_ENDS}
    return EpisodeData(path, **(given | more))


def fit(module, data, ckpt_path=None, **more: Any):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    run = lightning.Trainer(**(quiet | {"enable_model_summary": False, "max_epochs": 1} | more))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*number of training batches")
        run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return run


def aloe(seed=0, deterministic=False, critic=None, proposer=None, optimizer=None, **more: Any) -> Any:
    torch.manual_seed(seed)
    proposer = proposer or PolicyProposer(GaussianPolicy(2, 1, hidden=(8,)), deterministic=deterministic)
    critic = critic or ActionCritic(ChunkPerceptron(2, 1, hidden=(16,)), polyak_rate=0.1)
    given = {"transitions": 32, "updates_per_batch": 2, "optimizer": optimizer or ScheduledAdamW(warmup_steps=3)}
    return CriticTraining(critic, StepCost(), proposer, **(given | more))


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class Watching(ValueCritic):
    """Keeps what it was asked to learn from."""

    def __init__(self):
        super().__init__(2, hidden=(4,), gamma=0.99)
        self.seen, self.steps = [], 0

    def loss(self, batch, rewards, proposer=None):
        if self.training:
            self.seen.append((batch.episode.clone(), batch.weight.clone(), batch.mask.clone()))
        return super().loss(batch, rewards, proposer)

    def after_step(self):
        self.steps += 1


# --- learning -------------------------------------------------------------------------------------------------------


def test_values_of_held_out_walks_are_learned(walks):
    module = CriticTraining(
        ValueCritic(2, hidden=(32,), lam=1.0),
        StepCost(),
        transitions=64,
        updates_per_batch=30,
        optimizer=ScheduledAdamW(learning_rate=1e-2, warmup_steps=0),
    )
    found = fit(module, logged(walks), max_epochs=4).callback_metrics
    # the state tells how far it is and whether it will fail: all of the return
    assert float(found["val_explained_variance"]) > 0.9
    assert float(found["val_td_error"]) < 0.1
    assert -1 < float(found["val_value"]) < 0
    assert {"train_loss", "train_td_error", "train_v", "val_loss", "reward_unknown"} <= found.keys()
    assert int(module.updates) == 4 * 3 * 30  # 24 training episodes in batches of 8


def test_a_categorical_value_learns_as_well(walks):
    critic = DistributionalValue(2, hidden=(32,), bins=51)
    module = CriticTraining(
        critic,
        StepCost(gamma=1.0),
        transitions=64,
        updates_per_batch=20,
        optimizer=ScheduledAdamW(learning_rate=1e-2, warmup_steps=0),
    )
    found = fit(module, logged(walks), max_epochs=4).callback_metrics
    assert float(found["val_explained_variance"]) > 0.8
    assert float(found["train_clamped"]) == float(found["val_clamped"]) == 0.0


class AsLogged(Component):
    """Proposes what was done: an evaluation of whoever acted, whose returns are known."""

    version = 0

    def forward(self, batch, rows, steps, n):
        done = batch.actions[rows, steps.clamp(max=batch.mask.shape[1] - 1)]
        return done[None, :, None].expand(n, -1, 1, -1)


def test_the_aloe_critic_learns_the_returns_of_the_policy_that_proposes(walks):
    optimizer = ScheduledAdamW(learning_rate=1e-2, warmup_steps=3)
    module = aloe(updates_per_batch=30, optimizer=optimizer, proposer=AsLogged())
    last = fit(module, logged(walks), max_epochs=4, check_val_every_n_epoch=4).callback_metrics
    assert float(last["val_explained_variance"]) > 0.8
    assert {"train_q", "train_target", "train_spread", "val_value", "val_td_error"} <= last.keys()


def test_the_policy_is_asked_and_not_trained_and_the_critic_is_shared(walks):
    module = aloe()
    before = {k: v.clone() for k, v in module.proposer.state_dict().items()}
    fit(module, logged(walks))
    same(before, module.proposer.state_dict())
    assert module.proposer.misses > 0
    assert trained_component(module) is module.critic
    assert companions(module) == {"reward": module.reward}  # with the numbers it took from the data


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_each_update_has_its_own_even_draw_of_steps_that_count(walks):
    critic = Watching()
    module = CriticTraining(critic, StepCost(), transitions=16, updates_per_batch=60)
    fit(module, logged(walks), max_epochs=2, limit_val_batches=0)
    assert critic.steps == len(critic.seen) == int(module.updates) == 2 * 3 * 60
    counts = torch.zeros(30, 12)
    shown = torch.zeros(30, 12)
    for episodes, weight, mask in critic.seen:
        assert int((weight > 0).sum()) == 16
        assert not bool((weight > 0)[~mask].any())
        for row, episode in enumerate(episodes.tolist()):
            counts[episode, : mask.shape[1]] += weight[row]
            shown[episode, : mask.shape[1]] += mask[row] * 16 / mask.sum()
    # every step as often as any other, up to chance: about 120 · 16/70 = 27 times, deviation about 4.6
    real = shown > 0
    excess = (counts - shown)[real] / shown[real].sqrt()
    assert excess.abs().max() < 5 and 0.5 < excess.std() < 1.2
    again = Watching()
    fit(CriticTraining(again, StepCost(), transitions=16), logged(walks), limit_train_batches=1, limit_val_batches=0)
    assert torch.equal(critic.seen[0][1], again.seen[0][1])
    other = Watching()
    more = {"limit_train_batches": 1, "limit_val_batches": 0}
    fit(CriticTraining(other, StepCost(), transitions=16, seed=1), logged(walks), **more)
    assert not torch.equal(critic.seen[0][1], other.seen[0][1])


def test_context_and_unknown_rewards_are_not_drawn(walks):
    class Context(EpisodeData):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            weight = batch.weight.clone()
            weight[:, :2] = 0.0
            return replace(batch, weight=weight)

    class Gaps(RewardModel):
        def forward(self, batch):
            valid = batch.mask & (torch.arange(batch.mask.shape[1]) % 2 == 0)
            return RewardEstimates(rewards=-valid.float(), valid=valid)

    critic, data = Watching(), Context(walks, batch_size=8, terminating=ALL_ENDS, labels=logged(walks).labels)
    fit(CriticTraining(critic, Gaps(), transitions=1000), data)
    for _, weight, mask in critic.seen:
        index = torch.arange(mask.shape[1])
        assert torch.equal(weight > 0, mask & (index >= 2) & (index % 2 == 0))


# --- what is fitted, once -------------------------------------------------------------------------------------------


def test_scales_come_from_all_training_episodes_once(walks, capsys):
    module, data = aloe(), logged(walks)
    fit(module, data)
    assert f"taken from the training episodes: {module.reward}\n" in capsys.readouterr().out
    batches = list(data.state_batches())
    state = torch.cat([b.state[b.made] for b in batches])
    scale = module.critic.network.state_scale
    assert torch.allclose(scale.mean, state.mean(0), atol=1e-5)
    assert torch.equal(module.critic.target.state_scale.mean, scale.mean)
    lengths = torch.cat([b.length for b in batches]).float()
    assert module.reward.cost.item() == pytest.approx(lengths.mean().item())
    mean, cost = scale.mean.clone(), module.reward.cost.clone()
    scale.mean += 1.0
    fit(module, data)
    assert torch.equal(scale.mean, mean + 1.0) and torch.equal(module.reward.cost, cost)
    assert "taken from" not in capsys.readouterr().out


def test_a_critic_of_features_takes_its_scales_from_the_first_batch(walks):
    class Seen(EpisodeData):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            from guerdon.core.batch import Sampled

            step = torch.where(torch.arange(batch.state.shape[1]) <= batch.steps[:, None], 1, -1).cumsum(1) - 1
            shown = torch.arange(batch.state.shape[1]) <= batch.steps[:, None]
            step = torch.where(shown, step, -1)
            return replace(batch, features={"net/top": Sampled(values=batch.state[..., :1] + 5.0, step=step)})

    data = Seen(walks, batch_size=8, terminating=ALL_ENDS, labels=logged(walks).labels)
    critic = ValueCritic(2, hidden=(4,), feature_sizes={"net/top": 1})
    fit(CriticTraining(critic, StepCost()), data)
    assert critic.reads.mean[2].item() == pytest.approx(5.0, abs=1.0)


# --- continuing -----------------------------------------------------------------------------------------------------


def test_a_saved_critic_goes_on_with_its_target_network_and_scales(walks, tmp_path):
    first = aloe()
    fit(first, logged(walks), max_epochs=2)
    first.critic.save_pretrained(tmp_path / "model")
    opened: Any = pretrained_critic(str(tmp_path / "model"))
    same(first.critic.state_dict(), opened.state_dict())
    behind = [
        not torch.equal(a, b) for a, b in zip(opened.network.parameters(), opened.target.parameters(), strict=True)
    ]
    assert all(behind)  # the target network is no copy of the other
    other = write(
        tmp_path / "other", 6, state=np.full((4, 2), 9.0, np.float32), actions=np.zeros((3, 1), np.float32), recorded={}
    )
    target = [p.clone() for p in opened.target.parameters()]
    module = aloe(critic=opened, updates_per_batch=1)
    module.reward = first.reward
    fit(module, logged(other, val_fraction=0.0), max_steps=1, limit_val_batches=0)
    assert torch.equal(opened.network.state_scale.mean, first.critic.network.state_scale.mean)
    for slow, before, fast in zip(opened.target.parameters(), target, opened.network.parameters(), strict=True):
        assert torch.allclose(slow, before + 0.1 * (fast - before), atol=1e-6)
    assert module.critic.training and not module.critic.target.training


def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(walks, tmp_path):
    def fresh():
        optimizer = ScheduledAdamW(schedule="cosine", warmup_steps=3)
        return aloe(seed=3, deterministic=True, optimizer=optimizer), logged(walks)

    whole, data = fresh()
    run = fit(whole, data, max_epochs=4)
    half, data = fresh()
    # the schedule of the half is that of the whole: it ends early
    stop = LambdaCallback(on_train_epoch_end=lambda t, m: setattr(t, "should_stop", t.current_epoch == 1))
    fit(half, data, max_epochs=4, callbacks=[stop]).save_checkpoint(tmp_path / "half.ckpt")
    assert int(half.updates) == 12
    resumed, data = fresh()
    with torch.no_grad():
        resumed.critic.network.networks[0][0].weight += 1.0  # whatever it held before
    fit(resumed, data, ckpt_path=tmp_path / "half.ckpt", max_epochs=4)
    assert int(whole.updates) == int(resumed.updates) == 24
    same(whole.state_dict(), resumed.state_dict())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)  # the cosine knew its last update


def test_a_saved_critic_that_goes_on_with_other_numbers_in_its_reward_is_told(walks, tmp_path):
    first = aloe()
    fit(first, logged(walks))
    first.critic.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="StepCost took new numbers from these data"):
        fit(aloe(critic=pretrained_critic(str(tmp_path / "model"))), logged(walks))
    module = aloe(critic=pretrained_critic(str(tmp_path / "model")))
    module.reward = first.reward  # with its numbers: warnings are errors here
    fit(module, logged(walks))


# --- what cannot be learned -----------------------------------------------------------------------------------------


class Says(RewardModel):
    """One reward everywhere."""

    def __init__(self, number, causal=True, known=True):
        super().__init__()
        self.number, self.causal, self.known = number, causal, known

    def forward(self, batch):
        valid = batch.mask & self.known
        return RewardEstimates(rewards=torch.where(valid, self.number, 0.0), valid=valid)


def test_data_without_a_step_to_learn_from_are_refused_and_move_nothing(walks):
    for critic, reward, more in (
        (ValueCritic(2, hidden=(4,)), Says(1.0, known=False), {}),
        # Monte-Carlo values of episodes that never end
        (ValueCritic(2, hidden=(4,), lam=1.0, cuts="leave_out"), StepCost(), {"terminating": []}),
    ):
        module = CriticTraining(critic, reward, optimizer=ScheduledAdamW(weight_decay=0.1))
        before = [p.detach().clone() for p in critic.parameters()]
        with pytest.raises(ValueError, match="no step of the training data can be learned from"):
            with pytest.warns(UserWarning, match="ends for good") if more else nullcontext():
                fit(module, logged(walks, **more))
        assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_logs_that_do_not_say_how_they_end_are_told_of(tmp_path):
    """As a writer leaves them who gives an outcome and no end, or neither; one that does both is trained silently."""
    for name, changes, words in (
        ("neither", {"end": End.CUT, "success": None}, ["none of 6 training episodes ends for good"]),
        ("outcome", {"end": End.CUT, "success": 1.0}, ["none of 6 training", "6 of 6 training episodes are successes"]),
        ("failures", {"end": End.CUT, "success": 0.0}, ["none of 6 training"]),
        ("both", {"end": End.SUCCESS, "success": 1.0}, []),
    ):
        data = logged(write(tmp_path / name, 6, **changes), val_fraction=0.0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit(aloe(), data, limit_val_batches=0)
        told = [str(w.message) for w in said if "training episodes" in str(w.message)]
        assert len(told) == len(words) and all(t.startswith(w) for t, w in zip(told, words, strict=True)), told


def test_an_update_without_anything_to_learn_is_left_out(walks):
    class Sometimes(EpisodeData):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            first = int(batch.episode[0]) % 2 == 0
            return replace(batch, weight=batch.weight * first)

    data = Sometimes(walks, batch_size=1, terminating=ALL_ENDS, labels=logged(walks).labels, val_fraction=0.0)
    critic = Watching()
    module = CriticTraining(critic, StepCost(), optimizer=ScheduledAdamW(weight_decay=0.1))
    fit(module, data, limit_val_batches=0)
    assert int(module.updates) == critic.steps == 15 and len(critic.seen) == 30


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_rewards_that_are_no_numbers_are_named(walks, number):
    with pytest.raises(FloatingPointError, match=r"Says gave (nan|inf) as a known reward \(episode \d+, step 0"):
        fit(aloe_with(Says(float(number))), logged(walks), num_sanity_val_steps=0)


def aloe_with(reward):
    module = aloe()
    return CriticTraining(module.critic, reward, module.proposer)


def test_unknown_outcomes_leave_the_step_out_that_they_decide(walks, tmp_path):
    # a time limit of unknown outcome: the last step of every episode is unknown, the others are learned from
    path = write(tmp_path / "unknown", 6, end=End.TIME_LIMIT, success=None)
    critic = Watching()
    module = CriticTraining(critic, StepCost(), transitions=1000)
    found = fit(module, logged(path, val_fraction=0.0), limit_val_batches=0).callback_metrics
    for _, weight, mask in critic.seen:
        assert torch.equal((weight > 0).sum(1), mask.sum(1) - 1)
    assert 0 < float(found["reward_unknown"]) < 0.2


def test_a_gradient_that_is_no_number_names_its_update(walks):
    class Bursting(ValueCritic):
        def loss(self, batch, rewards, proposer=None):
            parts = super().loss(batch, rewards, proposer)
            return {**parts, "loss": parts["loss"] * (1.0 if bursts.pop() else torch.inf)}

    bursts = [False, True, True]
    module = CriticTraining(Bursting(2, hidden=(4,)), StepCost(), updates_per_batch=3)
    with pytest.raises(FloatingPointError, match=r"the gradient became (nan|inf) in update 3"):
        fit(module, logged(walks), num_sanity_val_steps=0)


def test_what_does_not_fit_together_is_refused(walks):
    critic, reward = ValueCritic(2, hidden=(4,)), StepCost(failure_cost=1.0, scale=1.0)
    with pytest.raises(ValueError, match=r"StepCost has gamma 0.5, ValueCritic discounts with 0.99"):
        CriticTraining(critic, StepCost(gamma=0.5))
    with pytest.raises(ValueError, match="GaussianPolicy proposes no chunks"):
        CriticTraining(critic, reward, GaussianPolicy(2, 1))
    with pytest.raises(ValueError, match="transitions 0"):
        CriticTraining(critic, reward, transitions=0)
    with pytest.raises(ValueError, match="warmup_steps -1"):
        CriticTraining(critic, reward, optimizer=ScheduledAdamW(warmup_steps=-1))
    with pytest.raises(ValueError, match="this batch holds negatives"):
        fit(
            CriticTraining(critic, reward),
            logged(walks, labels=LabelFactory(rewind=1.0, reverse=0.0, wrong_instruction=0.0)),
        )
    with pytest.raises(ValueError, match="Says is not causal"):
        fit(CriticTraining(critic, Says(0.0, causal=False)), logged(walks, window=3), num_sanity_val_steps=0)
    with pytest.raises(ValueError, match="pass a proposer"):
        fit(CriticTraining(aloe().critic, reward), logged(walks))
    with pytest.raises(ValueError, match="precision bf16-true"):
        fit(CriticTraining(critic, reward), logged(walks), precision="bf16-true")
    with pytest.raises(ValueError, match="Critic has nothing to train"):
        fit(CriticTraining(Critic(), reward), logged(walks))


# --- sizes from the data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: ActionCritic(ChunkPerceptron(hidden=(8,))), lambda: ValueCritic(hidden=(8,))])
def test_a_critic_without_sizes_takes_them_from_the_data(walks, tmp_path, make):
    critic = make()
    module = CriticTraining(critic, StepCost(), PolicyProposer(GaussianPolicy(hidden=(8,))), transitions=32)
    found = fit(module, logged(walks)).callback_metrics
    assert np.isfinite(float(found["train_loss"]))
    save_component(critic, tmp_path / "model")
    opened = load_component(tmp_path / "model")
    same(dict(opened.state_dict()), dict(critic.state_dict()))
    assert (opened.network if isinstance(opened, ActionCritic) else opened).state_size == 2


def test_a_resumed_run_without_sizes_is_the_uninterrupted_one(walks, tmp_path):
    def fresh(seed):
        return aloe(seed, critic=ActionCritic(ChunkPerceptron(hidden=(8,)), polyak_rate=0.1), deterministic=True)

    whole = fresh(0)
    fit(whole, logged(walks), max_epochs=2)
    half = fresh(0)  # made here: its weights are drawn when it is built
    fit(half, logged(walks), max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    resumed = fresh(5)
    fit(resumed, logged(walks), ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    same(dict(whole.critic.state_dict()), dict(resumed.critic.state_dict()))


def test_sizes_that_are_not_those_of_the_data_are_refused_naming_both(walks):
    with pytest.raises(ValueError, match=r"ValueCritic has state_size 39, and the states of .*walks are 2 wide"):
        fit(CriticTraining(ValueCritic(39), StepCost()), logged(walks))
    proposer = PolicyProposer(GaussianPolicy(2, 4, hidden=(8,)))
    with pytest.raises(ValueError, match=r"GaussianPolicy has action_size 4, and the actions of .*walks are 1 wide"):
        fit(CriticTraining(ActionCritic(ChunkPerceptron(2, 1)), StepCost(), proposer), logged(walks))


def test_data_that_name_no_sizes_cannot_build_a_critic(walks):
    class Nameless(lightning.LightningDataModule):
        def train_dataloader(self):
            return logged(walks).train_dataloader()

        def val_dataloader(self):
            return logged(walks).train_dataloader()

    with pytest.raises(ValueError, match=r"CriticTraining is not built yet, ValueCritic.state_size unknown: give the"):
        fit(CriticTraining(ValueCritic(), StepCost()), Nameless())


def test_flat_arguments_become_the_optimizer():
    flat = CriticTraining(
        ValueCritic(2),
        StepCost(),
        learning_rate=0.5,  # pyright: ignore[reportCallIssue]
        schedule="cosine",  # pyright: ignore[reportCallIssue]
        warmup_steps=7,  # pyright: ignore[reportCallIssue]
    )
    assert (flat.optimizer.learning_rate, flat.optimizer.schedule, flat.optimizer.warmup_steps) == (0.5, "cosine", 7)
    with pytest.raises(TypeError, match="optimizer and learning_rate are both given"):
        CriticTraining(
            ValueCritic(2),
            StepCost(),
            optimizer=ScheduledAdamW(),
            learning_rate=0.5,  # pyright: ignore[reportCallIssue]
        )


def test_bf16_mixed_works(walks):
    found = fit(aloe(), logged(walks), precision="bf16-mixed").callback_metrics
    assert np.isfinite(float(found["train_loss"])) and np.isfinite(float(found["val_loss"]))


# --- figures --------------------------------------------------------------------------------------------------------


def test_explained_variance_by_hand():
    # G = 1, 2, 3; V = 1, 2, 2: errors 0, 0, 1; Var(G) = 2/3, Var(e) = 1/3 − 1/9 = 2/9; 1 − 1/3
    sums = torch.tensor([3.0, 6.0, 14.0, 1.0, 1.0], dtype=torch.float64)
    assert explained_variance(sums).item() == pytest.approx(2 / 3)
    assert explained_variance(torch.tensor([3.0, 6.0, 12.0, 1.0, 1.0])) is None  # all returns are 2
    assert explained_variance(torch.tensor([1.0, 6.0, 36.0, 1.0, 1.0])) is None


# --- several processes ----------------------------------------------------------------------------------------------

TWO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_fit as here

torch.set_num_threads(1)
module, data = here.aloe(), here.logged(sys.argv[3], batch_size=4)
class Saving(here.lightning.Callback):
    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), f"{sys.argv[2]}/{module.global_rank}.pt")
here.fit(module, data, strategy="ddp_fork", devices=2, callbacks=[Saving()])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_two_processes_stay_in_step(walks, tmp_path):
    here = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-c", TWO, str(here), str(tmp_path), walks], capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert int(first["updates"]) == 6  # 24 episodes, 8 at a time, twice each
    same(first, second)


def test_a_policy_and_a_critic_go_on_learning_after_they_were_used(walks):
    module = aloe()
    policy = module.proposer.policy
    fit(module, logged(walks))
    assert all(p.requires_grad for p in policy.parameters())  # frozen only while the critic learned
    ActionAdvantage(module.critic)  # freezes it for use
    assert not any(p.requires_grad for p in module.critic.parameters())
    again: Any = CriticTraining(
        module.critic, module.reward, module.proposer, transitions=32, optimizer=ScheduledAdamW(warmup_steps=3)
    )
    before = {k: v.clone() for k, v in module.critic.network.state_dict().items()}
    fit(again, logged(walks))
    assert any(not torch.equal(v, before[k]) for k, v in again.critic.network.state_dict().items())
    assert not any(p.requires_grad for p in again.critic.target.parameters())


def test_a_horizon_other_than_the_policys_chunks_is_told_of(walks):
    module = aloe(critic=ActionCritic(ChunkPerceptron(2, 1, horizon=3, hidden=(4,))))
    with (
        pytest.warns(UserWarning, match="may span re-plans"),
        pytest.warns(UserWarning, match=r"proposes chunks of 1 steps, the critic's horizon is 3"),
    ):
        fit(module, logged(walks))
