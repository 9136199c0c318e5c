"""Figures about critics: by hand, and against slow loops."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from guerdon.evaluation.critics.diagnostics import (
    calibration,
    chunk_ranking_auc,
    effective_sample_share,
    ensemble_correlation,
    over_estimation,
    rank_correlation,
    rank_correlation_interval,
    resampled,
    spanning_share,
    spread_error_correlation,
    td_residual_by_source,
)

NAN = math.nan


def test_calibration_by_hand():
    # y = 1 + 2x at x = 0, 1, 2 with errors +1, −2, +1 that are orthogonal to 1 and x: the line stays. NaN is left out.
    found = calibration([0.0, 1.0, 2.0, 9.0], [2.0, 1.0, 6.0, NAN], bins=3)
    assert found.slope == pytest.approx(2) and found.intercept == pytest.approx(1) and found.n == 3
    assert found.mean_error == pytest.approx((0 + 1 + 2 - 9) / 3)
    assert [(b.count, b.predicted, b.observed) for b in found.bins] == [(1, 0, 2), (1, 1, 1), (1, 2, 6)]


def test_calibration_of_a_constant_or_of_nothing_is_undefined():
    constant = calibration([1.0, 1.0, 1.0], [0.0, 1.0, 5.0])
    assert math.isnan(constant.slope) and math.isnan(constant.intercept)
    assert constant.mean_error == pytest.approx(-1) and [b.count for b in constant.bins] == [3]
    nothing = calibration([NAN], [1.0])
    assert nothing.n == 0 and math.isnan(nothing.mean_error) and nothing.bins == ()
    with pytest.raises(ValueError, match="as many of both, got 2 and 1"):
        calibration([1.0, 2.0], [1.0])


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_calibration_against_numpy_and_bins_hold_everything_once(seed, bins):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 9, 40).astype(float)  # with ties
    y = 0.5 * x + generator.normal(size=40)
    found = calibration(x, y, bins)
    slope, intercept = np.polyfit(x, y, 1)
    assert found.slope == pytest.approx(slope) and found.intercept == pytest.approx(intercept)
    assert sum(b.count for b in found.bins) == 40 and len(found.bins) <= bins
    assert sum(b.count * b.observed for b in found.bins) == pytest.approx(y.sum())
    middles = [b.predicted for b in found.bins]
    assert middles == sorted(middles)


def test_rank_correlation_by_hand_and_against_scipy():
    # Ranks 1 2 3 4 against 2 1 3 4: 1 − 6·(1 + 1)/(4·15) = 0.8.
    assert rank_correlation([1, 5, 6, 9.0], [10, 2, 11, 12.0]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, NAN, 3.0], [1, 4, 9, 16.0]) == pytest.approx(1)
    assert math.isnan(rank_correlation([1, 1.0], [1, 2.0])) and math.isnan(rank_correlation([1.0], [2.0]))
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.integers(0, 5, (2, 30)).astype(float)
        expected: Any = spearmanr(x, y)
        assert rank_correlation(x, y) == pytest.approx(expected.statistic)


def test_the_interval_resamples_episodes_not_steps():
    generator = np.random.default_rng(1)
    x = np.repeat(generator.normal(size=12), 40)  # an episode is one number, 40 times over
    y = np.repeat(x[::40] + generator.normal(size=12), 40)
    episodes = np.repeat(np.arange(12), 40)
    clustered = rank_correlation_interval(x, y, episodes, samples=300)
    naive = rank_correlation_interval(x, y, np.arange(480), samples=300)
    assert clustered.low < clustered.value < clustered.high and clustered.n == 480
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)  # √40 = 6 times the evidence that there is
    alone = rank_correlation_interval(x[:40], np.arange(40.0), episodes[:40])
    assert math.isnan(alone.low)


def test_resampling_is_that_of_whole_clusters():
    seen = []
    resampled(lambda places: float(seen.append(sorted(places.tolist())) or 0), ["b", "a", "b"], samples=50)
    # Two clusters, {1} and {0, 2}, drawn twice: these three draws and no other.
    assert {tuple(s) for s in seen} == {(1, 1), (0, 1, 2), (0, 0, 2, 2)}


def test_over_estimation_by_hand():
    found = over_estimation([1.0, 2.0, NAN, 6.0], [0.0, 0.0, 3.0, 3.0], ["a", "a", "b", "c"])
    assert found.value == pytest.approx((1 + 2 + 3) / 3) and found.n == 3
    # Clusters of sums 3 (of two) and 3 (of one): means 1.5, 3, and 2 where both are drawn.
    assert (found.low, found.high) == (1.5, 3.0)


def slow_auc(q, g):
    shares = []
    for scores, returns in zip(q, g, strict=True):
        points = []
        for i, j in combinations(range(len(scores)), 2):
            if np.isnan([scores[i], scores[j], returns[i], returns[j]]).any() or returns[i] == returns[j]:
                continue
            right = (scores[i] - scores[j]) * (returns[i] - returns[j])
            points.append(1.0 if right > 0 else 0.5 if right == 0 else 0.0)
        shares.append(sum(points) / len(points) if points else NAN)
    return shares


def test_chunk_ranking_by_hand():
    q = [[3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [5.0, 1.0, 2.0]]
    g = [[3.0, 1.0, 2.0], [0.0, -1.0, NAN], [7.0, 7.0, 7.0]]
    # State 0: right on (0, 1) and (0, 2), wrong on (1, 2). State 1: one pair, a tie. State 2: nothing differs.
    found = chunk_ranking_auc(q, g)
    assert found.by_state[:2].tolist() == [pytest.approx(2 / 3), 0.5] and math.isnan(found.by_state[2])
    assert found.auc == pytest.approx((2 / 3 + 0.5) / 2) and (found.states, found.pairs) == (2, 4)
    # Only (0, 1) of state 0 differs by more than 1.5.
    assert chunk_ranking_auc(q, g, margin=1.5).pairs == 1
    assert math.isnan(chunk_ranking_auc([[1.0, 2.0]], [[3.0, 3.0]]).auc)
    with pytest.raises(ValueError, match="one shape"):
        chunk_ranking_auc([[1.0]], [[1.0, 2.0]])


@given(st.integers(0, 10_000))
def test_chunk_ranking_against_a_slow_loop(seed):
    generator = np.random.default_rng(seed)
    q, g = generator.integers(0, 4, (2, 6, 5)).astype(float)
    g[generator.random(g.shape) < 0.2] = NAN
    found, wanted = chunk_ranking_auc(q, g), np.array(slow_auc(q, g))
    assert np.allclose(found.by_state, wanted, equal_nan=True)
    assert found.auc == pytest.approx(np.nanmean(wanted))
    assert chunk_ranking_auc(-q, g).auc == pytest.approx(1 - found.auc)


def test_residuals_by_source_by_hand():
    found = td_residual_by_source([1.0, -1.0, 3.0, NAN, 2.0], [0, 0, 7, 7, 0])
    assert found[0].mean == pytest.approx(2 / 3) and found[0].rms == pytest.approx(math.sqrt(2)) and found[0].n == 3
    assert (found[7].mean, found[7].rms, found[7].n) == (3, 3, 1)
    assert td_residual_by_source([NAN], [2]) == {}


def test_ensemble_correlation_by_hand_and_by_pairs():
    # (1 2 3) with (2 4 6) is 1, each with (3 2 1) −1: (1 − 1 − 1) / 3.
    assert ensemble_correlation([[1, 2, 3], [2, 4, 6], [3, 2, 1.0]]) == pytest.approx(-1 / 3)
    assert math.isnan(ensemble_correlation([[1.0, 2.0]]))
    assert math.isnan(ensemble_correlation([[1.0, 2.0], [3.0, 3.0]]))
    generator = np.random.default_rng(0)
    members = generator.normal(size=(4, 50)) + generator.normal(size=50)
    members[2, 7] = NAN
    kept = np.delete(members, 7, axis=1)
    pairs = [np.corrcoef(kept[i], kept[j])[0, 1] for i, j in combinations(range(4), 2)]
    assert ensemble_correlation(members) == pytest.approx(np.mean(pairs))


def test_members_that_share_noise_are_told_from_independent_ones():
    # Var of the shared part 9, of each own 1: ρ = 0.9 (case E4).
    generator = np.random.default_rng(0)
    members = 3 * generator.normal(size=20_000) + generator.normal(size=(2, 20_000))
    assert ensemble_correlation(members) == pytest.approx(0.9, abs=0.01)
    # E[min] of two with ρ = 0.9, in their deviation √10: −0.1784.
    assert members.min(0).mean() / math.sqrt(10) == pytest.approx(-0.1784, abs=0.03)


def test_spread_against_error():
    # Spreads 0, 1, 2 and errors of the mean 0, 1, 5: the same order.
    members = [[1.0, 2.0, 5.0], [1.0, 4.0, 9.0]]
    assert spread_error_correlation(members, [1.0, 4.0, 2.0]) == pytest.approx(1)
    assert spread_error_correlation(members, [6.0, 4.0, 7.0]) == pytest.approx(-1)
    assert math.isnan(spread_error_correlation(members[:1], [1.0, 4.0, 2.0]))


def test_effective_sample_share_by_hand():
    # (1 + 1 + 2)² / (3 · (1 + 1 + 4)) = 16 / 18.
    assert effective_sample_share([1.0, 1.0, 2.0]) == pytest.approx(16 / 18)
    assert effective_sample_share([5.0] * 7) == pytest.approx(1)
    assert effective_sample_share([0.0, 3.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert effective_sample_share([1e200, 1e200, NAN]) == pytest.approx(1)
    assert math.isnan(effective_sample_share([0.0, 0.0])) and math.isnan(effective_sample_share([]))
    with pytest.raises(ValueError, match="weights of 0 or more"):
        effective_sample_share([1.0, -1.0])


def test_spanning_share_by_hand_and_against_a_loop():
    replan = np.array([[1, 0, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
    # Chunks of 2: only that of step 1 in row 0 goes past the re-plan at step 2, of seven.
    assert spanning_share(replan, mask, 2) == pytest.approx(1 / 7)
    assert spanning_share(replan, mask, 3) == pytest.approx(2 / 7)
    assert spanning_share(replan, mask, 1) == 0
    assert math.isnan(spanning_share(replan, np.zeros_like(mask), 2))
    generator = np.random.default_rng(3)
    flags, real = generator.random((5, 9)) < 0.3, np.arange(9) < generator.integers(1, 10, (5, 1))
    for horizon in range(1, 12):
        spans = [any(flags[b, t + 1 : min(t + horizon, real[b].sum())]) for b in range(5) for t in range(real[b].sum())]
        assert spanning_share(flags, real, horizon) == pytest.approx(np.mean(spans))
