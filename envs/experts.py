"""Scripted experts by the name of a task; in a program, `guerdon.envs.task.ExpertTask.expert` makes one."""

import warnings
from typing import Any

import numpy as np

from .reach import reach_expert
from .task import Controller

__all__ = ["Controller", "MetaWorldExpert", "has_expert", "reach_expert", "scripted_expert"]


def has_expert(name: str) -> bool:
    """Return whether `scripted_expert` knows a task: Meta-World's tasks and the reach task.

    Other tasks may have an expert that reads more than the state; `guerdon.envs.task.ExpertTask` is its interface.

    Args:
        name: Full name of the task.
    """
    return name == "mujoco/reach" or name.startswith("metaworld/")


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
