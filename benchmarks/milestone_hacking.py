"""Additive against potential milestone reward in RL: is success bought, or time in labelled states?

    python benchmarks/milestone_hacking.py --seeds 0 1 2

Per task and seed: a milestone model learns from simulated logs of mixed quality, a policy is cloned from a few noisy
demonstrations, and PPO starts from it on sparse success alone, and on sparse success plus the milestone reward paid in
three ways. On drawer-open the additive one is tried with a bonus, too, that is worth half a success if paid for ever
(0.005 / (1 − γ)); on reach the oracle, which needs no training, is paid as well. All arms use the same number of
environment steps. Then every policy plays the same held-out episodes with its mean action: success, the reward that the
additive mode would have paid on them, and how long they last.
"""

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, silent_trainer, write_result
from guerdon.core.hub import load_component
from guerdon.core.interfaces import RewardModel
from guerdon.core.intervals import bootstrap_interval, wilson_interval
from guerdon.critics.value import ValueCritic
from guerdon.datasets.collate import collate
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
from guerdon.rewards.combine import Sum
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.milestones.labels import MilestoneLabels
from guerdon.rewards.milestones.oracle import METAWORLD_POINTS, MilestoneOracle
from guerdon.rewards.milestones.payment import MilestonePayment
from guerdon.rewards.milestones.reward import MilestoneReward, in_mode
from guerdon.rewards.recorded import RecordedSuccess

STAGES: dict[str, list[list[str | float]]] = {
    "metaworld/drawer-open-v3": [["end_effector", "object", 0.06], ["object", "goal", 0.03]],
    "metaworld/reach-v3": [["end_effector", "goal", 0.05]],
}
"""Tasks, and the stages of their oracle."""
HORIZON, GAMMA = 100, 0.99
LEARNED = ("sparse", "additive", "first_hit", "potential")
ARMS = {
    "metaworld/drawer-open-v3": (*LEARNED, "additive 0.005"),
    "metaworld/reach-v3": (*LEARNED, "oracle additive", "oracle potential"),
}


def fit(module: lightning.LightningModule, data: lightning.LightningDataModule, epochs: int) -> None:
    """Train in silence on this process alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = silent_trainer(epochs)
        trainer.fit(module, datamodule=data)


class Run:
    """One task and one seed; what is finished is kept in a folder."""

    def __init__(self, folder: Path, task: str, seed: int, options: argparse.Namespace) -> None:
        self.folder, self.task, self.seed, self.options = folder, task, seed, options
        folder.mkdir(parents=True, exist_ok=True)

    def data(self, name: str, episodes: int, quality: str, noise: float, split: str = "train") -> str:
        """Collect the logs of this seed."""
        place = self.folder / name
        if not place.exists():
            console = Console(quiet=True)
            collect_dataset(
                self.task,
                place,
                episodes,
                self.seed,
                quality,
                False,
                noise=noise,
                horizon=HORIZON,
                split=split,
                console=console,
            )
        return str(place)

    def reward(self) -> MilestoneReward:
        """Train the milestone model on successes and failures."""
        place = self.folder / "reward"
        if not place.exists():
            logs = self.data("logs", self.options.logs, "mixed", 0.5)
            lightning.seed_everything(self.seed, verbose=False)
            model = MilestoneReward(state_size=39, action_size=4, payment=MilestonePayment(gamma=GAMMA))
            data = EpisodeData(logs, repeats=4, labels=MilestoneLabels(), val_fraction=0.0, seed=self.seed)
            fit(RewardTraining(model, weight_decay=1e-2, schedule="cosine"), data, self.options.epochs)
            model.save_pretrained(place)
        return MilestoneReward.from_pretrained(place).eval()

    def reward_quality(self) -> dict[str, float]:
        """How often the model says yes on held-out logs, and how far its progress is off."""
        logs = open_dataset(self.data("held_out", 40, "mixed", 0.5, "eval"))
        batch = MilestoneLabels(margin=0).targets(collate([logs[i] for i in range(len(logs))]))
        with torch.no_grad():
            said = in_mode(self.reward(), "additive")(batch)
        label, z = batch.labels["milestone"], batch.labels["progress"]
        won, yes = batch.success[:, None] >= 1, said.rewards > 0
        groups = {
            "yes_on_positives": label.valid & (label.values > 0),
            "yes_on_negatives_of_successes": label.valid & (label.values == 0) & won,
            "yes_on_failures": label.valid & ~won,
        }
        assert said.progress is not None
        error = (said.progress.values - z.values).abs()[z.valid].mean()
        return {name: float(yes[group].float().mean()) for name, group in groups.items()} | {
            "progress_error": float(error)
        }

    def cloned(self) -> GaussianPolicy:
        """Clone the policy that every arm starts from."""
        place = self.folder / "cloned"
        if not place.exists():
            demonstrations = self.data("demonstrations", 8, "noisy", 0.1)
            lightning.seed_everything(self.seed, verbose=False)
            policy = GaussianPolicy(39, 4, log_std=-1.0)
            labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
            data = EpisodeData(demonstrations, batch_size=8, labels=labels, val_fraction=0.0)
            module = PolicyOptimizer(
                policy,
                Uniform(),
                WeightedImitation(),
                passes=300,
                minibatch_size=128,
                optimizer=PolicyAdam(learning_rate=1e-3),
            )
            fit(module, data, 1)
            policy.save_pretrained(place)
        return GaussianPolicy.from_pretrained(place)

    def rewards(self) -> dict[str, RewardModel]:
        """Build the reward model of each arm."""
        model = self.reward()
        sparse = RecordedSuccess()

        def oracle(mode: Any) -> RewardModel:
            return MilestoneOracle(
                STAGES[self.task], points=METAWORLD_POINTS, payment=MilestonePayment(mode=mode, gamma=GAMMA)
            )

        return {
            "sparse": sparse,
            "additive": Sum([sparse, in_mode(model, "additive")]),
            "additive 0.005": Sum([sparse, in_mode(model, "additive", bonus=0.005)]),
            "first_hit": Sum([sparse, in_mode(model, "first_hit")]),
            "potential": Sum([sparse, in_mode(model, "potential")]),
            "oracle additive": Sum([sparse, oracle("additive")]),
            "oracle potential": Sum([sparse, oracle("potential")]),
        }

    def improved(self, arm: str) -> GaussianPolicy:
        """PPO from the cloned policy on one arm's reward."""
        place = self.folder / arm.replace(" ", "_")
        if not place.exists():
            policy = self.cloned()
            lightning.seed_everything(self.seed, verbose=False)
            module = PolicyOptimizer(
                policy,
                RewardToGo(self.rewards()[arm], ValueCritic(39), gamma=GAMMA),
                ClippedSurrogate(),
                passes=10,
                minibatch_size=512,
                freeze_policy_batches=2,
                target_kl=0.03,
                seed=self.seed,
                optimizer=PolicyAdam(learning_rate=6e-4, critic_learning_rate=1e-3),
            )
            data = RolloutData(
                self.task,
                steps=4096,
                rollouts=self.options.rollouts,
                envs=16,
                horizon=HORIZON,
                contexts=200,
                eval_contexts=0,
                task_seed=self.seed,
                seed=self.seed,
            )
            fit(module, data, 1)
            policy.save_pretrained(place)
        return load_component(place)  # pyright: ignore[reportReturnType]

    def judged(self, arm: str) -> dict[str, Any]:
        """Held-out episodes of one arm's policy; the first success ends an episode."""
        place = self.folder / f"{arm.replace(' ', '_')}.json"
        if not place.exists():
            policy = (self.cloned() if arm == "cloned" else self.improved(arm)).eval()
            contexts = make_task(self.task, HORIZON, self.seed).contexts("eval", self.options.episodes)
            setting = TaskSetting(task=self.task, horizon=HORIZON, task_seed=self.seed)
            batch = play_episodes(setting, policy, contexts, envs=16, seed=self.seed)
            with torch.no_grad():
                learned = in_mode(self.reward(), "additive")(batch).rewards.sum(1)
                oracle = MilestoneOracle(
                    STAGES[self.task], points=METAWORLD_POINTS, payment=MilestonePayment(mode="additive")
                )(batch)
            said = {
                "success": batch.success.tolist(),
                "milestone_reward": learned.tolist(),
                "oracle_milestone_reward": oracle.rewards.sum(1).tolist(),
                "steps": batch.steps.tolist(),
            }
            place.write_text(json.dumps(said))
        return json.loads(place.read_text())


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals: Wilson over all episodes for success, seeds resampled for every figure."""
    line: dict[str, Any] = {}
    for name in found[0]:
        values = np.concatenate([np.asarray(one[name], float) for one in found])
        seeds = np.concatenate([np.full(len(one[name]), i) for i, one in enumerate(found)])
        low, high = bootstrap_interval(values, seeds)
        per_seed = [float(np.mean(one[name])) for one in found]
        line[name] = {"mean": float(values.mean()), "per_seed": per_seed, "low": low, "high": high}
    won, played = int(sum(sum(one["success"]) for one in found)), sum(len(one["success"]) for one in found)
    line["success"]["wilson"] = wilson_interval(won, played)
    return line


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = command_line(__doc__, "milestone_hacking")
    parser.add_argument("--task", action="append", help=f"default: {', '.join(STAGES)}")
    parser.add_argument("--arm", action="append", help=f"default: {', '.join(LEARNED)} and those of one task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--rollouts", type=int, default=14, help="of 4096 environment steps each, for every arm")
    parser.add_argument("--logs", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="see every step work; the figures mean nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/milestone_hacking"), help="finished runs are kept here")
    options = parser.parse_args()
    if options.quick:
        options.rollouts, options.logs, options.epochs, options.episodes, options.seeds = 1, 16, 1, 16, [0, 1]
        options.runs, options.out = options.runs / "quick", options.runs / "quick" / "results.json"
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tasks = options.task or list(STAGES)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {task: {} for task in tasks}
    quality: dict[str, list[dict[str, float]]] = {task: [] for task in tasks}
    started = time.monotonic()
    for task in tasks:
        for seed in options.seeds:
            run = Run(options.runs / task.replace("/", "_") / str(seed), task, seed, options)
            quality[task].append(run.reward_quality())
            print(task, "seed", seed, {name: round(rate, 3) for name, rate in quality[task][-1].items()}, flush=True)
            for arm in ("cloned", *(options.arm or ARMS[task])):
                found[task].setdefault(arm, []).append(run.judged(arm))
                print(f"{time.monotonic() - started:6.0f} s  {task} seed {seed} {arm}", flush=True)
    table = Table("task", "arm", "success per seed", "success", "Wilson 95 %", "milestone reward", "oracle's", "steps")
    results: dict[str, Any] = {task: {arm: summary(one) for arm, one in found[task].items()} for task in tasks}
    for task, lines in results.items():
        for arm, line in lines.items():
            cells = [f"{line[k]['mean']:.1f}" for k in ("milestone_reward", "oracle_milestone_reward", "steps")]
            low, high = line["success"]["wilson"]
            per_seed = ", ".join(f"{rate:.2f}" for rate in line["success"]["per_seed"])
            table.add_row(task, arm, per_seed, f"{line['success']['mean']:.2f}", f"{low:.2f} … {high:.2f}", *cells)
    Console(width=150).print(table)
    settings = {name: getattr(options, name) for name in ("seeds", "episodes", "rollouts", "logs", "epochs")}
    record = {**settings, "horizon": HORIZON, "gamma": GAMMA, "stages": STAGES, "model": quality, "results": results}
    write_result(options.out, record)


if __name__ == "__main__":
    main()
