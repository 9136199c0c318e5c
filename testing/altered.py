"""Batches altered in what must not matter (padding) or must not be known yet (the future)."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..core.batch import End, Labelled, Sampled, TrajectoryBatch
from ..core.edit import Edit, pad, truncate


def _fill(values: Tensor, kept: Tensor) -> Tensor:
    """Fill everything outside ``kept`` with arbitrary values: NaN where the type has it."""
    kept = kept.to(values.device).view(*kept.shape, *(1,) * (values.ndim - kept.ndim))
    if values.dtype == torch.bool:
        return values & kept
    junk = math.nan if values.is_floating_point() else 77
    return torch.where(kept, values, torch.tensor(junk, dtype=values.dtype, device=values.device))


def junk_padding(batch: TrajectoryBatch) -> TrajectoryBatch:
    """Fill the padding of every field with arbitrary values."""
    reached = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device) <= batch.steps[:, None]

    def column(column: Labelled, per_step: bool) -> Labelled:
        valid = column.valid & (batch.mask if per_step else reached)
        return Labelled(values=_fill(column.values, valid), valid=valid)

    edit = Edit(
        step=lambda values: _fill(values, batch.mask),
        observation=lambda values: _fill(values, reached),
        sample=lambda sampled: Sampled(values=_fill(sampled.values, sampled.mask), step=sampled.step),
        decision=lambda values, fill: values if fill else _fill(values, batch.decision_mask),
        column=column,
    )
    return replace(batch, **{**edit.fields(batch), "mask": batch.mask})


def pad_steps(batch: TrajectoryBatch, extra: int) -> TrajectoryBatch:
    """Add padding at the end of time, of every clock."""
    return pad(batch, batch.mask.shape[1] + extra, samples=extra, decisions=extra)


def with_other_future(batch: TrajectoryBatch, step: int) -> TrajectoryBatch:
    """Change everything after observation ``step`` + 1, including how rows end."""
    goes_on = batch.steps > step + 1  # rows that have anything after that observation
    generator = torch.Generator().manual_seed(step)

    def other(values: Tensor, after: Tensor) -> Tensor:
        after = after.to(values.device).view(*after.shape, *(1,) * (values.ndim - after.ndim))
        noise = torch.rand(values.shape, generator=generator).to(values.device)
        noise = noise < 0.5 if values.dtype == torch.bool else (noise * 200).to(values.dtype)
        return torch.where(after, noise, values)

    def later(values: Tensor, first: int) -> Tensor:
        return other(values, goes_on[:, None] & (torch.arange(values.shape[1], device=batch.mask.device) >= first))

    edit = Edit(
        step=lambda values: later(values, step + 1),
        observation=lambda values: later(values, step + 2),
        sample=lambda s: Sampled(values=other(s.values, s.step > step + 1), step=s.step),
        decision=lambda values, fill: values,
        column=lambda column, per_step: Labelled(
            values=later(column.values, step + 1 if per_step else step + 2), valid=column.valid
        ),
    )
    return replace(
        batch,
        **{
            **edit.fields(batch),
            "mask": batch.mask,
            "weight": batch.weight,
            "end": torch.where(
                goes_on, torch.where(batch.end == End.SUCCESS, int(End.FAILURE), int(End.SUCCESS)), batch.end
            ),
            "terminated": batch.terminated | goes_on,
            "success": torch.where(goes_on, 1 - batch.success, batch.success),
            "success_known": batch.success_known | goes_on,
            "length": torch.where(goes_on, 2 * batch.length, batch.length),
        },
    )


def cut_after(batch: TrajectoryBatch, step: int) -> TrajectoryBatch:
    """Return rows as they were known at observation ``step`` + 1, in the shape of the whole batch."""
    return pad(truncate(batch, step + 1), batch.mask.shape[1])
