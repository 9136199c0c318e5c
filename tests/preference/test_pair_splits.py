"""Splits of pairs: no episode on both sides, deterministic, and a warning where it cannot be."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.preference.pair_splits import split_pairs

some_pairs = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 25)).filter(lambda pair: pair[0] != pair[1]), max_size=30
)


@given(some_pairs, st.floats(0, 0.9))
def test_every_pair_is_on_one_side_and_no_episode_on_both_unless_warned(pairs, fraction):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        train, val = split_pairs(pairs, fraction)
        assert split_pairs(pairs, fraction) == (train, val)
    assert sorted(train + val) == list(range(len(pairs)))
    left = {episode for place in train for episode in pairs[place]}
    right = {episode for place in val for episode in pairs[place]}
    if not warned:
        assert left.isdisjoint(right)
    if fraction and len(pairs) > 1:
        assert val and train


def test_the_share_is_met_where_pairs_are_separate():
    pairs = [(2 * i, 2 * i + 1) for i in range(50)]
    train, val = split_pairs(pairs, 0.2)
    assert len(train) == 40 and len(val) == 10
    assert split_pairs(pairs, 0.0) == (list(range(50)), [])


def test_one_connected_group_is_split_with_a_warning_that_counts_what_leaks():
    ring = [(i, (i + 1) % 10) for i in range(10)]
    with pytest.warns(UserWarning, match=r"1 connected groups, the largest of 10 pairs; 2 of 2 validation pairs share"):
        train, val = split_pairs(ring, 0.2)
    assert len(train) == 8 and len(val) == 2


def test_a_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match="val_fraction is 1"):
        split_pairs([(0, 1)], 1.0)
