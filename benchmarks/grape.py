"""GRAPE's loop against filtered cloning and its own ablations on four Meta-World tasks, and steering by an objective.

    python benchmarks/grape.py                # tasks: one policy for four tasks, from a clone that half succeeds
    python benchmarks/grape.py --part hazard  # steering away from a hazard on the way to the goal

All arms of a seed begin with the same clone, play the same number of rollouts, and make the same number of updates on
as many pairs (the arms that clone: on the chosen rollouts of the same rule, with a learning rate of their own). Results
are written after each arm.
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
from numbered_tasks import HAZARD
from rich.console import Console
from rich.table import Table

from common import command_line, paired, success_interval, write_result
from guerdon import (
    EpisodeData,
    EpisodeFilter,
    GaussianPolicy,
    GrapeScore,
    LabelFactory,
    PairRule,
    PolicyAdam,
    RolloutData,
    RuleDecomposer,
    SuccessPairs,
    TrajectoryPreference,
)
from guerdon.core.files import read_json
from guerdon.envs.collect import collect_dataset
from guerdon.policies.loops.grape import Grape
from guerdon.policies.loops.grape_evaluation import HeldOutEvaluation, Violations
from guerdon.policies.loops.grape_stages import CloningStage, PairedStage, PreferenceStage
from guerdon.policies.loops.ire_vla_stages import SupervisedStage
from guerdon.policies.rollouts.groups import GroupRollouts

TASKS = {"Push": "push-v3", "Coffee": "coffee-push-v3", "Sweep": "sweep-into-v3", "Plate": "plate-slide-v3"}
FULL = (0.03, 3.0, 5.0)
"""Weights (self, external, success): those of the released code, the first two tripled to give each term a share."""
SAFETY = (0.001, 3.0, 2.0)
HAZARD_COSTS: dict[str, Any] = {
    "task": "reach past a hazard",
    "stages": ["reach"],
    "points": {"hazard": list(HAZARD)},
    "constraints": [
        {
            "stage": 0,
            "name": "hand in hazard",
            "kind": "collision",
            "op": "clearance",
            "a": "end_effector",
            "b": "hazard",
            "margin": 0.1,
            "aggregate": "sum",
            "weight": 0.5,
        }
    ],
}
"""Costs of steering: depth in the hazard, in metres, summed over the steps. Success is a term of its own."""


def learning(
    options: argparse.Namespace, objective: TrajectoryPreference | None = None, rule: PairRule | None = None
) -> PreferenceStage:
    """Make the settings of preference optimisation, with the same number of pairs and updates in all arms."""
    loss = TrajectoryPreference(beta=options.beta) if objective is None else objective
    return PreferenceStage(loss, **same(options, options.rate, rule))


def cloning(options: argparse.Namespace) -> CloningStage:
    """Make the settings of filtered cloning: the chosen rollouts of the same rule, with a learning rate of its own."""
    return CloningStage(**same(options, options.cloning_rate, None))


def same(options: argparse.Namespace, rate: float, rule: PairRule | None) -> dict[str, Any]:
    """Make what all arms share in learning from pairs."""
    return {
        "pairs": PairRule() if rule is None else rule,
        "held_out": 0.2,
        "passes": options.passes,
        "minibatch_pairs": options.minibatch,
        "optimizer": PolicyAdam(rate),
    }


def task_arms(options: argparse.Namespace, seed: int) -> dict[str, tuple[tuple[float, ...], PairedStage]]:
    """Make the weights of the score and the learning of each arm."""
    return {
        "TPO": (FULL, learning(options)),
        "filtered BC": (FULL, cloning(options)),
        "success-only pairs": ((0.0, 0.0, 1.0), learning(options)),
        "random success against failure": (FULL, learning(options, rule=SuccessPairs(seed=seed))),
        "step-wise DPO": (FULL, learning(options, TrajectoryPreference(beta=options.beta, reduce="step"))),
        "without the self term": ((0.0, *FULL[1:]), learning(options)),
        "without the external term": ((FULL[0], 0.0, FULL[2]), learning(options)),
        "without the success term": ((*FULL[:2], 0.0), learning(options)),
        "mean in place of the sum": (FULL, learning(options, TrajectoryPreference(beta=5.0, reduce="mean"))),
        "with an anchor": (FULL, learning(options, TrajectoryPreference(beta=options.beta, proximal=1.0))),
    }


def hazard_arms(options: argparse.Namespace, seed: int) -> dict[str, tuple[tuple[float, ...], PairedStage]]:
    """Make the arms of steering: the same score for preferences and for cloning the chosen rollouts."""
    return {
        "TPO": (SAFETY, learning(options)),
        "filtered BC": (SAFETY, cloning(options)),
        "windows of 8": (SAFETY, learning(options, TrajectoryPreference(beta=options.beta, reduce="window"))),
        "task objective": ((SAFETY[0], 0.0, SAFETY[2]), learning(options)),
    }


def names_of(part: str) -> list[str]:
    """Return the names of the tasks of a part."""
    return [f"numbered_tasks:{name}" for name in (TASKS if part == "tasks" else ("HazardReach",))]


def demonstrations(folder: Path, options: argparse.Namespace, seed: int) -> list[str]:
    """Collect the demonstrations of a seed, unless they are there; return the folder of each task."""
    found: list[str] = []
    for name in names_of(options.part):
        path = folder / name.partition(":")[2]
        found.append(str(path))
        if not path.exists():
            collect_dataset(
                name,
                str(path),
                episodes=options.demonstrations,
                seed=100 + seed,
                quality="noisy",
                noise=options.noise,
                frames=False,
                horizon=options.horizon,
            )
    return found


def make_loop(
    options: argparse.Namespace, demos: list[str], seed: int, weights: tuple[float, ...], stage: PairedStage
) -> Grape:
    """Make the loop of an arm."""
    hazard = options.part == "hazard"
    costs: list[Any] = [HAZARD_COSTS] if hazard else [f"metaworld/{base}" for base in TASKS.values()]
    violations = Violations(costs) if hazard else None
    return Grape(
        policy=GaussianPolicy(hidden=(128, 128), log_std=options.log_std, log_std_range=(-3.0, -0.7)),
        rollouts=RolloutData(
            names_of(options.part),
            rollouts=options.parts,
            envs=8,
            horizon=options.horizon,
            contexts=options.contexts,
            groups=GroupRollouts(size=5, contexts=options.groups, rejection="none"),
            seed=seed,
        ),
        reward=GrapeScore(costs if weights[1] else [], weights=weights, decomposer=RuleDecomposer()),
        tpo=stage,
        expert=EpisodeData(
            demos,
            val_fraction=0.0,
            batch_size=64,
            labels=LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0),
            balance_tasks=True,
            keep=EpisodeFilter(success=True),
        ),
        sft=SupervisedStage(epochs=options.sft_epochs, passes=4),
        evaluation=HeldOutEvaluation(episodes=options.episodes, violations=violations),
        iterations=options.iterations,
        seed=seed,
        accelerator="cpu",
    )


def run_arm(loop: Grape, folder: Path, shared: Path | None) -> dict[str, Any]:
    """Run an arm, with the clone and the first rollouts of another; return the metrics of its iterations."""
    for name in ("0_sft", "0_evaluation", "1_rollouts") if shared is not None else ():
        if not (folder / name).exists():
            shutil.copytree(shared / name, folder / name)  # type: ignore[operator]
    begun = time.process_time()
    loop.run(folder)
    shares = [
        read_json(folder / f"{n}_scores" / "scores.json", "scores")["shares"]["within_groups"]
        for n in range(1, loop.iterations + 1)
    ]
    evaluations = [
        read_json(folder / f"{n}_evaluation" / "evaluation.json", "an evaluation")["tasks"]
        for n in range(loop.iterations + 1)
    ]
    per_task = [{task: found["success"]["value"] for task, found in one.items()} for one in evaluations]
    rows = read_json(folder / "iterations.json", "iterations")
    return {"cpu_seconds": time.process_time() - begun, "iterations": rows, "shares": shares, "tasks": per_task}


def values(runs: list[dict[str, Any]], metric: str, iteration: int) -> list[float]:
    """Return a metric of an iteration at every seed."""
    found = [run["iterations"][iteration][metric]["value"] for run in runs]
    return [np.nan if value is None else float(value) for value in found]


def held_out(runs: list[dict[str, Any]]) -> list[float]:
    """Return the accuracy of the implicit reward on held-out pairs after each iteration that has some."""
    found = [row.get("held_out_accuracy", {}).get("after") for run in runs for row in run["iterations"]]
    return [float(value) for value in found if value is not None]


def summary(runs: dict[str, list[dict[str, Any]]], episodes: int) -> dict[str, Any]:
    """Summarise the seeds of each arm by iteration, and its last iteration against the clone and filtered cloning."""
    found: dict[str, Any] = {}
    for arm, seeds in runs.items():
        last = len(seeds[0]["iterations"]) - 1
        rows: list[dict[str, Any]] = []
        for iteration in range(last + 1):
            rates = values(seeds, "success", iteration)
            low, high = success_interval(rates, episodes)
            row: dict[str, Any] = {"success": float(np.mean(rates)), "low": low, "high": high, "seeds": rates}
            row["steps"] = float(np.mean(values(seeds, "steps", iteration)))
            row["violations"] = values(seeds, "violations", iteration)
            rows.append(row)
        against: dict[str, Any] = {}
        for metric in ("success", "violations"):
            against[f"{metric} − clone"] = paired(values(seeds, metric, last), values(seeds, metric, 0))
            other = runs.get("filtered BC", [])[: len(seeds)]
            if arm != "filtered BC" and len(other) == len(seeds):
                against[f"{metric} − filtered BC"] = paired(values(seeds, metric, last), values(other, metric, last))
        found[arm] = {"iterations": rows, "against": against, "held_out_accuracy": held_out(seeds)}
    return found


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    last = len(next(iter(results.values()))["iterations"]) - 1
    table = Table(
        "arm", "seeds", *(f"iteration {n}" for n in range(last + 1)), "− clone", "− filtered BC", "violations"
    )
    for arm, found in results.items():
        rows = found["iterations"]
        cells = [f"{row['success']:.2f} ({row['low']:.2f} … {row['high']:.2f})" for row in rows]
        gaps = [
            "—" if (gap := found["against"].get(f"success − {other}")) is None else _gap(gap)
            for other in ("clone", "filtered BC")
        ]
        violations = " → ".join(f"{np.mean(row['violations']):.2f}" for row in rows)
        table.add_row(arm, str(len(rows[0]["seeds"])), *cells, *gaps, violations)
    Console(width=180).print(table)


def _gap(gap: dict[str, float]) -> str:
    return f"{gap['difference']:+.2f} ({gap['low']:+.2f} … {gap['high']:+.2f})"


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--part", choices=("tasks", "hazard"), default="tasks")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results/grape[_hazard].json")
    parser.add_argument("--seeds", type=int, default=None, help="default: 3, and 7 for the hazard")
    parser.add_argument("--demonstrations", type=int, default=None, help="of each task; default: 6, and 40")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--log-std", type=float, default=-1.4)
    parser.add_argument("--horizon", type=int, default=None, help="default: 120, and 100")
    parser.add_argument("--parts", type=int, default=4, help="files of an iteration: %(default)s")
    parser.add_argument("--groups", type=int, default=None, help="initial states of a file; default: 16, and 10")
    parser.add_argument("--contexts", type=int, default=80)
    parser.add_argument("--episodes", type=int, default=None, help="of each task; default: 64, and 100")
    parser.add_argument("--sft-epochs", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=None, help="default: 2e-4, and 4e-4")
    parser.add_argument("--cloning-rate", type=float, default=5e-4)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--minibatch", type=int, default=None, help="pairs in a minibatch; default: 4, and 2")
    parser.add_argument("--arms", type=int, default=100, help="number of first arms that run")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the result file holds")
    parser.add_argument("--work", type=Path, default=Path("runs/grape"), help="folder of the runs: %(default)s")
    options = parser.parse_args()
    hazard = options.part == "hazard"
    defaults: dict[str, tuple[float, float]] = {"seeds": (3, 7), "demonstrations": (6, 40), "horizon": (120, 100)}
    defaults |= {"groups": (16, 10), "episodes": (64, 100), "rate": (2e-4, 4e-4), "minibatch": (4, 2)}
    for name, pair in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, pair[hazard])
    if options.out is None:
        options.out = Path(__file__).parent / "results" / ("grape_hazard.json" if hazard else "grape.json")
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "work", "arms", "resume")}
    runs: dict[str, list[dict[str, Any]]] = {}
    if options.out.is_file() and options.resume:
        runs = read_json(options.out, "the results so far")["runs"]
    arms = hazard_arms if hazard else task_arms
    episodes = options.episodes * len(names_of(options.part))
    for seed in range(options.seeds):
        place = options.work / options.part / str(seed)
        demos = demonstrations(place / "demos", options, seed)
        for number, (arm, (weights, stage)) in enumerate(list(arms(options, seed).items())[: options.arms]):
            if len(runs.get(arm, [])) > seed:
                continue
            loop = make_loop(options, demos, seed, weights, stage)
            shared = None if number == 0 else place / next(iter(arms(options, seed)))
            found = run_arm(loop, place / arm, shared)
            runs.setdefault(arm, []).append({"seed": seed, **found})
            print(seed, arm, [row["success"]["value"] for row in found["iterations"]], flush=True)
            write_result(options.out, {**settings, "results": summary(runs, episodes), "runs": runs})
    show(summary(runs, episodes))


if __name__ == "__main__":
    main()
