"""Scripted expert for LIBERO: it plans from the predicates of the goal and from privileged poses."""

from collections.abc import Generator
from typing import Any

import numpy as np

from .goals import covers, is_pushed, order
from .skills.joints import joint_skill
from .skills.motion import Motion
from .skills.picking import PickAndPlace
from .skills.pushing import push_dish
from .skills.scene import Scene

_IDLE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


class LiberoExpert:
    """Controller that solves a LIBERO problem; build a new one after each reset, once the objects have settled.

    It works through the predicates of the goal in a feasible order, tries again what failed, and reads positions from
    the simulator, so it ignores the state that it is given.

    Args:
        problem: LIBERO's inner environment (`ControlEnv.env`).

    Raises:
        ValueError: If the goal is one that `goals.covers` denies, or names a drawer, door or knob without a joint.
    """

    def __init__(self, problem: Any) -> None:
        self._scene = Scene(problem)
        parsed = problem.parsed_problem
        wanted = [tuple(predicate) for predicate in parsed["goal_state"]]
        if not covers(wanted):
            raise ValueError(
                "expected a goal of on, in, open, close, turnon and turnoff that can be reached from above, "
                f"got {wanted}: bring demonstrations for this task"
            )
        self._wanted = wanted
        self._goal: list[tuple[str, ...]] = order(wanted, parsed["initial_state"])
        for predicate in self._goal:
            if len(predicate) == 2:
                self._scene.joint(predicate[1])  # raises where there is none
        self._attempts: dict[tuple[str, ...], int] = {}
        self._placing: dict[tuple[str, ...], PickAndPlace] = {}
        self._actions = self._run()

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Compute the action (7,) for the simulator's current state, in [−1, 1].

        Args:
            state: Ignored.
        """
        return np.clip(next(self._actions), -1.0, 1.0)

    def _run(self) -> Generator[np.ndarray, None, None]:
        """Yield actions for ever: reach each predicate in turn, start again with the first that is false, then rest."""
        while True:
            false = next((p for p in self._goal if not self._scene.holds(p) and self._needed(p)), None)
            if false is None:
                yield _IDLE
                continue
            yield from self._skill(false)

    def _needed(self, predicate: tuple[str, ...]) -> bool:
        """Return whether a predicate is part of the goal, or a drawer that something must still be put into."""
        into = [p for p in self._wanted if p[0] == "in" and p[2] == predicate[1]]
        return predicate in self._wanted or not all(self._scene.holds(p) for p in into)

    def _skill(self, predicate: tuple[str, ...]) -> Motion:
        """Return the motion that makes one predicate true; a dish that could not be pushed is lifted."""
        self._attempts[predicate] = self._attempts.get(predicate, 0) + 1
        if len(predicate) == 2:
            return joint_skill(self._scene, predicate)
        if is_pushed(predicate[1], predicate[2]) and self._attempts[predicate] == 1:
            return push_dish(self._scene, predicate)
        if predicate not in self._placing:
            self._placing[predicate] = PickAndPlace(self._scene, predicate, self._goal)
        return self._placing[predicate].run()
