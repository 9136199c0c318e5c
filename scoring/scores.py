"""Scores on disk: one parquet row per recorded observation, written atomically, read back as episodes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float

from ..core.batch import Labelled, RewardEstimates, ValueEstimates
from ..datasets.episodes import BadEpisodeError, Episode

SCORES, PARTS = "scores.parquet", "parts"
COUNTERS = "counters"
"""Metadata key of a score file and of a part: counts of the model, as JSON."""
OK = "ok"
NOT_A_NUMBER = "model_not_finite"
"""Status of an episode for which the model gave NaN or infinity as a known value."""
SCHEMA = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("frame_index", pa.int64()),
        ("timestamp", pa.float64()),
        ("progress", pa.float32()),
        ("success", pa.float32()),
        ("reward", pa.float32()),
        ("std", pa.float32()),
        ("valid", pa.bool_()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("value", pa.float32()),
        ("q", pa.float32()),
    ]
)
_OF_CRITICS = ("value", "q")
"""Columns that are missing in files written before critics were scored."""


Table = Any  # pyarrow ships no types


def _none() -> Float[np.ndarray, " F"]:
    return np.zeros(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredEpisode:
    """Scores of one episode: a number per recorded observation, NaN where nothing is known."""

    index: int
    """Number of the episode."""
    status: str
    """``"ok"``, or why the episode has no scores."""
    seconds: Float[np.ndarray, " F"]
    """Time of each observation in the episode, in seconds."""
    progress: Float[np.ndarray, " F"]
    success: Float[np.ndarray, " F"]
    reward: Float[np.ndarray, " F"]
    """Reward of the step that leaves the observation."""
    std: Float[np.ndarray, " F"]
    """Predictive standard deviation of the reward."""
    value: Float[np.ndarray, " F"] = field(default_factory=_none)
    """Value of the observation, by a critic; NaN after a termination."""
    q: Float[np.ndarray, " F"] = field(default_factory=_none)
    """Value of the logged action, by a critic."""

    def __post_init__(self) -> None:
        """Fill in the columns that a reward model does not give."""
        for name in _OF_CRITICS:
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self.seconds), np.nan))

    @property
    def usable(self) -> bool:
        """True where the episode has scores."""
        return self.status == OK and len(self.seconds) > 0

    def last(self, name: str) -> float:
        """Return the last known value of a column, or NaN."""
        values: np.ndarray = getattr(self, name)
        known = np.flatnonzero(~np.isnan(values))
        return float(values[known[-1]]) if len(known) else float("nan")

    @property
    def total(self) -> float:
        """Sum of the rewards; NaN where no step is valid."""
        return float("nan") if np.isnan(self.reward).all() else float(np.nansum(self.reward))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Content of a score file."""

    table: Table
    """Rows as a pyarrow table."""
    metadata: Mapping[str, Any]
    """Metadata: model, class_path, configuration, model_hash, data, settings, version, created_at, observations, …"""

    @property
    def bad(self) -> dict[int, str]:
        """Number of each episode without scores → reason."""
        return {e.index: e.reason for e in bad_episodes(self.table)}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """Counts of the model and its parts while they scored; empty in files of earlier versions."""
        return self.metadata["counters"]

    @cached_property
    def estimated(self) -> tuple[int, int]:
        """Number of observations with any estimate, and of all, in the scored episodes."""
        return count_estimated(self.table)

    @cached_property
    def episodes(self) -> list[ScoredEpisode]:
        """Episodes in the order they were scored."""
        index = self.table["episode_index"].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)] if len(index) else []
        numbers = {
            name: self.table[name].to_numpy().astype(np.float64)
            for name in ("timestamp", "progress", "success", "reward", "std", *_OF_CRITICS)
        }
        numbers["seconds"] = numbers.pop("timestamp")
        status = self.table["status"].to_pylist()
        return [
            ScoredEpisode(
                index=int(index[start]),
                status=str(status[start]),
                **{name: values[start:end] for name, values in numbers.items()},
            )
            for start, end in pairwise(edges)
        ]


def read_scores(path: str | Path) -> Scores:
    """Read a score file.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        FileNotFoundError: If there is no score file, or its run was interrupted.
        ValueError: If the file is no parquet, or lacks a column of a score file.
    """
    given = Path(path)
    file = given / SCORES if given.is_dir() else given
    if not file.is_file():
        unfinished = (given / PARTS).is_dir()
        hint = "the run was interrupted, start it again to finish it" if unfinished else "run `guerdon score` first"
        raise FileNotFoundError(f"there is no {SCORES} at {given}: {hint}")
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}") from error
    absent = [name for name in SCHEMA.names if name not in table.column_names]
    missing = [name for name in absent if name not in _OF_CRITICS]
    if missing:
        raise ValueError(f"{file} is no score file: it lacks {', '.join(missing)}")
    for name in absent:
        table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), pa.float32()))
    stored: dict[bytes, bytes] = table.schema.metadata or {}
    metadata: dict[str, Any] = {k.decode(): v.decode() for k, v in stored.items()}
    for key in ("configuration", "settings", COUNTERS):
        metadata[key] = json.loads(metadata.get(key, "{}"))
    return Scores(table=table, metadata=metadata)


def episode_rows(
    episode: Episode, estimates: RewardEstimates | ValueEstimates, row: int, terminated: bool = False
) -> Table:
    """Make the rows of an episode: one per recorded observation, null where the model abstains.

    Args:
        episode: Episode that was scored as a whole.
        estimates: Estimates of a batch that holds the episode.
        row: Row of the episode in that batch.
        terminated: Whether the episode terminated, so that its last observation has no value.
    """
    count = episode.steps + int(episode.last_observed)
    if isinstance(estimates, ValueEstimates):
        columns, broken = _values(estimates, row, episode.steps, count, terminated)
    else:
        columns, broken = _rewards(estimates, row, episode.steps, count)
    if broken:
        reason = "the model gave NaN or infinity as a known value"
        return bad_rows(BadEpisodeError(episode.index, NOT_A_NUMBER, reason), count)
    valid = np.any([~np.isnan(values) for values in columns.values()], axis=0)
    index = np.arange(count)
    nothing = np.full(count, np.nan)
    numbers = {name: columns.get(name, nothing) for name in ("progress", "success", "reward", "std", *_OF_CRITICS)}
    arrays = {
        "episode_index": pa.array(np.full(count, episode.index)),
        "frame_index": pa.array(index),
        "timestamp": pa.array(index / episode.fps),
        **{name: pa.array(values, pa.float32(), from_pandas=True) for name, values in numbers.items()},
        "valid": pa.array(valid),
        "status": pa.array([OK] * count),
        "reason": pa.nulls(count, pa.string()),
    }
    return pa.table({name: arrays[name] for name in SCHEMA.names}, schema=SCHEMA)


def _rewards(estimates: RewardEstimates, row: int, steps: int, count: int) -> tuple[dict[str, np.ndarray], bool]:
    """Make the columns of a reward model, and return whether one is not finite where it is marked valid."""

    def per_observation(column: Labelled | None) -> np.ndarray:
        if column is None:
            return np.full(count, np.nan)
        values = column.values[row, :count].double().numpy()
        return np.where(column.valid[row, :count].numpy(), values, np.nan)

    def per_step(values: torch.Tensor | None) -> np.ndarray:
        padded = np.full(steps + 1, np.nan)
        if values is not None:
            padded[:steps] = np.where(known, values[row, :steps].double().numpy(), np.nan)
        return padded[:count]

    known = estimates.valid[row, :steps].numpy()
    claimed = [known & ~np.isfinite(estimates.rewards[row, :steps].numpy())]
    for column in (estimates.progress, estimates.success):
        if column is not None:
            claimed.append((column.valid[row] & ~column.values[row].isfinite())[:count].numpy())
    columns = {
        "progress": per_observation(estimates.progress),
        "success": per_observation(estimates.success),
        "reward": per_step(estimates.rewards),
        "std": per_step(estimates.std),
    }
    return columns, any(bool(c.any()) for c in claimed)


def _values(
    estimates: ValueEstimates, row: int, steps: int, count: int, terminated: bool
) -> tuple[dict[str, np.ndarray], bool]:
    """Make the columns of a critic, and return whether one is not finite."""
    known_until = steps if terminated else count
    value, q = np.full(steps + 1, np.nan), np.full(steps + 1, np.nan)
    value[:known_until] = estimates.v[row, :known_until].double().numpy()
    broken = not np.isfinite(value[:known_until]).all()
    if estimates.q is not None:
        q[:steps] = estimates.q[row, :steps].double().numpy()
        broken |= not np.isfinite(q[:steps]).all()
    return {"value": value[:count], "q": q[:count]}, broken


def bad_rows(error: BadEpisodeError, steps: int) -> Table:
    """Make the rows of an episode that could not be scored, all null.

    Args:
        error: Why it could not be scored.
        steps: Number of its recorded rows as far as it is known; one row is made for 0.
    """
    count = max(steps, 1)
    arrays: dict[str, Any] = {f.name: pa.nulls(count, f.type) for f in SCHEMA}
    arrays |= {
        "episode_index": pa.array(np.full(count, error.index)),
        "frame_index": pa.array(np.arange(count)),
        "valid": pa.array(np.zeros(count, bool)),
        "status": pa.array([error.status] * count),
        "reason": pa.array([error.reason] * count),
    }
    return pa.table(arrays, schema=SCHEMA)


def count_estimated(table: Table) -> tuple[int, int]:
    """Count the observations of scored episodes: those with any estimate, and all."""
    valid, status = table["valid"].to_numpy(), table["status"].to_numpy()
    return int(valid[status == OK].sum()), int((status == OK).sum())


def bad_episodes(table: Table) -> list[BadEpisodeError]:
    """List the episodes of a score table that could not be scored, with status and reason."""
    wrong = table.filter(pa.array([status != OK for status in table["status"].to_pylist()], pa.bool_()))
    named = {
        index: BadEpisodeError(index, status, reason)
        for index, status, reason in zip(
            *(wrong[name].to_pylist() for name in ("episode_index", "status", "reason")), strict=True
        )
    }
    return list(named.values())
