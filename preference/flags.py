"""Unpaired flags of decisions, desirable or undesirable, from take-overs and success; weights for the KTO loss."""

import math
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..core.batch import End, TrajectoryBatch


class Flag(IntEnum):
    """What is known of a decision."""

    UNDESIRABLE = -1
    UNLABELLED = 0
    DESIRABLE = 1


def human_steps(batch: TrajectoryBatch, track: str | None = None) -> Bool[Tensor, "B T"]:
    """Mark the steps on which a person acted.

    Args:
        batch: Rows of episodes.
        track: Entry of ``batch.tracks`` that is above ½ where a person acts, per step (or per observation, which then
            holds for the step that begins there); what is not valid counts as the policy. None finds whole rows: those
            that begin where another row of the same source and episode ended by a take-over.

    Raises:
        ValueError: If there is no such track, or it is not one number a step.
    """
    if track is None:
        taken = batch.end == End.TAKEOVER
        stop = batch.offset + batch.steps
        same = (batch.episode[:, None] == batch.episode) & (batch.source[:, None] == batch.source)
        follows = (same & taken & (batch.offset[:, None] == stop)).any(1)
        return batch.mask & follows[:, None]
    if track not in batch.tracks:
        raise ValueError(f"tracks: expected {track!r}, found {', '.join(batch.tracks) or 'none'}")
    column = batch.tracks[track]
    if column.values.dim() != 2:
        raise ValueError(f"tracks[{track!r}]: expected one number a step, got shape {tuple(column.values.shape)}")
    steps = batch.mask.shape[1]
    return batch.mask & column.valid[:, :steps] & (column.values[:, :steps] > 0.5)


def step_flags(batch: TrajectoryBatch, seconds: float | int, rate: float | int, human: str | None = None) -> Tensor:
    """Flag steps as desirable, undesirable or unlabelled from outcomes and take-overs.

    In this order:

    1. Steps of a person are desirable.
    2. The last W = round(``seconds`` · ``rate``) steps (at least 1) before a take-over are undesirable, and so are
       those before the end of a failed episode. A person's steps are never undesirable: in the last W of a failure they
       are unlabelled.
    3. The other steps of a successful episode are desirable.
    4. Everything else is unlabelled: the rest of a failed episode, partial successes, unknown outcomes (such as a time
       limit without known success) and pieces before a take-over.

    A failure is a row that ends by `End.FAILURE`, or one whose success is known to be 0 and that does not end by a
    take-over; a success is one whose success is known to be 1. The end of an episode is known from ``offset`` and
    ``length``, so windows may be flagged. The policy's steps of an episode that ends well *after* a person has helped
    inside the same row count as those of a success.

    Args:
        batch: Rows of episodes.
        seconds: Length of the window before a failure or a take-over in seconds, above 0.
        rate: Control steps per second, above 0.
        human: Track that shows who acted; see `human_steps`.

    Returns:
        `Flag` of each step (B, T), int64; padding is unlabelled.

    Raises:
        ValueError: If a number is not positive, or the track is not one number a step.
    """
    if not 0 < seconds < math.inf or not 0 < rate < math.inf:
        raise ValueError(f"seconds {seconds}, rate {rate}: expected positive numbers")
    window = max(1, round(seconds * rate))
    person = human_steps(batch, human)
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    taken = batch.end == End.TAKEOVER
    failed = (batch.end == End.FAILURE) | (batch.success_known & (batch.success <= 0) & ~taken)
    succeeded = batch.success_known & (batch.success >= 1) & ~failed
    last = (batch.length - batch.offset)[:, None] - index <= window
    before_takeover = (batch.steps[:, None] - index <= window) & taken[:, None]
    begins = person & ~functional.pad(person[:, :-1], (1, 0), value=False)
    for back in range(1, min(window, len(index)) + 1):
        before_takeover = before_takeover | functional.pad(begins[:, back:], (0, back))
    flags = torch.zeros_like(batch.mask, dtype=torch.long)
    flags[succeeded[:, None] & batch.mask] = Flag.DESIRABLE
    flags[person] = Flag.DESIRABLE
    flags[(last & failed[:, None] | before_takeover) & ~person & batch.mask] = Flag.UNDESIRABLE
    flags[last & failed[:, None] & person] = Flag.UNLABELLED
    return flags


def decision_flags(batch: TrajectoryBatch, seconds: float | int, rate: float | int, human: str | None = None) -> Tensor:
    """Flag decisions as desirable, undesirable or unlabelled: the labels of the KTO loss (arXiv 2402.01306).

    A decision covers its steps up to the next decision or the end of its row. It is undesirable if one of them is,
    desirable if all of them are, and unlabelled otherwise. See `step_flags` for the flags of steps.

    Args:
        batch: Rows of episodes.
        seconds: Length of the window before a failure or a take-over in seconds, above 0.
        rate: Control steps per second, above 0.
        human: Track that shows who acted; see `human_steps`.

    Returns:
        `Flag` of each decision (B, N), int64; padding is unlabelled.

    Raises:
        ValueError: If a number is not positive, or the track is not one number a step.
    """
    flags = step_flags(batch, seconds, rate, human)
    real = batch.decision_mask
    start = torch.where(real, batch.decision_step, batch.steps[:, None])
    stop = torch.cat([start[:, 1:], batch.steps[:, None]], 1)

    def counted(flag: Flag) -> Tensor:
        before = functional.pad((flags == flag).long().cumsum(1), (1, 0))
        return before.gather(1, stop) - before.gather(1, start)

    found = torch.zeros_like(start)
    found[counted(Flag.DESIRABLE) == stop - start] = Flag.DESIRABLE
    found[counted(Flag.UNDESIRABLE) > 0] = Flag.UNDESIRABLE
    return torch.where(real, found, int(Flag.UNLABELLED))


def weight_interval(
    desirable: int, undesirable: int, weight_undesirable: float | int = 1.0, high: float | int = 4 / 3
) -> tuple[float, float]:
    """Compute the interval of λ_D in which λ_D n_D / (λ_U n_U) lies in [1, 4/3] (KTO, arXiv 2402.01306, Eq. 9).

    Args:
        desirable: Number n_D of desirable examples.
        undesirable: Number n_U of undesirable examples.
        weight_undesirable: λ_U, above 0.
        high: Upper end of the ratio.

    Returns:
        Smallest and largest λ_D. The interval of λ_U for a given λ_D is (λ_D n_D / (4/3 n_U), λ_D n_D / n_U).

    Raises:
        ValueError: If the data are one-sided, or a number is out of range.
    """
    _require_both(desirable, undesirable)
    if not 0 < weight_undesirable < math.inf or not 1 <= high < math.inf:
        raise ValueError(f"weight_undesirable {weight_undesirable}, high {high}: expected above 0 and at least 1")
    low = weight_undesirable * undesirable / desirable
    return low, high * low


def class_weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """Choose λ_D and λ_U so that λ_D n_D / (λ_U n_U) lies in [1, 4/3]; at most one is above 1, by as little as it can.

    Args:
        desirable: Number n_D of desirable examples.
        undesirable: Number n_U of undesirable examples.

    Returns:
        λ_D and λ_U, at least 1 each.

    Raises:
        ValueError: If the data are one-sided.
    """
    _require_both(desirable, undesirable)
    ratio = desirable / undesirable
    return max(1.0, 1 / ratio), max(1.0, ratio / (4 / 3))


def _require_both(desirable: int, undesirable: int) -> None:
    if desirable < 1 or undesirable < 1:
        missing = "desirable" if desirable < 1 else "undesirable"
        raise ValueError(
            f"{desirable} desirable and {undesirable} undesirable examples: the data are one-sided, and no weights "
            f"balance them. Add {missing} ones (successes and people's steps are desirable, the last seconds before a "
            "failure or a take-over undesirable), or train by imitation, which needs one side only"
        )


def reference_point(log_ratio: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Compute the reference point of the KTO loss: z_0 = max(0, mean of log π − log π_ref), without a gradient.

    KTO takes the log-ratios of mismatched pairs. For continuous actions a mismatched chunk is off the support of both
    policies and its log-ratio is noise: take the batch's own samples of the policy instead.

    Args:
        log_ratio: Log-ratio of each sample; without any the point is 0.
    """
    values = log_ratio.detach()
    return values.mean().clamp(min=0) if len(values) else values.new_zeros(())


def adaptive_weights(
    error: Float[Tensor, " N"],
    desirable: Bool[Tensor, " N"],
    weight_desirable: float | int = 1.0,
    weight_undesirable: float | int = 1.0,
) -> Float[Tensor, " N"]:
    """Weight examples by the distance of the policy's action from theirs (after APO, arXiv 2506.07127).

    The published description names the idea but not the formula; this is ours. With e the error and ẽ = e / mean of e
    over the same label, a desirable example has w = clip(ẽ, 0.2, 5): the further the policy is from it, the more it
    counts. An undesirable one has w = clip(exp(−ẽ), 0.05, 1): where the policy is far from it already, it counts less.
    Each label's weights are then scaled to mean λ, so that sums keep the ratio λ_D n_D / (λ_U n_U) of `class_weights`.

    Args:
        error: Mean absolute difference per action dimension between the policy's action and that of the example, at
            least 0.
        desirable: True where the example is desirable, False where it is undesirable.
        weight_desirable: λ_D, at least 0.
        weight_undesirable: λ_U, at least 0.

    Returns:
        Weight of each example, without a gradient.

    Raises:
        ValueError: If an error is negative or not finite, or a weight is negative.
    """
    if not bool((error.isfinite() & (error >= 0)).all()):
        raise ValueError("error: expected finite numbers of at least 0")
    if not 0 <= weight_desirable < math.inf or not 0 <= weight_undesirable < math.inf:
        raise ValueError(f"weights {weight_desirable} and {weight_undesirable}: expected at least 0")
    values = error.detach()
    weights = torch.zeros_like(values)
    for side, scale in ((desirable, weight_desirable), (~desirable, weight_undesirable)):
        if not bool(side.any()):
            continue
        mean = values[side].mean()
        relative = values[side] / mean if float(mean) > 0 else torch.ones_like(values[side])
        raw = relative.clamp(0.2, 5) if side is desirable else (-relative).exp().clamp(0.05, 1)
        weights[side] = scale * raw / raw.mean()
    return weights


def balanced_draw(
    flags: Int[Tensor, " N"], human: Bool[Tensor, " N"], count: int, seed: int = 0
) -> Int[Tensor, " count"]:
    """Draw examples with replacement: half people's, a quarter the policy's desirable ones, a quarter undesirable.

    Without one of the three kinds the others share its part in proportion; unlabelled examples are never drawn. This is
    the balanced sampling of APO (arXiv 2506.07127), as interventions are few.

    Args:
        flags: `Flag` of each example.
        human: True where a person acted.
        count: Number of draws, at least 1.
        seed: Random seed.

    Raises:
        ValueError: If no example is labelled, or the count is below 1.
    """
    wanted = flags == Flag.DESIRABLE
    kinds = {"human": wanted & human, "policy": wanted & ~human, "undesirable": flags == Flag.UNDESIRABLE}
    share = {"human": 0.5, "policy": 0.25, "undesirable": 0.25}
    present = [name for name, rows in kinds.items() if bool(rows.any())]
    if count < 1 or not present:
        raise ValueError(f"count {count}, {len(flags)} examples: expected at least 1 draw and a labelled example")
    weight = torch.zeros(len(flags), dtype=torch.float64)
    for name in present:
        rows = kinds[name].cpu()
        weight[rows] = share[name] / int(rows.sum())
    draw = torch.Generator().manual_seed(seed)
    return torch.multinomial(weight, count, replacement=True, generator=draw).to(flags.device)


__all__ = [
    "Flag",
    "adaptive_weights",
    "balanced_draw",
    "class_weights",
    "decision_flags",
    "human_steps",
    "reference_point",
    "step_flags",
    "weight_interval",
]
