# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
"""Cameras of Gymnasium environments: pictures of the observation, the model's cameras, or ``render()``."""

from typing import Any, Protocol, runtime_checkable

import mujoco
import numpy as np
from PIL import Image

from ..render import OffscreenRenderer
from ..saved import Physics
from .building import Environment, quiet
from .snapshots import copy_model, mujoco_parts, put_model

RENDER = "render"
"""Name of the environment's own view."""


@runtime_checkable
class Views(Protocol):
    """Cameras that are drawn on demand."""

    names: tuple[str, ...]
    """Names of the cameras."""
    need_opengl: bool
    """Whether drawing needs an OpenGL backend."""

    def draw(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Draw one camera; return (3, H, W) uint8."""
        ...

    def close(self) -> None:
        """Free what drawing needs."""
        ...


def find_views(name: str, env: Environment) -> Views:
    """Find the cameras that can be drawn.

    Args:
        name: Full name of the task, for errors.
        env: Environment, with any wrappers.
    """
    parts = mujoco_parts(env)
    if parts is not None:
        return _MujocoViews(env, *parts)
    return _RenderedView(name, env)


class _RenderedView:
    """The environment's ``render()``, resized; no camera if it draws no arrays."""

    need_opengl = False

    def __init__(self, name: str, env: Environment) -> None:
        self._name, self._env = name, env
        self.names: tuple[str, ...] = (RENDER,) if env.render_mode == "rgb_array" else ()

    def draw(self, name: str, size: tuple[int, int]) -> np.ndarray:
        with quiet():
            picture = np.asarray(self._env.render())
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"{self._name}: expected render() to return (H, W, 3) uint8, got {picture.dtype} {picture.shape}: let "
                'the environment draw with render_mode="rgb_array", or record states only'
            )
        return resize(picture, size)

    def close(self) -> None:
        pass


class _MujocoViews:
    """The free camera as the environment sets it up, and the cameras of the model, by our own off-screen renderer.

    Gymnasium's renderer has one size, and draws shadows that take several times as long in software.
    """

    need_opengl = True

    def __init__(self, env: Environment, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._base: Any = env.unwrapped
        self._model, self._data = model, data
        named = [model.camera(i).name for i in range(model.ncam)]
        self.names: tuple[str, ...] = (RENDER, *dict.fromkeys(name for name in named if name and name != RENDER))
        self._renderer = OffscreenRenderer(model, free_camera=_free_camera(self._base, model))
        self._marks = callable(getattr(self._base, "_render_callback", None))

    def draw(self, name: str, size: tuple[int, int]) -> np.ndarray:
        if self._marks:  # gymnasium-robotics moves its marks first, which moves the last digits of the simulation
            model, physics = copy_model(self._model), Physics.of(self._model, self._data)
            with quiet():
                self._base._render_callback()
            try:
                return self._draw(name, size)
            finally:
                put_model(self._model, model)
                physics.put(self._model, self._data)
        return self._draw(name, size)

    def _draw(self, name: str, size: tuple[int, int]) -> np.ndarray:
        return self._renderer.render(self._data, "free" if name == RENDER else name, size)

    def close(self) -> None:
        self._renderer.close()


def _free_camera(base: Any, model: mujoco.MjModel) -> mujoco.MjvCamera:
    """Make the camera that the environment's own renderer would use."""
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    config = getattr(getattr(base, "mujoco_renderer", None), "default_cam_config", None) or {}
    if config.get("trackbodyid") is not None and "type" not in config:
        camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING.value
    for key, value in config.items():
        if isinstance(value, np.ndarray):
            getattr(camera, key)[:] = value
        else:
            setattr(camera, key, value)
    return camera


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture (H, W, 3) uint8; return (3, h, w) uint8.

    Args:
        picture: Picture.
        size: Size (h, w) in pixels.
    """
    if picture.shape[:2] != size:
        picture = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
