# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false, reportOptionalMemberAccess=false
"""Fast off-screen rendering of a MuJoCo model, and the search for an OpenGL backend that works."""

import atexit
import functools
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

_OFF = ("disable", "disabled", "off", "false", "0")

# A driver may fail with an exception that cannot be printed, or take the whole process with it: hence a subprocess. It
# draws a sphere of as many faces as a simulated kitchen has, and prints the median time of a picture in seconds.
_PROBE = """
import statistics, time
import mujoco
from mujoco.{backend} import GLContext
context = GLContext(128, 128)
context.make_current()
model = mujoco.MjModel.from_xml_string(
    '<mujoco><visual><quality numslices="256" numstacks="512" offsamples="0" shadowsize="0"/></visual>'
    '<worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, drawing)
scene, area = mujoco.MjvScene(model, maxgeom=10), mujoco.MjrRect(0, 0, 128, 128)
view, option = mujoco.MjvCamera(), mujoco.MjvOption()
mujoco.mjv_updateScene(model, data, option, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
import numpy
picture, times = numpy.zeros((128, 128, 3), numpy.uint8), []
for _ in range(6):
    start = time.perf_counter()
    mujoco.mjr_render(area, scene, drawing)
    mujoco.mjr_readPixels(picture, None, area, drawing)
    times.append(time.perf_counter() - start)
print("black" if not picture.any() else statistics.median(times[1:]), flush=True)
import os
os._exit(0)
"""

_MUCH_FASTER = 1.5
"""Factor by which a later candidate must be faster than an earlier one to replace it; pictures differ in the last bits,
and the choice should not depend on what else the machine does."""

_FOUND = "GUERDON_RENDERER"
"""Variable that hands the choice to processes started later, so that only the first one tries."""


@functools.cache
def rendering_backend() -> str | None:
    """Find the OpenGL backend to render with: ``"egl"``, ``"osmesa"``, ``"glfw"``, or None if none works here.

    If ``MUJOCO_GL`` is set, it decides alone. Otherwise EGL and OSMesa are tried once, in processes of their own: EGL
    is taken unless it fails, gives black pictures, or takes 1.5 times as long as OSMesa. Processes started later are
    told.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in _OFF:
        return None
    if chosen in ("egl", "osmesa", "glfw"):
        return chosen if _seconds_per_picture(chosen) is not None else None
    if os.environ.get(_FOUND) in ("egl", "osmesa"):
        return os.environ[_FOUND]
    times = {name: seconds for name in ("egl", "osmesa") if (seconds := _seconds_per_picture(name)) is not None}
    found = fastest(times)
    if found is not None:
        os.environ[_FOUND] = found
    return found


def fastest(times: Mapping[str, float]) -> str | None:
    """Choose a backend: the first, unless a later one is faster by half; None if there is none.

    Args:
        times: Seconds per picture of each backend, in the order of preference.
    """
    best: str | None = None
    for name, seconds in times.items():
        if best is None or seconds * _MUCH_FASTER < times[best]:
            best = name
    return best


def _seconds_per_picture(backend: str) -> float | None:
    """Return the time that a backend takes for a picture, in seconds; None if it gives none."""
    environment = os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    if backend == "glfw":
        del environment["PYOPENGL_PLATFORM"]
    command = [sys.executable, "-c", _PROBE.format(backend=backend)]
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return float(result.stdout.split()[-1]) if result.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return None


NO_BACKEND = (
    "no OpenGL backend renders here (egl and osmesa were tried, or the one MUJOCO_GL names): install libegl1 or "
    "libosmesa6 from the system and leave MUJOCO_GL unset"
)
"""Message for the user if `rendering_backend` is None."""


def require_backend() -> str:
    """Return the backend that works.

    Raises:
        RuntimeError: If none does; the message names what to install.
    """
    backend = rendering_backend()
    if backend is None:
        raise RuntimeError(f"{NO_BACKEND}, or work with states alone (frames=False)")
    return backend


class OffscreenRenderer:
    """Off-screen renderer of one model, in any size; its contexts are made on first use.

    Shadows, reflections and multisampling are off: a Meta-World scene then takes about 10 ms instead of 75 ms in
    software. Use it in the process and thread that built it; an OpenGL context does not survive a fork.

    Args:
        model: Model that is rendered.
        free_camera: View of the camera named ``"free"``; None has no such camera.
        hidden: Numbers of the geom groups that are left out.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        free_camera: mujoco.MjvCamera | None = None,
        hidden: tuple[int, ...] = (),
    ) -> None:
        self._model = model
        self._free_camera = free_camera
        self._option = mujoco.MjvOption()
        for group in hidden:
            self._option.geomgroup[group] = 0
        self._scene: mujoco.MjvScene | None = None
        self._context: mujoco.MjrContext | None = None
        self._size = (0, 0)
        self._gl: Any = None  # GLContext of the backend in use
        self._seen = False  # whether a picture was ever not black

    def render(self, data: mujoco.MjData, camera: str, size: tuple[int, int]) -> np.ndarray:
        """Render the current state; return (3, H, W) uint8 RGB.

        Args:
            data: State of the model, with its kinematics up to date.
            camera: Name of a camera of the model, or ``"free"``.
            size: Size (H, W) in pixels, at least (1, 1).

        Raises:
            RuntimeError: If no OpenGL backend works, or the first picture is all black.
            ValueError: If the size is impossible or the camera unknown.
        """
        height, width = size
        if min(size) < 1:
            raise ValueError(f"expected a picture of at least 1 × 1, got {size}")
        self._open(height, width)
        assert self._scene is not None and self._context is not None
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera(camera), mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        picture = np.empty((height, width, 3), np.uint8)
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(picture, None, area, self._context)
        if not self._seen and not picture.any():
            raise RuntimeError(
                f"{rendering_backend()} gives black pictures of camera {camera!r}: try MUJOCO_GL=osmesa or "
                "MUJOCO_GL=egl, or work with states alone (frames=False)"
            )
        self._seen = True
        return np.ascontiguousarray(picture[::-1].transpose(2, 0, 1))  # OpenGL counts rows from the bottom

    def _camera(self, name: str) -> mujoco.MjvCamera:
        if name == "free" and self._free_camera is not None:
            return self._free_camera
        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if number < 0:
            known = [self._model.camera(i).name for i in range(self._model.ncam)]
            raise ValueError(f"unknown camera {name!r}; this model has {', '.join(known) or 'none'}")
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        camera.fixedcamid = number
        return camera

    def _open(self, height: int, width: int) -> None:
        """Make the contexts, and make them again for a picture larger than any before."""
        if self._gl is not None and height <= self._size[0] and width <= self._size[1]:
            self._gl.make_current()
            return
        backend = require_backend()
        self.close()
        self._size = max(height, self._size[0]), max(width, self._size[1])
        if backend == "egl":
            os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
            from mujoco.osmesa import GLContext
        else:
            from mujoco.glfw import GLContext
        self._gl = GLContext(self._size[1], self._size[0])
        self._gl.make_current()
        self._model.vis.global_.offheight, self._model.vis.global_.offwidth = self._size
        self._model.vis.quality.offsamples = 0
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=5000)
        # Registered after the display's own exit hook, hence run before it: freeing later raises in mujoco.egl.
        atexit.register(_close_reference, weakref.ref(self))

    def close(self) -> None:
        """Free the contexts; a later `render` makes new ones."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
        if self._gl is not None:
            self._gl.free()
        self._scene, self._context, self._gl = None, None, None


def _close_reference(reference: "weakref.ref[OffscreenRenderer]") -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()
