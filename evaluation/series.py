"""Falls in one series of values over time."""

import math

import numpy as np

from ..core.arrays import Numbers, as_array


def drop(values: Numbers) -> float:
    """Return the last value of an episode minus the largest one before it.

    It is far below 0 where something went wrong at the end.

    Args:
        values: Values in order of time; NaN entries are left out.

    Returns:
        The difference; NaN with fewer than two known values.
    """
    value = as_array(values).ravel().astype(np.float64)
    value = value[~np.isnan(value)]
    return float(value[-1] - value[:-1].max()) if value.size > 1 else math.nan


def largest_fall(values: Numbers) -> tuple[int, int] | None:
    """Find where the value of an episode falls furthest.

    Args:
        values: Values in order of time; NaN entries are left out.

    Returns:
        (place of the peak, place of the trough); None where the value never falls.
    """
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
