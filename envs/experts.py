"""Scripted policies that solve the simulated tasks."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .reach import MAX_SPEED, joint_angles

Controller = Callable[[np.ndarray], np.ndarray]
"""From a state (S,) to an action (A,) within the task's bounds."""


def has_expert(name: str) -> bool:
    """Whether a task has a scripted expert: all of Meta-World and the reach task do, the kitchen does not."""
    return not name.startswith("kitchen/")


def scripted_expert(name: str) -> Controller:
    """Build the scripted expert of a task, a fresh one per episode.

    Meta-World's are its own policies; a few need more than 150 steps, or fail on some contexts.

    Args:
        name: full name of the task.

    Raises:
        ValueError: the task has none.
    """
    if name == "mujoco/reach":
        return reach_expert
    if name.startswith("metaworld/"):
        # an optional extra, imported where it is needed
        from metaworld.policies import ENV_POLICY_MAP

        return MetaWorldExpert(ENV_POLICY_MAP[name.removeprefix("metaworld/")]())
    raise ValueError(f"{name} has no scripted expert: collect random episodes there, or bring demonstrations")


def reach_expert(state: np.ndarray, gain: float = 5.0) -> np.ndarray:
    """Steer every joint of the reach task to where inverse kinematics puts the tip on the goal.

    Args:
        state: (12,) state of `guerdon.envs.reach.Reach`.
        gain: joint speed per error, 1/s.
    """
    error = joint_angles(state[9:12]) - state[0:3]
    return np.clip(gain * error / MAX_SPEED, -1.0, 1.0)


class MetaWorldExpert:
    """One of Meta-World's scripted policies, its action clipped to [-1, 1].

    Args:
        policy: an instance of a class of `metaworld.policies`.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Act on Meta-World's observation (39,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": the action is clipped here
            action = self._policy.get_action(state.astype(np.float64))
        return np.clip(np.asarray(action, np.float64), -1.0, 1.0)
