"""Times GAE, discounted returns and group baselines against the loops over steps and groups that are usual elsewhere.

    python benchmarks/returns.py --out benchmarks/results/returns.json

The rivals are written out here as Stable-Baselines3 (numpy, one array operation per step over the environments) and TRL
(torch, one column per step) write them, on arrays already in the layout each likes best; every result is compared with
ours before it is timed. Ours is timed with its checks of shape and finiteness.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from common import command_line
from guerdon.core.returns import discounted_returns, gae, group_standardise, leave_one_out

GAMMA, LAM = 0.99, 0.95
STEPS, ROWS, GROUP_SIZE = (100, 300, 1000), (16, 64, 256), 8
Array = npt.NDArray[np.float32]


def numpy_gae(rewards: Array, values: Array, starts: Array, last_values: Array, dones: Array) -> tuple[Array, Array]:
    """GAE over arrays of shape (steps, environments), one step at a time, as a PPO rollout buffer does it."""
    advantages = np.zeros_like(rewards)
    running: Array | int = 0
    for step in reversed(range(len(rewards))):
        if step == len(rewards) - 1:
            going, following = 1.0 - dones, last_values
        else:
            going, following = 1.0 - starts[step + 1], values[step + 1]
        error = rewards[step] + GAMMA * following * going - values[step]
        running = error + GAMMA * LAM * going * running
        advantages[step] = running
    return advantages, advantages + values


def torch_gae(rewards: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """GAE over tensors of shape (rows, steps), one column at a time, as a language-model PPO trainer does it."""
    running, backwards = torch.zeros(len(rewards)), []
    for step in reversed(range(rewards.shape[1])):
        following = values[:, step + 1] if step < rewards.shape[1] - 1 else 0.0
        error = rewards[:, step] + GAMMA * following - values[:, step]
        running = error + GAMMA * LAM * running
        backwards.append(running)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


def numpy_returns(rewards: Array) -> Array:
    """Discounted reward-to-go over (steps, environments)."""
    returns = np.zeros_like(rewards)
    running = np.zeros(rewards.shape[1], dtype=np.float32)
    for step in reversed(range(len(rewards))):
        running = rewards[step] + GAMMA * running
        returns[step] = running
    return returns


def torch_returns(rewards: Tensor) -> Tensor:
    """Discounted reward-to-go over (rows, steps)."""
    running, backwards = torch.zeros(len(rewards)), []
    for step in reversed(range(rewards.shape[1])):
        running = rewards[:, step] + GAMMA * running
        backwards.append(running)
    return torch.stack(backwards[::-1], dim=1)


def loop_leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    """Leave-one-out advantages, one group at a time."""
    result = torch.zeros_like(scores)
    for number in group.unique():
        members = group == number
        inside = scores[members]
        result[members] = inside - (inside.sum() - inside) / (len(inside) - 1)
    return result


def loop_standardise(scores: Tensor, group: Tensor) -> Tensor:
    """Compute standard scores, one group at a time."""
    result = torch.zeros_like(scores)
    for number in group.unique():
        members = group == number
        inside = scores[members]
        result[members] = (inside - inside.mean()) / (inside.std() + 1e-6)
    return result


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of one call, after two to warm up."""
    function()
    function()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def record(what: str, steps: int, rows: int, ours: float, rivals: dict[str, float]) -> dict[str, object]:
    ratios = {name: seconds / ours for name, seconds in rivals.items()}
    return {"what": what, "steps": steps, "rows": rows, "ours_s": ours, "rivals_s": rivals, "speed_up": ratios}


def measure_steps(steps: int, rows: int, repeats: int) -> list[dict[str, object]]:
    rewards, values = torch.randn(rows, steps), torch.randn(rows, steps + 1)
    # The torch loop knows no bootstrap: it is compared on rows that end; the numpy one on half of them.
    whole, ended, half = torch.ones(rows, steps, dtype=torch.bool), torch.ones(rows).bool(), torch.rand(rows) < 0.5
    ragged = torch.arange(steps) < torch.randint(steps // 2, steps + 1, (rows, 1))
    tall = rewards.T.contiguous().numpy(), values[:, :-1].T.contiguous().numpy()
    tail = np.zeros_like(tall[0]), values[:, -1].numpy(), half.float().numpy()
    columns = values[:, :-1].contiguous()
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    ours = gae(rewards, values, whole, half, GAMMA, LAM)
    for got, expected in zip(ours, numpy_gae(*tall, *tail), strict=True):
        np.testing.assert_allclose(got.T.numpy(), expected, **close)
    for got, expected in zip(gae(rewards, values, whole, ended, GAMMA, LAM), torch_gae(rewards, columns), strict=True):
        torch.testing.assert_close(got, expected, **close)
    torch.testing.assert_close(discounted_returns(rewards, whole, GAMMA), torch_returns(rewards), **close)
    np.testing.assert_allclose(discounted_returns(rewards, whole, GAMMA).T.numpy(), numpy_returns(tall[0]), **close)
    loops = {
        "numpy loop (SB3)": median_seconds(lambda: numpy_gae(*tall, *tail), repeats),
        "torch loop (TRL)": median_seconds(lambda: torch_gae(rewards, columns), repeats),
    }
    plain = {
        "numpy loop (SB3)": median_seconds(lambda: numpy_returns(tall[0]), repeats),
        "torch loop (TRL)": median_seconds(lambda: torch_returns(rewards), repeats),
    }
    full_gae = median_seconds(lambda: gae(rewards, values, whole, half, GAMMA, LAM), repeats)
    ragged_gae = median_seconds(lambda: gae(rewards, values, ragged, half, GAMMA, LAM), repeats)
    full_returns = median_seconds(lambda: discounted_returns(rewards, whole, GAMMA), repeats)
    return [
        record("GAE", steps, rows, full_gae, loops),
        record("GAE, padded rows", steps, rows, ragged_gae, loops),
        record("discounted returns", steps, rows, full_returns, plain),
    ]


def measure_groups(groups: int, repeats: int) -> list[dict[str, object]]:
    scores, group = torch.rand(groups * GROUP_SIZE), torch.arange(groups).repeat_interleave(GROUP_SIZE)
    order = torch.randperm(len(group))
    group = group[order]
    found: list[dict[str, object]] = []
    for what, ours, loop in (
        ("leave-one-out", leave_one_out, loop_leave_one_out),
        ("group standardise", group_standardise, loop_standardise),
    ):
        torch.testing.assert_close(ours(scores, group), loop(scores, group), rtol=1e-4, atol=1e-4)
        seconds = median_seconds(lambda ours=ours: ours(scores, group), repeats)
        rival = median_seconds(lambda loop=loop: loop(scores, group), repeats)
        found.append(record(what, GROUP_SIZE, groups, seconds, {"loop over groups": rival}))
    return found


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = command_line(__doc__, "returns")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the loops cannot use more, and small products are slower on two
    torch.manual_seed(0)
    found: list[dict[str, object]] = []
    for steps in track(STEPS, "steps"):
        for rows in ROWS:
            found += measure_steps(steps, rows, arguments.repeats)
    for groups in ROWS:
        found += measure_groups(groups, arguments.repeats)
    table = Table(title=f"Median of {arguments.repeats} calls, one thread, float32 in and out")
    for name in ("what", "T or group size", "rows or groups", "ours, µs", "times faster than"):
        table.add_column(name, justify="left" if name in ("what", "times faster than") else "right")
    for row in found:
        ratios = row["speed_up"]
        assert isinstance(ratios, dict)
        told = ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items())
        table.add_row(
            str(row["what"]), str(row["steps"]), str(row["rows"]), f"{1e6 * float(str(row['ours_s'])):.0f}", told
        )
    Console(width=120).print(table)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.out.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine, "repeats": arguments.repeats, "rows": found}, indent=1) + "\n")
    os.replace(temporary, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
