"""Clips of the label page: JPEG pictures of a segment in one file, made when they are first shown.

Pictures instead of a video keep both clips on one clock to the frame, and every browser shows them: the source is
decoded by the reader of the data set, whatever its codec.
"""

import io
import json
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..datasets.episodes import BadEpisodeError, Episode, EpisodeDataset, EpisodeSummary
from ..preference.segments import Segment, SegmentPair

_SIDE = 360  # largest shorter side of a picture, in pixels
_FRAMES = 240  # largest number of pictures of a clip
_QUALITY = 85
_KEPT = 64 * 2**20  # bytes of clips that are kept in memory


class Clips:
    """Clips of the segments of one data set.

    A clip is a header and its pictures, one after another: four bytes with the length of the header (big endian), the
    header as JSON (``times``: seconds of each picture since the start of the segment; ``seconds``: length of the
    segment; ``sizes``: bytes of each picture), then JPEG pictures. Recent clips are kept in memory. Methods may be
    called from several threads.

    Args:
        dataset: Data set with frames.
        camera: Name of the camera; None takes the first.

    Raises:
        ValueError: If the data set has no frames, or no such camera.
    """

    def __init__(self, dataset: EpisodeDataset, camera: str | None = None) -> None:
        if not dataset.cameras:
            raise ValueError(
                f"{dataset.name} has no frames to show: record them (`guerdon collect … --frames`) or give another "
                "data set"
            )
        if camera is not None and camera not in dataset.cameras:
            raise ValueError(f"{dataset.name} has no camera {camera!r}: expected one of {', '.join(dataset.cameras)}")
        self.camera = camera or dataset.cameras[0]
        self._dataset = dataset
        summaries = [dataset.summary(place) for place in range(len(dataset))]
        self._summaries = {s.index: (place, s) for place, s in enumerate(summaries)}
        self._kept: OrderedDict[Segment, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, pairs: Sequence[SegmentPair]) -> None:
        """Check that the data set holds every segment, as far as summaries tell.

        Raises:
            ValueError: If it lacks an episode or a step; the message names the pair.
        """
        for pair in pairs:
            for segment in (pair.first, pair.second):
                if segment.episode not in self._summaries:
                    raise ValueError(
                        f"pair {pair.id!r}: {self._dataset.name} has no episode {segment.episode}: give the data set "
                        "that the pairs were made from"
                    )
                steps = self._summaries[segment.episode][1].steps
                if steps and max(segment.start + 1, segment.stop or 0) > steps:
                    raise ValueError(
                        f"pair {pair.id!r}: episode {segment.episode} of {self._dataset.name} has {steps} steps, the "
                        f"segment needs steps {segment.start} … {segment.stop or 'end'}: give the data set that the "
                        "pairs were made from"
                    )

    def summary(self, segment: Segment) -> EpisodeSummary:
        """Return the summary of the episode of a segment."""
        return self._summaries[segment.episode][1]

    def clip(self, segment: Segment) -> bytes:
        """Return the clip of a segment; see the class for its format.

        Raises:
            BadEpisodeError: If the episode or its frames cannot be read.
        """
        with self._lock:
            if segment not in self._kept:
                self._kept[segment] = self._make(segment)
                while len(self._kept) > 1 and sum(map(len, self._kept.values())) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(segment)
            return self._kept[segment]

    def _make(self, segment: Segment) -> bytes:
        episode = self._dataset[self._summaries[segment.episode][0]]
        if self.camera not in episode.frames or not len(episode.frames[self.camera].step):
            raise BadEpisodeError(segment.episode, "frames", f"camera {self.camera!r} recorded no frames")
        source = episode.frames[self.camera]
        stop = min(episode.steps if segment.stop is None else segment.stop, episode.steps)
        if segment.start >= stop:
            raise BadEpisodeError(
                segment.episode, "short", f"expected more than {segment.start} steps, got {episode.steps}"
            )
        places = _places(source.step, segment.start, stop - (stop == episode.steps and not episode.last_observed))
        times = np.maximum(source.step[places] - segment.start, 0) / episode.fps
        pictures = [_jpeg(frame) for frame in _read(episode, self.camera, places)]
        header = json.dumps(
            {
                "times": [round(float(t), 4) for t in times],
                "seconds": round((stop - segment.start) / episode.fps, 4),
                "sizes": [len(picture) for picture in pictures],
            }
        ).encode()
        return b"".join([struct.pack(">I", len(header)), header, *pictures])


def _places(step: np.ndarray, start: int, last: int) -> np.ndarray:
    """Select the frames of observations ``start`` … ``last``, and the frame that holds at ``start``."""
    first = max(int(np.searchsorted(step, start, side="right")) - 1, 0)
    end = max(int(np.searchsorted(step, last, side="right")), first + 1)
    places = np.arange(first, end)
    if len(places) > _FRAMES:
        places = places[np.linspace(0, len(places) - 1, _FRAMES).round().astype(int)]
    return places


def _read(episode: Episode, camera: str, places: np.ndarray) -> np.ndarray:
    """Decode frames, scaled down where they are larger than the page shows."""
    source = episode.frames[camera]
    height, width = source.read(places[:1]).shape[2:]
    return source.read(places, _SIDE if min(height, width) > _SIDE else None)


def _jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


__all__ = ["Clips"]
