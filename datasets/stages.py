"""Stages of an episode, from annotations or a task decomposer: their fractions, their shares and their column."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from .episodes import Column, Episode

STAGE, FRACTION = "stage", "stage_fraction"


def stage_fraction(stage: Shaped[np.ndarray, " K"], valid: Bool[np.ndarray, " K"], completed: bool) -> Column:
    """Compute the fraction of its current stage that has passed at each observation, linear in time.

    This is τ of SARM (Chen et al. 2025, arXiv:2509.25358, §IV-A). A run of one stage is complete where a later stage
    follows it, or at the end of an episode that succeeded. The fraction of an incomplete run is unknown, and so is that
    of a run next to observations without a stage; both are invalid.

    Args:
        stage: Index 0, 1, … of the stage at each of T + 1 observations.
        valid: Whether each index is known, (T+1,).
        completed: Whether the episode succeeded, and so completed its last stage at its last observation.

    Returns:
        Column (T+1,), float32 in [0, 1]. Two equal runs that touch count as one.
    """
    count = len(stage)
    fraction, known = np.zeros(count, np.float32), np.zeros(count, bool)
    if completed and not valid[-1] and count > 1 and valid[-2]:
        return _cut(stage_fraction(stage[:-1], valid[:-1], True))  # the last observation was not made
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
    """Compute the mean share of the steps that each stage takes in successful episodes, for `LabelFactory`.

    This is ᾱ of SARM (Chen et al. 2025, arXiv:2509.25358, §IV-A).

    Args:
        episodes: Episodes with ``labels["stage"]``; failures, and episodes without a stage at every step, are left out.

    Raises:
        ValueError: If no episode is left.
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
    """Make the column ``labels["stage"]`` of stages given by their first and last observation.

    A stage covers its first observation up to its last, which is excluded because the stage is complete there; only the
    last stage includes it. The stage is unknown at observations outside every stage.

    Args:
        runs: First and last observation of each stage, in order; a stage may begin where the one before ends.
        observations: Number of observations T + 1.

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
