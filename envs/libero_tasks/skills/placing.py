"""Choice of where a carried object is put down."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .geometry import Terrain, height_map, raised, rotation_z
from .grasps import hand_hits

_STRADDLE = 0.012  # an object that rests this much higher than elsewhere stands on a rim, in metres
_LIFTS = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.10, 0.13, 0.16)


@dataclass(frozen=True)
class Placement:
    """Pose of the gripper at which it lets a carried object go."""

    position: np.ndarray
    """Point (3,) between the fingertips, in metres."""
    rotation: np.ndarray
    """Rotation (3, 3) of the gripper."""
    drop: float
    """Height above the support at which the object is let go, in metres."""
    cost: float
    """Cost of the placement."""


@dataclass(frozen=True)
class Carried:
    """Carried object relative to the gripper that holds it."""

    surface: np.ndarray
    """Surface points (N, 3) in the world."""
    origin: np.ndarray
    """Position (3,) of the object's body in the world."""
    grip: np.ndarray
    """Point (3,) between the fingertips."""
    rotation: np.ndarray
    """Rotation (3, 3) of the gripper."""

    def turned(self, angle: float) -> "Carried":
        """Return the same object after a turn of the gripper about the vertical axis through the object's origin."""
        turn = rotation_z(angle)
        return Carried(
            (self.surface - self.origin) @ turn.T + self.origin,
            self.origin,
            (self.grip - self.origin) @ turn.T + self.origin,
            turn @ self.rotation,
        )


def find_placement(
    carried: Carried,
    spots: np.ndarray,
    fixed: np.ndarray,
    accepts: Callable[[np.ndarray], bool],
    angles: tuple[float, ...] = (0.0,),
) -> Placement | None:
    """Find the best pose to let an object go: in the goal region, low, with room for the hand.

    Args:
        carried: Object and gripper.
        spots: Points (N, 2) for the object's origin, best first.
        fixed: Points (M, 3) of everything that stands around.
        accepts: Whether an origin (3,) of the resting object fulfils the goal.
        angles: Turns of the gripper to try, in radians.

    Returns:
        The placement of least cost, or None where no spot fulfils the goal.
    """
    terrain = Terrain(fixed)
    best: Placement | None = None
    for angle in angles:
        turned = carried.turned(angle)
        cells, heights = height_map(turned.surface, terrain.cell, lowest=True)
        options: list[tuple[float, np.ndarray]] = []
        for rank, spot in enumerate(spots):
            shift = spot - turned.origin[:2]
            fall = terrain.drop(cells, heights, shift)
            rest = turned.origin + np.array([*shift, -fall])
            if np.isfinite(fall) and accepts(raised(rest, 0.002)):
                options.append((0.02 * rank + 0.5 * abs(angle) + 20.0 * rest[2], rest - turned.origin))
        lowest = min((move[2] for _, move in options), default=0.0)
        options = [(base, move) for base, move in options if move[2] < lowest + _STRADDLE]
        for base, move in sorted(options, key=lambda option: option[0]):
            if best is not None and base >= best.cost:
                break
            grip = turned.grip + move
            near = fixed[np.all(np.abs(fixed[:, :2] - grip[:2]) < 0.2, axis=1)]
            blocked = [hand_hits(near, raised(grip, lift), turned.rotation) for lift in _LIFTS]
            free = next((k for k, hits in enumerate(blocked) if hits == 0), int(np.argmin(blocked)))
            cost = base + 30.0 * _LIFTS[free] + min(50.0, 1.0 * blocked[free])
            if best is None or cost < best.cost:
                best = Placement(raised(grip, _LIFTS[free]), turned.rotation, _LIFTS[free], cost)
    return best
