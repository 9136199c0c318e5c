"""The ``demo`` command: the whole main job once, on simulated logs."""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.table import Table

from ..core import intervals
from ..core.files import read_json, write_json
from ..core.hub import load_component
from ..core.interfaces import RewardModel
from ..critics.value import ValueCritic
from ..datasets.labels import LabelFactory
from ..datasets.module import EpisodeData
from ..datasets.opening import open_dataset
from ..envs.collect import collect_dataset
from ..envs.quality import NOISE
from ..envs.vector import make_task
from ..evaluation.dataset import evaluate_dataset
from ..evaluation.table import print_evaluation
from ..pages.report import write_report
from ..policies.advantages.reward_to_go import RewardToGo, Uniform
from ..policies.gaussian import GaussianPolicy
from ..policies.objectives import ClippedSurrogate, WeightedImitation
from ..policies.optimizer import PolicyAdam, PolicyOptimizer
from ..policies.rollouts.data import RolloutData
from ..policies.rollouts.pool import TaskSetting, play_episodes
from ..rewards.fit import RewardTraining
from ..rewards.observation_encoder import ObservationEncoder
from ..rewards.progress import ProgressReward
from ..rewards.recorded import RecordedSuccess
from ..rewards.shaping import FirstHit
from ..scoring.dataset import score_dataset
from .demo_curves import ProgressLine, SuccessCurve, draw_curves

ENVS, WORKERS = 16, 2
SUCCESS_WEIGHT = 2.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of the demo."""

    task: str = "metaworld/drawer-open-v3"
    """Simulated task."""
    horizon: int = 100
    """Time limit of an episode, in control steps."""
    logs: int = 160
    """Number of logged episodes that the reward model is trained on."""
    held_out: int = 24
    """Number of logged episodes that it is evaluated on."""
    demonstrations: int = 8
    """Number of demonstrations that the policy is cloned from."""
    reward_epochs: int = 60
    """Epochs of the reward model."""
    workers: int = WORKERS
    """Number of processes that hold the environments."""
    rollouts: int = 24
    """Number of rollouts, each followed by an update of PPO."""
    steps: int = 4096
    """Environment steps of a rollout."""
    judged: int = 100
    """Number of held-out initial states that policies are evaluated on."""


QUICK = Size(logs=24, held_out=8, reward_epochs=5, rollouts=3, steps=1024, judged=16)
"""Size at which every step runs; the metrics mean nothing."""


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the demo; see `run_demo`."""
    run_demo(options.out, seed=options.seed, quick=options.quick)
    return 0


def run_demo(out: Path, seed: int = 0, quick: bool = False, size: Size | None = None) -> None:
    """Collect logs, train and evaluate a reward model, and improve a cloned policy with it, then with success alone.

    Every step leaves its result in ``out`` and is skipped where the result is there already, so that an interrupted
    demo can be continued.

    Args:
        out: Folder of the demo, new or of an interrupted one.
        seed: Random seed of everything.
        quick: Whether to take the quick size, which shows that every step works.
        size: Size of the demo; None takes the full or the quick size.

    Raises:
        ValueError: If the folder holds a demo with other settings, or something else.
        OSError: If it cannot be written.
    """
    size = size or (QUICK if quick else Size())
    console = Console()
    started = time.monotonic()
    torch.set_num_threads(1)  # small networks: a second thread costs more than it brings
    for name in ("lightning.pytorch", "lightning.fabric"):  # one bar per phase says more than its notes on devices
        logging.getLogger(name).setLevel(logging.WARNING)
    _claim(out, {"seed": seed, **{k: str(v) for k, v in vars(size).items()}})
    demo = _Demo(out, seed, size, console)
    demo.collect()
    reward = demo.train_reward()
    demo.evaluate(reward)
    start = demo.clone()
    curves: dict[str, list[tuple[int, float]]] = {}
    paid_once = FirstHit(reward, SUCCESS_WEIGHT)
    learned = demo.improve("learned reward", start, paid_once, hide_outcome=True, curves=curves)
    sparse = demo.improve("sparse success", start, RecordedSuccess(), hide_outcome=False, curves=curves)
    demo.conclude({"cloned": start, "learned reward": learned, "sparse success": sparse}, curves)
    console.print(f"[dim]{time.monotonic() - started:.0f} s in all[/dim]")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder of a demo with these settings, or accept one that was made for the same settings."""
    stamp = out / "settings.json"
    if stamp.is_file():
        if read_json(stamp, "the settings of a demo") != settings:
            raise ValueError(f"{out} holds a demo with other settings: choose another folder, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no demo: choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror}; choose another folder") from error
    write_json(stamp, settings)


class _Demo:
    def __init__(self, out: Path, seed: int, size: Size, console: Console) -> None:
        self.out, self.seed, self.size, self.console = out, seed, size, console

    def collect(self) -> None:
        """Collect logs of mixed quality to train on, logs from held-out starts to evaluate on, and demonstrations."""
        size = self.size
        for name, episodes, quality, split, frames, noise in (
            ("logs", size.logs, "mixed", "train", False, NOISE),
            ("held_out", size.held_out, "mixed", "eval", None, NOISE),
            ("demonstrations", size.demonstrations, "noisy", "train", False, 0.1),
        ):
            folder = self.out / name
            if folder.exists():
                continue
            self.console.rule(f"[bold]{name.replace('_', '-')}")
            report = collect_dataset(
                size.task,
                folder,
                episodes=episodes,
                seed=self.seed,
                quality=quality,
                frames=frames,
                split=split,
                horizon=size.horizon,
                noise=noise,
                console=self.console,
            )
            self.console.print("\n".join(report.lines()))

    def _trainer(self, epochs: int, name: str, *callbacks: lightning.Callback, **options: Any) -> lightning.Trainer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lightning.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                devices=1,
                logger=CSVLogger(self.out / "runs", name),
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                callbacks=list(callbacks),
                **options,
            )

    def _kept(self, name: str, title: str, make: Callable[[], Any]) -> Any:
        """Load a component that an earlier run of this demo finished, or make and save it."""
        folder = self.out / name
        if not folder.exists():
            self.console.rule(f"[bold]{title}")
            lightning.seed_everything(self.seed, workers=True, verbose=False)
            make().save_pretrained(folder)
        return load_component(folder)

    def train_reward(self) -> RewardModel:
        """Train a process reward model of progress and success on states, without the simulator's reward."""

        def make() -> RewardModel:
            width = open_dataset(self.out / "logs").state_size
            module = RewardTraining(
                ProgressReward(state_size=width, observer=ObservationEncoder(layers=0), success_weight=SUCCESS_WEIGHT),
                weight_decay=1e-2,
                schedule="cosine",
            )
            labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
            data = EpisodeData(
                str(self.out / "logs"), batch_size=16, repeats=4, labels=labels, val_fraction=0.0, seed=self.seed
            )
            bar = ProgressLine(self.console, "reward model", ("loss",))  # it is evaluated on held-out starts, see below
            _fit(self._trainer(self.size.reward_epochs, "reward", bar), module, data)
            return module.reward

        return self._kept("reward", "a process reward model", make)

    def evaluate(self, reward: RewardModel) -> None:
        """Evaluate the reward model on logs from held-out starts, score them, and write the report."""
        report = self.out / "evaluation.json"
        if not report.exists():
            self.console.rule("[bold]evaluation of the reward model")
            # by its folder, because the report checks which model was evaluated
            evaluation = evaluate_dataset(self.out / "reward", self.out / "held_out", seed=self.seed)
            print_evaluation(evaluation, self.console)
            write_json(report, evaluation.to_json())
        page = self.out / "report.html"
        if not page.exists():
            score_dataset(self.out / "reward", self.out / "held_out", self.out / "scores")
            write_report(self.out / "scores", page, evaluation=report)

    def clone(self) -> GaussianPolicy:
        """Clone a policy from the demonstrations."""

        def make() -> GaussianPolicy:
            demonstrations = open_dataset(self.out / "demonstrations")
            policy = GaussianPolicy(demonstrations.state_size, demonstrations.action_size, log_std=-1.0)
            module = PolicyOptimizer(
                policy, Uniform(), WeightedImitation(), passes=300, minibatch_size=128, optimizer=PolicyAdam(1e-3)
            )
            labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
            data = EpisodeData(
                str(self.out / "demonstrations"), batch_size=len(demonstrations), labels=labels, val_fraction=0.0
            )
            _fit(self._trainer(1, "clone", ProgressLine(self.console, "behaviour cloning", ("loss",))), module, data)
            return policy

        return self._kept("cloned", f"a policy cloned from {self.size.demonstrations} demonstrations", make)

    def improve(
        self,
        name: str,
        start: GaussianPolicy,
        reward: RewardModel,
        hide_outcome: bool,
        curves: dict[str, list[tuple[int, float]]],
    ) -> GaussianPolicy:
        """Train the cloned policy by PPO on one reward; with a hidden outcome it sees no success of the environment."""
        folder = name.replace(" ", "_")
        points_file = self.out / f"{folder}_curve.json"

        def make() -> GaussianPolicy:
            policy = cast(GaussianPolicy, load_component(self.out / "cloned"))
            module = PolicyOptimizer(
                policy,
                RewardToGo(reward, ValueCritic(policy.inputs.state_size)),
                ClippedSurrogate(),
                passes=10,
                minibatch_size=512,
                optimizer=PolicyAdam(learning_rate=6e-4, critic_learning_rate=1e-3),
                freeze_policy_batches=2,
                target_kl=0.03,
                seed=self.seed,
            )
            data = RolloutData(
                self.size.task,
                steps=self.size.steps,
                rollouts=self.size.rollouts,
                envs=ENVS,
                workers=self.size.workers,
                horizon=self.size.horizon,
                end_on_success=not hide_outcome,
                hide_outcome=hide_outcome,
                contexts=200,
                eval_contexts=min(32, self.size.judged),
                task_seed=self.seed,
                seed=self.seed,
            )
            points: list[tuple[int, float]] = []
            bar = ProgressLine(self.console, f"PPO on {name}", ("reward_per_row", "val_success"))
            every = max(1, self.size.rollouts // 5)
            _fit(self._trainer(1, folder, bar, SuccessCurve(points), val_check_interval=every), module, data)
            write_json(points_file, points)
            return policy

        policy = self._kept(folder, f"PPO on the {name} alone", make)
        curves[name] = [(int(x), float(y)) for x, y in read_json(points_file, "a learning curve")]
        return policy

    def conclude(self, policies: dict[str, GaussianPolicy], curves: dict[str, list[tuple[int, float]]]) -> None:
        """Print success rates before and after, draw the learning curves, and name the files."""
        self.console.rule("[bold]success on held-out starts")
        size = self.size
        contexts = make_task(size.task, size.horizon, self.seed).contexts("eval", size.judged)
        setting = TaskSetting(task=size.task, horizon=size.horizon, task_seed=self.seed)
        table = Table("policy", "success", "95 % interval", "episodes")
        rates: dict[str, Any] = {}
        for name, policy in policies.items():
            with self.console.status(f"playing {len(contexts)} episodes: {name}"):
                batch = play_episodes(setting, policy.eval(), contexts, ENVS, size.workers, self.seed)
            won = int(batch.success.sum())
            low, high = wilson_interval(won, len(contexts))
            rates[name] = {"success": won / len(contexts), "low": low, "high": high, "episodes": len(contexts)}
            table.add_row(name, f"{won / len(contexts):.2f}", f"{low:.2f} … {high:.2f}", str(len(contexts)))
        self.console.print(table)
        self.console.print("[dim]Wilson intervals over episodes of one training seed; the mean action is played.[/dim]")
        if size == QUICK:
            self.console.print("[yellow]quick: every step works; these metrics mean nothing[/yellow]")
        write_json(self.out / "results.json", {"rates": rates, "curves": curves, "task": size.task})
        draw_curves(self.out / "learning_curve.png", size.task, rates["cloned"]["success"], curves)
        for what in ("results.json", "learning_curve.png", "report.html", "evaluation.json", "scores"):
            self.console.print(f"  {self.out / what}", highlight=False)


def _fit(trainer: lightning.Trainer, module: lightning.LightningModule, data: lightning.LightningDataModule) -> None:
    with warnings.catch_warnings():
        # hints about loader workers and logging intervals: what is right for a large run is not for this one
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, datamodule=data)


def wilson_interval(won: int, played: int) -> tuple[float, float]:
    """Compute Wilson's 95 % score interval of a success rate; see `guerdon.core.intervals.wilson_interval`.

    Args:
        won: Number of successes.
        played: Number of episodes.

    Raises:
        ValueError: If nothing was played or more was won than played.
    """
    if not 0 <= won <= played or played == 0:
        raise ValueError(f"expected 0 <= won <= played with at least one episode, got {won} of {played}")
    return intervals.wilson_interval(won, played)


__all__ = ["QUICK", "Size", "run", "run_demo", "wilson_interval"]
