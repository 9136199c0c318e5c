"""Predictions of a reward model on episodes as they were recorded, and on episodes with time or instruction altered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.edit import reindex
from ..core.interfaces import RewardModel
from ..datasets.labels import with_progress_targets, with_success_targets
from ..datasets.negatives import reverse_map
from .extraction import clock_prediction, extract_prediction, run_model
from .predictions import MODEL, EpisodePredictions, Prediction


@dataclass(frozen=True, kw_only=True)
class OtherTasks:
    """The instructions of a data set, from which wrong ones are drawn."""

    instructions: Mapping[int, str]
    """Task → one of its instructions."""
    seed: int = 0
    """Random seed of the draw."""

    def wrong_instruction(self, episode: int, task: int, instruction: str) -> tuple[int, str] | None:
        """Draw another task and its instruction for an episode; None where the data set has no other task."""
        others = [t for t, text in sorted(self.instructions.items()) if t != task and text != instruction]
        if not others:
            return None
        other = others[int(np.random.default_rng([self.seed, 1, episode % 2**32]).integers(len(others)))]
        return other, self.instructions[other]


@dataclass(frozen=True, kw_only=True)
class InstructionMatrix:
    """Episodes that are scored under every instruction; each costs one more forward pass per instruction."""

    instructions: Mapping[int, str] = field(default_factory=dict[int, str])
    """Task → its instruction."""
    episodes: frozenset[int] = frozenset()
    """Numbers of the episodes."""


def predict_episodes(
    reward: RewardModel,
    batch: TrajectoryBatch,
    others: OtherTasks,
    qualities: Sequence[str] | None = None,
    seed: int = 0,
    matrix: InstructionMatrix | None = None,
) -> list[EpisodePredictions]:
    """Run a model on a batch of whole episodes and on altered copies of them, and add the clock control.

    The constant control needs all episodes: `with_constant` adds it.

    Args:
        reward: Reward model, on its device and in evaluation mode.
        batch: Whole episodes.
        others: Instructions from which wrong ones are drawn.
        qualities: Quality of each row, empty where unknown; None where all are.
        seed: Random seed of the shuffled playback.
        matrix: Episodes that are scored under the instruction of every task; None for none.

    Raises:
        ValueError: If the model's estimates do not fit the batch, or a value that it marks as valid is not finite.
    """
    labelled = with_progress_targets(with_success_targets(batch))
    plain = run_model(reward, labelled)
    runs = {
        MODEL: (labelled, plain),
        "reversed": _replay(reward, labelled, reverse_map(batch.observed.sum(1), batch.mask.shape[1] + 1)),
        "shuffled": _replay(reward, labelled, shuffle_map(batch, seed)),
    }
    wrong = [
        others.wrong_instruction(int(e), int(t), text)
        for e, t, text in zip(batch.episode, batch.task, batch.instructions, strict=True)
    ]
    if any(w is not None for w in wrong):
        altered = replace(
            labelled,
            instructions=tuple(text if w is None else w[1] for w, text in zip(wrong, batch.instructions, strict=True)),
            task=torch.tensor([int(t) if w is None else w[0] for w, t in zip(wrong, batch.task, strict=True)]),
        )
        runs["wrong_instruction"] = (altered, run_model(reward, altered))
    under = _scores_under_instructions(reward, runs, wrong, matrix or InstructionMatrix())
    found: list[EpisodePredictions] = []
    for row in range(len(batch)):
        predictions = {
            name: extract_prediction(shown, estimates, row)
            for name, (shown, estimates) in runs.items()
            if name != "wrong_instruction" or wrong[row] is not None
        }
        predictions["clock"] = clock_prediction(labelled, plain, row)
        found.append(
            EpisodePredictions(
                episode=int(batch.episode[row]),
                task=int(batch.task[row]),
                instruction=batch.instructions[row],
                success=float(batch.success[row]) if bool(batch.success_known[row]) else math.nan,
                predictions=predictions,
                quality="" if qualities is None else qualities[row],
                under_instruction=under.get(row, {}),
            )
        )
    return found


def _scores_under_instructions(
    reward: RewardModel,
    runs: Mapping[str, tuple[TrajectoryBatch, RewardEstimates]],
    wrong: Sequence[tuple[int, str] | None],
    matrix: InstructionMatrix,
) -> dict[int, dict[int, float]]:
    """Score the episodes of the matrix under each instruction: row → task → final score."""
    batch = runs[MODEL][0]
    rows = [row for row in range(len(batch)) if int(batch.episode[row]) in matrix.episodes]
    found = {row: {int(batch.task[row]): extract_prediction(*runs[MODEL], row).final_score} for row in rows}
    for row in rows:
        other = wrong[row]
        if other is not None and matrix.instructions.get(other[0]) == other[1]:  # this run was made already
            found[row][other[0]] = extract_prediction(*runs["wrong_instruction"], row).final_score
    for task, text in matrix.instructions.items():
        left = [row for row in rows if task not in found[row]]
        if not left:
            continue
        part = batch[left]
        altered = replace(part, instructions=(text,) * len(left), task=torch.full_like(part.task, task))
        estimates = run_model(reward, altered)
        for place, row in enumerate(left):
            found[row][task] = extract_prediction(altered, estimates, place).final_score
    return found


def with_constant(episodes: Sequence[EpisodePredictions]) -> list[EpisodePredictions]:
    """Add the constant control: the share of successes everywhere; as progress, the mean progress label.

    Its calibration is perfect by construction.
    """
    clocks = [e.predictions["clock"] for e in episodes]
    labels = np.concatenate([c.label for c in clocks]) if clocks else np.zeros(0)
    outcomes = np.array([e.success for e in episodes if not math.isnan(e.success)])
    known = labels if len(labels) else outcomes
    constant = float(known.mean()) if len(known) else 0.5
    targets = np.concatenate([c.target for c in clocks]) if clocks else np.zeros(0)
    middle = float(targets.mean()) if len(targets) else 0.5

    def prediction(clock: Prediction) -> Prediction:
        return Prediction(
            values=np.full(len(clock.values), constant),
            score=constant,
            total=constant,
            final=constant,
            probability=np.full(len(clock.label), constant),
            label=clock.label,
            progress=np.full(len(clock.target), middle),
            target=clock.target,
        )

    return [
        replace(e, predictions={**e.predictions, "constant": prediction(c)})
        for e, c in zip(episodes, clocks, strict=True)
    ]


def shuffle_map(batch: TrajectoryBatch, seed: int) -> Int[Tensor, "B Tp1"]:
    """Return a random order of the observations of every row, fixed by the seed and the episode's number; −1 pads."""
    shuffled = torch.full((len(batch), batch.mask.shape[1] + 1), -1)
    for row, made in enumerate(batch.observed.sum(1).tolist()):
        generator = np.random.default_rng([seed, 2, int(batch.episode[row]) % 2**32])
        shuffled[row, :made] = torch.from_numpy(generator.permutation(made))
    return shuffled


def _replay(reward: RewardModel, batch: TrajectoryBatch, time_map: Tensor) -> tuple[TrajectoryBatch, RewardEstimates]:
    altered = reindex(batch, time_map)
    return altered, run_model(reward, altered)
