"""Edits of trajectory batches in time and by rows: truncate, pad, concat and reindex every field by its clock.

Each field of `TrajectoryBatch` declares its clock once (`guerdon.core.record.Clock`). The functions here go over all
fields by it, so a field that is added needs no line in them. No batch that comes in is changed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from .batch import CLOCKS, End, TrajectoryBatch
from .joining import join_fields
from .record import Clock, Labelled, Sampled


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change of the values of each clock; values of rows stay."""

    step: Callable[[Tensor], Tensor]
    """Values (B, T, …) of steps."""
    observation: Callable[[Tensor], Tensor]
    """Values (B, T+1, …) of observations."""
    sample: Callable[[Sampled], Sampled]
    decision: Callable[[Tensor, int], Tensor]
    """Values (B, N, …) of decisions, and the number that pads them."""
    column: Callable[[Labelled, bool], Labelled] | None = None
    """A column, and whether it is per step; None changes values and validity as those of steps or observations."""

    def fields(self, batch: TrajectoryBatch) -> dict[str, Any]:
        """Edit the value of every field whose clock is not that of rows."""
        found: dict[str, Any] = {}
        for name, clock in CLOCKS.items():
            value = getattr(batch, name)
            if clock is Clock.STEP:
                found[name] = self.step(value)
            elif clock is Clock.OBSERVATION:
                found[name] = self.observation(value)
            elif clock is Clock.COLUMN:
                found[name] = {key: self._column(column, is_per_step(column, batch)) for key, column in value.items()}
            elif clock is Clock.SAMPLE:
                found[name] = {key: self.sample(sampled) for key, sampled in value.items()}
            elif clock is Clock.DECISION:
                found[name] = (
                    {key: self.decision(entry, 0) for key, entry in cast(Mapping[str, Tensor], value).items()}
                    if isinstance(value, Mapping)
                    else self.decision(value, -1)
                )
        return found

    def _column(self, column: Labelled, per_step: bool) -> Labelled:
        if self.column is not None:
            return self.column(column, per_step)
        change = self.step if per_step else self.observation
        return Labelled(values=change(column.values), valid=change(column.valid))


def is_per_step(column: Labelled, batch: TrajectoryBatch) -> bool:
    """Return whether a column of a batch holds a value per step (K = T) rather than per observation (K = T + 1)."""
    return column.valid.shape[1] == batch.mask.shape[1]


def truncate(batch: TrajectoryBatch, steps: int | Int[Tensor, " B"]) -> TrajectoryBatch:
    """Keep the first steps of every row.

    A row that loses steps ends with a cut: it does not terminate, and its last observation was made. What is known of
    the whole episode (success, length, offset, group) stays.

    Args:
        batch: Rows to truncate.
        steps: Steps kept, one number for all rows or one for each (B,); rows that are shorter stay as they are.

    Returns:
        Rows of min(steps, T) steps, or of as many as the longest row keeps.

    Raises:
        ValueError: If a number of steps is negative, or there is not one for each row.
    """
    real = batch.steps
    wanted = torch.full_like(real, steps) if isinstance(steps, int) else steps.to(real.device)
    if wanted.shape != real.shape:
        raise ValueError(f"steps: expected one number, or one for each of {len(real)} rows, got {tuple(wanted.shape)}")
    if bool((wanted < 0).any()):
        raise ValueError(f"expected a number of steps to keep of at least 0, got {int(wanted.min())}")
    kept = torch.minimum(wanted, real)
    width = min(steps, batch.mask.shape[1]) if isinstance(steps, int) else int(kept.max()) if len(kept) else 0
    cut = kept < real
    inside = _first(batch.mask.shape[1], kept)

    def sample(sampled: Sampled) -> Sampled:
        step = torch.where(sampled.step > kept.to(sampled.step.device)[:, None], -1, sampled.step)
        count = _longest(step >= 0)
        return Sampled(values=sampled.values[:, :count], step=step[:, :count])

    def column(column: Labelled, per_step: bool) -> Labelled:
        length = width + (0 if per_step else 1)
        reached = _first(length, kept + length - width) | ~cut[:, None]
        return Labelled(values=column.values[:, :length], valid=column.valid[:, :length] & reached)

    decided = torch.where(batch.decision_step >= kept[:, None], -1, batch.decision_step)
    count = _longest(decided >= 0)
    edit = Edit(
        step=lambda values: values[:, :width],
        observation=lambda values: values[:, : width + 1],
        sample=sample,
        decision=lambda values, fill: values[:, :count],
        column=column,
    )
    return replace(
        batch,
        **{
            **edit.fields(batch),
            "mask": (batch.mask & inside)[:, :width],
            "decision_step": decided[:, :count],
            "end": torch.where(cut, int(End.CUT), batch.end),
            "terminated": batch.terminated & ~cut,
            "last_observed": batch.last_observed | cut,
        },
    )


def pad(batch: TrajectoryBatch, steps: int, samples: int = 0, decisions: int = 0) -> TrajectoryBatch:
    """Add padding at the end of time.

    Args:
        batch: Rows to pad.
        steps: Steps T of the result, at least as many as now.
        samples: Samples to add to every camera and feature.
        decisions: Decisions to add.

    Raises:
        ValueError: If the batch has more steps, or a number is negative.
    """
    more = steps - batch.mask.shape[1]
    if min(more, samples, decisions) < 0:
        raise ValueError(
            f"expected at least {batch.mask.shape[1]} steps and no negative number of samples or decisions to add, got "
            f"{steps}, {samples} and {decisions}; truncate(batch, steps) makes rows shorter"
        )

    def longer(values: Tensor, count: int, fill: int = 0) -> Tensor:
        return functional.pad(values, (0, 0) * (values.ndim - 2) + (0, count), value=fill) if count else values

    edit = Edit(
        step=lambda values: longer(values, more),
        observation=lambda values: longer(values, more),
        sample=lambda s: Sampled(values=longer(s.values, samples), step=longer(s.step, samples, -1)),
        decision=lambda values, fill: longer(values, decisions, fill),
    )
    return replace(batch, **edit.fields(batch))


def concat(batches: Sequence[TrajectoryBatch]) -> TrajectoryBatch:
    """Join the rows of several batches, padded to the longest.

    Columns (labels, tracks, recorded) and cameras that a batch lacks are unknown in its rows. Numbers of episodes,
    groups and tasks are kept as they are.

    Args:
        batches: At least one; states and actions of one width, on one device.

    Raises:
        ValueError: If there is no batch, widths differ, a column has two shapes or clocks, or only some batches hold
            something that cannot be unknown (a name of ``behaviour``).
    """
    return TrajectoryBatch(**join_fields([{name: getattr(b, name) for name in CLOCKS} for b in batches]))


def without_outcome(batch: TrajectoryBatch) -> TrajectoryBatch:
    """Leave out what a reward model may not use: ends, success, labels, recorded values, the policy's behaviour.

    State, actions, frames, features, tracks, instructions and tasks stay, so that no estimate can depend on how an
    episode ended.
    """
    return TrajectoryBatch(
        state=batch.state,
        actions=batch.actions,
        mask=batch.mask,
        frames=batch.frames,
        features=batch.features,
        tracks=batch.tracks,
        instructions=batch.instructions,
        task=batch.task,
        last_observed=batch.last_observed,
    )


def identity_map(batch: TrajectoryBatch) -> Int[Tensor, "B Tp1"]:
    """Return the time map that changes nothing: j at observation j of every row, −1 in padding."""
    index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device).expand(len(batch), -1)
    return torch.where(index <= batch.steps[:, None], index, -1)


def reindex(batch: TrajectoryBatch, time_map: Int[Tensor, "B Tp1"]) -> TrajectoryBatch:
    """Visit the observations of each row in another order: observation j becomes observation ``time_map[:, j]``.

    State, labels and tracks follow the observation visited. A frame (or feature) appears where its observation is
    visited, or passed on the way ahead; the start takes the frame held there. While time stands still a camera goes on
    showing the frame held, where it had a frame in the row as it was.

    An action is kept where a step still leads from one observation to the next, and is 0 elsewhere: no action leads
    backwards in time, so such a step is no decision either, and columns per step are invalid on it. A row that changes
    ends with a cut, its outcome is unknown and ``behaviour`` is dropped, while ``offset`` and ``length`` still name the
    stretch of the episode it came from. ``weight`` stays with the stretch of the recording that a step covers in either
    direction, so that such rows count in the losses of reward models.

    Args:
        batch: Rows to re-index.
        time_map: Observations to visit; −1 pads, at the end only. Rows equal to `identity_map` stay as they are.

    Raises:
        ValueError: If the map visits an observation that was not made, or has a gap.
    """
    changed = (time_map != identity_map(batch)).any(1)
    if not bool(changed.any()):
        return batch
    _check_map(batch, time_map, changed)
    visited, real = time_map.clamp(min=0), time_map >= 0
    mask = real[:, 1:] & real[:, :-1]
    between = torch.minimum(visited[:, 1:], visited[:, :-1]).clamp(max=batch.mask.shape[1] - 1)
    forward = mask & (visited[:, 1:] == visited[:, :-1] + 1)
    edit = Edit(
        step=lambda values: _take(values, between, forward),
        observation=lambda values: _take(values, visited, real),
        sample=lambda sampled: _visit(sampled, time_map),
        decision=lambda values, fill: values,
    )
    return replace(
        batch,
        **{
            **edit.fields(batch),
            "mask": mask,
            "weight": _take(batch.weight, between, mask),
            "decision_step": _decisions(batch.decision_step, forward, changed),
            "behaviour": {},
            "end": torch.where(changed, int(End.CUT), batch.end),
            "terminated": batch.terminated & ~changed,
            "last_observed": batch.last_observed | changed,
            "success": torch.where(changed, 0.0, batch.success),
            "success_known": batch.success_known & ~changed,
        },
    )


def _check_map(batch: TrajectoryBatch, time_map: Tensor, changed: Tensor) -> None:
    if time_map.shape != batch.observed.shape:
        raise ValueError(f"time_map: expected (B, T+1) = {tuple(batch.observed.shape)}, got {tuple(time_map.shape)}")
    observed = batch.observed.sum(1)
    outside = (time_map >= observed[:, None]) & changed[:, None]
    gap = (time_map[:, 1:] >= 0) & (time_map[:, :-1] < 0)
    if bool(outside.any()):
        row, j = (int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"time_map of row {row} visits observation {int(time_map[row, j])}: it made 0 … {int(observed[row]) - 1}"
        )
    if bool(gap.any()):
        raise ValueError(f"time_map of row {int(gap.nonzero()[0, 0])} has a gap: −1 pads at the end only")


def _take(values: Tensor, index: Tensor, kept: Tensor) -> Tensor:
    """Gather along time; what is not kept is 0."""
    extra = (1,) * (values.ndim - 2)
    taken = values.gather(1, index.view(*index.shape, *extra).expand(*index.shape, *values.shape[2:]))
    return torch.where(kept.view(*kept.shape, *extra), taken, torch.zeros((), dtype=values.dtype, device=values.device))


def _visit(sampled: Sampled, time_map: Tensor) -> Sampled:
    """Order samples as their observations are visited."""
    places: list[Tensor] = []
    steps: list[Tensor] = []
    for step, visited in zip(sampled.step, time_map.to(sampled.step.device), strict=True):
        known = step[step >= 0].contiguous()
        visited = visited[visited >= 0].contiguous()
        held = torch.searchsorted(known, visited, right=True) - 1
        shown = held >= 0
        if len(known):
            # at its own observation; or, where time jumps ahead over it, as soon as it would have been seen
            overtaken = (held[1:] != held[:-1]) & (visited[1:] > visited[:-1])
            moving = (known[held[1:].clamp(min=0)] == visited[1:]) | overtaken
            # at the camera's own pace: a thinned-out camera neither falls silent nor shows every observation
            ticking = torch.isin(torch.arange(1, len(visited), device=known.device), known)
            shown[1:] &= torch.where(visited[1:] == visited[:-1], ticking, moving)
        places.append(held[shown])
        steps.append(shown.nonzero().flatten())
    longest = max(len(s) for s in steps)
    new_step = torch.full((len(steps), longest), -1, dtype=sampled.step.dtype, device=sampled.step.device)
    values = sampled.values.new_zeros((len(steps), longest, *sampled.values.shape[2:]))
    for row, (place, step) in enumerate(zip(places, steps, strict=True)):
        new_step[row, : len(step)] = step
        values[row, : len(step)] = sampled.values[row, place.to(sampled.values.device)]
    return Sampled(values=values, step=new_step)


def _decisions(decision_step: Tensor, forward: Tensor, changed: Tensor) -> Tensor:
    """Decisions of rows that changed: every step along which an action still leads."""
    width = max(decision_step.shape[1], forward.shape[1])
    steps = torch.arange(forward.shape[1], device=forward.device).expand_as(forward)
    far = forward.shape[1] + 1
    kept = torch.where(forward, steps, far).sort(1).values
    kept = functional.pad(torch.where(kept == far, -1, kept), (0, width - kept.shape[1]), value=-1)
    old = functional.pad(decision_step, (0, width - decision_step.shape[1]), value=-1)
    return torch.where(changed[:, None], kept, old)


def _first(width: int, count: Int[Tensor, " B"]) -> Bool[Tensor, "B width"]:
    """Mark the first ``count`` entries of each row."""
    return torch.arange(width, device=count.device)[None] < count[:, None]


def _longest(real: Bool[Tensor, "B N"]) -> int:
    """Largest number of real entries in a row."""
    return int(real.sum(1).max()) if len(real) else 0


__all__ = ["Edit", "concat", "identity_map", "is_per_step", "pad", "reindex", "truncate", "without_outcome"]
