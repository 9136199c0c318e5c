"""Batches altered in what must not matter (padding) or must not be known yet (the future)."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..core.batch import End, Labelled, Sampled, TrajectoryBatch


def _fill(values: Tensor, kept: Tensor) -> Tensor:
    """Put rubbish where nothing is kept: NaN where the type has it."""
    kept = kept.to(values.device).view(*kept.shape, *(1,) * (values.ndim - kept.ndim))
    if values.dtype == torch.bool:
        return values & kept
    junk = math.nan if values.is_floating_point() else 77
    return torch.where(kept, values, torch.tensor(junk, dtype=values.dtype, device=values.device))


def junk_padding(batch: TrajectoryBatch) -> TrajectoryBatch:
    """The same rows with rubbish in the padding."""
    index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)
    reached = index <= batch.steps[:, None]

    def columns(stored: Mapping[str, Labelled]) -> dict[str, Labelled]:
        filled = {}
        for name, column in stored.items():
            kept = batch.mask if column.valid.shape == batch.mask.shape else reached
            filled[name] = Labelled(values=_fill(column.values, kept & column.valid), valid=column.valid & kept)
        return filled

    def samples(stored: Mapping[str, Sampled]) -> dict[str, Sampled]:
        return {name: Sampled(values=_fill(s.values, s.mask), step=s.step) for name, s in stored.items()}

    return replace(
        batch,
        state=_fill(batch.state, reached),
        actions=_fill(batch.actions, batch.mask),
        weight=_fill(batch.weight, batch.mask),
        frames=samples(batch.frames),
        features=samples(batch.features),
        labels=columns(batch.labels),
        tracks=columns(batch.tracks),
        recorded=columns(batch.recorded),
        behaviour={name: _fill(value, batch.decision_mask) for name, value in batch.behaviour.items()},
    )


def pad_steps(batch: TrajectoryBatch, extra: int) -> TrajectoryBatch:
    """The same rows with more padding at the end of time."""

    def longer(values: Tensor, value: int = 0) -> Tensor:
        more = values.new_full((values.shape[0], extra, *values.shape[2:]), value)
        return torch.cat([values, more], dim=1)

    def columns(stored: Mapping[str, Labelled]) -> dict[str, Labelled]:
        return {n: Labelled(values=longer(c.values), valid=longer(c.valid)) for n, c in stored.items()}

    def samples(stored: Mapping[str, Sampled]) -> dict[str, Sampled]:
        return {n: Sampled(values=longer(s.values), step=longer(s.step, -1)) for n, s in stored.items()}

    return replace(
        batch,
        state=longer(batch.state),
        actions=longer(batch.actions),
        mask=longer(batch.mask),
        weight=longer(batch.weight),
        frames=samples(batch.frames),
        features=samples(batch.features),
        labels=columns(batch.labels),
        tracks=columns(batch.tracks),
        recorded=columns(batch.recorded),
        decision_step=longer(batch.decision_step, -1),
        behaviour={name: longer(value) for name, value in batch.behaviour.items()},
    )


def with_other_future(batch: TrajectoryBatch, step: int) -> TrajectoryBatch:
    """The same batch, but all that happens after observation ``step`` + 1 is different, how rows end included."""
    later = (batch.steps > step + 1)[:, None]  # rows that go on after that observation
    generator = torch.Generator().manual_seed(step)

    def other(values: Tensor, after: Tensor) -> Tensor:
        after = after.to(values.device).view(*after.shape, *(1,) * (values.ndim - after.ndim))
        noise = torch.rand(values.shape, generator=generator).to(values.device)
        noise = noise < 0.5 if values.dtype == torch.bool else (noise * 200).to(values.dtype)
        return torch.where(after, noise, values)

    def after(length: int, first: int) -> Tensor:
        return later & (torch.arange(length, device=batch.mask.device) >= first)

    def columns(stored: Mapping[str, Labelled]) -> dict[str, Labelled]:
        changed = {}
        for name, column in stored.items():
            per_step = column.valid.shape == batch.mask.shape
            future = after(column.valid.shape[1], step + 1 if per_step else step + 2)
            changed[name] = Labelled(values=other(column.values, future), valid=column.valid)
        return changed

    def samples(stored: Mapping[str, Sampled]) -> dict[str, Sampled]:
        return {n: Sampled(values=other(s.values, s.step > step + 1), step=s.step) for n, s in stored.items()}

    goes_on = later[:, 0]
    ended = torch.where(batch.end == End.SUCCESS, int(End.FAILURE), int(End.SUCCESS))
    return replace(
        batch,
        state=other(batch.state, after(batch.state.shape[1], step + 2)),
        actions=other(batch.actions, after(batch.mask.shape[1], step + 1)),
        frames=samples(batch.frames),
        features=samples(batch.features),
        end=torch.where(goes_on, ended, batch.end),
        terminated=batch.terminated | goes_on,
        success=torch.where(goes_on, 1 - batch.success, batch.success),
        success_known=batch.success_known | goes_on,
        length=torch.where(goes_on, 2 * batch.length, batch.length),
        labels=columns(batch.labels),
        tracks=columns(batch.tracks),
        recorded=columns(batch.recorded),
    )


def cut_after(batch: TrajectoryBatch, step: int) -> TrajectoryBatch:
    """Rows as they were known at observation ``step`` + 1, in the shape of the whole batch."""
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    goes_on = batch.steps > step + 1
    samples = {
        field: {
            name: Sampled(values=s.values, step=torch.where(s.step > step + 1, -1, s.step))
            for name, s in getattr(batch, field).items()
        }
        for field in ("frames", "features")
    }
    return replace(
        batch,
        mask=batch.mask & (index <= step),
        end=torch.where(goes_on, int(End.CUT), batch.end),
        terminated=batch.terminated & ~goes_on,
        last_observed=batch.last_observed | goes_on,
        decision_step=torch.where(batch.decision_step > step, -1, batch.decision_step),
        frames=samples["frames"],
        features=samples["features"],
    )
