"""Statistics of a LeRobot v3.0 data set: per episode, and joined over episodes as ``lerobot`` joins them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Stats = dict[str, np.ndarray]
"""``min``, ``max``, ``mean``, ``std``, quantiles: (D,) float64, or (3, 1, 1) for pictures; ``count``: (1,) int64."""


def vector_stats(values: np.ndarray) -> Stats | None:
    """Compute the statistics of (N, …) numbers, each component by itself; None where there is no number."""
    if not len(values):
        return None
    flat = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
    for name, level in zip(QUANTILES, np.quantile(flat, list(QUANTILES.values()), axis=0), strict=True):
        stats[name] = level
    return stats | {"count": np.array([len(flat)])}


def picture_stats(frames: np.ndarray) -> Stats | None:
    """Compute the statistics of pictures per channel, exactly, from counts of the 256 levels.

    Args:
        frames: Pictures (N, 3, H, W), uint8.

    Returns:
        Statistics in [0, 1], or None where there is no picture.
    """
    if not len(frames):
        return None
    levels = np.arange(256) / 255
    parts: list[dict[str, float]] = []
    for channel in range(3):
        counts = np.bincount(frames[:, channel].ravel(), minlength=256)
        below = counts.cumsum()
        seen = np.flatnonzero(counts)
        mean = float(counts @ levels / below[-1])
        part = {"min": float(levels[seen[0]]), "max": float(levels[seen[-1]]), "mean": mean}
        part["std"] = float(np.sqrt(counts @ (levels - mean) ** 2 / below[-1]))
        # numpy's default quantile: between the two order statistics around level * (n - 1)
        for name, level in QUANTILES.items():
            at = level * (below[-1] - 1)
            low, high = (levels[np.searchsorted(below, rank, side="right")] for rank in (np.floor(at), np.ceil(at)))
            part[name] = float(low + (at - np.floor(at)) * (high - low))
        parts.append(part)
    stats: Stats = {name: np.array([part[name] for part in parts]).reshape(3, 1, 1) for name in parts[0]}
    return stats | {"count": np.array([len(frames)])}


def join_stats(parts: list[Stats]) -> Stats:
    """Join the statistics of episodes.

    Mean and standard deviation are exact (parallel variance). A quantile is the mean of the episodes' quantiles,
    weighted by count, which is the approximation of ``lerobot``.
    """
    counts = np.array([int(part["count"][0]) for part in parts])
    shape = (-1,) + (1,) * parts[0]["mean"].ndim
    weights = (counts / counts.sum()).reshape(shape)

    def stack(name: str) -> np.ndarray:
        return np.stack([part[name] for part in parts])

    mean = (stack("mean") * weights).sum(0)
    variance = ((stack("std") ** 2 + (stack("mean") - mean) ** 2) * weights).sum(0)
    joined = {"min": stack("min").min(0), "max": stack("max").max(0), "mean": mean, "std": np.sqrt(variance)}
    joined |= {name: (stack(name) * weights).sum(0) for name in QUANTILES}
    return joined | {"count": np.array([counts.sum()])}


def complete_stats(episodes: Sequence[Mapping[str, Stats | None]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Join the statistics of all episodes, and leave no gap in those of an episode.

    ``lerobot`` reads the statistics of every episode when episodes are removed, and accepts numbers only. An episode in
    which nothing of a column is known therefore gets the statistics of the data set, counted as one row.

    Args:
        episodes: Statistics of each episode by column; None where nothing of the column is known.

    Returns:
        Statistics of the data set for ``stats.json``, and those of each episode as columns of the table of episodes.
    """
    names = dict.fromkeys(name for stats in episodes for name in stats)
    whole: dict[str, Stats] = {}
    for name in names:
        parts = [part for stats in episodes if (part := stats.get(name)) is not None]
        if parts:
            whole[name] = join_stats(parts)
    rows: list[dict[str, Any]] = []
    for stats in episodes:
        full = {name: stats.get(name) or joined | {"count": np.ones(1, np.int64)} for name, joined in whole.items()}
        rows.append({f"stats/{n}/{key}": value.tolist() for n, part in full.items() for key, value in part.items()})
    return {name: {key: value.tolist() for key, value in part.items()} for name, part in whole.items()}, rows
