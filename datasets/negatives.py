"""Rows that a reward model must tell from the recording: time re-ordered, or the task of another row.

Pure functions of a batch; the batch that comes in is never changed.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.batch import End, Labelled, TrajectoryBatch


def rewind_map(observed: Int[Tensor, " B"], peak: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Play forward to observation ``peak``, then backwards until the start or the row's length is reached.

    ReWiND's rewind augmentation (Zhang et al. 2025, arXiv:2505.10911, §III-A). A causal model sees every prefix of a
    row, so playing back as far as possible contains all shorter rewinds.
    """
    index = torch.arange(width, device=observed.device)
    visited = torch.where(index <= peak[:, None], index, 2 * peak[:, None] - index)
    return torch.where((visited >= 0) & (index < observed[:, None]), visited, -1)


def reverse_map(observed: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Play the whole row backwards."""
    return (observed[:, None] - 1 - torch.arange(width, device=observed.device)).clamp(min=-1)


def clip_map(observed: Int[Tensor, " B"], last: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Stop after observation ``last``: what a success looks like before it is one (temporal clipping of RoboReward)."""
    index = torch.arange(width, device=observed.device).expand(len(observed), -1)
    return torch.where((index <= last[:, None]) & (index < observed[:, None]), index, -1)


def stall_map(observed: Int[Tensor, " B"], last: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Play until observation ``last`` and stand still there for the rest of the row: time passes, progress does not."""
    index = torch.arange(width, device=observed.device)
    return torch.where(index < observed[:, None], torch.minimum(index, last[:, None]), -1)


def warp_map(observed: Int[Tensor, " B"], power: Float[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
    """Play the whole row at a changing pace: observation round((L − 1) · (j / (L − 1))^power) at place j.

    A power above 1 starts slow and ends fast, one below 1 the other way round; 1 changes nothing. First and last
    observation stay, labels follow the observation shown, so equal times no longer mean equal progress.
    """
    index = torch.arange(width, device=observed.device)
    last = (observed - 1).clamp(min=1)[:, None].double()
    visited = (last * (index / last).clamp(max=1) ** power[:, None].double()).round().long()
    return torch.where(index < observed[:, None], visited, -1)


def with_instruction_of(batch: TrajectoryBatch, donor: Int[Tensor, " B"]) -> TrajectoryBatch:
    """Give rows the instruction and task of other rows; for the new task nothing was achieved.

    Progress and success targets are 0 at every observation made, other labels become invalid (they speak of the old
    task), and the row ends with a cut: whatever ended it, it was not the new task.

    Args:
        batch: Rows to relabel.
        donor: Row whose task is taken; −1 leaves a row as it is.
    """
    chosen = donor >= 0
    if not bool(chosen.any()):
        return batch
    row = _rows(donor)
    return _for_another_task(batch, chosen, tuple(batch.instructions[i] for i in row.tolist()), batch.task[row])


def with_texts(batch: TrajectoryBatch, texts: Sequence[str | None]) -> TrajectoryBatch:
    """Give rows instructions that no recording fulfils (counterfactual ones); their task becomes −1.

    Args:
        batch: Rows to relabel.
        texts: One per row; None leaves a row as it is.
    """
    chosen = torch.tensor([text is not None for text in texts], device=batch.task.device)
    told = tuple(old if new is None else new for old, new in zip(batch.instructions, texts, strict=True))
    return _for_another_task(batch, chosen, told, torch.where(chosen, -1, batch.task))


def with_video_of(batch: TrajectoryBatch, donor: Int[Tensor, " B"]) -> TrajectoryBatch:
    """Show rows what happened in other rows, under their own instruction; for that task nothing was achieved.

    The mirror image of `with_instruction_of`: here the share of every instruction stays as it was. All of the row is
    the donor's (episode number too), except instruction and task.

    Args:
        batch: Rows to relabel.
        donor: Row whose observations are taken; −1 leaves a row as it is.
    """
    chosen = donor >= 0
    if not bool(chosen.any()):
        return batch
    return _for_another_task(batch[_rows(donor)], chosen, batch.instructions, batch.task)


def _rows(donor: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The donor of every row, or the row itself where there is none."""
    return torch.where(donor >= 0, donor, torch.arange(len(donor), device=donor.device))


def _for_another_task(
    batch: TrajectoryBatch, chosen: Bool[Tensor, " B"], instructions: tuple[str, ...], task: Int[Tensor, " B"]
) -> TrajectoryBatch:
    """Chosen rows with instructions for which nothing was achieved in them."""
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
