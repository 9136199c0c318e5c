"""Columns of a LeRobot v3.0 data set: which an episode needs, their values, and their validity."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ...core.batch import End
from ..episodes import BadEpisodeError, Column, Episode

KINDS = {"label": "labels", "track": "tracks", "recorded": "recorded"}
"""Prefix of a column's name → field of `Episode` that it comes from."""
REWARD = "next.reward"
"""LeRobot's name of the column of the reward."""


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


def schema_error(episode: Episode, expected: str, got: str) -> BadEpisodeError:
    """Make the error of an episode with other columns or cameras than the episodes before it."""
    return BadEpisodeError(episode.index, "schema", f"expected {expected} as in the episodes before, got {got}")


def fields_of(episode: Episode) -> dict[str, Field]:
    """Return the parquet columns that an episode needs, in order.

    Raises:
        BadEpisodeError: If a name holds a slash (status ``"schema"``), or a column holds no numbers (``"dtype"``).
    """
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


def require_same_fields(episode: Episode, fields: dict[str, Field], wanted: dict[str, Field]) -> None:
    """Require an episode to have the columns of the episodes before it.

    Args:
        episode: Episode, for the error.
        fields: Columns of the episode.
        wanted: Columns of the episodes before it.

    Raises:
        BadEpisodeError: If a column differs (status ``"schema"``).
    """
    if fields == wanted:
        return
    for name in [*wanted, *fields]:
        if fields.get(name) != wanted.get(name):
            raise schema_error(
                episode, f"column {name!r} {wanted.get(name, 'absent')}", str(fields.get(name, "no such column"))
            )


def columns_of(episode: Episode, fields: dict[str, Field]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the values (rows, …) of each parquet column, and the validity masks (rows,) of those that have one.

    Args:
        episode: Episode to write.
        fields: Columns of the episode by name; see `fields_of`.

    Raises:
        BadEpisodeError: If a column is valid at an observation that was not made (status ``"label"``), or a valid value
            is not finite (``"not_finite"``).
    """
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


def index_columns(number: int, task: int, first: int, rows: int, fps: float | int) -> dict[str, np.ndarray]:
    """Make LeRobot's index columns of an episode.

    Args:
        number: Number of the episode.
        task: Number of its instruction.
        first: Number of rows in the episodes before it.
        rows: Number of its rows.
        fps: Control steps per second.
    """
    frame = np.arange(rows, dtype=np.int64)
    return {
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(rows, number, np.int64),
        "index": first + frame,
        "task_index": np.full(rows, task, np.int64),
    }


def arrow_column(values: np.ndarray) -> Any:
    """Make a parquet column; vectors have a fixed size, and a vector of one is a number, as ``lerobot`` expects."""
    flat = np.ascontiguousarray(values).reshape(-1)
    width = len(flat) // len(values)
    return pa.array(flat) if width == 1 else pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
