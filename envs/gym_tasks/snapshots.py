# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
"""Snapshots of MuJoCo environments, from which they go on bit by bit, in this copy or in another."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import Space
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.envs.registration import EnvSpec

from ..saved import Physics
from .building import Environment, layers

_MODEL_FIELDS = (
    *("body_pos", "body_quat", "body_mass", "body_inertia", "geom_pos", "geom_quat", "geom_size", "geom_friction"),
    *("geom_rgba", "site_pos", "site_quat", "site_size", "site_rgba", "mat_rgba", "cam_pos", "cam_quat", "light_pos"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "jnt_range", "actuator_gainprm", "actuator_biasprm"),
)
"""Parts of the model that environments change when they reset."""


def mujoco_parts(env: Environment) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """Return model and data of a MuJoCo environment, or None for another simulator.

    Args:
        env: Environment, with any wrappers.
    """
    base: Any = env.unwrapped
    model, data = getattr(base, "model", None), getattr(base, "data", None)
    return (model, data) if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData) else None


def copy_model(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Copy the parts of a model that environments change.

    Args:
        model: Model.
    """
    return {name: getattr(model, name).copy() for name in _MODEL_FIELDS}


def put_model(model: mujoco.MjModel, parts: Mapping[str, np.ndarray]) -> None:
    """Copy parts back into a model.

    Args:
        model: Model.
        parts: Parts by name, from `copy_model`.
    """
    for name, value in parts.items():
        getattr(model, name)[:] = value


@dataclass(frozen=True)
class _Place:
    """Attribute that is not copied: the one of the copy that is restored takes its place."""

    layer: int
    name: str


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Simulation, changed parts of the model, and attributes of an environment and its wrappers."""

    physics: Physics
    """State of the simulation."""
    model: Mapping[str, np.ndarray]
    """Parts of the model, by name."""
    attributes: list[dict[str, Any]]
    """Attributes of every layer, from the outside in."""
    places: list[_Place]
    """Attributes that are not copied; the copied ones refer to these very objects."""


class Snapshots:
    """Taker of snapshots of one MuJoCo environment.

    Args:
        env: Environment, with any wrappers, whose innermost one has ``model`` and ``data``.

    Raises:
        ValueError: If it is no MuJoCo environment.
    """

    def __init__(self, env: Environment) -> None:
        parts = mujoco_parts(env)
        if parts is None:
            raise ValueError(f"expected a MuJoCo environment with model and data, got {env.unwrapped}")
        self._model, self._data = parts
        self._chain = layers(env)
        self._places = [
            _Place(number, name)
            for number, layer in enumerate(self._chain)
            for name, value in vars(layer).items()
            if _is_fixed(value)
        ]

    def _attribute(self, place: _Place) -> Any:
        return vars(self._chain[place.layer])[place.name]

    def take(self) -> Snapshot:
        """Copy the state of the environment."""
        memo: dict[int, Any] = {id(self._attribute(place)): place for place in self._places}
        return Snapshot(
            physics=Physics.of(self._model, self._data),
            model=copy_model(self._model),
            attributes=copy.deepcopy([dict(vars(layer)) for layer in self._chain], memo),
            places=self._places,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Copy the state back; the snapshot may be of another copy of the environment."""
        memo: dict[int, Any] = {id(place): self._attribute(place) for place in snapshot.places}
        attributes = copy.deepcopy(snapshot.attributes, memo)
        for layer, values in zip(self._chain, attributes, strict=True):
            own = vars(layer)
            for name in own.keys() - values.keys():
                del own[name]
            own.update(values)
        put_model(self._model, snapshot.model)
        snapshot.physics.put(self._model, self._data)


def _is_fixed(value: object) -> bool:
    """Return whether an attribute belongs to one copy: simulator, renderer, space, or a view on the simulator."""
    if isinstance(value, (ModuleType, mujoco.MjModel, mujoco.MjData, MujocoRenderer, Space, EnvSpec, gymnasium.Env)):
        return True
    if isinstance(value, np.ndarray):
        base = value.base
        while isinstance(base, np.ndarray):
            base = base.base
        return base is not None
    try:
        copy.deepcopy(value)
    except Exception:  # whatever refuses to be copied, such as a handle of a compiled library
        return True
    return False
