"""How often the scripted expert solves LIBERO's tasks, in how many steps, and what noise makes of it.

    python benchmarks/libero_experts.py --suite libero_object --suite libero_spatial
    python benchmarks/libero_experts.py --suite libero_object --task 0 --noise 0.3 --noise 0.6

For each task it plays the first official initial states, which the expert was not tuned on (it was on 40 to 49), and as
many that were drawn afresh. With noise it plays noisy experts from drawn states instead. States only; about two seconds
an episode. Needs `pip install 'guerdon[libero]'`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common import command_line, write_result
from guerdon.core.intervals import wilson_interval
from guerdon.envs.libero_tasks.suites import SUITES
from guerdon.envs.libero_tasks.task import Libero
from guerdon.envs.quality import behaviour
from guerdon.envs.task import Context


def steps_to_success(task: Libero, context: Context, noise: float | None) -> int | None:
    """Play one episode; return the number of steps to the first success, or None."""
    generator = np.random.default_rng([7, context.index])
    actor = behaviour(task, context, "expert" if noise is None else "noisy", generator, noise)
    state = task.reset(context)
    for count in range(1, task.horizon + 1):
        action = actor(state)
        assert action is not None
        step = task.step(action)
        if step.success:
            return count
        state = step.state
    return None


def measure(suite: str, number: int, count: int, noises: Sequence[float]) -> dict[str, Any]:
    """Measure one task: without noise on official and drawn states, with it on drawn ones."""
    task = Libero(suite, number)
    found: dict[str, Any] = {"suite": suite, "task": number, "instruction": task.instruction}
    if not hasattr(task, "expert"):
        task.close()
        return found | {"covered": False}
    official, drawn = task.contexts("official", count), task.contexts("eval", 10 + count)[10:]
    if noises:
        found["noise"] = {str(n): [steps_to_success(task, context, n) for context in drawn] for n in noises}
    else:
        found["official"] = [steps_to_success(task, context, None) for context in official]
        found["drawn"] = [steps_to_success(task, context, None) for context in drawn]
    task.close()
    return found | {"covered": True}


def show(rows: Sequence[dict[str, Any]], noises: Sequence[float]) -> None:
    """Print the table, and the share of successes of each suite or noise with its 95 % interval."""
    columns = [f"noise {n}" for n in noises] or ["official states", "drawn states", "steps, median (most)"]
    table = Table("suite", "task", "instruction", *columns)
    for row in rows:
        if not row["covered"]:
            cells = ["no plan"]
        elif noises:
            cells = [_share(row["noise"][str(n)]) for n in noises]
        else:
            steps = [n for n in row["official"] + row["drawn"] if n is not None]
            spread = f"{np.median(steps):.0f} ({max(steps)})" if steps else "–"
            cells = [_share(row["official"]), _share(row["drawn"]), spread]
        table.add_row(row["suite"], str(row["task"]), row["instruction"], *cells)
    Console(width=150).print(table)
    played: dict[str, list[int | None]] = {}
    for row in rows:
        for key in [str(n) for n in noises] if noises else ("official", "drawn"):
            results = row.get("noise", row).get(key, [])
            played.setdefault(key if noises else f"{row['suite']}, {key}", []).extend(results)
    for name, results in played.items():
        solved = sum(n is not None for n in results)
        low, high = wilson_interval(solved, len(results)) if results else (0.0, 1.0)
        print(f"{name}: {solved} of {len(results)} ({low:.2f}…{high:.2f})")


def _share(results: Sequence[int | None]) -> str:
    return f"{sum(n is not None for n in results)}/{len(results)}"


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "libero_experts")
    parser.add_argument("--suite", action="append", help="default: object, spatial, goal and 10")
    parser.add_argument("--task", type=int, action="append", help="default: all of the suite")
    parser.add_argument("--count", type=int, default=5, help="number of initial states of each kind")
    parser.add_argument("--noise", type=float, action="append", help="largest noise of noisy experts")
    options = parser.parse_args()
    suites = options.suite or ["libero_object", "libero_spatial", "libero_goal", "libero_10"]
    wanted = [(suite, n) for suite in suites for n in options.task or range(SUITES[suite])]
    noises = options.noise or []
    rows = [measure(suite, number, options.count, noises) for suite, number in track(wanted, "playing")]
    show(rows, noises)
    write_result(options.out, {"count": options.count, "rows": rows})


if __name__ == "__main__":
    main()
