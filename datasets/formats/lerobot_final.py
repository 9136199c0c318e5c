"""Final observations of a LeRobot v3.0 data set, kept beside the rows because no action follows them.

Programs that train on LeRobot data sets take every row for a step. The final observation of an episode therefore lies
in the folder ``final``, which they do not read: its numbers in one table, its frames in videos of their own.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..episodes import BadEpisodeError, FrameSource
from .lerobot_columns import KINDS, REWARD, arrow_column, valid_name
from .lerobot_files import CHUNK, VideoFiles
from .lerobot_rows import Table, numbers
from .video import VideoFrames

FOLDER = "final"
"""Folder of the final observations in that of the data set."""
ROWS = f"{FOLDER}/rows.parquet"
"""Table of the final observations, a row per episode that has one."""
VIDEO = f"{FOLDER}/videos/{{video_key}}/{CHUNK}.mp4"
"""Video of the final frames of one camera, each a key frame."""
CHECKED = ("observation.state", "action")
"""Columns by which the rows of an episode are recognised."""
_CHECK = "check"


class OtherRowsError(ValueError):
    """Error of a final observation that was written with other rows than those its episode has now."""


def checksum(columns: Mapping[str, np.ndarray]) -> int:
    """Return the check sum of the states and actions of an episode, by which its final observation is recognised.

    Another program may have removed, shortened or renumbered episodes. A final observation is used only with the rows
    that it was written with.

    Args:
        columns: Values (T, …) by the name of their column.
    """
    total = 0
    for name in CHECKED:
        if name in columns:
            values = np.ascontiguousarray(columns[name], np.float32)
            total = zlib.crc32(values.tobytes(), zlib.crc32(f"{name} {len(values)}".encode(), total))
    return total


class FinalWriter:
    """Writer of the final observations of a data set.

    Args:
        folder: Folder of the data set.
        fps: Frames per second of the videos.
        video_file_mb: Size in MB beyond which a new mp4 file begins.
    """

    def __init__(self, folder: Path, fps: float | int, video_file_mb: float | int) -> None:
        self.folder, self.fps, self.limit = folder, fps, video_file_mb
        self._numbers: list[dict[str, np.ndarray]] = []
        self._frames: list[dict[str, tuple[int, int, float]]] = []
        self._videos: dict[str, VideoFiles] = {}

    def __len__(self) -> int:
        """Return the number of final observations."""
        return len(self._numbers)

    def add(self, number: int, check: int, values: Mapping[str, np.ndarray], clips: Mapping[str, Path]) -> None:
        """Add the final observation of one episode.

        Args:
            number: Number of the episode.
            check: Check sum of its rows; see `checksum`.
            values: Values (1, …) by column.
            clips: Encoded final frame by the feature of the camera; a camera without a final frame is left out.
        """
        frames: dict[str, tuple[int, int, float]] = {}
        for key, clip in clips.items():
            if key not in self._videos:
                self._videos[key] = VideoFiles(self.folder / FOLDER, key, self.limit)
            chunk, file, before = self._videos[key].join(clip, self.fps)
            frames[key] = chunk, file, before / self.fps
        own = {"episode_index": np.array([number], np.int64), _CHECK: np.array([check], np.int64)}
        self._numbers.append(own | dict(values))
        self._frames.append(frames)

    def close(self) -> None:
        """Complete the video files."""
        for files in self._videos.values():
            files.close()

    def finish(self) -> None:
        """Write the table, unless no episode has a final observation."""
        self.close()
        if not self._numbers:
            return
        columns: dict[str, Any] = {
            name: arrow_column(np.concatenate([row[name] for row in self._numbers])) for name in self._numbers[0]
        }
        for key in self._videos:
            parts = [row.get(key, (None, None, None)) for row in self._frames]
            for place, (name, kind) in enumerate(_PARTS.items()):
                columns[f"videos/{key}/{name}"] = pa.array([part[place] for part in parts], kind)
        path = self.folder / ROWS
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)


_PARTS: dict[str, Any] = {"chunk_index": pa.int64(), "file_index": pa.int64(), "timestamp": pa.float64()}


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalObservation:
    """Final observation of one episode."""

    values: Mapping[str, np.ndarray]
    """Values (1, …) by the name of the column."""
    frames: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    """Final frame by the feature of the camera, as a recording of one frame."""


class FinalReader:
    """Reader of the final observations of a data set; the table is read once, when it is first needed.

    Args:
        folder: Folder of the data set.
        columns: Names of the columns to read, where the table has them.
        cameras: Features of the cameras.
        fps: Frames per second of the videos.
    """

    def __init__(self, folder: Path, columns: Sequence[str], cameras: Sequence[str], fps: float) -> None:
        self.folder, self.columns, self.cameras, self.fps = folder, tuple(columns), tuple(cameras), fps
        self._table: Table = None
        self._places: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the table when the object is sent to a worker process."""
        return self.__dict__ | {"_table": None, "_places": {}}

    @property
    def exists(self) -> bool:
        """Whether the data set has a table of final observations."""
        return (self.folder / ROWS).is_file()

    def read(self, episode: int, check: int, steps: int) -> FinalObservation | None:
        """Return the final observation of an episode, or None where there is none.

        Args:
            episode: Number of the episode in its recording.
            check: Check sum of the rows of the episode; see `checksum`.
            steps: Number of steps T of the episode, which is the place of the observation.

        Raises:
            BadEpisodeError: If the table cannot be read (status ``"data"``).
            OtherRowsError: If the observation was written with other rows than those of the episode.
        """
        table = self._open(episode) if self._table is None else self._table
        place = self._places.get(episode)
        if place is None:
            return None
        row = table.slice(place, 1)
        if int(numbers(row, _CHECK, episode)[0]) != check:
            raise OtherRowsError(f"the final observation of episode {episode} was written with other rows")
        names = [name for name in self.columns if name in row.schema.names]
        frames = {key: self._frame(row, key, episode, steps) for key in self.cameras}
        return FinalObservation(
            values={name: numbers(row, name, episode) for name in names},
            frames={key: source for key, source in frames.items() if source is not None},
        )

    def _open(self, episode: int) -> Table:
        path = self.folder / ROWS
        try:
            table = pq.read_table(path)
            self._places = {number: place for place, number in enumerate(table["episode_index"].to_pylist())}
            if _CHECK not in table.schema.names:
                raise KeyError(_CHECK)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise BadEpisodeError(episode, "data", f"{path} cannot be read as final observations: {error}") from error
        self._table = table
        return table

    def _frame(self, row: Table, key: str, episode: int, steps: int) -> FrameSource | None:
        names = [f"videos/{key}/{name}" for name in _PARTS]
        if any(name not in row.schema.names or row[name].null_count for name in names):
            return None
        chunk, file, seconds = (row[name][0].as_py() for name in names)
        return VideoFrames(
            self.folder / VIDEO.format(video_key=key, chunk=chunk, file=file),
            np.array([steps], np.int64),
            seconds=np.array([seconds]),
            fps=self.fps,
            episode=episode,
        )


def with_unknown(columns: Mapping[str, np.ndarray], own: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Add the columns that were left out because no row of them is known.

    Args:
        columns: Values (rows, …) by column.
        own: Content of ``meta/guerdon.json``.
    """
    rows = len(columns["timestamp"])
    full = dict(columns)
    for name, entry in own.get("unknown", {}).items():
        if name not in full:
            full[name] = np.zeros((rows, *([int(np.prod(entry["shape"]))] if entry["shape"] else [])), entry["dtype"])
            full[valid_name(name)] = np.zeros(rows, bool)
    return full


def with_final(columns: dict[str, np.ndarray], final: FinalObservation | None) -> dict[str, np.ndarray]:
    """Append the final observation to the rows of an episode.

    A label, track or recorded column that the final observation lacks is unknown there; other columns repeat.

    Args:
        columns: Values (rows, …) by column.
        final: Final observation, or None where there is none.
    """
    if final is None:
        return columns
    masks = {valid_name(name) for name in columns}
    full: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        if name in masks:
            continue
        last = final.values.get(name, values[-1:]).reshape(1, *values.shape[1:])
        full[name] = np.concatenate([values, last.astype(values.dtype)])
        if name == REWARD or name.split(".")[0] in KINDS:
            mask = valid_name(name)  # left out of the rows where all are known
            known = columns[mask].astype(bool) if mask in columns else finite(values)
            end = final.values.get(mask, np.zeros(1, bool)) if name in final.values else np.zeros(1, bool)
            full[mask] = np.concatenate([known, end.astype(bool)])
    return full


def finite(values: np.ndarray) -> np.ndarray:
    """Return which rows (rows,) of the values (rows, …) hold finite numbers only."""
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))


class ChainedFrames(FrameSource):
    """Frames of one camera in two recordings, one after the other.

    Args:
        first: Recording of the earlier frames.
        last: Recording of the later frames.
    """

    def __init__(self, first: FrameSource, last: FrameSource) -> None:
        self.first, self.last = first, last
        self.step = np.concatenate([first.step, last.step])

    @property
    def identity(self) -> str:
        """Content addresses of both recordings.

        Raises:
            BadEpisodeError: If a file cannot be read (status ``"video"``).
        """
        return f"{self.first.identity}+{self.last.identity}"

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Decode frames by their place 0 … F−1; see `FrameSource.read`.

        Raises:
            IndexError: If a place is outside the recording.
            ValueError: If the places do not ascend.
            BadEpisodeError: If a file is missing, cannot be decoded or ends early (status ``"video"``).
        """
        places, border = np.asarray(indices, np.int64), len(self.first.step)
        if (np.diff(places) < 0).any():
            raise ValueError("expected ascending places, so that one pass over the video is enough")
        early, late = places[places < border], places[places >= border] - border
        if not len(late):
            return self.first.read(early, size)
        if not len(early):
            return self.last.read(late, size)
        return np.concatenate([self.first.read(early, size), self.last.read(late, size)])
