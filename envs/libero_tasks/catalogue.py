"""Instructions and goals of LIBERO's tasks, known without the simulator."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("tasks.json")


@dataclass(frozen=True, kw_only=True)
class TaskGoal:
    """Instruction and goal of a task."""

    instruction: str
    """Instruction of the task."""
    goal: tuple[tuple[str, ...], ...]
    """Predicates that must hold, such as ``("in", "milk_1", "basket_1_contain_region")``."""
    parts: tuple[tuple[str, ...], ...]
    """Predicates in the order in which they can be made true, with the drawers that have to be opened first."""


@functools.cache
def task_goals() -> Mapping[str, TaskGoal]:
    """Read instruction and goal of every task, by its full name such as ``"libero/libero_object/0"``."""
    entries: dict[str, dict[str, list[list[str]]]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        f"libero/{name}": TaskGoal(
            instruction=str(entry["instruction"]),
            goal=tuple(tuple(predicate) for predicate in entry["goal"]),
            parts=tuple(tuple(predicate) for predicate in entry["parts"]),
        )
        for name, entry in entries.items()
    }
