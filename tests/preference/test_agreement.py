"""Agreement of raters: published numbers, slow loops, scikit-learn, and habits worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from guerdon.preference.agreement import (
    choice_counts,
    cohens_kappa,
    find_contradictions,
    fleiss_kappa,
    kappa_of_raters,
    merge_answers,
    summarise_raters,
)
from guerdon.preference.answers import Answer
from guerdon.preference.segments import Segment, SegmentPair

# Fleiss (1971), table 1: 30 patients, 6 psychiatrists, 5 diagnoses.
FLEISS = """
0 0 0 6 0  0 3 0 0 3  0 1 4 0 1  0 0 0 0 6  0 3 0 3 0  2 0 4 0 0  0 0 4 0 2  2 0 3 1 0  2 0 0 4 0  0 0 0 0 6
1 0 0 5 0  1 1 0 4 0  0 3 3 0 0  1 0 0 5 0  0 2 0 3 1  0 0 5 0 1  3 0 0 1 2  5 1 0 0 0  0 2 0 4 0  1 0 2 0 3
0 0 0 0 6  0 1 0 5 0  0 2 0 1 3  2 0 0 4 0  1 0 0 4 1  0 5 0 1 0  4 0 0 0 2  0 2 0 4 0  1 0 5 0 0  0 0 0 0 6
"""
CHOICES = st.sampled_from(["first", "second", "tie"])


def answers(rater: str, choices: str, start: int = 0, **more) -> list[Answer]:
    """Answers to p0, p1, …: f, s, t, k (skip), or a dot for none."""
    names: dict[str, Any] = {"f": "first", "s": "second", "t": "tie", "k": "skip"}
    return [
        Answer(pair=f"p{start + n}", choice=names[c], rater=rater, **more) for n, c in enumerate(choices) if c != "."
    ]


def loop(counts: np.ndarray) -> float:
    """Fleiss' κ, literally: over items, categories and pairs of raters."""
    shares, all_ratings = [], []
    for item in counts.tolist():
        ratings = [category for category, n in enumerate(item) for _ in range(n)]
        if len(ratings) < 2:
            continue
        agree = [a == b for i, a in enumerate(ratings) for j, b in enumerate(ratings) if i != j]
        shares.append(sum(agree) / len(agree))
        all_ratings += ratings
    if not shares or len(set(all_ratings)) == 1:
        return math.nan
    chance = sum((all_ratings.count(category) / len(all_ratings)) ** 2 for category in set(all_ratings))
    return (sum(shares) / len(shares) - chance) / (1 - chance)


def test_fleiss_example():
    counts = np.array([int(n) for n in FLEISS.split()]).reshape(30, 5)
    assert (counts.sum(1) == 6).all()
    assert counts.sum(0).tolist() == [26, 26, 30, 55, 43]
    assert round(fleiss_kappa(counts), 3) == 0.43


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=0, max_size=8))
def test_fleiss_kappa_is_the_loop(rows):
    counts = np.array(rows, dtype=np.int64).reshape(-1, 3)
    assert fleiss_kappa(counts) == pytest.approx(loop(counts), nan_ok=True)


def test_fleiss_kappa_where_it_is_undefined():
    assert math.isnan(fleiss_kappa(np.zeros((0, 3), np.int64)))
    assert math.isnan(fleiss_kappa(np.array([[1, 0, 0], [0, 1, 0]])))
    assert math.isnan(fleiss_kappa(np.array([[3, 0, 0], [2, 0, 0]])))
    assert fleiss_kappa(np.array([[2, 0], [0, 2], [1, 0]])) == 1.0
    with pytest.raises(ValueError, match="at least 0"):
        fleiss_kappa(np.array([[2, -1]]))


@given(st.lists(st.tuples(CHOICES, CHOICES), min_size=1, max_size=20))
def test_cohens_kappa_is_that_of_scikit_learn(items):
    first, second = ([item[side] for item in items] for side in (0, 1))
    found = cohens_kappa(first, second)
    if len(set(first) | set(second)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_cohens_kappa_by_hand():
    # Cohen's 2 × 2 example of 50 grants: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no; p_o = .7, p_e = .5 · .6 + .5 · .4
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa([*first, "y", None], [*second, None, None]) == pytest.approx(0.4)
    assert math.isnan(cohens_kappa([], []))
    assert math.isnan(cohens_kappa(["y"], [None]))
    assert cohens_kappa(["y", "n"], ["n", "y"]) == -1.0
    with pytest.raises(ValueError, match="same items"):
        cohens_kappa(["y"], [])


def test_answers_become_tables_without_skips():
    given = answers("a", "fsk") + answers("b", "ft.s") + answers("c", "f")
    assert choice_counts(given).tolist() == [[3, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert kappa_of_raters(given, "a", "b") == cohens_kappa(["first", "second"], ["first", "tie"])
    assert math.isnan(kappa_of_raters(given, "a", "nobody"))


def test_habits_by_hand():
    given = [*answers("a", "fffsk", seconds=2.0), *answers("b", "fst.f", seconds=3.0), *answers("c", "fsfs.")]
    given.append(Answer(pair="p5", choice="tie", rater="a", seconds=9.0))
    a, b, c = summarise_raters(given)
    assert (a.rater, a.answers, b.answers, c.answers) == ("a", 6, 4, 4)
    assert a.first_share.value == 0.75
    # Clopper–Pearson of 3 out of 4: Beta quantiles
    assert (a.first_share.low, a.first_share.high) == pytest.approx((0.19412, 0.99369), abs=1e-5)
    assert (a.tie_rate, a.skip_rate) == pytest.approx((1 / 5, 1 / 6))
    assert (a.seconds, b.seconds) == (2.0, 3.0)
    assert math.isnan(c.seconds)
    # a: p0 agrees with f f; p1 has s s, not f; p2 has t against f, no majority; p3 agrees with s; p5 has no others
    assert a.majority_agreement.value == pytest.approx(2 / 3)
    # b: p0 agrees; p1 has f s; p2 has f f; p4 has a skip only
    assert b.majority_agreement.value == pytest.approx(1 / 2)
    assert math.isnan(a.self_consistency.value)
    assert math.isnan(a.self_consistency.low)


def test_a_rater_who_only_skips_has_no_rates():
    (summary,) = summarise_raters(answers("a", "kk"))
    assert summary.skip_rate == 1.0
    assert math.isnan(summary.tie_rate)
    assert math.isnan(summary.first_share.value)


def mirrored() -> list[SegmentPair]:
    one, two, three = (Segment(episode=n) for n in range(3))
    return [
        SegmentPair(id="p0", first=one, second=two),
        SegmentPair(id="p1", first=two, second=one),
        SegmentPair(id="p2", first=two, second=three),
        SegmentPair(id="p3", first=two, second=three),
    ]


def test_repetitions_are_found_by_their_segments():
    consistent, turned = summarise_raters(answers("a", "fstt") + answers("b", "fffs"), mirrored())
    assert consistent.self_consistency.value == 1.0
    assert turned.self_consistency.value == 0.0
    (half,) = summarise_raters(answers("a", "fsft"), mirrored())
    assert half.self_consistency.value == 0.5
    (same_name,) = summarise_raters(answers("a", "f") + answers("a", "s"))
    assert same_name.self_consistency.value == 0.0


def test_contradictions_are_found_in_mirror_images_and_repetitions():
    given = answers("a", "ff") + answers("b", "fs") + answers("c", "ft") + answers("a", "..fs")
    assert [(c.earlier.pair, c.later.pair) for c in find_contradictions(given, mirrored())] == [
        ("p0", "p1"),
        ("p2", "p3"),
    ]
    assert find_contradictions(given) == []
    (same,) = find_contradictions(answers("a", "f") + answers("b", "s") + answers("a", "s"))
    assert (same.rater, same.earlier.choice, same.later.choice) == ("a", "first", "second")
    with pytest.raises(ValueError, match=r"rater 'a' chooses 'first' in pair 'p0'.*\(2 such couples\)"):
        merge_answers(given, mirrored())


def test_labels_are_means_over_raters():
    given = answers("a", "ffk") + answers("b", "stk") + answers("c", "fk")
    merged = {one.pair: one for one in merge_answers(given)}
    assert merged["p0"].label == pytest.approx(2 / 3)
    assert merged["p1"].label == 0.75
    assert (merged["p0"].raters, merged["p1"].raters, merged["p1"].skips) == (3, 2, 1)
    assert (merged["p2"].label, merged["p2"].raters, merged["p2"].skips) == (None, 0, 2)


def test_a_rater_counts_once():
    given = answers("a", "f") + answers("a", "t") + answers("b", "s") + answers("a", "k")
    (merged,) = merge_answers(given)
    assert merged.label == pytest.approx((0.75 + 0) / 2)
    assert (merged.raters, merged.skips) == (2, 0)


def test_confidence_weights_raters():
    given = answers("a", "f", confidence=0.75) + answers("b", "s", confidence=0.25)
    assert merge_answers(given, by_confidence=True)[0].label == 0.75
    assert merge_answers(given)[0].label == 0.5
    unsure = answers("a", "f") + answers("b", "s", confidence=0.0)
    assert merge_answers(unsure, by_confidence=True)[0].label == 1.0
    assert merge_answers(answers("a", "f", confidence=0.0), by_confidence=True)[0].label is None
