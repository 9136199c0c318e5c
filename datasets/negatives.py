"""Rows that a reward model must tell from the recording: time re-ordered, or the task of another row.

Pure functions of a batch; the batch that comes in is never changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.batch import End, Labelled, Sampled, TrajectoryBatch


def identity_map(batch: TrajectoryBatch) -> Int[Tensor, "B Tp1"]:
    """The time map that changes nothing: j at observation j of every row, −1 in padding."""
    index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device).expand(len(batch), -1)
    return torch.where(index <= batch.steps[:, None], index, -1)


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


def reorder(batch: TrajectoryBatch, time_map: Int[Tensor, "B Tp1"]) -> TrajectoryBatch:
    """Re-index time: observation j of the result is observation ``time_map[:, j]`` of the batch.

    State, labels and tracks follow the observation visited. A frame (or feature) shows up where its observation is
    visited, or passed on the way ahead; the start takes the frame held there. While time stands still a camera goes on
    showing the frame held, where it had a frame in the row as it was.

    An action is kept where a step still leads from one observation to the next, and is 0 elsewhere: no action leads
    backwards in time, so such a step is no decision either, and columns per step are invalid on it. A reordered row
    ends with a cut, its outcome is unknown, ``behaviour`` is dropped, and ``offset`` and ``length`` go on saying where
    it came from. ``weight`` stays with the stretch of the recording a step covers in either direction, so reordered
    rows do count in the losses of reward models.

    Args:
        batch: Rows to re-index.
        time_map: Observations to visit; −1 pads, at the end only. Rows equal to `identity_map` stay as they are.

    Raises:
        ValueError: If the map visits an observation that was not made, or has a gap.
    """
    identity = identity_map(batch)
    changed = (time_map != identity).any(1)
    if not bool(changed.any()):
        return batch
    _check_map(batch, time_map, changed)
    visited, real = time_map.clamp(min=0), time_map >= 0
    mask = real[:, 1:] & real[:, :-1]
    between = torch.minimum(visited[:, 1:], visited[:, :-1]).clamp(max=batch.mask.shape[1] - 1)
    forward = mask & (visited[:, 1:] == visited[:, :-1] + 1)

    def column(stored: Labelled) -> Labelled:
        per_step = stored.valid.shape[1] == mask.shape[1]
        index, kept = (between, forward) if per_step else (visited, real)
        return Labelled(values=_take(stored.values, index, kept), valid=_take(stored.valid, index, kept))

    def columns(stored: Mapping[str, Labelled]) -> dict[str, Labelled]:
        return {name: column(values) for name, values in stored.items()}

    return replace(
        batch,
        state=_take(batch.state, visited, real),
        actions=_take(batch.actions, between, forward),
        mask=mask,
        frames={name: _visit(sampled, time_map) for name, sampled in batch.frames.items()},
        features={name: _visit(sampled, time_map) for name, sampled in batch.features.items()},
        end=torch.where(changed, int(End.CUT), batch.end),
        terminated=batch.terminated & ~changed,
        last_observed=batch.last_observed | changed,
        success=torch.where(changed, 0.0, batch.success),
        success_known=batch.success_known & ~changed,
        weight=_take(batch.weight, between, mask),
        labels=columns(batch.labels),
        tracks=columns(batch.tracks),
        recorded=columns(batch.recorded),
        decision_step=_decisions(batch.decision_step, forward, changed),
        behaviour={},
    )


def _check_map(batch: TrajectoryBatch, time_map: Tensor, changed: Tensor) -> None:
    if time_map.shape != identity_map(batch).shape:
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
    """Samples in the order their observations are visited."""
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
    """Decisions of reordered rows: every step along which an action still leads."""
    width = max(decision_step.shape[1], forward.shape[1])
    steps = torch.arange(forward.shape[1], device=forward.device).expand_as(forward)
    far = forward.shape[1] + 1
    kept = torch.where(forward, steps, far).sort(1).values
    kept = torch.nn.functional.pad(torch.where(kept == far, -1, kept), (0, width - kept.shape[1]), value=-1)
    old = torch.nn.functional.pad(decision_step, (0, width - decision_step.shape[1]), value=-1)
    return torch.where(changed[:, None], kept, old)


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
