"""Files of a LeRobot v3.0 data set that is written: rows and video in chunks, tables of episodes and tasks."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.container import OutputContainer
from av.video.stream import VideoStream

from ...core.files import replacing

CHUNK = "chunk-{chunk:03d}/file-{file:03d}"
FILES_PER_CHUNK = 1000
Table = Any
"""Type of ``pyarrow.Table``, which ships no types."""


class DataFiles:
    """Parquet files that are filled one after the other, with a row group per episode.

    Args:
        folder: Folder of the data set.
        limit_mb: Size in MB beyond which the next file begins.
    """

    def __init__(self, folder: Path, limit_mb: float | int) -> None:
        self.folder, self.limit = folder, limit_mb * 2**20
        self.number, self.bytes = -1, 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, table: Table) -> tuple[int, int]:
        """Append the rows of an episode; return the chunk and the file they are in."""
        if self.writer is None or self.bytes > self.limit:
            self.close()
            self.number, self.bytes = self.number + 1, 0
            chunk, file = divmod(self.number, FILES_PER_CHUNK)
            path = self.folder / "data" / (CHUNK.format(chunk=chunk, file=file) + ".parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(path, table.schema)
        self.writer.write_table(table, row_group_size=table.num_rows)
        self.bytes += table.nbytes
        return divmod(self.number, FILES_PER_CHUNK)

    def close(self) -> None:
        """Complete the current file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class VideoFiles:
    """Mp4 files of one camera, filled one after the other with encoded episodes.

    Args:
        folder: Folder of the data set.
        key: LeRobot's name of the camera.
        limit_mb: Size in MB beyond which the next file begins.
    """

    def __init__(self, folder: Path, key: str, limit_mb: float | int) -> None:
        self.folder, self.key, self.limit = folder, key, limit_mb * 2**20
        self.number, self.bytes, self.frames = -1, 0, 0
        self.container: OutputContainer | None = None
        self.stream: VideoStream | None = None

    def join(self, clip: Path, fps: float | int) -> tuple[int, int, int]:
        """Append an encoded episode.

        Args:
            clip: Mp4 file of the episode.
            fps: Frames per second.

        Returns:
            Chunk and file that it is in, and the number of frames before it.
        """
        with av.open(str(clip)) as source:
            template = source.streams.video[0]
            if self.container is None or self.bytes > self.limit:
                self.close()
                self.number, self.bytes, self.frames = self.number + 1, 0, 0
                chunk, file = divmod(self.number, FILES_PER_CHUNK)
                path = self.folder / "videos" / self.key / (CHUNK.format(chunk=chunk, file=file) + ".mp4")
                path.parent.mkdir(parents=True, exist_ok=True)
                self.container = av.open(str(path), "w")
                self.stream = self.container.add_stream_from_template(template)
            assert self.stream is not None and template.time_base is not None
            before = self.frames
            shift = round(before / fps / float(template.time_base))
            for packet in source.demux(template):
                if packet.pts is None or packet.dts is None:
                    continue
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = self.stream
                self.container.mux(packet)
                self.frames += 1
        self.bytes += clip.stat().st_size
        return (*divmod(self.number, FILES_PER_CHUNK), before)

    def close(self) -> None:
        """Complete the current file."""
        if self.container is not None:
            self.container.close()
            self.container = None


def drop_columns(path: Path, names: Collection[str]) -> None:
    """Rewrite a parquet file without some of its columns."""
    with replacing(path) as fresh, pq.ParquetFile(path) as source:
        kept = [name for name in source.schema_arrow.names if name not in names]
        with pq.ParquetWriter(fresh, pa.schema([source.schema_arrow.field(name) for name in kept])) as writer:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group).select(kept)
                writer.write_table(table, row_group_size=max(1, table.num_rows))


def episode_table(rows: list[dict[str, Any]]) -> Table:
    """Make the table of episodes; types are named where every value of a column may be missing."""
    names = dict.fromkeys(name for row in rows for name in row)
    optional = {"success": pa.float64(), "group": pa.int64()}
    columns: dict[str, Any] = {}
    for name in names:
        kind = pa.list_(pa.int64()) if name.startswith("frame_steps/") else optional.get(name)
        columns[name] = pa.array([row.get(name) for row in rows], type=kind)
    columns["meta/episodes/chunk_index"] = pa.array(np.zeros(len(rows), np.int64))
    columns["meta/episodes/file_index"] = pa.array(np.zeros(len(rows), np.int64))
    return pa.table(columns)


def task_table(tasks: dict[str, int]) -> Table:
    """Make the table of tasks as ``lerobot`` keeps it: a pandas frame whose index is the instruction."""
    index = "__index_level_0__"
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), index: pa.array(list(tasks))})
    named = {"metadata": None, "field_name": index, "name": None, "numpy_type": "object", "pandas_type": "unicode"}
    number = {"metadata": None, "field_name": "task_index", "name": "task_index"}
    number |= {"numpy_type": "int64", "pandas_type": "int64"}
    header = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [index],
        "columns": [named, number],
        "column_indexes": [header | {"metadata": {"encoding": "UTF-8"}}],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
