"""Writer of LeRobot v3.0 data sets: parquet rows, H.264 video, tasks and statistics."""

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.batch import End
from ...core.files import write_json
from ..episodes import BadEpisodeError, Column, Episode, FrameSource
from .lerobot_files import CHUNK, FILES_PER_CHUNK, DataFiles, VideoFiles, drop_column, episode_table, task_table
from .lerobot_stats import Stats, join_stats, picture_stats, vector_stats
from .video import write_video

STATS_FRAMES = 100
"""Number of frames per camera and episode that the statistics of pictures are computed from."""

KINDS = {"label": "labels", "track": "tracks", "recorded": "recorded"}
"""Prefix of a column's name → field of `Episode` that it comes from."""
REWARD = "next.reward"


@dataclass(frozen=True)
class Field:
    """Type and shape of one parquet column, the same for all episodes."""

    dtype: str
    """Type of the numbers."""
    shape: tuple[int, ...]
    """Shape of a row; () for a single number."""
    per: str = "observation"
    """``observation`` for T + 1 values; ``step`` for T values, of which the final row holds none."""

    @property
    def feature(self) -> dict[str, Any]:
        """Entry in ``info.json``, where a single number has shape [1] and nested shapes are flat."""
        return {"dtype": self.dtype, "shape": [int(np.prod(self.shape))], "names": None}


class LeRobotWriter:
    """Writer of a LeRobot v3.0 data set, used in a ``with`` block.

    Everything is written to a hidden folder next to the target, which gets its name when the block ends without an
    error. An exception or Ctrl-C leaves nothing behind. Episodes are numbered 0, 1, … in the order they are added.

    Each observation is a row. The last row of an episode is flagged in the column ``final`` where the final observation
    is real (it repeats the last action, and its reward is 0); an episode with ``last_observed=False`` has no such row.
    See ``docs/datasets.md`` for all columns.

    Args:
        folder: Folder of the data set; new or empty.
        fps: Control steps per second, also the clock of the cameras.
        robot_type: Name of the robot, for ``info.json``.
        crf: Video quality, from 0 (lossless) to 51.
        key_interval: Number of frames from one key frame to the next.
        data_file_mb: Size in MB beyond which a new parquet file begins.
        video_file_mb: Size in MB beyond which a new mp4 file begins.

    Raises:
        FileExistsError: If the folder is not empty.
        ValueError: If fps is not positive, or the block ends without an episode.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        fps: float | int,
        *,
        robot_type: str = "",
        crf: int = 23,
        key_interval: int = 8,
        data_file_mb: float | int = 100.0,
        video_file_mb: float | int = 200.0,
    ) -> None:
        self.folder = Path(folder)
        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        refuse_existing(self.folder)
        self.fps = fps
        self.robot_type = robot_type
        self.crf, self.key_interval = crf, key_interval
        self.data_file_mb, self.video_file_mb = data_file_mb, video_file_mb
        self._partial: Path | None = None
        self._fields: dict[str, Field] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # camera → height, width
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: dict[str, list[Stats]] = {}
        self._rows = 0
        self._data: DataFiles | None = None
        self._videos: dict[str, VideoFiles] = {}

    def __enter__(self) -> "LeRobotWriter":
        """Make the hidden folder."""
        partial = self.folder.parent / f".{self.folder.name}.{uuid.uuid4().hex[:8]}.partial"
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise OSError(f"cannot write {self.folder}: {error.strerror}; choose another folder") from error
        self._partial = partial
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish and give the folder its name, or remove what was written."""
        partial, self._partial = self._partial, None
        assert partial is not None
        try:
            if kind is None:
                self._finish(partial)
                refuse_existing(self.folder)
                os.replace(partial, self.folder)
        finally:
            self._close()
            shutil.rmtree(partial, ignore_errors=True)

    def __len__(self) -> int:
        """Return the number of episodes written so far."""
        return len(self._episodes)

    def add(self, episode: Episode) -> int:
        """Write one episode; a refused episode leaves no trace, and others may follow.

        Args:
            episode: Episode to write.

        Returns:
            Number of the episode in the data set.

        Raises:
            BadEpisodeError: If it has other columns, shapes or cameras than the episodes before it (status
                ``"schema"``), a known value is not finite (``"not_finite"``), or its frames cannot be read.
            RuntimeError: Outside a ``with`` block.
        """
        if self._partial is None:
            raise RuntimeError("LeRobotWriter.add: use the writer in a `with` block")
        fields = _fields_of(episode)
        if self._episodes:
            _compare(episode, fields, self._fields)
        number, task = len(self._episodes), self._tasks.get(episode.instruction, len(self._tasks))
        count = episode.steps + int(episode.last_observed)
        columns, masks = _columns_of(episode, fields)
        clips = {camera: self._partial / f"{number}-{place}.mp4" for place, camera in enumerate(episode.frames)}
        try:
            stats: dict[str, Stats | None] = {}
            sizes: dict[str, tuple[int, int]] = {}
            for camera, clip in clips.items():
                key = camera_key(camera)
                sizes[camera], stats[key] = self._encode(episode, camera, clip, count)
            if self._episodes and sizes != self._sizes:
                raise _schema_error(episode, f"cameras (height, width) {self._sizes}", str(sizes))
            # nothing below refuses the episode: from here on it belongs to the data set
            if not self._episodes:
                self._fields, self._sizes = fields, sizes
                self._data = DataFiles(self._partial, self.data_file_mb)
                self._videos = {c: VideoFiles(self._partial, camera_key(c), self.video_file_mb) for c in clips}
            self._tasks.setdefault(episode.instruction, task)
            columns |= _index_columns(number, task, self._rows, count, self.fps)
            stats |= {name: vector_stats(_kept(values, masks.get(name))) for name, values in columns.items()}
            self._record(episode, number, task, count, stats, columns, clips)
        finally:
            for clip in clips.values():
                clip.unlink(missing_ok=True)
        return number

    def _encode(self, episode: Episode, camera: str, clip: Path, rows: int) -> tuple[tuple[int, int], Stats | None]:
        source = episode.frames[camera]
        places = _held_places(episode, camera, source, rows)
        sampled = source.read(np.unique(np.linspace(0, len(source.step) - 1, STATS_FRAMES).astype(np.int64)))

        def pictures() -> Any:
            for start in range(0, rows, 64):
                yield from source.read(places[start : start + 64])

        try:
            write_video(clip, pictures(), self.fps, crf=self.crf, key_interval=self.key_interval)
        except BadEpisodeError:
            raise
        except ValueError as error:
            raise BadEpisodeError(episode.index, "shape", f"camera {camera!r}: {error}") from error
        return (sampled.shape[2], sampled.shape[3]), picture_stats(sampled)

    def _record(
        self,
        episode: Episode,
        number: int,
        task: int,
        rows: int,
        stats: dict[str, Stats | None],
        columns: dict[str, np.ndarray],
        clips: dict[str, Path],
    ) -> None:
        assert self._data is not None
        chunk, file = self._data.write(pa.table({name: _arrow(values) for name, values in columns.items()}))
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.instruction], "length": rows}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self._rows, "dataset_to_index": self._rows + rows}
        for camera, clip in clips.items():
            prefix = f"videos/{camera_key(camera)}"
            chunk, file, before = self._videos[camera].join(clip, self.fps)
            row |= {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}
            row |= {f"{prefix}/from_timestamp": before / self.fps, f"{prefix}/to_timestamp": (before + rows) / self.fps}
            step = np.asarray(episode.frames[camera].step)
            step = step[step < rows]
            row[f"frame_steps/{camera}"] = None if len(step) == rows else step.tolist()
        row |= {"success": episode.success, "end": episode.end.name, "last_observed": episode.last_observed}
        row |= {"task": episode.task, "group": episode.group, "source": episode.source}
        row |= {"quality": episode.quality, "context": episode.context, "split": episode.split}
        for name, values in stats.items():
            if values is not None:
                self._stats.setdefault(name, []).append(values)
                row |= {f"stats/{name}/{key}": value.tolist() for key, value in values.items()}
        self._episodes.append(row)
        self._rows += rows

    def _finish(self, partial: Path) -> None:
        if not self._episodes:
            raise ValueError(f"{self.folder}: expected at least one episode, none was added")
        self._close()
        fields = dict(self._fields)
        if any(row["success"] is None for row in self._episodes):
            # A row flag cannot be unknown: where the outcome of one episode is, the column is left out.
            fields.pop("next.success")
            for path in sorted((partial / "data").glob("*/*.parquet")):
                drop_column(path, "next.success")
        episodes = partial / "meta" / "episodes" / (CHUNK.format(chunk=0, file=0) + ".parquet")
        episodes.parent.mkdir(parents=True)
        pq.write_table(episode_table(self._episodes), episodes)
        pq.write_table(task_table(self._tasks), partial / "meta" / "tasks.parquet")
        stats = {
            name: {key: value.tolist() for key, value in join_stats(parts).items()}
            for name, parts in self._stats.items()
            if name != "next.success" or name in fields
        }
        write_json(partial / "meta" / "stats.json", stats)
        write_json(partial / "meta" / "info.json", self._info(fields))

    def _info(self, fields: dict[str, Field]) -> dict[str, Any]:
        fps = int(self.fps) if float(self.fps).is_integer() else self.fps
        features = {name: field.feature for name, field in fields.items()}
        for camera, (height, width) in self._sizes.items():
            video = {"video.height": height, "video.width": width, "video.codec": "h264", "video.pix_fmt": "yuv420p"}
            video |= {"video.is_depth_map": False, "video.fps": fps, "video.channels": 3, "has_audio": False}
            names = ["height", "width", "channels"]
            features[camera_key(camera)] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": names,
                "info": video,
            }
        index = {"timestamp": Field("float32", ())}
        index |= {name: Field("int64", ()) for name in ("frame_index", "episode_index", "index", "task_index")}
        own = {n: {"per": f.per, "shape": list(f.shape)} for n, f in fields.items() if n.split(".")[0] in KINDS}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type or None,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": self.data_file_mb,
            "video_files_size_in_mb": self.video_file_mb,
            "fps": fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features | {name: field.feature for name, field in index.items()},
            "guerdon": {"format": 1, "columns": own},
        }

    def _close(self) -> None:
        for files in (self._data, *self._videos.values()):
            if files is not None:
                files.close()


def camera_key(camera: str) -> str:
    """Return LeRobot's name of a camera."""
    return f"observation.images.{camera}"


def refuse_existing(folder: Path) -> None:
    """Refuse a folder that is not empty.

    Raises:
        FileExistsError: If the folder holds something, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: remove it or name another")


def _schema_error(episode: Episode, expected: str, got: str) -> BadEpisodeError:
    return BadEpisodeError(episode.index, "schema", f"expected {expected} as in the episodes before, got {got}")


def _fields_of(episode: Episode) -> dict[str, Field]:
    """Return the parquet columns that an episode needs, in order."""
    fields: dict[str, Field] = {}
    for name, values in (("observation.state", episode.state), ("action", episode.actions)):
        if values.shape[1]:
            fields[name] = Field("float32", (values.shape[1],))
    for kind, attribute in KINDS.items():
        columns: dict[str, Column] = getattr(episode, attribute)
        for name, column in columns.items():
            if "/" in name:
                raise BadEpisodeError(episode.index, "schema", f"{kind} {name!r}: LeRobot allows no '/' in names")
            if column.values.dtype.kind not in "fiub":
                raise BadEpisodeError(
                    episode.index, "dtype", f"{kind} {name!r}: expected numbers or bools, got {column.values.dtype}"
                )
            per = "step" if len(column.values) == episode.steps else "observation"
            field = Field(column.values.dtype.name, column.values.shape[1:], per)
            reward = (kind, name) == ("recorded", "reward") and field.per == "step" and not field.shape
            fields[REWARD if reward else f"{kind}.{name}"] = field
            fields[f"{kind}.{name}.valid"] = Field("bool", (), per)
    for camera in episode.frames:
        if "/" in camera:
            raise BadEpisodeError(episode.index, "schema", f"camera {camera!r}: LeRobot allows no '/' in names")
    return fields | dict.fromkeys(("next.done", "next.success", "final"), Field("bool", ()))


def _compare(episode: Episode, fields: dict[str, Field], wanted: dict[str, Field]) -> None:
    if fields == wanted:
        return
    for name in [*wanted, *fields]:
        if fields.get(name) != wanted.get(name):
            raise _schema_error(
                episode, f"column {name!r} {wanted.get(name, 'absent')}", str(fields.get(name, "no such column"))
            )


def _columns_of(episode: Episode, fields: dict[str, Field]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the values (rows, …) of each parquet column, and the validity masks (rows,) of those that have one."""
    steps, rows = episode.steps, episode.steps + int(episode.last_observed)
    columns: dict[str, np.ndarray] = {}
    masks: dict[str, np.ndarray] = {}
    if "observation.state" in fields:
        columns["observation.state"] = episode.state[:rows]
    if "action" in fields:
        columns["action"] = episode.actions[np.minimum(np.arange(rows), steps - 1)]
    for kind, attribute in KINDS.items():
        for name, column in getattr(episode, attribute).items():
            key = f"{kind}.{name}"
            stored = key if key in fields else REWARD
            values, valid = _fit(episode, key, column, rows)
            if stored == REWARD and rows > steps:
                values[-1] = 0
            columns[stored], columns[f"{key}.valid"], masks[stored] = values, valid, valid
    last = np.arange(rows) >= steps - 1
    columns["next.done"] = last & (episode.end != End.CUT)
    columns["next.success"] = last & (episode.success == 1.0)
    columns["final"] = np.arange(rows) == steps
    return {name: columns[name] for name in fields}, masks


def _fit(episode: Episode, key: str, column: Column, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a column to a number of rows; unknown values are NaN where the type has one, else 0."""
    if column.valid[rows:].any():
        raise BadEpisodeError(
            episode.index, "label", f"{key} is marked valid at the last observation, which was not observed"
        )
    known = column.valid.astype(bool)
    if column.values.dtype.kind == "f" and not np.isfinite(column.values[known]).all():
        raise BadEpisodeError(episode.index, "not_finite", f"{key} holds a valid value that is not a number")
    blank = np.nan if column.values.dtype.kind == "f" else 0
    values = np.full((rows, *column.values.shape[1:]), blank, column.values.dtype)
    valid = np.zeros(rows, bool)
    valid[: len(known)] = known[:rows]
    values[valid] = column.values[:rows][known[:rows]]
    return values, valid


def _kept(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    return values if valid is None else values[valid]


def _held_places(episode: Episode, camera: str, source: FrameSource, rows: int) -> np.ndarray:
    """Return the last frame at or before each row, since LeRobot stores one picture per row."""
    step = np.asarray(source.step)
    if not len(step) or step[0] != 0:
        raise BadEpisodeError(
            episode.index, "video", f"camera {camera!r}: expected a frame at observation 0, the first is at {step[:1]}"
        )
    return np.searchsorted(step, np.arange(rows), side="right") - 1


def _index_columns(number: int, task: int, first: int, rows: int, fps: float | int) -> dict[str, np.ndarray]:
    frame = np.arange(rows, dtype=np.int64)
    return {
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(rows, number, np.int64),
        "index": first + frame,
        "task_index": np.full(rows, task, np.int64),
    }


def _arrow(values: np.ndarray) -> Any:
    """Make a parquet column; vectors have a fixed size, and a vector of one is a number, as ``lerobot`` expects."""
    flat = np.ascontiguousarray(values).reshape(-1)
    width = len(flat) // len(values)
    return pa.array(flat) if width == 1 else pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
