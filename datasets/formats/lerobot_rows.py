"""Rows of single episodes from parquet files of many, reading only the row groups and columns that are needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..episodes import BadEpisodeError

Table = Any
"""Type of ``pyarrow.Table``, which ships no types."""


class EpisodeRows:
    """Reader of the rows of one episode at a time; the current file stays open and its last row groups in memory.

    Args:
        columns: Names of the columns to read.
    """

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self._forget()

    def _forget(self) -> None:
        self._path: Path | None = None
        self._file: Any = None
        self._spans: list[tuple[int, int]] = []
        self._held: tuple[tuple[int, ...], Table, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files when the object is sent to a worker process."""
        return {"columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the object with nothing open."""
        self.columns = state["columns"]
        self._forget()

    def read(self, path: Path, episode: int, length: int) -> Table:
        """Read the rows of an episode in the order they were recorded.

        Args:
            path: Parquet file.
            episode: Number of the episode in it.
            length: Number of rows that the table of episodes promises.

        Raises:
            BadEpisodeError: If the file is missing or damaged (status ``"data"``), lacks a column (``"column"``), or
                holds another number of rows than it should (``"shape"``).
        """
        try:
            if path != self._path:
                self._open(path)
            groups = tuple(g for g, (low, high) in enumerate(self._spans) if low <= episode <= high)
            if self._held is None or self._held[0] != groups:
                self._held = None
                missing = [name for name in self.columns if name not in self._file.schema_arrow.names]
                if missing:
                    raise BadEpisodeError(
                        episode,
                        "column",
                        f"{path} lacks {', '.join(missing)}, which info.json promises; "
                        f"it has {', '.join(self._file.schema_arrow.names)}",
                    )
                table = self._file.read_row_groups(list(groups), columns=self.columns)
                self._held = groups, table, table["episode_index"].to_numpy()
        except FileNotFoundError as error:
            self._forget()
            raise BadEpisodeError(episode, "data", f"there is no file {path}") from error
        except (pa.ArrowException, OSError) as error:
            self._forget()
            raise BadEpisodeError(episode, "data", f"{path} cannot be read as parquet: {error}") from error
        _, table, owners = self._held
        places = np.flatnonzero(owners == episode)
        if len(places) != length or (len(places) and places[-1] - places[0] + 1 != length):
            raise BadEpisodeError(
                episode,
                "shape",
                f"meta/episodes promises {length} consecutive rows in {path}, got {len(places)}",
            )
        return table.slice(int(places[0]) if len(places) else 0, length)

    def _open(self, path: Path) -> None:
        self._forget()
        self._file = pq.ParquetFile(path, memory_map=True)
        metadata = self._file.metadata
        names = [metadata.schema.column(c).path for c in range(metadata.num_columns)]
        place = names.index("episode_index") if "episode_index" in names else -1
        self._spans = [(0, 2**62)] * metadata.num_row_groups
        for group in range(metadata.num_row_groups if place >= 0 else 0):
            statistics = metadata.row_group(group).column(place).statistics
            if statistics is not None and statistics.has_min_max:
                self._spans[group] = (statistics.min, statistics.max)
        self._path = path


def numbers(table: Table, name: str, episode: int) -> np.ndarray:
    """Convert a column to numbers, (rows,) or (rows, D).

    Args:
        table: Rows of an episode.
        name: Name of the column.
        episode: Number of the episode, for errors.

    Raises:
        BadEpisodeError: If the column holds something else (status ``"dtype"``), gaps (``"not_finite"``), or rows of
            different widths (``"shape"``).
    """
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk at all
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if column.null_count:
        raise BadEpisodeError(episode, "not_finite", f"column {name!r} has {column.null_count} empty rows")
    kind = column.type
    width: int | None = None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) and (lengths != lengths[0]).any():
            odd = int((lengths != lengths[0]).argmax())
            raise BadEpisodeError(
                episode, "shape", f"column {name!r} is {lengths[0]} wide, at row {odd} it is {lengths[odd]} wide"
            )
        width = int(lengths[0]) if len(lengths) else 0
        column = column.flatten()
        kind = column.type
        if column.null_count:
            raise BadEpisodeError(episode, "not_finite", f"column {name!r} has {column.null_count} empty entries")
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise BadEpisodeError(episode, "dtype", f"column {name!r}: expected numbers, got {table[name].type}")
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    return values if width is None else values.reshape(-1, width)
