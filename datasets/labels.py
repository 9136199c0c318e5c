"""Targets of reward models, and the factory that adds them and draws negatives from a seed.

Targets are added by pure functions, which leave the given batch as it is. The factory adds them before it draws
negatives, because a reordered row does not hold its end any more.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.batch import Labelled, TrajectoryBatch
from ..core.edit import identity_map, reindex
from .negatives import (
    clip_map,
    reverse_map,
    rewind_map,
    stall_map,
    warp_map,
    with_instruction_of,
    with_texts,
    with_video_of,
)
from .stages import FRACTION, STAGE

KINDS = ("original", "rewind", "reverse", "wrong_instruction", "clip", "stall", "warp", "cross_task")
"""Kinds of rows, in the order of their numbers in ``labels["negative"]``."""


def with_progress_targets(
    batch: TrajectoryBatch, assume_success: bool = False, partial: bool = False
) -> TrajectoryBatch:
    """Add ``labels["progress"]`` (B, T+1): (offset + j) / length at observation j of a successful episode.

    Recorded progress takes precedence where it is valid. The progress of a failure and of an episode of unknown outcome
    is unknown and stays invalid, as does a last observation that was not made.

    Args:
        batch: Rows of whole episodes or windows.
        assume_success: Whether to take episodes of unknown outcome for successes, which unlabelled demonstrations
            usually are.
        partial: Whether to take a success between 0 and 1 for the progress at the last observation of its episode;
            progress before it stays unknown.

    Raises:
        ValueError: If recorded progress is not one number in [0, 1] per observation.
    """
    place = _place(batch)
    values = (place / batch.length.clamp(min=1)[:, None]).clamp(0, 1)
    known = _succeeded(batch, assume_success)[:, None].expand_as(values)
    if partial:
        at_end = _partial(batch)[:, None] & (place == _last_place(batch)[:, None])
        values, known = torch.where(at_end, batch.success[:, None], values), known | at_end
    return _with_target(batch, "progress", values, known)


def with_stage_targets(batch: TrajectoryBatch, shares: Sequence[float]) -> TrajectoryBatch:
    """Add ``labels["progress"]`` (B, T+1) from stages: P_{k−1} + ᾱ_k · τ in stage k, with P the running sum of ᾱ.

    This is the target of SARM (Chen et al. 2025, arXiv:2509.25358, §IV-A). τ is ``labels["stage_fraction"]``, which
    `collate` makes of ``labels["stage"]``. It is known in completed stages only, also of failures; elsewhere the target
    stays invalid. Recorded progress takes precedence where it is valid.

    Args:
        batch: Rows with both labels.
        shares: Share ᾱ_k of each stage, at least 0 each and 1 in all: those of `stages.stage_proportions`, or equal
            ones.

    Raises:
        ValueError: If a label is missing, the shares are negative or do not add up to 1, or a stage has none.
    """
    missing = [name for name in (STAGE, FRACTION) if name not in batch.labels]
    if missing:
        raise ValueError(
            f"progress by stages needs labels {STAGE} and {FRACTION}, missing here: {', '.join(missing)}; record a "
            'stage index per observation in labels["stage"], or take the linear target'
        )
    share = torch.tensor(list(shares), dtype=torch.float32, device=batch.mask.device)
    if not len(share) or not bool((share >= 0).all()) or abs(float(share.sum()) - 1) > 1e-4:
        raise ValueError(f"shares of the stages {list(shares)}: expected at least 0 each and 1 in all")
    stage, fraction = batch.labels[STAGE], batch.labels[FRACTION]
    known = fraction.valid & stage.valid
    index = torch.where(known, stage.values, 0).long()
    if bool((index >= len(share)).any()) or bool((index < 0).any()):
        wrong = index[(index >= len(share)) | (index < 0)][0]
        raise ValueError(f"stage {int(wrong)} came, the shares name stages 0 … {len(share) - 1}: give one for each")
    before = share.cumsum(0) - share
    return _with_target(batch, "progress", (before[index] + share[index] * fraction.values).clamp(0, 1), known)


def with_success_targets(
    batch: TrajectoryBatch, tail: int = 1, assume_success: bool = False, partial: bool = False
) -> TrajectoryBatch:
    """Add ``labels["success"]`` (B, T+1): 1 at the last observation of a success, 0 before it, and 0 in a failure.

    Recorded flags take precedence where they are valid. Episodes of unknown outcome stay invalid, and so do partial
    successes unless ``partial``. Where the last observation was not made, the one before it counts as the last. A
    window that stops before the end does not show which of the two holds: the observation that depends on it stays
    invalid.

    Args:
        batch: Rows of whole episodes or windows.
        tail: Number of observations at the end of a success that count as done.
        assume_success: Whether to take episodes of unknown outcome for successes.
        partial: Whether to take a success between 0 and 1 for a task that was not done, which is 0 throughout.

    Raises:
        ValueError: If recorded success is not one number in [0, 1] per observation, or ``tail`` is below 1.
    """
    if tail < 1:
        raise ValueError(f"tail is {tail}: expected at least one observation of a success to count as done")
    succeeded = _succeeded(batch, assume_success)
    place = _place(batch)
    done = (place > (_last_place(batch) - tail)[:, None]) & succeeded[:, None]
    known = succeeded | (batch.success_known & (batch.success <= 0))
    known = known | _partial(batch) if partial else known
    cut = succeeded & (batch.offset + batch.steps < batch.length)
    unsure = cut[:, None] & (place == (batch.length - tail)[:, None])
    return _with_target(batch, "success", done.float(), known[:, None] & ~unsure)


def with_remaining_targets(batch: TrajectoryBatch, assume_success: bool = False) -> TrajectoryBatch:
    """Add ``labels["remaining"]`` (B, T+1): control steps until an episode succeeds; unknown where it does not.

    Args:
        batch: Rows of whole episodes or windows.
        assume_success: Whether to take episodes of unknown outcome for successes.
    """
    left = (batch.length[:, None] - _place(batch)).clamp(min=0).float()
    known = _succeeded(batch, assume_success)[:, None] & batch.made
    label = Labelled(values=torch.where(known, left, 0.0), valid=known)
    return replace(batch, labels={**batch.labels, "remaining": label})


def with_return_targets(
    batch: TrajectoryBatch, horizon: int, failure_cost: float | int | None = None, assume_success: bool = False
) -> TrajectoryBatch:
    """Add ``labels["return_to_go"]`` (B, T+1) in [−1, 0]: −1 for each step left, −``failure_cost`` at a failed end.

    This is the value target of RECAP (π*0.6, 2025, arXiv:2511.14759, §IV): it is divided by ``horizon`` and clipped at
    −1. It is known for successes and failures; partial and unknown outcomes stay invalid.

    Args:
        batch: Rows of whole episodes or windows.
        horizon: Number of steps that count as −1, such as the length of the longest episode of the task.
        failure_cost: Cost of a failure, in steps; None takes the horizon, so that every observation of a failure is −1.
        assume_success: Whether to take episodes of unknown outcome for successes.

    Raises:
        ValueError: If the horizon is below 1 or the cost is negative.
    """
    cost = float(horizon) if failure_cost is None else failure_cost
    if horizon < 1 or cost < 0:
        raise ValueError(f"horizon {horizon}, failure_cost {cost}: expected at least 1 and at least 0")
    failed = batch.success_known & (batch.success <= 0)
    left = (batch.length[:, None] - _place(batch)).clamp(min=0) + torch.where(failed, cost, 0.0)[:, None]
    known = (failed | _succeeded(batch, assume_success))[:, None] & batch.made
    label = Labelled(values=torch.where(known, (-left / horizon).clamp(min=-1), 0.0), valid=known)
    return replace(batch, labels={**batch.labels, "return_to_go": label})


def _place(batch: TrajectoryBatch) -> Tensor:
    """Return the place (B, T+1) of every observation in its episode."""
    index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)
    return batch.offset[:, None] + index


def _last_place(batch: TrajectoryBatch) -> Tensor:
    return batch.length - (~batch.last_observed).long()


def _succeeded(batch: TrajectoryBatch, assume_success: bool) -> Bool[Tensor, " B"]:
    succeeded = batch.success_known & (batch.success >= 1)
    return succeeded | ~batch.success_known if assume_success else succeeded


def _partial(batch: TrajectoryBatch) -> Bool[Tensor, " B"]:
    return batch.success_known & (batch.success > 0) & (batch.success < 1)


def _with_target(batch: TrajectoryBatch, name: str, values: Tensor, known: Tensor) -> TrajectoryBatch:
    real = batch.made
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


class LabelFactory:
    """Factory that adds targets to a batch and turns some of its rows into negatives.

    Each row is drawn by itself. Progress and success of a reordered row follow the observation shown. Both are 0 in a
    row with the instruction or the video of another task.

    Args:
        rewind: Share of rows played forward to a random point and then backwards (ReWiND).
        reverse: Share of rows played backwards.
        wrong_instruction: Share of rows with another instruction: that of another task in the batch, or one of
            ``other_instructions``.
        clip: Share of rows that stop at a random point.
        stall: Share of rows that stand still from a random point on.
        warp: Share of rows played at a changing pace, up to twice as slow at one end and as fast at the other.
        cross_task: Share of rows with the video of another task in the batch.
        other_instructions: Instructions that no recording fulfils, drawn as wrong ones too.
        assume_success: Whether to take episodes of unknown outcome for successes.
        partial_success: Whether to use a success between 0 and 1, as progress at the last observation and as not done.
        success_tail: Number of observations at the end of a success that count as done.
        progress: Target of progress: ``"linear"`` in time; by ``"stages"``, unknown where no stage is recorded; or
            ``"return_to_go"`` plus 1, which is also known for failures (0 throughout).
        stages: Share of progress of each stage, or the number of stages for equal shares; for ``"stages"``.
        horizon: Length of the longest episode, in steps; for ``"return_to_go"``.

    Raises:
        ValueError: If the shares are negative or add up to more than 1, or the target of progress lacks its argument.
    """

    def __init__(
        self,
        rewind: float = 0.3,
        reverse: float = 0.1,
        wrong_instruction: float = 0.2,
        clip: float = 0.0,
        stall: float = 0.0,
        warp: float = 0.0,
        cross_task: float = 0.0,
        other_instructions: list[str] | tuple[str, ...] = (),
        assume_success: bool = False,
        partial_success: bool = False,
        success_tail: int = 1,
        progress: Literal["linear", "stages", "return_to_go"] = "linear",
        stages: list[float] | int | None = None,
        horizon: int | None = None,
    ) -> None:
        shares = dict(zip(KINDS[1:], (rewind, reverse, wrong_instruction, clip, stall, warp, cross_task), strict=True))
        if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:
            raise ValueError(
                f"shares {', '.join(shares)} = {tuple(shares.values())}: expected at least 0, at most 1 all"
            )
        if progress == "stages" and not stages:
            raise ValueError("progress by stages: say how many there are, or the share of progress of each (stages)")
        if progress == "return_to_go" and horizon is None:
            raise ValueError("progress by return_to_go: give the horizon, the steps of the longest episode")
        self.shares = tuple(shares.values())
        self.other_instructions = tuple(other_instructions)
        self.assume_success, self.partial_success = assume_success, partial_success
        self.success_tail, self.progress, self.horizon = success_tail, progress, horizon
        self.stages = [1 / stages] * stages if isinstance(stages, int) else stages

    def targets(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Add the targets of progress, success and remaining steps, without negatives.

        Args:
            batch: Rows of whole episodes or windows.
        """
        if self.progress == "stages":
            assert self.stages is not None
            batch = with_stage_targets(_with_unknown_stages(batch), self.stages)
        elif self.progress == "return_to_go":
            assert self.horizon is not None
            batch = with_return_targets(batch, self.horizon, assume_success=self.assume_success)
            label = batch.labels["return_to_go"]
            batch = _with_target(batch, "progress", 1 + label.values, label.valid)
        else:
            batch = with_progress_targets(batch, self.assume_success, self.partial_success)
        batch = with_success_targets(batch, self.success_tail, self.assume_success, self.partial_success)
        return with_remaining_targets(batch, self.assume_success)

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> TrajectoryBatch:
        """Add targets and draw negatives; see `draw`."""
        return self.draw(batch, generator)[0]

    def draw(self, batch: TrajectoryBatch, generator: torch.Generator) -> tuple[TrajectoryBatch, dict[str, int]]:
        """Add targets, draw negatives row by row, and count what was drawn.

        Args:
            batch: Rows on the host.
            generator: Random generator; each row takes the same numbers from it whatever the others draw.

        Returns:
            The batch with ``labels["negative"]`` (B, T+1), the place of each row's kind in `KINDS`; and the number of
            rows of each kind. ``"impossible"`` counts the rows that stayed as they were because the drawn kind could
            not be made: there was no second task in the batch, or the row had fewer than three observations.
        """
        batch = self.targets(batch)
        rows, width = batch.observed.shape
        chance, where = torch.rand(2, rows, generator=generator)
        edges = torch.tensor(self.shares).cumsum(0)
        kind = (torch.bucketize(chance, edges, right=True) + 1) % len(KINDS)  # beyond the last edge: original
        count = batch.observed.sum(1)
        possible = count >= 3
        donor = torch.full((rows,), -1, dtype=torch.long)
        texts: list[str | None] = [None] * rows
        of_task = (kind == KINDS.index("wrong_instruction")) | (kind == KINDS.index("cross_task"))
        for row in of_task.nonzero().flatten().tolist():
            donor[row], texts[row] = self._other(batch, row, float(where[row]), KINDS[int(kind[row])])
            possible[row] = bool(donor[row] >= 0) or texts[row] is not None
        impossible = (kind > 0) & ~possible
        kind = torch.where(impossible, 0, kind)
        batch = reindex(batch, _time_map(batch, kind, where))
        batch = with_video_of(batch, torch.where(kind == KINDS.index("cross_task"), donor, -1))
        batch = with_instruction_of(batch, torch.where(kind == KINDS.index("wrong_instruction"), donor, -1))
        batch = with_texts(batch, texts) if any(text is not None for text in texts) else batch
        named = Labelled(values=kind[:, None].expand(rows, width).contiguous(), valid=batch.observed)
        counts = {name: int((kind == i).sum()) for i, name in enumerate(KINDS)}
        batch = replace(batch, labels={**batch.labels, "negative": named})
        return batch, {**counts, "impossible": int(impossible.sum())}

    def _other(self, batch: TrajectoryBatch, row: int, where: float, kind: str) -> tuple[int, str | None]:
        """Choose a row of another task, or an instruction of no task; (−1, None) where there is neither."""
        others: list[int | str] = [
            i
            for i in range(len(batch))
            if int(batch.task[i]) != int(batch.task[row]) and batch.instructions[i] != batch.instructions[row]
        ]
        if kind == "wrong_instruction":
            others += [text for text in self.other_instructions if text != batch.instructions[row]]
        if not others:
            return -1, None
        chosen = others[min(int(where * len(others)), len(others) - 1)]
        return (-1, chosen) if isinstance(chosen, str) else (chosen, None)


def _with_unknown_stages(batch: TrajectoryBatch) -> TrajectoryBatch:
    """Add unknown stages where no row of a batch has any, since other batches of the data set may have some."""
    unknown = Labelled(
        values=torch.zeros_like(batch.observed, dtype=torch.float32), valid=torch.zeros_like(batch.observed)
    )
    missing = {name: unknown for name in (STAGE, FRACTION) if name not in batch.labels}
    return replace(batch, labels={**batch.labels, **missing}) if missing else batch


def _time_map(batch: TrajectoryBatch, kind: Tensor, where: Tensor) -> Tensor:
    """Make the time map of each row from its kind and a number in [0, 1) that places the change."""
    width, count = batch.observed.shape[1], batch.observed.sum(1)
    # 1 … count − 2: neither the start nor the end
    inside = 1 + (where * (count - 2).clamp(min=1)).long().clamp(max=(count - 3).clamp(min=0))
    maps = {
        "rewind": rewind_map(count, inside, width),
        "reverse": reverse_map(count, width),
        "clip": clip_map(count, inside, width),
        "stall": stall_map(count, inside, width),
        "warp": warp_map(count, 2.0 ** (2 * where - 1), width),
    }
    time_map = identity_map(batch)
    for name, changed in maps.items():
        time_map = torch.where((kind == KINDS.index(name))[:, None], changed, time_map)
    return time_map
