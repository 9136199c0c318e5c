"""Predictions for single episodes, extracted from a reward model's estimates for a batch."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .predictions import Prediction


def run_model(reward: RewardModel, batch: TrajectoryBatch) -> RewardEstimates:
    """Run a reward model on a batch without gradients and return its estimates on the CPU.

    Raises:
        ValueError: If the estimates do not fit the batch.
    """
    device = next((p.device for p in reward.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        estimates = reward(batch.to(device)).to("cpu")
    if tuple(estimates.rewards.shape) != tuple(batch.mask.shape):
        raise ValueError(
            f"{type(reward).__name__}: expected rewards {tuple(batch.mask.shape)}, got {tuple(estimates.rewards.shape)}"
        )
    return estimates


def extract_prediction(batch: TrajectoryBatch, estimates: RewardEstimates, row: int) -> Prediction:
    """Extract what a model predicts for one row.

    Args:
        batch: Whole episodes with labels of progress and success.
        estimates: The model's estimates for them.
        row: Row of the batch.

    Raises:
        ValueError: If a value that the model marks as valid is not finite.
    """
    made = batch.made[row].numpy()
    values, known = _values(batch, estimates, row)
    steps = (estimates.valid[row] & batch.mask[row]).numpy()
    total = float(estimates.rewards[row].double().numpy()[steps].sum()) if steps.any() else math.nan
    final = _last(estimates.progress, made, row)
    score = _last(estimates.success, made, row) if estimates.success is not None else final
    if estimates.success is None and estimates.progress is None:
        score = total
    probability, label = _against_labels(batch, estimates.success, "success", row)
    progress, target = _against_labels(batch, estimates.progress, "progress", row)
    evaluated = values[known & _evaluated(batch, row)]
    if not np.isfinite(evaluated).all():
        raise ValueError(
            f"the model's value of episode {int(batch.episode[row])} is not a number: it must mark what it does not "
            "know as invalid"
        )
    return Prediction(
        values=evaluated,
        score=score,
        total=total,
        final=final,
        probability=probability,
        label=label,
        progress=progress,
        target=target,
    )


def clock_prediction(batch: TrajectoryBatch, estimates: RewardEstimates, row: int) -> Prediction:
    """Predict t / T wherever the model has an estimate, which needs no model at all."""
    time = np.arange(batch.mask.shape[1] + 1) / max(1, int(batch.observed[row].sum()) - 1)
    at_values = _values(batch, estimates, row)[1] & _evaluated(batch, row)
    at_success = _labelled(batch, estimates.success, "success", row)
    at_progress = _labelled(batch, estimates.progress, "progress", row)
    return Prediction(
        values=time[at_values],
        score=1.0,
        total=1.0,
        final=1.0,
        probability=time[at_success],
        label=batch.labels["success"].values[row].double().numpy()[at_success],
        progress=time[at_progress],
        target=batch.labels["progress"].values[row].double().numpy()[at_progress],
    )


def describe_conventions(estimates: RewardEstimates) -> dict[str, str]:
    """Say in words what values, score and probability are, depending on what a model estimates."""
    progress, success = estimates.progress is not None, estimates.success is not None
    values = "progress" if progress else "success probability" if success else "summed reward so far"
    score = "success probability at the last observation" if success else f"{values} at the last observation"
    label = "the recorded success of each observation, else the episode's end"
    return {
        "value order of": f"{values} at the evaluated observations of an episode",
        "success AUROC of": score,
        "calibration of": f"success probability at every observation, against {label}"
        if success
        else f"{score}, against the episode's outcome",
        **({"progress error": "mean over observations of |progress − label|, then over episodes"} if progress else {}),
        "instructions by": f"{'final progress' if progress else score}, under the right and under wrong instructions",
    }


def _evaluated(batch: TrajectoryBatch, row: int) -> Bool[np.ndarray, " T1"]:
    """Find the observations with a new frame: where frames are sampled thinly, values in between only repeat."""
    made, sampled = batch.made[row].numpy(), [*batch.frames.values(), *batch.features.values()]
    if not sampled:
        return made
    seen = np.zeros_like(made)
    for samples in sampled:
        step = samples.step[row]
        seen[step[step >= 0].cpu().numpy()] = True
    return made & seen if seen.any() else made


def _values(
    batch: TrajectoryBatch, estimates: RewardEstimates, row: int
) -> tuple[Float[np.ndarray, " T1"], Bool[np.ndarray, " T1"]]:
    """Return values and where they are known: progress, else success probability, else the reward summed so far."""
    made = batch.made[row].numpy()
    column: Labelled | None = estimates.progress or estimates.success
    if column is not None:
        return column.values[row].double().numpy(), column.valid[row].numpy() & made
    known = (estimates.valid[row] & batch.mask[row]).numpy()
    summed = np.cumsum(np.where(known, estimates.rewards[row].double().numpy(), 0.0))
    return np.concatenate([[0.0], summed]), np.concatenate([[True], known]) & made


def _last(column: Labelled | None, made: Bool[np.ndarray, " T1"], row: int) -> float:
    if column is None:
        return math.nan
    known = np.flatnonzero(column.valid[row].numpy() & made)
    return float(column.values[row, int(known[-1])]) if len(known) else math.nan


def _labelled(batch: TrajectoryBatch, column: Labelled | None, name: str, row: int) -> Bool[np.ndarray, " T1"]:
    """Find the observations with both an estimate and a label."""
    made = batch.made[row].numpy()
    if column is None:
        return np.zeros_like(made)
    return batch.labels[name].valid[row].numpy() & column.valid[row].numpy() & made


def _against_labels(
    batch: TrajectoryBatch, column: Labelled | None, name: str, row: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return estimates and labels of the observations that have both."""
    if column is None:
        return np.zeros(0), np.zeros(0)
    known = _labelled(batch, column, name, row)
    return column.values[row].double().numpy()[known], batch.labels[name].values[row].double().numpy()[known]
