"""Falls in one series of values: by hand, and against a slow loop."""

import math

import numpy as np
import pytest

from guerdon.evaluation.series import drop, largest_fall

NAN = math.nan


def test_drops_and_falls_by_hand():
    assert drop([-3.0, -1.0, -2.0, -6.0]) == -5 and drop([-3.0, NAN, -1.0]) == 2 and math.isnan(drop([1.0]))
    assert largest_fall([0.0, 4.0, 3.0, 5.0, 1.0, 2.0]) == (3, 4)
    assert largest_fall([4.0, NAN, 1.0, 2.0]) == (0, 2)
    assert largest_fall([1.0, 2.0, 2.0]) is None and largest_fall([NAN, 1.0]) is None
    generator = np.random.default_rng(5)
    for _ in range(30):
        values = generator.normal(size=12)
        peak, trough = largest_fall(values) or (0, 0)
        deepest = max(values[i] - values[j] for i in range(12) for j in range(i, 12))
        assert peak <= trough and values[peak] - values[trough] == pytest.approx(deepest)
