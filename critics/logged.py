"""What of a logged chunk can be learned from, and what a critic is shown of it."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch

REPLAN = "replan"
"""Recorded column (B, T), true on the steps at which the acting policy decided anew: the re-plan boundary flag."""


def replans(batch: TrajectoryBatch) -> Bool[Tensor, "B T"] | None:
    """Where the acting policy decided anew; None where the trajectories do not say.

    Rollouts of a policy say it by their decisions, logs by a recorded column ``"replan"``.
    """
    if "sample" in batch.behaviour:
        decided = torch.zeros(len(batch), batch.mask.shape[1] + 1, dtype=torch.bool, device=batch.mask.device)
        steps = torch.where(batch.decision_step >= 0, batch.decision_step, batch.mask.shape[1])
        return decided.scatter_(1, steps, True)[:, :-1] & batch.mask
    column = _recorded(batch)
    return None if column is None else column.valid & (column.values > 0)


def _recorded(batch: TrajectoryBatch) -> Labelled | None:
    """The recorded column on real steps; a flag of an observation is that of the step which begins there.

    Raises:
        ValueError: If it holds anything but one number each.
    """
    column = batch.recorded.get(REPLAN)
    if column is None:
        return None
    if column.values.numel() != column.valid.numel():
        raise ValueError(
            f"recorded[{REPLAN!r}]: expected one flag a step, (B, T), true where the policy decided anew, got "
            f"{tuple(column.values.shape)}: record it so, or leave it out"
        )
    steps = batch.mask.shape[1]
    flags = column.values.reshape(column.valid.shape)[:, :steps]
    return Labelled(values=flags, valid=column.valid[:, :steps] & batch.mask)


def chunk_lengths(batch: TrajectoryBatch, horizon: int, across_replans: bool = False) -> Int[Tensor, "B T"]:
    """Steps of the logged chunk that begins at each real step: up to the horizon, the row's end, the next re-plan."""
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    length = (batch.steps[:, None] - index).clamp(max=horizon)
    boundary = None if across_replans else replans(batch)
    if boundary is not None:
        length = torch.minimum(length, _next(boundary, index, after=True) - index)
    return torch.where(batch.mask, length, 0)


def learnable_lengths(
    batch: TrajectoryBatch, rewards: RewardEstimates, horizon: int, across_replans: bool = False
) -> Int[Tensor, "B T"]:
    """Steps n of each chunk whose reward and next observation are known; 0 where there is nothing to learn from.

    A chunk ends before an unknown reward and, where a row is cut without a last observation, one step early: its value
    cannot be bootstrapped from an observation that nobody made.
    """
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    unseen = (~batch.last_observed & ~batch.terminated).long()
    length = torch.minimum(chunk_lengths(batch, horizon, across_replans), (batch.steps - unseen)[:, None] - index)
    unknown = ~(rewards.valid & batch.mask)
    return torch.minimum(length, _next(unknown, index, after=False) - index).clamp(min=0)


def _next(flags: Bool[Tensor, "B T"], index: Int[Tensor, " T"], after: bool) -> Int[Tensor, "B T"]:
    """Step of the next flag at (or strictly after) each step; T where none follows."""
    steps = flags.shape[1]
    place = torch.where(flags, index, steps).flip(1).cummin(1).values.flip(1)
    return torch.cat([place[:, 1:], place.new_full((len(place), 1), steps)], 1) if after else place


def silent_rows(batch: TrajectoryBatch) -> Bool[Tensor, " B"]:
    """Rows of two steps or more that do not say at any step whether the acting policy decided anew."""
    several = batch.steps > 1
    if "sample" in batch.behaviour:
        return several & ~batch.decision_mask.any(1)
    column = _recorded(batch)
    return several if column is None else several & ~column.valid.any(1)


def shown_lengths(
    batch: TrajectoryBatch, lengths: Int[Tensor, "B T"], horizon: int, across_replans: bool = False
) -> Int[Tensor, "B T"]:
    """Steps of each chunk that were planned: more than ``lengths`` where a termination cut the plan short.

    A plan is taken to be as long as the longest one of its row that was carried out whole; where none was, or nothing
    is known of plans, as the horizon (or as the recorded plan, if that is shorter).
    """
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    end = batch.steps[:, None]
    planned = torch.full_like(lengths, horizon)
    boundary = None if across_replans else replans(batch)
    if boundary is not None and boundary.shape[1]:
        last = torch.where(boundary, index, -1).cummax(1).values
        before = torch.cat([last.new_full((len(last), 1), -1), last[:, :-1]], 1)
        whole = torch.where(boundary & (before >= 0), index - before, 0).amax(1, keepdim=True)
        begun = last[:, -1:]
        plan = batch.behaviour.get("sample")
        usual = horizon if plan is None or plan.ndim != 4 else min(horizon, plan.shape[2])
        until = begun + torch.maximum(torch.where(whole > 0, whole, usual), end - begun)
        planned = torch.where(begun >= 0, (until - index).clamp(max=horizon), planned)
    short = batch.terminated[:, None] & (lengths > 0) & (index + lengths == end)
    return torch.where(short, torch.maximum(planned, lengths), lengths)


def logged_chunks(
    batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], shown: Int[Tensor, " M"], horizon: int
) -> tuple[Float[Tensor, "M h A"], Bool[Tensor, "M h"]]:
    """The chunks that begin at M steps, and which of their steps are shown.

    Behind the end of a row stands the rest of the last plan, where the rollout recorded it, else the last action again.
    """
    offset = torch.arange(horizon, device=rows.device)
    index, last = steps[:, None] + offset, batch.steps[rows][:, None] - 1
    chunk = batch.actions[rows[:, None], torch.minimum(index, last)]
    plan = batch.behaviour.get("sample")
    if plan is not None and plan.ndim == 4 and plan.shape[2] and plan.shape[3] == chunk.shape[2]:
        decided = batch.decision_mask.sum(1)[rows] - 1
        at = decided.clamp(min=0)
        place = (index - batch.decision_step[rows, at][:, None]).clamp(0, plan.shape[2] - 1)
        intended = plan[rows[:, None], at[:, None], place].to(chunk.dtype)
        known = (index > last) & (decided >= 0)[:, None] & intended.isfinite().all(2)
        chunk = torch.where(known[..., None], intended, chunk)
    return chunk, offset < shown[:, None]


__all__ = [
    "REPLAN",
    "chunk_lengths",
    "learnable_lengths",
    "logged_chunks",
    "replans",
    "shown_lengths",
    "silent_rows",
]
