"""Reward for completed stages of a task, and stages as targets of progress models."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...backbones.model_inputs import ModelInputs, inputs_of
from ...core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ...core.interfaces import RewardModel, TaskDecomposer, TaskPlan
from ...datasets.collate import collate
from ...datasets.episodes import Column, Episode
from ...datasets.labels import LabelFactory, with_remaining_targets, with_stage_targets, with_success_targets
from ...datasets.stages import FRACTION, STAGE, stage_fraction
from ..moments import moments
from ..shaping import potential_difference

_WHOLE = 1e-5  # counts are float32: one this close below a whole number is that number

PlanKey = tuple[str, str]
"""Key of a stored plan: the instruction, and a hash of the picture it was made from, empty without one."""


class SubgoalReward(RewardModel):
    """Reward for completed stages of a decomposer's plan: a bonus for each, once, or a potential that counts them.

    Let c_t in [0, S] be the number of stages complete at observation t plus the fraction of the next one, as
    `TaskDecomposer.completed` gives it. The potential is Φ_t = c_t / S, which is also the estimated progress.

    * ``"bonus"``: r_t = bonus · (stages completed for the first time at observation t + 1). Going back and forth earns
      nothing, and stages that are complete at the first known observation are not paid. A row that completes its plan
      is paid bonus · S, whatever happens afterwards.
    * ``"potential"``: r_t = γ Φ_{t+1} − Φ_t, with Φ = 0 after a terminated end (Ng, Harada and Russell 1999, Eq. 2).
      The discounted sum over a row telescopes to −Φ_0, plus γ^L Φ_L where it was cut. Added to a task's reward it does
      not change the optimal policy; alone, where success ends an episode, it teaches nothing. A policy that decides
      every few steps takes `RewardToGo(potential=SubgoalReward(…))` instead.

    A decomposer with cameras plans every row from its own first picture, so that a score does not depend on rows that
    were scored before. Others plan once per instruction. Plans are stored by instruction and picture. A plan without
    stages is an abstention: its rows are invalid, and the decomposer is asked again next time. With a decomposer that
    has cameras, rows without a frame are invalid too, and so are windows that begin inside an episode, which do not
    show its beginning.

    Args:
        decomposer: Task decomposer. Its parameters are frozen (``requires_grad`` is off from here on), so train it
            before.
        mode: Rule of payment: ``"bonus"`` or ``"potential"``.
        bonus: Finite reward of each completed stage.
        gamma: Discount factor of the potential, in [0, 1]: that of the returns that will be taken.
        causal: Segment from the past alone, as online use needs. False segments whole episodes, for scoring finished
            ones.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        decomposer: TaskDecomposer,
        mode: Literal["bonus", "potential"] = "bonus",
        bonus: float = 1.0,
        gamma: float = 0.99,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if mode not in ("bonus", "potential"):
            raise ValueError(f"mode is {mode!r}: expected 'bonus' or 'potential'")
        if not math.isfinite(bonus):
            raise ValueError(f"bonus is {bonus}: expected a finite number")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}: expected 0 … 1")
        self.decomposer = decomposer.requires_grad_(False)
        self.mode, self.bonus, self.gamma, self.causal = mode, bonus, gamma, causal
        self._plans: dict[PlanKey, TaskPlan] = {}

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the decomposer reads."""
        return inputs_of(self.decomposer)

    def plans(self, batch: TrajectoryBatch) -> list[TaskPlan]:
        """Return a plan for every row; stored plans are not asked for again. See `plans_for`.

        Raises:
            ValueError: If the decomposer refuses an instruction, gives another number of plans than was asked for, or
                reads cameras none of which the batch holds.
        """
        return plans_for(self.decomposer, batch, self._plans)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Count the complete stages and pay.

        A bonus is valid where the count after the step and some count before it are known. A potential is valid where
        both observations of a step are known, or the row terminated at the second one.
        """
        counted = completed_stages(self.decomposer, batch, self.plans(batch), self.causal)
        count, phi, known = counted
        batch = batch if batch.mask.device == phi.device else batch.to(phi.device)
        pay = self._bonus(count, known) if self.mode == "bonus" else potential_difference(phi, known, batch, self.gamma)
        valid = pay[1] & batch.mask
        progress = Labelled(values=torch.where(known, phi, 0.0), valid=known)
        return RewardEstimates(rewards=torch.where(valid, pay[0], 0.0), valid=valid, progress=progress)

    def _bonus(
        self, count: Float[Tensor, "B Tp1"], known: Bool[Tensor, "B Tp1"]
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        whole = torch.where(known, (count + _WHOLE).floor(), -1.0)
        best = whole.cummax(1).values  # an unknown observation keeps the best so far; −1 where none is known yet
        gained = best[:, 1:] - best[:, :-1]
        return self.bonus * gained, known[:, 1:] & (best[:, :-1] >= 0)


def plans_for(decomposer: TaskDecomposer, batch: TrajectoryBatch, known: dict[PlanKey, TaskPlan]) -> list[TaskPlan]:
    """Return a plan for every row of a batch; new ones are asked for in one call, and added to ``known``.

    A decomposer with cameras gets each row's own first picture. Rows without one, and windows that begin inside an
    episode, then get a plan without stages without being asked about. Plans without stages are not added.

    Args:
        decomposer: Task decomposer.
        batch: Trajectories with instructions.
        known: Stored plans, which are extended in place.

    Raises:
        ValueError: If the decomposer refuses an instruction, gives another number of plans than was asked for, or reads
            cameras none of which the batch holds.
    """
    cameras = inputs_of(decomposer).cameras
    pictures = _first_pictures(batch, cameras) if cameras else {}
    keys: list[PlanKey | None] = [(text, "") for text in batch.instructions]
    if cameras:
        keys = [
            (text, _digest(pictures[row])) if row in pictures else None for row, text in enumerate(batch.instructions)
        ]
    new: dict[PlanKey, int] = {}
    for row, key in enumerate(keys):
        if key is not None and key not in known:
            new.setdefault(key, row)
    plans = known
    if new:
        texts = [text for text, _ in new]
        made = decomposer.plan(texts, [pictures[row] for row in new.values()] if cameras else None)
        if len(made) != len(new):
            raise ValueError(f"{type(decomposer).__name__} gave {len(made)} plans for {len(new)} instructions")
        plans = {**known, **dict(zip(new, made, strict=True))}
        # an abstention is not stored: it may be temporary, such as an endpoint that timed out
        known.update({key: plans[key] for key in new if plans[key].stages})
    return [
        TaskPlan(instruction=text, stages=()) if key is None else plans[key]
        for key, text in zip(keys, batch.instructions, strict=True)
    ]


def _first_pictures(batch: TrajectoryBatch, cameras: Sequence[str]) -> dict[int, Tensor]:
    """Return the first picture (3, H, W) of each row that shows the beginning of its episode."""
    found: dict[int, Tensor] = {}
    for row, (seen, offset) in enumerate(zip(moments(batch, cameras), batch.offset.tolist(), strict=True)):
        if seen and offset == 0:
            found[row] = next(part for part in seen[0].parts if isinstance(part, Tensor))
    return found


def _digest(picture: Tensor) -> str:
    values = picture.contiguous().numpy()
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def completed_stages(
    decomposer: TaskDecomposer, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool
) -> tuple[Float[Tensor, "B Tp1"], Float[Tensor, "B Tp1"], Bool[Tensor, "B Tp1"]]:
    """Count the complete stages of every observation; rows whose plan has no stages are unknown.

    Args:
        decomposer: Task decomposer.
        batch: Trajectories.
        plans: Plan of each row.
        causal: Segment from the past alone.

    Returns:
        The count in [0, S], its share of the plan in [0, 1], and where both are known.

    Raises:
        ValueError: If the decomposer gives a count outside [0, S], or another number of counts.
    """
    sizes = torch.tensor([len(plan.stages) for plan in plans])
    rows = sizes.nonzero().flatten()
    shape = batch.observed.shape
    if not len(rows):
        nothing = torch.zeros(shape, device=batch.mask.device)
        return nothing, nothing, nothing.bool()
    done = decomposer.completed(batch[rows], [plans[i] for i in rows.tolist()], causal)
    device = done.values.device
    count, known = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
    rows, sizes = rows.to(device), sizes.to(device)
    if done.valid.shape != (len(rows), shape[1]):
        raise ValueError(
            f"{type(decomposer).__name__}: expected a count per observation {(len(rows), shape[1])}, got "
            f"{tuple(done.valid.shape)}"
        )
    known[rows] = done.valid & batch.made.to(device)[rows]
    count[rows] = torch.where(known[rows], done.values.float(), 0.0)
    most = sizes[:, None].clamp(min=1)
    wrong = known & ~((count >= 0) & (count <= most + _WHOLE))
    if bool(wrong.any()):
        row, t = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"{type(decomposer).__name__} counts {float(count[row, t])} stages complete at observation {t} of row "
            f"{row}: expected 0 … {int(sizes[row])}"
        )
    return count, (count / most).clamp(0, 1), known


class StageLabels:
    """Transform that adds a decomposer's stages to episodes as ``labels["stage"]``, for targets of progress.

    `LabelFactory(progress="stages")` and `stage_proportions` read them. The fraction of a stage is computed by
    `stage_fraction`, linear in time within completed stages. With ``fraction`` the decomposer's own fraction is stored
    in ``labels["stage_fraction"]``, which is known in an unfinished stage too.

    Args:
        decomposer: Task decomposer.
        causal: Segment from the past alone.
        fraction: Whether to store the decomposer's fractions.
    """

    def __init__(self, decomposer: TaskDecomposer, causal: bool = False, fraction: bool = False) -> None:
        self.decomposer, self.causal, self.fraction = decomposer, causal, fraction
        self._plans: dict[PlanKey, TaskPlan] = {}

    @torch.no_grad()
    def __call__(self, episode: Episode) -> Episode:
        """Return an episode with its stages, invalid where they are unknown; stages it held are replaced.

        Args:
            episode: Whole episode.

        Raises:
            ValueError: If the decomposer refuses the instruction or lacks a track.
        """
        batch = collate([episode], cameras=inputs_of(self.decomposer).cameras)
        plans = plans_for(self.decomposer, batch, self._plans)
        stages = len(plans[0].stages)
        count, _, known = (part[0].cpu() for part in completed_stages(self.decomposer, batch, plans, self.causal))
        valid = known.numpy()
        stage = (count + _WHOLE).floor().clamp(max=max(stages - 1, 0))
        labels = {name: column for name, column in episode.labels.items() if name not in (STAGE, FRACTION)}
        labels[STAGE] = Column(values=np.where(valid, stage.long().numpy(), 0), valid=valid)
        if self.fraction:
            within = (count - stage).clamp(0, 1).numpy().astype(np.float32)
            labels[FRACTION] = Column(values=np.where(valid, within, np.float32(0)), valid=valid)
        return replace(episode, labels=labels)


class SubgoalLabels(LabelFactory):
    """Label factory with targets of progress from a decomposer's stages in hindsight, made when a batch is loaded.

    Progress is the sum of the shares of the stages before plus the passed part of the present one, linear in time
    within a completed stage (`stage_fraction`). An unfinished stage and an unknown one have no target. Success and
    remaining-time targets are those of `LabelFactory`. It needs whole episodes (``window: null``): windows from the
    middle have no targets.

    Args:
        decomposer: Task decomposer that reads states and tracks. One with cameras labels a data set beforehand instead;
            see `StageLabels`.
        shares: Share of progress of each stage, 1 in all (`stage_proportions`); None gives all stages of a plan the
            same.
        rewind: Share of rows played forward to a random point and then backwards.
        reverse: Share of rows played backwards.
        wrong_instruction: Share of rows that get another instruction.

    Raises:
        ValueError: If the decomposer has cameras, or a share is out of its range.
    """

    def __init__(
        self,
        decomposer: TaskDecomposer,
        shares: list[float] | None = None,
        rewind: float = 0.0,
        reverse: float = 0.0,
        wrong_instruction: float = 0.0,
    ) -> None:
        super().__init__(rewind=rewind, reverse=reverse, wrong_instruction=wrong_instruction)
        if inputs_of(decomposer).cameras:
            raise ValueError(
                f"{type(decomposer).__name__} looks through cameras: label the data set once with StageLabels, then "
                'train with LabelFactory(progress="stages")'
            )
        self.decomposer, self.worth = decomposer, None if shares is None else list(shares)
        self._plans: dict[PlanKey, TaskPlan] = {}

    @torch.no_grad()
    def targets(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Add targets of stage, progress, success and remaining steps.

        Raises:
            ValueError: If the decomposer refuses an instruction, lacks a track, or a plan has more stages than shares.
        """
        plans = plans_for(self.decomposer, batch, self._plans)
        count, _, known = completed_stages(self.decomposer, batch, plans, causal=False)
        sizes = torch.tensor([len(plan.stages) for plan in plans], device=count.device)
        stage = torch.minimum((count + _WHOLE).floor(), (sizes - 1).clamp(min=0)[:, None].float()).long()
        reaches_end = batch.offset + batch.steps >= batch.length
        won = (batch.success_known & (batch.success >= 1) & reaches_end).tolist()
        fraction = Labelled(values=torch.zeros_like(count), valid=torch.zeros_like(known))
        for row, steps in enumerate(batch.steps.tolist()):
            made = slice(0, steps + 1)
            column = stage_fraction(stage[row, made].numpy(), known[row, made].numpy(), bool(won[row]))
            fraction.values[row, made] = torch.from_numpy(column.values)
            fraction.valid[row, made] = torch.from_numpy(column.valid)
        labels = {**batch.labels, STAGE: Labelled(values=stage, valid=known), FRACTION: fraction}
        batch = replace(batch, labels=labels)
        if self.worth is not None:
            batch = with_stage_targets(batch, self.worth)
        else:
            value = (stage + fraction.values) / sizes.clamp(min=1)[:, None]
            equal = Labelled(values=torch.where(fraction.valid, value, 0.0), valid=fraction.valid)
            batch = replace(batch, labels={**batch.labels, "progress": equal})
        return with_remaining_targets(with_success_targets(batch))


__all__ = ["StageLabels", "SubgoalLabels", "SubgoalReward", "completed_stages", "plans_for"]
