# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false
"""Poses, surfaces and joints that the scripted expert reads from LIBERO's simulator."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from .geometry import box_points

_ROBOT = ("robot0", "gripper0", "mount0")


class Scene:
    """View of a LIBERO problem: names in, positions and surface points out.

    Args:
        problem: LIBERO's inner environment (`ControlEnv.env`).
    """

    def __init__(self, problem: Any) -> None:
        self.problem = problem
        self.model, self.data = problem.sim.model._model, problem.sim.data._data
        model = self.model
        self._geoms: dict[int, list[int]] = {}
        for geom in range(model.ngeom):
            body = int(model.geom_bodyid[geom])
            collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
            if collides and not model.body(body).name.startswith(_ROBOT):
                self._geoms.setdefault(body, []).append(geom)

    def grip(self) -> tuple[np.ndarray, np.ndarray]:
        """Return position (3,) and rotation (3, 3) of the point between the fingertips."""
        site = self.data.site("gripper0_grip_site")
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    def finger_gap(self) -> float:
        """Return the distance between the fingers, in metres."""
        left, right = (self.data.joint(f"gripper0_finger_joint{k}").qpos[0] for k in (1, 2))
        return float(left - right)

    def body(self, name: str) -> int:
        """Return the index of the root body of an object or fixture."""
        return int(self.problem.obj_body_id[name])

    def position(self, name: str) -> np.ndarray:
        """Return the position (3,) of the body of an object or fixture."""
        return self.data.xpos[self.body(name)].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Return the rotation (3, 3) of the body of an object or fixture."""
        return self.data.xmat[self.body(name)].reshape(3, 3).copy()

    def mass_centre(self, name: str) -> np.ndarray:
        """Return the centre of mass (3,) of an object and all its parts."""
        return self.data.subtree_com[self.body(name)].copy()

    def holds(self, predicate: Iterable[str]) -> bool:
        """Return whether a predicate is true now."""
        return bool(self.problem._eval_predicate(list(predicate)))

    def bodies(self, root: int) -> list[int]:
        """Return the indices of a body and of all bodies below it."""
        inside = {root}
        for body in range(root + 1, self.model.nbody):
            if int(self.model.body_parentid[body]) in inside:
                inside.add(body)
        return sorted(inside)

    def points(self, bodies: Iterable[int], spacing: float = 0.005, reach: float = 0.5) -> np.ndarray:
        """Sample surface points (N, 3) of the collision shapes of bodies, in the world.

        Args:
            bodies: Indices of bodies.
            spacing: Distance of neighbouring points, in metres.
            reach: Largest distance of points from the middle of the first body, for large shapes, in metres.
        """
        bodies = list(bodies)
        centre = self.data.xpos[bodies[0]] if bodies else np.zeros(3)
        return self._sample([g for b in bodies for g in self._geoms.get(b, ())], centre, spacing, reach)

    def surface(self, name: str, spacing: float = 0.005) -> np.ndarray:
        """Sample surface points (N, 3) of an object or fixture."""
        return self.points(self.bodies(self.body(name)), spacing)

    def obstacles(self, without: Iterable[str], centre: np.ndarray, reach: float, spacing: float = 0.008) -> np.ndarray:
        """Sample surface points (N, 3) of everything but the robot and some objects.

        Args:
            without: Names of objects that are left out.
            centre: Middle (3,) of the part of the scene that matters.
            reach: Half size of that part along each axis, in metres.
            spacing: Distance of neighbouring points, in metres.
        """
        left_out = {body for name in without for body in self.bodies(self.body(name))}
        geoms = [g for body, own in self._geoms.items() if body not in left_out for g in own]
        points = self._sample(geoms, centre, spacing, reach)
        return points[np.all(np.abs(points - centre) < reach, axis=1)]

    def _sample(self, geoms: list[int], centre: np.ndarray, spacing: float, reach: float) -> np.ndarray:
        """Sample the surfaces of geoms near a point; other shapes than boxes count as their bounding boxes."""
        parts = [np.zeros((0, 3))]
        for geom in geoms:
            rotation, origin = self.data.geom_xmat[geom].reshape(3, 3), self.data.geom_xpos[geom]
            if self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE:
                middle, half = np.zeros(3), np.array([3.0, 3.0, 1e-4])
            else:
                middle, half = self.model.geom_aabb[geom][:3], self.model.geom_aabb[geom][3:]
            around = (centre - origin) @ rotation - middle
            if np.any(np.abs(around) - half > 2 * reach):
                continue
            local = box_points(half, spacing, around, 1.8 * reach)
            parts.append((local + middle) @ rotation.T + origin)
        return np.concatenate(parts)

    def joint(self, name: str) -> "Joint":
        """Return the joint of a drawer region, a door or a stove.

        Raises:
            ValueError: If it has none.
        """
        region = self.problem.object_sites_dict.get(name)
        names = region.joints if region is not None else self.problem.get_object(name).joints
        if not names:
            raise ValueError(f"expected a drawer, door or knob, got {name!r}, which has no joint")
        parent = region.parent_name if region is not None else name
        ranges = self.problem.get_object(parent).object_properties["articulation"]
        opened = np.mean(ranges.get("default_open_ranges") or ranges.get("default_turnon_ranges") or [1.0])
        index = int(self.model.joint(names[0]).id)
        return Joint(
            index=index,
            body=int(self.model.jnt_bodyid[index]),
            slides=bool(self.model.jnt_type[index] == mujoco.mjtJoint.mjJNT_SLIDE),
            opening=np.sign(opened) * self.data.xaxis[index],
            anchor=self.data.xanchor[index].copy(),
        )

    def around_joint(self, joint: "Joint", centre: np.ndarray, reach: float) -> np.ndarray:
        """Sample surface points (N, 3) near a point of everything but the robot and the body that a joint moves."""
        geoms = [g for body, own in self._geoms.items() if body != joint.body for g in own]
        points = self._sample(geoms, centre, 0.008, reach)
        return points[np.all(np.abs(points - centre) < reach, axis=1)]

    def opened_by(self, joint: "Joint") -> float:
        """Return how far a joint is open, in metres or radians."""
        return abs(float(self.data.qpos[self.model.jnt_qposadr[joint.index]]))

    def handle(self, joint: "Joint") -> np.ndarray:
        """Return the middle (3,) of the part of a drawer that stands out farthest: its bar."""
        geoms = self._geoms[joint.body]
        out = [float(self.data.geom_xpos[g] @ joint.opening) for g in geoms]
        return self.data.geom_xpos[geoms[int(np.argmax(out))]].copy()

    def fin(self, joint: "Joint") -> tuple[np.ndarray, float]:
        """Return where a knob is grasped, (3,), and the angle of the gripper that closes on its fin."""
        points = self._sample(self._geoms[joint.body], joint.anchor, 0.004, 0.3)
        top = points[points[:, 2] > points[:, 2].max() - 0.015]
        centred = top[:, :2] - top[:, :2].mean(0)
        angles = np.deg2rad(np.arange(-90, 90, 5))
        widths = [np.ptp(centred @ np.array([-np.sin(a), np.cos(a)])) for a in angles]
        yaw = float(angles[int(np.argmin(np.asarray(widths) + 0.002 * np.abs(angles)))])
        return np.array([*joint.anchor[:2], points[:, 2].max() - 0.012]), yaw

    def door_face(self, joint: "Joint") -> tuple[np.ndarray, np.ndarray]:
        """Return a point (3,) on the outside of a hinged door and the outward normal (3,) there."""
        boxes = [g for g in self._geoms[joint.body] if self.model.geom_type[g] == mujoco.mjtGeom.mjGEOM_BOX]
        panel = max(boxes, key=lambda g: float(np.prod(np.sort(self.model.geom_size[g])[1:])))
        others = [self.data.geom_xpos[g] for g in self._geoms[joint.body] if g != panel]
        middle, rotation = self.data.geom_xpos[panel], self.data.geom_xmat[panel].reshape(3, 3)
        thin = int(np.argmin(self.model.geom_size[panel]))
        normal = rotation[:, thin].copy()
        if others and float((np.mean(others, 0) - middle) @ normal) < 0:
            normal = -normal
        along = (middle - joint.anchor) * np.array([1.0, 1.0, 0.0])
        return middle + 0.3 * along + self.model.geom_size[panel][thin] * normal, normal


@dataclass(frozen=True)
class Joint:
    """Joint of a drawer, a door or a knob."""

    index: int
    """Index of the joint."""
    body: int
    """Index of the body that it moves."""
    slides: bool
    """Whether it slides instead of turns."""
    opening: np.ndarray
    """Axis (3,), turned so that a motion along it opens or switches on."""
    anchor: np.ndarray
    """Point (3,) on the axis."""
