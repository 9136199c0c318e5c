"""Choice of grasps: where an open parallel gripper fits over an object and clear of everything else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .geometry import DOWN, count_inside, rotation_z

HAND: tuple[tuple[np.ndarray, np.ndarray], ...] = (
    (np.array([-0.067, -0.0125, -0.0445]), np.array([-0.038, 0.0125, 0.0095])),
    (np.array([0.038, -0.0125, -0.0445]), np.array([0.067, 0.0125, 0.0095])),
    (np.array([-0.104, -0.032, -0.30]), np.array([0.104, 0.032, -0.030])),
    (np.array([-0.057, -0.137, -0.30]), np.array([0.045, 0.045, -0.15])),
)
"""Boxes (low, high) of the open fingers, the palm and the wrist, in the frame of the point between the fingertips.

The palm reaches up as far as the wrist, so that the way down is free too.
"""

_PAD = (0.0116, 0.0044)  # the finger pads reach this far above and below the grip point
_HALF_OPENING = 0.036
_TIP = 0.0135  # the fingertips reach 9.5 mm below the grip point
_DEPTHS = (0.010, 0.018, 0.027)


@dataclass(frozen=True)
class Grasp:
    """Pose of the gripper at which it closes."""

    position: np.ndarray
    """Point (3,) between the fingertips, in metres."""
    yaw: float
    """Angle of the gripper about the vertical axis, in radians; at 0 it closes along the world's y axis."""
    cost: float
    """Cost of the grasp; above 10 something is in the way."""

    @property
    def rotation(self) -> np.ndarray:
        """Rotation (3, 3) of the gripper."""
        return rotation_z(self.yaw) @ DOWN


def hand_hits(points: np.ndarray, position: np.ndarray, rotation: np.ndarray, margin: float = 0.0) -> int:
    """Count the points inside an open gripper.

    Args:
        points: Points (N, 3) of obstacles.
        position: Point (3,) between the fingertips.
        rotation: Rotation (3, 3) of the gripper.
        margin: Width by which the gripper is enlarged, in metres.
    """
    local = (points - position) @ rotation
    return sum(count_inside(local, low - margin, high + margin) for low, high in HAND)


def find_grasp(
    surface: np.ndarray,
    obstacles: np.ndarray,
    mass_centre: np.ndarray,
    yaws: Sequence[float],
    failed: Sequence[Grasp] = (),
) -> Grasp | None:
    """Find the grasp from above of least cost: nothing in the way, near the centre of mass, narrow, little turned.

    Args:
        surface: Surface points (N, 3) of the object.
        obstacles: Points (M, 3) of everything else above the object's support.
        mass_centre: Centre of mass (3,) of the object.
        yaws: Angles of the gripper to try, in radians.
        failed: Grasps that did not work; others are preferred.

    Returns:
        The grasp, or None where the object is too wide everywhere.
    """
    grasps = [grasp for yaw in yaws for grasp in _grasps_at(surface, mass_centre, float(yaw))]
    grasps = [replace(g, cost=g.cost + 3.0 * sum(_similar(g, other) for other in failed)) for g in grasps]
    best: Grasp | None = None
    for grasp in sorted(grasps, key=lambda grasp: grasp.cost):
        if best is not None and grasp.cost >= best.cost:
            break
        hits = 3 * hand_hits(surface, grasp.position, grasp.rotation)
        hits += hand_hits(obstacles, grasp.position, grasp.rotation, 0.002)
        if best is None or grasp.cost + 10.0 * hits < best.cost:
            best = replace(grasp, cost=grasp.cost + 10.0 * hits)
    return best


def _similar(first: Grasp, second: Grasp) -> float:
    """Return 1 for the same grasp, less the farther apart two grasps are, 0 from 3 cm and half a right angle on."""
    apart = float(np.linalg.norm(first.position - second.position)) / 0.03 + abs(first.yaw - second.yaw) / 0.8
    return max(0.0, 1.0 - apart)


def _contact(pad: np.ndarray) -> float:
    """Return the extent of the surface that the pads meet, on the worse side, in metres: small at a slanted surface.

    Args:
        pad: Points (N, 2) between the pads: along the closing direction, along the pads.
    """
    near = (pad[:, 0] < pad[:, 0].min() + 0.003, pad[:, 0] > pad[:, 0].max() - 0.003)
    return min(float(np.ptp(pad[side, 1])) for side in near)


def _grasps_at(surface: np.ndarray, mass_centre: np.ndarray, yaw: float) -> list[Grasp]:
    """List the grasps at one angle of the gripper whose pads meet the object in the middle, by their own cost."""
    rotation = rotation_z(yaw) @ DOWN
    own, centre = surface @ rotation, mass_centre @ rotation
    low, high = own[:, :2].min(0), own[:, :2].max(0)
    columns = [
        np.arange(a + 0.004, b, 0.008) if b - a > 0.012 else np.array([(a + b) / 2])
        for a, b in zip(low, high, strict=True)
    ]
    grasps: list[Grasp] = []
    for y in columns[1]:
        strip = own[np.abs(own[:, 1] - y) < 0.009]
        for x in columns[0]:
            column = strip[np.abs(strip[:, 0] - x) < _HALF_OPENING]
            if len(column) == 0:
                continue
            for depth in _DEPTHS:
                # the approach axis points down: the top is the smallest coordinate; fingertips stay above the support
                z = min(column[:, 2].min() + depth, own[:, 2].max() - _TIP)
                pad = column[(column[:, 2] > z - _PAD[0]) & (column[:, 2] < z + _PAD[1]), :2]
                if len(pad) == 0 or abs((pad[:, 0].min() + pad[:, 0].max()) / 2 - x) > 0.0045:
                    continue
                point, width = np.array([(pad[:, 0].min() + pad[:, 0].max()) / 2, y, z]), float(np.ptp(pad[:, 0]))
                away = float(np.linalg.norm((point - centre)[:2]))
                cost = 40.0 * away + 0.8 * abs(yaw) + 20.0 * width + 100.0 * max(0.0, width - 0.055) - 40.0 * depth
                cost += 150.0 * max(0.0, 0.010 - _contact(pad))
                grasps.append(Grasp(rotation @ point, yaw, cost))
    return grasps
