"""What a step costs, by hand, and what is taken from data."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End, TrajectoryBatch
from guerdon.core.returns import discounted_returns
from guerdon.rewards.step_cost import StepCost
from guerdon.testing import check_reward_model, reopen, trajectory_batches


def rows(ends, lengths, **more):
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return TrajectoryBatch(
        state=torch.zeros(len(ends), longest + 1, 1),
        actions=torch.zeros(len(ends), longest, 1),
        mask=mask,
        end=torch.tensor([int(e) for e in ends]),
        **more,
    )


def test_every_end_by_hand():
    batch = rows([End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.TAKEOVER, End.CUT], [3, 2, 3, 1, 2])
    priced = StepCost(failure_cost=7.0, scale=1.0)(batch)
    assert priced.rewards.tolist() == [[-1, -1, 0], [-1, -7, 0], [-1, -1, -7], [-7, 0, 0], [-1, -1, 0]]
    assert torch.equal(priced.valid, batch.mask)
    # a time limit that is no failure costs a step, and the rest is for its value to say
    priced = StepCost(failure_cost=7.0, scale=2.0, failures=["failure"])(batch)
    assert priced.rewards.tolist() == [[-0.5, -0.5, 0], [-0.5, -3.5, 0], [-0.5] * 3, [-0.5, 0, 0], [-0.5, -0.5, 0]]


def test_an_unknown_outcome_is_unknown_only_where_it_decides():
    batch = rows([End.TIME_LIMIT, End.CUT, End.TAKEOVER], [2, 2, 2], success_known=torch.zeros(3, dtype=torch.bool))
    priced = StepCost(failure_cost=7.0, scale=1.0)(batch)
    assert priced.valid.tolist() == [[True, False], [True, True], [True, True]]
    assert priced.rewards.tolist() == [[-1, 0], [-1, -1], [-1, -7]]
    # nobody asks for the outcome of a time limit that is no failure
    assert StepCost(failure_cost=7.0, scale=1.0, failures=["failure"])(batch).valid.all()


def test_a_success_that_ran_on_into_its_time_limit_has_not_failed():
    ran_on = rows([End.TIME_LIMIT] * 2, [2, 2], success=torch.tensor([1.0, 0.5]))
    assert StepCost(failure_cost=7.0, scale=1.0)(ran_on).rewards.tolist() == [[-1, -1], [-1, -7]]


def test_cost_and_scale_are_taken_from_each_episode_once():
    reward = StepCost(gamma=0.5)
    batch = rows([End.SUCCESS, End.FAILURE], [3, 5])
    window = replace(batch[1], offset=torch.tensor([2]), length=torch.tensor([5]), episode=torch.tensor([1]))
    reward.fit(iter([batch, window]))
    # C = (3 + 5)/2 = 4; of 5 steps the failed episode returns 1 + .5 + .25 + .125 + .0625 · 4 = 2.125 in magnitude, and
    # its last step alone 4
    assert reward.cost.item() == 4.0 and reward.divisor.item() == 4.0 and bool(reward.fitted)
    assert reward(batch).rewards[1].tolist() == [-0.25, -0.25, -0.25, -0.25, -1.0]
    # without discount: 4 steps and C
    assert StepCost(gamma=1.0).fit([batch]).divisor.item() == 8.0
    # what was given stays: with C = 1, 1 + .5 + .25 + .125 + .0625 = 1.9375
    given = StepCost(failure_cost=1.0, gamma=0.5).fit([batch])
    assert given.cost.item() == 1.0 and given.divisor.item() == 1.9375
    assert StepCost(scale=10.0, gamma=0.5).fit([batch]).divisor.item() == 10.0


@given(trajectory_batches(min_length=1), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([None, 0.0, 3.0]))
def test_returns_of_the_data_lie_between_minus_one_and_zero(batch, gamma, cost):
    reward = StepCost(failure_cost=cost, gamma=gamma).fit([batch])
    returns = discounted_returns(reward(batch).rewards, batch.mask, gamma)
    assert returns.max() <= 0 and returns.min() >= -1 - 1e-6
    worst = End.CUT if cost == 0.0 else End.FAILURE  # a cut costs 1
    failed = replace(batch, end=torch.full_like(batch.end, int(worst)))
    # the bound is met by an episode as long as the longest, at its beginning or at its end
    returns = discounted_returns(reward(failed).rewards, batch.mask, gamma)
    assert returns.min().item() == pytest.approx(-1, abs=1e-5)


@pytest.mark.slow
@given(trajectory_batches())
def test_every_promise_is_kept(batch):
    check_reward_model(StepCost(failure_cost=3.0, scale=5.0), batch)
    if bool((batch.steps > 0).any()):
        check_reward_model(StepCost().fit([batch]), batch)


def test_fitted_numbers_are_saved():
    reward = reopen(StepCost(gamma=0.9).fit([rows([End.FAILURE, End.SUCCESS], [3, 5])]))
    assert bool(reward.fitted) and reward.cost.item() == 4.0
    assert reward.divisor.item() == pytest.approx(3.439 + 0.6561 * 4)  # Σ_{k<4} .9^k and .9^4 · 4
    # what is printed makes the same reward again
    assert str(reward) == "StepCost(failure_cost=4, scale=6.0634, gamma=0.9)"
    assert "not fitted yet" in str(StepCost())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="has no failure cost or no scale yet"):
        StepCost(failure_cost=3.0)(rows([End.SUCCESS], [2]))
    with pytest.raises(ValueError, match="data without an episode"):
        StepCost().fit([])
    with pytest.raises(ValueError, match="'timeout' is no end; expected a list of names out of success, failure"):
        StepCost(failures=["timeout"])
    with pytest.raises(ValueError, match="a success is no failure"):
        StepCost(failures=["success"])
    with pytest.raises(ValueError, match="failure_cost is -1"):
        StepCost(failure_cost=-1.0)
    with pytest.raises(ValueError, match="scale is 0"):
        StepCost(scale=0.0)
    with pytest.raises(ValueError, match="expected 0 … 1"):
        StepCost(gamma=1.5)
