"""Rules that make preference pairs within groups."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.preference.pairs import group_pairs
from guerdon.preference.rules import LengthMatchedPairs, PairCandidates, PairRule, RandomPairs, SuccessPairs

SCORES = [5.0, 4.0, 1.0, 0.0, 2.0, 2.0]
SUCCESS = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
STEPS = [10, 30, 31, 60, 8, 8]
GROUP = [0, 0, 0, 0, 1, 1]


def candidates(scores=SCORES, success=SUCCESS, steps=STEPS, group=GROUP, valid=None):
    return PairCandidates(
        scores=torch.tensor(scores),
        group=torch.tensor(group),
        valid=torch.ones(len(scores), dtype=torch.bool) if valid is None else torch.tensor(valid),
        steps=torch.tensor(steps),
        success=torch.tensor(success),
    )


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


def test_best_against_worst_with_a_cap_keeps_the_widest_pairs():
    assert PairRule(top=2).choose(candidates()) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert PairRule(top=2, cap=1).choose(candidates()) == [(0, 3), (1, 2)]
    assert PairRule(top=1).choose(candidates()) == [(0, 3)]


def test_a_success_gap_can_be_required():
    rows = candidates(success=[0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    assert PairRule(top=2, require_success_gap=True).choose(rows) == [(1, 2)]
    unknown = candidates(success=[float("nan")] * 6)
    assert PairRule(require_success_gap=True).choose(unknown) == []


def test_length_matched_pairs_are_about_equally_long():
    assert LengthMatchedPairs(ratio=1.1).choose(candidates()) == [(1, 2)]
    assert LengthMatchedPairs(ratio=100.0).choose(candidates()) == PairRule().choose(candidates())
    with pytest.raises(ValueError, match=r"ratio 0\.5"):
        LengthMatchedPairs(ratio=0.5)


@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9), st.integers(0, 1)), min_size=1, max_size=8),
    top=st.integers(1, 3),
)
def test_length_matched_pairs_keep_their_promises(rows, top):
    scores, steps = [float(s) for s, _, _ in rows], [n for _, n, _ in rows]
    group = [g for _, _, g in rows]
    made = LengthMatchedPairs(ratio=1.5, top=top).choose(candidates(scores, scores, steps, group))
    assert len(set(made)) == len(made)
    for name in (0, 1):
        own = [(a, b) for a, b in made if group[a] == name]
        better, worse = {a for a, _ in own}, {b for _, b in own}
        assert not better & worse and max(len(better), len(worse), 0) <= top
    assert all(scores[a] > scores[b] and group[a] == group[b] for a, b in made)
    assert all(max(steps[a], steps[b]) <= 1.5 * min(steps[a], steps[b]) for a, b in made)


def test_success_pairs_ignore_the_scores():
    seen = {SuccessPairs(seed=seed).choose(candidates())[0] for seed in range(40)}
    assert seen == {(0, 2), (0, 3), (1, 2), (1, 3)}
    two = SuccessPairs(top=5).choose(candidates())
    assert len(two) == 3 and (4, 5) in two
    assert SuccessPairs().choose(candidates(success=[1.0] * 6)) == []


def test_random_pairs_know_nothing_and_depend_on_the_seed_alone():
    drawn = [RandomPairs(seed=seed).choose(candidates()) for seed in range(200)]
    assert all(len(made) == 2 for made in drawn)
    first = [made[0] for made in drawn]
    assert len(set(first)) == 12  # every ordered pair of four rows comes up
    assert 0.35 < sum(SCORES[a] > SCORES[b] for a, b in first) / len(first) < 0.65
    assert RandomPairs(seed=3).choose(candidates()) == drawn[3]
    assert len(RandomPairs(top=9).choose(candidates())) == 3


@pytest.mark.parametrize("rule", [PairRule(top=2), LengthMatchedPairs(3.0), SuccessPairs(), RandomPairs(top=2)])
def test_rows_that_do_not_count_are_in_no_pair(rule):
    rows = candidates(valid=[True, True, False, True, False, True])
    assert {row for pair in rule.choose(rows) for row in pair} <= {0, 1, 3}


def test_settings_that_make_no_sense_are_refused():
    wrongs: list[dict[str, Any]] = [{"top": 0}, {"margin": -1.0}, {"cap": 0}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PairRule(**wrong)
