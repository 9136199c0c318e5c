# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false
"""Opening and closing of drawers and doors, and turning of knobs."""

from collections.abc import Sequence

import numpy as np

from ..goals import Predicate
from .geometry import DOWN, raised, rotation_vector, rotation_z
from .grasps import hand_hits
from .motion import CLOSE, OPEN, Motion, action_towards, clear_height, close_gripper, hold, move_to
from .scene import Joint, Scene


def joint_skill(scene: Scene, predicate: Predicate) -> Motion:
    """Return the motion that makes ``open``, ``close``, ``turnon`` or ``turnoff`` true.

    Args:
        scene: Simulator.
        predicate: Predicate to make true.
    """
    verb, joint = predicate[0], scene.joint(predicate[1])
    if verb in ("turnon", "turnoff"):
        return turn_knob(scene, joint, predicate)
    if verb == "close":
        return push_drawer(scene, joint, predicate) if joint.slides else push_door(scene, joint, predicate)
    return pull_drawer(scene, joint, predicate)


def facing(outward: np.ndarray, lean: float, *, upright: bool) -> list[np.ndarray]:
    """Return the two rotations (3, 3) of a gripper that points against a horizontal direction and down.

    Args:
        outward: Horizontal unit vector (3,) out of the surface that the gripper faces.
        lean: Angle between the approach and the vertical, in radians: 0 points down, π/2 is horizontal.
        upright: Whether the fingers lie above each other instead of side by side.
    """
    approach = -np.sin(lean) * outward - np.array([0.0, 0.0, np.cos(lean)])
    closing = np.cross(np.array([0.0, 0.0, 1.0]), outward)
    if upright:
        closing = np.cross(approach, closing)
    return [np.column_stack([s * closing, np.cross(approach, s * closing), approach]) for s in (1.0, -1.0)]


def freest(scene: Scene, joint: Joint, rotations: Sequence[np.ndarray], point: np.ndarray) -> np.ndarray:
    """Choose the rotation at which the hand has most room, and of those the one nearest to pointing down.

    Args:
        scene: Simulator.
        joint: Joint whose own body does not count as an obstacle.
        rotations: Rotations (3, 3) of the gripper.
        point: Point (3,) between the fingertips.
    """
    around = scene.around_joint(joint, point, 0.35)

    def cost(rotation: np.ndarray) -> float:
        return hand_hits(around, point, rotation) + float(np.linalg.norm(rotation_vector(rotation @ DOWN.T)))

    return min(rotations, key=cost)


def pull_drawer(scene: Scene, joint: Joint, predicate: Predicate) -> Motion:
    """Grasp the bar of a drawer from the front and pull it out."""
    outward = joint.opening
    handle = scene.handle(joint)
    rotation = freest(scene, joint, facing(outward, np.pi / 2, upright=True), handle + 0.004 * outward)
    yield from approach(scene, handle + 0.12 * outward, rotation, OPEN)
    if not (yield from move_to(scene, handle + 0.004 * outward, rotation, OPEN, tolerance=0.01, limit=50)):
        if float((scene.grip()[0] - handle) @ outward) > 0.03:
            return (yield from back_off(scene, outward))
    yield from close_gripper(scene, rotation)
    start, _ = scene.grip()
    for _ in range(60):
        if scene.holds(predicate):
            break
        yield action_towards(scene, start + 0.22 * outward, rotation, CLOSE, 0.7)
        if float(np.linalg.norm(scene.grip()[0] - scene.handle(joint))) > 0.05:
            break
    return (yield from back_off(scene, outward))


def push_drawer(scene: Scene, joint: Joint, predicate: Predicate) -> Motion:
    """Push a drawer shut with the closed fingertips on its bar, the hand leaning outward."""
    outward = joint.opening
    handle = scene.handle(joint)
    shut = handle - scene.opened_by(joint) * outward
    options = [r for lean in (38, 50) for r in facing(outward, np.deg2rad(lean), upright=False)]
    rotation = freest(scene, joint, options, shut + 0.02 * outward)
    yield from approach(scene, handle + 0.08 * outward, rotation, CLOSE)
    for _ in range(80):
        if scene.holds(predicate):
            break
        yield action_towards(scene, raised(scene.handle(joint) - 0.05 * outward, -0.003), rotation, CLOSE, 0.8)
    return (yield from back_off(scene, outward))


def push_door(scene: Scene, joint: Joint, predicate: Predicate) -> Motion:
    """Push a hinged door shut along its arc with the closed fingertips."""
    for _ in range(3):
        point, normal = scene.door_face(joint)
        rotation = freest(scene, joint, facing(normal, np.deg2rad(20), upright=False), point + 0.02 * normal)
        yield from approach(scene, point + 0.08 * normal, rotation, CLOSE)
        for _ in range(100):
            if scene.holds(predicate):
                return (yield from back_off(scene, scene.door_face(joint)[1]))
            point, normal = scene.door_face(joint)
            yield action_towards(scene, point - 0.05 * normal, rotation, CLOSE)
            if float((scene.grip()[0] - point) @ normal) > 0.08:
                break
    return False


def turn_knob(scene: Scene, joint: Joint, predicate: Predicate) -> Motion:
    """Grasp the fin of a knob from above and turn it about its axis."""
    sense = 1.0 if predicate[0] == "turnon" else -1.0
    grip, yaw = scene.fin(joint)
    rotation = rotation_z(yaw) @ DOWN
    yield from approach(scene, raised(grip, 0.09), rotation, OPEN)
    yield from move_to(scene, grip, rotation, OPEN, tolerance=0.008, limit=40)
    yield from close_gripper(scene, rotation)
    turned = 0.0
    for _ in range(50):
        if scene.holds(predicate):
            break
        turned = min(turned + 0.12, 1.5)
        yield action_towards(scene, grip, rotation_z(sense * turned) @ rotation, CLOSE)
    at, rotation = scene.grip()
    yield from hold(scene, rotation, OPEN, 4)
    return (yield from move_to(scene, raised(at, 0.1), rotation, OPEN, tolerance=0.03, limit=20))


def approach(scene: Scene, point: np.ndarray, rotation: np.ndarray, gripper: float) -> Motion:
    """Move over the obstacles to a point near a fixture.

    Args:
        scene: Simulator.
        point: Point (3,) to reach.
        rotation: Rotation (3, 3) to reach.
        gripper: −1 opens, 1 closes.
    """
    at, turned = scene.grip()
    around = scene.obstacles([], (at + point) / 2, 0.6, 0.015)
    height = max(float(point[2]), clear_height(around, at[:2], point[:2], 0.06, 0.03, 0.02))
    if at[2] < height - 0.03 and np.hypot(*(at - point)[:2]) > 0.05:
        yield from move_to(scene, np.array([*at[:2], height]), turned, gripper, tolerance=0.03, limit=30)
    over = np.array([*point[:2], height])
    yield from move_to(scene, over, rotation, gripper, tolerance=0.03, limit=80)
    return (yield from move_to(scene, point, rotation, gripper, tolerance=0.02, limit=50))


def back_off(scene: Scene, outward: np.ndarray) -> Motion:
    """Open the gripper, move away from a fixture and then up.

    Args:
        scene: Simulator.
        outward: Direction (3,) away from it.
    """
    at, rotation = scene.grip()
    yield from hold(scene, rotation, OPEN, 5)
    yield from move_to(scene, at + 0.07 * outward, rotation, OPEN, tolerance=0.02, limit=15)
    at, rotation = scene.grip()
    yield from move_to(scene, raised(at, 0.08), rotation, OPEN, tolerance=0.03, limit=15)
    return True
