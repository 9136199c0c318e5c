"""Writer of LeRobot v3.0 data sets: parquet rows, H.264 video, tasks and statistics."""

import os
import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.files import write_json
from ..episodes import BadEpisodeError, Episode, FrameSource
from .lerobot_columns import (
    Field,
    arrow_column,
    columns_of,
    fields_of,
    index_columns,
    masks_of,
    require_same_fields,
    schema_error,
    valid_name,
)
from .lerobot_files import CHUNK, FILES_PER_CHUNK, DataFiles, VideoFiles, drop_columns, episode_table, task_table
from .lerobot_final import FinalWriter, checksum
from .lerobot_meta import OWN, own_entries
from .lerobot_stats import Stats, complete_stats, picture_stats, vector_stats
from .video import write_video

STATS_FRAMES = 100
"""Number of frames per camera and episode that the statistics of pictures are computed from."""


class LeRobotWriter:
    """Writer of a LeRobot v3.0 data set, used in a ``with`` block.

    Everything is written to a hidden folder next to the target, which gets its name when the block ends without an
    error. An exception or Ctrl-C leaves nothing behind. Episodes are numbered 0, 1, … in the order they are added.

    Each step is a row. The final observation of an episode is no row, because other programs train on every row: it
    lies in the folder ``final``. An episode with ``last_observed=False`` has none. No column holds a NaN: unknown
    values are 0, and a column ``….valid`` says which they are. It is left out where every row is known, and the values
    with it where no row is. See ``docs/datasets.md`` for all columns.

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
        self._stats: list[dict[str, Stats | None]] = []
        self._rows = 0
        self._known: dict[str, int] = {}  # column → number of rows in which its value is known
        self._data: DataFiles | None = None
        self._final: FinalWriter | None = None
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
        fields = fields_of(episode)
        if self._episodes:
            require_same_fields(episode, fields, self._fields)
        number, task = len(self._episodes), self._tasks.get(episode.instruction, len(self._tasks))
        columns, final = columns_of(episode, fields)
        clips = {camera: self._partial / f"{number}-{place}.mp4" for place, camera in enumerate(episode.frames)}
        ends = {
            camera: clip.with_suffix(".final.mp4") for camera, clip in clips.items() if has_final_frame(episode, camera)
        }
        try:
            stats: dict[str, Stats | None] = {}
            sizes: dict[str, tuple[int, int]] = {}
            for camera, clip in clips.items():
                sizes[camera], stats[camera_key(camera)] = self._encode(episode, camera, clip, ends.get(camera))
            if self._episodes and sizes != self._sizes:
                raise schema_error(episode, f"cameras (height, width) {self._sizes}", str(sizes))
            # nothing below refuses the episode: from here on it belongs to the data set
            if not self._episodes:
                self._begin(fields, sizes)
            self._tasks.setdefault(episode.instruction, task)
            masks = masks_of(columns)
            for name, mask in masks.items():
                self._known[name] = self._known.get(name, 0) + int(mask.sum())
            check = checksum(columns)
            columns |= index_columns(number, task, self._rows, episode.steps, self.fps)
            stats |= {
                name: vector_stats(values[masks[name]] if name in masks else values) for name, values in columns.items()
            }
            self._record(episode, number, stats, columns, clips)
            if episode.last_observed:
                assert self._final is not None
                self._final.add(number, check, final, {camera_key(camera): clip for camera, clip in ends.items()})
        finally:
            for clip in (*clips.values(), *ends.values()):
                clip.unlink(missing_ok=True)
        return number

    def _begin(self, fields: dict[str, Field], sizes: dict[str, tuple[int, int]]) -> None:
        """Take the columns and cameras of the first episode for those of the data set, and open its files."""
        assert self._partial is not None
        self._fields, self._sizes = fields, sizes
        self._data = DataFiles(self._partial, self.data_file_mb)
        self._videos = {c: VideoFiles(self._partial, camera_key(c), self.video_file_mb) for c in sizes}
        self._final = FinalWriter(self._partial, self.fps, self.video_file_mb)

    def _encode(
        self, episode: Episode, camera: str, clip: Path, end: Path | None
    ) -> tuple[tuple[int, int], Stats | None]:
        """Encode the frames of the steps, and the final frame in a file of its own."""
        source, steps = episode.frames[camera], episode.steps
        places = _held_places(episode, camera, source, steps)
        own = int(np.searchsorted(source.step, steps))
        sampled = source.read(np.unique(np.linspace(0, own - 1, STATS_FRAMES).astype(np.int64)))

        def pictures(chosen: np.ndarray) -> Any:
            for start in range(0, len(chosen), 64):
                yield from source.read(chosen[start : start + 64])

        try:
            write_video(clip, pictures(places), self.fps, crf=self.crf, key_interval=self.key_interval)
            if end is not None:
                write_video(end, pictures(np.array([len(source.step) - 1])), self.fps, crf=self.crf)
        except BadEpisodeError:
            raise
        except ValueError as error:
            raise BadEpisodeError(episode.index, "shape", f"camera {camera!r}: {error}") from error
        return (sampled.shape[2], sampled.shape[3]), picture_stats(sampled)

    def _record(
        self,
        episode: Episode,
        number: int,
        stats: dict[str, Stats | None],
        columns: dict[str, np.ndarray],
        clips: dict[str, Path],
    ) -> None:
        assert self._data is not None
        rows = episode.steps
        chunk, file = self._data.write(pa.table({name: arrow_column(values) for name, values in columns.items()}))
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.instruction], "length": rows}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self._rows, "dataset_to_index": self._rows + rows}
        observed = rows + int(episode.last_observed)
        for camera, clip in clips.items():
            prefix = f"videos/{camera_key(camera)}"
            chunk, file, before = self._videos[camera].join(clip, self.fps)
            row |= {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}
            row |= {f"{prefix}/from_timestamp": before / self.fps, f"{prefix}/to_timestamp": (before + rows) / self.fps}
            step = np.asarray(episode.frames[camera].step)
            step = step[step < observed]
            row[f"frame_steps/{camera}"] = None if len(step) == observed else step.tolist()
        row |= {"success": episode.success, "end": episode.end.name, "last_observed": episode.last_observed}
        row |= {"task": episode.task, "group": episode.group, "source": episode.source}
        row |= {"quality": episode.quality, "context": episode.context, "split": episode.split}
        self._episodes.append(row)
        self._stats.append(stats)
        self._rows += rows

    def _finish(self, partial: Path) -> None:
        if not self._episodes:
            raise ValueError(f"{self.folder}: expected at least one episode, none was added")
        self._close()
        dropped = self._constant_columns()
        if dropped:
            for path in sorted((partial / "data").glob("*/*.parquet")):
                drop_columns(path, dropped)
        fields = {name: field for name, field in self._fields.items() if name not in dropped}
        kept = [{name: values for name, values in stats.items() if name not in dropped} for stats in self._stats]
        whole, rows = complete_stats(kept)
        episodes = partial / "meta" / "episodes" / (CHUNK.format(chunk=0, file=0) + ".parquet")
        episodes.parent.mkdir(parents=True)
        pq.write_table(episode_table([a | b for a, b in zip(self._episodes, rows, strict=True)]), episodes)
        pq.write_table(task_table(self._tasks), partial / "meta" / "tasks.parquet")
        write_json(partial / "meta" / "stats.json", whole)
        write_json(partial / "meta" / "info.json", self._info(fields))
        assert self._final is not None
        self._final.finish()
        unknown = {name: self._fields[name] for name in dropped if name in self._known}
        write_json(partial / OWN, own_entries(self._fields, unknown, len(self._final)))

    def _constant_columns(self) -> set[str]:
        """Return the columns that say nothing: flags of what is known everywhere, and values known nowhere."""
        dropped = {valid_name(name) for name, known in self._known.items() if known in (0, self._rows)}
        dropped |= {name for name, known in self._known.items() if known == 0}
        if any(row["success"] is None for row in self._episodes):
            # A row flag cannot be unknown: where the outcome of one episode is, the column is left out.
            dropped.add("next.success")
        return dropped

    def _info(self, fields: dict[str, Field]) -> dict[str, Any]:
        fps = _whole(self.fps)
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
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type or None,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": _whole(self.data_file_mb),
            "video_files_size_in_mb": _whole(self.video_file_mb),
            "fps": fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features | {name: field.feature for name, field in index.items()},
        }

    def _close(self) -> None:
        for files in (self._data, self._final, *self._videos.values()):
            if files is not None:
                files.close()


def camera_key(camera: str) -> str:
    """Return LeRobot's name of a camera."""
    return f"observation.images.{camera}"


def has_final_frame(episode: Episode, camera: str) -> bool:
    """Tell whether a camera recorded a frame of its own at the final observation."""
    step = episode.frames[camera].step
    return episode.last_observed and len(step) > 0 and int(step[-1]) == episode.steps


def refuse_existing(folder: Path) -> None:
    """Refuse a folder that is not empty.

    Raises:
        FileExistsError: If the folder holds something, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: remove it or name another")


def _held_places(episode: Episode, camera: str, source: FrameSource, rows: int) -> np.ndarray:
    """Return the last frame at or before each row, since LeRobot stores one picture per row."""
    step = np.asarray(source.step)
    if not len(step) or step[0] != 0:
        raise BadEpisodeError(
            episode.index, "video", f"camera {camera!r}: expected a frame at observation 0, the first is at {step[:1]}"
        )
    return np.searchsorted(step, np.arange(rows), side="right") - 1


def _whole(number: float | int) -> float | int:
    return int(number) if float(number).is_integer() else number
