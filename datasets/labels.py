"""Targets for reward models, and the factory that adds them and draws negatives, row by row from a seed.

Targets are pure functions of a batch, which is never changed. In the factory they come first: a reordered row no longer
knows how it ended.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.batch import Labelled, PreferencePairs, TrajectoryBatch
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
"""What the numbers in ``labels["negative"]`` mean."""


def with_progress_targets(
    batch: TrajectoryBatch, assume_success: bool = False, partial: bool = False
) -> TrajectoryBatch:
    """Add ``labels["progress"]`` (B, T+1): (offset + j) / length at observation j of a successful episode.

    Recorded progress wins wherever it is valid. A failure has no known progress, and neither has an unknown outcome;
    both stay invalid, as does a last observation that was never made.

    Args:
        batch: Rows of whole episodes or windows.
        assume_success: Take episodes of unknown outcome for successes, as unlabelled demonstrations usually are.
        partial: Take a success between 0 and 1 for the progress at the last observation of its episode; what came
            before stays unknown.

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

    SARM's target (Chen et al. 2025, arXiv:2509.25358, §IV-A). τ is ``labels["stage_fraction"]``, which `collate` makes
    of ``labels["stage"]``. It is known in completed stages only, of failures too; elsewhere the target stays invalid.
    Recorded progress wins wherever it is valid.

    Args:
        batch: Rows with both labels.
        shares: ᾱ_k of each stage, at least 0 and 1 in all: `stages.stage_proportions`, or equal ones.

    Raises:
        ValueError: If a label is missing, the shares are not shares, or a stage has none.
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
    """Add ``labels["success"]`` (B, T+1): 1 at the last observation of a success and 0 before, 0 all along a failure.

    Recorded flags win wherever they are valid. Episodes of unknown outcome stay invalid, and so do partial successes
    unless ``partial``. Where the last observation was never made, the one before it counts as the last. A window that
    stops short of the end does not show which of the two is so: there the observation this depends on stays invalid.

    Args:
        batch: Rows of whole episodes or windows.
        tail: How many observations at the end of a success count as done.
        assume_success: Take episodes of unknown outcome for successes.
        partial: Take a success between 0 and 1 for a task that was not done: 0 all along.

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
    """Add ``labels["remaining"]`` (B, T+1): control steps until an episode succeeds; unknown where it did not."""
    left = (batch.length[:, None] - _place(batch)).clamp(min=0).float()
    known = _succeeded(batch, assume_success)[:, None] & batch.made
    label = Labelled(values=torch.where(known, left, 0.0), valid=known)
    return replace(batch, labels={**batch.labels, "remaining": label})


def with_return_targets(
    batch: TrajectoryBatch, horizon: int, failure_cost: float | int | None = None, assume_success: bool = False
) -> TrajectoryBatch:
    """Add ``labels["return_to_go"]`` (B, T+1) in [−1, 0]: −1 for each step left, −``failure_cost`` at a failed end.

    The value target of RECAP (π*0.6, 2025, arXiv:2511.14759, §IV): divided by ``horizon`` and cut at −1. Known for
    successes and failures; partial and unknown outcomes stay invalid.

    Args:
        batch: Rows of whole episodes or windows.
        horizon: Steps that count as −1: the length of the longest episode of the task.
        failure_cost: In steps; None takes the horizon, which makes every observation of a failure −1.
        assume_success: Take episodes of unknown outcome for successes.

    Raises:
        ValueError: If the horizon is below 1 or the cost negative.
    """
    cost = float(horizon) if failure_cost is None else failure_cost
    if horizon < 1 or cost < 0:
        raise ValueError(f"horizon {horizon}, failure_cost {cost}: expected at least 1 and at least 0")
    failed = batch.success_known & (batch.success <= 0)
    left = (batch.length[:, None] - _place(batch)).clamp(min=0) + torch.where(failed, cost, 0.0)[:, None]
    known = (failed | _succeeded(batch, assume_success))[:, None] & batch.made
    label = Labelled(values=torch.where(known, (-left / horizon).clamp(min=-1), 0.0), valid=known)
    return replace(batch, labels={**batch.labels, "return_to_go": label})


def preference_pairs(batch: TrajectoryBatch, margin: float = 0.1) -> PreferencePairs:
    """Pairs of rows of one task and instruction of which one is known to have come further.

    That is known of two rows whose progress targets at their last observations differ by more than ``margin``, and of
    a row that ends in success beside one of a known failure. Anything else is not compared.

    Args:
        batch: With progress and success targets; negatives are welcome.
        margin: In [0, 1).

    Returns:
        Each unordered pair once, weight 1, label 1; possibly none.
    """
    progress, has_progress = _final(batch, "progress")
    success, has_success = _final(batch, "success")
    text = {t: i for i, t in enumerate(dict.fromkeys(batch.instructions))}
    told = torch.tensor([text[t] for t in batch.instructions], device=batch.task.device)
    same = (batch.task[:, None] == batch.task) & (told[:, None] == told)
    further = has_progress[:, None] & has_progress & (progress[:, None] - progress > margin)
    failed = batch.success_known & (batch.success <= 0)
    beside = (has_success & (success >= 1))[:, None] & (failed & ~has_progress)
    chosen, rejected = (same & (further | beside)).nonzero(as_tuple=True)
    ones = torch.ones(len(chosen), device=batch.task.device)
    return PreferencePairs(batch=batch, chosen=chosen, rejected=rejected, label=ones, weight=ones)


def _final(batch: TrajectoryBatch, name: str) -> tuple[Tensor, Bool[Tensor, " B"]]:
    """A label at every row's last observation made, and whether it is known."""
    last = (batch.observed.sum(1) - 1).clamp(min=0)[:, None]
    label = batch.labels.get(name)
    if label is None:
        return torch.zeros_like(last[:, 0], dtype=torch.float32), torch.zeros_like(last[:, 0], dtype=torch.bool)
    return label.values.gather(1, last)[:, 0].float(), label.valid.gather(1, last)[:, 0] & (batch.steps > 0)


def _place(batch: TrajectoryBatch) -> Tensor:
    """Place (B, T+1) of every observation in its episode."""
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
    """Adds targets to a batch and turns some of its rows into negatives; the arguments are the ablation switches.

    Every row draws for itself, from the generator it is given. Progress and success of a reordered row follow the
    observation shown; of a row with another task's instruction or video both are 0.

    Args:
        rewind: Share of rows played forward to a random point and then backwards (ReWiND).
        reverse: Share of rows played backwards.
        wrong_instruction: Share of rows that get another instruction: of another task in the batch, or one of
            ``other_instructions``.
        clip: Share of rows that stop at a random point.
        stall: Share of rows that stand still from a random point on.
        warp: Share of rows played at a changing pace, up to twice as slow at one end and as fast at the other.
        cross_task: Share of rows that show what happened in another task of the batch.
        other_instructions: Instructions that no recording fulfils, to be drawn as wrong ones too.
        assume_success: Take episodes of unknown outcome for successes.
        partial_success: Use a success between 0 and 1: as progress at the last observation, and as not done.
        success_tail: Observations at the end of a success that count as done.
        progress: Target of progress: linear in time; by stages (``stages`` says how much each counts), unknown where
            no stage is recorded; or the return-to-go plus 1, which is also known for failures (0 all along).
        stages: Share of progress that each stage is worth, or their number for equal shares; for ``"stages"``.
        horizon: Steps that count as the longest episode; for ``"return_to_go"``.

    Raises:
        ValueError: If the shares are negative or add up to more than 1, or the progress target lacks its argument.
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
        """Add the targets only: progress, success and remaining steps."""
        if self.progress == "stages":
            assert self.stages is not None
            batch = with_stage_targets(_with_unknown_stages(batch), self.stages)
        elif self.progress == "return_to_go":
            assert self.horizon is not None
            batch = with_return_targets(batch, self.horizon, assume_success=self.assume_success)
            told = batch.labels["return_to_go"]
            batch = _with_target(batch, "progress", 1 + told.values, told.valid)
        else:
            batch = with_progress_targets(batch, self.assume_success, self.partial_success)
        batch = with_success_targets(batch, self.success_tail, self.assume_success, self.partial_success)
        return with_remaining_targets(batch, self.assume_success)

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
        """A row of another task, or an instruction of no task; (−1, None) where there is neither."""
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
    """Unknown stages where no row of a batch has any: other batches of the data set may."""
    unknown = Labelled(
        values=torch.zeros_like(batch.observed, dtype=torch.float32), valid=torch.zeros_like(batch.observed)
    )
    missing = {name: unknown for name in (STAGE, FRACTION) if name not in batch.labels}
    return replace(batch, labels={**batch.labels, **missing}) if missing else batch


def _time_map(batch: TrajectoryBatch, kind: Tensor, where: Tensor) -> Tensor:
    """The observations each row visits, given its kind and a number in [0, 1) that says where."""
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
