"""Targets and negatives for reward models: progress, success, and rows replayed backwards or given another's task.

Everything here is a pure function of a batch (and of an explicit generator where something is drawn, row by row); the
batch that comes in is never changed. Targets first, negatives after: a reordered row no longer knows how it ended.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..core.batch import End, Labelled, Sampled, TrajectoryBatch

KINDS = ("original", "rewind", "reverse", "wrong_instruction")
"""What the numbers in ``labels["negative"]`` mean."""


def with_progress_targets(batch: TrajectoryBatch, assume_success: bool = False) -> TrajectoryBatch:
    """Add ``labels["progress"]`` (B, T+1): (offset + j) / length at observation j of a successful episode.

    Recorded progress wins wherever it is valid. A failure or a partial success has no known progress, and neither has
    an unknown outcome; both stay invalid, as does a last observation that was never made.

    Args:
        batch: Rows of whole episodes or windows.
        assume_success: Take episodes of unknown outcome for successes, as unlabelled demonstrations usually are.

    Raises:
        ValueError: If recorded progress is not one number in [0, 1] per observation.
    """
    index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)
    linear = ((batch.offset[:, None] + index) / batch.length.clamp(min=1)[:, None]).clamp(0, 1)
    return _with_target(batch, "progress", linear, _succeeded(batch, assume_success)[:, None])


def with_success_targets(batch: TrajectoryBatch, tail: int = 1, assume_success: bool = False) -> TrajectoryBatch:
    """Add ``labels["success"]`` (B, T+1): 1 at the last observation of a success and 0 before, 0 all along a failure.

    Recorded flags win wherever they are valid. Episodes of unknown outcome stay invalid, and so do partial successes.
    Where the last observation was never made, the one before it counts as the last.

    Args:
        batch: Rows of whole episodes or windows.
        tail: How many observations at the end of a success count as done.
        assume_success: Take episodes of unknown outcome for successes.

    Raises:
        ValueError: If recorded success is not one number in [0, 1] per observation, or ``tail`` is below 1.
    """
    if tail < 1:
        raise ValueError(f"tail is {tail}: expected at least one observation of a success to count as done")
    index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)
    succeeded = _succeeded(batch, assume_success)
    last = batch.length - (~batch.last_observed).long()
    done = (batch.offset[:, None] + index > (last - tail)[:, None]) & succeeded[:, None]
    known = succeeded | (batch.success_known & (batch.success <= 0))
    return _with_target(batch, "success", done.float(), known[:, None])


def _succeeded(batch: TrajectoryBatch, assume_success: bool) -> Bool[Tensor, " B"]:
    succeeded = batch.success_known & (batch.success >= 1)
    return succeeded | ~batch.success_known if assume_success else succeeded


def _with_target(batch: TrajectoryBatch, name: str, values: Tensor, known: Tensor) -> TrajectoryBatch:
    real = batch.observed & (batch.steps > 0)[:, None]
    valid = real & known
    stored = batch.labels.get(name)
    if stored is not None:
        if stored.values.shape != values.shape:
            raise ValueError(
                f"recorded {name}: expected one number per observation {tuple(values.shape)}, got "
                f"{tuple(stored.values.shape)}"
            )
        given = stored.valid & real
        outside = given & ~((stored.values >= 0) & (stored.values <= 1))
        if bool(outside.any()):
            row, j = (int(i) for i in outside.nonzero()[0])
            raise ValueError(
                f"recorded {name} of episode {int(batch.episode[row])} is {float(stored.values[row, j])} at "
                f"observation {j}: expected a number in [0, 1]"
            )
        values = torch.where(given, stored.values.to(values.dtype), values)
        valid = valid | given
    target = Labelled(values=torch.where(valid, values, 0.0), valid=valid)
    return replace(batch, labels={**batch.labels, name: target})


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


def reorder(batch: TrajectoryBatch, time_map: Int[Tensor, "B Tp1"]) -> TrajectoryBatch:
    """Re-index time: observation j of the result is observation ``time_map[:, j]`` of the batch.

    State, labels and tracks follow the observation visited. A frame (or feature) shows up where its observation is
    visited; the start takes the frame held there. An action is kept where a step still leads from one observation to
    the next, and is 0 elsewhere: no action leads backwards in time, so such a step is no decision either, and columns
    per step are invalid on it. A reordered row ends with a cut, its outcome is unknown, ``behaviour`` is dropped, and
    ``offset`` and ``length`` go on saying where it came from. ``weight`` stays with the stretch of the recording a step
    covers in either direction, so reordered rows do count in the losses of reward models.

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
        shown[1:] &= known[held[1:].clamp(min=0)] == visited[1:] if len(known) else False
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
    row = torch.where(chosen, donor, torch.arange(len(batch), device=donor.device))
    made = batch.observed & (batch.steps > 0)[:, None]
    labels: dict[str, Labelled] = {}
    for name, label in batch.labels.items():
        nothing = made if name in ("progress", "success") else torch.zeros_like(label.valid)
        off = chosen.view(-1, *(1,) * (label.values.ndim - 1))
        zero = torch.zeros((), dtype=label.values.dtype, device=label.values.device)
        labels[name] = Labelled(
            values=torch.where(off, zero, label.values), valid=torch.where(chosen[:, None], nothing, label.valid)
        )
    return replace(
        batch,
        instructions=tuple(batch.instructions[i] for i in row.tolist()),
        task=batch.task[row],
        labels=labels,
        end=torch.where(chosen, int(End.CUT), batch.end),
        terminated=batch.terminated & ~chosen,
        success=torch.where(chosen, 0.0, batch.success),
        success_known=batch.success_known & ~chosen,
    )


class LabelFactory:
    """Adds targets to a batch and turns some of its rows into negatives; the arguments are the ablation switches.

    Args:
        rewind: Share of rows played forward to a random point and then backwards.
        reverse: Share of rows played backwards.
        wrong_instruction: Share of rows that get the instruction of another task in the batch.
        assume_success: Take episodes of unknown outcome for successes.
        success_tail: Observations at the end of a success that count as done.

    Raises:
        ValueError: If the shares are negative or add up to more than 1.
    """

    def __init__(
        self,
        rewind: float = 0.3,
        reverse: float = 0.1,
        wrong_instruction: float = 0.2,
        assume_success: bool = False,
        success_tail: int = 1,
    ) -> None:
        shares = (rewind, reverse, wrong_instruction)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(
                f"shares rewind, reverse, wrong_instruction = {shares}: expected at least 0, at most 1 all"
            )
        self.shares = shares
        self.assume_success = assume_success
        self.success_tail = success_tail

    def targets(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Add the targets only."""
        batch = with_progress_targets(batch, self.assume_success)
        return with_success_targets(batch, self.success_tail, self.assume_success)

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> TrajectoryBatch:
        """Add targets and draw negatives."""
        return self.draw(batch, generator)[0]

    def draw(self, batch: TrajectoryBatch, generator: torch.Generator) -> tuple[TrajectoryBatch, dict[str, int]]:
        """Add targets, draw negatives row by row, and count what was drawn.

        Args:
            batch: On the host.
            generator: Source of the draws; each row consumes the same numbers whatever the others draw.

        Returns:
            The batch, with ``labels["negative"]`` (B, T+1) naming each row's kind by its place in `KINDS`; and rows by
            kind, ``"impossible"`` counting those that stayed as they were because the drawn kind could not be made
            (no second task in the batch, fewer than three observations).
        """
        batch = self.targets(batch)
        rows, width = batch.observed.shape
        chance, where = torch.rand(2, rows, generator=generator)
        edges = torch.tensor(self.shares).cumsum(0)
        kind = (torch.bucketize(chance, edges, right=True) + 1) % len(KINDS)  # beyond the last edge: original
        count = batch.observed.sum(1)
        possible = count >= 3
        donor = torch.full((rows,), -1, dtype=torch.long)
        for row in (kind == 3).nonzero().flatten().tolist():
            others = [
                i
                for i in range(rows)
                if int(batch.task[i]) != int(batch.task[row]) and batch.instructions[i] != batch.instructions[row]
            ]
            possible[row] = bool(others)
            if others:
                donor[row] = others[min(int(float(where[row]) * len(others)), len(others) - 1)]
        impossible = (kind > 0) & ~possible
        kind = torch.where(impossible, 0, kind)
        peak = 1 + (where * (count - 2).clamp(min=1)).long().clamp(max=(count - 3).clamp(min=0))
        time_map = identity_map(batch)
        time_map = torch.where((kind == 1)[:, None], rewind_map(count, peak, width), time_map)
        time_map = torch.where((kind == 2)[:, None], reverse_map(count, width), time_map)
        batch = with_instruction_of(reorder(batch, time_map), donor)
        named = Labelled(values=kind[:, None].expand(rows, width).contiguous(), valid=batch.observed)
        counts = {name: int((kind == i).sum()) for i, name in enumerate(KINDS)}
        batch = replace(batch, labels={**batch.labels, "negative": named})
        return batch, {**counts, "impossible": int(impossible.sum())}
