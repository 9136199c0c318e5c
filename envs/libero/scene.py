# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false
"""Poses, surfaces and joints that the scripted expert reads from LIBERO's simulator."""

from collections.abc import Iterable
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
