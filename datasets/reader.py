"""Reader of a data set's episodes by place, which keeps small ones in memory and reads cached frames or features."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from ..backbones.vision import VisionEncoder
from ..core.batch import TERMINATING, TrajectoryBatch
from .collate import FeatureReader, Window, collate
from .episodes import BadEpisodeError, Episode, EpisodeDataset, FrameSource, blamed_on
from .features import CachedFrames, FeatureCache, FeatureSource, revision_of

_KEPT_BYTES = 1 << 30  # of states and actions in memory; episodes beyond that are read again


class EpisodeReader:
    """Reader of episodes by place, which keeps small ones in memory and replaces videos by cached frames.

    A camera without a frame in an episode is left out there as long as another camera is left.

    Args:
        dataset: Data set to read.
        cameras: Cameras to read.
        frame_size: Shorter side in pixels that frames are scaled to, also before a frozen encoder sees them; None keeps
            the recorded size.
        encoder: Frozen encoder whose features a cache keeps.
        cache: Cache of the encoder's features, or without an encoder of frames at ``frame_size``; None reads frames
            from the recording.
        terminating: Ends after which nothing is bootstrapped.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        cameras: Sequence[str] = (),
        frame_size: int | None = None,
        encoder: VisionEncoder | None = None,
        cache: FeatureCache | None = None,
        terminating: Iterable[int] = TERMINATING,
    ) -> None:
        self.dataset, self.cameras, self.frame_size = dataset, tuple(cameras), frame_size
        self.encoder, self.cache, self.terminating = encoder, cache, frozenset(terminating)
        self._kept: dict[int, Episode] = {}
        self._bytes = 0
        self._open = _Opened()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files when the reader is sent to a loader's process."""
        return self.__dict__ | {"_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the reader; files are opened again when they are needed."""
        self.__dict__.update(state)
        self._open = _Opened()

    def __call__(self, place: int) -> Episode:
        """Read the episode at a place.

        Raises:
            BadEpisodeError: If the episode cannot be used.
        """
        if place in self._kept:
            return self._kept[place]
        episode = self.dataset[place]
        size = episode.state.nbytes + episode.actions.nbytes
        if self._bytes + size <= _KEPT_BYTES:
            self._kept[place] = episode
            self._bytes += size
        return episode

    def usable(self, bad: dict[int, BadEpisodeError]) -> Iterator[tuple[int, Episode]]:
        """Yield every episode that can be read, with its place.

        Args:
            bad: Filled with the other episodes, by their number.
        """
        for place in range(len(self.dataset)):
            try:
                episode = self(place)
            except BadEpisodeError as error:
                bad[error.index] = error
                continue
            yield place, episode

    def prepare(self, episode: Episode) -> None:
        """Fill the cache for an episode, which also shows whether it can be used.

        Raises:
            BadEpisodeError: If it has none of the cameras (status ``"camera"``), or its frames cannot be decoded.
        """
        present = self._present(episode)
        if self.cache is None:
            return
        for camera in present:
            with blamed_on(episode.index):
                if self.encoder is not None:
                    self._features(episode, camera, revision_of(self.encoder)).fill()
                elif self.frame_size is not None:
                    self._frames(episode, camera).fill()

    def features(self, episode: Episode) -> Mapping[str, FeatureReader]:
        """Return cached features by ``"<encoder.name>/<camera>"``, computed as they are read; none without an encoder.

        Raises:
            BadEpisodeError: If the episode has none of the cameras (status ``"camera"``).
        """
        return {} if self.encoder is None or self.cache is None else self._embedded(episode, revision_of(self.encoder))

    def batch(
        self, windows: Sequence[Window], frame_count: int | None = None, frames_every: int = 1
    ) -> TrajectoryBatch:
        """Collate windows with frames or features.

        Args:
            windows: Window of each row.
            frame_count: Largest number of frames of a camera in a row; None takes all.
            frames_every: Interval between the recorded frames that are taken.

        Raises:
            BadEpisodeError: If an episode has none of the cameras (status ``"camera"``), or a video cannot be decoded.
        """
        embedded = self.encoder is not None and self.cache is not None
        revision = revision_of(self.encoder) if self.encoder is not None and embedded else ""
        return collate(
            windows if embedded else [self._with_frames(w) for w in windows],
            cameras=() if embedded else self.cameras,
            frame_count=frame_count,
            frame_size=self.frame_size,
            terminating=self.terminating,
            frames_every=frames_every,
            features=(lambda episode: self._embedded(episode, revision)) if embedded else None,
        )

    def _present(self, episode: Episode) -> list[str]:
        present = [c for c in self.cameras if c in episode.frames and len(episode.frames[c].step)]
        if self.cameras and not present:
            held = ", ".join(c for c, source in episode.frames.items() if len(source.step)) or "none"
            raise BadEpisodeError(
                episode.index,
                "camera",
                f"expected frames of {' or '.join(self.cameras)}, it has {held}: no estimate",
            )
        return present

    def _with_frames(self, window: Window) -> Window:
        """Return the window with the cameras that can be read, from the cache where frames are kept."""
        episode, present = window.episode, self._present(window.episode)
        if self.cache is not None and self.frame_size is not None:
            frames: dict[str, FrameSource] = {c: self._frames(episode, c) for c in present}
        elif all(c in present for c in self.cameras if c in episode.frames):
            return window
        else:
            frames = {c: episode.frames[c] for c in present}
        return replace(window, episode=replace(episode, frames=frames))

    def _embedded(self, episode: Episode, revision: str) -> Mapping[str, FeatureReader]:
        assert self.encoder is not None
        return {f"{self.encoder.name}/{c}": self._features(episode, c, revision) for c in self._present(episode)}

    def _features(self, episode: Episode, camera: str, revision: str) -> FeatureSource:
        assert self.cache is not None and self.encoder is not None
        opened, key = self._open.setdefault(episode, {}), (camera, revision)
        if key not in opened:
            with blamed_on(episode.index):
                opened[key] = self.cache.features(episode, camera, self.encoder, self.frame_size, compute=False)
        source = opened[key]
        assert isinstance(source, FeatureSource)
        return source

    def _frames(self, episode: Episode, camera: str) -> CachedFrames:
        assert self.cache is not None and self.frame_size is not None
        opened, key = self._open.setdefault(episode, {}), (camera, "")
        if key not in opened:
            with blamed_on(episode.index):
                opened[key] = self.cache.frames(episode, camera, self.frame_size, compute=False)
        source = opened[key]
        assert isinstance(source, CachedFrames)
        return source


# Entries opened so far, by camera and revision. They are in use, and so not evicted, while their episode is kept.
_Opened = WeakKeyDictionary[Episode, dict[tuple[str, str], FeatureSource | CachedFrames]]
