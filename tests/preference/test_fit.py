"""Preference training: hidden rewards recovered over seeds, ensembles, flags, gradients, resuming, what is refused."""

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

from guerdon.backbones.optimization import ScheduledAdamW
from guerdon.backbones.vision import VisionEncoder
from guerdon.core.batch import End, PreferencePairs, RewardEstimates, Sampled, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.preference.fit import HasMembers, PreferenceTraining
from guerdon.preference.objectives import BradleyTerry, FlagLoss
from guerdon.rewards.combine import Scale
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.grape.trajectory import GrapeScore
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.preference_transformer import PreferenceTransformer
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedReward
from guerdon.rewards.state_action import StateActionReward


def segments(count, seed, lengths=(6, 12)):
    """Random segments of unequal length with a hidden reward per step, linear in state and action."""
    draw = np.random.default_rng(seed)
    steps = draw.integers(lengths[0], lengths[1] + 1, count)
    most = int(steps.max())
    state = torch.from_numpy(draw.normal(size=(count, most + 1, 3)).astype(np.float32))
    actions = torch.from_numpy(draw.normal(size=(count, most, 2)).astype(np.float32))
    mask = torch.arange(most)[None] < torch.from_numpy(steps)[:, None]
    hidden = (state[:, :-1] @ torch.tensor([1.0, -0.5, 0.0]) + actions @ torch.tensor([0.0, 0.8])) * mask
    return TrajectoryBatch(state=state, actions=actions, mask=mask, offset=torch.arange(count)), hidden


def compared(batch, hidden, pairs, seed, flip=0.0):
    """Pairs of random rows, answered by the hidden score; a share is answered the wrong way round."""
    draw = np.random.default_rng([seed, 1])
    rows = torch.from_numpy(np.stack([draw.choice(len(batch), 2, replace=False) for _ in range(pairs)]))
    score = hidden.sum(1)
    label = (score[rows[:, 0]] > score[rows[:, 1]]).float()
    wrong = torch.from_numpy(draw.random(pairs) < flip)
    return PreferencePairs(
        batch=batch,
        chosen=rows[:, 0],
        rejected=rows[:, 1],
        label=torch.where(wrong, 1 - label, label),
        weight=torch.ones(pairs),
    )


def whole(data, updates=1):
    """Loader of one batch, which comes several times in an epoch."""
    items: Any = [data] * updates
    return DataLoader(items, batch_size=1, collate_fn=lambda given: given[0])


def fit(module, train, val=None, epochs=100, updates=1, **more):
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "check_val_every_n_epoch": epochs}
    trainer = lightning.Trainer(max_epochs=epochs, num_sanity_val_steps=0, **(settings | more.pop("trainer", {})))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*number of training batches")
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`")
        trainer.fit(module, whole(train, updates), None if val is None else whole(val), **more)
    return trainer


FAST = {"learning_rate": 0.03, "betas": (0.9, 0.999), "warmup_steps": 0}


def recovered(reward, seed, updates=60, objective=None, flip=0.0):
    """Rank correlation of the learned and the hidden reward of steps never seen, and held-out accuracy."""
    torch.manual_seed(seed)
    batch, hidden = segments(60, seed)
    other, truth = segments(40, seed + 1000)
    module = PreferenceTraining(reward, objective, ScheduledAdamW(**FAST))
    judged, held_out = compared(batch, hidden, 150, seed, flip), compared(other, truth, 200, seed + 1000)
    trainer = fit(module, judged, held_out, epochs=1, updates=updates)
    reward.eval()
    with torch.no_grad():
        scored = reward(other)
    found: Any = spearmanr(scored.rewards[other.mask].numpy(), truth[other.mask].numpy())
    return float(found.statistic), float(trainer.callback_metrics["val_preference_accuracy"])


@pytest.mark.slow
def test_a_hidden_reward_of_steps_is_recovered_from_comparisons_of_segments():
    found = [recovered(StateActionReward(hidden=(), state_size=3, action_size=2), seed) for seed in range(6)]
    assert min(correlation for correlation, _ in found) > 0.95
    assert np.mean([accuracy for _, accuracy in found]) > 0.9


@pytest.mark.slow
def test_a_perceptron_and_the_transformer_order_held_out_segments():
    for make in (
        lambda: StateActionReward(3, 2, hidden=(16,)),
        lambda: PreferenceTransformer(3, 2, width=16, heads=2, dropout=0.0),
    ):
        accuracy = [recovered(make(), seed, updates=80)[1] for seed in range(4)]
        assert np.mean(accuracy) > 0.75 and min(accuracy) > 0.6


@pytest.mark.slow
def test_the_noise_term_helps_where_answers_are_wrong():
    """Over seeds, a quarter of the answers wrong: accuracy with ε = 0.25 is above that of plain Bradley–Terry."""
    gain = []
    for seed in range(4):
        plain = recovered(StateActionReward(3, 2, hidden=(32,)), seed, 60, BradleyTerry(), 0.25)[1]
        robust = recovered(StateActionReward(3, 2, hidden=(32,)), seed, 60, BradleyTerry(noise=0.25), 0.25)[1]
        gain.append(robust - plain)
    assert np.mean(gain) > 0.05, gain


def test_one_update_follows_the_gradient_of_the_loss():
    batch, hidden = segments(8, 0)
    pairs = compared(batch, hidden, 10, 0)
    reward: Any = StateActionReward(3, 2, hidden=())
    module = PreferenceTraining(reward)
    parts = module.losses(pairs)
    score = reward(batch).rewards.sum(1)
    gap = score[pairs.chosen] - score[pairs.rejected]
    wanted = -(pairs.label * gap.sigmoid().log() + (1 - pairs.label) * (-gap).sigmoid().log()).mean()
    torch.testing.assert_close(parts["loss"], wanted)
    (gradient,) = torch.autograd.grad(parts["loss"], [reward.network[0].weight])
    assert bool((gradient != 0).all())


# --- ensembles -------------------------------------------------------------------------------------------------------


class FrozenEyes(VisionEncoder):
    """Mean colour, frozen; counts the frames it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.name, self.trainable, self.seen = 3, "mean-colour", False, 0
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.frozen_reference = True

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.float() / 255

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen += len(pixels)
        return pixels.mean((2, 3)) * self.scale


def test_each_member_minimises_its_own_loss_on_its_own_draw_of_the_pairs():
    torch.manual_seed(0)
    batch, hidden = segments(12, 0)
    pairs = compared(batch, hidden, 30, 0)
    reward = EnsembleReward(StateActionReward(3, 2, hidden=(4,)), size=3, seed=5).train()
    assert isinstance(reward, HasMembers)
    objective = BradleyTerry()
    times = reward.weigh_members(objective.keys(pairs))
    assert times.shape == (3, 30) and len({tuple(row) for row in times.tolist()}) == 3
    members: Any = list(reward.members)
    alone = [
        objective.loss(replace(pairs, weight=weight), member(batch))["loss"]
        for member, weight in zip(members, times, strict=True)
    ]
    together = PreferenceTraining(reward).losses(pairs)["loss"]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    # a part of the batch: the same pairs get the same weights
    torch.testing.assert_close(reward.weigh_members(objective.keys(pairs[[3, 7]])), times[:, [3, 7]])
    reward.eval()
    assert bool((reward.weigh_members(objective.keys(pairs)) == 1).all())


def test_an_ensemble_encodes_the_frames_of_a_batch_once():
    eyes = FrozenEyes()
    member = ProgressReward(observer=ObservationEncoder(cameras=("front",), encoder=eyes, width=8, layers=0))
    reward = EnsembleReward(member, size=4)
    batch, hidden = segments(3, 0, (4, 4))
    frames = Sampled(
        values=torch.randint(0, 255, (3, 5, 3, 8, 8), dtype=torch.uint8), step=torch.arange(5).expand(3, 5)
    )
    pairs = compared(replace(batch, frames={"front": frames}), hidden, 6, 0)
    PreferenceTraining(reward).losses(pairs)["loss"].backward()
    assert eyes.seen == 15
    gradients = [p.grad for p in reward.parameters() if p.requires_grad and p.grad is not None]
    assert any(bool(g.any()) for g in gradients)


# --- which models learn ----------------------------------------------------------------------------------------------


def test_the_progress_of_a_process_reward_model_learns_from_comparisons():
    batch, hidden = segments(6, 0)
    reward = ProgressReward(state_size=3, predicts=("progress",), observer=ObservationEncoder(width=8, layers=1))
    parts = PreferenceTraining(reward).losses(compared(batch, hidden, 8, 0))
    parts["loss"].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in reward.parameters())


def test_the_weights_of_the_trajectory_score_learn_through_its_forward():
    reward = GrapeScore(weights=(1.0, 0.0, 1.0))
    count = 4
    batch = TrajectoryBatch(
        state=torch.zeros(count, 3, 1),
        actions=torch.zeros(count, 2, 1),
        mask=torch.ones(count, 2, dtype=torch.bool),
        end=torch.tensor([int(End.SUCCESS), int(End.FAILURE)] * 2),
        success=torch.tensor([1.0, 0.0] * 2),
        behaviour={"log_prob": torch.full((count, 2), -1.0)},
    )
    ones = torch.ones(2)
    pairs = PreferencePairs(
        batch=batch, chosen=torch.tensor([0, 2]), rejected=torch.tensor([1, 3]), label=ones, weight=ones
    )
    parts = PreferenceTraining(reward).losses(pairs)
    assert float(parts["loss"].detach()) == pytest.approx(math.log1p(math.exp(-1.0)))
    parts["loss"].backward()
    assert reward.log_weights.grad is not None and float(reward.log_weights.grad[2]) < 0


class Detached(RewardModel):
    """Has a parameter, and rewards that do not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        with torch.no_grad():
            return RewardEstimates(rewards=self.weight * batch.mask, valid=batch.mask)


def test_rewards_without_gradient_are_refused_by_name():
    batch, hidden = segments(4, 0)
    with pytest.raises(ValueError, match=r"rewards of Detached carry no gradient.*StateActionReward"):
        PreferenceTraining(Detached()).losses(compared(batch, hidden, 3, 0))


@pytest.mark.parametrize("reward", [RecordedReward(), Scale(StateActionReward(3, 2), 2.0)])
def test_a_model_with_nothing_to_train_is_refused(reward):
    batch, hidden = segments(4, 0)
    with pytest.raises(ValueError, match="has nothing to train: use it as it is"):
        fit(PreferenceTraining(reward), compared(batch, hidden, 3, 0))


# --- runs ------------------------------------------------------------------------------------------------------------


def test_validation_adds_up_over_batches_and_counts_what_is_left_out():
    batch, hidden = segments(10, 0)
    pairs = compared(batch, hidden, 12, 0)
    pairs = replace(pairs, label=torch.cat([torch.full((3,), 0.5), pairs.label[3:]]))
    module = PreferenceTraining(StateActionReward(3, 2, hidden=()))
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(**settings)
    items: Any = [pairs[:5], pairs[5:]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        trainer.validate(module, DataLoader(items, batch_size=1, collate_fn=lambda given: given[0]), verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    with torch.no_grad():
        once = module.losses(pairs)
    assert found["val_pairs"] == 12 and found["val_pairs_left_out"] == 0 and found["val_tie_share"] == 0.25
    assert found["val_preference_accuracy"] == pytest.approx(float(once["preference_accuracy"]))
    assert found["val_log_likelihood"] == pytest.approx(-float(once["loss"]), rel=1e-5)
    assert found["val_loss"] == pytest.approx(float(once["loss"]), rel=1e-5)


class Abstains(StateActionReward):
    """Scores nothing, without a gradient."""

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        return RewardEstimates(rewards=torch.zeros(batch.mask.shape), valid=torch.zeros_like(batch.mask))


def test_where_nothing_can_be_scored_no_weight_changes():
    batch, hidden = segments(4, 0)
    reward: Any = Abstains(3, 2, hidden=())
    before = reward.network[0].weight.clone()
    trainer = fit(PreferenceTraining(reward), compared(batch, hidden, 3, 0), epochs=2)
    assert torch.equal(before, reward.network[0].weight)
    assert float(trainer.callback_metrics["train_pairs"]) == 0
    assert float(trainer.callback_metrics["train_pairs_left_out"]) == 3


def test_of_several_processes_one_with_nothing_to_learn_gives_every_weight_a_gradient_of_zero(monkeypatch):
    batch, hidden = segments(4, 0)
    module: Any = PreferenceTraining(Abstains(3, 2, hidden=(4,)))
    module._trainer = SimpleNamespace(world_size=2)
    for name in ("log", "log_dict"):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    loss = module.training_step(compared(batch, hidden, 3, 0), 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


def test_the_normaliser_is_fitted_once_on_the_training_rows():
    batch, hidden = segments(10, 0)
    pairs = compared(replace(batch, state=batch.state * 5 + 3), hidden, 12, 0)
    reward = StateActionReward(3, 2, hidden=())
    fit(PreferenceTraining(reward), pairs, epochs=1)
    seen = pairs.batch.state[:, :-1][pairs.batch.mask]
    torch.testing.assert_close(reward.state_mean[:3], seen.mean(0))
    mean = reward.state_mean.clone()
    fit(PreferenceTraining(reward), compared(batch, hidden, 12, 0), epochs=1)
    assert torch.equal(reward.state_mean, mean)


@pytest.mark.slow
def test_flags_teach_the_order_of_trajectories():
    """Over seeds: rows above the median of a hidden score are desirable; held-out rows are ordered by the score."""
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        batch, hidden = segments(120, seed)
        other, truth = segments(60, seed + 1000)
        good = (hidden.sum(1) > hidden.sum(1).median()).float()
        flagged = replace(batch, success=good, success_known=torch.ones(120, dtype=torch.bool))
        reward = StateActionReward(3, 2, hidden=())
        fit(PreferenceTraining(reward, FlagLoss(), ScheduledAdamW(**FAST)), flagged, epochs=1, updates=80)
        with torch.no_grad():
            order: Any = spearmanr(reward(other).rewards.sum(1).numpy(), truth.sum(1).numpy())
        found.append(order.statistic)
    assert min(found) > 0.9, found


def test_half_precision_is_refused():
    batch, hidden = segments(4, 0)
    with pytest.raises(ValueError, match="half precision"):
        fit(
            PreferenceTraining(StateActionReward(3, 2)),
            compared(batch, hidden, 3, 0),
            trainer={"precision": "bf16-true"},
        )


def test_a_gradient_that_is_no_number_stops_the_run():
    batch, hidden = segments(4, 0)
    reward: Any = StateActionReward(3, 2, hidden=())
    with torch.no_grad():
        reward.network[0].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="in update 0"):
        fit(PreferenceTraining(reward), compared(batch, hidden, 3, 0), epochs=1)
