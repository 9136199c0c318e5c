# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
"""Everything that determines what a LIBERO simulation does next."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..saved import Physics

_MODEL = ("body_pos", "body_quat", "site_rgba")
"""Parts of the model that change: fixtures without joints are placed anew at each reset, and a burner lights up."""

_CLOCK = ("timestep", "cur_time", "done")

_ROBOT = (
    *("torques", "recent_qpos", "recent_actions", "recent_torques", "recent_ee_forcetorques"),
    *("recent_ee_pose", "recent_ee_vel", "recent_ee_vel_buffer", "recent_ee_acc"),
)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State of a simulation with its controller; from it the simulation goes on bit by bit as before.

    MuJoCo's integration state alone is not enough: the controller keeps goals and poses of the step before, the gripper
    its last command, and fixtures without joints stand in the model.
    """

    physics: Physics
    """State of MuJoCo."""
    model: Mapping[str, np.ndarray]
    """Changed parts of the model."""
    parts: Mapping[str, Mapping[str, Any]]
    """Attributes of the environment, the robot, its controller and its gripper."""

    @classmethod
    def of(cls, problem: Any, placed: Any = None) -> "Snapshot":
        """Copy the state of a robosuite environment.

        Args:
            problem: Environment.
            placed: Model to take the changing parts from; None takes the environment's own.
        """
        model, data = problem.sim.model._model, problem.sim.data._data
        parts = {name: copy.deepcopy(_attributes(owner, name)) for name, owner in _owners(problem).items()}
        changed = {name: getattr(placed or model, name).copy() for name in _MODEL}
        return cls(Physics.of(model, data), changed, parts)

    def put(self, problem: Any) -> None:
        """Copy the state back, into the environment it came from or into another one of the same task."""
        model, data = problem.sim.model._model, problem.sim.data._data
        for name, values in self.model.items():
            getattr(model, name)[:] = values
        self.physics.put(model, data)
        for name, owner in _owners(problem).items():
            for key, value in copy.deepcopy(self.parts[name]).items():
                setattr(owner, key, value)


def _owners(problem: Any) -> dict[str, Any]:
    robot = problem.robots[0]
    return {"clock": problem, "robot": robot, "controller": robot.controller, "gripper": robot.gripper}


def _attributes(owner: Any, name: str) -> dict[str, Any]:
    if name == "clock":
        return {key: getattr(owner, key) for key in _CLOCK}
    if name == "robot":
        return {key: getattr(owner, key) for key in _ROBOT}
    if name == "gripper":
        return {"current_action": owner.current_action}
    plain = (np.ndarray, bool, int, float, type(None))
    return {key: value for key, value in vars(owner).items() if isinstance(value, plain)}
