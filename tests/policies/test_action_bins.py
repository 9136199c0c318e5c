"""Bins of actions against arithmetic by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.policies.action_bins import ActionBins


def real(*shape: int):
    return torch.ones(shape, dtype=torch.bool)


def test_centres_are_spread_evenly_from_bound_to_bound():
    assert ActionBins(5).centres(torch.arange(5)[:, None]).flatten().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    apart = ActionBins(3, low=[0.0, -2.0], high=[1.0, 2.0])
    assert apart.centres(torch.tensor([[0, 0], [1, 1], [2, 2]])).tolist() == [[0.0, -2.0], [0.5, 0.0], [1.0, 2.0]]


@given(st.integers(2, 300), st.floats(-5, 5), st.floats(0.01, 10))
def test_a_centre_is_in_its_own_bin(bins, low, span):
    made = ActionBins(bins, low, low + span)
    every = torch.arange(bins)[:, None]
    assert torch.equal(made.nearest(made.centres(every), real(bins)), every)


def test_an_action_goes_to_the_nearest_centre():
    actions = torch.tensor([-1.2, -0.76, -0.74, 0.1, 0.74, 0.76, 1.24])[:, None]
    assert ActionBins(5).nearest(actions, real(7)).flatten().tolist() == [0, 0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("value", [1.27, -1.27, float("inf")])
def test_an_action_more_than_half_a_bin_outside_is_refused(value):
    actions = torch.zeros(2, 3)
    actions[1, 2] = value
    message = r"dimension 2 of an action is \S+, which lies outside of the bins from -1 to 1: .*widen low.* clip"
    with pytest.raises(ValueError, match=message):
        ActionBins(5).nearest(actions, real(2))


def test_the_bounds_in_the_error_are_those_of_the_dimension():
    with pytest.raises(ValueError, match="dimension 1 of an action is 5, which lies outside of the bins from -2 to 2"):
        ActionBins(9, low=[-9.0, -2.0], high=[9.0, 2.0]).nearest(torch.tensor([[5.0, 5.0]]), real(1))


def test_nan_is_refused_and_anything_behind_the_mask_is_not():
    actions = torch.tensor([[0.5], [torch.nan]])
    with pytest.raises(ValueError, match="dimension 0 of an action is nan, which is not a number"):
        ActionBins(5).nearest(actions, real(2))
    assert ActionBins(5).nearest(actions, torch.tensor([True, False])).tolist() == [[3], [0]]


def test_bounds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="bins 1: expected at least 2"):
        ActionBins(1)
    for low, high in ((1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0), ([0.0, 2.0], 1.0)):
        with pytest.raises(ValueError, match="expected finite bounds, the lower one first"):
            ActionBins(5, low, high)
    with pytest.raises(ValueError, match="as many lower as upper bounds, got 2 and 3"):
        ActionBins(5, [0.0, 0.0], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="bounds for 2 action dimensions, and the actions are 4 wide"):
        ActionBins(5, [0.0, 0.0], 1.0).require_dimensions(4)
