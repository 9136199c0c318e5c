"""Plans and stages recorded with the data: nothing is inferred, and unknown stages stay invalid."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.batch import Labelled, TrajectoryBatch
from ...core.interfaces import TaskDecomposer, TaskPlan
from ...datasets.stages import STAGE
from .plans import plan_to_value, read_plans


class RecordedDecomposer(TaskDecomposer):
    """Task decomposer that returns given plans, and the stages that a data set recorded at every observation.

    A recorded stage usually comes from an annotator who saw the whole episode. A causal segmentation is therefore
    refused, unless ``causal_labels`` states that the labels were made from the past alone.

    Args:
        plans: Instruction → ``{"stages": [{"name", "description", "completion", "keypoints"}, …]}``, or the path of a
            JSON file of this form. A saved decomposer holds the plans, not the path.
        column: Name of the label with the stage index 0 … S − 1 of every observation.
        causal_labels: Whether the label at an observation uses nothing after it.
        max_stages: Largest number of stages in a plan.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a plan is invalid, naming its instruction.
    """

    def __init__(
        self,
        plans: Mapping[str, Any] | str,
        column: str = STAGE,
        causal_labels: bool = False,
        max_stages: int = 32,
    ) -> None:
        super().__init__()
        self._plans = read_plans(plans, max_stages)
        self.column, self.causal_labels, self.max_stages = column, causal_labels, max_stages
        self.init_args["plans"] = {text: plan_to_value(plan) for text, plan in self._plans.items()}

    def plan(self, instructions: Sequence[str], first_frames: Sequence[Tensor] | None = None) -> list[TaskPlan]:
        """Return the plans of instructions; pictures are not used.

        Raises:
            ValueError: If an instruction has no plan.
        """
        for text in instructions:
            if text not in self._plans:
                known = ", ".join(repr(name) for name in list(self._plans)[:5])
                more = f" and {len(self._plans) - 5} more" if len(self._plans) > 5 else ""
                raise ValueError(f"no plan is recorded for {text!r}: there are plans for {known}{more}")
        return [self._plans[text] for text in instructions]

    def segment(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Return the recorded stage of every observation (B, T+1), int64; invalid where none is recorded.

        Raises:
            ValueError: If causal stages are asked for and the labels are not causal, the label is missing, or a stage
                is no whole number 0 … S − 1 or is smaller than an earlier one.
        """
        if causal and not self.causal_labels:
            raise ValueError(
                f"the recorded label {self.column!r} was made with the whole episode in view, so it cannot be used "
                "online: pass causal=False, or causal_labels=True if it uses nothing after its observation"
            )
        if len(plans) != len(batch):
            raise ValueError(f"expected a plan for each of {len(batch)} rows, got {len(plans)}")
        label = batch.labels.get(self.column)
        if label is None:
            held = ", ".join(sorted(batch.labels)) or "none"
            raise ValueError(f"no label {self.column!r} is recorded here, only {held}: record it, or name another")
        if label.values.shape != batch.observed.shape:
            raise ValueError(
                f"label {self.column!r}: expected one stage per observation {tuple(batch.observed.shape)}, got "
                f"{tuple(label.values.shape)}"
            )
        valid = label.valid & batch.made
        values = torch.where(valid, label.values, torch.zeros_like(label.values)).double()
        sizes = torch.tensor([len(plan.stages) for plan in plans], device=valid.device)[:, None]
        wrong = valid & ~((values >= 0) & (values < sizes) & (values == values.floor()))
        self._refuse(batch, values, wrong, "expected a whole number from 0 to the number of stages in the plan less 1")
        earlier = torch.where(valid, values, -1.0).cummax(1).values
        self._refuse(batch, values, valid & (values < earlier), "a later stage came before it, expected them in order")
        return Labelled(values=values.long(), valid=valid)

    def _refuse(self, batch: TrajectoryBatch, values: Tensor, wrong: Tensor, why: str) -> None:
        if bool(wrong.any()):
            row, t = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"label {self.column!r} of episode {int(batch.episode[row])} is {float(values[row, t]):g} at "
                f"observation {t}: {why}"
            )


__all__ = ["RecordedDecomposer"]
