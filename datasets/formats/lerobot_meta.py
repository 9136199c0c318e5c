"""Folder ``meta`` of a LeRobot v3.0 data set, read and checked before any row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.files import read_json
from .lerobot_columns import KINDS, Field
from .video import VideoFrames

OWN = "meta/guerdon.json"
"""File of what only guerdon reads; ``lerobot`` warns of entries in ``info.json`` that it does not know."""
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NEEDED = ("episode_index", "length", "data/chunk_index", "data/file_index")
_VIDEO_PARTS = ("chunk_index", "file_index", "from_timestamp")


def read_info(folder: Path) -> dict[str, Any]:
    """Read ``meta/info.json``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not JSON, lacks an entry, or names another version than v3.0.
    """
    path = folder / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a LeRobot data set: it has no meta/info.json")
    info = read_json(path, "the description of a LeRobot data set")
    version = str(info.get("codebase_version", "unnamed"))
    if not version.startswith("v3."):
        raise ValueError(
            f"{folder} is a LeRobot data set of version {version}; version v3.0 is read. Convert it with lerobot 0.4: "
            "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 (v2.0 becomes v2.1 first)"
        )
    missing = [name for name in ("fps", "features", "data_path") if name not in info]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    if not isinstance(info["fps"], int | float) or not info["fps"] > 0:
        raise ValueError(f"{path}: expected fps > 0, got {info['fps']!r}")
    for name, feature in info["features"].items():
        if not isinstance(feature, dict) or "dtype" not in feature or "shape" not in feature:
            raise ValueError(f"{path}: feature {name!r} needs a dtype and a shape, got {feature!r}")
    return info


def own_entries(fields: Mapping[str, Field], unknown: Mapping[str, Field], finals: int) -> dict[str, Any]:
    """Make the content of ``meta/guerdon.json``.

    Args:
        fields: All columns of the episodes.
        unknown: Columns that are left out because no row of them is known.
        finals: Number of final observations.
    """
    columns = {n: {"per": f.per, "shape": list(f.shape)} for n, f in fields.items() if n.split(".")[0] in KINDS}
    left_out = {n: {"per": f.per, "shape": list(f.shape), "dtype": f.dtype} for n, f in unknown.items()}
    return {"format": 2, "columns": columns, "unknown": left_out, "final_observations": finals}


def read_own(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Read what guerdon wrote about its columns; empty for a data set of another program.

    Format 1 kept it in ``info.json``, format 2 keeps it in ``meta/guerdon.json``.

    Raises:
        ValueError: If the file is not JSON.
    """
    path = folder / OWN
    if path.is_file():
        return read_json(path, "the description of guerdon's columns")
    return info.get("guerdon", {})


def read_episodes(folder: Path, cameras: dict[str, str]) -> list[dict[str, Any]]:
    """Read the table of episodes, without their statistics, in order of ``episode_index``.

    Raises:
        ValueError: If there is no table, it cannot be read, or a column is missing.
    """
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise ValueError(f"{folder}: expected meta/episodes/chunk-000/file-000.parquet, found no table of episodes")
    video = [f"videos/{key}/{part}" for key in cameras.values() for part in _VIDEO_PARTS]
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            missing = [name for name in (*_NEEDED, *video) if name not in names]
            if missing:
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(names)}")
            rows += file.read(columns=names).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    return sorted(rows, key=lambda row: row["episode_index"])


def read_tasks(folder: Path) -> dict[int, str]:
    """Read the instruction of every task index from ``meta/tasks.parquet``.

    ``lerobot`` keeps the text as the index of a pandas frame; any column of text is accepted.

    Raises:
        ValueError: If the file is missing, or has no text or no ``task_index``.
    """
    path = folder / "meta" / "tasks.parquet"
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    texts = [n for n in table.schema.names if pa.types.is_string(table.schema.field(n).type) or n == "task"]
    texts += [n for n in table.schema.names if pa.types.is_large_string(table.schema.field(n).type)]
    if not texts or "task_index" not in table.schema.names:
        raise ValueError(f"{path}: expected task_index and a column of text, got {table.schema.names}")
    return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))


def inconsistencies(info: dict[str, Any], episodes: list[dict[str, Any]], tasks: dict[int, str]) -> list[str]:
    """List the totals of ``info.json`` that contradict the tables; the reader goes by the tables."""
    counted = {
        "total_episodes": len(episodes),
        "total_frames": sum(int(row["length"]) for row in episodes),
        "total_tasks": len(tasks),
    }
    return [
        f"{name} is {info[name]}, the tables hold {count}"
        for name, count in counted.items()
        if name in info and info[name] != count
    ]


def camera_names(features: dict[str, Any]) -> dict[str, str]:
    """Return the feature of every camera that is stored as video, by its name without LeRobot's prefixes."""
    names: dict[str, str] = {}
    for key, feature in features.items():
        if feature["dtype"] == "video":
            names[key.removeprefix("observation.").removeprefix("images.")] = key
    return names


def vector_key(folder: Path, features: dict[str, Any], key: str, prefix: str) -> str | None:
    """Choose the feature that is used as state or action.

    Args:
        folder: Folder of the data set, for errors.
        features: Features of ``info.json``.
        key: Name of the feature.
        prefix: Prefix of all features of the kind.

    Returns:
        The key, or None where the data set has no feature of the kind.

    Raises:
        ValueError: If there are vectors under the prefix but not this one, or it is not a vector of numbers.
    """
    vectors = {
        name: list(feature["shape"])
        for name, feature in features.items()
        if name.startswith(prefix) and feature["dtype"] not in ("video", "image", "string")
    }
    if key not in features:
        if not vectors and key in ("observation.state", "action"):
            return None
        raise ValueError(f"{folder} has no column {key!r}: name one of {', '.join(vectors or features)} instead")
    if key not in vectors or len(vectors[key]) != 1:
        raise ValueError(f"{folder}: expected {key!r} to be a vector of numbers, got {features[key]}")
    return key


def split_of(info: dict[str, Any], row: dict[str, Any]) -> str:
    """Return the split of an episode; empty where none is recorded, or LeRobot's only split covers everything."""
    if row.get("split") is not None:
        return str(row["split"])
    splits: dict[str, str] = info.get("splits") or {}
    if len(splits) > 1:
        for name, span in splits.items():
            first, _, end = str(span).partition(":")
            if first.isdigit() and end.isdigit() and int(first) <= row["episode_index"] < int(end):
                return name
    return ""


def video_of(
    folder: Path, info: dict[str, Any], row: dict[str, Any], camera: str, key: str, seconds: np.ndarray, first: int
) -> VideoFrames:
    """Return the frames of one camera from row ``first`` of an episode on.

    Args:
        folder: Folder of the data set.
        info: Content of its ``info.json``.
        row: Row of the episode in the table of episodes.
        camera: Name of the camera.
        key: Feature of the camera.
        seconds: Time stamps (F,) in the episode of the wanted rows, in seconds.
        first: Row of the episode that is observation 0.
    """
    path = folder / info["video_path"].format(
        video_key=key, chunk_index=row[f"videos/{key}/chunk_index"], file_index=row[f"videos/{key}/file_index"]
    )
    step = np.arange(len(seconds))
    fresh = row.get(f"frame_steps/{camera}")
    if fresh is not None:
        # The other rows repeat the picture before; a piece that begins on such a row begins with that picture.
        step = np.asarray([place - first for place in fresh if first < place < first + len(seconds)], np.int64)
        step = np.concatenate([np.zeros(1, np.int64), step])
    return VideoFrames(
        path,
        step,
        seconds=row[f"videos/{key}/from_timestamp"] + seconds[step].astype(np.float64),
        fps=float(info["fps"]),
        episode=int(row["episode_index"]),
    )
