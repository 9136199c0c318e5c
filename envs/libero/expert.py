"""Scripted expert for LIBERO: it plans from the predicates of the goal and from privileged poses."""

from collections.abc import Generator
from typing import Any

import numpy as np

from .goals import is_pushed, order
from .joints import joint_skill
from .motion import Motion
from .picking import PickAndPlace
from .pushing import push_dish
from .scene import Scene

_IDLE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


class LiberoExpert:
    """Controller that solves a LIBERO problem; build a new one after each reset, once the objects have settled.

    It works through the predicates of the goal in a feasible order, tries again what failed, and reads positions from
    the simulator, so it ignores the state that it is given.

    Args:
        problem: LIBERO's inner environment (`ControlEnv.env`).

    Raises:
        ValueError: If a predicate of the goal is unknown.
    """

    def __init__(self, problem: Any) -> None:
        self._scene = Scene(problem)
        parsed = problem.parsed_problem
        self._goal: list[tuple[str, ...]] = order(parsed["goal_state"], parsed["initial_state"])
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
            false = next((p for p in self._goal if not self._scene.holds(p)), None)
            if false is None:
                yield _IDLE
                continue
            yield from self._skill(false)

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
