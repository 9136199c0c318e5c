"""Motions of the gripper as generators: each yields one action per control step and returns whether it arrived."""

from collections.abc import Callable, Generator

import numpy as np

from .geometry import rotation_vector, segment_distance
from .scene import Scene

Motion = Generator[np.ndarray, None, bool]
"""Generator of actions (7,) in [−1, 1]; its return value says whether the motion succeeded."""

OPEN, CLOSE = -1.0, 1.0
_MOVE_GAIN = 25.0  # action per metre: the largest action is a goal 5 cm ahead
_TURN_GAIN = 2.5  # action per radian: the largest action is a goal 0.5 rad ahead
_PROGRESS = 0.002  # a motion that comes no nearer than this, in metres, …
_PATIENCE = 8  # … for so many steps is stuck


def action_towards(
    scene: Scene, position: np.ndarray, rotation: np.ndarray, gripper: float, speed: float = 1.0
) -> np.ndarray:
    """Compute the action (7,) that moves the gripper towards a pose.

    Args:
        scene: Simulator.
        position: Wanted point (3,) between the fingertips, in metres.
        rotation: Wanted rotation (3, 3) of the gripper.
        gripper: −1 opens, 1 closes.
        speed: Largest translation of the action along each axis, in (0, 1].
    """
    at, turned = scene.grip()
    move = np.clip(_MOVE_GAIN * (position - at), -speed, speed)
    turn = np.clip(_TURN_GAIN * rotation_vector(rotation @ turned.T), -1.0, 1.0)
    return np.concatenate([move, turn, [gripper]])


def move_to(
    scene: Scene,
    position: np.ndarray | Callable[[], np.ndarray],
    rotation: np.ndarray,
    gripper: float,
    *,
    tolerance: float = 0.012,
    vertical: float | None = None,
    limit: int = 60,
    speed: float = 1.0,
    keep: Callable[[], bool] | None = None,
) -> Motion:
    """Move to a pose; return whether it was reached before the limit and before the arm got stuck.

    Args:
        scene: Simulator.
        position: Point (3,), or a function that returns it anew at each step.
        rotation: Rotation (3, 3) of the gripper.
        gripper: −1 opens, 1 closes.
        tolerance: Distance at which the point counts as reached, in metres.
        vertical: Vertical distance at which it does, if `tolerance` is for the plane only, in metres.
        limit: Largest number of control steps.
        speed: Largest translation of an action along each axis, in (0, 1].
        keep: Condition checked at each step; the motion ends as failed once it is false.
    """
    best, since = np.inf, 0
    for _ in range(limit):
        wanted = position() if callable(position) else position
        at, turned = scene.grip()
        off = float(np.linalg.norm(rotation_vector(rotation @ turned.T)))
        apart = wanted - at
        far = float(np.linalg.norm(apart))
        near = far < tolerance if vertical is None else np.hypot(*apart[:2]) < tolerance and abs(apart[2]) < vertical
        if near and off < 0.15:
            return True
        best, since = (far + 0.05 * off, 0) if far + 0.05 * off < best - _PROGRESS else (best, since + 1)
        if since > _PATIENCE or (keep is not None and not keep()):
            return False
        yield action_towards(scene, wanted, rotation, gripper, speed)
    return False


def close_gripper(scene: Scene, rotation: np.ndarray, limit: int = 14) -> Motion:
    """Close the gripper in place until the fingers stop; return whether something is between them.

    Args:
        scene: Simulator.
        rotation: Rotation (3, 3) to keep.
        limit: Largest number of control steps.
    """
    position, _ = scene.grip()
    before, still = scene.finger_gap(), 0
    for step in range(limit):
        yield action_towards(scene, position, rotation, CLOSE)
        gap = scene.finger_gap()
        still = still + 1 if step > 4 and abs(gap - before) < 4e-4 else 0
        before = gap
        if still >= 3:
            break
    return scene.finger_gap() > 0.002


def hold(scene: Scene, rotation: np.ndarray, gripper: float, steps: int) -> Motion:
    """Stay in place with the gripper opening or closing.

    Args:
        scene: Simulator.
        rotation: Rotation (3, 3) to keep.
        gripper: −1 opens, 1 closes.
        steps: Number of control steps.
    """
    position, _ = scene.grip()
    for _ in range(steps):
        yield action_towards(scene, position, rotation, gripper)
    return True


def clear_height(
    obstacles: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, reach_below: float, margin: float = 0.025
) -> float:
    """Return the height of the grip point at which everything carried passes over the obstacles, in metres.

    Args:
        obstacles: Points (N, 3) of the obstacles.
        start: Point (2,) in the plane where the way starts.
        end: Point (2,) in the plane where it ends.
        radius: Half width of what is carried and of the hand, in metres.
        reach_below: Depth of the lowest carried point below the grip point, in metres.
        margin: Distance to keep, in metres.
    """
    below = obstacles[segment_distance(obstacles[:, :2], start, end) < radius]
    return (float(below[:, 2].max()) if len(below) else 0.0) + reach_below + margin
