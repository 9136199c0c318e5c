"""Parts of a score file: each is written whole, and all are joined at the end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..core.files import replacing
from ..datasets.episodes import BadEpisodeError
from .counters import add_counters
from .scores import COUNTERS, PARTS, SCHEMA, bad_episodes, count_estimated

Table = Any  # pyarrow ships no types


@dataclass(frozen=True, kw_only=True)
class Part:
    """Episodes that are scored and written together."""

    number: int
    places: range
    """Places of its episodes in the data set."""
    file: Path


def plan_parts(folder: Path, episodes: int, part_size: int) -> list[Part]:
    """Divide the episodes of a data set into parts.

    Args:
        folder: Folder of the scores.
        episodes: Number of episodes in the data set.
        part_size: Number of episodes in a part.
    """
    return [
        Part(
            number=number,
            places=range(start, min(start + part_size, episodes)),
            file=folder / PARTS / f"part-{number:05d}.parquet",
        )
        for number, start in enumerate(range(0, episodes, part_size))
    ]


def write_part(table: Table, file: Path) -> None:
    """Write a part with the metadata of its schema; the file is there whole or not at all."""
    with replacing(file) as fresh:
        pq.write_table(table, fresh)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Summary of the parts of a score file."""

    bad: tuple[BadEpisodeError, ...]
    """Episodes that could not be scored."""
    observations: int
    """Number of observations of the episodes that were scored."""
    estimated: int
    """Number of these that have an estimate of anything."""
    counters: dict[str, dict[str, int]]
    """Counts of the model, summed over the parts."""


def join_parts(files: Sequence[Path], target: Path, metadata: Mapping[str, str]) -> Joined:
    """Write the parts to one score file, with one part in memory at a time.

    Args:
        files: Files of the parts, in order.
        target: File to write.
        metadata: Metadata of the run; ``observations``, ``estimated`` and ``counters`` are added.
    """
    bad: list[BadEpisodeError] = []
    known, count = 0, 0
    counters: dict[str, dict[str, int]] = {}
    for file in files:
        some, all_ = count_estimated(pq.read_table(file, columns=["valid", "status"]))
        known, count = known + some, count + all_
        stored: dict[bytes, bytes] = pq.read_schema(file).metadata or {}
        counters = add_counters(counters, json.loads(stored.get(COUNTERS.encode(), b"{}")))
    metadata = {**metadata, "observations": str(count), "estimated": str(known), COUNTERS: json.dumps(counters)}
    with replacing(target) as fresh, pq.ParquetWriter(fresh, SCHEMA.with_metadata(dict(metadata))) as writer:
        for file in files:
            table = pq.read_table(file)
            bad += bad_episodes(table)
            writer.write_table(table.replace_schema_metadata(dict(metadata)))
    return Joined(bad=tuple(bad), observations=count, estimated=known, counters=counters)
