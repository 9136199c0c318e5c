"""CPU time of one step of Meta-World: its own classes against guerdon's, the simulation alone, and what VectorEnv adds.

    python benchmarks/metaworld_step.py --task push-v3 --task drawer-open-v3

All ways take the same actions from the same context: random ones in the first half of the steps, then those of the
scripted expert with noise. They alternate within a repeat, and ratios are taken within their repeat. "Simulation" is
the time in MuJoCo's step and forward computation; the rest of a step is Python. "VectorEnv" steps `--envs` copies
together, and its ratio is its time per step of one copy against the step of one task alone. Times are those of the
processor, so that other work on the machine changes them little. Every number of every step is compared: the script
fails if the two classes differ in one bit.
"""

import time
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from rich.console import Console
from rich.table import Table

from common import command_line, spread, write_result
from guerdon.envs.sawyer import MetaWorld
from guerdon.envs.vector import VectorEnv

WAYS = ("own classes", "guerdon", "simulation", "VectorEnv")
NOISE = 0.3  # of the expert's actions, so that it touches, loses and regrasps


def choose_actions(task: MetaWorld, steps: int) -> np.ndarray:
    """Return actions (steps, 4): random ones, then those of a noisy expert."""
    draw = np.random.default_rng(0)
    actions = draw.uniform(-1, 1, (steps, 4)).astype(np.float32)
    state, expert = task.reset(task.contexts("train", 1)[0]), task.expert()
    for t in range(steps):
        if t >= steps // 2:
            actions[t] = np.clip(expert(state) + draw.normal(0, NOISE, 4), -1, 1)
        state = task.step(actions[t]).state
    return actions


def play(task: MetaWorld, actions: np.ndarray) -> tuple[float, bytes]:
    """Return the CPU time of a step, in microseconds, and every number that the steps gave."""
    task.reset(task.contexts("train", 1)[0])
    begun = time.process_time()
    steps = [task.step(action) for action in actions]
    spent = time.process_time() - begun
    numbers = [np.array([step.reward, step.success, *step.stages.values()]) for step in steps]
    return 1e6 * spent / len(actions), np.stack(numbers).tobytes() + np.stack([s.state for s in steps]).tobytes()


def simulate(task: MetaWorld, actions: np.ndarray) -> float:
    """Return the CPU time that MuJoCo takes for a step, in microseconds."""
    env, spent = task._env, 0.0
    task.reset(task.contexts("train", 1)[0])
    for action in actions:
        env.set_xyz_action(action[:3])
        begun = time.process_time()
        env.do_simulation([action[-1], -action[-1]], env.frame_skip)
        mujoco.mj_forward(env.model, env.data)  # pyright: ignore[reportAttributeAccessIssue]
        spent += time.process_time() - begun
    return 1e6 * spent / len(actions)


def play_together(envs: VectorEnv, actions: np.ndarray) -> float:
    """Return the CPU time per step of one environment, in microseconds."""
    for i in range(len(envs)):
        envs.reset(i, envs.contexts("train", 1)[0])
    repeated = np.repeat(actions[:, None], len(envs), axis=1)
    begun = time.process_time()
    for together in repeated:
        envs.step(together)
    return 1e6 * (time.process_time() - begun) / (len(actions) * len(envs))


def measure(name: str, options: Any) -> dict[str, Any]:
    """Measure one task in every way, `options.repeats` times in turns."""
    ours, theirs = MetaWorld(name), MetaWorld(name)
    theirs._env.__class__ = ALL_V3_ENVIRONMENTS[name]
    envs = VectorEnv([MetaWorld(name, horizon=options.steps) for _ in range(options.envs)])
    actions = choose_actions(ours, options.steps)
    runs: list[dict[str, float]] = []
    for _ in range(options.repeats):
        run: dict[str, float] = {}
        run["own classes"], expected = play(theirs, actions)
        run["guerdon"], got = play(ours, actions)
        if got != expected:
            raise AssertionError(f"{name}: guerdon's steps differ from those of Meta-World's own class")
        run["simulation"], run["VectorEnv"] = simulate(ours, actions), play_together(envs, actions)
        run["faster"] = run["own classes"] / run["guerdon"]
        run["share of simulation"] = run["simulation"] / run["guerdon"]
        run["VectorEnv: ratio"] = run["VectorEnv"] / run["guerdon"]
        runs.append(run)
    for held in (ours, theirs, envs):
        held.close()
    return {key: spread([run[key] for run in runs]) for key in runs[0]}


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "metaworld_step")
    parser.add_argument("--task", action="append", help="may be repeated; default reach, push and drawer-open")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    table = Table("task", *(f"{way}, µs" for way in WAYS), "times as fast", "of it simulation", "VectorEnv: ratio")
    results: dict[str, Any] = {}
    for name in options.task or ["reach-v3", "push-v3", "drawer-open-v3"]:
        found = results[name] = measure(name, options)
        shown = [f"{found[way]['median']:.0f}" for way in WAYS]
        ratios = [f"{found[key]['median']:.2f}" for key in ("faster", "share of simulation", "VectorEnv: ratio")]
        table.add_row(name, *shown, *ratios)
    Console(width=150).print(table)
    settings = {"steps": options.steps, "envs": options.envs, "repeats": options.repeats}
    write_result(options.out, settings | {"results": results})


if __name__ == "__main__":
    main()
