"""Rotations, surface points of boxes, and clearance counts for planning with a parallel gripper."""

import numpy as np

DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Rotation of a gripper that points down and closes along the world's y axis (columns: closing, side, approach)."""


def rotation_z(angle: float) -> np.ndarray:
    """Return the rotation (3, 3) about the vertical axis.

    Args:
        angle: Angle in radians.
    """
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def raised(point: np.ndarray, height: float) -> np.ndarray:
    """Return a point (3,) moved up by a height in metres.

    Args:
        point: Point (3,).
        height: Height to add, in metres.
    """
    return point + np.array([0.0, 0.0, height])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Convert a rotation (3, 3) into axis times angle (3,), in radians.

    Args:
        rotation: Rotation matrix (3, 3).
    """
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    length = np.linalg.norm(skew)
    if length > 1e-9:
        return skew / length * angle
    if angle < 1e-3:
        return np.zeros(3)
    # half a turn: the axis is the eigenvector of eigenvalue 1
    axis = np.sqrt(np.maximum((np.diag(rotation) + 1) / 2, 0.0))
    largest = int(np.argmax(axis))
    signs = np.where(rotation[largest] + rotation[:, largest] < 0, -1.0, 1.0)
    signs[largest] = 1.0
    return axis * signs * angle


def box_points(half: np.ndarray, spacing: float, around: np.ndarray, reach: float) -> np.ndarray:
    """Sample points (N, 3) on the surface of a box, in the frame of the box.

    Args:
        half: Half sizes (3,) of the box, in metres.
        spacing: Largest distance between neighbouring points, in metres.
        around: Point (3,) of interest in the frame of the box.
        reach: Largest distance from `around` along each axis, in metres; large boxes are cut to it.
    """
    low, high = np.maximum(-half, around - reach), np.minimum(half, around + reach)
    if np.any(low > high):
        return np.zeros((0, 3))
    axes = [np.linspace(a, b, max(2, int(np.ceil((b - a) / spacing)) + 1)) for a, b in zip(low, high, strict=True)]
    faces: list[np.ndarray] = []
    for axis in range(3):
        first, second = (axes[k] for k in range(3) if k != axis)
        grid = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
        faces += [np.insert(grid, axis, side, axis=1) for side in (low[axis], high[axis])]
    return np.concatenate(faces)


def height_map(points: np.ndarray, cell: float, lowest: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the occupied cells (K, 2) of the plane and the lowest or highest z (K,) of the points in each.

    Args:
        points: Points (N, 3) in metres.
        cell: Side of a square cell, in metres.
        lowest: Whether to keep the lowest point of a cell instead of the highest.
    """
    cells = np.floor(points[:, :2] / cell).astype(int)
    arranged = np.lexsort((points[:, 2] if lowest else -points[:, 2], cells[:, 1], cells[:, 0]))
    cells, heights = cells[arranged], points[arranged, 2]
    first = np.ones(len(cells), bool)
    first[1:] = np.any(cells[1:] != cells[:-1], axis=1)
    return cells[first], heights[first]


class Terrain:
    """Highest points of a scene over a grid of the plane: how far can an object be lowered at each place?

    Args:
        points: Surface points (N, 3) of everything that stands there.
        cell: Side of a square cell, in metres.
    """

    def __init__(self, points: np.ndarray, cell: float = 0.006) -> None:
        cells, heights = height_map(points, cell, lowest=False)
        self.cell = cell
        self._origin = cells.min(0) if len(cells) else np.zeros(2, int)
        size = cells.max(0) - self._origin + 1 if len(cells) else (0, 0)
        self._top = np.full(size, -np.inf)
        self._top[tuple((cells - self._origin).T)] = heights

    def drop(self, cells: np.ndarray, heights: np.ndarray, shift: np.ndarray) -> float:
        """Return how far an object can move straight down before it touches the scene, in metres.

        Args:
            cells: Occupied cells (K, 2) of the object, as `height_map` returns them.
            heights: Lowest points (K,) of the object, in metres.
            shift: Displacement (2,) of the object in the plane, rounded to whole cells, in metres.

        Returns:
            The distance, negative where the object already reaches below a surface, infinite where nothing is below.
        """
        moved = cells - self._origin + np.rint(np.asarray(shift) / self.cell).astype(int)
        known = np.all((moved >= 0) & (moved < self._top.shape), axis=1)
        if not known.any():
            return float("inf")
        return float((heights[known] - self._top[tuple(moved[known].T)]).min())


def count_inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> int:
    """Count the points (N, 3) inside an axis-aligned box.

    Args:
        points: Points (N, 3).
        low: Lower corner (3,).
        high: Upper corner (3,).
    """
    return int(np.count_nonzero(np.all((points > low) & (points < high), axis=1)))


def segment_distance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distance (N,) of points to a line segment.

    Args:
        points: Points (N, D).
        start: First end (D,) of the segment.
        end: Second end (D,) of the segment.
    """
    along = end - start
    share = np.clip((points - start) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
    return np.linalg.norm(points - start - share[:, None] * along, axis=1)
