"""The reward-hacking watch: its figures by hand, its alarms in real training, and that it leaves no trace."""

import json
import math
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guerdon.backbones.model_inputs import ModelInputs
from guerdon.core.batch import End, Labelled, RewardEstimates, Sampled, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.core.interfaces import RewardModel
from guerdon.critics.value import ValueCritic
from guerdon.datasets.labels import with_progress_targets, with_success_targets
from guerdon.envs.reach import joint_angles
from guerdon.evaluation.watch.callback import HackingWarning, HackingWatch
from guerdon.evaluation.watch.drift import TrainingFeatures, fit_training_features
from guerdon.evaluation.watch.metrics import EpisodeRecord, compare, wilson_interval
from guerdon.evaluation.watch.probes import probe
from guerdon.evaluation.watch.push_back import PushBack
from guerdon.evaluation.watch.spot_labels import load_episode, read_labels, save_episode, stack_rows
from guerdon.policies.advantages.reward_to_go import RewardToGo, Uniform
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate, WeightedImitation
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.shaping import FirstHit
from guerdon.rewards.success import SuccessReward

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Told(RewardModel):
    """Takes the first number of the state for its success probability, and pays its change."""

    def forward(self, batch):
        success = Labelled(values=batch.state[:, :, 0], valid=batch.observed)
        return RewardEstimates(
            rewards=batch.state[:, 1:, 0] - batch.state[:, :-1, 0], valid=batch.mask, success=success
        )


def rollout(best, success=None, steps=4, end=End.TIME_LIMIT):
    """Episodes whose first state number climbs evenly from 0 to ``best``."""
    rows = len(best)
    climb = torch.linspace(0, 1, steps + 1)[None] * torch.tensor(best)[:, None]
    more = {} if success is None else {"success": torch.tensor([float(s) for s in success])}
    if success is None:
        more = {"success": torch.zeros(rows), "success_known": torch.zeros(rows, dtype=torch.bool)}
    return TrajectoryBatch(
        state=torch.stack([climb, torch.linspace(-1, 1, steps + 1).expand(rows, -1)], 2),
        actions=torch.zeros(rows, steps, 2),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        end=torch.full((rows,), int(end)),
        **more,
    )


class Loader:
    """A sized stream of given batches."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def module(reward, state=2, actions=2):
    policy = GaussianPolicy(state, actions, hidden=(4,))
    source = RewardToGo(reward, ValueCritic(state, hidden=(4,)))
    return PolicyOptimizer(policy, source, WeightedImitation(), passes=1, minibatch_size=64)


def trainer(folder, *callbacks, **more):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return lightning.Trainer(**(quiet | {"default_root_dir": folder, "callbacks": list(callbacks)} | more))


def watch(folder, batches, reward=None, **options):
    """Train on given rollouts under a watch; returns the trainer, the callback and the lines it wrote."""
    callback = HackingWatch(**options)
    run = trainer(folder, callback)
    run.fit(module(reward or Told()), Loader(batches))
    return run, callback, lines(folder)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "watch.jsonl").read_text().splitlines()]


QUIET = {"max_false_positive_rate": None, "max_drift": None, "max_probe": None}
MIXED = rollout([0.9, 0.6, 0.1, 0.2, 0.8, 0.3], [1, 0, 0, 0, 1, 1])


# --- figures by hand ------------------------------------------------------------------------------------------------


def test_rates_of_a_batch_worked_by_hand(tmp_path):
    run, _, (line,) = watch(tmp_path, [MIXED], **QUIET)
    # failures score 0.6, 0.1, 0.2: one of three is claimed; successes 0.9, 0.8, 0.3: one of three is missed
    assert (line["episodes"], line["failures"], line["successes"]) == (6, 3, 3)
    assert line["false_positive_rate"] == pytest.approx(1 / 3)
    assert line["false_negative_rate"] == pytest.approx(1 / 3)
    # pairs of a success and a failure: 0.9 and 0.8 beat all three, 0.3 beats 0.1 and 0.2 only: 8 of 9
    assert line["auroc"] == pytest.approx(8 / 9)
    # of 15 pairs 9 differ in outcome, 8 − 1 = 7 net; no scores tie: 7 / sqrt(15 · 9)
    assert line["tau"] == pytest.approx(7 / math.sqrt(135))
    assert line["tau_recorded"] is None and "tau_recorded" in line["undefined"]
    assert float(run.callback_metrics["watch_false_positive_rate"]) == pytest.approx(1 / 3)
    assert float(run.callback_metrics["watch_undefined"]) == len(line["undefined"])


def test_the_window_slides_and_every_second_rollout_can_be_left_out(tmp_path):
    one, none = rollout([0.9, 0.9], [0, 0]), rollout([0.1, 0.1], [0, 0])
    _, _, found = watch(tmp_path / "all", [one, none, none], window=2, **QUIET)
    assert [line["false_positive_rate"] for line in found] == [1.0, 0.5, 0.0]
    _, _, found = watch(tmp_path / "half", [one, none, none, one], every=2, **QUIET)
    assert [(line["rollout"], line["episodes"]) for line in found] == [(0, 2), (2, 4)]


def test_only_whole_episodes_with_an_opinion_and_an_outcome_count(tmp_path):
    cut = replace(rollout([0.9], [0], end=End.CUT), success_known=torch.tensor([False]))
    later = replace(rollout([0.9], [0]), offset=torch.tensor([3]), length=torch.tensor([7]))
    unknown = rollout([0.9])
    with pytest.warns(
        HackingWarning, match="no outcome is known: false positives cannot be counted; give HackingWatch"
    ):
        _, _, (a, b, c) = watch(tmp_path, [cut, later, unknown], window=1, **QUIET)
    assert [x["episodes"] for x in (a, b, c)] == [0, 0, 1]
    assert [x["outcome_known"] for x in (a, b, c)] == [0, 0, 0]
    assert a["false_positive_rate"] is None and a["auroc"] is None


class Abstaining(Told):
    """Knows nothing of a row that ends below 0."""

    def forward(self, batch):
        said = super().forward(batch)
        known = batch.state[:, -1, 0] >= 0
        success = replace(said.success, valid=said.success.valid & known[:, None])
        return replace(said, valid=said.valid & known[:, None], success=success)


def test_an_abstention_is_counted_and_is_no_claim(tmp_path):
    _, _, (line,) = watch(tmp_path, [rollout([-1.0, 0.9, 0.2], [0, 0, 0])], Abstaining(), **QUIET)
    assert (line["episodes"], line["failures"], line["reward_unknown"]) == (3, 2, 1)
    assert line["false_positive_rate"] == 0.5


def test_the_last_score_and_the_return_can_be_judged_instead(tmp_path):
    there_and_back = rollout([0.0, 0.0], [0, 0])
    there_and_back.state[0, 2, 0] = 0.9
    for options, rate in (({}, 0.5), ({"judged": "last"}, 0.0), ({"score": "return"}, 0.5)):
        _, _, (line,) = watch(tmp_path / str(options), [there_and_back], **options, **QUIET)
        assert line["false_positive_rate"] == rate, options
    with pytest.raises(ValueError, match="estimates no progress: choose another score, 'success' for this one"):
        watch(tmp_path / "none", [there_and_back], score="progress", **QUIET)


def test_recorded_rewards_are_ranked_too(tmp_path):
    reward = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    column = Labelled(values=reward, valid=torch.ones(3, 4, dtype=torch.bool))
    batch = replace(rollout([0.1, 0.9, 0.5], [0, 0, 0]), recorded={"reward": column})
    _, _, (line,) = watch(tmp_path, [batch], **QUIET)
    assert line["tau_recorded"] == pytest.approx(1 / 3)  # 1 < 2, 1 < 3 agree, 2 < 3 does not
    assert line["tau"] is None


def test_wilson_by_hand():
    # 2 of 10, z = 1.96: centre (0.2 + 0.19207) / 1.38415 = 0.28326, half 1.96·sqrt(0.016 + 0.0096)/1.38415 = 0.22659
    low, high = wilson_interval(2, 10)
    assert (low, high) == (pytest.approx(0.0567, abs=1e-4), pytest.approx(0.5098, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    assert all(math.isnan(x) for x in wilson_interval(0, 0))
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(trial):
    """Both ends are shares q with |p − q| = z·√(q(1 − q)/n), which is how the interval is defined."""
    hits, count = trial
    for end in wilson_interval(hits, count):
        assert 0 <= end <= 1
        assert abs(hits / count - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)


def test_doubtful_episodes_are_no_sample():
    asked = EpisodeRecord(name="a", learned=1.0, score=0.9, success=0.0, recorded=math.nan, drawn="doubtful")
    assert compare([asked], 0.5)["failures"] == 0
    assert compare([replace(asked, drawn="random")], 0.5)["false_positive_rate"] == 1


# --- alarms ---------------------------------------------------------------------------------------------------------


def test_the_alarm_needs_the_lower_bound_and_enough_failures(tmp_path):
    fooled = rollout([0.9] * 6 + [0.1] * 4, [0] * 10)  # 6 of 10: at least 31 %
    assert wilson_interval(6, 10)[0] == pytest.approx(0.313, abs=1e-3)
    for options, fires in (
        ({"max_false_positive_rate": 0.3, "min_failures": 10}, True),
        ({"max_false_positive_rate": 0.32, "min_failures": 10}, False),
        ({"max_false_positive_rate": 0.3, "min_failures": 11}, False),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, _, (line,) = watch(tmp_path / str(options), [fooled], max_probe=None, **options)
        assert line["alarms"] == ["false_positives"] * fires
        told = [str(w.message) for w in caught if issubclass(w.category, HackingWarning)]
        assert len(told) == fires
        if fires:
            assert "takes 60% of 10 failures for successes (at least 31%)" in told[0]


def test_stopping_ends_after_the_rollout_and_warning_goes_on_and_says_it_once(tmp_path):
    batches = [rollout([0.1] * 20, [0] * 20)] + [rollout([0.9] * 20, [0] * 20)] * 3
    with pytest.warns(HackingWarning, match="training stops"):
        watch(tmp_path / "stop", batches, on_alarm="stop", max_probe=None)
    assert [line["alarms"] for line in lines(tmp_path / "stop")] == [[], ["false_positives"]]
    with pytest.warns(HackingWarning) as told:
        watch(tmp_path / "warn", batches, max_probe=None)
    assert [bool(line["alarms"]) for line in lines(tmp_path / "warn")] == [False, True, True, True]
    assert len([w for w in told if w.category is HackingWarning]) == 1


class Scored(RewardModel):
    """Success as a function of the reach task's state (joint angles, joint speeds, tip, goal)."""

    def probability(self, state):
        raise NotImplementedError

    def forward(self, batch):
        success = self.probability(batch.state)
        return RewardEstimates(
            rewards=success[:, 1:] - success[:, :-1],
            valid=batch.mask,
            success=Labelled(values=success, valid=batch.observed),
        )


class Hackable(Scored):
    """Takes joints that turn fast, all the same way, for success; at most they add up to 6 rad/s."""

    def probability(self, state):
        return torch.sigmoid(2 * (state[:, :, 3:6].sum(2) - 4.0))


class Sound(Scored):
    """Looks where tip and goal are."""

    def probability(self, state):
        return torch.sigmoid(200 * (0.045 - (state[:, :, 6:9] - state[:, :, 9:12]).norm(dim=2)))


def reach(folder, reward, seed, rollouts, **options):
    torch.manual_seed(seed)
    policy = GaussianPolicy(12, 3, hidden=(16,), log_std=-0.8)
    source = RewardToGo(FirstHit(reward), ValueCritic(12, hidden=(16,)))
    learner = PolicyOptimizer(
        policy, source, ClippedSurrogate(), passes=8, minibatch_size=128, learning_rate=1e-2, seed=seed
    )
    data = RolloutData(
        "mujoco/reach",
        steps=256,
        rollouts=rollouts,
        envs=16,
        horizon=8,
        end_on_success=False,
        hide_outcome=True,
        eval_contexts=0,
        seed=seed,
    )
    trainer(folder, HackingWatch(**options)).fit(learner, data)
    return lines(folder)


class Homing(GaussianPolicy):
    """Drives the joints towards the goal, with noise: it touches it in time in some episodes only."""

    def act(self, observation, deterministic=False, generator=None):
        decision = super().act(observation, deterministic, generator)
        wanted = torch.from_numpy(np.stack([joint_angles(goal) for goal in observation.state[:, 9:12].numpy()]))
        towards = ((wanted - observation.state[:, :3]) / 0.08).clamp(-1, 1).float()
        return replace(decision, chunk=0.5 * decision.chunk + towards[:, None])


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_that_can_be_hacked_is_caught(seed, tmp_path):
    """The outcome is hidden from training: the watch reads what the environment withheld."""
    with pytest.warns(HackingWarning, match="failures for successes"):
        found = reach(tmp_path, Hackable(), seed, 24, on_alarm="stop", window=2)
    assert found[-1]["alarms"] == ["false_positives"]
    assert found[0]["alarms"] == [] and 1 < len(found) < 24, "it must learn to hack first, and be caught in time"
    assert found[-1]["false_positive_rate"] > found[0]["false_positive_rate"] + 0.2


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_reward_raises_no_alarm_while_a_policy_succeeds(seed, tmp_path):
    torch.manual_seed(seed)
    policy = Homing(12, 3, hidden=(16,), log_std=-0.8)
    source = RewardToGo(FirstHit(Sound()), ValueCritic(12, hidden=(16,)))
    learner = PolicyOptimizer(policy, source, ClippedSurrogate(), freeze_policy_batches=9, seed=seed)
    data = RolloutData(
        "mujoco/reach",
        steps=400,
        rollouts=3,
        envs=16,
        horizon=20,
        end_on_success=False,
        hide_outcome=True,
        eval_contexts=0,
        seed=seed,
    )
    trainer(tmp_path, HackingWatch(on_alarm="stop", max_false_positive_rate=0.05)).fit(learner, data)
    found = lines(tmp_path)
    assert len(found) == 3 and not any(line["alarms"] for line in found)
    assert found[-1]["failures"] >= 5 and found[-1]["successes"] >= 5, "both must happen, or nothing is proved"
    assert found[-1]["auroc"] > 0.95 and found[-1]["probe_clips"] >= 5
    assert found[-1]["probe_frozen_claimed"] == found[-1]["probe_reversed_claimed"] == 0


# --- it leaves no trace ---------------------------------------------------------------------------------------------


class Drawing(Told):
    """Draws numbers, and has parts that behave otherwise in training."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(12, 1), nn.Dropout(0.5), nn.BatchNorm1d(1))

    def forward(self, batch):
        shift = 0.1 * torch.rand(()) + 0.1 * random.random() + 0.1 * float(np.random.random())
        score = self.network(batch.state.flatten(0, 1)).view(batch.state.shape[:2]).sigmoid() + shift
        return RewardEstimates(
            rewards=score[:, 1:], valid=batch.mask, success=Labelled(values=score, valid=batch.observed)
        )


def test_a_watched_run_is_the_same_run(tmp_path):
    def learned(*callbacks):
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        reward = Drawing()
        source = RewardToGo(reward, ValueCritic(12, hidden=(8,)))
        learner = PolicyOptimizer(
            GaussianPolicy(12, 3, hidden=(8,)), source, ClippedSurrogate(), passes=2, minibatch_size=32
        )
        data = RolloutData(
            "mujoco/reach", steps=64, rollouts=3, envs=8, horizon=6, end_on_success=False, eval_contexts=0
        )
        trainer(tmp_path, *callbacks).fit(learner, data)
        left = (torch.rand(3), random.random(), np.random.random())
        assert all(p.grad is None for p in reward.parameters())
        return {k: v.clone() for k, v in learner.state_dict().items()}, left, [m.training for m in learner.modules()]

    alone = learned()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HackingWarning)
        shown = [rollout([0.5] * 4, [1] * 4), rollout([0.5] * 4, [1] * 4)]
        shown = [replace(b, state=torch.randn(4, 5, 12), episode=torch.arange(4) + 4 * i) for i, b in enumerate(shown)]
        options = {"ask_random": 1, "ask_doubtful": 1, "min_failures": 1, "training": Data(shown)}
        watched = learned(HackingWatch(**options))
    assert len(lines(tmp_path)) == 3 and lines(tmp_path)[-1]["drift"] is not None
    for key, value in alone[0].items():
        assert torch.equal(value, watched[0][key]), key
    assert torch.equal(alone[1][0], watched[1][0]) and alone[1][1:] == watched[1][1:]
    assert alone[2] == watched[2]


# --- resuming, several processes ------------------------------------------------------------------------------------


def test_a_resumed_watch_goes_on_counting(tmp_path):
    batches = [rollout([0.1 * i, 0.9], [0, i % 2]) for i in range(4)]
    watch(tmp_path / "whole", batches, window=3, **QUIET)
    whole = lines(tmp_path / "whole")
    half = trainer(tmp_path / "half", HackingWatch(window=3, **QUIET))
    half.fit(module(Told()), Loader(batches[:2]))
    half.save_checkpoint(tmp_path / "half.ckpt")
    # two rollouts more that the checkpoint does not know of, as after a crash
    with (tmp_path / "half" / "watch.jsonl").open("a") as file:
        file.write('{"rollout": 2}\n{"rollout": 3}\n{"roll')
    again = HackingWatch(window=3, **QUIET)
    trainer(tmp_path / "half", again, max_epochs=2).fit(
        module(Told()), Loader(batches[2:]), ckpt_path=tmp_path / "half.ckpt"
    )
    timed = ("seconds", "share")
    resumed = [{k: v for k, v in line.items() if k not in timed} for line in lines(tmp_path / "half")]
    assert resumed == [{k: v for k, v in line.items() if k not in timed} for line in whole]
    with pytest.raises(FileExistsError, match="holds the figures of an earlier run: choose another folder, or resume"):
        watch(tmp_path / "half", batches)


TWO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_callback as here
torch.set_num_threads(1)
here.warnings.simplefilter("ignore", here.HackingWarning)
class Ranked(here.Loader):
    def __iter__(self):
        failed = [0, 0] if learner.global_rank else [0, 0, 1]
        return iter([here.rollout([0.9] * len(failed), failed)] * 3)
real = here.recordings(0, 8)
learner = here.module(here.trained(real, steps=1))
watch = here.HackingWatch(
    threshold=0.0, min_failures=4, on_alarm="stop", ask_random=1, max_probe=None, max_drift=None, max_retrains=1,
    retrain=here.PushBack(here.Data(real), steps=3), training=here.Data(real),
)
class Saving(here.lightning.Callback):
    def on_train_end(self, trainer, module):
        said = {"watch": watch.state_dict(), "stopped": trainer.should_stop}
        said["reward"] = module.advantage.reward.state_dict()
        torch.save(said, f"{sys.argv[2]}/{module.global_rank}.pt")
run = here.trainer(sys.argv[2], watch, Saving(), strategy="ddp_fork", devices=2)
run.fit(learner, Ranked([0] * 3))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_two_processes_count_together_and_act_together(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", TWO, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    # two failures here and two there make the four of the alarm: retrained after the first rollout, then stopped
    first, second = lines(tmp_path)
    assert [(x["failures"], x["successes"], x["false_positive_rate"]) for x in (first, second)] == [(4, 1, 1)] * 2
    assert (first["retrained"], second["retrained"]) == (True, False)
    asked = [json.loads(x)["episode"] for x in (tmp_path / "watch/to_label.jsonl").read_text().splitlines()]
    assert sorted(name.split("-")[1] for name in asked) == ["0", "1"]
    here, there = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert here["stopped"] and there["stopped"]
    assert str(here["watch"]) == str(there["watch"])
    for key, value in here["reward"].items():
        assert torch.equal(value, there["reward"][key]), f"{key} differs between the processes"


# --- drift ----------------------------------------------------------------------------------------------------------


class Data(lightning.LightningDataModule):
    """Given batches as training data."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return Loader(self.batches)


def normal(rows, seed, shift=0.0, width=3, steps=9):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.0, 0.0, 3.0]])[:width, :width]
    state = torch.randn(rows, steps + 1, width, generator=generator) @ mixing.T + shift
    return TrajectoryBatch(
        state=state,
        actions=torch.zeros(rows, steps, 1),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        episode=torch.arange(rows) + 1000 * seed,
    )


@pytest.mark.parametrize("seed", range(3))
def test_drift_is_one_percent_at_home_and_all_of_it_far_away(seed):
    model = Told()
    familiar = fit_training_features(model, [normal(100, 10 * seed), normal(100, 10 * seed + 1)])
    assert familiar.kind == "state"
    beyond, count = familiar.beyond(model, normal(200, 10 * seed + 2))
    assert count == 2000
    assert beyond / count == pytest.approx(0.01, abs=0.008)
    # the second number is 2 · the first + 0.5 · noise: breaking that is far, though every number alone is usual
    broken = normal(200, 10 * seed + 3)
    broken.state[:, :, 1] *= -1
    beyond, count = familiar.beyond(model, broken)
    assert beyond / count > 0.5


def test_distance_by_hand():
    familiar = TrainingFeatures(
        "state", torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]), torch.eye(2), 2.0, 0.99, ""
    )
    # (5 − 1) / 2 = 2 and 3: √(4 + 9)
    assert familiar.distances(torch.tensor([[5.0, 3.0], [1.0, 0.0]])).tolist() == pytest.approx([math.sqrt(13), 0])
    with pytest.raises(ValueError, match="expected 2 numbers per observation, got 3"):
        familiar.distances(torch.zeros(1, 3))


def test_context_and_padding_do_not_drift():
    familiar = fit_training_features(Told(), [normal(40, 0)])
    batch = normal(2, 1)
    away = replace(batch, weight=torch.cat([torch.zeros(2, 6), torch.ones(2, 3)], 1))
    away.state[:, :6] = 1e6  # context: the weights of both steps around are 0
    beyond, count = familiar.beyond(Told(), away)
    assert count == 2 * 4 and beyond <= 1
    real = torch.arange(9)[None] < torch.tensor([[3], [9]])
    short = TrajectoryBatch(state=normal(2, 1).state, actions=torch.zeros(2, 9, 1), mask=real)
    short.state[0, 4:] = torch.nan
    assert familiar.beyond(Told(), short)[1] == 4 + 10


def test_familiar_features_are_saved_and_belong_to_their_weights(tmp_path):
    data = recordings(0, 24)
    reward = trained(data, steps=3)
    familiar = fit_training_features(FirstHit(reward), data)
    assert familiar.kind == "hidden"
    familiar.save(tmp_path / "features.safetensors")
    loaded = TrainingFeatures.load(tmp_path / "features.safetensors")
    assert loaded.beyond(reward, data[0]) == familiar.beyond(reward, data[0])
    assert loaded.fits(reward) and loaded.threshold == familiar.threshold
    with torch.no_grad():
        reward.head.weight += 1
    assert not loaded.fits(reward)
    with pytest.raises(FileNotFoundError, match="there is no"):
        TrainingFeatures.load(tmp_path / "nothing")
    (tmp_path / "broken").write_text("no tensors")
    with pytest.raises(ValueError, match="holds no training features"):
        TrainingFeatures.load(tmp_path / "broken")
    with pytest.raises(ValueError, match="expected at least 4 training episodes, to hold one out, got 2"):
        fit_training_features(Told(), [normal(2, 0)])
    with pytest.raises(ValueError, match="no model with hidden features"):
        fit_training_features(Told(), [normal(8, 0)], "hidden")


def test_drift_raises_its_alarm(tmp_path):
    training = Data([normal(40, 0, width=2)])
    more = {"actions": torch.zeros(10, 9, 2), "success_known": torch.ones(10, dtype=torch.bool)}
    home, away = (replace(normal(10, 1, shift, width=2), **more) for shift in (0.0, 9.0))
    with pytest.warns(HackingWarning, match=r"after 2 rollouts: 100% of the observations lie beyond"):
        watch(tmp_path, [home, away], window=1, training=training, max_false_positive_rate=None, max_probe=None)
    assert [line["alarms"] for line in lines(tmp_path)] == [[], ["drift"]]
    assert (tmp_path / "watch" / "training_features.safetensors").is_file()


# --- probes ---------------------------------------------------------------------------------------------------------


class Clock(Told):
    """Reads nothing but the time."""

    def forward(self, batch):
        return super().forward(
            replace(batch, state=torch.linspace(0, 1, batch.state.shape[1])[None, :, None].expand_as(batch.state))
        )


class Listening(Told):
    """Believes in every success whose instruction begins with the right word."""

    inputs = ModelInputs(instruction=True)

    def forward(self, batch):
        right = torch.tensor([float(text.startswith("reach")) for text in batch.instructions])
        return super().forward(replace(batch, state=batch.state * right[:, None, None]))


class Deaf(Told):
    """Says that it reads the instruction, and does not."""

    inputs = ModelInputs(instruction=True)


def told(batch, *texts):
    return replace(batch, instructions=tuple(texts[i % len(texts)] for i in range(len(batch))))


def test_a_clock_pays_frozen_and_reversed_clips_and_a_reward_that_looks_does_not(tmp_path):
    batches = [rollout([0.9, 0.8] * 6, [1, 1] * 6)] * 2
    with pytest.warns(HackingWarning, match="probe_frozen: 100% still succeed; probe_reversed: 100% still succeed"):
        _, _, (line, _) = watch(tmp_path / "clock", batches, Clock())
    assert line["alarms"] == ["probe_frozen", "probe_reversed"]
    assert line["probe_honest"] == line["probe_frozen"] == line["probe_reversed"] == 1.0
    _, _, (line, _) = watch(tmp_path / "looks", batches)
    assert line["alarms"] == []
    assert line["probe_honest"] == pytest.approx(0.85)
    assert line["probe_frozen"] == 0 and line["probe_reversed"] == pytest.approx(-0.85)
    assert line["probe_frozen_claimed"] == line["probe_reversed_claimed"] == 0
    assert line["probe_other_task"] is None, "a reward that says it reads nothing and one text: not defined"


def test_a_deaf_reward_pays_another_task():
    batch = told(rollout([0.9] * 4), "reach the ball")
    assert probe(Listening(), batch, instructions=("open the drawer",))["other_task"].share == 0
    found = probe(Deaf(), batch, instructions=("open the drawer", "reach the ball"))["other_task"]
    assert (found.clips, found.honest, found.claimed) == (4, 4, 4)
    assert "other_task" not in probe(Deaf(), batch), "no other task is known"
    assert probe(Listening(), told(batch, "reach the ball", "close it"))["other_task"].clips == 4


def test_clips_end_where_the_score_is_best_and_failures_prove_nothing():
    batch = rollout([0.9, 0.3, 0.9], steps=6)
    batch.state[0, 4:, 0] = 0.2  # succeeds at observation 3, no more, and leaves again
    batch.state[0, 3, 0] = 0.8
    batch.state[2, :, 0] = 0.9  # begins as a success: nothing is reached
    found = probe(Told(), batch)
    assert (found["honest"].clips, found["honest"].honest) == (3, 1)
    # paid: 0.8 up to its best, 0.3, and 0; reversed from there: the same backwards
    assert found["honest"].paid == pytest.approx(0.8 + 0.3)
    assert found["reversed"].paid == pytest.approx(-0.8 - 0.3)
    assert found["frozen"].paid == 0
    assert probe(Told(), batch, rows=1)["honest"].paid == pytest.approx(0.8), "what reaches success is taken first"


class Bright(RewardModel):
    """Success is a bright picture."""

    inputs = ModelInputs(cameras=("front",))

    def forward(self, batch):
        sampled = batch.frames["front"]
        level = sampled.values.float().mean((2, 3, 4)) / 255
        score = Labelled(values=level, valid=batch.observed)
        return RewardEstimates(rewards=level[:, 1:] - level[:, :-1], valid=batch.mask, success=score)


def test_frames_are_frozen_reversed_and_blackened():
    steps = torch.arange(5).expand(2, -1)
    frames = (torch.linspace(25, 230, 5)[None, :, None, None, None] * torch.ones(2, 5, 3, 4, 4)).to(torch.uint8)
    batch = replace(rollout([0.0, 0.0]), frames={"front": Sampled(values=frames, step=steps)})
    found = probe(Bright(), batch)
    assert found["honest"].mean == pytest.approx(205 / 255, abs=0.01)
    assert found["frozen"].mean == found["blank"].mean == 0
    assert found["reversed"].mean == pytest.approx(-205 / 255, abs=0.01)
    assert [found[name].share for name in ("frozen", "reversed", "blank")] == [0, 0, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_clips_on_the_host_are_probed_by_a_reward_on_an_accelerator():
    torch.manual_seed(0)
    batch, reward = rollout([0.9, 0.2]), ProgressReward(state_size=2, width=8, layers=1).eval()
    here = probe(reward, batch)
    there = probe(reward.to("cuda"), batch)
    assert there.keys() == here.keys() and there["honest"].paid == pytest.approx(here["honest"].paid, abs=1e-3)


def test_given_clips_are_asked_again_but_not_counted_again(tmp_path):
    clips = Data([rollout([0.9] * 3)])
    found = watch(tmp_path, [rollout([0.1], [0])] * 3, clips=clips, **QUIET)[2]
    assert [line["probe_clips"] for line in found] == [3, 3, 3]


# --- a person's labels ----------------------------------------------------------------------------------------------


def test_a_person_is_asked_and_answers(tmp_path):
    class Answering(lightning.Callback):
        """A person who looks at what was written and finds that all of it failed, after the second rollout."""

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 1:
                asked = (tmp_path / "watch" / "to_label.jsonl").read_text().splitlines()
                said = [{"episode": json.loads(line)["episode"], "success": 0} for line in asked]
                said.append({"episode": "somebody else's", "success": 1})
                (tmp_path / "watch" / "labels.jsonl").write_text("\n".join(map(json.dumps, said)))

    batches = [rollout([0.9, 0.1, 0.52, 0.8])] * 3
    run = trainer(tmp_path, HackingWatch(ask_random=2, ask_doubtful=1, **QUIET), Answering())
    with pytest.warns(HackingWarning, match=r"label the episodes of .*to_label.jsonl in .*labels.jsonl"):
        run.fit(module(Told()), Loader(batches))
    asked = [json.loads(line) for line in (tmp_path / "watch" / "to_label.jsonl").read_text().splitlines()]
    asked = [q for i in range(3) for q in sorted(asked[3 * i : 3 * i + 3], key=lambda q: q["drawn"], reverse=True)]
    assert [q["drawn"] for q in asked] == ["random", "random", "doubtful"] * 3
    assert all((tmp_path / "watch" / q["look_at"]).is_file() for q in asked)
    first, second, third = lines(tmp_path)
    assert first["false_positive_rate"] is None and second["outcome_known"] == 0
    drawn = [q for q in asked if q["drawn"] == "random" and not q["episode"].startswith("000002")]
    assert third["failures"] == len(drawn) == 4, "the doubtful ones are no sample, and the last were not answered yet"
    assert third["false_positive_rate"] == sum(q["score"] >= 0.5 for q in drawn) / 4
    assert (third["labels"], third["labels_unmatched"]) == (6, 1)
    for i in range(3):  # of those that were not drawn the least decided one
        left = {0.9, 0.1, 0.52, 0.8} - {round(q["score"], 2) for q in asked[3 * i : 3 * i + 2]}
        assert round(asked[3 * i + 2]["score"], 2) == min(left, key=lambda score: abs(score - 0.5))


def test_asking_about_doubtful_episodes_does_not_take_known_outcomes_out_of_the_rates(tmp_path):
    batch = rollout([0.9, 0.52, 0.48, 0.1], [0, 0, 0, 0])
    figures = watch(tmp_path, [batch] * 2, ask_doubtful=2, **QUIET)[2][-1]
    # without the two that are nearest to ½ the rate would be the same ½, but of four failures instead of eight
    assert (figures["failures"], figures["false_positive_rate"]) == (8, 0.5)
    certain = watch(tmp_path / "other", [rollout([0.9, 0.6, 0.1], [0, 0, 0])], ask_doubtful=1, **QUIET)[2][-1]
    assert (certain["failures"], certain["false_positive_rate"]) == (3, pytest.approx(2 / 3))  # 0.9 and 0.6, not 0.9


def test_an_episode_is_written_and_read_again(tmp_path):
    frames = torch.randint(0, 255, (2, 3, 3, 8, 8), dtype=torch.uint8)
    batch = replace(
        told(rollout([0.3, 0.9]), "one", "two"),
        frames={"front": Sampled(values=frames, step=torch.tensor([[0, 2, 4], [0, 3, -1]]))},
    )
    save_episode(batch[1], tmp_path, "x")
    assert (tmp_path / "x.png").stat().st_size > 1000
    read = load_episode(tmp_path, "x")
    assert torch.equal(read.state, batch.state[1:]) and read.instructions == ("two",)
    assert torch.equal(read.frames["front"].values, frames[1:])
    assert read.frames["front"].step.tolist() == [[0, 3, -1]]
    both = stack_rows([batch[0], rollout([0.1], steps=2)[:0], read])
    assert both.instructions == ("one", "two") and torch.equal(both.state, batch.state)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


class Tracked(RewardModel):
    """Progress is where the hand is, in a track."""

    def forward(self, batch):
        hand = batch.tracks["hand"]
        phi = torch.where(hand.valid, hand.values[..., 0], 0.0)
        return RewardEstimates(
            rewards=torch.where(batch.mask, phi[:, 1:] - phi[:, :-1], 0.0),
            valid=batch.mask,
            progress=Labelled(values=phi.clamp(0, 1), valid=batch.made & hand.valid),
        )


def tracked(to, steps):
    """A row whose hand goes evenly from 0 to a place."""
    hand = torch.linspace(0, to, steps + 1)[None, :, None] * torch.ones(3)
    return replace(
        rollout([to], steps=steps),
        tracks={"hand": Labelled(values=hand, valid=torch.ones(1, steps + 1, dtype=torch.bool))},
    )


def test_a_reward_that_reads_tracks_is_probed_on_tracks():
    found = probe(Tracked(), stack_rows([tracked(0.9, 4), tracked(0.8, 6)]))
    assert found["honest"].paid == pytest.approx(0.9 + 0.8, abs=1e-5)
    assert found["frozen"].paid == pytest.approx(0.0, abs=1e-5)
    assert found["reversed"].paid == pytest.approx(-0.9 - 0.8, abs=1e-5)


def test_tracks_that_all_rows_have_are_stacked():
    both = stack_rows([tracked(0.9, 4), tracked(0.8, 6)])
    hand = both.tracks["hand"]
    assert hand.valid.tolist() == [[True] * 5 + [False] * 2, [True] * 7]
    assert hand.values[0, 4, 0] == pytest.approx(0.9) and not hand.values[0, 5:].any()
    assert not stack_rows([tracked(0.9, 4), rollout([0.1], steps=2)]).tracks


def test_rows_of_different_length_are_stacked():
    both = stack_rows([rollout([0.4], steps=2), rollout([0.8], steps=5)])
    assert both.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert both.state[0, :3, 0].tolist() == pytest.approx([0, 0.2, 0.4])
    assert not both.state[0, 3:].any()
    seen = {"wrist": Sampled(values=torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), step=torch.zeros(1, 1).long())}
    blind, sighted = rollout([0.4]), replace(rollout([0.4]), frames=seen)
    for rows in ([blind, sighted], [sighted, blind]):  # in either order: no camera may get lost in silence
        with pytest.raises(ValueError, match="some hold frames of 'wrist', some do not"):
            stack_rows(rows)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"episode": "a", "success": 1}\nnonsense\n', "line 2: expected a JSON object, got 'nonsense'"),
        ('\n{"episode": "a", "success": 0.5}\n', 'line 2: expected {"episode": "…", "success": 0 or 1}, got'),
        ('{"episode": 3, "success": 1}\n', "line 1: expected"),
        ('{"success": 1}\n', "line 1: expected"),
        ("[1, 2]\n", "line 1: expected a JSON object"),
    ],
)
def test_a_label_that_is_none_is_named_with_its_line(text, message, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_labels(path)
    assert message in str(error.value) and str(path) in str(error.value)
    with pytest.raises(ValueError, match=r"labels\.jsonl, line"):
        watch(tmp_path / "run", [MIXED], labels=str(path))


def test_a_label_that_is_being_written_waits_and_the_last_word_counts(tmp_path):
    path = tmp_path / "labels.jsonl"
    assert read_labels(path) == {}
    path.write_text('{"episode": "a", "success": 1}\n{"episode": "a", "success": 0}\n\n{"episode": "b", "suc')
    assert read_labels(path) == {"a": 0}


def test_logged_data_that_count_outcomes_withhold_none(tmp_path):
    class Logged(lightning.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.outcomes = Counter({"unknown": 1})  # what EpisodeData counts: one kind, and a batch of one row

        def train_dataloader(self):
            return Loader([rollout([0.9])])

    with pytest.warns(HackingWarning, match="no outcome is known"):
        trainer(tmp_path, HackingWatch(**QUIET)).fit(module(Told()), datamodule=Logged())
    (said,) = lines(tmp_path)
    assert (said["episodes"], said["outcome_known"]) == (1, 0)


def test_somebody_may_say_the_outcome(tmp_path):
    said = torch.tensor([1.0, 0.0, torch.nan])
    _, _, (line,) = watch(tmp_path, [rollout([0.9, 0.9, 0.9])], outcome=lambda batch: said, **QUIET)
    assert (line["successes"], line["failures"], line["false_positive_rate"]) == (1, 1, 1.0)
    with pytest.raises(ValueError, match="outcome: expected 2 numbers, one a row"):
        watch(tmp_path / "wrong", [rollout([0.9, 0.9])], outcome=lambda batch: said)


# --- pushing back ---------------------------------------------------------------------------------------------------


def moved(last, steps, seed):
    """Episodes that go from about (0, 0) to about the given (x, y); of x little can be seen."""
    generator = torch.Generator().manual_seed(seed)
    path = torch.linspace(0, 1, steps + 1)[None, :, None] * last[:, None]
    rows = len(last)
    noise = torch.randn(rows, steps + 1, 2, generator=generator) * torch.tensor([0.2, 0.05])
    return TrajectoryBatch(
        state=path + noise,
        actions=torch.zeros(rows, steps, 2),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        end=torch.full((rows,), int(End.TIME_LIMIT)),
        success=(last[:, 0] > 0.5).float(),
    )


def recordings(seed, rows=64, steps=4):
    """Training data in which success is x at 1, and y is always where x is: one batch."""
    goal = (torch.arange(rows) % 2).float()
    batch = with_success_targets(moved(goal[:, None].expand(-1, 2), steps, seed))
    return [replace(with_progress_targets(batch), episode=torch.arange(rows))]


def hacked(seed, rows=20, steps=4):
    """What a policy does that found out that y pays: x stays at 0."""
    return moved(torch.tensor([[0.0, 1.2]]).expand(rows, -1), steps, 100 + seed)


def trained(data, steps=50, model=SuccessReward):
    torch.manual_seed(0)
    reward = model(state_size=2, width=16, layers=0)
    reward.fit_normaliser(data)
    optimizer = torch.optim.Adam(reward.parameters(), 2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        reward.loss(data[0])["loss"].backward()
        optimizer.step()
    return reward.eval()


@torch.no_grad()
def claimed(reward, batch):
    return float((reward(batch).success.values.max(1).values >= 0.5).float().mean())


@pytest.mark.parametrize(
    "model, seed", [(SuccessReward, 0), (SuccessReward, 1), (SuccessReward, 2), (ProgressReward, 0)]
)
def test_pushing_back_ends_the_false_positives_and_keeps_the_successes(model, seed, tmp_path):
    data = recordings(seed)
    reward = trained(data, model=model)
    real = moved(torch.ones(20, 2), 4, 500 + seed)
    assert claimed(reward, hacked(seed + 1)) > 0.9 and claimed(reward, real) > 0.9, "it must be fooled first"
    before = {k: v.clone() for k, v in reward.state_dict().items()}
    push = PushBack(Data(data), steps=30, learning_rate=2e-2, seed=seed)
    callback = HackingWatch(retrain=push, training=Data(data), max_probe=None, max_drift=None, max_retrains=1)
    learner = module(FirstHit(reward))
    with pytest.warns(HackingWarning, match="the reward was retrained"):
        trainer(tmp_path, callback).fit(learner, Loader([hacked(seed), hacked(seed + 1)]))
    first, second = lines(tmp_path)
    assert first["retrained"] and first["false_positive_rate"] > 0.9
    assert second["false_positive_rate"] < 0.3 and second["episodes"] == 20, "what the old reward said is forgotten"
    assert claimed(reward, real) > 0.85
    assert learner.advantage.reward.reward is reward
    assert not torch.equal(before["observer.norm.weight"], reward.observer.norm.weight)
    assert all(not p.requires_grad and p.grad is None for p in reward.parameters())
    assert second["drift"] is not None, "the features of the new weights were learned"
    kept = load_component(tmp_path / "watch" / "reward_1")
    assert all(torch.equal(v, kept.state_dict()[k]) for k, v in learner.advantage.reward.state_dict().items())


def test_pushing_back_lowers_progress_to_a_share_of_what_it_was():
    data = recordings(0)
    reward = trained(data, model=ProgressReward)
    fooled = hacked(0)
    rows = PushBack(Data(data), progress_decay=0.5)._labelled(reward, fooled)
    with torch.no_grad():
        assert torch.allclose(rows.labels["progress"].values, 0.5 * reward(fooled).progress.values)
    assert not rows.labels["success"].values.any() and rows.labels["success"].valid.all()
    state = PushBack(Data(data), steps=30, learning_rate=2e-2, progress_decay=0.5)(reward, fooled)
    lower = ProgressReward(state_size=2, width=16, layers=0)
    lower.load_state_dict(state)
    with torch.no_grad():
        assert lower.eval()(fooled).progress.values[:, -1].mean() < 0.7 * reward(fooled).progress.values[:, -1].mean()


def test_what_a_person_calls_a_failure_is_pushed_back_too(tmp_path):
    data = recordings(0)
    reward = trained(data)

    class Answering(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            asked = (tmp_path / "watch" / "to_label.jsonl").read_text().splitlines()
            said = [json.dumps({"episode": json.loads(line)["episode"], "success": 0}) + "\n" for line in asked]
            (tmp_path / "watch" / "labels.jsonl").write_text("".join(said))

    unknown = replace(hacked(0), success_known=torch.zeros(20, dtype=torch.bool))
    push = PushBack(Data(data), steps=30, learning_rate=2e-2)
    callback = HackingWatch(retrain=push, ask_random=5, min_failures=5, max_probe=None)
    with pytest.warns(HackingWarning):
        trainer(tmp_path, callback, Answering()).fit(module(reward), Loader([unknown, unknown]))
    assert [line["retrained"] for line in lines(tmp_path)] == [False, True]
    assert claimed(reward, hacked(1)) < 0.5


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 0}, "window 0"),
        ({"ask_random": -1}, "ask_random -1"),
        ({"max_drift": 1.5}, r"max_drift is 1.5: expected a share in \[0, 1\], or None"),
        ({"probes": ("upside_down",)}, "no probe 'upside_down': expected some of frozen"),
        ({"on_alarm": "panic"}, "on_alarm 'panic'"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises((ValueError, TypeError), match=message if "on_alarm" not in options else None):
        HackingWatch(**options)


def test_there_must_be_a_reward_to_watch(tmp_path):
    cloning = PolicyOptimizer(GaussianPolicy(2, 2, hidden=(4,)), Uniform(), WeightedImitation())
    with pytest.raises(TypeError, match="whose advantage source has a reward model"):
        trainer(tmp_path, HackingWatch()).fit(cloning, Loader([MIXED]))


def test_there_must_be_something_to_push():
    with pytest.raises(ValueError, match="Told holds nothing to train: none of its models has a loss"):
        PushBack(Data([MIXED]))(Told(), MIXED)
    reward = trained(recordings(0), steps=1)
    with pytest.raises(ValueError, match="the loader gave no batch"):
        PushBack(Data([]))(reward, hacked(0))
    with pytest.raises(ValueError, match="steps 0"):
        PushBack(Data([]), steps=0)


def test_a_calibrated_reward_is_not_pushed_back():
    with pytest.raises(ValueError, match="were fitted to the old weights"):
        PushBack(Data([MIXED]))(Calibrated(trained(recordings(0), steps=1), method="platt"), hacked(0))
