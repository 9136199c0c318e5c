"""Frames of rollouts: which cameras are rendered when, and a check that a renderer works."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...backbones.vision import VisionEncoder
from ...envs.task import Task


@dataclass(frozen=True, kw_only=True)
class RolloutFrames:
    """Cameras that are rendered while a policy acts.

    A frame is rendered at every observation at which the policy decides, and at the last observation of an episode. The
    policy receives it in ``Observation.frames``, and the batch holds it in ``frames``.

    Raises:
        ValueError: If there is no camera, one comes twice, a number is too small, or the encoder is trainable.
    """

    cameras: Sequence[str]
    """Names of the cameras; every task of the run must have them."""
    image_size: int | tuple[int, int] = 128
    """Height and width of the frames in pixels, one number for both or (H, W)."""
    frames_every: int | None = None
    """Interval, in control steps since the reset, of further frames between decisions; 1 renders every observation.
    None renders none."""
    encoder: VisionEncoder | None = None
    """Frozen encoder, whose features of every frame go to the policy and into the batch in place of the frames, as
    ``features["<encoder.name>/<camera>"]``. They are rounded to half precision, as those of logged data are."""

    def __post_init__(self) -> None:
        """Check the names and numbers."""
        if self.encoder is not None and self.encoder.trainable:
            raise ValueError(
                f"{self.encoder.name} is trainable, so its features change: put it into the policy, and leave out "
                "encoder here"
            )
        if isinstance(self.cameras, str):
            raise ValueError(f"cameras {self.cameras!r}: expected a list, got one text: write [{self.cameras!r}]")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras {list(self.cameras)}: expected at least one, each once")
        if min(self.size) < 1 or (self.frames_every is not None and self.frames_every < 1):
            raise ValueError(
                f"image_size {self.image_size}, frames_every {self.frames_every}: expected positive numbers"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Size (H, W) of the frames in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def feature_sizes(self) -> dict[str, int]:
        """Width of the features of each camera by their name in a batch; none without an encoder."""
        if self.encoder is None:
            return {}
        return {f"{self.encoder.name}/{camera}": self.encoder.width for camera in self.cameras}

    def encode(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Encode frames.

        Args:
            frames: Frames (3, H, W) uint8, at least one.

        Returns:
            Features (M, D) or (M, K, D), float32.

        Raises:
            FloatingPointError: If one is not finite, or too large for half precision.
        """
        assert self.encoder is not None
        found = self.encoder.encode(torch.from_numpy(np.stack(frames))).cpu().half()
        if not bool(found.isfinite().all()):
            raise FloatingPointError(
                f"{self.encoder.name} gave features that are not finite in half precision: look for a broken encoder"
            )
        return found.float().numpy()

    def due(self, step: int) -> bool:
        """Return whether observation ``step`` of an episode has a frame wherever the policy decides."""
        return self.frames_every is not None and step % self.frames_every == 0


class Eye:
    """Renderer of the frames of simulators, which checks the first frame of each camera of each simulator.

    It renders in the thread that calls it: rendering contexts are bound to the thread that made them.

    Args:
        frames: Cameras and size.
        tasks: Simulators that will be rendered.

    Raises:
        ValueError: If a task lacks a camera.
    """

    def __init__(self, frames: RolloutFrames, tasks: Sequence[Task]) -> None:
        for task in tasks:
            unknown = [camera for camera in frames.cameras if camera not in task.cameras]
            if unknown:
                has = ", ".join(task.cameras) or "none"
                raise ValueError(f"{task.name}: unknown camera {unknown[0]!r}; its cameras: {has}")
        self.frames = frames
        self._checked: set[tuple[int, str]] = set()

    def render(self, task: Task) -> dict[str, np.ndarray]:
        """Render the current observation with every camera; return (3, H, W) uint8 by camera.

        Args:
            task: One of the simulators.

        Raises:
            ValueError: If a frame has another shape or type.
            RuntimeError: If the first frame of a camera is black.
        """
        found: dict[str, np.ndarray] = {}
        for camera in self.frames.cameras:
            frame = found[camera] = task.render(camera, self.frames.size)
            if (id(task), camera) not in self._checked:
                self._check(task.name, camera, frame)
                self._checked.add((id(task), camera))
        return found

    def _check(self, name: str, camera: str, frame: np.ndarray) -> None:
        shape = (3, *self.frames.size)
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(f"{name}, camera {camera!r}: expected {shape} uint8, got {frame.shape} {frame.dtype}")
        if not frame.any():
            raise RuntimeError(
                f"{name}, camera {camera!r}: the first frame is black (every value is 0), so the renderer does not "
                "work here: set MUJOCO_GL to osmesa or egl, whichever it is not, or leave the frames out"
            )


__all__ = ["Eye", "RolloutFrames"]
