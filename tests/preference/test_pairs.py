"""Preference pairs within groups."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.preference.pairs import group_pairs


def listed(chosen, rejected):
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def test_group_pairs_by_hand():
    scores = torch.tensor([1.0, 5.0, 3.0, 2.0, 0.0, 7.0])
    group = torch.tensor([4, 4, 4, 4, 1, 1])
    assert listed(*group_pairs(scores, group)) == [(1, 0), (5, 4)]
    assert listed(*group_pairs(scores, group, top=2)) == [(1, 3), (1, 0), (2, 3), (2, 0), (5, 4)]
    assert listed(*group_pairs(scores, group, top=2, margin=2.0)) == [(1, 3), (1, 0), (5, 4)]
    valid = torch.tensor([True, True, True, False, True, False])
    scores[3] = torch.nan
    assert listed(*group_pairs(scores, group, top=9, valid=valid)) == [(1, 0)]


def test_equal_scores_make_no_pair():
    assert listed(*group_pairs(torch.ones(4), torch.zeros(4).long(), top=2)) == []


@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2), st.booleans()), max_size=12),
    top=st.integers(1, 4),
    margin=st.sampled_from([0.0, 1.0]),
)
def test_group_pairs_is_the_literal_loop(rows, top, margin):
    scores = torch.tensor([float(s) for s, _, _ in rows])
    group = torch.tensor([g for _, g, _ in rows]).long()
    valid = torch.tensor([v for _, _, v in rows]).bool()
    expected = []
    for name in dict.fromkeys(g for _, g, _ in rows):
        own = [n for n, (_, g, v) in enumerate(rows) if g == name and v]
        own.sort(key=lambda n: (-rows[n][0], n))
        k = min(top, len(own) // 2)
        best, worst = own[:k], own[len(own) - k :]
        assert not set(best) & set(worst)
        expected += [(a, b) for a, b in itertools.product(best, worst) if rows[a][0] - rows[b][0] > margin]
    hidden = torch.where(valid, scores, torch.nan)
    assert listed(*group_pairs(hidden, group, top, margin, valid)) == expected


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="score of row 1 is nan"):
        group_pairs(torch.tensor([0.0, torch.nan]), torch.zeros(2).long())
    with pytest.raises(ValueError, match="top 0"):
        group_pairs(torch.zeros(2), torch.zeros(2).long(), top=0)
