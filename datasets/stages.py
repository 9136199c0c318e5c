"""Stages of an episode, from annotations or a task decomposer, as progress: how far each is, and what it is worth."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from .episodes import Column, Episode

STAGE, FRACTION = "stage", "stage_fraction"


def stage_fraction(stage: Shaped[np.ndarray, " K"], valid: Bool[np.ndarray, " K"], completed: bool) -> Column:
    """How much of its current stage has passed at each observation, linear in time from 0 to 1.

    A run of one stage is complete where a later stage follows it, or at the end of an episode that succeeded. What a
    run that was broken off had achieved is unknown, as is one next to observations without a stage: those are invalid.
    SARM's τ (Chen et al. 2025, arXiv:2509.25358, §IV-A).

    Args:
        stage: Index 0, 1, … of the stage at each of T + 1 observations.
        valid: Where it is known.
        completed: Whether the episode succeeded, and so completed its last stage at its last observation.

    Returns:
        (T+1,) float32 in [0, 1]. Two equal runs that touch count as one.
    """
    count = len(stage)
    fraction, known = np.zeros(count, np.float32), np.zeros(count, bool)
    if completed and not valid[-1] and count > 1 and valid[-2]:
        return _cut(stage_fraction(stage[:-1], valid[:-1], True))  # the last observation was never made
    edges = [0, *(np.flatnonzero((stage[1:] != stage[:-1]) | (valid[1:] != valid[:-1])) + 1).tolist(), count]
    for start, end in pairwise(edges):
        if start >= end or not valid[start]:
            continue
        last = end == count
        if completed if last else valid[end] and stage[end] > stage[start]:
            length = end - start - 1 if last else end - start  # the last observation of all is the end of its stage
            fraction[start:end] = np.arange(end - start) / length if length else 1.0
            known[start:end] = True
    return Column(values=fraction, valid=known)


def _cut(column: Column) -> Column:
    return Column(values=np.append(column.values, np.float32(0)), valid=np.append(column.valid, False))


def stage_proportions(episodes: Iterable[Episode]) -> list[float]:
    """Mean share of the steps each stage takes in successful episodes (SARM's ᾱ), to pass to `LabelFactory`.

    Args:
        episodes: With ``labels["stage"]``; failures and those without a stage everywhere are left out.

    Raises:
        ValueError: If none is left.
    """
    shares: list[Float32[np.ndarray, " K"]] = []
    for episode in episodes:
        column = episode.labels.get(STAGE)
        if column is None or episode.success is None or episode.success < 1:
            continue
        stage, valid = column.values[:-1].astype(np.int64), column.valid[:-1]  # a stage per step
        if len(stage) and valid.all() and stage.min() >= 0:
            shares.append((np.bincount(stage) / len(stage)).astype(np.float32))
    if not shares:
        raise ValueError('no successful episode holds a stage at every observation: expected labels["stage"]')
    width = max(len(s) for s in shares)
    mean = np.mean([np.pad(s, (0, width - len(s))) for s in shares], axis=0)
    return (mean / mean.sum()).tolist()


def stage_column(runs: Sequence[tuple[int, int]], observations: int) -> Column:
    """Stages given by their first and last observation as a column for ``labels["stage"]``.

    Stage i holds from its first observation up to, not including, its last, at which it is complete; the last stage of
    all includes it. Observations outside every stage are unknown.

    Args:
        runs: (first, last) observation of each stage, in order; a stage may begin where the one before ends.
        observations: T + 1.

    Raises:
        ValueError: If a stage is empty, overlaps the one before or leaves the episode.
    """
    values, valid = np.zeros(observations, np.int64), np.zeros(observations, bool)
    before = 0
    for stage, (first, last) in enumerate(runs):
        if not before <= first < last < observations:
            raise ValueError(
                f"stage {stage} goes from observation {first} to {last}: expected it to begin at {before} or later, to "
                f"end after that, and not beyond observation {observations - 1}"
            )
        span = slice(first, last + 1 if stage == len(runs) - 1 else last)
        values[span], valid[span] = stage, True
        before = last
    return Column(values=values, valid=valid)
