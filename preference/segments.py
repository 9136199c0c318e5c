"""Segments of logged episodes, and pairs of them that somebody compares."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core.files import write_text


class _Strict(BaseModel):
    """Record of a file: unknown fields are refused, and nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Segment(_Strict):
    """Piece of an episode of a data set: its steps ``start`` to ``stop``, without ``stop``.

    Raises:
        ValueError: If the piece has no step.
    """

    episode: int = Field(ge=0)
    """Index of the episode in its data set (``episode_index``)."""
    start: int = Field(default=0, ge=0)
    """First step."""
    stop: int | None = None
    """Step after the last one; None takes the end of the episode."""

    @model_validator(mode="after")
    def _has_steps(self) -> "Segment":
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"start {self.start}, stop {self.stop}: expected at least one step")
        return self


class SegmentPair(_Strict):
    """Two segments of one data set that somebody compares.

    Raises:
        ValueError: If both segments are the same.
    """

    id: str = Field(min_length=1)
    """Name of the pair, unique in its file."""
    first: Segment
    """Segment that is shown on the left."""
    second: Segment
    """Segment that is shown on the right."""
    reason: str = ""
    """Why the pair was made."""

    @model_validator(mode="after")
    def _differ(self) -> "SegmentPair":
        if self.first == self.second:
            raise ValueError(f"pair {self.id}: both segments are steps {self.first.start} … of the same episode")
        return self


def write_segment_pairs(pairs: list[SegmentPair], path: Path) -> None:
    """Write pairs as one JSON object a line, whole or not at all.

    Args:
        pairs: Pairs with names that differ.
        path: File, such as ``pairs.jsonl``.

    Raises:
        ValueError: If two pairs have one name.
    """
    _require_unique(pairs, path)
    write_text(path, "".join(pair.model_dump_json() + "\n" for pair in pairs))


def read_segment_pairs(path: Path) -> list[SegmentPair]:
    """Read pairs that `write_segment_pairs` wrote.

    Args:
        path: File with one JSON object a line; empty lines are passed over.

    Raises:
        ValueError: If a line is no pair, or two pairs have one name; the message names the line.
    """
    pairs: list[SegmentPair] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            pairs.append(SegmentPair.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(
                f"{path}, line {number}: expected a pair such as "
                '{"id": "p1", "first": {"episode": 0, "start": 0, "stop": 50}, "second": {"episode": 1}}; '
                f"{where + ': ' if where else ''}{first['msg']}"
            ) from error
    _require_unique(pairs, path)
    return pairs


def _require_unique(pairs: list[SegmentPair], path: Path) -> None:
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise ValueError(f"{path}: two pairs are called {pair.id!r}: give each a name of its own")
        seen.add(pair.id)


__all__ = ["Segment", "SegmentPair", "read_segment_pairs", "write_segment_pairs"]
