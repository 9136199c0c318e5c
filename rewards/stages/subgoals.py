"""Pays for the stages of a task as they are completed, and writes them down as targets for progress models."""

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

_WHOLE = 1e-5  # counts are float32: this little below a whole number is that number

PlanKey = tuple[str, str]
"""What a plan is kept under: the instruction, and a hash of the picture it was made from; empty where none was."""


class SubgoalReward(RewardModel):
    """Rewards completed stages of a decomposer's plan: a bonus for each, once, or a potential that counts them.

    With c_t in [0, S] the stages complete at observation t plus how far the next one is, as `TaskDecomposer.completed`
    says, the potential is Φ_t = c_t / S, which is also the progress it estimates.

    * ``"bonus"``: r_t = bonus · (stages completed for the first time at observation t + 1). Going back and forth earns
      nothing, and what is complete at the first known observation is not paid. A row that completes its plan is paid
      bonus · S, whatever happens afterwards.
    * ``"potential"``: r_t = γ Φ_{t+1} − Φ_t, with Φ = 0 after a terminated end (Ng, Harada and Russell 1999, Eq. 2), so
      the discounted sum over a row telescopes to −Φ_0, plus γ^L Φ_L where it was cut. Added to a task's reward it
      leaves the optimal policy as it is; alone, where success ends an episode, it teaches nothing. A policy that
      decides every few steps takes `RewardToGo(potential=SubgoalReward(…))` instead.

    A decomposer with cameras plans for every row from that row's own first picture, so that a score depends on nothing
    that was scored before; others plan once per instruction. Plans are kept, and the same instruction with the same
    picture is not asked about again. A plan without stages is an abstention: its rows are invalid, and it is asked for
    again next time. Where the decomposer looks, so are rows without a frame, and windows that begin inside an episode,
    which do not show how it began.

    Args:
        decomposer: Plans and segments. Its parameters are frozen for good (``requires_grad`` is off from here on):
            train the decomposer before it goes in here.
        mode: Which of the two.
        bonus: Paid for each stage, finite.
        gamma: Discount of the returns that will be taken, in [0, 1]; for the potential.
        causal: Segment from what was seen so far, as online use needs. False looks at whole episodes, which is for
            scoring finished ones.

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
        """What the decomposer reads, where it says."""
        return inputs_of(self.decomposer)

    def plans(self, batch: TrajectoryBatch) -> list[TaskPlan]:
        """A plan for every row, as `plans_for` makes it; plans that were made before are not asked for again.

        Raises:
            ValueError: If the decomposer refuses an instruction, gives another number of plans than was asked for, or
                looks through cameras none of which is there.
        """
        return plans_for(self.decomposer, batch, self._plans)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Count stages and pay; a step is valid where the count after it is known, and some count before it.

        Of the potential both observations of a step have to be known, the second one unless the row ended there.
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
        best = whole.cummax(1).values  # an unknown observation keeps the best so far; −1: none was known yet
        gained = best[:, 1:] - best[:, :-1]
        return self.bonus * gained, known[:, 1:] & (best[:, :-1] >= 0)


def plans_for(decomposer: TaskDecomposer, batch: TrajectoryBatch, known: dict[PlanKey, TaskPlan]) -> list[TaskPlan]:
    """A plan for every row of a batch, all new ones in one call; those with stages are added to ``known``.

    A decomposer with cameras gets each row's own first picture through them. Rows without one, and windows that begin
    inside an episode, get a plan without stages there, and nobody is asked.

    Raises:
        ValueError: If the decomposer refuses an instruction, gives another number of plans than was asked for, or looks
            through cameras none of which is there.
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
        # an abstention is not kept: it may be a passing failure, such as an endpoint that timed out
        known.update({key: plans[key] for key in new if plans[key].stages})
    return [
        TaskPlan(instruction=text, stages=()) if key is None else plans[key]
        for key, text in zip(keys, batch.instructions, strict=True)
    ]


def _first_pictures(batch: TrajectoryBatch, cameras: Sequence[str]) -> dict[int, Tensor]:
    """First picture (3, H, W) through the cameras of each row that shows how its episode began."""
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
    """Stages complete, their share of the plan, and where that is known; rows whose plan has no stages are unknown.

    Raises:
        ValueError: If the decomposer counts fewer than no stages or more than there are, or gives something that is no
            number.
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
    """Adds a decomposer's stages to stored episodes as ``labels["stage"]``, from which targets of progress are made.

    `LabelFactory(progress="stages")` and `stage_proportions` read them. The fraction of a stage is left to
    `stage_fraction`, linear in time within completed stages; with ``fraction`` the decomposer's own becomes
    ``labels["stage_fraction"]``, which is known in a stage that was broken off too.

    Args:
        decomposer: Plans and segments.
        causal: Segment from what was seen up to each observation only.
        fraction: Also write the decomposer's fractions.
    """

    def __init__(self, decomposer: TaskDecomposer, causal: bool = False, fraction: bool = False) -> None:
        self.decomposer, self.causal, self.fraction = decomposer, causal, fraction
        self._plans: dict[PlanKey, TaskPlan] = {}

    @torch.no_grad()
    def __call__(self, episode: Episode) -> Episode:
        """The episode with its stages; where a stage is unknown it is marked so, and stages it held are replaced.

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
    """Targets of progress from a decomposer's stages in hindsight, made when a batch is loaded, and negatives.

    Progress is what the stages before are worth plus the share of the present one that has passed, linear in time
    within a completed stage (`stage_fraction`); a stage that was broken off, and one that is unknown, have no target.
    Success and remaining-time targets are those of `LabelFactory`. It needs whole episodes (``window: null``): windows
    from the middle have no targets.

    Args:
        decomposer: Plans and segments from states and tracks; one that looks through cameras labels a data set
            beforehand instead (`StageLabels`).
        shares: Share of progress of each stage, 1 in all (`stage_proportions`); None gives all stages of a plan the
            same.
        rewind: Share of rows played forward to a random point and then backwards.
        reverse: Share of rows played backwards.
        wrong_instruction: Share of rows that get another instruction.

    Raises:
        ValueError: If the decomposer looks through cameras, or a share is none.
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
        """Add stages, progress, success and remaining steps.

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
