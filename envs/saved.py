# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
"""States of simulated tasks, saved in the middle of an episode and restored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

_PLACES = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""Positions: a simulator's step leaves these one substep behind its joints, and frames are rendered from them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedState:
    """Everything that the future of a simulated task depends on; see `guerdon.ResumableTask.save`."""

    task: str
    """Full name of the task."""
    seed: int
    """Random seed of the task."""
    kind: str
    """Name of the task's class."""
    state: np.ndarray
    """State (S,) float32 as it was observed."""
    parts: Mapping[str, Any]
    """Further state, in a form that the task's class chooses."""


def check_saved(task: Any, saved: object) -> SavedState:
    """Check that a state was saved by a task like this one.

    Args:
        task: Task that is to be restored.
        saved: Saved state.

    Raises:
        TypeError: If it is not a saved state.
        ValueError: If it belongs to another class, name or seed; both are named.
    """
    if not isinstance(saved, SavedState):
        raise TypeError(f"{task.name}: expected what Task.save() returned, got {type(saved).__name__}")
    mine, other = (type(task).__name__, task.name, task.seed), (saved.kind, saved.task, saved.seed)
    if mine != other:
        raise ValueError(
            f"expected a state saved by {mine[0]} {mine[1]} with seed {mine[2]}, got one of {other[0]} {other[1]} with "
            f"seed {other[2]}: restore it in a task made the same way"
        )
    return saved


@dataclass(frozen=True, eq=False)
class Physics:
    """State of a MuJoCo simulation; from it the simulation goes on bit by bit as before."""

    integration: np.ndarray
    """MuJoCo's integration state."""
    places: Mapping[str, np.ndarray]
    """Positions that MuJoCo does not recompute from it exactly, by name."""

    @classmethod
    def of(cls, model: mujoco.MjModel, data: mujoco.MjData) -> "Physics":
        """Copy the state of a simulation."""
        integration = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
        return cls(integration, {name: getattr(data, name).copy() for name in _PLACES})

    def put(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Copy the state back into a simulation."""
        mujoco.mj_resetData(model, data)
        mujoco.mj_setState(model, data, self.integration, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)  # what is derived from the state; it also moves the warm start, hence
        mujoco.mj_setState(model, data, self.integration, mujoco.mjtState.mjSTATE_INTEGRATION)
        for name, value in self.places.items():
            getattr(data, name)[:] = value
