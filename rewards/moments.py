"""Moments of an episode that a vision-language model is shown, and progress that holds between them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.batch import Labelled, RewardEstimates, Sampled, TrajectoryBatch
from .encoded_observations import EncodedObservations


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One evaluated observation."""

    step: int
    """Index of the observation."""
    parts: tuple[str | Tensor, ...]
    """Parts of a prompt: pictures, each behind its camera's name where there are several cameras."""


def each_once(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Return names that were given as a list, each once.

    Args:
        name: Name of the argument, for errors.
        given: List of at least one name. A lone text would be taken for its letters.

    Raises:
        ValueError: If it is a lone text, empty, or holds a name twice.
    """
    if isinstance(given, str):
        raise ValueError(f"{name} {given!r}: expected a list, got one text: write [{given!r}]")
    if not given or len(set(given)) < len(given):
        raise ValueError(f"{name} {list(given)}: expected at least one, each once")
    return tuple(given)


def likely(log_probs: Float[Tensor, "... K"], min_mass: float) -> Bool[Tensor, "..."]:
    """Find where all K answers have a log-probability and are, together, at least as likely as ``min_mass``.

    Where they are less likely, the model would answer something else, and their ranking is not informative.

    Args:
        log_probs: Log-probability of each answer; NaN where it is unknown.
        min_mass: Smallest probability of all answers together, in [0, 1].
    """
    least = math.log(min_mass) if min_mass else -math.inf
    return log_probs.isfinite().all(-1) & (log_probs.logsumexp(-1) >= least)


def moments(batch: TrajectoryBatch, cameras: Sequence[str]) -> list[list[Moment]]:
    """List for every row the moments at which a camera has a frame, each with the last frame of every camera.

    Args:
        batch: Trajectories with frames.
        cameras: Names of the cameras to read.

    Raises:
        ValueError: If the batch holds no frame of any of the cameras.
    """
    held = {c: batch.frames[c].to("cpu") for c in cameras if c in batch.frames}
    if not held:
        raise ValueError(
            f"expected frames of {', '.join(cameras)}, the trajectories hold frames of "
            f"{', '.join(sorted(batch.frames)) or 'no camera'}"
        )
    made = batch.made.cpu()
    return [_row(held, made[row], row, named=len(cameras) > 1) for row in range(len(batch))]


def _row(cameras: Mapping[str, Sampled], made: Bool[Tensor, " Tp1"], row: int, named: bool) -> list[Moment]:
    steps = {camera: [s for s in sampled.step[row].tolist() if s >= 0] for camera, sampled in cameras.items()}
    found: list[Moment] = []
    for step in sorted({s for of in steps.values() for s in of if bool(made[s])}):
        parts: list[str | Tensor] = []
        for camera, sampled in cameras.items():
            place = sum(s <= step for s in steps[camera]) - 1
            if place < 0:
                continue
            # behind a space, or some tokenisers would merge the name with the end of a text before it
            parts += [*([f" {camera.replace(':', ' ')}"] if named else []), sampled.values[row, place]]
        found.append(Moment(step=step, parts=tuple(parts)))
    return found


def steps_of(rows: Sequence[Sequence[Moment]]) -> Int[Tensor, "B K"]:
    """Return the observation indices of the moments of every row, padded with −1; at least one column."""
    step = torch.full((len(rows), max([1, *(len(row) for row in rows)])), -1, dtype=torch.long)
    for number, row in enumerate(rows):
        step[number, : len(row)] = torch.tensor([moment.step for moment in row], dtype=torch.long)
    return step


def held_progress(
    step: Int[Tensor, "B K"],
    values: Float[Tensor, "B K"],
    known: Bool[Tensor, "B K"],
    batch: TrajectoryBatch,
    terms: Mapping[str, Float[Tensor, "B K"]] | None = None,
) -> RewardEstimates:
    """Estimate progress that holds its value between evaluated observations, and reward its change.

    Args:
        step: Observation index of each value; −1 pads.
        values: Progress in [0, 1].
        known: False where there was no answer. Progress is then unknown until the next evaluated observation.
        batch: The trajectories.
        terms: More numbers per evaluated observation, by name, reported at the step that leads to it.
    """
    encoded = EncodedObservations(step=step, hidden=values[..., None])
    batch = encoded.match_device(batch)
    place, there = encoded.last_at_observations(batch)
    valid = there & known.gather(1, place)
    progress = torch.where(valid, values.gather(1, place), 0.0)
    paid = batch.mask & valid[:, 1:] & valid[:, :-1]
    reported = {
        name: torch.where(batch.mask & valid[:, 1:], of.gather(1, place)[:, 1:], 0.0)
        for name, of in (terms or {}).items()
    }
    return RewardEstimates(
        rewards=torch.where(paid, progress[:, 1:] - progress[:, :-1], 0.0),
        valid=paid,
        progress=Labelled(values=progress, valid=valid),
        terms=reported,
    )
