"""Reductions of an ensemble's members, and target networks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guerdon.critics.ensembles import Aggregation, aggregate, polyak
from guerdon.testing import reopen

numbers = st.floats(-100, 100, allow_nan=False, width=32)


@given(st.lists(numbers, min_size=2, max_size=2))
def test_of_two_members_the_smaller_is_the_mean_minus_one_deviation(values):
    # E1: with ddof = 0, and so the mean minus std(ddof = 1) / sqrt(2)
    members = torch.tensor(values, dtype=torch.float64)
    smallest = aggregate(members, "min")
    torch.testing.assert_close(aggregate(members, "lcb"), smallest)
    torch.testing.assert_close(members.mean() - members.std(correction=1) / math.sqrt(2), smallest)


@pytest.mark.slow
@given(st.lists(numbers, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_bounds_of_the_smallest_member(values, random):
    # E2: mean - sqrt(K-1) std <= min <= mean - std / sqrt(K-1); order does not matter; more deviations, lower bound
    members = torch.tensor(values, dtype=torch.float64)
    count, mean, std = len(values), members.mean(), members.std(correction=0)
    smallest, slack = aggregate(members, "min"), 1e-9
    assert mean - math.sqrt(count - 1) * std - slack <= smallest <= mean - std / math.sqrt(count - 1) + slack
    random.shuffle(values)
    for how in ("min", "mean", "lcb"):
        torch.testing.assert_close(aggregate(torch.tensor(values, dtype=torch.float64), how), aggregate(members, how))
    bounds = [float(aggregate(members, "lcb", beta)) for beta in (0.0, 0.5, 1, 2.0)]
    assert bounds == sorted(bounds, reverse=True)


def test_equal_members_are_their_value_and_one_member_is_itself():
    for how in ("min", "mean", "lcb"):
        torch.testing.assert_close(aggregate(torch.full((5, 3), -0.1), how), torch.full((3,), -0.1))
        torch.testing.assert_close(aggregate(torch.tensor([[2.0, -3.0]]), how), torch.tensor([2.0, -3.0]))


@pytest.mark.parametrize(("members", "mean"), [(2, -0.5642), (3, -0.8463), (5, -1.1630), (10, -1.5388)])
def test_smallest_of_independent_members(members, mean):
    # E3, within 4 standard errors: the deviation of a minimum is below 0.83
    drawn = torch.randn(members, 200_000)
    assert float(aggregate(drawn, "min").mean()) == pytest.approx(mean, abs=4 * 0.83 / math.sqrt(200_000))


@pytest.mark.parametrize(("correlation", "mean"), [(0.0, -0.5642), (0.5, -0.3989), (0.9, -0.1784)])
def test_members_that_agree_are_hardly_pessimistic(correlation, mean):
    # E4: -0.5642 sqrt(1 - rho)
    shared, own = torch.randn(200_000), torch.randn(2, 200_000)
    members = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    assert float(aggregate(members, "min").mean()) == pytest.approx(mean, abs=4 / math.sqrt(200_000))


@pytest.mark.parametrize(("how", "mean"), [("mean", 0.729), ("min", 0.276)])
def test_the_best_of_four_noisy_candidates_is_over_estimated(how, mean):
    # E5, K = 2: 1.0294 / sqrt(2) for the mean; the smallest member takes away most, not all, of it
    found = aggregate(torch.randn(2, 4, 200_000), how).amax(0)
    assert float(found.mean()) == pytest.approx(mean, abs=0.006)


@pytest.mark.parametrize("members", [torch.zeros(0, 3), torch.zeros(2, 3)])
def test_unknown_reductions_and_empty_ensembles_are_refused(members):
    with pytest.raises((ValueError, TypeError), match=r"expected min, mean or lcb|Expected type"):
        aggregate(members, "min" if len(members) == 0 else "median")  # pyright: ignore[reportArgumentType]


def test_polyak_averages_follow_their_closed_form():
    # E6: after n steps towards a constant, target = phi + (phi0 - phi)(1 - w)^n
    torch.manual_seed(1)
    online, target = nn.Linear(3, 2), nn.Linear(3, 2)
    begin, rate = [p.detach().clone() for p in target.parameters()], 0.05
    for _ in range(30):
        polyak(target, online, rate)
    for now, start, goal in zip(target.parameters(), begin, online.parameters(), strict=True):
        torch.testing.assert_close(now, goal + (start - goal) * 0.95**30)
    polyak(target, online, 1)
    assert torch.equal(target.weight, online.weight)


@pytest.mark.parametrize("how", ["min", "mean", "lcb"])
def test_an_aggregation_reduces_as_it_was_made_to_and_is_saved(how):
    members = torch.tensor([[1.0, 5.0], [3.0, -1.0]])
    wanted = {"min": [1.0, -1.0], "mean": [2.0, 2.0], "lcb": [2.0 - 0.5, 2.0 - 1.5]}[how]
    made = Aggregation(pessimism=how, lcb=0.5)
    assert made(members).tolist() == reopen(made)(members).tolist() == wanted


@pytest.mark.parametrize("wrong", [{"pessimism": "independent"}, {"lcb": -1.0}])
def test_aggregations_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=r"expected min, mean or lcb|Expected type"):
        Aggregation(**wrong)


def test_a_target_network_copies_buffers_and_leaves_shared_parameters_alone():
    online, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    target.weight = online.weight
    with torch.no_grad():
        online.running_mean.fill_(3.0)
        online.bias.fill_(1.0)
    polyak(target, online, 0.25)
    assert target.running_mean.tolist() == [3.0, 3.0]
    assert target.bias.tolist() == [0.25, 0.25]
    assert target.weight.tolist() == [1.0, 1.0]
