"""Intervals by hand, against literal loops and scipy, and where they are undefined."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.intervals import (
    Estimate,
    bootstrap_interval,
    cluster_weights,
    macro_bootstrap,
    mean_estimate,
    paired_bootstrap,
    percentile_interval,
    wilson_estimate,
    wilson_interval,
)


class TestBootstrap:
    def test_two_clusters_by_hand(self):
        # Clusters 0 (one 0) and 1 (three 1s): the pooled mean of a resample is 0 (¼), ¾ (½) or 1 (¼).
        low, high = bootstrap_interval([0, 1, 1, 1], ["a", "b", "b", "b"])
        assert (low, high) == (0.0, 1.0)
        low, high = bootstrap_interval([0, 1, 1, 1], [0, 1, 1, 1], level=0.3)  # 35 % to 65 %: inside the middle half
        assert (low, high) == (0.75, 0.75)

    def test_one_cluster_or_nothing_is_undefined(self):
        for values, clusters in (([1.0, 2.0], [3, 3]), ([], []), ([1.0, math.nan], [0, 1])):
            assert all(math.isnan(x) for x in bootstrap_interval(values, clusters))

    def test_independent_values_match_the_normal_interval(self):
        values = torch.randn(2000)
        low, high = bootstrap_interval(values, torch.arange(2000))
        error = 1.96 * values.std().item() / math.sqrt(2000)
        mean = values.mean().item()
        assert low == pytest.approx(mean - error, abs=0.1 * error)
        assert high == pytest.approx(mean + error, abs=0.1 * error)

    def test_clusters_resampled_whole_widen_the_interval(self):
        # 20 clusters of 50 equal values: the width is that of 20 values, not of 1000.
        centres = np.random.default_rng(0).normal(size=20)
        values, clusters = np.repeat(centres, 50), np.repeat(np.arange(20), 50)
        low, high = bootstrap_interval(values, clusters)
        alone_low, alone_high = bootstrap_interval(centres, np.arange(20))
        assert (low, high) == (pytest.approx(alone_low), pytest.approx(alone_high))
        free_low, free_high = bootstrap_interval(values, np.arange(1000))
        assert high - low > 4 * (free_high - free_low)

    def test_coverage(self):
        # 300 draws of 40 clusters of 3 correlated values with mean 0: a 90 % interval holds it 84 to 94 % of the time.
        generator = np.random.default_rng(1)
        clusters, held = np.repeat(np.arange(40), 3), 0
        for _ in range(300):
            values = np.repeat(generator.normal(size=40), 3) + 0.3 * generator.normal(size=120)
            low, high = bootstrap_interval(values, clusters, level=0.9, samples=300)
            held += low <= 0 <= high
        assert 0.84 <= held / 300 <= 0.94

    def test_seed_nan_and_order(self):
        values, clusters = [1.0, math.nan, 2.0, 4.0, 8.0], [0, 0, 1, 2, 2]
        again = bootstrap_interval(values, clusters, seed=3)
        assert again == bootstrap_interval(values, clusters, seed=3)
        assert again == bootstrap_interval([1.0, 2.0, 4.0, 8.0], [0, 1, 2, 2], seed=3)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="labels"):
            bootstrap_interval([1.0, 2.0], [0])
        with pytest.raises(ValueError, match="level"):
            bootstrap_interval([1.0, 2.0], [0, 1], level=95)


# --- tasks, then trajectories ---------------------------------------------------------------------------------------


def test_macro_counts_tasks_not_trajectories():
    # task a: 0 twice and 1 once, task b: 1; pooled ½, macro (1/3 + 1) / 2
    values, tasks = [0.0, 0.0, 1.0, 1.0, math.nan], ["a", "a", "a", "b", "c"]
    macro, low, high = macro_bootstrap(values, tasks)
    assert macro == pytest.approx((1 / 3 + 1) / 2) and low <= macro <= high
    assert all(math.isnan(x) for x in macro_bootstrap([math.nan], [0]))
    macro, low, high = macro_bootstrap([1.0, 3.0], [0, 0])
    assert macro == 2 and math.isnan(low) and math.isnan(high), "one task says nothing about tasks"
    assert not math.isnan(macro_bootstrap([1.0, 3.0], [0, 0], fixed_tasks=True)[1])
    assert math.isnan(macro_bootstrap([1.0, 3.0], [0, 1], fixed_tasks=True)[1]), "nothing to resample"
    with pytest.raises(ValueError, match="as many of each"):
        macro_bootstrap([1.0], [0, 1])


@pytest.mark.slow
def test_two_stages_against_a_literal_loop():
    generator = np.random.default_rng(0)
    tasks = np.repeat(np.arange(8), [3, 5, 2, 9, 4, 6, 3, 8])
    values = generator.normal(size=8)[tasks] + generator.normal(size=len(tasks))
    drawn = []
    for _ in range(4000):
        means = []
        for task in generator.integers(8, size=8):
            own = values[tasks == task]
            means.append(own[generator.integers(len(own), size=len(own))].mean())
        drawn.append(np.mean(means))
    _, low, high = macro_bootstrap(values, tasks, samples=10_000)
    expected = np.quantile(drawn, [0.025, 0.975])  # about 1.5 wide, and ±0.03 by chance
    assert low == pytest.approx(expected[0], abs=0.08) and high == pytest.approx(expected[1], abs=0.08)
    _, inner_low, inner_high = macro_bootstrap(values, tasks, fixed_tasks=True)
    assert inner_high - inner_low < 0.8 * (high - low), "other trajectories of these tasks vary less than other tasks"


def test_weights_give_the_intervals_of_the_bootstrap():
    values, clusters = np.array([1.0, 5.0, 2.0, 4.0, 8.0]), [0, 0, 1, 2, 2]
    weight = cluster_weights(clusters, 500, seed=3)
    assert (weight[:, 0] == weight[:, 1]).all() and (weight[:, [0, 2, 3]].sum(1) == 3).all()
    drawn = weight @ values / weight.sum(1)
    assert percentile_interval(drawn) == pytest.approx(bootstrap_interval(values, clusters, samples=500, seed=3))
    assert all(math.isnan(x) for x in percentile_interval(np.array([1.0, math.nan, math.nan])))


def test_what_models_share_cancels_in_a_paired_comparison():
    generator = np.random.default_rng(0)
    easy = generator.normal(size=40)  # how easy each of 40 tasks is, ten times what the models differ by
    first = easy + 0.1 + 0.02 * generator.normal(size=40)
    second = easy + 0.02 * generator.normal(size=40)
    difference, low, high = paired_bootstrap(first, second, np.arange(40))
    assert difference == pytest.approx(0.1, abs=0.02) and 0.05 < low < difference < high < 0.15
    apart = [bootstrap_interval(x, np.arange(40)) for x in (first, second)]
    assert apart[0][0] < apart[1][1], "two separate intervals overlap"
    assert paired_bootstrap(first, first, np.arange(40)) == (0, 0, 0)


def test_paired_comparison_leaves_out_what_either_lacks():
    difference, low, high = paired_bootstrap([1.0, math.nan, 3.0], [0.0, 5.0, math.nan], [0, 1, 2])
    assert difference == 1 and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(x) for x in paired_bootstrap([math.nan], [1.0], [0]))
    with pytest.raises(ValueError, match="as many of both"):
        paired_bootstrap([1.0], [1.0, 2.0], [0])


# --- proportions ----------------------------------------------------------------------------------------------------


def test_wilson_by_hand():
    # 2 of 10, z = 1.96: centre (0.2 + 0.19207) / 1.38415 = 0.28326, half 1.96·sqrt(0.016 + 0.0096)/1.38415 = 0.22659
    low, high = wilson_interval(2, 10)
    assert (low, high) == (pytest.approx(0.0567, abs=1e-4), pytest.approx(0.5098, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    assert all(math.isnan(x) for x in wilson_interval(0, 0))
    for hits, count, level in ((3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0)):
        with pytest.raises(ValueError, match=f"got {level} and {hits} of {count}"):
            wilson_interval(hits, count, level)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(trial):
    """Both ends are shares q with |p − q| = z·√(q(1 − q)/n), which is how the interval is defined."""
    hits, count = trial
    for end in wilson_interval(hits, count):
        assert 0 <= end <= 1
        assert abs(hits / count - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)


def test_a_higher_level_widens_the_interval():
    narrow, wide = wilson_interval(37, 100, 0.5), wilson_interval(37, 100, 0.99)
    assert wide[0] < narrow[0] < 0.37 < narrow[1] < wide[1]


# --- numbers with intervals -----------------------------------------------------------------------------------------


def test_an_estimate_of_a_proportion():
    found = wilson_estimate(2, 10)
    assert found.value == 0.2 and (found.low, found.high) == wilson_interval(2, 10)
    nothing = wilson_estimate(0, 0)
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and math.isnan(nothing.high)


def test_an_estimate_of_a_mean():
    found = mean_estimate([1.0, math.nan, 2.0, 6.0])
    assert found.value == 3.0 and (found.low, found.high) == bootstrap_interval([1.0, 2.0, 6.0], [0, 1, 2])
    clustered = mean_estimate([1.0, 2.0, 6.0], ["a", "a", "b"])
    assert (clustered.low, clustered.high) == bootstrap_interval([1.0, 2.0, 6.0], [0, 0, 1])
    assert math.isnan(mean_estimate([]).value) and math.isnan(mean_estimate([math.nan]).value)
    assert mean_estimate([2.0]).value == 2.0 and math.isnan(mean_estimate([2.0]).low), "one value has no interval"


def test_an_estimate_from_resamples():
    found = Estimate.resampled(0.5, np.arange(101) / 100)
    assert (found.value, found.low, found.high) == (0.5, pytest.approx(0.025), pytest.approx(0.975))
    assert math.isnan(Estimate.resampled(0.5, np.zeros(0)).low), "no resample, no interval"
    assert math.isnan(Estimate(value=0.5).low)
