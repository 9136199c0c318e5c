"""Asks a reward model about every episode as it was, and again with time or instruction altered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.edit import reindex
from ..core.interfaces import RewardModel
from ..datasets.labels import with_progress_targets, with_success_targets
from ..datasets.negatives import reverse_map
from .predictions import MODEL, Judged, Reading


@dataclass(frozen=True, kw_only=True)
class OtherTasks:
    """Which wrong instruction an episode is tried with: one of another task of the data set, drawn from the seed."""

    instructions: Mapping[int, str]
    """Task → one of its instructions."""
    seed: int = 0

    def wrong_for(self, episode: int, task: int, instruction: str) -> tuple[int, str] | None:
        """Task and instruction, None where the data set holds no other task."""
        others = [t for t, text in sorted(self.instructions.items()) if t != task and text != instruction]
        if not others:
            return None
        other = others[int(np.random.default_rng([self.seed, 1, episode % 2**32]).integers(len(others)))]
        return other, self.instructions[other]


@dataclass(frozen=True, kw_only=True)
class InstructionMatrix:
    """Which episodes are asked every instruction; each costs one more reading per instruction."""

    instructions: Mapping[int, str] = field(default_factory=dict[int, str])
    """Task → its instruction."""
    episodes: frozenset[int] = frozenset()


def judge(
    reward: RewardModel,
    batch: TrajectoryBatch,
    others: OtherTasks,
    qualities: Sequence[str] | None = None,
    seed: int = 0,
    matrix: InstructionMatrix | None = None,
) -> list[Judged]:
    """Read a batch of whole episodes with the model and with the clock, and with the altered episodes.

    The constant control needs the share of successes of all episodes: `with_constant` adds it.

    Args:
        reward: The model; put it on its device and in evaluation mode first.
        batch: Whole episodes.
        others: Where wrong instructions come from.
        qualities: Of each row, empty where unknown.
        seed: Of the shuffled playback.
        matrix: Which episodes are asked the instruction of every task; None asks none.

    Raises:
        ValueError: If the model's estimates do not fit the batch.
    """
    labelled = with_progress_targets(with_success_targets(batch))
    plain = ask(reward, labelled)
    asked = {
        MODEL: (labelled, plain),
        "reversed": _replay(reward, labelled, reverse_map(batch.observed.sum(1), batch.mask.shape[1] + 1)),
        "shuffled": _replay(reward, labelled, shuffle_map(batch, seed)),
    }
    wrong = [
        others.wrong_for(int(e), int(t), text)
        for e, t, text in zip(batch.episode, batch.task, batch.instructions, strict=True)
    ]
    if any(w is not None for w in wrong):
        told = replace(
            labelled,
            instructions=tuple(text if w is None else w[1] for w, text in zip(wrong, batch.instructions, strict=True)),
            task=torch.tensor([int(t) if w is None else w[0] for w, t in zip(wrong, batch.task, strict=True)]),
        )
        asked["wrong_instruction"] = (told, ask(reward, told))
    under = _under(reward, labelled, asked, wrong, matrix or InstructionMatrix())
    found: list[Judged] = []
    for row in range(len(batch)):
        readings = {
            name: _reading(shown, estimates, row)
            for name, (shown, estimates) in asked.items()
            if name != "wrong_instruction" or wrong[row] is not None
        }
        readings["clock"] = _clock(labelled, plain, row)
        found.append(
            Judged(
                episode=int(batch.episode[row]),
                task=int(batch.task[row]),
                instruction=batch.instructions[row],
                success=float(batch.success[row]) if bool(batch.success_known[row]) else math.nan,
                readings=readings,
                quality="" if qualities is None else qualities[row],
                under=under.get(row, {}),
            )
        )
    return found


def _under(
    reward: RewardModel,
    batch: TrajectoryBatch,
    asked: Mapping[str, tuple[TrajectoryBatch, RewardEstimates]],
    wrong: Sequence[tuple[int, str] | None],
    matrix: InstructionMatrix,
) -> dict[int, dict[int, float]]:
    """Row → task → how far the model says it came under that task's instruction, for the episodes of the matrix."""
    rows = [row for row in range(len(batch)) if int(batch.episode[row]) in matrix.episodes]
    found = {row: {int(batch.task[row]): _reading(*asked[MODEL], row).end} for row in rows}
    for row in rows:
        told = wrong[row]
        if told is not None and matrix.instructions.get(told[0]) == told[1]:  # asked already
            found[row][told[0]] = _reading(*asked["wrong_instruction"], row).end
    for task, text in matrix.instructions.items():
        left = [row for row in rows if task not in found[row]]
        if not left:
            continue
        part = batch[left]
        told = replace(part, instructions=(text,) * len(left), task=torch.full_like(part.task, task))
        estimates = ask(reward, told)
        for place, row in enumerate(left):
            found[row][task] = _reading(told, estimates, place).end
    return found


def with_constant(judged: Sequence[Judged]) -> list[Judged]:
    """Add the constant control: the share of successes, everywhere; as progress, the mean of the known progress.

    Its calibration is perfect by construction.
    """
    clocks = [j.readings["clock"] for j in judged]
    labels = np.concatenate([c.label for c in clocks]) if clocks else np.zeros(0)
    outcomes = np.array([j.success for j in judged if not math.isnan(j.success)])
    chosen = labels if len(labels) else outcomes
    constant = float(chosen.mean()) if len(chosen) else 0.5
    targets = np.concatenate([c.target for c in clocks]) if clocks else np.zeros(0)
    middle = float(targets.mean()) if len(targets) else 0.5

    def reading(clock: Reading) -> Reading:
        return Reading(
            values=np.full(len(clock.values), constant),
            score=constant,
            total=constant,
            final=constant,
            probability=np.full(len(clock.label), constant),
            label=clock.label,
            progress=np.full(len(clock.target), middle),
            target=clock.target,
        )

    return [replace(j, readings={**j.readings, "constant": reading(c)}) for j, c in zip(judged, clocks, strict=True)]


def describe_figures(estimates: RewardEstimates) -> dict[str, str]:
    """What values, score and calibration are computed of, given what the model says."""
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


def shuffle_map(batch: TrajectoryBatch, seed: int) -> Int[Tensor, "B Tp1"]:
    """Visit the observations of every row in a random order fixed by the seed and the episode's number."""
    shuffled = torch.full((len(batch), batch.mask.shape[1] + 1), -1)
    for row, made in enumerate(batch.observed.sum(1).tolist()):
        generator = np.random.default_rng([seed, 2, int(batch.episode[row]) % 2**32])
        shuffled[row, :made] = torch.from_numpy(generator.permutation(made))
    return shuffled


def _replay(reward: RewardModel, batch: TrajectoryBatch, time_map: Tensor) -> tuple[TrajectoryBatch, RewardEstimates]:
    shown = reindex(batch, time_map)
    return shown, ask(reward, shown)


def ask(reward: RewardModel, batch: TrajectoryBatch) -> RewardEstimates:
    """The model's estimates on the host, without gradients.

    Raises:
        ValueError: If they do not fit the batch.
    """
    device = next((p.device for p in reward.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        estimates = reward(batch.to(device)).to("cpu")
    if tuple(estimates.rewards.shape) != tuple(batch.mask.shape):
        raise ValueError(
            f"{type(reward).__name__}: expected rewards {tuple(batch.mask.shape)}, got {tuple(estimates.rewards.shape)}"
        )
    return estimates


def _made(batch: TrajectoryBatch, row: int) -> np.ndarray:
    return batch.made[row].numpy()


def _evaluated(batch: TrajectoryBatch, row: int) -> np.ndarray:
    """Observations at which something new was seen: where frames are sampled thinly, what is held adds nothing."""
    made, sampled = _made(batch, row), [*batch.frames.values(), *batch.features.values()]
    if not sampled:
        return made
    seen = np.zeros_like(made)
    for samples in sampled:
        step = samples.step[row]
        seen[step[step >= 0].cpu().numpy()] = True
    return made & seen if seen.any() else made


def _values(batch: TrajectoryBatch, estimates: RewardEstimates, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (T+1,) and where they count: progress, else success probability, else the reward summed so far."""
    column: Labelled | None = estimates.progress or estimates.success
    if column is not None:
        return column.values[row].double().numpy(), column.valid[row].numpy() & _made(batch, row)
    known = (estimates.valid[row] & batch.mask[row]).numpy()
    summed = np.cumsum(np.where(known, estimates.rewards[row].double().numpy(), 0.0))
    return np.concatenate([[0.0], summed]), np.concatenate([[True], known]) & _made(batch, row)


def _last(column: Labelled | None, made: np.ndarray, row: int) -> float:
    if column is None:
        return math.nan
    known = np.flatnonzero(column.valid[row].numpy() & made)
    return float(column.values[row, int(known[-1])]) if len(known) else math.nan


def _reading(batch: TrajectoryBatch, estimates: RewardEstimates, row: int) -> Reading:
    made = _made(batch, row)
    values, counts = _values(batch, estimates, row)
    steps = (estimates.valid[row] & batch.mask[row]).numpy()
    total = float(estimates.rewards[row].double().numpy()[steps].sum()) if steps.any() else math.nan
    final = _last(estimates.progress, made, row)
    ending = _last(estimates.success, made, row) if estimates.success is not None else final
    score = total if estimates.success is None and estimates.progress is None else ending
    probability, label = np.zeros(0), np.zeros(0)
    if estimates.success is not None:
        told = batch.labels["success"]
        known = told.valid[row].numpy() & estimates.success.valid[row].numpy() & made
        probability = estimates.success.values[row].double().numpy()[known]
        label = told.values[row].double().numpy()[known]
    progress, target = np.zeros(0), np.zeros(0)
    if estimates.progress is not None:
        told = batch.labels["progress"]
        known = told.valid[row].numpy() & estimates.progress.valid[row].numpy() & made
        progress = estimates.progress.values[row].double().numpy()[known]
        target = told.values[row].double().numpy()[known]
    return Reading(
        values=_checked(values[counts & _evaluated(batch, row)], batch, row),
        score=score,
        total=total,
        final=final,
        probability=probability,
        label=label,
        progress=progress,
        target=target,
    )


def _checked(values: Float[np.ndarray, " K"], batch: TrajectoryBatch, row: int) -> Float[np.ndarray, " K"]:
    if not np.isfinite(values).all():
        raise ValueError(
            f"the model's value of episode {int(batch.episode[row])} is not a number: it must mark what it does not "
            "know as invalid"
        )
    return values


def _clock(batch: TrajectoryBatch, estimates: RewardEstimates, row: int) -> Reading:
    """Give t / T wherever the model has a value: what a stopwatch without a model says."""
    time = np.arange(batch.mask.shape[1] + 1) / max(1, int(batch.observed[row].sum()) - 1)
    counts = _values(batch, estimates, row)[1] & _evaluated(batch, row)
    known = np.zeros_like(counts)
    if estimates.success is not None:
        known = batch.labels["success"].valid[row].numpy() & estimates.success.valid[row].numpy() & _made(batch, row)
    aimed = np.zeros_like(counts)
    if estimates.progress is not None:
        aimed = batch.labels["progress"].valid[row].numpy() & estimates.progress.valid[row].numpy() & _made(batch, row)
    return Reading(
        values=time[counts],
        score=1.0,
        total=1.0,
        final=1.0,
        probability=time[known],
        label=batch.labels["success"].values[row].double().numpy()[known],
        progress=time[aimed],
        target=batch.labels["progress"].values[row].double().numpy()[aimed],
    )
