"""Frozen records of tensors: what moves to a device, is mapped and has its rows selected as one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

R = TypeVar("R", bound="Record")


class Clock(Enum):
    """Meaning of the second dimension of a field; every field of a trajectory batch declares one.

    `guerdon.core.edit` cuts, pads, joins and re-indexes batches by it, so a new field needs nothing more.
    """

    ROW = "row"
    """No time: one value a row."""
    STEP = "step"
    """(B, T, …)"""
    OBSERVATION = "observation"
    """(B, T+1, …)"""
    COLUMN = "column"
    """Name → `Labelled` per step or per observation, according to its width."""
    SAMPLE = "sample"
    """Name → `Sampled`, with observation indices of its own."""
    DECISION = "decision"
    """(B, N, …), or a mapping of such."""


class Record:
    """Base of the frozen dataclasses here: moves, maps and selects rows of everything it holds."""

    def map(self: R, fn: Callable[[Tensor], Tensor]) -> R:
        """Apply ``fn`` to every tensor, nested ones included."""
        return self._rebuild(lambda value: _map_leaf(value, fn))

    def to(self: R, device: torch.device | str, non_blocking: bool = False) -> R:
        """Move to a device; frames stay on the host, backbones move micro-batches of them."""
        return _move(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self: R) -> R:
        """Copy every tensor to page-locked memory."""
        return self.map(lambda t: t.pin_memory())

    def _rebuild(self: R, leaf: Callable[[Any], Any]) -> R:
        values = {f.name: leaf(getattr(self, f.name)) for f in fields(cast(Any, self))}
        return type(self)(**values)

    def __len__(self) -> int:
        """Return the number of rows."""
        for f in fields(cast(Any, self)):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                return len(value)
        raise TypeError(f"{type(self).__name__} holds no tensor")

    def __getitem__(self: R, rows: int | slice | Sequence[int] | Tensor) -> R:
        """Select rows; an int keeps the row dimension."""
        index = row_index(rows, len(self), type(self).__name__)
        return self._rebuild(lambda value: _select(value, index))


def row_index(rows: int | slice | Sequence[int] | Tensor, count: int, what: str) -> slice | Tensor:
    """Turn a selection of rows into a slice or a one-dimensional tensor; a single row keeps its dimension."""
    if isinstance(rows, slice):
        return rows
    if isinstance(rows, int):
        if not -count <= rows < count:
            raise IndexError(f"row {rows} of a {what} with {count} rows")
        return slice(rows, rows + 1 or None)
    index = torch.as_tensor(rows)
    if index.numel() == 0:  # an empty list becomes a tensor of floats
        return index.long().flatten()
    return index[None] if index.ndim == 0 else index


def _move(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``fn`` to every tensor but frames, however deep they lie."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Record):
        held = {f.name: getattr(value, f.name) for f in fields(cast(Any, value))}
        return type(value)(**{k: v if k == "frames" else _move(v, fn) for k, v in held.items()})
    if isinstance(value, Mapping):
        return {k: _move(v, fn) for k, v in cast(Mapping[str, Any], value).items()}
    return value


def _map_leaf(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Record):
        return value.map(fn)
    if isinstance(value, Mapping):
        return {k: _map_leaf(v, fn) for k, v in cast(Mapping[str, Any], value).items()}
    return value


def _select(value: Any, index: slice | Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index if isinstance(index, slice) else index.to(value.device)]
    if isinstance(value, Record):
        return value[index]
    if isinstance(value, Mapping):
        return {k: _select(v, index) for k, v in cast(Mapping[str, Any], value).items()}
    if isinstance(value, tuple):
        entries = cast(tuple[str, ...], value)
        if isinstance(index, slice):
            return entries[index]
        chosen = index.nonzero().flatten() if index.dtype == torch.bool else index
        return tuple(entries[i] for i in chosen.tolist())
    return value


def expect(name: str, value: Tensor, shape: tuple[int, ...], kind: str | None = None) -> None:
    """Check a shape (−1: any size; a shorter shape: any more dimensions) and the kind of number."""
    got = tuple(value.shape)
    if len(got) < len(shape) or any(w not in (-1, g) for w, g in zip(shape, got, strict=False)):
        wanted = ", ".join("any" if w == -1 else str(w) for w in shape)
        raise ValueError(f"{name}: expected shape ({wanted}, …), got {got}")
    right = {
        "float": value.is_floating_point(),
        "bool": value.dtype == torch.bool,
        "int": not value.is_floating_point() and value.dtype != torch.bool,
        "uint8": value.dtype == torch.uint8,
        None: True,
    }[kind]
    if not right:
        raise TypeError(f"{name}: expected {kind} values, got {value.dtype}")


def expect_ascending(name: str, step: Tensor, strictly: bool) -> None:
    """Check that every row ascends and is padded with −1 at its end; on the host only, where batches are made."""
    if step.device.type != "cpu" or step.shape[1] == 0:
        return
    before, after = step[:, :-1], step[:, 1:]
    wrong = (after >= 0) & ((before < 0) | (after <= before if strictly else after < before))
    if bool(wrong.any()) or int(step.amin() if len(step) else 0) < -1:
        row = int((wrong.any(1) | (step < -1).any(1)).nonzero()[0, 0])
        raise ValueError(f"{name}: expected ascending steps, then -1, got {step[row].tolist()} in row {row}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled(Record):
    """Values known at some observations only, such as camera frames with a clock of their own."""

    values: Shaped[Tensor, "B F ..."]
    step: Int[Tensor, "B F"]
    """Observation index of each sample, ascending; −1 pads (at the end)."""

    def __post_init__(self) -> None:
        """Check that values and steps agree."""
        expect("Sampled.step", self.step, (-1, -1), "int")
        expect("Sampled.values", self.values, tuple(self.step.shape))
        expect_ascending("Sampled.step", self.step, strictly=False)

    @property
    def mask(self) -> Bool[Tensor, "B F"]:
        """Mask of the real samples."""
        return self.step >= 0

    def held(self, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
        """Find the last sample at or before each observation: what was known then, never interpolated.

        Raises:
            ValueError: If a row has no sample at or before the step.
        """
        known = (self.step[rows] >= 0) & (self.step[rows] <= steps[:, None])
        index = known.sum(1) - 1
        if bool((index < 0).any()):
            at = int((index < 0).nonzero()[0, 0])
            raise ValueError(
                f"no frame at or before observation {int(steps[at])} of row {int(rows[at])}: "
                "sample a frame at observation 0 of every row"
            )
        return index


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled(Record):
    """Values with a validity mask; an unknown value is invalid, never a made-up number."""

    values: Shaped[Tensor, "B K ..."]
    valid: Bool[Tensor, "B K"]

    def __post_init__(self) -> None:
        """Check that values and validity agree."""
        expect("Labelled.valid", self.valid, (-1, -1), "bool")
        expect("Labelled.values", self.values, tuple(self.valid.shape))


__all__ = ["Clock", "Labelled", "Record", "Sampled", "expect", "expect_ascending", "row_index"]
