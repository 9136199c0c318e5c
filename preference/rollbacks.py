"""Preference pairs from take-overs with rollback: the policy's piece against the person's from the same observation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import End, PreferencePairs, TrajectoryBatch
from ..core.edit import identity_map, reindex, truncate
from .flags import human_steps

ROLLBACK_TOLERANCE = 1e-3
"""Largest difference of two observations that count as the same, per number of the state."""


@dataclass(frozen=True, kw_only=True)
class RollbackPairs:
    """Pairs from take-overs with rollback, and the take-overs that make none."""

    pairs: PreferencePairs
    """Pair p on a batch of 2P rows: row p is the person's piece and chosen, row P + p the policy's and rejected. Both
    begin at one observation and share a ``group``. Labels and weights are 1."""
    refused: tuple[str, ...]
    """Why each of the other take-overs makes no pair."""


def rollback_pairs(
    batch: TrajectoryBatch,
    human: str | None = None,
    tolerance: float | int = ROLLBACK_TOLERANCE,
    steps: int | None = None,
) -> RollbackPairs:
    """Make preference pairs of what the policy did before a take-over and what a person did instead.

    A take-over is a row that ends by `End.TAKEOVER`. With rollback, the robot goes back to an earlier observation of
    that row, and the person acts from there: this is a row on whose steps a person acts throughout, in the same group
    or the same source and episode. The observation of the policy's row closest to the person's first one is the common
    start; the policy's piece from there on is rejected, the person's row is chosen.

    A person's row of another task or instruction makes no pair. Neither does one that begins elsewhere: without
    rollback the states differ, and the difference of both log-probabilities does not tell which action is better at a
    state. Such take-overs are refused with a reason; use `decision_flags` for them.

    Args:
        batch: Rows of policy and person.
        human: Track that shows who acted; see `human_steps`. None takes rows that begin where a row ended by a
            take-over, by ``episode`` and ``offset``.
        tolerance: Largest difference of the two starts, per number of the state; at least 0.
        steps: Largest number of steps of each piece, counted from the common start; None keeps all.

    Returns:
        Pairs, and a reason for each take-over without one. What the acting policy recorded (``behaviour``) is kept on
        the decisions of a piece.

    Raises:
        ValueError: If a number is out of range, the batch has no state to compare, or the track is not one number a
            step.
    """
    if not tolerance >= 0 or (steps is not None and steps < 1):
        raise ValueError(f"tolerance {tolerance}, steps {steps}: expected at least 0, and at least one step or None")
    if batch.state.shape[2] == 0:
        raise ValueError("the batch has no state, so starts cannot be compared: take-overs of it make flags, not pairs")
    person = (human_steps(batch, human) | ~batch.mask).all(1) & (batch.steps > 0)
    chosen: list[int] = []
    rejected: list[int] = []
    starts: list[int] = []
    refused: list[str] = []
    for row in ((batch.end == End.TAKEOVER) & ~person & (batch.steps > 0)).nonzero()[:, 0].tolist():
        near = (batch.group == batch.group[row]) | (
            (batch.episode == batch.episode[row]) & (batch.source == batch.source[row])
        )
        reasons: list[str] = []
        for other in (near & person).nonzero()[:, 0].tolist():
            start, reason = _common_start(batch, row, other, tolerance)
            if reason:
                reasons.append(reason)
                continue
            chosen.append(other)
            rejected.append(row)
            starts.append(start)
        if row not in rejected:
            why = "; ".join(reasons) or "no row of a person in its group or episode"
            refused.append(f"take-over of row {row}: {why}. Use decision_flags (unpaired) for it")
    return RollbackPairs(pairs=_pairs(batch, chosen, rejected, starts, steps), refused=tuple(refused))


def _common_start(batch: TrajectoryBatch, row: int, other: int, tolerance: float | int) -> tuple[int, str]:
    """Find the observation of the policy's row at which the person's row begins, or the reason why there is none."""
    if batch.task[row] != batch.task[other] or batch.instructions[row] != batch.instructions[other]:
        return -1, f"row {other} is of another task or instruction"
    length = int(batch.steps[row])
    apart = (batch.state[row, : length + 1] - batch.state[other, 0]).abs().amax(1)
    closest = int(apart[:length].argmin())
    if not float(apart[closest]) <= tolerance:
        if float(apart[length]) <= tolerance:
            return -1, f"row {other} begins where the policy stopped (no rollback), so both acted in different states"
        return -1, (
            f"row {other} begins in a state of its own, {float(apart[closest]):.3g} from the closest observation "
            f"({closest}) of the policy; expected at most {tolerance:g}"
        )
    return closest, ""


def _pairs(
    batch: TrajectoryBatch, chosen: Sequence[int], rejected: Sequence[int], starts: Sequence[int], steps: int | None
) -> PreferencePairs:
    count = len(chosen)
    device = batch.mask.device
    rows = torch.tensor([*chosen, *rejected], dtype=torch.long, device=device)
    begin = torch.tensor([*([0] * count), *starts], dtype=torch.long, device=device)
    both = _from_step(batch[rows], begin) if bool((begin > 0).any()) else batch[rows]
    index = torch.arange(count, device=device)
    both = replace(both, group=index.repeat(2))
    if steps is not None:
        both = truncate(both, both.steps.clamp(max=steps))
    ones = torch.ones(count, device=device)
    return PreferencePairs(batch=both, chosen=index, rejected=index + count, label=ones, weight=ones.clone())


def _from_step(batch: TrajectoryBatch, begin: Tensor) -> TrajectoryBatch:
    """Leave out the steps before ``begin`` (B,) of each row; ends, outcomes and recorded behaviour stay."""
    width = batch.mask.shape[1] + 1
    time_map = torch.arange(width, device=begin.device)[None] + begin[:, None]
    time_map = torch.where(time_map <= batch.steps[:, None], time_map, -1)
    made = replace(batch, last_observed=torch.ones_like(batch.last_observed))  # a repeated last observation is kept
    cut = reindex(made, torch.where(begin[:, None] > 0, time_map, identity_map(batch)))
    kept = batch.decision_step >= begin[:, None]
    order = torch.argsort((~kept).long(), dim=1, stable=True)
    decision_step = torch.where(kept.gather(1, order), batch.decision_step.gather(1, order) - begin[:, None], -1)
    behaviour = {
        name: value.gather(1, order.view(*order.shape, *(1,) * (value.dim() - 2)).expand_as(value))
        for name, value in batch.behaviour.items()
    }
    return replace(
        cut,
        offset=batch.offset + begin,
        end=batch.end,
        terminated=batch.terminated,
        success=batch.success,
        success_known=batch.success_known,
        last_observed=batch.last_observed,
        decision_step=decision_step,
        behaviour=behaviour,
    )


def interpolated_corrections(
    policy: Float[Tensor, "J H A"], correction: Float[Tensor, "J H A"]
) -> Float[Tensor, "J H A"]:
    """Blend the person's correction into the policy's chunks over the time that the person took to react.

    State j = 0 … J − 1, in order of time up to the take-over, gets (1 − c_j) policy + c_j correction with
    c_j = (j + 1) / J: the last one is the correction itself. One take-over so makes a chosen chunk for each state,
    against the policy's own chunk as the rejected one. This follows the idea of FlowPRO (arXiv 2606.05468); its formula
    is not known to us.

    Args:
        policy: Chunk that the policy decided on at each of J states.
        correction: Chunk of the person from the same state, such as their one correction repeated J times.

    Returns:
        Chosen chunk of each state.

    Raises:
        ValueError: If shapes differ or there is no state.
    """
    if policy.shape != correction.shape or not len(policy):
        raise ValueError(
            f"policy {tuple(policy.shape)}, correction {tuple(correction.shape)}: expected one shape (states, steps, "
            "action) with at least one state"
        )
    share = torch.arange(1, len(policy) + 1, dtype=policy.dtype, device=policy.device) / len(policy)
    return torch.lerp(policy, correction, share[:, None, None])


__all__ = ["ROLLBACK_TOLERANCE", "RollbackPairs", "interpolated_corrections", "rollback_pairs"]
