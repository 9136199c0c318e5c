"""The embed-once cache: frozen features and small frames of recorded episodes, computed when first asked for."""

import hashlib
import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..backbones.vision import VisionEncoder
from ..core.moved import identity_path
from .cache_folder import CacheReport, Eviction, evict, mark, report
from .episodes import ArrayFrames, BadEpisodeError, Episode, FrameSource
from .kept_rows import FORMAT, KeptRows

_WHERE_FROM = ("name", "revision", "download", "trainable")
"""Constructor arguments that say which weights an encoder has; all others are part of its transform."""


class FeatureSource:
    """Features of one camera in one episode, float16 on disk and memory-mapped.

    Nothing is computed before it is asked for: who evaluates every fourth frame encodes only these, and who wants all
    of them later encodes only the rest.

    Args:
        folder: Where they are kept.
        source: The recording.
        encoder: A frozen one.
        size: Shorter side of the frames it is shown; None as recorded.
        who: The episode and camera, for messages.
    """

    def __init__(self, folder: Path, source: FrameSource, encoder: VisionEncoder, size: int | None, who: str) -> None:
        self.step = source.step
        """(F,) observation index of each recorded frame, ascending."""
        self.revision = revision_of(encoder)
        encode = _Encoding(source=source, encoder=encoder, revision=self.revision, size=size, who=who)
        self._rows = KeptRows(folder, len(source.step), np.dtype(np.float16), {-1: encoder.width}, encode)

    @property
    def files(self) -> list[Path]:
        """The files that hold what is known."""
        return self._rows.files

    def known(self) -> np.ndarray:
        """(F,) bool: which frames need not be encoded."""
        return self._rows.known()

    def fill(self, indices: np.ndarray | None = None) -> None:
        """Encode the frames at some places that are not encoded yet; None means all. See `read` for the errors."""
        self._rows.fill(indices)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Features of frames by their place 0 … F−1 in the recording, (M, D) or (M, K, D) float32.

        Raises:
            ValueError: If the encoder gives NaN, infinity or what float16 cannot hold, or its weights have changed.
            BadEpisodeError: If the frames cannot be decoded.
            OSError: If the cache cannot be written.
        """
        return self._rows.read(indices).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Encoding:
    """Encodes frames of a recording for the cache.

    Not a method of `FeatureSource`: in a circle with its rows it would stay in use until somebody collects circles.
    """

    source: FrameSource
    encoder: VisionEncoder
    revision: str
    size: int | None
    who: str

    def __call__(self, places: np.ndarray) -> np.ndarray:
        name = self.encoder.name
        if self.encoder.revision != self.revision:  # hashed anew: in doubt nothing wrong may be stored
            raise ValueError(
                f"the weights of {name} have changed since its features were opened (revision {self.revision} then, "
                f"{self.encoder.revision} now): open them again"
            )
        # the encoder resizes as it was trained; frames at the recorded size keep its transform exact
        frames = torch.from_numpy(self.source.read(places, self.size))
        return _half(self.encoder.encode(frames).float().cpu().numpy(), places, f"{name} on {self.who}")


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedFrames(FrameSource):
    """Frames kept at one size, memory-mapped; see `FeatureSource` for when they are decoded."""

    rows: KeptRows
    step: np.ndarray
    size: int
    identity: str = ""  # pyright: ignore[reportIncompatibleMethodOverride]  # a frozen field is as good as a property

    @property
    def files(self) -> list[Path]:
        """The files that hold what is known."""
        return self.rows.files

    def fill(self, indices: np.ndarray | None = None) -> None:
        """Decode the frames at some places that are not kept yet; None means all."""
        self.rows.fill(indices)

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Frames by their place; see `FrameSource.read`.

        Raises:
            ValueError: If another size is asked for than is kept.
        """
        if size not in (None, self.size):
            raise ValueError(f"these frames are kept at {self.size} pixels, asked for {size}: open another cache entry")
        return self.rows.read(indices)


class FeatureCache:
    """A folder of features, addressed by what they were computed from and how.

    An entry's name is a hash of the recording's content, its camera, the encoder's name, revision and transform, and
    the size of the frames, so nothing is ever stale: other frames or weights are another entry. It has a place for
    every recorded frame, so models that evaluate other frames share it. Files are written whole or not at all, by any
    number of processes at once, and a damaged one is made again with a warning (see `KeptRows`).

    Args:
        folder: Made if it is not there; a marker in it tells it from any other folder.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If it holds something else, or the cache of a later version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        mark(self.folder)

    def features(
        self, episode: Episode, camera: str, encoder: VisionEncoder, size: int | None = None, compute: bool = True
    ) -> FeatureSource:
        """Features of the frames of a camera.

        Args:
            episode: Recorded.
            camera: Its name there.
            encoder: A frozen one; its weights must stay as they are.
            size: Scale frames so that the shorter side has so many pixels before the encoder sees them.
            compute: All of them, now; else each when it is read or filled in.

        Raises:
            ValueError: If the encoder is trainable (its features change), gives what is no number or does not fit
                float16, or the episode has no such camera.
            BadEpisodeError: If the frames cannot be decoded.
        """
        if encoder.trainable:
            raise ValueError(f"{encoder.name} is trainable, so its features change: put it into the model instead")
        source = _camera(episode, camera)
        revision = revision_of(encoder)
        for part in (encoder.name, revision):
            if not part or part.startswith(".") or {"/", "\\", "\0"} & set(part):
                raise ValueError(f"encoder name or revision {part!r}: expected text that can name a folder")
        address = _address(source, camera, encoder.name, revision, _transform(encoder), str(size))
        folder = self.folder / encoder.name / revision / address
        kept = FeatureSource(folder, source, encoder, size, f"camera {camera!r} of episode {episode.index}")
        if compute:
            kept.fill()
        return kept

    def frames(self, episode: Episode, camera: str, size: int, compute: bool = True) -> CachedFrames:
        """Frames of a camera scaled so that the shorter side has ``size`` pixels, for encoders still being trained.

        Args:
            episode: Recorded.
            camera: Its name there.
            size: Pixels.
            compute: All of them, now; else each when it is read or filled in.

        Raises:
            ValueError: If the episode has no such camera.
            BadEpisodeError: If the frames cannot be decoded.
        """
        source = _camera(episode, camera)
        address = _address(source, camera, "frames", str(size))
        rows = KeptRows(
            self.folder / "frames" / str(size) / address,
            len(source.step),
            np.dtype(np.uint8),
            {0: 3},
            lambda places: source.read(places, size),
        )
        if compute:
            rows.fill()
        return CachedFrames(rows=rows, step=source.step, size=size, identity=f"{address}-{size}")

    def report(self) -> CacheReport:
        """What lies in the cache: entries, bytes and last use, by encoder and revision."""
        return report(self.folder)

    def evict(self, max_bytes: int) -> Eviction:
        """Remove the entries used longest ago until at most ``max_bytes`` are left.

        Entries whose `FeatureSource` or `CachedFrames` is alive in this process stay. Only what the cache made is ever
        removed; what is asked for afterwards is computed again.

        Raises:
            ValueError: If the limit is negative.
        """
        return evict(self.folder, max_bytes)


_revisions: WeakKeyDictionary[VisionEncoder, tuple[list[tuple[Tensor, int, int]], str]] = WeakKeyDictionary()


def revision_of(encoder: VisionEncoder) -> str:
    """An encoder's revision, hashed again only if a weight was replaced or changed in place since the last call."""
    weights = list(chain(encoder.parameters(), encoder.buffers()))
    if any(weight.is_inference() for weight in weights):  # torch does not count their changes
        return encoder.revision
    state = [(w, w._version, w.data_ptr()) for w in weights]
    known = _revisions.get(encoder)
    if known is None or len(known[0]) != len(state):
        same = False
    else:
        same = all(a is b and v == w and p == q for (a, v, p), (b, w, q) in zip(known[0], state, strict=True))
    if known is None or not same:
        known = (state, encoder.revision)
        _revisions[encoder] = known
    return known[1]


def _transform(encoder: VisionEncoder) -> str:
    """What an encoder does to a frame beside its weights: its class, and what its constructor was told."""
    told = {k: v for k, v in encoder.init_args.items() if k not in _WHERE_FROM}
    return _named(encoder) + json.dumps(told, sort_keys=True, default=_named)


def _named(value: object) -> str:
    return identity_path(type(value))


def _half(values: np.ndarray, places: np.ndarray, who: str) -> np.ndarray:
    """Round to float16, or refuse what that would spoil."""
    flat = values.reshape(len(values), -1)

    def refuse(bad: np.ndarray, what: str, advice: str) -> ValueError:
        count = int(bad.sum())
        named = f"frame {int(places[np.flatnonzero(bad)[0]])}" + (f" and {count - 1} more" if count > 1 else "")
        return ValueError(f"{who}: the features of {named} {what}, nothing was stored: {advice}")

    if (bad := np.logical_or.reduce(~np.isfinite(flat), axis=1)).any():
        raise refuse(bad, "hold NaN or infinity", "check the encoder's weights and its precision")
    largest = np.abs(flat).max(1, initial=0.0)
    limit = float(np.finfo(np.float16).max)
    advice = "scale the encoder's output, or score without a cache"
    if (bad := largest > limit).any():
        raise refuse(bad, f"reach {largest.max():.3g}, above float16's largest number {limit:.0f}", advice)
    rounded = flat.astype(np.float16)
    # half precision has 11 bits, so an error of 2⁻¹¹; much more only below its smallest normal number, 6·10⁻⁵
    error = np.abs(flat - rounded).max(1, initial=0.0)
    if (bad := np.greater(error, 2.0**-8 * largest)).any():
        raise refuse(bad, f"are as small as {largest[bad].min():.3g}, too small for float16", advice)
    return rounded.reshape(values.shape)


def _camera(episode: Episode, camera: str) -> FrameSource:
    if camera not in episode.frames:
        raise ValueError(f"episode {episode.index} has no camera {camera!r}: it has {sorted(episode.frames) or 'none'}")
    source = episode.frames[camera]
    if not len(source.step):
        raise BadEpisodeError(episode.index, "video", f"camera {camera!r} recorded no frame")
    return source


def _address(source: FrameSource, camera: str, *how: str) -> str:
    parts: list[Any] = [FORMAT, _identity(source), camera, len(source.step), *how]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _identity(source: FrameSource) -> str:
    """Content address of a recording; frames in memory without one are hashed."""
    if source.identity:
        return source.identity
    if not isinstance(source, ArrayFrames):
        raise ValueError(f"{type(source).__name__} has no identity: its frames cannot be cached")
    content = np.ascontiguousarray(source.values)
    return hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()
