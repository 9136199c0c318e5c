"""The embed-once cache: frozen features and small frames of recorded episodes, one file per episode and camera."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..backbones.vision import VisionEncoder
from .episodes import ArrayFrames, BadEpisodeError, Episode, FrameSource


class FeatureSource:
    """Features of one camera in one episode, memory-mapped.

    Args:
        path: The ``.npy`` file, float16 (F, D).
        step: (F,) observation index of each recorded frame, ascending.
    """

    def __init__(self, path: Path, step: np.ndarray) -> None:
        self.path, self.step = path, step

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Features of frames by their place 0 … F−1 in the recording, (M, D) float32."""
        return np.load(self.path, mmap_mode="r")[indices].astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedFrames(FrameSource):
    """Frames kept at one size, memory-mapped."""

    path: Path
    step: np.ndarray
    size: int
    identity: str = ""  # pyright: ignore[reportIncompatibleMethodOverride]  # a frozen field is as good as a property

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Frames by their place; see `FrameSource.read`.

        Raises:
            ValueError: If another size is asked for than is kept.
        """
        if size not in (None, self.size):
            raise ValueError(f"these frames are kept at {self.size} pixels, asked for {size}: open another cache entry")
        return np.array(np.load(self.path, mmap_mode="r")[indices])


class FeatureCache:
    """A folder of features, addressed by what they were computed from and how.

    An entry's name is a hash of the recording's content, the camera, and the encoder's name and revision (its size and
    transform are part of what they name), so nothing is ever stale: other frames or weights are another entry. Entries
    are written under a temporary name and then renamed: a process that is killed leaves none behind half-written, and
    of two that write the same one either may win. A damaged entry is made again.

    Args:
        folder: Made if it is not there.

    Raises:
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make the feature cache {folder}: {error.strerror}; choose another folder") from error
        if not os.access(self.folder, os.W_OK):
            raise PermissionError(f"cannot write into the feature cache {folder}: choose another folder")

    def features(self, episode: Episode, camera: str, encoder: VisionEncoder) -> FeatureSource:
        """Features of all frames of a camera, computed now unless they are there.

        Raises:
            ValueError: If the encoder is trainable (its features change), or the episode has no such camera.
            BadEpisodeError: If the frames cannot be decoded.
        """
        if encoder.trainable:
            raise ValueError(f"{encoder.name} is trainable, so its features change: put it into the model instead")
        source = _camera(episode, camera)
        path = self._path(source, camera, f"{encoder.name}/{encoder.revision}")

        def compute() -> np.ndarray:
            # the encoder resizes as it was trained; decoding at the recorded size keeps its transform exact
            return np.concatenate([encoder.encode(torch.from_numpy(f)).half().cpu().numpy() for f in _decoded(source)])

        self._ensure(path, compute, len(source.step), np.dtype(np.float16))
        return FeatureSource(path, source.step)

    def frames(self, episode: Episode, camera: str, size: int) -> CachedFrames:
        """Frames of a camera scaled so that the shorter side has ``size`` pixels, for encoders still being trained.

        Raises:
            ValueError: If the episode has no such camera.
            BadEpisodeError: If the frames cannot be decoded.
        """
        source = _camera(episode, camera)
        path = self._path(source, camera, f"frames/{size}")
        self._ensure(path, lambda: np.concatenate(list(_decoded(source, size))), len(source.step), np.dtype(np.uint8))
        return CachedFrames(path=path, step=source.step, size=size, identity=f"{path.stem}-{size}")

    def _path(self, source: FrameSource, camera: str, how: str) -> Path:
        what = _identity(source)
        address = hashlib.sha256("\0".join((what, camera, how, str(len(source.step)))).encode()).hexdigest()[:32]
        return self.folder / how / f"{address}.npy"

    @staticmethod
    def _ensure(path: Path, compute: Callable[[], np.ndarray], count: int, dtype: np.dtype) -> None:
        if path.is_file():
            try:
                stored = np.load(path, mmap_mode="r")
            except (ValueError, EOFError, OSError):
                stored = None  # damaged from outside: made again
            if stored is not None and len(stored) == count and stored.dtype == dtype:
                return
        values = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, np.ascontiguousarray(values))
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def _camera(episode: Episode, camera: str) -> FrameSource:
    if camera not in episode.frames:
        raise ValueError(f"episode {episode.index} has no camera {camera!r}: it has {sorted(episode.frames) or 'none'}")
    source = episode.frames[camera]
    if not len(source.step):
        raise BadEpisodeError(episode.index, "video", f"camera {camera!r} recorded no frame")
    return source


def _identity(source: FrameSource) -> str:
    """Content address of a recording; frames in memory without one are hashed."""
    if source.identity:
        return source.identity
    if not isinstance(source, ArrayFrames):
        raise ValueError(f"{type(source).__name__} has no identity: its frames cannot be cached")
    content = np.ascontiguousarray(source.values)
    return hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()


def _decoded(source: FrameSource, size: int | None = None) -> Iterator[np.ndarray]:
    """All frames in order, some at a time: a long episode at full size need not fit into memory."""
    for start in range(0, len(source.step), 256):
        yield source.read(np.arange(start, min(start + 256, len(source.step))), size)
