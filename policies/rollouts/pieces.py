"""Episodes in progress, and batches made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.batch import End, Labelled, Sampled, TrajectoryBatch
from ...core.joining import join_fields
from ...envs.task import Context

GROUPS_APART = 1 << 32
"""Distance of the groups of two tasks, larger than any number of a context: two tasks never share a group."""


@dataclass(kw_only=True)
class Piece:
    """One episode so far: states, actions and decisions since the reset of its environment.

    A piece that was handed out is packed: each sequence of arrays of one shape is one array.
    """

    context: Context
    """Initial state."""
    task: int = 0
    """Number of the task in the run: its place in the order that was given."""
    env: int = 0
    """Number of the environment that plays it, among those of all processes."""
    draw: int | None = None
    """Number of the draw of the context, which all rollouts of one draw share; None groups rows by their context."""
    instruction: str = ""
    """Instruction of the task."""
    state: Sequence[np.ndarray] | np.ndarray
    """State (S,) of each observation."""
    actions: Sequence[np.ndarray] | np.ndarray = field(default_factory=list[np.ndarray])
    """Executed action (A,) of each step."""
    reward: list[float] = field(default_factory=list[float])
    """The environment's reward of each step."""
    success: list[bool] = field(default_factory=lambda: [False])
    """Success flag of each observation; that of the first one is not known to the simulator."""
    decision_step: list[int] = field(default_factory=list[int])
    """Step of each decision."""
    behaviour: dict[str, list[Any] | np.ndarray] = field(default_factory=dict[str, list[Any] | np.ndarray])
    """Records of the policy at each decision: ``sample``, and ``log_prob`` and extras if it returned them."""
    tracks: Sequence[np.ndarray] | np.ndarray = field(default_factory=list[np.ndarray])
    """All tracks of each observation concatenated, (W,): one array is sent faster than four."""
    track_widths: dict[str, int] = field(default_factory=dict[str, int])
    """Width of each track, in their order in ``tracks``; W is their sum."""
    frames: dict[str, list[np.ndarray] | np.ndarray] = field(default_factory=dict[str, list[np.ndarray] | np.ndarray])
    """Rendered frames (3, H, W) uint8 of each camera."""
    features: dict[str, list[np.ndarray] | np.ndarray] = field(default_factory=dict[str, list[np.ndarray] | np.ndarray])
    """Frozen features (D,) or (K, D) of each frame, by ``"<encoder.name>/<camera>"``; ``frames`` then holds those that
    are not encoded yet."""
    frame_step: list[int] = field(default_factory=list[int])
    """Observation of each frame, ascending, the same for all cameras."""
    end: End = End.CUT
    """How the episode ended; ``CUT`` while it goes on."""
    fresh: int = 0
    """First step that was not handed out before; earlier ones are context of weight 0."""


def packed(piece: Piece) -> Piece:
    """Copy a piece, with one array in place of each sequence of arrays: thousands of little ones are slow to send.

    The copy shares nothing that grows with an episode that goes on. Records of different shapes stay apart.

    Args:
        piece: Finished or unfinished episode.
    """
    return replace(
        piece,
        state=_one_array(piece.state),
        actions=_one_array(piece.actions),
        reward=list(piece.reward),
        success=list(piece.success),
        decision_step=list(piece.decision_step),
        behaviour={name: _stacked(parts) for name, parts in piece.behaviour.items()},
        tracks=_one_array(piece.tracks),
        frames={} if piece.features else {camera: _one_array(shown) for camera, shown in piece.frames.items()},
        features={name: _one_array(parts) for name, parts in piece.features.items()},
        frame_step=list(piece.frame_step),
    )


def _stacked(parts: list[Any] | np.ndarray) -> list[Any] | np.ndarray:
    if isinstance(parts, np.ndarray):
        return parts
    return np.stack(parts) if len({part.shape for part in parts}) == 1 else list(parts)


def _one_array(parts: Sequence[Any] | np.ndarray) -> np.ndarray:
    return parts if isinstance(parts, np.ndarray) else np.stack(parts)


def batch_pieces(
    pieces: Sequence[Piece], instruction: str | None = None, hide_outcome: bool = False
) -> TrajectoryBatch:
    """Pad pieces to one batch: one row each, with decisions, tracks, frames and what the policy recorded.

    Tracks are laid out as in collected episodes: (B, T+1, 3) for a point, (B, T+1) for a number, one entry per
    observation, that of the reset first. A number that is not finite is unknown, and so is a track that a row's task
    does not have. The ``length`` of an episode that goes on is not known; it is given as one more than the steps so
    far, so that no piece passes for a whole episode.

    ``task`` is the number of the task in the run. ``group`` is the number of the draw where there is one, and else that
    of the context, plus ``task`` times `GROUPS_APART`, so that initial states of two tasks are never one group.

    Records of the policy that differ in width, such as the tokens of decisions of different lengths, are padded with 0.
    ``behaviour["unit_mask"]`` then marks the units of ``log_prob`` that are real.

    Args:
        pieces: At least one.
        instruction: Instruction of all rows; None takes that of each piece's task.
        hide_outcome: Leave out the environment's reward and success, so that nothing that learns from the batch can
            look at them; tracks stay, as the state does. A piece that the simulator ended on success would still show
            it: collect with ``end_on_success=False``.

    Raises:
        ValueError: If there is no piece, pieces of one task hold different tracks, only some hold frames, or an outcome
            that should be hidden shows in how a piece ended.
    """
    if hide_outcome and any(p.end in (End.SUCCESS, End.FAILURE) for p in pieces):
        raise ValueError(
            "the outcome cannot be hidden: an episode ended because of it; collect with end_on_success=False"
        )
    _check_alike(pieces)
    rows = [_row(piece, instruction, hide_outcome) for piece in pieces]
    for row, records in zip(rows, _records(pieces), strict=True):
        row["behaviour"] = records
    return TrajectoryBatch(
        **join_fields(rows),
        frames=_sampled(pieces, [piece.frames for piece in pieces]),
        features=_sampled(pieces, [piece.features for piece in pieces]),
    )


def _check_alike(pieces: Sequence[Piece]) -> None:
    """Check that the pieces of a task hold the same tracks, and that all pieces show the same cameras."""
    first: dict[str, Piece] = {}
    for piece in pieces:
        widths, expected = piece.track_widths, first.setdefault(piece.context.task, piece).track_widths
        if widths != expected:
            raise ValueError(f"expected pieces of one task to hold one set of tracks, got {expected} and {widths}")
        if piece.frames.keys() != pieces[0].frames.keys():
            raise ValueError(
                f"expected pieces of one run, got frames of {list(pieces[0].frames)} and of {list(piece.frames)}"
            )


def _row(piece: Piece, instruction: str | None, hide_outcome: bool) -> dict[str, Any]:
    """Make the fields of one row, frames excepted, each with a leading dimension of 1."""
    steps = len(piece.actions)
    goes_on = piece.end == End.CUT
    asked = torch.arange(steps + 1)[None] > 0  # observation 0 has no flag
    mask = torch.ones(1, steps, dtype=torch.bool)
    row: dict[str, Any] = {
        "state": _tensor(piece.state),
        "actions": _tensor(piece.actions),
        "mask": mask,
        "instructions": (piece.instruction if instruction is None else instruction,),
        "task": [piece.task],
        "end": [int(piece.end)],
        "length": [steps + int(goes_on)],
        "success": [0.0 if hide_outcome else float(any(piece.success))],
        "success_known": [not hide_outcome and not goes_on],
        "group": [piece.task * GROUPS_APART + (piece.context.index if piece.draw is None else piece.draw)],
        "weight": (torch.arange(steps) >= piece.fresh).float()[None],
        "tracks": _tracks(piece),
        "decision_step": torch.tensor([piece.decision_step], dtype=torch.long),
    }
    if not hide_outcome:
        flags = _tensor(np.array(piece.success, np.float32))
        row["labels"] = {"success": Labelled(values=flags, valid=asked)}
        row["recorded"] = {"reward": Labelled(values=_tensor(np.array(piece.reward, np.float32)), valid=mask)}
    return row


def _sampled(
    pieces: Sequence[Piece], shown: Sequence[Mapping[str, Sequence[np.ndarray] | np.ndarray]]
) -> dict[str, Sampled]:
    """Copy the frames or features of all pieces into one tensor per name; there is no copy of them between."""
    longest = max(len(piece.frame_step) for piece in pieces)
    step = torch.full((len(pieces), longest), -1, dtype=torch.long)
    for row, piece in enumerate(pieces):
        step[row, : len(piece.frame_step)] = torch.tensor(piece.frame_step, dtype=torch.long)
    found: dict[str, Sampled] = {}
    for name, first in shown[0].items():
        values = np.zeros((*step.shape, *first[0].shape), first[0].dtype)
        for row, held in enumerate(shown):
            for place, frame in enumerate(held[name]):
                values[row, place] = frame
        found[name] = Sampled(values=torch.from_numpy(values), step=step.clone())
    return found


def _records(pieces: Sequence[Piece]) -> list[dict[str, Tensor]]:
    """Make the policy's records of each piece (1, N, …), padded to one width where they differ."""
    if not pieces:
        return []
    widest: dict[str, tuple[int, ...]] = {}
    ragged: set[str] = set()
    for piece in pieces:
        for name, parts in piece.behaviour.items():
            for shape in {part.shape for part in parts}:
                before = widest.setdefault(name, shape)
                if shape != before:
                    ragged.add(name)
                    widest[name] = tuple(max(sizes) for sizes in zip(shape, before, strict=True))
    found: list[dict[str, Tensor]] = []
    for piece in pieces:
        records = {
            name: _tensor(_padded(parts, widest[name]) if name in ragged else parts)
            for name, parts in piece.behaviour.items()
        }
        if "log_prob" in ragged and "unit_mask" not in records:
            width = torch.tensor([len(part) for part in piece.behaviour["log_prob"]])
            records["unit_mask"] = (torch.arange(widest["log_prob"][0]) < width[:, None])[None]
        found.append(records)
    return found


def _padded(parts: Sequence[Any] | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.zeros((len(parts), *shape), parts[0].dtype)
    for place, part in enumerate(parts):
        values[(place, *(slice(size) for size in part.shape))] = part
    return values


def _tensor(values: Sequence[Any] | np.ndarray) -> Tensor:
    array = _one_array(values)
    # Ray hands out arrays of its store, which nobody may write to
    return torch.from_numpy(array if array.flags.writeable else array.copy())[None]


def _tracks(piece: Piece) -> dict[str, Labelled]:
    """Split the tracks of a piece by name; they are valid where they are finite."""
    if not piece.track_widths:
        return {}
    widths = piece.track_widths
    found: dict[str, Labelled] = {}
    for name, values in zip(widths, _tensor(piece.tracks).split(list(widths.values()), dim=2), strict=True):
        valid = values.isfinite().all(2)
        known = torch.where(valid[..., None], values, 0.0)
        found[name] = Labelled(values=known[..., 0] if widths[name] == 1 else known, valid=valid)
    return found


__all__ = ["GROUPS_APART", "Piece", "batch_pieces", "packed"]
