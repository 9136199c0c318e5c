"""Pushing a flat dish along the table."""

import numpy as np

from ..goals import Predicate
from .geometry import DOWN, raised
from .joints import approach
from .motion import CLOSE, OPEN, Motion, action_towards, move_to
from .scene import Scene


def push_dish(scene: Scene, predicate: Predicate) -> Motion:
    """Lower the closed fingertips into a dish and drag it by its rim to a region of the table.

    Args:
        scene: Simulator.
        predicate: ``on`` with a dish and a region.
    """
    thing, target = predicate[1], np.array(scene.problem.sim.data.get_site_xpos(predicate[2]))

    def direction() -> np.ndarray:
        way = (target - scene.position(thing)) * np.array([1.0, 1.0, 0.0])
        return way / max(float(np.linalg.norm(way)), 1e-6)

    surface = scene.surface(thing)
    radius = float(np.ptp(surface[:, 0])) / 2
    inside = scene.position(thing) + 0.3 * radius * direction()
    near = surface[np.hypot(*(surface[:, :2] - inside[:2]).T) < 0.02]
    height = (float(near[:, 2].max()) if len(near) else float(surface[:, 2].min())) + 0.006  # pressed down a little
    start = np.array([*inside[:2], height])
    yield from approach(scene, raised(start, 0.07), DOWN, CLOSE)
    yield from move_to(scene, start, DOWN, CLOSE, tolerance=0.008, limit=40)
    for _ in range(120):
        if scene.holds(predicate):
            break
        left = float(np.linalg.norm((target - scene.position(thing))[:2]))
        at, _ = scene.grip()
        wanted = np.array([*(at + min(0.03, left + 0.01) * direction())[:2], height])
        yield action_towards(scene, wanted, DOWN, CLOSE)
        if float(np.linalg.norm((scene.grip()[0] - scene.position(thing))[:2])) > radius + 0.02:
            break
    return (yield from move_to(scene, raised(scene.grip()[0], 0.1), DOWN, OPEN, tolerance=0.03, limit=20))
