"""Falls of one series of values in time."""

import math

import numpy as np

from ..core.arrays import Numbers, as_array


def drop(values: Numbers) -> float:
    """Last value minus the largest one before it, of one episode: far below 0 where something went wrong at the end.

    Returns:
        NaN with fewer than two known values.
    """
    value = as_array(values).ravel().astype(np.float64)
    value = value[~np.isnan(value)]
    return float(value[-1] - value[:-1].max()) if value.size > 1 else math.nan


def largest_fall(values: Numbers) -> tuple[int, int] | None:
    """Where one episode's value falls furthest: (place of the peak, place of the trough); None if it never falls."""
    value = as_array(values).ravel().astype(np.float64)
    known = np.flatnonzero(~np.isnan(value))
    if known.size < 2:
        return None
    fall = np.maximum.accumulate(value[known]) - value[known]
    trough = int(fall.argmax())
    if not fall[trough] > 0:
        return None
    return int(known[value[known][: trough + 1].argmax()]), int(known[trough])


__all__ = ["drop", "largest_fall"]
