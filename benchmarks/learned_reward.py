"""Does PPO on a learned reward alone improve a cloned policy? Success before and after, over seeds and tasks.

    python benchmarks/learned_reward.py --seeds 0 1 2

Every run is `guerdon demo` with another task and seed: its own logs, its own reward model, its own demonstrations, its
own held-out starts. The interval of a row is over episodes and seeds: a bootstrap that resamples whole seeds' episodes
first, then episodes within, because episodes of one seed share a policy.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from common import command_line, success_interval, write_result
from guerdon.commands.demo import Size, run

TASKS = {"metaworld/drawer-open-v3": 100, "metaworld/handle-pull-v3": 150}
"""Tasks and their time limits, where a policy cloned from eight noisy demonstrations succeeds in 20 to 60 %."""


def one(folder: Path, task: str, seed: int, judged: int) -> dict[str, Any]:
    """One demo; its results file is the answer."""
    run(folder, seed=seed, size=Size(task=task, horizon=TASKS.get(task, 150), judged=judged, workers=1))
    return json.loads((folder / "results.json").read_text())["rates"]


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = command_line(__doc__, "learned_reward")
    parser.add_argument("--task", action="append", help=f"default: {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each with one environment process")
    parser.add_argument("--runs", type=Path, default=Path("runs/learned_reward"), help="finished runs are kept here")
    options = parser.parse_args()
    tasks = options.task or list(TASKS)
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        asked = {
            (task, seed): pool.submit(
                one, options.runs / f"{task.replace('/', '_')}_{seed}", task, seed, options.episodes
            )
            for task in tasks
            for seed in options.seeds
        }
        done = {key: future.result() for key, future in asked.items()}
    table = Table("task", "policy", "success per seed", "mean", "95 % interval")
    for task in tasks:
        results[task] = {}
        for name in ("cloned", "learned reward", "sparse success"):
            rates = [done[task, seed][name]["success"] for seed in options.seeds]
            low, high = success_interval(rates, options.episodes)
            mean = float(np.mean(rates))
            results[task][name] = {"per_seed": rates, "mean": mean, "low": low, "high": high}
            table.add_row(task, name, ", ".join(f"{r:.2f}" for r in rates), f"{mean:.2f}", f"{low:.2f} … {high:.2f}")
    Console().print(table)
    horizons = {task: TASKS.get(task, 150) for task in tasks}
    size = {k: v for k, v in vars(Size(workers=1)).items() if k not in ("task", "horizon")}
    record = {"seeds": options.seeds, "episodes": options.episodes, "horizons": horizons, "size": size}
    record["results"] = results
    write_result(options.out, record)


if __name__ == "__main__":
    main()
