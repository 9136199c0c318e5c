"""Meta-World tasks for one policy of states: each appends its number to the state, one-hot.

`benchmarks/grape.py` names them, such as ``numbered_tasks:Push``. A policy of states alone could not tell the tasks
apart without the number. ``numbered_tasks:HazardReach`` is the reach task with demonstrations of which half pass a
virtual hazard on the left.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from guerdon.envs.experts import scripted_expert
from guerdon.envs.sawyer import MetaWorld
from guerdon.envs.task import Context, Controller, Step

HAZARD = (-0.1, 0.7, 0.2)
"""Centre of the hazard, a ball of radius 0.1, in metres."""
DETOURS = ((-0.12, 0.7, 0.2), (0.12, 0.7, 0.2))
"""Points by which the demonstrations reach their goal: through the hazard, or around it."""


class Numbered(MetaWorld):
    """A Meta-World task whose state ends with the number of the task among several.

    Args:
        horizon: Time limit in control steps.
        seed: Seed that fixes the contexts.
    """

    base = "push-v3"
    bases: tuple[str, ...] = ("push-v3", "coffee-push-v3", "sweep-into-v3", "plate-slide-v3")

    def __init__(self, horizon: int = 150, seed: int = 0) -> None:
        super().__init__(self.base, horizon, seed)
        self.state_size = 39 + len(self.bases)
        self._number = np.eye(len(self.bases), dtype=np.float32)[self.bases.index(self.base)]

    def reset(self, context: Context) -> np.ndarray:
        """Start an episode; return the state with the number of the task."""
        return np.concatenate([super().reset(context), self._number])

    def step(self, action: np.ndarray) -> Step:
        """Execute one action; the state has the number of the task."""
        step = super().step(action)
        return replace(step, state=np.concatenate([step.state, self._number]))

    def expert(self) -> Controller:
        """Make the scripted expert of the task itself."""
        controller = scripted_expert(f"metaworld/{self.base}")
        return lambda state: controller(state[:39])


class HazardReach(MetaWorld):
    """Meta-World's reach, with an expert that half the time goes through a hazard on the left.

    Args:
        horizon: Time limit in control steps.
        seed: Seed that fixes the contexts.
    """

    def __init__(self, horizon: int = 80, seed: int = 0) -> None:
        super().__init__("reach-v3", horizon, seed)

    def expert(self) -> Controller:
        """Make an expert that reaches the goal by one of two detours, chosen by the digits of the goal."""
        passed = False

        def act(state: np.ndarray) -> np.ndarray:
            nonlocal passed
            hand, goal = state[:3], state[36:39]
            by = np.asarray(DETOURS[int(abs(goal).sum() * 1e5) % 2])
            passed = passed or bool(np.linalg.norm(hand - by) < 0.03)
            toward = (goal if passed else by) - hand
            return np.concatenate([np.clip(8 * toward, -1, 1), [0.0]]).astype(np.float32)

        return act


def _numbered(name: str, base: str) -> Any:
    return type(name, (Numbered,), {"base": base, "__module__": __name__})


Push, Coffee = _numbered("Push", "push-v3"), _numbered("Coffee", "coffee-push-v3")
Sweep, Plate = _numbered("Sweep", "sweep-into-v3"), _numbered("Plate", "plate-slide-v3")
