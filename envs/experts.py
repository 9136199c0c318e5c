"""Scripted experts that solve the simulated tasks."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .reach import MAX_SPEED, joint_angles

Controller = Callable[[np.ndarray], np.ndarray]
"""Function from a state (S,) to an action (A,) within the task's bounds."""


def has_expert(name: str) -> bool:
    """Return whether a task has a scripted expert: Meta-World's tasks and the reach task have one, the kitchen not.

    Args:
        name: Full name of the task.
    """
    return not name.startswith("kitchen/")


def scripted_expert(name: str) -> Controller:
    """Build the scripted expert of a task; build a new one for each episode.

    Meta-World's experts are its own policies; a few need more than 150 steps, or fail on some contexts.

    Args:
        name: Full name of the task.

    Raises:
        ValueError: If the task has no expert.
    """
    if name == "mujoco/reach":
        return reach_expert
    if name.startswith("metaworld/"):
        # an optional extra, imported where it is needed
        from metaworld.policies import ENV_POLICY_MAP

        return MetaWorldExpert(ENV_POLICY_MAP[name.removeprefix("metaworld/")]())
    raise ValueError(f"{name} has no scripted expert: collect random episodes there, or bring demonstrations")


def reach_expert(state: np.ndarray, gain: float = 5.0) -> np.ndarray:
    """Move every joint of the reach task towards the angle at which the tip is on the goal, by inverse kinematics.

    Args:
        state: State (12,) of `guerdon.envs.reach.Reach`.
        gain: Joint speed per error of the angle, in 1/s.

    Returns:
        Action (3,) in [−1, 1].
    """
    error = joint_angles(state[9:12]) - state[0:3]
    return np.clip(gain * error / MAX_SPEED, -1.0, 1.0)


class MetaWorldExpert:
    """One of Meta-World's scripted policies, with its action clipped to [−1, 1].

    Args:
        policy: Instance of a class of `metaworld.policies`.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Compute the action (4,) for Meta-World's observation (39,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": the action is clipped here
            action = self._policy.get_action(state.astype(np.float64))
        return np.clip(np.asarray(action, np.float64), -1.0, 1.0)
