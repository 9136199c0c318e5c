"""iRe-VLA against its baselines on shifted Meta-World tasks: expert tasks retained, new tasks gained.

    python benchmarks/ire_vla.py

Expert data are a few noisy demonstrations of four tasks with the object in the left 35 % of its range. New are the
initial states in the next 30 %: two tasks are trained there by reinforcement learning, the two others never. All arms
with reinforcement learning take the same number of environment steps and of supervised updates, and arms that share a
first stage share its run.
Results are written after each arm.
"""

import argparse
import logging
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, paired, success_interval, write_result
from guerdon import (
    EpisodeData,
    EpisodeFilter,
    GaussianPolicy,
    LabelFactory,
    PolicyAdam,
    RecordedSuccess,
    RewardToGo,
    RolloutData,
    TaskSetting,
    ValueCritic,
    WorkerPool,
    load_component,
)
from guerdon.core.files import read_json
from guerdon.envs.collect import collect_dataset
from guerdon.policies.loops.ire_vla import IReVLA
from guerdon.policies.loops.ire_vla_stages import ConsolidationStage, ReinforcementStage, StageEnd, SupervisedStage

TASKS = ("Push", "Coffee", "Sweep", "Drawer")
LEARNED = ("Coffee", "Sweep")
BACKBONE = ("network.0", "network.2")
GROUPS = {
    "RL tasks, new": [f"{name}New" for name in LEARNED],
    "RL tasks, expert": [f"{name}Left" for name in LEARNED],
    "other tasks, expert": [f"{name}Left" for name in TASKS if name not in LEARNED],
    "other tasks, unseen": [f"{name}New" for name in TASKS if name not in LEARNED],
    "all expert tasks": [f"{name}Left" for name in TASKS],
}
SETTINGS: dict[str, Any] = {}


def named(variant: str) -> str:
    """Return the name of a variant as a task."""
    return f"shifted_tasks:{variant}"


def parts(demos: list[str], seed: int) -> dict[str, Any]:
    """Make what all arms share."""
    labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
    return {
        "policy": GaussianPolicy(hidden=(128, 128, 64), log_std=-1.4, log_std_range=(-3.0, -0.7)),
        "expert": EpisodeData(
            demos,
            val_fraction=0.0,
            batch_size=64,
            labels=labels,
            balance_tasks=True,
            keep=EpisodeFilter(success=True),
        ),
        "rollouts": RolloutData(
            [named(f"{name}New") for name in LEARNED],
            steps=SETTINGS["steps"],
            rollouts=SETTINGS["rollouts"],
            envs=8,
            horizon=SETTINGS["horizon"],
            contexts=SETTINGS["contexts"],
            eval_contexts=0,
            seed=seed,
        ),
        "sft": SupervisedStage(epochs=SETTINGS["sft_epochs"], passes=4),
        "seed": seed,
        "accelerator": "cpu",
    }


def reinforcement(frozen: bool) -> ReinforcementStage:
    """Make the settings of stage 1."""
    optimizer = PolicyAdam(3e-4, critic_learning_rate=1e-3, frozen_parts=BACKBONE if frozen else ())
    advantage = RewardToGo(RecordedSuccess(), ValueCritic())
    return ReinforcementStage(advantage, optimizer=optimizer, until=StageEnd(success=1.1))


def consolidation(frozen: bool = False, stages: int = 1, **more: Any) -> ConsolidationStage:
    """Make the settings of stage 2, which has the same number of updates in all arms."""
    optimizer = PolicyAdam(3e-4, frozen_parts=BACKBONE if frozen else ())
    updates = stages * SETTINGS["updates"]
    return ConsolidationStage(1000, passes=2, optimizer=optimizer, without_success="expert", updates=updates, **more)


def demonstrations(folder: Path, options: argparse.Namespace, seed: int) -> list[str]:
    """Collect the demonstrations of a seed, unless they are there; return the folder of each task."""
    found = [str(folder / name) for name in TASKS]
    for path, name in zip(found, TASKS, strict=True):
        if not Path(path).exists():
            collect_dataset(
                named(f"{name}Left"),
                path,
                episodes=options.demonstrations,
                seed=100 + seed,
                quality="noisy",
                noise=options.noise,
                frames=False,
                horizon=options.horizon,
            )
    return found


def arms(demos: list[str], seed: int) -> dict[str, tuple[IReVLA, str | None, int]]:
    """Make the loop of each arm, the arm that it shares stages with, and the number of folders that it shares."""
    shared = parts(demos, seed)
    scratch: dict[str, Any] = shared | {"sft": None, "expert": None}
    return {
        "SFT": (IReVLA(**shared), None, 0),
        "iRe-VLA": (IReVLA(**shared, rl=reinforcement(True), sl=consolidation()), "SFT", 1),
        "stage 1 alone": (IReVLA(**shared, rl=reinforcement(True)), "iRe-VLA", 2),
        "PPO-Replay": (IReVLA(**shared, rl=reinforcement(False), sl=consolidation(online=False)), "SFT", 1),
        "freeze both": (IReVLA(**shared, rl=reinforcement(True), sl=consolidation(True)), "iRe-VLA", 2),
        "SFT, longer": (IReVLA(**shared, sl=consolidation(stages=len(LEARNED))), "SFT", 1),
        "scratch": (IReVLA(**scratch, rl=reinforcement(False)), None, 0),
        "PPO-Replay, with successes": (
            IReVLA(**shared, rl=reinforcement(False), sl=consolidation()),
            "PPO-Replay",
            2,
        ),
    }


def run_arm(loop: IReVLA, folder: Path, shared: Path | None, count: int) -> tuple[Any, dict[str, Any]]:
    """Run an arm; return its policy, and what its stages counted."""
    if shared is not None:
        found = sorted(path for path in shared.iterdir() if path.name[0].isdigit())
        for path in found[:count]:
            shutil.copytree(path, folder / path.name)
            task = path.name.partition("_")[2].removesuffix("_rl")
            if path.name.endswith("_rl") and (shared / "online" / task).is_dir():
                shutil.copytree(shared / "online" / task, folder / "online" / task)
    begun = time.process_time()
    policy = load_component(loop.run(folder))
    stages = {path.parent.name: read_json(path, "a stage") for path in sorted(folder.glob("*/stage.json"))}
    return policy, {"cpu_seconds": time.process_time() - begun, "stages": stages}


def evaluated(pool: WorkerPool, contexts: dict[str, list[Any]], policy: Any) -> dict[str, float]:
    """Play the held-out initial states of every variant; return the success rate of each."""
    every = [context for held in contexts.values() for context in held]
    pieces = pool.play(policy.eval(), every, 0)
    won: dict[str, list[float]] = {name: [] for name in contexts}
    of = {context: name for name, held in contexts.items() for context in held}
    for piece in pieces:
        won[of[piece.context]].append(float(any(piece.success)))
    return {name: float(np.mean(values)) for name, values in won.items()}


def grouped(rates: dict[str, float]) -> dict[str, float]:
    """Average the success rates of each group of variants."""
    return {group: float(np.mean([rates[name] for name in names])) for group, names in GROUPS.items()}


def summary(runs: dict[str, list[dict[str, Any]]], episodes: int) -> dict[str, Any]:
    """Summarise the seeds of each arm, and its differences to SFT at the seeds that both have."""
    found: dict[str, Any] = {}
    for arm, seeds in runs.items():
        rows: dict[str, Any] = {}
        for group, names in GROUPS.items():
            rates = [grouped(one["rates"])[group] for one in seeds]
            low, high = success_interval(rates, episodes * len(names))
            rows[group] = {"mean": float(np.mean(rates)), "low": low, "high": high, "seeds": rates}
            base = [grouped(one["rates"])[group] for one in runs["SFT"]][: len(rates)]
            rows[group]["against_sft"] = paired(rates, base)
        found[arm] = rows
    return found


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("arm", *GROUPS)
    for arm, rows in results.items():
        cells = [f"{row['mean']:.2f} ({row['low']:.2f} … {row['high']:.2f})" for row in rows.values()]
        table.add_row(arm, *cells)
    Console(width=160).print(table)


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "ire_vla")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--demonstrations", type=int, default=10)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--horizon", type=int, default=120)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--contexts", type=int, default=60)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--sft-epochs", type=int, default=60)
    parser.add_argument("--updates", type=int, default=1200, help="of each stage 2: %(default)s")
    parser.add_argument("--arms", type=int, default=100, help="number of first arms that run")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the result file holds")
    parser.add_argument("--work", type=Path, default=Path("runs/ire_vla"), help="folder of the runs: %(default)s")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    SETTINGS.update(
        {key: value for key, value in vars(options).items() if key not in ("out", "work", "arms", "resume")}
    )
    names = [f"{name}{side}" for name in TASKS for side in ("Left", "New")]
    setting = TaskSetting(task=[named(name) for name in names], horizon=options.horizon)
    contexts: dict[str, list[Any]] = {}
    for number, name in enumerate(names):
        task = setting.make(number)
        contexts[name] = task.contexts("eval", options.episodes)
        task.close()
    runs: dict[str, list[dict[str, Any]]] = {}
    if options.out.is_file() and options.resume:
        runs = read_json(options.out, "the results so far")["runs"]
    with WorkerPool(setting, len(names)) as pool:
        for arm in list(arms([], 0))[: options.arms]:
            for seed in range(len(runs.get(arm, [])), options.seeds):
                place = options.work / str(seed)
                demos = demonstrations(place / "demos", options, seed)
                loop, shared, count = arms(demos, seed)[arm]
                policy, more = run_arm(loop, place / arm, None if shared is None else place / shared, count)
                rates = evaluated(pool, contexts, policy)
                runs.setdefault(arm, []).append({"seed": seed, "rates": rates, **more})
                print(seed, arm, {k: round(v, 2) for k, v in grouped(rates).items()}, flush=True)
                record = {**SETTINGS, "results": summary(runs, options.episodes), "runs": runs}
                write_result(options.out, record)
    show(summary(runs, options.episodes))


if __name__ == "__main__":
    main()
