"""Weighted figures are the plain metrics of repeated episodes: weight w is w copies."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.metrics import (
    average_precision,
    instruction_margin,
    pairwise_accuracy,
    robometer_tau_a,
    success_auroc,
    tie_rate,
)
from guerdon.evaluation.weighted import (
    ordered_pairs,
    weighted_auroc,
    weighted_margin,
    weighted_mean,
    weighted_precision,
    weighted_tau_a,
    weighted_tau_b,
)

# weight, score (few values, so that ties are common), label
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12)


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, abs=1e-6)


def copies(rows):
    """Scores and labels with each row as often as its weight says, and the row of weights."""
    score = np.array([s for w, s, _ in rows for _ in range(w)], float)
    label = np.array([y for w, _, y in rows for _ in range(w)], float)
    return score, label, np.array([[w for w, _, _ in rows]], np.float32)


@given(rows=ROWS)
def test_weights_are_copies(rows):
    score, label, weight = copies(rows)
    plain_score, plain_label = np.array([s for _, s, _ in rows], float), np.array([y for _, _, y in rows], float)
    positive = plain_label >= 1
    assert same(float(weighted_mean(weight, plain_score)[0]), float(score.mean()) if len(score) else math.nan)
    assert same(float(weighted_auroc(weight, plain_score, positive)[0]), success_auroc(score, label >= 1))
    assert same(float(weighted_precision(weight, plain_score, positive)[0]), average_precision(score, label >= 1))
    wins, ties, pairs = (float(x[0]) for x in ordered_pairs(weight, plain_score, plain_label, np.zeros(len(rows), int)))
    assert same(wins / pairs if pairs else math.nan, pairwise_accuracy(score, label))
    assert same(ties / pairs if pairs else math.nan, tie_rate(score, label))
    found = float(weighted_tau_a(weight, plain_score, plain_label)[0])
    assert same(found, robometer_tau_a(score, label, np.zeros(len(score))))


@given(rows=ROWS)
def test_tau_b_of_copies_by_a_literal_loop(rows):
    """Copies of one episode tie with one another in score and level, and so drop out of τ-b by themselves."""
    score, level, weight = copies(rows)
    balance = untied_score = untied_level = 0
    for i in range(len(score)):
        for j in range(i):
            balance += int(np.sign(score[i] - score[j]) * np.sign(level[i] - level[j]))
            untied_score, untied_level = untied_score + (score[i] != score[j]), untied_level + (level[i] != level[j])
    expected = balance / math.sqrt(untied_score * untied_level) if untied_score * untied_level else math.nan
    columns = (np.array([row[k] for row in rows], float) for k in (1, 2))
    assert same(float(weighted_tau_b(weight, *columns)[0]), expected)


@given(seed=st.integers(0, 1000))
def test_many_grades_take_another_way_to_the_same_numbers(seed):
    generator = np.random.default_rng(seed)
    label, score = generator.random(12).round(1), generator.integers(0, 4, 12).astype(float)  # ten grades, not few
    task, weight = generator.integers(0, 2, 12), generator.integers(0, 3, (3, 12)).astype(np.float32)
    wins, ties, pairs = ordered_pairs(weight, score, label, task)
    for row in range(3):
        expected = np.zeros(3)
        for i in range(12):
            for j in range(12):
                if task[i] == task[j] and label[i] > label[j]:
                    win = float(score[i] > score[j]) + 0.5 * (score[i] == score[j])
                    expected += weight[row, i] * weight[row, j] * np.array([win, score[i] == score[j], 1.0])
        assert (wins[row], ties[row], pairs[row]) == pytest.approx(tuple(expected))


@given(seed=st.integers(0, 1000))
def test_a_margin_is_that_of_the_mean_column(seed):
    generator = np.random.default_rng(seed)
    under = generator.integers(0, 4, (5, 3)).astype(float)
    under[generator.random((5, 3)) < 0.2] = math.nan
    weight = generator.integers(0, 3, (1, 5)).astype(np.float32)
    kept = np.repeat(under, weight[0].astype(int), axis=0)
    column = np.array([np.nanmean(c) if not np.isnan(c).all() else math.nan for c in kept.T]) if len(kept) else None
    matrix = np.full((3, 3), math.nan)
    if column is not None:
        matrix[:, 1] = column
    matrix[[0, 2], [0, 2]] = math.nan
    assert same(float(weighted_margin(weight, under, 1)[0]), instruction_margin(matrix))


def test_a_resample_without_a_class_is_undefined_not_zero():
    weight = np.array([[1, 1], [0, 2], [0, 0]], np.float32)
    score, positive = np.array([0.9, 0.1]), np.array([True, False])
    for figure in (weighted_auroc, weighted_precision):
        found = figure(weight, score, positive)
        assert found[0] == 1 and np.isnan(found[1:]).all()
    assert np.isnan(weighted_mean(weight, score)[2])
