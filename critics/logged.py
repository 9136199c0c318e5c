"""Logged chunks of actions: how long they are, what can be learned from them, and what a critic is shown of them."""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import Component

REPLAN = "replan"
"""Recorded column (B, T): true on the steps at which the acting policy decided anew (the re-plan boundary flag)."""

Tails = Literal["complete", "mask"]


class LoggedChunks(Component):
    """Rules for reading chunks of actions from logged trajectories.

    Args:
        source_weights: Weight of the steps of each source (demonstrations, past policies, people): number of the source
            as text → factor of 0 or more. Other sources have the factor 1.
        across_replans: Let logged chunks go on past re-plans. Their later actions then depended on what the policy saw
            on the way, and their value as blind chunks comes out too high.
        tails: What a critic is shown behind a termination. ``"complete"`` continues with the plan of the policy where a
            rollout recorded it (``behaviour["sample"]``), else with the last action repeated; ``"mask"`` shows nothing.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        source_weights: Mapping[str, float] | None = None,
        across_replans: bool = False,
        tails: Tails = "complete",
    ) -> None:
        super().__init__()
        if tails not in get_args(Tails):
            raise ValueError(f"tails {tails!r}: expected complete or mask")
        for source, factor in (source_weights or {}).items():
            if not re.fullmatch(r"-?[0-9]+", source) or not 0 <= factor < math.inf:
                raise ValueError(
                    f"source_weights[{source!r}] = {factor}: expected the number of a source, and a weight of 0 or more"
                )
        self.source_weights = {int(k): float(v) for k, v in (source_weights or {}).items()}
        self.across_replans = across_replans
        self.tails: Tails = tails
        self._warned = False

    def lengths(self, batch: TrajectoryBatch, horizon: int) -> Int[Tensor, "B T"]:
        """Return the number of steps of the logged chunk that begins at each step; see `chunk_lengths`."""
        return chunk_lengths(batch, horizon, self.across_replans)

    def learnable(self, batch: TrajectoryBatch, rewards: RewardEstimates, horizon: int) -> Int[Tensor, "B T"]:
        """Return the number of steps of each chunk that can be learned from; see `learnable_lengths`."""
        return learnable_lengths(batch, rewards, horizon, self.across_replans)

    def shown(
        self,
        batch: TrajectoryBatch,
        rows: Int[Tensor, " M"],
        steps: Int[Tensor, " M"],
        lengths: Int[Tensor, "B T"],
        horizon: int,
    ) -> tuple[Float[Tensor, "M h A"], Bool[Tensor, "M h"]]:
        """Return the logged chunks that begin at M steps as a critic is shown them.

        Args:
            batch: Trajectories.
            rows: Row of each chunk.
            steps: Step at which each chunk begins.
            lengths: Number of logged steps of the chunk at every step.
            horizon: Largest number h of steps in a chunk.

        Returns:
            Actions, and a mask that is True on the steps that are shown.
        """
        shown = lengths
        if self.tails == "complete":
            shown = shown_lengths(batch, lengths, horizon, self.across_replans)
        return logged_chunks(batch, rows, steps, shown[rows, steps], horizon)

    def weights(self, batch: TrajectoryBatch) -> Float[Tensor, "B T"]:
        """Return the weight of every step, times the factor of its source."""
        weight = batch.weight.clone()
        for source, factor in self.source_weights.items():
            weight[batch.source == source] *= factor
        return weight

    def warn_of_replans(self, batch: TrajectoryBatch, horizon: int) -> None:
        """Warn once if logged chunks go on past re-plans, or may do so because the logs do not record re-plans."""
        if self._warned or horizon == 1:
            return
        boundary = replans(batch)
        if self.across_replans and boundary is not None:
            # the first decision of a row is the beginning of a chunk, not a boundary inside one
            reason = "span re-plans of the policy that acted" if bool(boundary[:, 1:].any()) else ""
        else:
            silent = bool(silent_rows(batch).any())
            reason = "may span re-plans: not all of these trajectories record where they were" if silent else ""
        if reason:
            self._warned = True
            warnings.warn(
                f"logged chunks of {horizon} steps {reason}. Their later actions may have depended on what was "
                "observed on the way, and their value as blind chunks then comes out too high. Take the number of "
                f'steps that were executed as horizon, or record a column "{REPLAN}"',
                stacklevel=3,
            )


def replans(batch: TrajectoryBatch) -> Bool[Tensor, "B T"] | None:
    """Find the steps at which the acting policy decided anew; None if the trajectories do not record them.

    Rollouts of a policy record its decisions, and logs a column ``"replan"``.

    Raises:
        ValueError: If that column has another shape.
    """
    if "sample" in batch.behaviour:
        decided = torch.zeros(len(batch), batch.mask.shape[1] + 1, dtype=torch.bool, device=batch.mask.device)
        steps = torch.where(batch.decision_step >= 0, batch.decision_step, batch.mask.shape[1])
        return decided.scatter_(1, steps, True)[:, :-1] & batch.mask
    column = _recorded(batch)
    return None if column is None else column.valid & (column.values > 0)


def _recorded(batch: TrajectoryBatch) -> Labelled | None:
    """Return the recorded column on real steps; a flag of an observation belongs to the step that begins there.

    Raises:
        ValueError: If it does not hold one number per step.
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
    """Compute the number of steps of the logged chunk that begins at each step; 0 on padding.

    A chunk ends at the horizon, at the end of its row, and at the next re-plan.

    Args:
        batch: Trajectories.
        horizon: Largest number of steps in a chunk.
        across_replans: Let chunks go on past re-plans.
    """
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    length = (batch.steps[:, None] - index).clamp(max=horizon)
    boundary = None if across_replans else replans(batch)
    if boundary is not None:
        length = torch.minimum(length, _next(boundary, index, after=True) - index)
    return torch.where(batch.mask, length, 0)


def learnable_lengths(
    batch: TrajectoryBatch, rewards: RewardEstimates, horizon: int, across_replans: bool = False
) -> Int[Tensor, "B T"]:
    """Compute the number of steps n of each chunk whose reward and next observation are known; 0 where none are.

    A chunk ends before an unknown reward. Where a row is cut without a last observation, it ends one step early: its
    value cannot be bootstrapped from an observation that was never made.

    Args:
        batch: Trajectories.
        rewards: Rewards of their steps.
        horizon: Largest number of steps in a chunk.
        across_replans: Let chunks go on past re-plans.
    """
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    unseen = (~batch.last_observed & ~batch.terminated).long()
    length = torch.minimum(chunk_lengths(batch, horizon, across_replans), (batch.steps - unseen)[:, None] - index)
    unknown = ~(rewards.valid & batch.mask)
    return torch.minimum(length, _next(unknown, index, after=False) - index).clamp(min=0)


def _next(flags: Bool[Tensor, "B T"], index: Int[Tensor, " T"], after: bool) -> Int[Tensor, "B T"]:
    """Return the step of the next flag at (or strictly after) each step; T where none follows."""
    steps = flags.shape[1]
    place = torch.where(flags, index, steps).flip(1).cummin(1).values.flip(1)
    return torch.cat([place[:, 1:], place.new_full((len(place), 1), steps)], 1) if after else place


def silent_rows(batch: TrajectoryBatch) -> Bool[Tensor, " B"]:
    """Find the rows of two steps or more that record at no step whether the acting policy decided anew."""
    several = batch.steps > 1
    if "sample" in batch.behaviour:
        return several & ~batch.decision_mask.any(1)
    column = _recorded(batch)
    return several if column is None else several & ~column.valid.any(1)


def shown_lengths(
    batch: TrajectoryBatch, lengths: Int[Tensor, "B T"], horizon: int, across_replans: bool = False
) -> Int[Tensor, "B T"]:
    """Compute the number of planned steps of each chunk: more than ``lengths`` where a termination cut the plan short.

    A plan is assumed to be as long as the longest plan of its row that was executed whole. Where none was, or plans are
    not recorded, it is as long as the horizon (or as the recorded plan, if that is shorter).

    Args:
        batch: Trajectories.
        lengths: Number of logged steps of each chunk.
        horizon: Largest number of steps in a chunk.
        across_replans: Let chunks go on past re-plans.
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
    """Return the chunks that begin at M steps, and a mask that is True on the steps that are shown.

    Behind the end of a row stands the rest of the last plan where the rollout recorded it, else the last action
    repeated.

    Args:
        batch: Trajectories.
        rows: Row of each chunk.
        steps: Step at which each chunk begins.
        shown: Number of steps of each chunk that are shown.
        horizon: Largest number h of steps in a chunk.
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
    "LoggedChunks",
    "Tails",
    "chunk_lengths",
    "learnable_lengths",
    "logged_chunks",
    "replans",
    "shown_lengths",
    "silent_rows",
]
