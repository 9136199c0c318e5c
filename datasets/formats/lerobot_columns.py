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
    """``observation`` for T + 1 values, the last of which is no row of the data; ``step`` for T values."""

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
    for name, values, per in (("observation.state", episode.state, "observation"), ("action", episode.actions, "step")):
        if values.shape[1]:
            fields[name] = Field("float32", (values.shape[1],), per)
    for kind, attribute in KINDS.items():
        columns: dict[str, Column] = getattr(episode, attribute)
        for name, column in columns.items():
            if "/" in name:
                raise BadEpisodeError(episode.index, "schema", f"{kind} {name!r}: LeRobot allows no '/' in names")
            if name.endswith(".valid") and name.removesuffix(".valid") in columns:
                raise BadEpisodeError(
                    episode.index, "schema", f"{kind} {name!r} has the name of the flags of {name[:-6]!r}: rename it"
                )
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
    return fields | dict.fromkeys(("next.done", "next.success"), Field("bool", (), "step"))


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
    """Return the values of each parquet column: the rows of the steps, and the final observation.

    Unknown values are 0, so that no column holds a NaN; the column ``….valid`` says which they are.

    Args:
        episode: Episode to write.
        fields: Columns of the episode by name; see `fields_of`.

    Returns:
        Values (T, …) by column, and values (1, …) at the final observation of the columns that are per observation;
        empty where the final observation was not made.

    Raises:
        BadEpisodeError: If a column is valid at an observation that was not made (status ``"label"``), or a valid value
            is not finite (``"not_finite"``).
    """
    steps, observed = episode.steps, episode.steps + int(episode.last_observed)
    columns: dict[str, np.ndarray] = {}
    if "observation.state" in fields:
        columns["observation.state"] = episode.state[:observed]
    if "action" in fields:
        columns["action"] = episode.actions
    for kind, attribute in KINDS.items():
        for name, column in getattr(episode, attribute).items():
            key = f"{kind}.{name}"
            stored = key if key in fields else REWARD
            columns[stored], columns[valid_name(stored)] = _filled(episode, key, column, observed)
    last = np.arange(steps) == steps - 1
    columns["next.done"] = last & (episode.end != End.CUT)
    columns["next.success"] = last & (episode.success == 1.0)
    final = {name: columns[name][steps:] for name, field in fields.items() if field.per == "observation"}
    return {name: columns[name][:steps] for name in fields}, final if episode.last_observed else {}


def valid_name(stored: str) -> str:
    """Return the name of the column that tells which values of a label, track or recorded column are known."""
    return f"{'recorded.reward' if stored == REWARD else stored}.valid"


def masks_of(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the masks (rows,) of the known values, by the name of the column that holds the values."""
    return {name: columns[valid_name(name)] for name in columns if valid_name(name) in columns}


def _filled(episode: Episode, key: str, column: Column, observed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the mask of a column at the observations that were made; unknown values are 0."""
    if column.valid[observed:].any():
        raise BadEpisodeError(
            episode.index, "label", f"{key} is marked valid at the last observation, which was not observed"
        )
    known = column.valid[:observed].astype(bool)
    if column.values.dtype.kind == "f" and not np.isfinite(column.values[:observed][known]).all():
        raise BadEpisodeError(episode.index, "not_finite", f"{key} holds a valid value that is not a number")
    values = np.zeros((len(known), *column.values.shape[1:]), column.values.dtype)
    values[known] = column.values[:observed][known]
    return values, known


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
