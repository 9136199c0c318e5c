"""Intervals against numbers worked by hand and the equation that defines them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.intervals import wilson_interval


def test_wilson_by_hand():
    # 2 of 10, z = 1.96: centre (0.2 + 0.19207) / 1.38415 = 0.28326, half 1.96·sqrt(0.016 + 0.0096)/1.38415 = 0.22659
    low, high = wilson_interval(2, 10)
    assert (low, high) == (pytest.approx(0.0567, abs=1e-4), pytest.approx(0.5098, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    assert all(math.isnan(x) for x in wilson_interval(0, 0))
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(trial):
    """Both ends are shares q with |p − q| = z·√(q(1 − q)/n), which is how the interval is defined."""
    hits, count = trial
    for end in wilson_interval(hits, count):
        assert 0 <= end <= 1
        assert abs(hits / count - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)
