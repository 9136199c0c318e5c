"""Files of rollouts: a trajectory batch in one safetensors file, which appears whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ...core.batch import CLOCKS, TrajectoryBatch
from ...core.edit import concat
from ...core.files import replacing
from ...core.record import Clock, Labelled, Sampled

_FORMAT = 1
_PAIRED = {Clock.COLUMN: (Labelled, "valid"), Clock.SAMPLE: (Sampled, "step")}


def write_batch(batch: TrajectoryBatch, path: Path, about: Mapping[str, Any]) -> None:
    """Write a batch as one safetensors file, whole or not at all: nothing of it is pickled.

    Every field is kept as it is: observations before the actions, actions as they were executed, and in ``behaviour``
    what the acting policy recorded, with its samples before they were clipped.

    Args:
        batch: Trajectories, on any device.
        path: File; its folder is made where it is missing.
        about: JSON-able values to keep with it.

    Raises:
        OSError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, clock in CLOCKS.items():
        value = getattr(batch, name)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            for key, entry in cast(Mapping[str, Any], value).items():
                if clock in _PAIRED:
                    tensors[f"{name}|{key}|values"] = entry.values
                    tensors[f"{name}|{key}|{_PAIRED[clock][1]}"] = getattr(entry, _PAIRED[clock][1])
                else:
                    tensors[f"{name}|{key}"] = entry
    held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps({"format": _FORMAT, "instructions": list(batch.instructions), "about": dict(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        save_file(held, fresh, metadata={"batch": text})


def read_batch(path: Path, frames: bool = True) -> TrajectoryBatch:
    """Read a batch that `write_batch` wrote.

    Args:
        path: File.
        frames: Whether frames and features are read too; they are most of a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or none of ours.
    """
    fields: dict[str, Any] = {"instructions": tuple(_header(path)["instructions"])}
    paired: dict[str, dict[str, dict[str, Tensor]]] = {}
    with safe_open(path, framework="pt") as file:
        for name in cast(list[str], file.keys()):
            field, *rest = name.split("|")
            if CLOCKS[field] is Clock.SAMPLE and not frames:
                continue
            if not rest:
                fields[field] = file.get_tensor(name)
            elif CLOCKS[field] in _PAIRED:
                paired.setdefault(field, {}).setdefault("|".join(rest[:-1]), {})[rest[-1]] = file.get_tensor(name)
            else:
                fields.setdefault(field, {})["|".join(rest)] = file.get_tensor(name)
    for field, entries in paired.items():
        fields[field] = {key: _PAIRED[CLOCKS[field]][0](**parts) for key, parts in entries.items()}
    return TrajectoryBatch(**fields)


def read_about(path: Path) -> dict[str, Any]:
    """Read what was kept with a batch, without its tensors.

    Args:
        path: File.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or none of ours.
    """
    return cast(dict[str, Any], _header(path)["about"])


def join_batches(batches: Sequence[TrajectoryBatch]) -> TrajectoryBatch:
    """Join batches of one policy, whose records may differ in width, such as tokens of different numbers.

    Narrower records are padded with 0, and ``behaviour["unit_mask"]`` then marks the real units of ``log_prob``.

    Args:
        batches: At least one.

    Raises:
        ValueError: If the batches cannot be joined.
    """
    widest: dict[str, tuple[int, ...]] = {}
    for batch in batches:
        for name, record in batch.behaviour.items():
            before = widest.get(name, tuple(record.shape[2:]))
            widest[name] = tuple(max(sizes) for sizes in zip(record.shape[2:], before, strict=True))
    uneven = any(
        "unit_mask" in batch.behaviour or tuple(record.shape[2:]) != widest[name]
        for batch in batches
        for name, record in batch.behaviour.items()
    )
    return concat([_widened(batch, widest) if uneven else batch for batch in batches])


def _widened(batch: TrajectoryBatch, widest: Mapping[str, tuple[int, ...]]) -> TrajectoryBatch:
    records = dict(batch.behaviour)
    if "log_prob" in records and "unit_mask" not in records:
        records["unit_mask"] = torch.ones_like(records["log_prob"], dtype=torch.bool)
    sizes = {"unit_mask": widest.get("log_prob", ()), **widest}
    for name, record in records.items():
        more = [wide - size for wide, size in zip(sizes[name], record.shape[2:], strict=True)]
        if any(more):
            records[name] = functional.pad(record, [part for count in reversed(more) for part in (0, count)])
    return replace(batch, behaviour=records)


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected rollouts of a training loop")
    try:
        with safe_open(path, framework="pt") as file:
            found: Any = json.loads((file.metadata() or {})["batch"])
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(
            f"{path} holds no rollouts that can be read ({error}): remove the folder {path.parent}, and give the same "
            "command again"
        ) from error
    if found.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {found.get('format')}: this version reads {_FORMAT}")
    return found


__all__ = ["join_batches", "read_about", "read_batch", "write_batch"]
