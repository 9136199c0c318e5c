# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
"""Where things are in a LIBERO simulation: the robot, every object and fixture, and what the goal is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

_RANGES = {
    "open": "default_open_ranges",
    "close": "default_close_ranges",
    "turnon": "default_turnon_ranges",
    "turnoff": "default_turnoff_ranges",
}
"""Where LIBERO keeps the joint positions at which a predicate of one argument holds."""


class Places:
    """Reader of positions out of the simulation of one task.

    Nothing is recomputed: positions are those of the last internal step.

    Args:
        problem: Environment of robosuite.
        parts: Predicates that are made true one after another; see `guerdon.envs.libero_tasks.goals.order`.
    """

    def __init__(self, problem: Any, parts: Sequence[Sequence[str]]) -> None:
        robot, model = problem.robots[0], problem.sim.model._model
        self._hand_site = robot.eef_site_id
        self._hand_body = model.body(robot.robot_model.eef_name).id
        self._fingers = list(robot._ref_gripper_joint_pos_indexes)
        self._arm = list(robot._ref_joint_pos_indexes)
        self._bodies: dict[str, int] = {
            name: body for name, body in problem.obj_body_id.items() if not name.endswith(("table", "floor"))
        }
        self._joints: dict[str, list[int]] = {
            name: [model.joint(joint).qposadr[0] for joint in fixture.joints]
            for name, fixture in problem.fixtures_dict.items()
            if name in self._bodies
        }
        self._subjects = [_subject(problem, model, part) for part in parts]
        self._model = model

    def robot(self, data: mujoco.MjData) -> np.ndarray:
        """Return the robot's own state (15,): hand position and axis-angle, fingers, arm joints."""
        hand = (data.site_xpos[self._hand_site], axis_angle(data.xquat[self._hand_body]))
        return np.concatenate([*hand, data.qpos[self._fingers], data.qpos[self._arm]])

    def block(self, data: mujoco.MjData, name: str) -> np.ndarray:
        """Return what the state holds of an object or fixture; nothing (0,) if the scene does not have it."""
        if name not in self._bodies:
            return np.zeros(0)
        body = self._bodies[name]
        turned = data.xmat[body].reshape(3, 3)[:, :2].T.reshape(-1)
        joints = data.qpos[self._joints.get(name, [])]
        return np.concatenate([data.xpos[body], turned, [1.0], joints])

    def tracks(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
        """Return the tracks: points (3,) in metres, and the opening of the gripper (1,) in metres."""
        left, right = data.qpos[self._fingers]
        found = {"end_effector": data.site_xpos[self._hand_site], "gripper": np.array([left - right])}
        for number, subject in enumerate(self._subjects):
            end = f"_{number + 1}" if number else ""
            found[f"object{end}"], found[f"goal{end}"] = subject.points(self._model, data)
        found |= {name: data.xpos[body] for name, body in self._bodies.items()}
        return {name: point.astype(np.float32) for name, point in found.items()}


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Convert a quaternion (w, x, y, z) to axis times angle (3,), with an angle in [0, 2π], as robosuite does.

    Args:
        quaternion: Unit quaternion (4,).
    """
    w = float(np.clip(quaternion[0], -1.0, 1.0))
    length = np.sqrt(1.0 - w * w)
    return np.zeros(3) if length < 1e-9 else np.asarray(quaternion[1:] * (2.0 * np.arccos(w) / length))


@dataclass(frozen=True)
class _Moved:
    """Object that the first predicate of a goal moves, and where to."""

    body: int
    """Number of the object's body."""
    target: int
    """Number of the site or body it goes to."""
    to_site: bool
    """Whether it goes to a site."""

    def points(self, model: mujoco.MjModel, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """Return where it is, and where it should be, (3,) each."""
        return data.xpos[self.body], (data.site_xpos if self.to_site else data.xpos)[self.target]


@dataclass(frozen=True)
class _Turned:
    """Drawer, door or knob that the first predicate of a goal moves about its joint."""

    joint: int
    """Number of the joint."""
    handle: int
    """Number of the shape at which it is taken: the outermost one."""
    position: float
    """Position of the joint at which the predicate holds."""

    def points(self, model: mujoco.MjModel, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """Return where the handle is, and where it should be, (3,) each."""
        here, axis, anchor = data.geom_xpos[self.handle], data.xaxis[self.joint], data.xanchor[self.joint]
        left = self.position - data.qpos[model.jnt_qposadr[self.joint]]
        if model.jnt_type[self.joint] == mujoco.mjtJoint.mjJNT_SLIDE:
            return here, here + left * axis
        return here, anchor + Rotation.from_rotvec(left * axis).apply(here - anchor)


def _subject(problem: Any, model: mujoco.MjModel, predicate: Sequence[str]) -> _Moved | _Turned:
    """Find what a predicate is about."""
    if len(predicate) == 3:
        _, moved, target = predicate
        to_site = target in problem.object_sites_dict
        number = model.site(target).id if to_site else problem.obj_body_id[target]
        return _Moved(problem.obj_body_id[moved], number, to_site)
    verb, name = predicate
    part = problem.object_sites_dict.get(name)
    owner = problem.get_object(name if part is None else part.parent_name)
    joint = model.joint((owner if part is None else part).joints[0]).id
    ranges = owner.object_properties["articulation"][_RANGES[verb]]
    return _Turned(joint, _handle(model, problem.sim.data._data, joint), float(np.mean(ranges)))


def _handle(model: mujoco.MjModel, data: mujoco.MjData, joint: int) -> int:
    """Find the shape furthest out: along the way a drawer opens, or away from the axis of a door or knob."""
    shapes = np.flatnonzero(model.geom_bodyid == model.jnt_bodyid[joint])
    axis, offset = data.xaxis[joint], data.geom_xpos[shapes] - data.xanchor[joint]
    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE:
        return int(shapes[(offset @ (axis * np.sign(model.jnt_range[joint].sum()))).argmax()])
    return int(shapes[np.linalg.norm(offset - np.outer(offset @ axis, axis), axis=1).argmax()])
