# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportPrivateUsage=false
"""Faster steps of Meta-World's environments, with the same results bit by bit.

Most of a step of Meta-World is spent in Python: it reads every contact of the simulation twice through MuJoCo's slow
list of contacts, turns a matrix into a quaternion with scipy, and splits and stacks small arrays. `faster_class` makes
a subclass of one environment's class that computes the same numbers from whole arrays and plain floats. Classes of the
package itself stay as they are.

A method is replaced only where the installed package has the source code that its replacement was written against.
"""

import hashlib
import inspect
from functools import cache
from math import sqrt
from types import FunctionType
from typing import Any

import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from scipy.spatial.transform import Rotation

_SOURCES = {
    "touching_object": "b8e2c6f38fd9bb0c68d8bef7b19e841515141da727e32cb9847101cd21c1cb6d",
    "_get_curr_obs_combined_no_goal": "8c45967bdc72e4ae04e9236eaf4336c2e11ef4e4f4ac012d38b11864455a98f9",
}
"""Methods that are replaced, with the SHA-256 of their source code in metaworld 3.1.1."""

_PER_OBJECT = 7
"""Numbers of one object in an observation: position (3,) and quaternion (4,)."""


@cache
def faster_class(environment: type[SawyerXYZEnv]) -> type[SawyerXYZEnv]:
    """Make a subclass of an environment's class whose steps give the same results in less time.

    Args:
        environment: Class of one Meta-World environment.

    Returns:
        The subclass, to be assigned to ``__class__`` of an environment; the class itself if nothing can be replaced.
    """
    methods: dict[str, Any] = {
        name: method
        for name, method in (
            ("touching_object", _touching_object),
            ("_get_curr_obs_combined_no_goal", _current_observation),
        )
        if _is_known(environment, name)
    }
    turned = getattr(environment, "_get_quat_objects", None)
    if isinstance(turned, FunctionType) and _uses_rotation(turned):
        methods["_get_quat_objects"] = FunctionType(
            turned.__code__, {**turned.__globals__, "Rotation": _Rotation}, turned.__name__, turned.__defaults__
        )
    return type(environment.__name__, (environment,), methods) if methods else environment


def _is_known(environment: type, name: str) -> bool:
    """Whether a class has the method of `SawyerXYZEnv`, with the source code of which the replacement is known."""
    method = getattr(SawyerXYZEnv, name, None)
    if method is None or getattr(environment, name, None) is not method:
        return False
    try:
        source = inspect.getsource(method)
    except (OSError, TypeError):
        return False
    return hashlib.sha256(source.encode()).hexdigest() == _SOURCES[name]


def _uses_rotation(method: FunctionType) -> bool:
    """Whether a method uses scipy's rotations to turn matrices into quaternions, and for nothing else."""
    used = {name for name in method.__code__.co_names if hasattr(Rotation, name)}
    return (
        method.__closure__ is None
        and method.__globals__.get("Rotation") is Rotation
        and used == {"from_matrix", "as_quat"}
    )


def _touching_object(self: Any, object_geom_id: int) -> bool:
    """Whether both pads of the gripper press on a geom; see `SawyerXYZEnv.touching_object`."""
    data = self.data
    contacts = data.contact
    pairs = [(i, pair) for i, pair in enumerate(contacts.geom.tolist()) if object_geom_id in pair]
    if not pairs:
        return False
    rows, forces = contacts.efc_address, data.efc_force
    for pad in ("leftpad_geom", "rightpad_geom"):
        geom = data.geom(pad).id
        if not sum(forces[rows[i]] for i, pair in pairs if geom in pair) > 0:
            return False
    return True


def _current_observation(self: Any) -> np.ndarray:
    """Return hand, gripper opening and objects (18,); see `SawyerXYZEnv._get_curr_obs_combined_no_goal`."""
    data = self.data
    hand = self.get_endeff_pos()
    apart = data.body("rightclaw").xpos - data.body("leftclaw").xpos
    positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
    count = len(positions) // 3
    if len(positions) != 3 * count or len(quaternions) != 4 * count or not count:
        return SawyerXYZEnv._get_curr_obs_combined_no_goal(self)  # which says what is wrong
    observation = np.zeros(4 + self._obs_obj_max_len)
    observation[:3] = hand
    observation[3] = min(max(sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
    for i in range(count):
        first = 4 + _PER_OBJECT * i
        observation[first : first + 3] = positions[3 * i : 3 * i + 3]
        observation[first + 3 : first + _PER_OBJECT] = quaternions[4 * i : 4 * i + 4]
    return observation


class _Rotation:
    """What Meta-World's environments use of `scipy.spatial.transform.Rotation`, for one matrix."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "_Rotation":
        """See `Rotation.from_matrix`."""
        return cls(matrix)

    def as_quat(self) -> np.ndarray:
        """Return the quaternion x, y, z, w."""
        return quaternion(self._matrix)


def quaternion(matrix: np.ndarray) -> np.ndarray:
    """Return the quaternion (4,) x, y, z, w of a rotation matrix (3, 3), as scipy computes it, bit by bit.

    The largest of the diagonal and the trace decides which component is computed first (Shepperd 1978). A matrix that
    is not a rotation up to rounding is left to scipy, which projects it on one or refuses it.

    Args:
        matrix: Rotation matrix (3, 3).
    """
    if not _is_rotation(matrix):
        return Rotation.from_matrix(matrix).as_quat()
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = matrix.tolist()
    trace = xx + yy + zz
    largest = max(xx, yy, zz, trace)
    if xx == largest:
        x, y, z, w = 1 - trace + 2 * xx, yx + xy, zx + xz, zy - yz
    elif yy == largest:
        x, y, z, w = yx + xy, 1 - trace + 2 * yy, zy + yz, xz - zx
    elif zz == largest:
        x, y, z, w = zx + xz, zy + yz, 1 - trace + 2 * zz, yx - xy
    else:
        x, y, z, w = zy - yz, xz - zx, yx - xy, 1 + trace
    norm = sqrt(x * x + y * y + z * z + w * w)
    return np.array((x / norm, y / norm, z / norm, w / norm))


def _is_rotation(matrix: np.ndarray) -> bool:
    """Whether a matrix is a rotation, more strictly than scipy asks before it uses the matrix as it is."""
    if matrix.shape != (3, 3):
        return False
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    lengths = (a * a + b * b + c * c, d * d + e * e + f * f, g * g + h * h + i * i)
    products = (a * d + b * e + c * f, a * g + b * h + c * i, d * g + e * h + f * i)
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return (
        determinant > 0.5
        and all(abs(length - 1) < 1e-9 for length in lengths)
        and all(abs(product) < 5e-13 for product in products)
    )
