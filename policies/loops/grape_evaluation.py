"""Evaluation of the GRAPE loop on held-out initial states: success, steps, and violations of a safety constraint."""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.batch import TrajectoryBatch
from ...core.files import without_nan, write_json
from ...core.interfaces import Policy, TaskDecomposer
from ...core.intervals import Estimate, macro_bootstrap, mean_estimate, wilson_estimate
from ...rewards.grape.cost_files import load_costs
from ...rewards.grape.stage_tracks import RowCosts, StageCosts
from ..rollouts.data import RolloutData
from ..rollouts.decisions import hash_seed
from ..rollouts.pieces import batch_pieces
from ..rollouts.stream import evaluating
from .grape_rollouts import Tasks, open_pool

EVALUATION = "evaluation.json"
"""Last file of a stage of evaluation."""


class Violations:
    """Measurement of how often episodes violate a safety constraint.

    A step violates it where a constraint of kind ``"collision"`` costs something there, whatever its weight and
    threshold: inside the margin of a ``clearance``, or below the height of an ``above``. An episode is a violation if
    more than a share of its steps are.

    Args:
        costs: Cost files with the constraints, as `guerdon.GrapeScore` takes them.
        share: Share of the steps of an episode above which it counts as a violation, in [0, 1).
        decomposer: Source of the stages; files with one stage need none.

    Raises:
        ValueError: If a file holds no constraint of a collision, or the share is out of range.
    """

    def __init__(
        self,
        costs: Sequence[str | Mapping[str, Any]],
        share: float | int = 0.05,
        decomposer: TaskDecomposer | None = None,
    ) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share {share}: expected a share of the steps in [0, 1)")
        files = [load_costs(source) for source in costs]
        for file in files:
            if not any(constraint.kind == "collision" for constraint in file.constraints):
                raise ValueError(
                    f"the costs of {file.task} hold no constraint of kind collision, so nothing can be violated: name "
                    "the file of the safety objective, such as mujoco/reach_safety"
                )
        if not files:
            raise ValueError("costs: expected at least one cost file, got none")
        self.share, self.decomposer, self._costs = float(share), decomposer, StageCosts(files)

    def violated_share(self, batch: TrajectoryBatch) -> list[float]:
        """Compute the share of the steps of every row that violate a constraint; NaN where it is unknown.

        Args:
            batch: Whole episodes with tracks.
        """
        rows = self._costs.measure(batch, self.decomposer, batch.whole)
        return [
            math.nan if row.problem else _violated_steps(row) / max(1, int(steps))
            for row, steps in zip(rows, batch.steps.tolist(), strict=True)
        ]


def _violated_steps(row: RowCosts) -> int:
    """Count the steps at which a constraint of a collision costs something; those of one stage share their steps."""
    by_stage: dict[int, np.ndarray] = {}
    for cost in row.table:
        if cost.constraint.kind == "collision":
            stage = cost.constraint.stage
            by_stage[stage] = by_stage.get(stage, np.zeros(len(cost.per_step), np.bool_)) | (cost.per_step > 0)
    return sum(int(violated.sum()) for violated in by_stage.values())


class HeldOutEvaluation:
    """Settings of the evaluation before the first iteration and after each.

    Args:
        episodes: Number of held-out initial states of each task, each played once.
        sampled: Sample actions as in the rollouts, instead of taking the deterministic ones.
        split: Split of the initial states.
        violations: Measurement of violations; None measures none.
        seed: Random seed of the policy's noise, the same in every iteration.

    Raises:
        ValueError: If there is no episode.
    """

    def __init__(
        self,
        episodes: int = 50,
        sampled: bool = False,
        split: str = "eval",
        violations: Violations | None = None,
        seed: int = 0,
    ) -> None:
        if episodes < 1:
            raise ValueError(f"episodes {episodes}: expected at least one for each task")
        self.episodes, self.sampled, self.split = episodes, sampled, split
        self.violations, self.seed = violations, seed


def evaluate_iteration(
    folder: Path, data: RolloutData, tasks: Tasks, policy: Policy, settings: HeldOutEvaluation, made_from: str
) -> dict[str, Any]:
    """Play the held-out initial states, and complete the stage of evaluation.

    Args:
        folder: Folder of the stage.
        data: Settings of the rollouts.
        tasks: Tasks that are played.
        policy: Policy that acts.
        settings: Settings of the evaluation.
        made_from: Content hash of the policy.

    Returns:
        Contents of the file.
    """
    with closing(open_pool(data, tasks)) as pool, evaluating(policy), torch.no_grad():
        seed = hash_seed(settings.seed)
        pieces = pool.play(policy, tasks.held_out, seed, deterministic=not settings.sampled)
    batch = batch_pieces(pieces)
    share = [math.nan] * len(batch) if settings.violations is None else settings.violations.violated_share(batch)
    names = [context.task for context in tasks.held_out]
    success = np.array([float(s) if k else math.nan for s, k in zip(batch.success, batch.success_known, strict=True)])
    steps = batch.steps.double().numpy()
    limit = 0.0 if settings.violations is None else settings.violations.share
    violated = np.array([math.nan if math.isnan(one) else float(one > limit) for one in share])
    found = {
        "policy": made_from,
        "actions": "sampled" if settings.sampled else "deterministic",
        "violation": None if settings.violations is None else f"more than {100 * limit:g} % of the steps",
        "all": _summary(success, steps, violated, names),
        "tasks": {
            name: _summary(success[mine], steps[mine], violated[mine], [name] * int(mine.sum()))
            for name in dict.fromkeys(names)
            for mine in [np.array([name == other for other in names])]
        },
        "episodes": [
            {
                "task": context.task,
                "context": context.index,
                "success": success[row],
                "steps": int(steps[row]),
                "violated_share": share[row],
            }
            for row, context in enumerate(tasks.held_out)
        ],
    }
    plain: dict[str, Any] = without_nan(found)
    write_json(folder / EVALUATION, plain)
    return plain


def _summary(success: np.ndarray, steps: np.ndarray, violated: np.ndarray, tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "episodes": len(steps),
        "success": _interval(_rate(success, tasks)),
        "steps": _interval(mean_estimate(steps)),
        "violations": _interval(_rate(violated, tasks)),
        "violations_unknown": int(np.isnan(violated).sum()),
    }


def _rate(hits: np.ndarray, tasks: Sequence[str]) -> Estimate:
    """Estimate a rate: Wilson's interval for one task, and a bootstrap inside each of several, which are fixed."""
    known = hits[~np.isnan(hits)]
    if len(set(tasks)) > 1 and len(known):
        value, low, high = macro_bootstrap(hits, np.array(tasks), fixed_tasks=True)
        return Estimate(value=value, low=low, high=high)
    return wilson_estimate(round(float(known.sum())), len(known))


def _interval(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


__all__ = ["EVALUATION", "HeldOutEvaluation", "Violations", "evaluate_iteration"]
