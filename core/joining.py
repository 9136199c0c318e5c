"""Joining of rows to one batch: each field is padded by its clock, and what some rows lack is unknown."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .batch import CLOCKS
from .record import Clock, Labelled, Sampled

Parts = Sequence[Mapping[str, Any]]
"""Fields of each part by name, with a leading dimension of rows."""


def join_fields(parts: Parts) -> dict[str, Any]:
    """Join the fields of rows, padded to the longest; see `guerdon.core.edit.concat`.

    Rows need not be batches yet, so a loader that joins single episodes checks them once, as the batch they make.

    Args:
        parts: Fields of `TrajectoryBatch` by name, each with a leading dimension of rows; values of rows may be lists
            of numbers. A field that all parts leave out is left out.

    Returns:
        Arguments of `TrajectoryBatch`.

    Raises:
        ValueError: If there is no part, widths differ, a column has two shapes or clocks, or only some parts hold
            something that cannot be unknown.
    """
    if not parts:
        raise ValueError("expected at least one row to batch, got none")
    longest = max(part["mask"].shape[1] for part in parts)
    width = {Clock.STEP: longest, Clock.OBSERVATION: longest + 1}
    joined: dict[str, Any] = {}
    for name, clock in CLOCKS.items():
        found = [part[name] for part in parts if name in part]
        if not found:
            continue
        if len(found) < len(parts):
            raise ValueError(_only_some(name, len(found), len(parts)))
        if name == "instructions":
            joined[name] = tuple(text for texts in found for text in texts)
        elif clock is Clock.COLUMN:
            joined[name] = _by_name(name, found, lambda what, held: _join_columns(what, held, parts, longest))
        elif clock is Clock.SAMPLE:
            joined[name] = _by_name(name, found, lambda what, held: _join_samples(what, held, parts))
        elif isinstance(found[0], Mapping):
            joined[name] = _by_name(name, found, _join_entries)
        elif isinstance(found[0], Tensor):
            joined[name] = _join(name, found, width.get(clock), -1 if name == "decision_step" else 0)
        else:  # numbers of single rows: one tensor of all is made faster than one of each
            joined[name] = torch.tensor([number for numbers in found for number in numbers])
    return joined


def _only_some(what: str, held: int, count: int) -> str:
    return (
        f"{what}: expected it in all rows or in none, got it in {held} of {count} parts; it cannot be unknown, so "
        "leave it out of the others"
    )


def _by_name(
    name: str, found: Sequence[Mapping[str, Any]], join: Callable[[str, Sequence[Any]], Any]
) -> dict[str, Any]:
    """Join each entry of mappings by its name; a part without it holds None."""
    names = dict.fromkeys(key for entries in found for key in entries)
    return {key: join(f"{name}[{key!r}]", [entries.get(key) for entries in found]) for key in names}


def _join(what: str, values: Sequence[Tensor], width: int | None = None, fill: int = 0) -> Tensor:
    """Join tensors (B, …) by rows; those with a second dimension are padded to one width, else to the widest."""
    shapes = {tuple(value.shape[2:]) for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f"{what}: expected one size in a batch, got {', '.join(map(str, sorted(shapes)))}: batch data of different "
            "widths apart; for frames pass frame_size and keep one aspect ratio in a batch"
        )
    if values[0].ndim == 1:
        return torch.cat(list(values))
    width = max(value.shape[1] for value in values) if width is None else width
    if all(value.shape[1] == width for value in values):
        return torch.cat(list(values))  # a copy of a single part too: a batch never shares memory with its source
    kind = values[0].dtype
    if any(value.dtype != kind for value in values):
        kind = torch.cat([value[:0, :0] for value in values]).dtype
    ends = list(accumulate(value.shape[0] for value in values))
    joined = torch.full((ends[-1], width, *shapes.pop()), fill, dtype=kind, device=values[0].device)
    for end, value in zip(ends, values, strict=True):
        joined[end - value.shape[0] : end, : value.shape[1]] = value
    return joined


def _join_entries(what: str, held: Sequence[Tensor | None]) -> Tensor:
    known = [values for values in held if values is not None]
    if len(known) < len(held):
        raise ValueError(_only_some(what, len(known), len(held)))
    return _join(what, known)


def _join_columns(what: str, held: Sequence[Labelled | None], parts: Parts, longest: int) -> Labelled:
    extra = {
        column.valid.shape[1] - part["mask"].shape[1]
        for column, part in zip(held, parts, strict=True)
        if column is not None
    }
    if len(extra) > 1:
        raise ValueError(f"{what}: expected a value per step or per observation in all rows, got both")
    width = longest + extra.pop()
    values = _filled([None if column is None else column.values for column in held], parts)
    valid = _filled([None if column is None else column.valid for column in held], parts)
    return Labelled(values=_join(what, values, width), valid=_join(what, valid, width))


def _join_samples(what: str, held: Sequence[Sampled | None], parts: Parts) -> Sampled:
    values = _filled([None if sampled is None else sampled.values for sampled in held], parts)
    step = _filled([None if sampled is None else sampled.step for sampled in held], parts)
    return Sampled(values=_join(what, values), step=_join(what, step, fill=-1))


def _filled(held: Sequence[Tensor | None], parts: Parts) -> list[Tensor]:
    """Take rows without an entry for those of the parts that lack it: they are padded as a whole."""
    some = next(values for values in held if values is not None)
    return [
        some.new_zeros((part["mask"].shape[0], 0, *some.shape[2:])) if values is None else values
        for values, part in zip(held, parts, strict=True)
    ]


__all__ = ["Parts", "join_fields"]
