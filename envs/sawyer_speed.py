# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportPrivateUsage=false
"""Faster steps of Meta-World's environments, with the same results bit by bit.

Most of a step of Meta-World is spent in Python: it reads every contact of the simulation twice through MuJoCo's slow
list of contacts, turns a matrix into a quaternion with scipy, and computes with numpy on single numbers. `faster_class`
makes a subclass of one environment's class that computes the same numbers from whole arrays and plain floats. Classes
and modules of the package itself stay as they are.

Something is replaced only where the installed package has the source code that its replacement was written against.
"""

import hashlib
import inspect
from functools import cache
from math import sqrt
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

_SOURCES = {
    "touching_object": "b8e2c6f38fd9bb0c68d8bef7b19e841515141da727e32cb9847101cd21c1cb6d",
    "_get_curr_obs_combined_no_goal": "8c45967bdc72e4ae04e9236eaf4336c2e11ef4e4f4ac012d38b11864455a98f9",
    "tolerance": "6a4d52642ce136a8931d4bd903151b417ad3b5f60fcd76459ecb84e43aefc355",
    "_sigmoids": "beccb2487a844485b571e3b8d3d0af04425e5af6aed5c9817eb19751ae15e576",
}
"""Functions that are replaced, with the SHA-256 of their source code in metaworld 3.1.1."""

_PER_OBJECT = 7
"""Numbers of one object in an observation: position (3,) and quaternion (4,)."""

_FLOATS, _NUMBERS = (float, np.float64), (int, float, np.float64)


@cache
def faster_class(environment: type[SawyerXYZEnv]) -> type[SawyerXYZEnv]:
    """Make a subclass of an environment's class whose steps give the same results in less time.

    Args:
        environment: Class of one Meta-World environment.

    Returns:
        The subclass, to be assigned to ``__class__`` of an environment; the class itself if nothing can be replaced.
    """
    replaced: dict[str, Any] = {
        name: method
        for name, method in (
            ("touching_object", _touching_object),
            ("_get_curr_obs_combined_no_goal", _current_observation),
        )
        if _is_known(SawyerXYZEnv, name) and getattr(environment, name) is getattr(SawyerXYZEnv, name)
    }
    for name in dict.fromkeys(name for part in environment.__mro__ for name in vars(part)):
        method = inspect.getattr_static(environment, name)
        if isinstance(method, FunctionType) and name not in replaced and (other := _other_globals(method)):
            replaced[name] = _with_globals(method, other)
    return type(environment.__name__, (environment,), replaced) if replaced else environment


def _is_known(holder: object, name: str) -> bool:
    """Whether a class or module has a function with the source code that its replacement was written against."""
    try:
        source = inspect.getsource(getattr(holder, name))
    except (AttributeError, OSError, TypeError):
        return False
    return hashlib.sha256(source.encode()).hexdigest() == _SOURCES[name]


def _other_globals(method: FunctionType) -> dict[str, Any]:
    """Return the global names of a method that can stand for something faster, with what they then stand for."""
    used, known = _names(method.__code__), method.__globals__
    other: dict[str, Any] = {}
    # scipy's class turns matrices into quaternions here, and does nothing else.
    turns = {name for name in used if hasattr(Rotation, name)} == {"from_matrix", "as_quat"}
    if "Rotation" in used and known.get("Rotation") is Rotation and turns:
        other["Rotation"] = _Rotation
    if "reward_utils" in used and known.get("reward_utils") is reward_utils and "tolerance" in used:
        if _is_known(reward_utils, "tolerance") and _is_known(reward_utils, "_sigmoids"):
            other["reward_utils"] = SimpleNamespace(**{**vars(reward_utils), "tolerance": tolerance})
    return other if method.__closure__ is None else {}


def _names(code: CodeType) -> set[str]:
    """Return the global names and attributes that a function reads, with those in its comprehensions."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _with_globals(method: FunctionType, other: dict[str, Any]) -> FunctionType:
    """Make a method of the same code that finds something else under some of its global names."""
    changed = FunctionType(method.__code__, {**method.__globals__, **other}, method.__name__, method.__defaults__)
    changed.__kwdefaults__ = method.__kwdefaults__
    return changed


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


def tolerance(
    x: Any,
    bounds: tuple[Any, Any] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: Any = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """Rate a number by its distance from an interval, as ``metaworld.utils.reward_utils.tolerance``, bit by bit.

    One number with a long tail is computed here, which is what nearly all rewards ask for. The package does the rest.

    Args:
        x: Number.
        bounds: Interval in which the result is 1.
        margin: Distance at which the result is `value_at_margin`; 0 gives 0 outside of the interval.
        sigmoid: Shape of the decrease.
        value_at_margin: Result at the distance `margin`, in (0, 1).

    Returns:
        Number in [0, 1].
    """
    lower, upper = bounds
    plain = type(x) in _FLOATS and type(margin) in _FLOATS and type(lower) in _NUMBERS and type(upper) in _NUMBERS
    if not plain or sigmoid != "long_tail" or not (lower <= upper and margin > 0 and 0 < value_at_margin < 1):
        return reward_utils.tolerance(x, bounds, margin, sigmoid, value_at_margin)
    if lower <= x <= upper:
        return 1.0
    away = (lower - x if x < lower else x - upper) / margin
    # numpy's power, not Python's: what the package computes with.
    return float(1 / ((np.float64(away) * np.sqrt(1 / value_at_margin - 1)) ** 2 + 1))
