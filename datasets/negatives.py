"""Negatives: rows that a reward model must tell from the recording, with time reordered or another row's task.

All are pure functions that leave the given batch as it is. A time map names the observation that each place of a row
shows, and −1 in padding; `guerdon.core.edit.reindex` applies it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.batch import End, Labelled, TrajectoryBatch


def rewind_map(observed: Int[Tensor, " B"], peak: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Make the time map that plays to observation ``peak``, then backwards to the start or the end of the row.

    This is the rewind augmentation of ReWiND (Zhang et al. 2025, arXiv:2505.10911, §III-A). A causal model sees every
    prefix of a row, so that the longest rewind contains all shorter ones.

    Args:
        observed: Number of observations of each row, (B,).
        peak: Observation at which each row turns back, (B,).
        width: T + 1, number of places of a row.
    """
    index = torch.arange(width, device=observed.device)
    visited = torch.where(index <= peak[:, None], index, 2 * peak[:, None] - index)
    return torch.where((visited >= 0) & (index < observed[:, None]), visited, -1)


def reverse_map(observed: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Make the time map that plays the whole row backwards; see `rewind_map` for the arguments."""
    return (observed[:, None] - 1 - torch.arange(width, device=observed.device)).clamp(min=-1)


def clip_map(observed: Int[Tensor, " B"], last: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Make the time map that stops after observation ``last``, before a success is one.

    This is the temporal clipping of RoboReward. See `rewind_map` for the other arguments.
    """
    index = torch.arange(width, device=observed.device).expand(len(observed), -1)
    return torch.where((index <= last[:, None]) & (index < observed[:, None]), index, -1)


def stall_map(observed: Int[Tensor, " B"], last: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Make the time map that plays to observation ``last`` and stands still there for the rest of the row.

    Time passes there and progress does not. See `rewind_map` for the other arguments.
    """
    index = torch.arange(width, device=observed.device)
    return torch.where(index < observed[:, None], torch.minimum(index, last[:, None]), -1)


def warp_map(observed: Int[Tensor, " B"], power: Float[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Make the time map that plays the whole row at a changing pace.

    Place j shows observation round((L − 1) · (j / (L − 1))^power) of L.

    A power above 1 starts slow and ends fast, one below 1 the other way round; 1 changes nothing. First and last
    observation stay, labels follow the observation shown, so equal times no longer mean equal progress.
    """
    index = torch.arange(width, device=observed.device)
    last = (observed - 1).clamp(min=1)[:, None].double()
    visited = (last * (index / last).clamp(max=1) ** power[:, None].double()).round().long()
    return torch.where(index < observed[:, None], visited, -1)


def with_instruction_of(batch: TrajectoryBatch, donor: Int[Tensor, " B"]) -> TrajectoryBatch:
    """Give rows the instruction and task of other rows; for the new task nothing was achieved.

    Targets of progress and success are 0 at every observation. Other labels become invalid, because they are about the
    old task. The row ends with a cut, because its end was not that of the new task.

    Args:
        batch: Rows to relabel.
        donor: Row whose task each row takes, (B,); −1 leaves a row as it is.
    """
    chosen = donor >= 0
    if not bool(chosen.any()):
        return batch
    row = _rows(donor)
    return _for_another_task(batch, chosen, tuple(batch.instructions[i] for i in row.tolist()), batch.task[row])


def with_texts(batch: TrajectoryBatch, texts: Sequence[str | None]) -> TrajectoryBatch:
    """Give rows counterfactual instructions, which no recording fulfils; their task becomes −1.

    Args:
        batch: Rows to relabel.
        texts: Instruction of each row; None leaves a row as it is.
    """
    chosen = torch.tensor([text is not None for text in texts], device=batch.task.device)
    instructions = tuple(old if new is None else new for old, new in zip(batch.instructions, texts, strict=True))
    return _for_another_task(batch, chosen, instructions, torch.where(chosen, -1, batch.task))


def with_video_of(batch: TrajectoryBatch, donor: Int[Tensor, " B"]) -> TrajectoryBatch:
    """Give rows the observations of other rows under their own instruction, for which nothing was achieved.

    Unlike `with_instruction_of`, it leaves the share of every instruction as it was. Everything in a changed row is the
    donor's, the number of the episode included, except instruction and task.

    Args:
        batch: Rows to relabel.
        donor: Row whose observations each row takes, (B,); −1 leaves a row as it is.
    """
    chosen = donor >= 0
    if not bool(chosen.any()):
        return batch
    return _for_another_task(batch[_rows(donor)], chosen, batch.instructions, batch.task)


def _rows(donor: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Return the donor of every row, or the row itself where there is none."""
    return torch.where(donor >= 0, donor, torch.arange(len(donor), device=donor.device))


def _for_another_task(
    batch: TrajectoryBatch, chosen: Bool[Tensor, " B"], instructions: tuple[str, ...], task: Int[Tensor, " B"]
) -> TrajectoryBatch:
    """Give chosen rows instructions for which nothing was achieved in them."""
    labels: dict[str, Labelled] = {}
    for name, label in batch.labels.items():
        nothing = batch.made if name in ("progress", "success") else torch.zeros_like(label.valid)
        off = chosen.view(-1, *(1,) * (label.values.ndim - 1))
        zero = torch.zeros((), dtype=label.values.dtype, device=label.values.device)
        labels[name] = Labelled(
            values=torch.where(off, zero, label.values), valid=torch.where(chosen[:, None], nothing, label.valid)
        )
    return replace(
        batch,
        instructions=instructions,
        task=task,
        labels=labels,
        end=torch.where(chosen, int(End.CUT), batch.end),
        terminated=batch.terminated & ~chosen,
        success=torch.where(chosen, 0.0, batch.success),
        success_known=batch.success_known & ~chosen,
    )
