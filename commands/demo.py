"""The whole main job once, on simulated logs: ``guerdon demo``."""

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..core import intervals
from ..core.files import replacing
from ..core.hub import load_component
from ..core.interfaces import RewardModel
from ..core.opening import open_reward_model
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
from ..policies.optimizer import PolicyOptimizer
from ..policies.rollouts.data import RolloutData
from ..policies.rollouts.pool import TaskSetting, play_episodes
from ..rewards.fit import RewardTraining
from ..rewards.observation_encoder import ObservationEncoder
from ..rewards.progress import ProgressReward
from ..rewards.recorded import RecordedSuccess
from ..rewards.shaping import FirstHit
from ..scoring.dataset import score_dataset

ENVS, WORKERS = 16, 2
SUCCESS_WEIGHT = 2.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much the demo does."""

    task: str = "metaworld/drawer-open-v3"
    horizon: int = 100
    logs: int = 160
    held_out: int = 24
    demonstrations: int = 8
    reward_epochs: int = 60
    workers: int = WORKERS
    """Processes that hold the environments."""
    rollouts: int = 24
    steps: int = 4096
    judged: int = 100


QUICK = Size(logs=24, held_out=8, reward_epochs=5, rollouts=3, steps=1024, judged=16)
"""Enough to see every step work; the figures mean nothing."""


def run(out: Path, seed: int = 0, quick: bool = False, size: Size | None = None) -> None:
    """Collect logs, train and judge a reward model, score, and improve a cloned policy with it, then with success.

    Every step leaves its result in ``out`` and is skipped when that is there already, so an interrupted demo goes on.

    Args:
        out: Folder to make or to go on with.
        seed: Of everything.
        quick: Do little of everything, to see that it works.
        size: How much to do; None takes the full or the quick size.

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
    demo.judge(reward)
    start = demo.clone()
    curves: dict[str, list[tuple[int, float]]] = {}
    paid_once = FirstHit(reward, SUCCESS_WEIGHT)
    learned = demo.improve("learned reward", start, paid_once, hide_outcome=True, curves=curves)
    sparse = demo.improve("sparse success", start, RecordedSuccess(), hide_outcome=False, curves=curves)
    demo.conclude({"cloned": start, "learned reward": learned, "sparse success": sparse}, curves)
    console.print(f"[dim]{time.monotonic() - started:.0f} s in all[/dim]")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Take a folder for these settings, or go on in one that was taken for the same."""
    stamp = out / "settings.json"
    if stamp.is_file():
        if json.loads(stamp.read_text()) != settings:
            raise ValueError(f"{out} holds a demo with other settings: choose another folder, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no demo: choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror}; choose another folder") from error
    _write(stamp, json.dumps(settings, indent=2))


def _write(path: Path, text: str) -> None:
    with replacing(path) as fresh:
        fresh.write_text(text)


class _Bar(lightning.Callback):
    """One line of progress for a training run, with the figures that matter."""

    def __init__(self, console: Console, title: str, shown: tuple[str, ...]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)
        self._title, self._shown = title, shown
        self._task: TaskID | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=total, figures="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._task is not None
        known = trainer.callback_metrics
        figures = " ".join(f"{k}={float(known[k]):.3f}" for k in self._shown if k in known)
        self._progress.update(self._task, advance=1, figures=figures)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._progress.stop()


class _Curve(lightning.Callback):
    """Success on held-out starts against environment steps."""

    def __init__(self, points: list[tuple[int, float]]) -> None:
        self._points = points

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data = cast(Any, trainer).datamodule
        self._points.append((data.env_steps, float(trainer.callback_metrics["val_success"])))


class _Demo:
    def __init__(self, out: Path, seed: int, size: Size, console: Console) -> None:
        self.out, self.seed, self.size, self.console = out, seed, size, console

    def collect(self) -> None:
        """Mixed-quality logs to learn from, others from held-out starts to judge with, a few demonstrations."""
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
        """Load a component if an earlier run of this demo finished it, else make and save it."""
        folder = self.out / name
        if not folder.exists():
            self.console.rule(f"[bold]{title}")
            lightning.seed_everything(self.seed, workers=True, verbose=False)
            make().save_pretrained(folder)
        return load_component(folder)

    def train_reward(self) -> RewardModel:
        """A process reward model on states: progress and success, nothing of the simulator's reward."""

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
            bar = _Bar(self.console, "reward model", ("loss",))  # held-out starts judge it, see below
            _fit(self._trainer(self.size.reward_epochs, "reward", bar), module, data)
            return module.reward

        return self._kept("reward", "a process reward model", make)

    def judge(self, reward: RewardModel) -> None:
        """Evaluate on held-out starts, score them, and write the report."""
        report = self.out / "evaluation.json"
        if not report.exists():
            self.console.rule("[bold]is it any good?")
            said = open_reward_model(self.out / "reward", device="cpu")[1]  # the report checks whose figures they are
            evaluation = evaluate_dataset(reward, open_dataset(self.out / "held_out"), seed=self.seed, model=said)
            print_evaluation(evaluation, self.console)
            _write(report, json.dumps(evaluation.to_json(), indent=2))
        page = self.out / "report.html"
        if not page.exists():
            score_dataset(self.out / "reward", self.out / "held_out", self.out / "scores")
            write_report(self.out / "scores", page, evaluation=report)

    def clone(self) -> GaussianPolicy:
        """Behaviour cloning of the few demonstrations."""

        def make() -> GaussianPolicy:
            demonstrations = open_dataset(self.out / "demonstrations")
            policy = GaussianPolicy(demonstrations.state_size, demonstrations.action_size, log_std=-1.0)
            module = PolicyOptimizer(
                policy, Uniform(), WeightedImitation(), passes=300, minibatch_size=128, learning_rate=1e-3
            )
            labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
            data = EpisodeData(
                str(self.out / "demonstrations"), batch_size=len(demonstrations), labels=labels, val_fraction=0.0
            )
            _fit(self._trainer(1, "clone", _Bar(self.console, "behaviour cloning", ("loss",))), module, data)
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
        """PPO from the cloned policy on one reward; with a hidden outcome nothing else of the environment is seen."""
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
                learning_rate=6e-4,
                critic_learning_rate=1e-3,
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
            bar = _Bar(self.console, f"PPO on {name}", ("reward_per_row", "val_success"))
            every = max(1, self.size.rollouts // 5)
            _fit(self._trainer(1, folder, bar, _Curve(points), val_check_interval=every), module, data)
            _write(points_file, json.dumps(points))
            return policy

        policy = self._kept(folder, f"PPO on the {name} alone", make)
        curves[name] = [(int(x), float(y)) for x, y in json.loads(points_file.read_text())]
        return policy

    def conclude(self, policies: dict[str, GaussianPolicy], curves: dict[str, list[tuple[int, float]]]) -> None:
        """Success rates before and after, a learning-curve picture, and where everything lies."""
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
            self.console.print("[yellow]quick: enough to see every step work; these figures mean nothing[/yellow]")
        _write(self.out / "results.json", json.dumps({"rates": rates, "curves": curves, "task": size.task}, indent=2))
        draw_curves(self.out / "learning_curve.png", size.task, rates["cloned"]["success"], curves)
        for what in ("results.json", "learning_curve.png", "report.html", "evaluation.json", "scores"):
            self.console.print(f"  {self.out / what}", highlight=False)


def _fit(trainer: lightning.Trainer, module: lightning.LightningModule, data: lightning.LightningDataModule) -> None:
    with warnings.catch_warnings():
        # hints about loader workers and logging intervals: what is right for a large run is not for this one
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, datamodule=data)


def wilson_interval(won: int, played: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a success rate; see `guerdon.core.intervals.wilson_interval`.

    Raises:
        ValueError: If nothing was played or more was won than played.
    """
    if not 0 <= won <= played or played == 0:
        raise ValueError(f"expected 0 <= won <= played with at least one episode, got {won} of {played}")
    return intervals.wilson_interval(won, played)


def draw_curves(path: Path, task: str, start: float, curves: dict[str, list[tuple[int, float]]]) -> None:
    """Picture of success on held-out starts against environment steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(start, color="0.6", linestyle="--", label="cloned")
    for name, points in curves.items():
        if points:
            steps, success = np.array([(0, start), *points]).T
            axes.plot(steps, success, marker="o", label=name)
    axes.set(xlabel="environment steps", ylabel="success on held-out starts", ylim=(0, 1.03), title=task)
    axes.legend()
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=120, format="png")


__all__ = ["QUICK", "Size", "draw_curves", "run", "wilson_interval"]
