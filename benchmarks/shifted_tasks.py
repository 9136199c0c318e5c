"""Meta-World tasks whose initial states are shifted: the object lies in one part of its range.

`benchmarks/ire_vla.py` names them, such as ``shifted_tasks:PushLeft``. Demonstrations come from the left 35 %; the next
30 % are new. The state has the number of the task appended, one-hot: a policy of states alone could not tell the tasks
apart.
"""

from functools import cache
from typing import Any

import numpy as np
from numbered_tasks import Numbered

from guerdon.envs.sawyer import MetaWorld
from guerdon.envs.task import EVAL_OFFSET, Context

BASES = ("push-v3", "coffee-push-v3", "sweep-v3", "drawer-open-v3")
PARTS = {"left": (-0.01, 0.35), "new": (0.35, 0.65)}
"""Part of the range of the object's x that a variant draws from."""
PROBES = 60
"""Number of initial states from which the range is estimated."""


class Shifted(Numbered):
    """A Meta-World task with initial states of one side only.

    Args:
        horizon: Time limit in control steps.
        seed: Seed that fixes the contexts.
    """

    bases = BASES
    side = "left"

    def __init__(self, horizon: int = 150, seed: int = 0) -> None:
        super().__init__(horizon, seed)
        self.name = f"{self.name}@{self.side}"

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """List the first contexts of a split that lie on this side."""
        first = EVAL_OFFSET if split == "eval" else 0
        wanted = 40 if count is None else count
        return [Context(self.name, first + i, split) for i in _sides(self.base, self.seed, first, self.side, wanted)]


@cache
def _plain(base: str, seed: int) -> MetaWorld:
    return MetaWorld(base, seed=seed)


@cache
def _object_x(base: str, seed: int, index: int) -> float:
    task = _plain(base, seed)
    split = "eval" if index >= EVAL_OFFSET else "train"
    task._snapshots.clear()  # pyright: ignore[reportPrivateUsage]  # each is used once
    return float(task.reset(Context(task.name, index, split))[4])


@cache
def bounds(base: str) -> tuple[float, float]:
    """Estimate the range of the object's x in a task, in metres."""
    values = [_object_x(base, 12345, index) for index in range(PROBES)]
    return float(np.min(values)), float(np.max(values))


_found: dict[tuple[str, int, int, str], list[int]] = {}


def _sides(base: str, seed: int, first: int, side: str, count: int) -> list[int]:
    low, high = bounds(base)
    found = _found.setdefault((base, seed, first, side), [])
    index = found[-1] + 1 if found else 0
    while len(found) < count:
        place = (_object_x(base, seed, first + index) - low) / (high - low)
        if PARTS[side][0] < place <= PARTS[side][1]:
            found.append(index)
        index += 1
    return found[:count]


def _variant(name: str, base: str, side: str) -> Any:
    return type(name, (Shifted,), {"base": base, "side": side, "__module__": __name__})


PushLeft, PushNew = _variant("PushLeft", "push-v3", "left"), _variant("PushNew", "push-v3", "new")
CoffeeLeft, CoffeeNew = _variant("CoffeeLeft", "coffee-push-v3", "left"), _variant("CoffeeNew", "coffee-push-v3", "new")
SweepLeft, SweepNew = _variant("SweepLeft", "sweep-v3", "left"), _variant("SweepNew", "sweep-v3", "new")
DrawerLeft, DrawerNew = _variant("DrawerLeft", "drawer-open-v3", "left"), _variant("DrawerNew", "drawer-open-v3", "new")
