"""Reward of states and actions: the contract, its inputs, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import TrajectoryBatch
from guerdon.core.sizes import DataSizes, take_sizes
from guerdon.rewards.state_action import StateActionReward
from guerdon.testing import check_reward_model


def rows(lengths=(5, 3, 1), state=3, action=2, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    steps = max(lengths)
    return TrajectoryBatch(
        state=scale * torch.randn(len(lengths), steps + 1, state, generator=draw),
        actions=torch.randn(len(lengths), steps, action, generator=draw),
        mask=torch.arange(steps)[None] < torch.tensor(lengths)[:, None],
    )


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 2))
def test_it_keeps_the_contract(lengths, state, action):
    if state + action == 0:
        state = 1
    batch = rows(tuple(lengths), state, action)
    model = StateActionReward(state, action, hidden=(8,))
    model.fit_normaliser([batch])
    check_reward_model(model, batch)


def test_the_reward_of_a_step_reads_the_state_before_it_and_its_action():
    model: Any = StateActionReward(1, 1, hidden=())
    with torch.no_grad():
        model.network[0].weight.copy_(torch.tensor([[2.0, -3.0]]))
        model.network[0].bias.fill_(0.5)
    batch = TrajectoryBatch(
        state=torch.tensor([[[1.0], [4.0], [9.0]]]),
        actions=torch.tensor([[[1.0], [0.0]]]),
        mask=torch.ones(1, 2, dtype=torch.bool),
    )
    assert model(batch).rewards.tolist() == [[2 * 1 - 3 * 1 + 0.5, 2 * 4 - 0 + 0.5]]


def test_inputs_are_standardised_over_real_steps_and_clipped():
    batch = rows((40, 25), scale=50.0)
    model = StateActionReward(3, 2)
    assert not model.normalised
    model.fit_normaliser([batch[[0]], batch[[1]]])
    assert model.normalised
    read, _ = model.read(batch)
    real = read[batch.mask].double()
    torch.testing.assert_close(real.mean(0), torch.zeros(5).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(real.std(0, correction=0), torch.ones(5).double(), atol=1e-5, rtol=0)
    assert not read[~batch.mask].any()
    far, _ = model.read(replace(batch, state=batch.state * 1e6))
    assert float(far.abs().max()) == 10.0


def test_sizes_come_from_the_data():
    model = StateActionReward()
    with pytest.raises(ValueError, match=r"not built yet, StateActionReward.state_size .*action_size unknown"):
        model(rows())
    take_sizes(model, DataSizes(name="push", state_size=3, action_size=2))
    assert model(rows()).rewards.shape == (3, 5)
    assert model.init_args["state_size"] == 3


def test_other_widths_and_numbers_that_are_none_are_refused():
    model = StateActionReward(3, 2)
    with pytest.raises(ValueError, match="reads states of 3 and actions of 2 numbers, these trajectories have 4 and 2"):
        model(rows(state=4))
    broken = rows()
    broken.actions[0, 1, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        model(broken)
    with pytest.raises(ValueError, match="hold no step"):
        model.fit_normaliser([])
    wrong: Any
    for wrong in ({"state_size": 0, "action_size": 0}, {"state_size": -1, "action_size": 1}):
        with pytest.raises(ValueError, match="not both 0"):
            StateActionReward(**wrong)
    with pytest.raises(ValueError, match="positive widths"):
        StateActionReward(1, 1, hidden=(0,))
