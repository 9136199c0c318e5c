"""Layout of LIBERO's state vector: which numbers stand where, the same for all tasks of a suite."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .suites import parse_suite

_WORKSPACES = frozenset(("table", "floor", "kitchen_table", "living_room_table", "study_table", "coffee_table"))

PROPRIO = 8
"""Width of the robot's own state, as published policies take it: see `Layout`."""
ARM = 7
"""Number of arm joints."""
OBJECT = 10
"""Width of an object: position, rotation, presence."""
FIXTURE = OBJECT + 3
"""Width of a fixture: that of an object, and up to three joints."""


@dataclass(frozen=True)
class Layout:
    """Places in the state.

    | columns | what |
    |---|---|
    | 0…2 | position of the end effector, in metres |
    | 3…5 | rotation of the end effector as axis times angle, in radians |
    | 6…7 | positions of the two gripper fingers, in metres |
    | 8…14 | joint angles of the arm, in radians |
    | 10 per object | position (3), first two columns of its rotation matrix (6), 1 if the scene has it |
    | 13 per fixture | the same, then up to three joint positions (drawers, doors, knobs), in metres or radians |

    The first eight are the proprioceptive state of published policies. Objects and fixtures stand in the order of their
    names. Every object of the suite has its place, also in scenes without it, where all its numbers are 0: so the state
    means the same in all tasks of a suite, and says nothing about which object a task is about.
    """

    objects: tuple[str, ...]
    """Names of the movable objects of the suite."""
    fixtures: tuple[str, ...]
    """Names of its fixtures, the work surface left out."""

    @property
    def size(self) -> int:
        """Width of the full state."""
        return PROPRIO + ARM + OBJECT * len(self.objects) + FIXTURE * len(self.fixtures)

    @property
    def first(self) -> Mapping[str, int]:
        """First column of each object and fixture."""
        start = PROPRIO + ARM
        places = {name: start + OBJECT * i for i, name in enumerate(self.objects)}
        start += OBJECT * len(self.objects)
        return places | {name: start + FIXTURE * i for i, name in enumerate(self.fixtures)}

    @property
    def columns(self) -> dict[str, tuple[int, int]]:
        """First column, and the one after the last, by name.

        The names are ``proprio``, ``end_effector``, ``end_effector.rotation``, ``gripper``, ``arm``, and ``<object>``,
        ``<object>.rotation``, ``<object>.present`` and ``<fixture>.joints``. ``<object>`` is its position.
        """
        found = {"proprio": (0, PROPRIO), "end_effector": (0, 3), "end_effector.rotation": (3, 6), "gripper": (6, 8)}
        found["arm"] = (PROPRIO, PROPRIO + ARM)
        for name, start in self.first.items():
            found |= {name: (start, start + 3), f"{name}.rotation": (start + 3, start + 9)}
            found[f"{name}.present"] = (start + 9, start + OBJECT)
            if name in self.fixtures:
                found[f"{name}.joints"] = (start + OBJECT, start + FIXTURE)
        return found


def layout_of(tasks: Sequence[Mapping[str, Any]]) -> Layout:
    """Compute the layout that serves all tasks of a suite.

    Args:
        tasks: Parts of each task's BDDL file; see `guerdon.envs.libero_tasks.suites.parse_suite`.
    """
    objects = {name for task in tasks for names in task["objects"].values() for name in names}
    fixtures = {
        name for task in tasks for kind, names in task["fixtures"].items() if kind not in _WORKSPACES for name in names
    }
    return Layout(tuple(sorted(objects)), tuple(sorted(fixtures)))


@functools.cache
def suite_layout(suite: str) -> Layout:
    """Read the layout of a suite's states.

    Args:
        suite: Name of the suite.

    Raises:
        ModuleNotFoundError: If the simulator is not installed.
    """
    return layout_of(parse_suite(suite))
