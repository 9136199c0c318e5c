"""The statistics a LeRobot v3.0 data set carries: per episode, and joined over episodes as ``lerobot`` joins them."""

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Stats = dict[str, np.ndarray]
"""``min``, ``max``, ``mean``, ``std``, quantiles: (D,) float64, or (3, 1, 1) for pictures; ``count``: (1,) int64."""


def vector_stats(values: np.ndarray) -> Stats | None:
    """Statistics of (N, …) numbers, each component on its own; None where there is no number."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    if not len(flat):
        return None
    stats = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
    for name, level in zip(QUANTILES, np.quantile(flat, list(QUANTILES.values()), axis=0), strict=True):
        stats[name] = level
    return stats | {"count": np.array([len(flat)])}


def picture_stats(frames: np.ndarray) -> Stats | None:
    """Statistics of (N, 3, H, W) uint8 pictures per channel, in [0, 1]; every second pixel of large ones is read."""
    if not len(frames):
        return None
    stride = 1 + min(frames.shape[2:]) // 150
    pixels = frames[:, :, ::stride, ::stride].transpose(0, 2, 3, 1).reshape(-1, 3)
    stats = vector_stats(pixels)
    assert stats is not None
    return {
        name: np.array([len(frames)]) if name == "count" else (value / 255).reshape(3, 1, 1)
        for name, value in stats.items()
    }


def join_stats(parts: list[Stats]) -> Stats:
    """Join the statistics of episodes.

    Mean and standard deviation are exact (parallel variance); quantiles are the mean of the episodes' quantiles
    weighted by count, the approximation ``lerobot`` makes too.
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
