"""The guard against collapse: a planted collapse is undone, a healthy run is left alone."""

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

from guerdon.critics.value import ValueCritic
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.guards import FILE, CollapseGuard
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.rewards.recorded import RecordedReward

from .test_optimizer import Loader, trainer, walk

ROUNDS = 10
EPISODES = 100


def judged(batch):
    """Success: in the end within 0.25 of the origin."""
    near = batch.state[:, -1].norm(dim=1) < 0.25
    return replace(batch, success=near.float(), success_known=torch.ones(len(near), dtype=torch.bool))


class Planted(lightning.Callback):
    """Multiplies the learning rate from a batch on."""

    def __init__(self, at: int, factor: float = 1000.0):
        self.at, self.factor = at, factor

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if int(pl_module.batches_seen) == self.at:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= self.factor


class Noted(lightning.Callback):
    """Keeps the success of every validation and the learning rate after every batch."""

    def __init__(self):
        self.success, self.rates = [], []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.success.append(float(trainer.callback_metrics["val_success"]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def made(seed=0, objective=None, **options: Any):
    torch.manual_seed(seed)
    policy = GaussianPolicy(2, 2, hidden=(32,), log_std=-1.0)
    source = RewardToGo(RecordedReward(), ValueCritic(2, hidden=(32,)), gamma=0.95)
    options = {"passes": 4, "minibatch_size": 256, "optimizer": PolicyAdam(learning_rate=6e-3)} | options
    return PolicyOptimizer(policy, source, objective or ClippedSurrogate(), **options)


def run(module, *callbacks, rounds=ROUNDS, seed=0, ckpt_path=None, **more):
    """One round is a rollout of 32 episodes and a validation of 100; the run so far decides what is rolled out."""
    noted = Noted()
    found = trainer(max_epochs=rounds, callbacks=[noted, *callbacks], **more)
    found.fit(
        module,
        Loader(lambda i: walk(module.policy, 32, seed=1000 * seed + int(module.batches_seen)), 1),
        Loader(lambda i: judged(walk(module.policy, EPISODES, seed=10_000, deterministic=True)), 1),
        ckpt_path=ckpt_path,
    )
    return found, noted


def success(policy):
    return float(judged(walk(policy, EPISODES, seed=10_000, deterministic=True)).success.mean())


@pytest.mark.slow
@pytest.mark.parametrize("in_file", [False, True])
def test_a_planted_collapse_is_undone(in_file, tmp_path):
    guard = CollapseGuard(folder=tmp_path / "guard" if in_file else None)
    module = made()
    with pytest.warns(UserWarning, match="the policy collapsed: val_success fell to .* best weights were restored"):
        found, noted = run(module, guard, Planted(at=6), rounds=20)
    assert guard.collapsed and found.should_stop
    assert len(noted.success) < 20, "it did not stop"
    assert noted.success[-1] < max(noted.success) - 0.2, "nothing collapsed: the test shows nothing"
    assert success(module.policy) == pytest.approx(max(noted.success)) == guard.best_success
    assert (tmp_path / "guard" / FILE).is_file() == in_file
    unguarded = made()
    run(unguarded, Planted(at=6), rounds=20)
    assert success(unguarded.policy) < guard.best_success - 0.2, "without the guard the run would have recovered"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_left_alone(seed):
    guarded, plain = made(seed), made(seed)
    guard = CollapseGuard()
    noted = run(guarded, guard, seed=seed)[1]
    run(plain, seed=seed)
    assert not guard.collapsed and len(noted.success) == ROUNDS
    assert set(noted.rates) == {6e-3}, "the learning rate was lowered"
    assert guard.best_success == max(noted.success) > 0.5
    for (name, one), two in zip(guarded.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.slow
def test_the_learning_rate_backs_off_while_the_policy_moves_too_far():
    guard = CollapseGuard(max_kl=1e-6, min_ess=0.0, batches=2, factor=0.1, min_learning_rate=1e-4)
    module = made()
    noted = run(module, guard, rounds=7)[1]
    # every batch is too far: every second one lowers the rate, never below the least
    assert noted.rates == pytest.approx([6e-3, 6e-3, 6e-4, 6e-4, 1e-4, 1e-4, 1e-4])
    few = run(made(), CollapseGuard(max_kl=None, min_ess=1.0, batches=1, min_learning_rate=5e-3), rounds=3)[1]
    assert few.rates == pytest.approx([6e-3, 5e-3, 5e-3]), "the effective sample size is never 1 after a step"


class Breaking(ClippedSurrogate):
    """Its gradient is no number from some call on."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def forward(self, policy, observation, decision, advantage, weight):
        parts = super().forward(policy, observation, decision, advantage, weight)
        self.left -= 1
        return parts | ({"loss": parts["loss"] * math.nan} if self.left < 0 else {})


@pytest.mark.slow
def test_a_gradient_that_is_no_number_ends_in_the_best_weights():
    guard = CollapseGuard()
    module = made(objective=Breaking(after=22))  # in the sixth batch of 4 updates
    with pytest.warns(UserWarning, match="collapsed: the gradient became nan after 5 batches"):
        noted = run(module, guard)[1]
    assert guard.collapsed and success(module.policy) == guard.best_success == max(noted.success)
    early = made(objective=Breaking(after=2))
    with pytest.raises(FloatingPointError, match="gradient became nan"):
        run(early, CollapseGuard())  # nothing is kept yet
    assert early.rescue is None and module.rescue is None, "a run without a guard would ask an old one"
    with pytest.raises(FloatingPointError, match="gradient became nan"):
        run(made(objective=Breaking(after=6)))


@pytest.mark.slow
def test_the_best_survives_an_interruption(tmp_path):
    first = CollapseGuard()
    module = made()
    interrupted = run(module, first, rounds=6)[0]
    best = first.best_success
    interrupted.save_checkpoint(tmp_path / "six.ckpt")
    again, guard = made(seed=9), CollapseGuard()
    with pytest.warns(UserWarning, match="the policy collapsed"):
        run(again, guard, Planted(at=6), rounds=20, ckpt_path=tmp_path / "six.ckpt")
    assert guard.best_success >= best and success(again.policy) == pytest.approx(guard.best_success)


TWO = """
import importlib, sys, types, torch
torch.set_num_threads(1)
package = types.ModuleType("here")
package.__path__ = [sys.argv[1]]
sys.modules["here"] = package
here = importlib.import_module("here.test_guards")
guard, module, noted = here.CollapseGuard(folder=sys.argv[2]), here.made(), here.Noted()
class Saving(here.lightning.Callback):
    def on_train_end(self, trainer, module):
        found = {"state": module.state_dict(), "success": noted.success, "best": guard.best_success}
        torch.save(found | {"own": here.success(module.policy)}, f"{sys.argv[2]}/{module.global_rank}.pt")
callbacks = [noted, guard, here.Planted(at=6), Saving()]
def rolled(i):
    return here.walk(module.policy, 16, seed=100 * int(module.batches_seen) + module.global_rank)
def held_out(i):
    return here.judged(here.walk(module.policy, 50, seed=10_000 + module.global_rank, deterministic=True))
run = here.trainer(max_epochs=20, callbacks=callbacks, strategy="ddp_fork", devices=2)
run.fit(module, here.Loader(rolled, 1), here.Loader(held_out, 1))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_two_processes_fall_back_on_the_same_best(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", TWO, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,  # a deadlock would wait for ever
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "of 100 episodes" in ran.stderr, "episodes of one process only were counted"
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second["state"][key]) for key, value in first["state"].items())
    assert first["success"] == second["success"] and len(first["success"]) < 20
    assert first["best"] == second["best"] == max(first["success"]) > first["success"][-1] + 0.2
    assert first["own"] > first["success"][-1] + 0.2


class Successes(lightning.LightningModule):
    """Reports given successes, one per validation, and learns nothing."""

    def __init__(self, rates, episodes):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rates, self.episodes = list(rates), episodes
        self.automatic_optimization = False
        self.round = -1

    def training_step(self, batch: Any, index: int) -> None:
        with torch.no_grad():
            self.layer.weight += 1.0

    def validation_step(self, batch: Any, index: int) -> None:
        self.round += 1
        self.log("val_success", self.rates[self.round], batch_size=self.episodes)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def reported(rates, episodes, **options):
    guard = CollapseGuard(**options)
    module = Successes(rates, episodes)
    start = module.layer.weight.item()
    policy = GaussianPolicy(2, 2, hidden=(4,))
    batch = judged(walk(policy, episodes, seed=0))
    found = trainer(max_epochs=len(rates), callbacks=[guard])
    found.fit(module, Loader(lambda i: batch, 1), Loader(lambda i: batch, 1))
    return guard, round(module.layer.weight.item() - start)


def test_what_chance_explains_is_no_collapse():
    # 8 of 10: the interval of Wilson begins at 0.490. Twice 0.5 is a loss of 0.3, and may be chance
    guard, updates = reported([0.8, 0.5, 0.5, 0.5], 10)
    assert not guard.collapsed and updates == 4
    # of 100 episodes it begins at 0.711
    with pytest.warns(UserWarning, match=r"fell to 0.500 of 100 episodes, 2 validations in a row below 0.600"):
        guard, updates = reported([0.8, 0.5, 0.5, 0.5], 100)
    assert guard.collapsed and updates == 1, "the weights of the first validation"


def test_losses_must_follow_one_another():
    guard, updates = reported([0.8, 0.1, 0.8, 0.1, 0.7, 0.1], 100)
    assert not guard.collapsed and updates == 6
    with pytest.warns(UserWarning, match="the policy collapsed"):
        assert reported([0.8, 0.1], 100, patience=1)[0].collapsed


def test_of_equal_successes_the_later_weights_are_kept():
    with pytest.warns(UserWarning, match="the policy collapsed"):
        assert reported([0.8, 0.8, 0.1, 0.1], 100)[1] == 2


class Metrics(Successes):
    """Logs given metrics in each batch; a metric that a batch lacks stays as it was."""

    def __init__(self, metrics):
        super().__init__([], 1)
        self.metrics, self.seen = metrics, []

    def training_step(self, batch: Any, index: int) -> None:
        for name, value in self.metrics[index].items():
            self.log(name, value, batch_size=1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_a_batch_without_an_update_says_nothing_about_the_last_step():
    far, idle = {"decisions": 9.0, "updates": 4.0, "kl": 1.0}, {"decisions": 0.0}
    skipped = {"decisions": 9.0, "updates": 0.0}
    for metrics, lowered in (([far, idle, skipped, idle], False), ([far, idle, skipped, far], True)):
        module = Metrics([*metrics, idle])
        found = trainer(max_epochs=1, callbacks=[CollapseGuard(batches=2)], limit_val_batches=0)
        found.fit(module, Loader(lambda i: i, 5), Loader(lambda i: i, 1))
        assert module.seen[:4] == [1e-3] * 4 and module.seen[4] == (5e-4 if lowered else 1e-3)


class Played(lightning.Callback):
    """Logs the success of episodes that it played, as `guerdon.PlayedSuccess` does."""

    def __init__(self, rates):
        self.rates = iter(rates)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("val_success", next(self.rates), batch_size=10)
        pl_module.log("val_episodes", 10.0, batch_size=1)


class Imitating(Successes):
    """Validates on logged episodes, and does not report how often they succeeded."""

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_imitation", 1.0, batch_size=len(batch))


def logged(*callbacks, rounds=4):
    batch = replace(judged(walk(GaussianPolicy(2, 2, hidden=(4,)), 100, seed=0)), behaviour={})
    found = trainer(max_epochs=rounds, callbacks=list(callbacks))
    found.fit(Imitating([], 1), Loader(lambda i: batch, 1), Loader(lambda i: batch, 1))


def test_logged_episodes_are_not_counted_as_played():
    guard = CollapseGuard()
    logged(Played([0.8, 0.5, 0.5, 0.5]), guard)
    assert not guard.collapsed and guard.best_success == pytest.approx(0.8), "of 10 episodes it may be chance"
    with pytest.warns(UserWarning, match=r"fell to 0.100 of 10 episodes"):
        logged(Played([0.8, 0.1, 0.1]), CollapseGuard())


def test_a_validation_that_plays_nothing_is_refused_with_what_would_play():
    with pytest.raises(ValueError, match=r"found no val_success.*guerdon.PlayedSuccess"):
        logged(CollapseGuard())


def test_the_file_of_a_better_best_than_the_checkpoints_counts(tmp_path):
    first = CollapseGuard(folder=tmp_path)
    again = CollapseGuard(folder=tmp_path)
    batch = judged(walk(GaussianPolicy(2, 2, hidden=(4,)), 100, seed=0))

    def fit(guard, rates):
        loader = Loader(lambda i: batch, 1)
        trainer(max_epochs=len(rates), callbacks=[guard]).fit(Successes(rates, 100), loader, loader)

    fit(first, [0.5])
    state = first.state_dict()
    fit(first, [0.9])  # after the checkpoint
    again.load_state_dict(state)
    assert again.best_success == pytest.approx(0.9) == first.best_success
    with pytest.warns(UserWarning, match="fell to 0.600"):
        fit(again, [0.6, 0.6])
    other = CollapseGuard(folder=tmp_path)
    with pytest.warns(UserWarning, match="another run's"):
        other.load_state_dict(state | {"best_success": 0.95})
    assert math.isnan(other.best_success)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_kl": 0.0},
        {"min_ess": 1.5},
        {"factor": 1.0},
        {"drop": 1.0},
        {"batches": 0},
        {"patience": 0},
        {"min_learning_rate": -1.0},
    ],
)
def test_arguments_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} "):
        CollapseGuard(**wrong)
