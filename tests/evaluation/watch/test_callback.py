"""Whole training runs under a watch for reward hacking: metrics, alarms, and that it leaves no trace."""

import inspect
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
from typing import Any

import jsonargparse
import lightning
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates
from guerdon.core.hub import load_component
from guerdon.core.interfaces import RewardModel
from guerdon.core.intervals import wilson_interval
from guerdon.critics.value import ValueCritic
from guerdon.envs.reach import joint_angles
from guerdon.evaluation.watch.callback import HackingWarning, HackingWatch
from guerdon.evaluation.watch.claim import SuccessClaim
from guerdon.evaluation.watch.drift import TrainingFeatures
from guerdon.evaluation.watch.limits import AlarmLimits
from guerdon.evaluation.watch.probing import Probing
from guerdon.evaluation.watch.push_back import PushBack, Retrain
from guerdon.evaluation.watch.questions import SpotChecks
from guerdon.evaluation.watch.retraining import Retraining
from guerdon.evaluation.watch.training_drift import TrainingDrift
from guerdon.evaluation.watch.window import RolloutWindow
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.advantages.reward_to_go import RewardToGo, Uniform
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate, WeightedImitation
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.shaping import FirstHit
from guerdon.rewards.success import SuccessReward

from .watched_runs import (
    MIXED,
    Abstaining,
    Data,
    Loader,
    Told,
    claimed,
    hacked,
    lines,
    module,
    moved,
    normal,
    recordings,
    rollout,
    trained,
    trainer,
    watch,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


QUIET = {"max_false_positive_rate": None, "max_drift": None, "max_probe": None}


# --- metrics by hand ------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_the_window_slides_and_every_second_rollout_can_be_left_out(tmp_path):
    one, none = rollout([0.9, 0.9], [0, 0]), rollout([0.1, 0.1], [0, 0])
    _, _, found = watch(tmp_path / "all", [one, none, none], window=2, **QUIET)
    assert [line["false_positive_rate"] for line in found] == [1.0, 0.5, 0.0]
    _, _, found = watch(tmp_path / "half", [one, none, none, one], every=2, **QUIET)
    assert [(line["rollout"], line["episodes"]) for line in found] == [(0, 2), (2, 4)]


@pytest.mark.slow
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


def test_an_abstention_is_counted_and_is_no_claim(tmp_path):
    _, _, (line,) = watch(tmp_path, [rollout([-1.0, 0.9, 0.2], [0, 0, 0])], Abstaining(), **QUIET)
    assert (line["episodes"], line["failures"], line["reward_unknown"]) == (3, 2, 1)
    assert line["false_positive_rate"] == 0.5


@pytest.mark.slow
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


# --- alarms ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
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
        policy,
        source,
        ClippedSurrogate(),
        passes=8,
        minibatch_size=128,
        seed=seed,
        optimizer=PolicyAdam(learning_rate=1e-2),
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_reward_that_can_be_hacked_is_caught(seed, tmp_path):
    """The outcome is hidden from training: the watch reads what the environment withheld."""
    with pytest.warns(HackingWarning, match="failures for successes"):
        found = reach(tmp_path, Hackable(), seed, 24, on_alarm="stop", window=2)
    assert found[-1]["alarms"] == ["false_positives"]
    assert found[0]["alarms"] == [] and 1 < len(found) < 24, "it must learn to hack first, and be caught in time"
    assert found[-1]["false_positive_rate"] > found[0]["false_positive_rate"] + 0.2


@pytest.mark.slow
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
    trainer(tmp_path, HackingWatch(limits=AlarmLimits(on_alarm="stop", max_false_positive_rate=0.05))).fit(
        learner, data
    )
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


@pytest.mark.slow
def test_a_watched_run_is_the_same_run(tmp_path):
    def learned(*callbacks):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
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


@pytest.mark.slow
def test_a_resumed_watch_goes_on_counting(tmp_path):
    batches = [rollout([0.1 * i, 0.9], [0, i % 2]) for i in range(4)]
    watch(tmp_path / "whole", batches, window=3, **QUIET)
    whole = lines(tmp_path / "whole")
    half = trainer(tmp_path / "half", HackingWatch(history=RolloutWindow(window=3), **QUIET))
    half.fit(module(Told()), Loader(batches[:2]))
    half.save_checkpoint(tmp_path / "half.ckpt")
    # two rollouts more that the checkpoint does not know of, as after a crash
    with (tmp_path / "half" / "watch.jsonl").open("a") as file:
        file.write('{"rollout": 2}\n{"rollout": 3}\n{"roll')
    again = HackingWatch(history=RolloutWindow(window=3), **QUIET)
    trainer(tmp_path / "half", again, max_epochs=2).fit(
        module(Told()), Loader(batches[2:]), ckpt_path=tmp_path / "half.ckpt"
    )
    timed = ("seconds", "share")
    resumed = [{k: v for k, v in line.items() if k not in timed} for line in lines(tmp_path / "half")]
    assert resumed == [{k: v for k, v in line.items() if k not in timed} for line in whole]
    with pytest.raises(FileExistsError, match="holds the metrics of an earlier run: choose another folder, or resume"):
        watch(tmp_path / "half", batches)


BEFORE = {  # the callback's part of a checkpoint written when the watch had flat arguments
    "rollouts": 5,
    "retrained": 1,
    "alarms": ["false_positives"],
    "seen": [
        {
            "episodes": [
                {"name": "000003-0-0", "learned": 0.9, "score": 0.9, "success": 0.0, "recorded": 1.0, "drawn": ""},
                {"name": "000003-0-1", "learned": 0.1, "score": 0.1, "success": math.nan, "recorded": math.nan}
                | {"drawn": "random"},
            ],
            "beyond": 1,
            "observations": 10,
            "probes": {
                "honest": {"clips": 2, "paid": 1.0, "honest": 1, "claimed": 1},
                "frozen": {"clips": 2, "paid": 0.5, "honest": 1, "claimed": 1},
            },
        },
    ],
    "asked": [
        {"name": "000003-0-1", "learned": 0.1, "score": 0.1, "success": math.nan, "recorded": math.nan}
        | {"drawn": "random"},
    ],
}


@pytest.mark.slow
def test_a_checkpoint_of_before_goes_on(tmp_path):
    started = trainer(tmp_path / "run", HackingWatch(**QUIET))
    started.fit(module(Told()), Loader([MIXED] * 5))
    started.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=False)
    assert checkpoint["callbacks"]["HackingWatch"].keys() == BEFORE.keys(), "the same keys as before"
    checkpoint["callbacks"]["HackingWatch"] = BEFORE
    torch.save(checkpoint, tmp_path / "run.ckpt")
    (tmp_path / "run" / "watch").mkdir(exist_ok=True)
    (tmp_path / "run" / "watch" / "labels.jsonl").write_text('{"episode": "000003-0-1", "success": 0}\n')
    again = HackingWatch(
        limits=AlarmLimits(min_failures=2, max_false_positive_rate=0.01), retraining=Retraining(max_retrains=1)
    )
    resumed = trainer(tmp_path / "run", again, max_epochs=2)
    resumed.fit(module(Told()), Loader([rollout([0.3], [0])]), ckpt_path=tmp_path / "run.ckpt")
    line = lines(tmp_path / "run")[-1]
    # 0.9, 0.1 (labelled) and 0.3 failed; of 10 observations 1 was far; 2 + 1 clips, 1.0 + 0.3 paid for
    assert (line["rollout"], line["failures"], line["labels"]) == (5, 3, 1)
    assert line["false_positive_rate"] == pytest.approx(1 / 3) and line["drift"] == 0.1
    assert line["probe_honest"] == pytest.approx(1.3 / 3) and line["probe_frozen"] == pytest.approx(0.5 / 3)
    assert line["alarms"] == ["false_positives"] and not line["retrained"], "an old alarm, and retrained often enough"
    assert again.state_dict()["retrained"] == 1


TWO = """
import sys, torch, warnings
from guerdon.evaluation.watch.callback import HackingWarning
from guerdon.evaluation.watch.push_back import PushBack
sys.path.insert(0, sys.argv[1])
import watched_runs as here
torch.set_num_threads(1)
warnings.simplefilter("ignore", HackingWarning)
class Ranked(here.Loader):
    def __iter__(self):
        failed = [0, 0] if learner.global_rank else [0, 0, 1]
        return iter([here.rollout([0.9] * len(failed), failed)] * 3)
real = here.recordings(0, 8)
learner = here.module(here.trained(real, steps=1))
watch = here.HackingWatch(
    threshold=0.0, min_failures=4, on_alarm="stop", ask_random=1, max_probe=None, max_drift=None, max_retrains=1,
    retrain=PushBack(here.Data(real), steps=3), training=here.Data(real),
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


@pytest.mark.slow
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


def test_given_clips_are_asked_again_but_not_counted_again(tmp_path):
    clips = Data([rollout([0.9] * 3)])
    found = watch(tmp_path, [rollout([0.1], [0])] * 3, clips=clips, **QUIET)[2]
    assert [line["probe_clips"] for line in found] == [3, 3, 3]


# --- a person's labels ----------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    run = trainer(tmp_path, HackingWatch(questions=SpotChecks(ask_random=2, ask_doubtful=1), **QUIET), Answering())
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


@pytest.mark.slow
def test_asking_about_doubtful_episodes_does_not_take_known_outcomes_out_of_the_rates(tmp_path):
    batch = rollout([0.9, 0.52, 0.48, 0.1], [0, 0, 0, 0])
    figures = watch(tmp_path, [batch] * 2, ask_doubtful=2, **QUIET)[2][-1]
    # without the two that are nearest to ½ the rate would be the same ½, but of four failures instead of eight
    assert (figures["failures"], figures["false_positive_rate"]) == (8, 0.5)
    certain = watch(tmp_path / "other", [rollout([0.9, 0.6, 0.1], [0, 0, 0])], ask_doubtful=1, **QUIET)[2][-1]
    assert (certain["failures"], certain["false_positive_rate"]) == (3, pytest.approx(2 / 3))  # 0.9 and 0.6, not 0.9


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


def test_a_label_that_is_none_ends_the_run(tmp_path):
    (tmp_path / "labels.jsonl").write_text("nonsense\n[]\n")
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1: expected a JSON object"):
        watch(tmp_path / "run", [MIXED], labels=str(tmp_path / "labels.jsonl"))


def test_unknown_outcomes_are_warned_of_once(tmp_path):
    with pytest.warns(HackingWarning) as warned:
        watch(tmp_path, [rollout([0.9])] * 3, **QUIET)
    assert len([w for w in warned if w.category is HackingWarning]) == 1


def test_somebody_may_say_the_outcome(tmp_path):
    said = torch.tensor([1.0, 0.0, torch.nan])
    _, _, (line,) = watch(tmp_path, [rollout([0.9, 0.9, 0.9])], outcome=lambda batch: said, **QUIET)
    assert (line["successes"], line["failures"], line["false_positive_rate"]) == (1, 1, 1.0)
    with pytest.raises(ValueError, match="outcome: expected 2 numbers, one a row"):
        watch(tmp_path / "wrong", [rollout([0.9, 0.9])], outcome=lambda batch: said)


# --- pushing back ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    callback = HackingWatch(
        limits=AlarmLimits(max_probe=None, max_drift=None),
        drift=TrainingDrift(training=Data(data)),
        retraining=Retraining(retrain=push, max_retrains=1),
    )
    learner = module(FirstHit(reward))
    with pytest.warns(HackingWarning, match="the reward was retrained"):
        trainer(tmp_path, callback).fit(learner, Loader([hacked(seed), hacked(seed + 1)]))
    first, second = lines(tmp_path)
    assert first["retrained"] and first["false_positive_rate"] > 0.9
    assert second["false_positive_rate"] < 0.3 and second["episodes"] == 20, "what the old reward said is forgotten"
    assert claimed(reward, real) > 0.85
    source: Any = learner.advantage
    assert source.reward.reward is reward
    assert not torch.equal(before["observer.norm.weight"], reward.observer.norm.weight)
    assert all(not p.requires_grad and p.grad is None for p in reward.parameters())
    assert second["drift"] is not None, "the features of the new weights were learned"
    kept = load_component(tmp_path / "watch" / "reward_1")
    assert all(torch.equal(v, kept.state_dict()[k]) for k, v in source.reward.state_dict().items())


@pytest.mark.slow
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
    callback = HackingWatch(
        limits=AlarmLimits(min_failures=5, max_probe=None),
        questions=SpotChecks(ask_random=5),
        retraining=Retraining(retrain=push),
    )
    with pytest.warns(HackingWarning):
        trainer(tmp_path, callback, Answering()).fit(module(reward), Loader([unknown, unknown]))
    assert [line["retrained"] for line in lines(tmp_path)] == [False, True]
    assert claimed(reward, hacked(1)) < 0.5


class Shifting(Retrain):
    """Draws numbers, and makes new weights without training."""

    def __init__(self):
        self.fooled = []

    def __call__(self, reward, fooled):
        self.fooled.append(fooled)
        return {name: value + torch.rand(()) for name, value in reward.state_dict().items()}


class Traced(HackingWatch):
    """Notes whether a random state changed while the watch was at work."""

    disturbed = False

    def on_train_batch_end(self, *args, **kwargs):
        before = torch.get_rng_state()
        super().on_train_batch_end(*args, **kwargs)
        self.disturbed |= not torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_after_retraining_what_the_old_weights_predicted_is_forgotten(tmp_path):
    data = recordings(0, 24)
    reward, recipe = trained(data, steps=1), Shifting()
    (tmp_path / "labels.jsonl").write_text('{"episode": "000000-0-3", "success": 1}\n')
    callback = Traced(
        claim=SuccessClaim(threshold=0.0),
        limits=AlarmLimits(min_failures=12, max_drift=None, max_probe=None),
        questions=SpotChecks(ask_random=4, labels=str(tmp_path / "labels.jsonl")),
        retraining=Retraining(recipe, max_retrains=1),
        drift=TrainingDrift(Data(data)),
    )
    with pytest.warns(HackingWarning, match="failures for successes"):
        trainer(tmp_path, callback).fit(module(reward), Loader([hacked(0), hacked(1)]))
    assert [line["retrained"] for line in lines(tmp_path)] == [True, False]
    (fooled,) = recipe.fooled
    kept = [row for row in range(20) if row != 3]
    assert torch.equal(fooled.state, hacked(0).state[kept]), "a person says that the episode of row 3 succeeded"
    asked = [record["name"] for record in callback.state_dict()["asked"]]
    assert len(asked) == 4 and all(name.startswith("000001") for name in asked)
    listed = (tmp_path / "watch" / "to_label.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["episode"] for line in listed) == sorted(asked)
    assert TrainingFeatures.load(tmp_path / "watch" / "training_features.safetensors").fits(reward)
    assert not callback.disturbed


# --- arguments ------------------------------------------------------------------------------------------------------

FLAT = {
    "claim": {"threshold": 0.7, "score": "return", "judged": "last"},
    "history": {"window": 3, "every": 2, "level": 0.8},
    "limits": {
        "max_false_positive_rate": 0.1,
        "min_failures": 2,
        "max_drift": None,
        "max_probe": 0.9,
        "on_alarm": "stop",
    },
    "probing": {"probes": ("blank",), "probe_rows": 3, "clips": Data([MIXED]), "instructions": ("reach",)},
    "drift": {"training": Data([normal(8, 0)]), "features": "state"},
    "questions": {"ask_random": 1, "ask_doubtful": 2, "labels": "labels.jsonl", "seed": 4},
    "retraining": {"retrain": PushBack(Data([MIXED])), "max_retrains": 1, "keep": 5},
}


def test_every_argument_of_before_is_accepted_flat():
    options = {name: value for group in FLAT.values() for name, value in group.items()}
    callback = HackingWatch(**options, outcome=None, folder="there")
    assert callback.history.summaries == () and callback.folder == "there"
    for part, group in FLAT.items():
        for name, value in group.items():
            if name not in ("window", "keep"):  # the length of a queue
                assert getattr(getattr(callback, part), name) == value, name


def test_the_objects_of_flat_arguments_are_known_to_whoever_translates_files():
    objects = HackingWatch.__init__.folded_objects
    own = set(inspect.signature(HackingWatch).parameters)
    assert {name: set(inspect.signature(make).parameters) for name, make in objects.items()} == {
        name: set(group) for name, group in FLAT.items()
    }
    assert own == {*FLAT, "outcome", "folder"} and not own & {name for group in FLAT.values() for name in group}


@pytest.mark.slow
def test_flat_arguments_and_objects_make_the_same_run(tmp_path):
    batches = [MIXED, rollout([0.7, 0.2], [0, 0])]
    flat = {"threshold": 0.65, "window": 1, "probes": ("frozen",), "min_failures": 1, "ask_random": 1}
    objects = {
        "claim": SuccessClaim(threshold=0.65),
        "history": RolloutWindow(window=1),
        "limits": AlarmLimits(min_failures=1),
        "probing": Probing(probes=("frozen",)),
        "questions": SpotChecks(ask_random=1),
    }
    found = [watch(tmp_path / str(i), batches, **options)[2] for i, options in enumerate((flat, objects))]
    for line in found[0] + found[1]:
        del line["seconds"], line["share"]
    assert found[0] == found[1] and found[0][1]["false_positive_rate"] == 0.5


def test_an_object_and_its_arguments_are_refused_together():
    with pytest.raises(TypeError, match="limits and max_drift are both given: put max_drift into limits"):
        HackingWatch(limits=AlarmLimits(), max_drift=0.1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="unexpected keyword argument 'treshold'"):
        HackingWatch(treshold=0.7)  # pyright: ignore[reportCallIssue]


def test_two_watches_share_nothing():
    one, other = HackingWatch(), HackingWatch()
    one.history.advance()
    assert (one.history.rollouts, other.history.rollouts) == (1, 0)


OBJECTS = """
claim: {class_path: guerdon.SuccessClaim, init_args: {threshold: 0.7}}
limits: {class_path: guerdon.AlarmLimits, init_args: {max_drift: null, on_alarm: stop}}
probing: {class_path: guerdon.Probing, init_args: {probes: [frozen], instructions: [open]}}
drift: {class_path: guerdon.TrainingDrift, init_args: {features: state}}
history: {window: 3}
"""


def test_objects_are_written_in_yaml():
    """With the class named or, where the argument takes one class only, without."""
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--watch", type=HackingWatch)
    written = {"class_path": "guerdon.HackingWatch", "init_args": yaml.safe_load(OBJECTS)}
    made: Any = parser.instantiate_classes(parser.parse_object({"watch": written}))
    callback = made.watch
    assert callback.claim.threshold == 0.7 and callback.drift.features == "state"
    assert (callback.limits.max_drift, callback.limits.on_alarm) == (None, "stop")
    assert (callback.probing.probes, callback.probing.instructions) == (("frozen",), ("open",))
    assert callback.history.state_dict() == RolloutWindow().state_dict() and callback.limits.min_failures == 20


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
