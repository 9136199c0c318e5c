"""Picking an object up and putting it where a predicate wants it."""

from collections.abc import Callable, Sequence

import numpy as np

from ..goals import Predicate
from .geometry import raised
from .grasps import Grasp, find_grasp
from .motion import CLOSE, OPEN, Motion, clear_height, close_gripper, hold, move_to
from .placing import Carried, Placement, find_placement
from .scene import Scene

_YAWS = tuple(np.deg2rad([0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90]))
_TURNS = tuple(np.deg2rad([0, 30, -30, 60, -60, 90, -90]))


class PickAndPlace:
    """Skill for ``on`` and ``in``: reach, grasp, lift, carry, lower, let go.

    Args:
        scene: Simulator.
        predicate: Predicate to make true.
        goal: All predicates of the goal; objects that share a region are put side by side.
    """

    def __init__(self, scene: Scene, predicate: Predicate, goal: Sequence[Predicate]) -> None:
        self._scene, self._predicate = scene, predicate
        self._thing, self._target = predicate[1], predicate[2]
        self._sharing = [p[1] for p in goal if p[0] in ("on", "in") and p[2] == self._target]
        self._failed: list[Grasp] = []

    def run(self) -> Motion:
        """Yield the actions of one attempt; return whether the predicate is true at the end."""
        if not (yield from self._pick()):
            yield from self._retreat()
            return False
        if not (yield from self._place()):
            yield from self._retreat()
            return False
        return self._scene.holds(self._predicate)

    def _retreat(self) -> Motion:
        """Open the gripper and move up."""
        scene = self._scene
        at, rotation = scene.grip()
        yield from hold(scene, rotation, OPEN, 3)
        return (yield from move_to(scene, raised(at, 0.1), rotation, OPEN, tolerance=0.03, limit=15))

    def _open(self) -> bool:
        """Return whether the predicate is still false."""
        return not self._scene.holds(self._predicate)

    def _pick(self) -> Motion:
        """Grasp the object and lift it; return whether it came along."""
        scene = self._scene
        centre = scene.mass_centre(self._thing)
        surface = scene.surface(self._thing)
        around = scene.obstacles([self._thing], centre, 0.35)
        around = around[around[:, 2] > surface[:, 2].min() + 0.004]  # grasps stay above the support by themselves
        grasp = find_grasp(surface, around, centre, _YAWS, self._failed)
        if grasp is None:
            return False
        at, _ = scene.grip()
        height = clear_height(
            scene.obstacles([], (at + centre) / 2, 0.6, 0.015), at[:2], grasp.position[:2], 0.08, 0.012
        )
        above = np.array([*grasp.position[:2], max(grasp.position[2] + 0.08, height)])
        if at[2] < height - 0.01 and np.linalg.norm(at[:2] - above[:2]) > 0.05:
            yield from move_to(scene, np.array([*at[:2], height]), grasp.rotation, OPEN, tolerance=0.03, limit=30)
        yield from move_to(scene, above, grasp.rotation, OPEN, tolerance=0.02, limit=70, keep=self._open)
        if not self._open():
            return False
        moved = scene.mass_centre(self._thing) - centre
        yield from move_to(scene, grasp.position + moved, grasp.rotation, OPEN, tolerance=0.007, limit=40)
        self._failed.append(grasp)  # until it is lifted
        if not (yield from close_gripper(scene, grasp.rotation)):
            return False
        before, (low, _) = scene.position(self._thing), scene.grip()
        yield from move_to(scene, raised(low, 0.06), grasp.rotation, CLOSE, tolerance=0.02, limit=20)
        if scene.position(self._thing)[2] - before[2] < 0.02:
            return False
        self._failed.pop()
        return True

    def _place(self) -> Motion:
        """Carry the object to its target and let it go; return whether it was still held on arrival."""
        scene = self._scene
        placement = self._placement()
        if placement is None:
            return False
        (at, rotation), origin = scene.grip(), scene.position(self._thing)
        goal_origin = placement.position + placement.rotation @ rotation.T @ (origin - at)

        def wanted() -> np.ndarray:
            grip, turned = scene.grip()
            return goal_origin + placement.rotation @ turned.T @ (grip - scene.position(self._thing))

        def held() -> bool:
            return bool(np.linalg.norm(scene.position(self._thing) - scene.grip()[0]) < reach)

        reach = float(np.linalg.norm(origin - at)) + 0.05
        surface = scene.surface(self._thing)
        below = float(at[2] - surface[:, 2].min())
        radius = min(0.12, float(np.linalg.norm(surface[:, :2] - at[:2], axis=1).max()) + 0.015)
        others = scene.obstacles([self._thing], (at + placement.position) / 2, 0.6, 0.015)
        height = max(
            clear_height(others, at[:2], placement.position[:2], radius, max(below, 0.012)),
            placement.position[2] + 0.03,
        )
        if at[2] < height - 0.02:
            up = np.array([*at[:2], height])
            yield from move_to(scene, up, rotation, CLOSE, tolerance=0.02, limit=50, keep=held)
        over = lambda: np.array([*wanted()[:2], height])  # noqa: E731
        yield from move_to(scene, over, placement.rotation, CLOSE, tolerance=0.012, vertical=0.03, limit=110, keep=held)
        if not held():
            return False
        yield from move_to(scene, wanted, placement.rotation, CLOSE, tolerance=0.010, limit=40, keep=held)
        yield from hold(scene, placement.rotation, OPEN, 8)
        yield from move_to(scene, raised(scene.grip()[0], 0.08), placement.rotation, OPEN, tolerance=0.03, limit=15)
        return True

    def _placement(self) -> Placement | None:
        """Choose where to let the object go."""
        scene = self._scene
        grip, rotation = scene.grip()
        carried = Carried(scene.surface(self._thing), scene.position(self._thing), grip, rotation)
        spots, accepts, height = self._region()
        fixed = scene.obstacles([self._thing], np.array([*spots[0], height]), 0.35, 0.006)
        placement = find_placement(carried, spots, fixed, accepts)
        if placement is None or placement.drop > 0.03:
            turned = find_placement(carried, spots, fixed, accepts, _TURNS)
            placement = turned or placement
        return placement

    def _region(self) -> tuple[np.ndarray, Callable[[np.ndarray], bool], float]:
        """Return spots (N, 2) for the object's origin, a test of a resting origin (3,), and the region's height."""
        scene, problem = self._scene, self._scene.problem
        if self._target not in problem.object_sites_dict:
            centre = scene.position(self._target)
            return centre[None, :2], lambda origin: bool(origin[2] >= centre[2]), float(centre[2])
        site = problem.object_sites_dict[self._target]
        middle = np.array(problem.sim.data.get_site_xpos(self._target))
        matrix = np.array(problem.sim.data.get_site_xmat(self._target))
        inside = site.in_box if self._predicate[0] == "in" else site.under
        half = np.abs(matrix @ np.asarray(site.size, float))[:2]
        steps = np.linspace(-0.8, 0.8, 9)
        grid = np.stack(np.meshgrid(steps * half[0], steps * half[1]), -1).reshape(-1, 2)
        preferred = np.zeros(2)
        if len(self._sharing) > 1:
            share = self._sharing.index(self._thing) / (len(self._sharing) - 1) - 0.5
            longest = int(np.argmax(half))
            preferred[longest] = share * 1.1 * half[longest]
        spots = middle[:2] + grid[np.argsort(np.linalg.norm(grid - preferred, axis=1), kind="stable")]
        return spots, lambda origin: bool(inside(middle, matrix, origin)), float(middle[2])
