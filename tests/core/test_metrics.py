"""Metrics by hand, against scipy, scikit-learn and literal loops, and where they are undefined."""

import math
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from guerdon.core.metrics import (
    average_precision,
    bootstrap_interval,
    expected_calibration_error,
    false_positive_rate,
    instruction_confusion,
    instruction_margin,
    kendall_tau,
    mean_absolute_error,
    pairwise_accuracy,
    quality_ranking,
    reliability_curve,
    robometer_tau_a,
    success_auroc,
    tie_rate,
    value_order_correlation,
)

# Few distinct numbers, so that ties are common; sometimes NaN.
NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, math.nan])
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=25)


def prefix(lengths, steps):
    return torch.arange(steps) < torch.as_tensor(lengths)[:, None]


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, abs=1e-9)


def known(pairs):
    return [(a, b) for a, b in pairs if not (math.isnan(a) or math.isnan(b))]


class TestValueOrderCorrelation:
    def test_by_hand(self):
        values = torch.tensor(
            [
                [0.1, 0.2, 0.4, 9.0],  # L = 2: rising; the 9 is padding
                [3.0, 2.0, 1.0, 0.0],  # L = 3: falling
                [0.0, 0.0, 1.0, 1.0],  # ranks 1.5, 1.5, 3.5, 3.5 against 1…4: cov 4 / √(4 · 5) = 2/√5
                [5.0, 5.0, 5.0, 5.0],  # constant
                [1.0, 2.0, 3.0, 4.0],  # no real step
                [math.nan, 2.0, 1.0, 3.0],  # ranks 2, 1, 3 against 1, 2, 3: ½
            ]
        )
        got = value_order_correlation(values, prefix([2, 3, 3, 3, 0, 3], 3))
        assert got.dtype == torch.float32
        expected = torch.tensor([1.0, -1.0, 2 / math.sqrt(5), math.nan, math.nan, 0.5])
        torch.testing.assert_close(got, expected, equal_nan=True)

    @given(st.lists(st.lists(NUMBERS, min_size=7, max_size=7), min_size=1, max_size=4), st.integers(0, 6))
    def test_scipy(self, rows, length):
        values = np.array(rows)
        got = value_order_correlation(values, prefix([length] * len(rows), 6).numpy())
        for row, result in zip(values, got.tolist(), strict=True):
            real = row[: length + 1] if length else row[:0]
            time = np.arange(len(real))[~np.isnan(real)]
            real = real[~np.isnan(real)]
            undefined = len(real) < 2 or real.min() == real.max()
            found: Any = None if undefined else stats.spearmanr(real, time)
            assert same(result, math.nan if undefined else float(found.statistic))

    def test_valid_counts_evaluated_frames_only(self):
        values = torch.tensor([[0.0, 5.0, 1.0, -5.0, 2.0]])
        valid = torch.tensor([[True, False, True, False, True]])
        assert value_order_correlation(values, prefix([4], 4), valid).item() == 1.0

    @given(st.integers(0, 1000), st.integers(1, 20), st.sampled_from([0.0, math.nan, math.inf]))
    def test_padding_never_matters(self, seed, more, filler):
        torch.manual_seed(seed)
        values, mask = torch.randn(2, 6), prefix([5, 3], 5)
        wide = torch.cat([values.clone(), torch.full((2, more), filler)], 1)
        wide[1, 4:] = filler
        wide_mask = torch.cat([mask, torch.zeros(2, more, dtype=torch.bool)], 1)
        assert torch.equal(value_order_correlation(wide, wide_mask), value_order_correlation(values, mask))

    def test_shapes(self):
        with pytest.raises(ValueError, match="T\\+1"):
            value_order_correlation(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match="valid"):
            value_order_correlation(torch.zeros(2, 3), prefix([2, 2], 2), torch.ones(2, 2, dtype=torch.bool))


class TestKendall:
    def test_by_hand(self):
        # (1,1), (2,3), (3,2): two pairs agree, one does not: 1/3.
        assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
        assert kendall_tau([1, 2, 3], [1, 3, 2], "a") == pytest.approx(1 / 3)
        # x = 1, 1, 2 and y = 1, 2, 3: two concordant, one tie in x. a: 2/3; b: 2/√(2·3).
        assert kendall_tau([1, 1, 2], [1, 2, 3], "a") == pytest.approx(2 / 3)
        assert kendall_tau([1, 1, 2], [1, 2, 3], "b") == pytest.approx(2 / math.sqrt(6))
        assert kendall_tau([1, 1, 1], [1, 2, 3], "a") == 0.0
        assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3], "b"))
        for variant in ("a", "b"):
            assert math.isnan(kendall_tau([1], [1], variant))
            assert math.isnan(kendall_tau([], [], variant))

    @given(PAIRS)
    def test_literal_loop(self, pairs):
        left, right = [a for a, _ in pairs], [b for _, b in pairs]
        real = known(pairs)
        balance = x = y = every = 0
        for i, (a, b) in enumerate(real):
            for c, d in real[:i]:
                every, x, y = every + 1, x + (a != c), y + (b != d)
                balance += int(np.sign(a - c) * np.sign(b - d))
        assert same(kendall_tau(left, right, "a"), balance / every if every else math.nan)
        assert same(kendall_tau(left, right, "b"), balance / math.sqrt(x * y) if x * y else math.nan)

    def test_perfect_order_is_exactly_one(self):
        x = torch.randn(5000)
        assert kendall_tau(x, 2 * x) == kendall_tau(x, 2 * x, "a") == 1.0
        assert kendall_tau(x, -x) == -1.0

    def test_lengths(self):
        with pytest.raises(ValueError, match="as many"):
            kendall_tau([1, 2], [1, 2, 3])


class TestPairwiseAndAuroc:
    def test_by_hand(self):
        # Labels 0, 1, 2, 2, scores 0.1, 0.5, 0.5, 0.4: five pairs; three with the 0 are right, then a tie, ½, and a 0.
        assert pairwise_accuracy([0.1, 0.5, 0.5, 0.4], [0, 1, 2, 2]) == pytest.approx(3.5 / 5)
        assert pairwise_accuracy([3, 3, 3], [0, 1, 2]) == 0.5
        assert math.isnan(pairwise_accuracy([1, 2, 3], [1, 1, 1]))
        assert math.isnan(pairwise_accuracy([], []))
        assert success_auroc([0.9, 0.2, 0.2], [True, False, True]) == pytest.approx(0.75)  # (1 + ½) / 2
        assert math.isnan(success_auroc([0.1, 0.2], [1, 1]))

    @given(PAIRS)
    def test_literal_loop(self, pairs):
        real = known(pairs)
        right = total = 0.0
        for i, (a, b) in enumerate(real):
            for c, d in real[:i]:
                if b != d:
                    total += 1
                    right += 0.5 if a == c else float((a > c) == (b > d))
        got = pairwise_accuracy([a for a, _ in pairs], [b for _, b in pairs])
        assert same(got, right / total if total else math.nan)

    @given(st.lists(st.tuples(NUMBERS, st.sampled_from([0.0, 1.0, math.nan])), max_size=25))
    def test_scikit_learn(self, pairs):
        scores, success = torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
        real = known(pairs)
        classes = [b for _, b in real]
        got = success_auroc(scores, success)
        if len(set(classes)) < 2:
            assert math.isnan(got)
        else:
            assert got == pytest.approx(roc_auc_score(classes, [a for a, _ in real]))

    def test_graded_success_is_refused(self):
        with pytest.raises(ValueError, match="0, 1 or NaN"):
            success_auroc([0.1, 0.2], [0.5, 1.0])


class TestCalibration:
    def test_by_hand(self):
        # Two bins. [0, ½): 0.2 and 0.4 with labels 0, 1: |0.3 − 0.5| = 0.2; [½, 1]: 0.5 and 1.0 with labels 1, 1: 0.25.
        got = expected_calibration_error([0.2, 0.4, 0.5, 1.0], [0, 1, 1, 1], bins=2)
        assert got == pytest.approx(0.5 * 0.2 + 0.5 * 0.25)

    def test_edges_belong_to_the_bin_on_the_right(self):
        # 0.1 and 0.15 share a bin of ten ([0.1, 0.2)): their errors −0.9 and +0.15 partly cancel; 0.05 is alone.
        for edge in (0.1, 0.3, 0.7, 0.29):
            bins = 100 if edge == 0.29 else 10
            for dtype in (np.float32, np.float64):
                inside = np.array([edge, edge + 0.5 / bins], dtype=dtype)
                got = expected_calibration_error(inside, [1, 0], bins)
                assert got == pytest.approx(abs(float(inside.astype(np.float64).mean()) - 0.5), abs=1e-6)
                below = np.array([edge, edge - 0.5 / bins], dtype=dtype)
                expected = (abs(edge - 1) + abs(edge - 0.5 / bins)) / 2
                assert expected_calibration_error(below, [1, 0], bins) == pytest.approx(expected, abs=1e-6)

    def test_last_bin_is_closed(self):
        assert expected_calibration_error([1.0, 0.95], [0, 1], bins=10) == pytest.approx(0.475)  # |0.975 − 0.5|

    @given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), max_size=40), st.integers(1, 20))
    def test_literal_loop(self, pairs, bins):
        got = expected_calibration_error([p for p, _ in pairs], [y for _, y in pairs], bins)
        if not pairs:
            assert math.isnan(got)
            return
        total = 0.0
        for i in range(bins):
            low, high = i / bins, (i + 1) / bins
            here = [(p, y) for p, y in pairs if low <= p < high or (i == bins - 1 and p == 1)]
            if here:
                gap = sum(p for p, _ in here) / len(here) - sum(y for _, y in here) / len(here)
                total += len(here) / len(pairs) * abs(gap)
        assert got == pytest.approx(total, abs=1e-9)

    def test_nan_is_left_out_and_bad_probabilities_are_refused(self):
        assert expected_calibration_error([0.5, math.nan], [1.0, 0.0], 10) == pytest.approx(0.5)
        assert expected_calibration_error(torch.tensor([0.75]), torch.tensor([True])) == 0.25
        with pytest.raises(ValueError, match="prob"):
            expected_calibration_error([1.2], [1])
        with pytest.raises(ValueError, match="bins"):
            expected_calibration_error([0.2], [1], bins=0)


def test_every_kind_of_input_gives_the_same():
    scores, labels = [0.1, 0.7, 0.3, 0.9], [0, 1, 1, 0]
    kinds = [
        (scores, labels),
        (np.array(scores), np.array(labels)),
        (torch.tensor(scores, dtype=torch.float64), torch.tensor(labels)),
    ]
    for metric in (kendall_tau, pairwise_accuracy, success_auroc, expected_calibration_error, bootstrap_interval):
        results = [metric(*kind) for kind in kinds]
        assert results[0] == results[1] == results[2]
    assert isinstance(kendall_tau(torch.randn(5).bfloat16(), torch.arange(5)), float)


@pytest.mark.slow
def test_import_brings_no_scipy():
    code = "import sys, guerdon.core.metrics, guerdon.core.returns, guerdon.core.losses\n"
    code += "print([m for m in ('scipy', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- discrimination at a threshold, precision, error ----------------------------------------------------------------

labelled = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


@given(rows=labelled)
def test_average_precision_is_that_of_scikit_learn(rows):
    from sklearn.metrics import average_precision_score

    scores, success = (np.array(part) for part in zip(*rows, strict=True))
    found = average_precision(scores, success)
    if len(set(success.tolist())) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(success, scores))


def test_average_precision_by_hand():
    # scores 3, 2, 2, 1 with outcomes 1, 0, 1, 0: precision 1 at recall ½, then 2/3 at recall 1
    assert average_precision([3, 2, 2, 1], [1, 0, 1, 0]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([7, 7, 7, 7], [1, 0, 0, 0]) == 0.25, "a constant scores the share of successes"
    assert math.isnan(average_precision([], []))
    assert average_precision([1.0, math.nan, 0.0], [1, 0, 0]) == 1
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        average_precision([1.0], [0.5])


def test_false_positives_by_hand():
    scores, success = [0.9, 0.5, 0.4, 0.5, math.nan], [1, 0, 0, 0, 0]
    assert false_positive_rate(scores, success, 0.5) == pytest.approx(2 / 3), "at the threshold counts as said yes"
    assert false_positive_rate(scores, success, 0.51) == 0
    assert math.isnan(false_positive_rate([0.9], [1], 0.5))


def test_mean_absolute_error_by_hand():
    assert mean_absolute_error([0.0, 0.5, math.nan, 1.0], [0.5, 0.5, 1.0, math.nan]) == 0.25
    assert math.isnan(mean_absolute_error([math.nan], [1.0]))


@given(rows=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30), bins=st.integers(1, 8))
def test_the_calibration_error_is_read_off_the_reliability_curve(rows, bins):
    prob, label = [p for p, _ in rows], [y for _, y in rows]
    mean, happened, count = reliability_curve(prob, label, bins)
    assert count.sum() == len(rows) and np.isnan(mean[count == 0]).all() and np.isnan(happened[count == 0]).all()
    if rows:
        error = np.nansum(count * np.abs(mean - happened)) / len(rows)
        assert expected_calibration_error(prob, label, bins) == pytest.approx(error, abs=1e-12)
    edges = np.arange(bins + 1) / bins
    full = count > 0
    assert (mean[full] >= edges[:-1][full] - 1e-12).all() and (mean[full] <= edges[1:][full] + 1e-12).all()


# --- instructions, quality, comparison ------------------------------------------------------------------------------


def test_instruction_margin_by_hand():
    # columns are videos: 0 beats both, 1 ties with one and loses to one, 2 was asked one instruction beside its own
    matrix = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.6], [math.nan, 0.7, 0.8]]).T
    assert instruction_margin(matrix) == pytest.approx((1 + 0.25 + 1) / 3)
    assert instruction_margin(np.full((3, 3), 0.4)) == 0.5, "a model that does not read is at chance"
    assert math.isnan(instruction_margin([[0.4]])) and math.isnan(instruction_margin(np.full((2, 2), math.nan)))
    assert math.isnan(instruction_margin(np.zeros((0, 0))))
    with pytest.raises(ValueError, match="square"):
        instruction_margin(np.zeros((2, 3)))


def test_filling_gaps_with_zero_would_move_the_margin():
    matrix = np.array([[0.2, math.nan], [0.4, 0.6]])  # video 0 prefers the wrong instruction, video 1 was asked one
    assert instruction_margin(matrix) == 0.0
    assert instruction_margin(np.nan_to_num(matrix)) == 0.5


@given(rows=st.lists(st.tuples(NUMBERS, st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_instruction_confusion_against_a_literal_loop(rows):
    means, counts = instruction_confusion([s for s, _, _ in rows], [r for _, r, _ in rows], [c for _, _, c in rows], 3)
    for r, c in product(range(3), range(3)):
        here = [s for s, a, b in rows if (a, b) == (r, c) and not math.isnan(s)]
        assert counts[r, c] == len(here)
        assert same(float(means[r, c]), sum(here) / len(here) if here else math.nan)


def test_instruction_confusion_refuses_what_lies_outside():
    with pytest.raises(ValueError, match="expected tasks 0 … 1, got 0 … 2"):
        instruction_confusion([1.0], [0], [2], 2)
    with pytest.raises(ValueError, match="as many of each"):
        instruction_confusion([1.0], [0, 1], [0], 2)


@given(seed=st.integers(0, 1000), factor=st.floats(0.1, 10))
def test_instruction_margin_knows_no_scale(seed, factor):
    matrix = np.random.default_rng(seed).random((4, 4))
    assert instruction_margin(matrix) == instruction_margin(factor * matrix - 3)


RANKED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), max_size=12)


@given(rows=RANKED)
def test_robometers_ranking_is_the_mean_over_combinations(rows):
    """Against the literal definition: every combination of one trajectory per level, τ-a of each."""
    means = []
    for task in {t for _, _, t in rows}:
        levels = sorted({q for _, q, t in rows if t == task})
        if len(levels) > 1:
            members = [[s for s, q, t in rows if (q, t) == (level, task)] for level in levels]
            means.append(np.mean([kendall_tau(combo, levels, "a") for combo in product(*members)]))
    found = robometer_tau_a([s for s, _, _ in rows], [q for _, q, _ in rows], [t for _, _, t in rows])
    assert (math.isnan(found) and not means) or found == pytest.approx(np.mean(means))


@given(rows=RANKED)
def test_quality_ranking_is_tau_b_inside_tasks(rows):
    taus = []
    for task in {t for _, _, t in rows}:
        here = [(s, q) for s, q, t in rows if t == task]
        if len({s for s, _ in here}) > 1 and len({q for _, q in here}) > 1:
            tau: Any = stats.kendalltau(*zip(*here, strict=True))
            taus.append(float(tau.statistic))
    found = quality_ranking([s for s, _, _ in rows], [q for _, q, _ in rows], [t for _, _, t in rows])
    assert same(found, float(np.mean(taus)) if taus else math.nan)


def test_rankings_of_names_gaps_constants_and_ties():
    scores, quality, task = [1.0, 2.0, 3.0, math.nan, 5.0], [0, 1, 2, 0, math.nan], ["a", "a", "a", "a", "b"]
    assert quality_ranking(scores, quality, task) == robometer_tau_a(scores, quality, task) == 1
    # a constant ranks nothing: no τ-b, and 0 in τ-a, where ties stay in the denominator
    assert math.isnan(quality_ranking([1.0, 1.0], [0, 1], ["a", "a"]))
    assert robometer_tau_a([1.0, 1.0], [0, 1], ["a", "a"]) == 0
    # levels 0, 1, 1 and scores 0, 0, 1: one pair of different levels ties and one is right, the third ties in level.
    # τ-b: 1 / √(2 untied in score · 2 untied in level); τ-a of the triples: (0 + 1) / 2
    assert quality_ranking([0, 0, 1], [0, 1, 1], [0, 0, 0]) == pytest.approx(0.5)
    assert robometer_tau_a([0, 0, 1], [0, 1, 1], [0, 0, 0]) == 0.5
    for ranking in (quality_ranking, robometer_tau_a):
        assert math.isnan(ranking([], [], [])) and math.isnan(ranking([1.0, 2.0], [1, 1], [0, 0]))
        assert math.isnan(ranking([1.0, 2.0], [0, 1], [0, 1])), "qualities of different tasks are not compared"
        with pytest.raises(ValueError, match="as many of each"):
            ranking([1.0], [0, 1], ["a"])


@given(PAIRS)
def test_tie_rate_against_a_literal_loop(pairs):
    real = known(pairs)
    differ = [(a, c) for i, (a, b) in enumerate(real) for c, d in real[:i] if b != d]
    found = tie_rate([a for a, _ in pairs], [b for _, b in pairs])
    assert same(found, sum(a == c for a, c in differ) / len(differ) if differ else math.nan)


def test_tie_rate_by_hand():
    assert tie_rate([3, 3, 3], [0, 1, 2]) == 1, "a constant ties everywhere"
    assert tie_rate([0.1, 0.5, 0.5, 0.4], [0, 1, 2, 2]) == pytest.approx(1 / 5)
    assert math.isnan(tie_rate([1, 2], [1, 1])) and math.isnan(tie_rate([], []))


# What a metric says of inputs that hold next to nothing: a constant, one class, one entry, nothing, nothing known.
NAN = math.nan
GOLDEN = [
    (kendall_tau, NAN, NAN, NAN),
    (pairwise_accuracy, 0.5, NAN, NAN),
    (tie_rate, 1.0, NAN, NAN),
    (success_auroc, 0.5, NAN, NAN),
    (average_precision, 0.5, NAN, NAN),
    (lambda s, y: false_positive_rate(s, y, 0.5), 1.0, NAN, NAN),
    (mean_absolute_error, 0.5, 0.5, NAN),
    (expected_calibration_error, 0.0, 0.5, NAN),
    (lambda s, y: quality_ranking(s, y, [0] * len(s)), NAN, NAN, NAN),
    (lambda s, y: robometer_tau_a(s, y, [0] * len(s)), 0.0, NAN, NAN),
]


@pytest.mark.parametrize(("metric", "constant", "one_class", "nothing"), GOLDEN)
def test_golden_values_of_degenerate_input(metric, constant, one_class, nothing):
    # a constant ½ against two of each class; its FPR at ½ is 1, since ½ is at the threshold
    assert same(metric([0.5] * 4, [0, 0, 1, 1]), constant)
    assert same(metric([0.5] * 3, [1, 1, 1]), one_class)
    assert same(metric([0.5], [1]), one_class), "one episode is one class"
    assert same(metric([], []), nothing) and same(metric([math.nan] * 3, [0, 1, 1]), nothing)
    assert same(metric([0.5] * 4 + [math.nan, 1.0], [0, 0, 1, 1, 1, math.nan]), constant), (
        "NaN is left out, pair by pair"
    )


def test_golden_reliability_curve_of_degenerate_input():
    mean, happened, count = reliability_curve([0.5] * 4, [0, 1, 1, 1], bins=2)
    assert mean[1] == 0.5 and happened[1] == 0.75 and count.tolist() == [0, 4] and math.isnan(mean[0])
    for prob, label in (([], []), ([math.nan], [1.0])):
        mean, happened, count = reliability_curve(prob, label, bins=3)
        assert np.isnan(mean).all() and np.isnan(happened).all() and not count.any()


def test_metrics_that_compare_nothing_refuse_lengths_that_differ():
    for metric in (tie_rate, mean_absolute_error, average_precision, expected_calibration_error):
        with pytest.raises(ValueError, match="as many"):
            metric([0.5, 0.5], [1])
