import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu, trim_mean

from guerdon.core.intervals import wilson_interval
from guerdon.evaluation.aggregate import (
    episodes_to_tell,
    interquartile_mean,
    interquartile_mean_estimate,
    paired_counts,
    paired_episodes_to_tell,
    paired_rates_estimate,
    probability_of_improvement,
    probability_of_improvement_estimate,
    rates_estimate,
    sign_test,
)

SCORES = st.integers(0, 6).map(lambda tenths: tenths / 6)


def tables(rows: st.SearchStrategy[int], columns: int) -> st.SearchStrategy[np.ndarray]:
    return rows.flatmap(lambda r: arrays(np.float64, (r, columns), elements=SCORES))


def slow_iqm(table) -> float:
    flat = sorted(score for row in table for score in row)
    cut = len(flat) // 4
    middle = flat[cut : len(flat) - cut]
    return sum(middle) / len(middle)


def slow_improvement(a, b) -> float:
    """As in rliable's `probability_of_improvement`, pair by pair."""
    tasks = []
    for k in range(len(a[0])):
        points = 0.0
        for x, y in itertools.product(a, b):
            points += 1.0 if x[k] > y[k] else 0.5 if x[k] == y[k] else 0.0
        tasks.append(points / (len(a) * len(b)))
    return sum(tasks) / len(tasks)


def test_interquartile_mean_by_hand():
    # sorted: 0 1 2 3 4 5 6 100; two of eight are cut at either end; (2 + 3 + 4 + 5) / 4
    assert interquartile_mean([[5, 0, 3, 100], [1, 4, 2, 6]]) == 3.5
    # nine scores: floor(9 / 4) = 2 at either end; (2 + 3 + 4 + 5 + 6) / 5
    assert interquartile_mean(np.arange(9.0).reshape(3, 3)) == 4.0


def test_probability_of_improvement_by_hand():
    # task 0: pairs (1,0) (1,1) (2,0) (2,1) give 1 + ½ + 1 + 1 of 4; task 1: (0,0) (0,5) (5,0) (5,5): ½ + 0 + 1 + ½
    a, b = [[1, 0], [2, 5]], [[0, 0], [1, 5]]
    assert probability_of_improvement(a, b) == (3.5 / 4 + 2 / 4) / 2


@given(tables(st.integers(1, 5), 3), tables(st.integers(1, 4), 3))
def test_against_slow_loops_and_the_functions_rliable_calls(a, b):
    assert interquartile_mean(a) == pytest.approx(slow_iqm(a))
    assert interquartile_mean(a) == pytest.approx(trim_mean(np.ravel(a), 0.25))
    assert probability_of_improvement(a, b) == pytest.approx(slow_improvement(a, b))
    u = [mannwhitneyu(a[:, k], b[:, k], alternative="greater")[0] / (len(a) * len(b)) for k in range(3)]
    assert probability_of_improvement(a, b) == pytest.approx(np.mean(u))


@given(tables(st.integers(1, 5), 2), tables(st.integers(1, 5), 2))
def test_reductions(a, b):
    assert probability_of_improvement(a, a) == pytest.approx(0.5)
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1.0)
    assert probability_of_improvement(a + 2, b) == 1.0
    assert interquartile_mean(np.full_like(a, 0.3)) == pytest.approx(0.3)
    assert interquartile_mean(2 * a + 1) == pytest.approx(2 * interquartile_mean(a) + 1)
    assert a.min() <= interquartile_mean(a) <= a.max()


def test_tensors_arrays_lists_and_half_precision():
    table = [[0.25, 0.5], [0.75, 1.0], [0.0, 0.5]]
    for form in (np.array(table, np.float32), torch.tensor(table), torch.tensor(table, dtype=torch.bfloat16)):
        assert interquartile_mean(form) == interquartile_mean(table)
        assert probability_of_improvement(form, table) == 0.5
    assert interquartile_mean(torch.tensor([[True, False]])) == 0.5
    assert isinstance(interquartile_mean(torch.tensor(table)), float)


def test_one_dimension_is_runs_of_one_task():
    assert interquartile_mean([1, 2, 3, 4]) == 2.5
    assert probability_of_improvement([1, 2], [0, 1]) == 3.5 / 4


def test_nan_scores_are_left_out_and_undefined_is_nan():
    nan = math.nan
    assert interquartile_mean([[1.0, nan], [3.0, 2.0]]) == 2.0
    assert probability_of_improvement([[1.0, nan], [nan, nan]], [[0.0, 1.0], [2.0, 1.0]]) == 0.5  # task 1 has no pair
    for empty in ([], [[nan]], np.zeros((0, 3)), np.zeros((3, 0))):
        assert math.isnan(interquartile_mean(empty))
        assert math.isnan(probability_of_improvement(empty, empty))
        assert math.isnan(interquartile_mean_estimate(empty).value)
        assert math.isnan(probability_of_improvement_estimate(empty, empty).high)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="expected a table"):
        interquartile_mean(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="same tasks, got 2 tasks and 3"):
        probability_of_improvement(np.zeros((4, 2)), np.zeros((4, 3)))


def test_interval_of_the_interquartile_mean_resamples_runs_within_tasks():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(10, 4)) + np.array([0.0, 5.0, 10.0, 15.0])
    found = interquartile_mean_estimate(table, samples=2000, seed=1)
    assert found.value == interquartile_mean(table)
    drawn = [
        interquartile_mean(np.stack([table[rng.integers(10, size=10), k] for k in range(4)], 1)) for _ in range(2000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)
    # runs are never moved from task to task: equal runs within each task leave nothing to choose
    same = interquartile_mean_estimate(np.tile([[0.0, 1.0, 2.0, 9.0]], (5, 1)))
    assert same.low == same.value == same.high
    assert interquartile_mean_estimate(table, seed=1, samples=2000) == found


def test_interval_of_the_probability_of_improvement_resamples_both():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (8, 3)) / 3, rng.integers(0, 4, (6, 3)) / 3
    found = probability_of_improvement_estimate(a, b, samples=2000)
    assert found.value == pytest.approx(slow_improvement(a, b))
    drawn = []
    for _ in range(1000):
        x = np.stack([a[rng.integers(8, size=8), k] for k in range(3)], 1)
        y = np.stack([b[rng.integers(6, size=6), k] for k in range(3)], 1)
        drawn.append(slow_improvement(x, y))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.03)


def test_one_run_has_no_interval():
    assert math.isnan(interquartile_mean_estimate([[0.1, 0.5, 0.9]]).low)
    assert math.isnan(probability_of_improvement_estimate([[0.1, 0.5]], [[0.2, 0.4]]).low)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(3)
    truth = 0.5  # every task has the same distribution on both sides
    hits = 0
    for seed in range(200):
        a, b = rng.random((10, 4)), rng.random((10, 4))
        found = probability_of_improvement_estimate(a, b, samples=300, seed=seed)
        hits += found.low <= truth <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_rates_are_resampled_over_episodes_within_tasks():
    easy, hard, half = [1] * 20, [0] * 20, [0, 1] * 10
    found = rates_estimate(interquartile_mean, [easy, hard, half, half])
    assert found.value == 0.5
    assert found.low < 0.5 < found.high
    assert 0.25 < found.low and found.high < 0.75
    sure = rates_estimate(np.mean, [easy, hard])
    assert sure.low == sure.value == sure.high == 0.5
    assert math.isnan(rates_estimate(np.mean, [[1], [0]]).low)


def test_paired_rates_draw_a_start_for_both():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2, 50)
    same = paired_rates_estimate(lambda a, b: float((a - b).mean()), [one], [one])
    assert same.value == same.low == same.high == 0.0  # independent draws would spread
    worse = one.copy()
    worse[np.flatnonzero(one)[:5]] = 0
    found = paired_rates_estimate(lambda a, b: float((a - b).mean()), [one], [worse])
    assert found.value == pytest.approx(0.1)
    assert 0 < found.low < 0.1 < found.high < 0.25


def test_bad_outcomes_are_refused():
    with pytest.raises(ValueError, match="same starts, got 2 outcomes and 3"):
        paired_rates_estimate(lambda a, b: 0.0, [[0, 1]], [[0, 1, 1]])
    with pytest.raises(ValueError, match="task 1: expected at least one outcome"):
        rates_estimate(np.mean, [[0, 1], []])
    with pytest.raises(ValueError, match="same tasks"):
        paired_rates_estimate(lambda a, b: 0.0, [[0, 1]], [[0, 1], [1, 1]])
    with pytest.raises(ValueError, match="none NaN"):
        rates_estimate(np.mean, [[0.0, math.nan]])
    with pytest.raises(ValueError, match="level"):
        rates_estimate(np.mean, [[0, 1]], level=1)
    with pytest.raises(ValueError, match="at least 1 sample"):
        interquartile_mean_estimate([1, 2], samples=0)


def test_episodes_to_tell_matches_the_published_example():
    # 0.5 against 0.6 at α 0.05 and power 0.8, without a continuity correction: the textbook figure is 388 a group
    assert episodes_to_tell(0.1, 0.5) == 388
    assert episodes_to_tell(0.05, 0.5) > 1500
    assert episodes_to_tell(0.05, 0.95) < episodes_to_tell(0.05, 0.5)
    assert episodes_to_tell(1.0, 0.0) <= 4
    assert episodes_to_tell(0.05, 1.0) == episodes_to_tell(0.05, 0.95)


def test_the_number_of_episodes_gives_the_power_that_was_asked_for():
    rng = np.random.default_rng(0)
    for rate, difference in ((0.5, 0.2), (0.7, 0.15)):
        n = episodes_to_tell(difference, rate)
        one, two = rng.binomial(n, rate, 20_000) / n, rng.binomial(n, rate + difference, 20_000) / n
        pooled = (one + two) / 2
        z = (two - one) / np.sqrt(2 * pooled * (1 - pooled) / n)
        assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.02)


def test_the_number_of_paired_starts_gives_the_power_that_was_asked_for():
    rng = np.random.default_rng(0)
    difference, discordant = 0.1, 0.3
    n = paired_episodes_to_tell(difference, discordant)
    wins, losses = (discordant + difference) / 2, (discordant - difference) / 2
    drawn = rng.multinomial(n, [wins, losses, 1 - wins - losses], 20_000)
    z = (drawn[:, 0] - drawn[:, 1]) / np.sqrt(drawn[:, 0] + drawn[:, 1])
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.03)
    assert n < episodes_to_tell(difference, 0.5)
    assert paired_episodes_to_tell(0.1, 0.0) == paired_episodes_to_tell(0.1, 0.1)


@pytest.mark.parametrize("bad", [{"difference": 0}, {"rate": 2}, {"power": 1}, {"level": 0}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="expected 0 < difference"):
        episodes_to_tell(**({"difference": 0.1} | bad))
    with pytest.raises(ValueError, match="expected 0 < difference"):
        paired_episodes_to_tell(
            **({"difference": 0.1, "discordant": 0.2} | ({"discordant": 2} if "rate" in bad else bad))
        )


def test_discordant_starts_and_the_sign_test_by_hand():
    assert paired_counts([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == (2, 1)
    # 5 of 5: 2 · (1/2)^5
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    # 1 of 4: both tails of the binomial (4, ½): P(≤ 1) + P(≥ 3) = 10/16
    assert sign_test(1, 3) == pytest.approx(10 / 16)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) == 1.0


def test_bad_pairs_are_refused():
    with pytest.raises(ValueError, match="same starts"):
        paired_counts([1], [1, 0])
    with pytest.raises(ValueError, match="0 or 1"):
        paired_counts([0.5], [1])
    with pytest.raises(ValueError, match="at least 0"):
        sign_test(-1, 2)


@given(st.integers(1, 60), st.data())
def test_the_success_rate_lies_in_its_wilson_interval(n, data):
    hits = data.draw(st.integers(0, n))
    low, high = wilson_interval(hits, n)
    # by hand: the ends solve |p̂ − p| = z √(p (1 − p) / n)
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(hits / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-4)
