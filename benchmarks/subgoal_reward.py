"""Subgoals, learned progress and sparse success as the signal PPO learns a long task from, from one cloned policy.

    python benchmarks/subgoal_reward.py --seeds 0 1 2

Every seed has its own logs, demonstrations, progress model, cloned policy and held-out starts; every arm starts from
that policy and takes as many environment steps. What an arm sees of the simulator:

| arm | reward | sees success |
|---|---|---|
| sparse success | 1 on the step that succeeds, which ends the episode | yes |
| learned progress | new bests of a learned Φ = progress + 2 · success | no |
| subgoals | a bonus for each stage, by distances | no |
| sparse + subgoals | sparse success, shaped with Φ = stages done and fraction | yes |

Intervals of a row are over seeds and episodes: seeds are resampled, then the episodes of each.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, silent_trainer, success_interval, write_result
from guerdon.core.files import write_json
from guerdon.core.hub import load_component
from guerdon.core.interfaces import Component, RewardModel
from guerdon.critics.value import ValueCritic
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.opening import open_dataset
from guerdon.envs.collect import collect_dataset
from guerdon.envs.vector import make_task
from guerdon.policies.advantages.reward_to_go import RewardToGo, Uniform
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate, WeightedImitation
from guerdon.policies.optimizer import PolicyAdam, PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.rollouts.pool import TaskSetting, play_episodes
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.rewards.shaping import FirstHit
from guerdon.rewards.stages.rule_decomposer import METAWORLD_COLUMNS, RuleDecomposer
from guerdon.rewards.stages.subgoals import SubgoalReward

ARMS = ("sparse success", "learned progress", "subgoals", "sparse + subgoals")
C = TypeVar("C", bound=Component)
GAMMA = 0.99


class Checks(lightning.Callback):
    """Judges the policy after some of the rollouts."""

    def __init__(self, run: "Run", after: Sequence[int]) -> None:
        self.run, self.after = run, set(after)
        self.found: dict[int, float] = {}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge if it is time."""
        if batch_idx + 1 in self.after:
            assert isinstance(pl_module, PolicyOptimizer) and isinstance(pl_module.policy, GaussianPolicy)
            self.found[batch_idx + 1] = self.run.judge(pl_module.policy)
            pl_module.policy.train()


class Run:
    """Everything of one seed; finished parts are kept in its folder."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.folder = options.runs / f"{options.task.replace('/', '_')}_{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def data(self, name: str, episodes: int, quality: str, noise: float) -> Path:
        """Open a data set, collected first if it is not there."""
        folder = self.folder / name
        if not folder.exists():
            quiet = Console(quiet=True)
            collect_dataset(
                self.options.task,
                folder,
                episodes=episodes,
                seed=self.seed,
                quality=quality,
                frames=False,
                horizon=self.options.horizon,
                noise=noise,
                console=quiet,
            )
        return folder

    def trainer(self, epochs: int, *callbacks: lightning.Callback) -> lightning.Trainer:
        """Build a silent trainer on one core."""
        return silent_trainer(epochs, callbacks=list(callbacks))

    def progress(self) -> RewardModel:
        """Train a progress model on states, on mixed logs with linear targets."""
        logs = self.data("logs", self.options.logs, "mixed", 0.5)
        if not (self.folder / "progress").exists():
            lightning.seed_everything(self.seed, verbose=False)
            reward = ProgressReward(
                state_size=open_dataset(logs).state_size, success_weight=2.0, observer=ObservationEncoder(layers=0)
            )
            module = RewardTraining(reward, weight_decay=1e-2, schedule="cosine")
            data = EpisodeData(str(logs), batch_size=16, repeats=4, labels=plain(), val_fraction=0.0, seed=self.seed)
            self.trainer(self.options.reward_epochs).fit(module, datamodule=data)
            reward.save_pretrained(self.folder / "progress")
        return opened(self.folder / "progress", RewardModel)

    def cloned(self) -> GaussianPolicy:
        """Behaviour cloning of a few noisy demonstrations."""
        shown = self.data("demonstrations", self.options.demonstrations, "noisy", 0.1)
        if not (self.folder / "cloned").exists():
            lightning.seed_everything(self.seed, verbose=False)
            demonstrations = open_dataset(shown)
            policy = GaussianPolicy(demonstrations.state_size, demonstrations.action_size, log_std=-1.0)
            module = PolicyOptimizer(
                policy,
                Uniform(),
                WeightedImitation(),
                passes=300,
                minibatch_size=128,
                optimizer=PolicyAdam(learning_rate=1e-3),
            )
            data = EpisodeData(str(shown), batch_size=len(demonstrations), labels=plain(), val_fraction=0.0)
            self.trainer(1).fit(module, datamodule=data)
            policy.save_pretrained(self.folder / "cloned")
        return opened(self.folder / "cloned", GaussianPolicy)

    def advantage(self, arm: str) -> RewardToGo:
        """Build the advantage source that the arm learns from."""
        critic = ValueCritic(39)
        rules = RuleDecomposer(use_success=False, state_columns=METAWORLD_COLUMNS)
        if arm == "sparse success":
            return RewardToGo(RecordedSuccess(), critic, gamma=GAMMA)
        if arm == "learned progress":
            return RewardToGo(FirstHit(self.progress(), 2.0), critic, gamma=GAMMA)
        if arm == "subgoals":
            return RewardToGo(SubgoalReward(rules), critic, gamma=GAMMA)
        return RewardToGo(RecordedSuccess(), critic, potential=SubgoalReward(rules, mode="potential"), gamma=GAMMA)

    def arm(self, arm: str) -> dict[str, Any]:
        """Train one arm from the cloned policy and judge it, after a quarter and half of the rollouts too."""
        file = self.folder / f"{arm.replace(' ', '_')}.json"
        if not file.exists():
            policy, started = self.cloned(), time.monotonic()
            checks = Checks(self, self.options.judged_after)
            if arm != "cloned":
                lightning.seed_everything(self.seed, verbose=False)
                module = PolicyOptimizer(
                    policy,
                    self.advantage(arm),
                    ClippedSurrogate(),
                    passes=10,
                    minibatch_size=512,
                    freeze_policy_batches=2,
                    target_kl=0.03,
                    seed=self.seed,
                    optimizer=PolicyAdam(learning_rate=6e-4, critic_learning_rate=1e-3),
                )
                hidden = not arm.startswith("sparse")
                data = RolloutData(
                    self.options.task,
                    steps=4096,
                    rollouts=self.options.rollouts,
                    envs=8,
                    horizon=self.options.horizon,
                    end_on_success=not hidden,
                    hide_outcome=hidden,
                    contexts=60,
                    eval_contexts=0,
                    task_seed=self.seed,
                    seed=self.seed,
                )
                self.trainer(1, checks).fit(module, datamodule=data)
            spent = time.monotonic() - started
            curve = {str(rollouts): rate for rollouts, rate in checks.found.items()} or {"0": self.judge(policy)}
            write_json(file, {"success": curve, "seconds": round(spent)})
            print(f"seed {self.seed}, {arm}: {file.read_text()}", flush=True)
        return json.loads(file.read_text())

    def judge(self, policy: GaussianPolicy) -> float:
        """Success of the mean action on held-out starts."""
        options = self.options
        contexts = make_task(options.task, options.horizon, self.seed).contexts("eval", options.episodes)
        setting = TaskSetting(task=options.task, horizon=options.horizon, task_seed=self.seed)
        batch = play_episodes(setting, policy.eval(), contexts, 8, 0, self.seed)
        return round(float(batch.success.mean()), 6)


def plain() -> LabelFactory:
    """Targets without negatives: there is one task and one instruction."""
    return LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)


def opened(folder: Path, kind: type[C]) -> C:
    """Open a saved component of a kind."""
    component = load_component(folder)
    assert isinstance(component, kind)
    return component


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = command_line(__doc__, "subgoal_reward")
    parser.add_argument("--task", default="metaworld/drawer-open-v3")
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arm", action="append", choices=ARMS, help="default: all")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--rollouts", type=int, default=24, help="of 4096 environment steps, per arm")
    parser.add_argument("--judged-after", type=int, nargs="+", default=[6, 12, 24], help="of the rollouts")
    parser.add_argument("--logs", type=int, default=160)
    parser.add_argument("--reward-epochs", type=int, default=40)
    parser.add_argument("--demonstrations", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/subgoal_reward"), help="finished parts are kept here")
    parser.add_argument("--quick", action="store_true", help="do little of everything; the figures mean nothing")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.rollouts, options.logs, options.reward_epochs, options.episodes = [0], 2, 16, 2, 8
        options.judged_after = [1, 2]
        options.runs, options.out = options.runs / "quick", options.runs / "quick" / "results.json"
    torch.set_num_threads(1)  # small networks: a second thread costs more than it brings
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    arms = ("cloned", *(options.arm or ARMS))
    done = {seed: {arm: Run(options, seed).arm(arm) for arm in arms} for seed in options.seeds}
    table = Table("arm", "rollouts", "success per seed", "mean", "95 % interval")
    results: dict[str, Any] = {}
    for arm in arms:
        results[arm] = {"seconds": [done[seed][arm]["seconds"] for seed in options.seeds]}
        for rollouts in done[options.seeds[0]][arm]["success"]:
            rates = [done[seed][arm]["success"][rollouts] for seed in options.seeds]
            low, high = success_interval(rates, options.episodes)
            mean = float(np.mean(rates))
            results[arm][rollouts] = {"per_seed": rates, "mean": mean, "low": low, "high": high}
            shown = ", ".join(f"{r:.2f}" for r in rates)
            table.add_row(arm, rollouts, shown, f"{mean:.2f}", f"{low:.2f} … {high:.2f}")
    Console().print(table)
    setting = {k: v for k, v in vars(options).items() if k not in ("runs", "out", "arm", "quick")}
    write_result(options.out, {**setting, "steps_per_rollout": 4096, "results": results})


if __name__ == "__main__":
    main()
