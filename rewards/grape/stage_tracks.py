"""Stage costs of the rows of a batch: matches costs, stages and tracks, and evaluates the constraints."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Shaped
from torch import Tensor

from ...backbones.model_inputs import inputs_of
from ...core.batch import Labelled, TrajectoryBatch
from ...core.interfaces import TaskDecomposer, TaskPlan
from ..costs import ConstraintCost, cost_table
from .cost_files import TaskCosts


@dataclass(frozen=True, kw_only=True)
class RowCosts:
    """Costs of the constraints of its task for one row, not weighted."""

    problem: str = ""
    """Reason why the costs are unknown; empty where they are known."""
    file: TaskCosts | None = None
    """Cost file of the row."""
    first: int = 0
    """Index of the first constraint of its file among those of all files."""
    table: tuple[ConstraintCost, ...] = ()
    """Cost of each constraint of its file."""

    @property
    def excess(self) -> list[float]:
        """Excess of each constraint; 0 where its stage was never reached."""
        return [row.excess for row in self.table]

    @property
    def missed(self) -> int:
        """Number of constraints whose stage was never reached."""
        return sum(not row.reached for row in self.table)


class StageCosts:
    """Evaluation of cost files on batches.

    Step t is evaluated at the observation it leads to, t + 1: the policy did not cause the first observation, and the
    last one shows how the episode ended. A final observation that was never made is left out.

    Each plan of a decomposer is compared with the stages of its row's file. A plan with other stages makes that row
    unknown and no other. Where no plan of a batch fits, a warning is given once.

    Args:
        files: Cost files, one per task; constraints are numbered through all of them.
    """

    def __init__(self, files: Sequence[TaskCosts]) -> None:
        self.files = list(files)
        *self._first, self.width = accumulate((len(file.constraints) for file in self.files), initial=0)
        weights = [c.weight for file in self.files for c in file.constraints]
        self.weights: Float64[Tensor, " J"] = torch.tensor(weights, dtype=torch.float64)
        self._warned = False

    def measure(
        self, batch: TrajectoryBatch, decomposer: TaskDecomposer | None, wanted: Bool[Tensor, " B"]
    ) -> list[RowCosts]:
        """Compute the costs of every wanted row, or the reason why they are unknown.

        Args:
            batch: The trajectories.
            decomposer: Source of the stages; None takes ``labels["stage"]``.
            wanted: True on the rows to evaluate.

        Raises:
            ValueError: If a track has the wrong shape or kind, a known value is not finite, or a stage is none of the
                file's.
        """
        made = (batch.made[:, 1:] & batch.mask).cpu().numpy()
        places = [self.find(text) for text in batch.instructions]
        several = [
            row
            for row, place in enumerate(places)
            if place is not None and bool(wanted[row]) and len(self.files[place].stages) > 1
        ]
        stages, problems = self._stages(batch, decomposer, several, places)
        rows: list[RowCosts] = []
        for row, place in enumerate(places):
            if not bool(wanted[row]):
                rows.append(RowCosts(problem="it is no whole, finished episode"))
            elif place is None:
                rows.append(RowCosts(problem=f"no costs for the instruction {batch.instructions[row]!r}"))
            elif row in problems:
                rows.append(RowCosts(problem=problems[row]))
            else:
                rows.append(self._row(batch, row, place, made[row], stages.get(row)))
        return rows

    def find(self, instruction: str) -> int | None:
        """Find the index of the file for an instruction: one that lists it, else one that lists none.

        Args:
            instruction: Instruction of a row.

        Returns:
            The index, or None where no file applies.

        Raises:
            ValueError: If several files apply.
        """
        listed = [i for i, file in enumerate(self.files) if instruction in file.instructions]
        found = listed or [i for i, file in enumerate(self.files) if not file.instructions]
        if len(found) > 1:
            names = ", ".join(self.files[i].task for i in found)
            raise ValueError(f"several costs are for {instruction!r}: {names}; list instructions in each")
        return found[0] if found else None

    def _row(
        self,
        batch: TrajectoryBatch,
        row: int,
        place: int,
        steps: Bool[np.ndarray, " T"],
        stages: tuple[np.ndarray, np.ndarray] | None,
    ) -> RowCosts:
        file = self.files[place]
        stage = np.zeros(int(steps.sum()), np.int64)
        if stages is not None:
            values, valid = (part[steps] for part in stages)
            if not valid.all():
                return RowCosts(problem="the stage of some steps is unknown")
            stage = _indices(file, values)
        track: dict[str, Any] = {"stage": stage}
        used = np.isin(stage, [c.stage for c in file.constraints])
        for name in sorted(file.read_points | file.read_flags | file.read_numbers):
            column = batch.tracks.get(name)
            if column is None:
                held = ", ".join(sorted(batch.tracks)) or "nothing"
                return RowCosts(problem=f"no track {name!r}; recorded are {held}")
            values, valid = (part[steps] for part in _row(column, row, len(steps)))
            if not valid[used].all():
                return RowCosts(problem=f"track {name!r} is unknown at some steps")
            kept = valid.reshape(-1, *(1,) * (values.ndim - 1))
            track[name] = np.where(kept, values, np.zeros_like(values))  # at steps that no constraint reads
        try:
            table = cost_table(file.constraints, file.complete(track))
        except ValueError as error:
            raise ValueError(f"{file.task}, episode {int(batch.episode[row])}: {error}") from error
        return RowCosts(file=file, first=self._first[place], table=tuple(table))

    def _stages(
        self,
        batch: TrajectoryBatch,
        decomposer: TaskDecomposer | None,
        rows: Sequence[int],
        places: Sequence[int | None],
    ) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], dict[int, str]]:
        """Return the stage after each step of the given rows, where it is known, and the rows without stages."""
        if not rows:
            return {}, {}
        width = batch.mask.shape[1]
        if decomposer is None:
            column = batch.labels.get("stage")
            if column is None:
                return {}, dict.fromkeys(rows, 'no stages: neither labels["stage"] nor a decomposer')
            return {row: _row(column, row, width) for row in rows}, {}
        plans, problems = self._plans(batch, decomposer, rows, places)
        if not plans:
            return {}, problems
        column = decomposer.segment(_take(batch, list(plans)), list(plans.values()), causal=False)
        return {row: _row(column, i, width) for i, row in enumerate(plans)}, problems

    def _plans(
        self,
        batch: TrajectoryBatch,
        decomposer: TaskDecomposer,
        rows: Sequence[int],
        places: Sequence[int | None],
    ) -> tuple[dict[int, TaskPlan], dict[int, str]]:
        """Return plans that fit the costs of their rows, and the reason why other rows have none.

        A decomposer that names its cameras gets a frame of them, and is not asked about rows without one.
        """
        cameras = inputs_of(decomposer).cameras
        frames = {row: _first_frame(batch, row, cameras or tuple(batch.frames)) for row in rows}
        problems: dict[int, str] = {}
        if cameras:
            names = ", ".join(cameras)
            problems = {row: f"no first frame of {names} to plan from" for row in rows if frames[row] is None}
        asked = [row for row in rows if row not in problems]
        if not asked:
            return {}, problems
        pictures = [frame for row in asked if (frame := frames[row]) is not None]
        texts = tuple(batch.instructions[row] for row in asked)
        made = decomposer.plan(texts, pictures if len(pictures) == len(asked) else None)
        plans: dict[int, TaskPlan] = {}
        refused = ""
        for row, plan in zip(asked, made, strict=True):
            place = places[row]
            assert place is not None  # only rows with costs are passed on
            if not plan.stages:
                problems[row] = "the decomposer gave no plan"
                continue
            try:
                self.files[place].check_plan(plan)
                plans[row] = plan
            except ValueError as error:
                problems[row] = refused = str(error)
        if refused and not plans and not self._warned:
            self._warned = True
            warnings.warn(f"no plan of the batch fits the costs: {refused}", stacklevel=2)
        return plans, problems


def _take(batch: TrajectoryBatch, rows: Sequence[int]) -> TrajectoryBatch:
    return batch[torch.tensor(rows, device=batch.mask.device)]


def _row(column: Labelled, row: int, steps: int) -> tuple[Shaped[np.ndarray, "T ..."], Bool[np.ndarray, " T"]]:
    """Return values and validity after each step; of a column per observation (T+1) the first entry is dropped."""
    first = column.valid.shape[1] - steps
    return column.values[row].cpu().numpy()[first:], column.valid[row].cpu().numpy()[first:]


def _indices(file: TaskCosts, values: np.ndarray) -> np.ndarray:
    stage = np.asarray(values)
    whole = stage.astype(np.int64)
    if stage.ndim != 1 or not (whole == stage).all():
        raise ValueError(f"{file.task}: expected a stage index per step, got {stage.dtype} {stage.shape}")
    wrong = (whole < -1) | (whole >= len(file.stages))
    if wrong.any():
        came = int(whole[wrong.argmax()])
        names = ", ".join(file.stages)
        raise ValueError(f"{file.task}: stage {came} came, and the costs are for {len(file.stages)} stages: {names}")
    return whole


def _first_frame(batch: TrajectoryBatch, row: int, cameras: Sequence[str]) -> Tensor | None:
    """Return a row's frame at its first observation, of the first camera that has one there."""
    for camera in cameras:
        sampled = batch.frames.get(camera)
        if sampled is not None and bool((sampled.step[row] == 0).any()):
            return sampled.values[row, int((sampled.step[row] == 0).nonzero()[-1, 0])]
    return None


__all__ = ["RowCosts", "StageCosts"]
