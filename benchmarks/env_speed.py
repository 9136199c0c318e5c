"""Speed of rollouts against the bare simulator: steps per second by workers, with frames and spares, and resets.

    python benchmarks/env_speed.py --task mujoco/reach --task metaworld/push-v3

The bare simulator is one task object in one process: random actions, no policy, a reset at the time limit, and with
frames one picture a step. Rollouts run a 2x128 policy in `--envs` environments, on 1 and 2 worker processes. All ways
alternate within a repeat, and each ratio is taken within its repeat, so that a machine that slows down slows both.
"Per CPU second" is the ratio by processor time of all processes and threads: on a machine that others use, it shows the
overhead of rollouts, which the time on the wall does not. "Waiting" is the share of the workers' time that is spent on
waiting for the slowest. All episodes begin in one context, to which a simulator may reset by a snapshot. Those of "new
contexts", with spares and without, hardly ever begin in the same context twice.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, spread, write_result
from guerdon.envs.render import rendering_backend
from guerdon.envs.task import Context, ResumableTask, Task
from guerdon.envs.vector import make_task
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.frames import RolloutFrames
from guerdon.policies.rollouts.pool import TaskSetting, WorkerPool

PIXELS = 128
MANY = 4_000  # contexts of which hardly one is drawn twice


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time that this process and others have used (Linux), in seconds."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def bare(task: Task, seconds: float, frames: bool) -> tuple[float, float]:
    """Measure steps per second, and per CPU second, of one simulator with random actions.

    Args:
        task: The simulator.
        seconds: Time to measure for.
        frames: Whether to render a picture at every step.
    """
    context, draw = task.contexts("train", 1)[0], np.random.default_rng(0)
    actions = draw.uniform(task.action_low, task.action_high, (1024, task.action_size)).astype(np.float32)
    task.reset(context)
    if frames:
        task.render(size=(PIXELS, PIXELS))  # the first picture takes seconds
    taken, begun, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        if taken % task.horizon == 0:
            task.reset(context)
        task.step(actions[taken % 1024])
        if frames:
            task.render(size=(PIXELS, PIXELS))
        taken += 1
    return taken / (time.perf_counter() - begun), taken / (time.process_time() - cpu)


class Rollouts:
    """Rollouts of one setting, whose simulators stay between measurements.

    Args:
        name: Name of the task.
        workers: Number of worker processes.
        envs: Number of environments in all.
        camera: Camera that is rendered at every observation; None renders nothing.
        spares: Number of spare simulators in each process; None has none, and plays one context.
    """

    def __init__(
        self, name: str, workers: int, envs: int, camera: str | None = None, spares: int | None = None
    ) -> None:
        task = make_task(name)
        frames = None if camera is None else RolloutFrames(cameras=[camera], image_size=PIXELS)
        setting = TaskSetting(task=name, end_on_success=False, frames=frames, spares=spares or 0)
        self.contexts: list[Context] = task.contexts("train", 1 if spares is None else MANY)
        self.policy = GaussianPolicy(task.state_size, task.action_size).eval()
        self.pool, self.calls = WorkerPool(setting, envs, workers), 0
        task.close()
        self.rate = 0.0
        for _ in range(2):  # the first builds the simulators, the second shows about how fast they are
            self._collect(4 * envs)

    def collect(self, seconds: float) -> tuple[float, float, float]:
        """Measure one rollout.

        Args:
            seconds: About how long it takes.

        Returns:
            Steps per second, steps per CPU second, and the share of the workers' time that was spent on waiting.
        """
        pids = self.pool.processes
        before = cpu_seconds(pids)
        taken = self._collect(max(self.pool.envs, int(self.rate * seconds)))
        return (
            self.rate,
            taken / (cpu_seconds(pids) - before),
            1 - float(np.mean(self.pool.seconds)) / max(self.pool.seconds),
        )

    def _collect(self, steps: int) -> int:
        self.calls += 1
        begun = time.perf_counter()
        pieces = self.pool.collect(self.policy, steps, self.contexts, self.calls)
        taken = sum(len(piece.actions) - piece.fresh for piece in pieces)
        self.rate = taken / (time.perf_counter() - begun)
        return taken


def resets(task: Task, seconds: float, first: int) -> dict[str, float]:
    """Measure resets per second: to new contexts, to those again, and by restoring a saved first state.

    Args:
        task: The simulator.
        seconds: Time to measure each way for.
        first: Number of contexts that were used up before.
    """
    contexts = task.contexts("train", 50 * MANY)[first:]
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds and count < MANY:  # Meta-World keeps a snapshot of each
        task.reset(contexts[count])
        count += 1
    found = {"new": count / (time.perf_counter() - begun)}
    begun, again = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        task.reset(contexts[again % count])
        again += 1
    found |= {"again": again / (time.perf_counter() - begun), "contexts": count}
    if isinstance(task, ResumableTask):
        saved, restored, begun = task.save(), 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            task.restore(saved)
            restored += 1
        found["restore"] = restored / (time.perf_counter() - begun)
    return found


def measure(name: str, options: Any) -> dict[str, Any]:
    """Measure one task in every way, `options.repeats` times in turns."""
    single = make_task(name)
    camera = single.cameras[0] if single.cameras and rendering_backend() is not None else None
    ways = {f"{workers} workers": Rollouts(name, workers, options.envs) for workers in (1, 2)}
    if camera is not None:
        ways |= {f"{w} workers, frames": Rollouts(name, w, options.envs, camera) for w in (1, 2)}
    for spares in (0, options.spares):
        ways[f"1 workers, new contexts, {spares} spares"] = Rollouts(name, 1, options.envs, spares=spares)
    runs: list[dict[str, Any]] = []
    used = 0
    for _ in range(options.repeats):
        run: dict[str, Any] = {"load": os.getloadavg()[0]}
        run["bare"], run["bare: cpu"] = bare(single, options.seconds, False)
        if camera is not None:
            run["bare, frames"], run["bare, frames: cpu"] = bare(single, options.seconds, True)
        for way, rollouts in ways.items():
            basis = "bare, frames" if "frames" in way else "bare"
            run[way], run[f"{way}: cpu"], run[f"{way}: waiting"] = rollouts.collect(options.seconds)
            run[f"{way}: ratio"] = run[way] / run[basis]
            run[f"{way}: cpu ratio"] = run[f"{way}: cpu"] / run[f"{basis}: cpu"]
        run |= {f"resets: {way}": rate for way, rate in resets(single, options.seconds, used).items()}
        used += int(run["resets: contexts"])
        runs.append(run)
    for rollouts in ways.values():
        rollouts.pool.close()
    single.close()
    keys = [key for key in runs[0] if key != "resets: contexts"]
    return {
        "camera": camera,
        "ways": list(ways),
        "summary": {k: spread([r[k] for r in runs]) for k in keys},
        "runs": runs,
    }


def rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table of one task."""
    summary = result["summary"]

    def shown(key: str, form: str = ",.0f") -> str:
        one = summary[key]
        return f"{one['median']:{form}} ({one['low']:{form}} … {one['high']:{form}})" if key in summary else "–"

    for way in ("bare", "bare, frames"):
        if way in summary:
            yield way, shown(way), "", "", ""
    for way in result["ways"]:
        ratios = (shown(f"{way}: {what}", ".2f") for what in ("ratio", "cpu ratio"))
        yield way, shown(way), *ratios, shown(f"{way}: waiting", ".0%")
    for way in ("new", "again", "restore"):
        yield f"resets, {way}", shown(f"resets: {way}", ",.1f"), "", "", ""
    yield f"load average of the machine ({os.cpu_count()} cores)", shown("load", ".1f"), "", "", ""


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "env_speed")
    parser.add_argument("--task", action="append", help="may be repeated; default mujoco/reach and metaworld/push-v3")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument(
        "--spares", type=int, default=8, help="spare simulators; as many as environments that end together"
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="about this long is each way measured in each repeat"
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in options.task or ["mujoco/reach", "metaworld/push-v3"]:
        results[name] = measure(name, options)
        table = Table(name, "per second: median (range)", "of the bare simulator", "per CPU second", "waiting")
        for row in rows(results[name]):
            table.add_row(*row)
        Console(width=150).print(table)
    settings = {"envs": options.envs, "spares": options.spares, "seconds": options.seconds, "pixels": PIXELS}
    settings["cores"] = os.cpu_count()
    write_result(options.out, settings | {"backend": rendering_backend(), "results": results})


if __name__ == "__main__":
    main()
