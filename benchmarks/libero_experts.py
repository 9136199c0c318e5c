"""Measure how often the scripted expert solves LIBERO's tasks, and in how many steps.

    python benchmarks/libero_experts.py libero_object libero_spatial --official 0-9 --fresh 0-4 --out experts.json

States only, nothing is rendered: 3 to 9 s an episode on a free core. Prints one row a task.
"""

import argparse
import contextlib
import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.envs.libero.expert import LiberoExpert

HORIZONS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}
"""Time limit of each suite in control steps."""
SETTLING = 10
"""Steps with an idle arm after a reset, part of LIBERO's protocol."""
IDLE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


def episode(env: Any, seed: int, state: np.ndarray | None, horizon: int, noise: float) -> int | None:
    """Run one episode; return the number of steps to the first success, or None.

    Args:
        env: LIBERO's `ControlEnv`.
        seed: Seed of the reset and of the noise.
        state: Official initial state; None keeps the placement of the reset.
        horizon: Time limit in control steps.
        noise: Largest standard deviation of the noise on the six motion dimensions; drawn from [noise/2, noise].
    """
    env.seed(seed)  # fixtures move at every reset
    env.reset()
    if state is not None:
        env.set_init_state(state)
    for _ in range(SETTLING):
        env.step(IDLE)
    rng = np.random.default_rng(seed)
    deviation = rng.uniform(noise / 2, noise)
    expert = LiberoExpert(env.env)
    for step in range(horizon):
        action = expert(np.zeros(0))
        action[:6] = np.clip(action[:6] + rng.normal(0.0, deviation, 6), -1.0, 1.0) if noise else action[:6]
        env.step(action)
        if env.check_success():
            return step + 1
    return None


def measure(suite: str, number: int, official: range, fresh: range, noise: float) -> dict[str, Any]:
    """Run the expert on one task; return its row of the table.

    Args:
        suite: Name of the suite.
        number: Number of the task.
        official: Numbers of official initial states.
        fresh: Seeds of fresh initial states.
        noise: Noise of `episode`.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs.env_wrapper import ControlEnv

        tasks = benchmark.get_benchmark(suite)(0)
    task, horizon = tasks.get_task(number), HORIZONS[suite.removeprefix("libero_").split("_")[0]]
    path = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
    env = ControlEnv(bddl_file_name=str(path), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True)
    started = time.perf_counter()
    states = tasks.get_task_init_states(number) if len(official) else []
    runs = {f"official {k}": episode(env, k, states[k], horizon, noise) for k in official}
    runs |= {f"fresh {k}": episode(env, k, None, horizon, noise) for k in fresh}
    env.close()
    steps = [count for count in runs.values() if count is not None]
    return {
        "suite": suite,
        "task": number,
        "instruction": task.language,
        "initial_states": len(runs),
        "successes": len(steps),
        "official_successes": sum(v is not None for k, v in runs.items() if k.startswith("official")),
        "median_steps": float(np.median(steps)) if steps else None,
        "max_steps": max(steps, default=None),
        "failed": [name for name, count in runs.items() if count is None],
        "noise": noise,
        "seconds": round(time.perf_counter() - started, 1),
    }


def numbers(text: str) -> range:
    """Parse ``"3"`` or ``"0-9"``; an empty text is an empty range.

    Args:
        text: Number or range, both ends included.
    """
    if not text:
        return range(0)
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    """Measure the suites of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", help="suites, such as libero_object")
    parser.add_argument("--tasks", type=numbers, default=range(10), help="numbers of the tasks")
    parser.add_argument("--official", type=numbers, default=range(10), help="official initial states")
    parser.add_argument("--fresh", type=numbers, default=range(5), help="seeds of fresh initial states")
    parser.add_argument("--noise", type=float, default=0.0, help="largest noise of the motion")
    parser.add_argument("--out", type=Path, help="JSON file of the rows, written after each task")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for suite in arguments.suites:
        for number in arguments.tasks:
            row = measure(suite, number, arguments.official, arguments.fresh, arguments.noise)
            rows.append(row)
            print(
                f"| {suite} | {number} | {row['instruction']} | {row['initial_states']} | {row['successes']} | "
                f"{row['median_steps']} | {row['max_steps']} | {', '.join(row['failed'])} | {row['seconds']} s",
                flush=True,
            )
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
