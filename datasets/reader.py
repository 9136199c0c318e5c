"""Reads the episodes of a data set for a model: by place, the small ones kept, frames or features from the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..backbones.vision import VisionEncoder
from ..core.batch import TrajectoryBatch
from .collate import FeatureReader, Window, collate
from .episodes import Episode, EpisodeDataset
from .features import FeatureCache

_KEPT_BYTES = 1 << 30  # states and actions held in memory; what does not fit is read again


class EpisodeReader:
    """Reads episodes by place, keeps the small ones in memory, and puts cached frames in the place of videos.

    Args:
        dataset: Where from.
        cameras: Cameras that will be read.
        frame_size: Size at which a cache keeps frames.
        encoder: Frozen encoder whose features a cache keeps instead.
        cache: The cache, if any.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        cameras: Sequence[str] = (),
        frame_size: int | None = None,
        encoder: VisionEncoder | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self.dataset, self.cameras, self.frame_size = dataset, tuple(cameras), frame_size
        self.encoder, self.cache = encoder, cache
        self._kept: dict[int, Episode] = {}
        self._bytes = 0

    def __call__(self, place: int) -> Episode:
        """Read an episode.

        Raises:
            BadEpisodeError: If it cannot be used.
        """
        if place in self._kept:
            return self._kept[place]
        episode = self.dataset[place]
        size = episode.state.nbytes + episode.actions.nbytes
        if self._bytes + size <= _KEPT_BYTES:
            self._kept[place] = episode
            self._bytes += size
        return episode

    def prepare(self, episode: Episode) -> None:
        """Fill the cache for an episode, so that a broken video shows now.

        Raises:
            BadEpisodeError: If its frames cannot be decoded.
        """
        if self.cache is None:
            return
        for camera in self.cameras:
            if camera in episode.frames and self.encoder is not None:
                self.cache.features(episode, camera, self.encoder)
            elif camera in episode.frames and self.frame_size is not None:
                self.cache.frames(episode, camera, self.frame_size)

    def features(self, episode: Episode) -> Mapping[str, FeatureReader]:
        """Cached features by ``"<encoder.name>/<camera>"``; none without an encoder."""
        if self.encoder is None or self.cache is None:
            return {}
        present = [c for c in self.cameras if c in episode.frames]
        return {f"{self.encoder.name}/{c}": self.cache.features(episode, c, self.encoder) for c in present}

    def batch(
        self, windows: Sequence[Window], frame_count: int | None = None, frames_every: int = 1
    ) -> TrajectoryBatch:
        """Collate windows with frames or features as configured.

        Raises:
            BadEpisodeError: If a video cannot be decoded.
        """
        embedded = self.encoder is not None and self.cache is not None
        return collate(
            windows if embedded or self.cache is None else [self._with_cached_frames(w) for w in windows],
            cameras=() if embedded else self.cameras,
            frame_count=frame_count,
            frame_size=self.frame_size,
            frames_every=frames_every,
            features=self.features if embedded else None,
        )

    def _with_cached_frames(self, window: Window) -> Window:
        assert self.cache is not None and self.frame_size is not None
        episode = window.episode
        present = [c for c in self.cameras if c in episode.frames]
        frames = {c: self.cache.frames(episode, c, self.frame_size) for c in present}
        return replace(window, episode=replace(episode, frames={**episode.frames, **frames}))
