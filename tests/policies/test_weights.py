"""Weights by hand, and what they must not depend on: neighbours, units, shifts, what is unknown."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.hub import load_component, save_component
from guerdon.policies.weights import (
    AdvantageMemory,
    Exponential,
    Positive,
    RewardAligned,
    TopShare,
    Weighting,
    aligned_weights,
    effective_share,
    exponential_weights,
    filtered_weights,
)

E = math.e
numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)
EVERY = [Exponential, lambda: Exponential(beta=0.7), Positive, TopShare, RewardAligned]
RUNNING = [Exponential, TopShare, RewardAligned]


def weighed(weighting, advantages, task=None):
    """Weights of a batch that was seen."""
    advantages = torch.as_tensor(advantages, dtype=torch.float32)
    task = torch.zeros(len(advantages), dtype=torch.long) if task is None else torch.as_tensor(task)
    weighting.update(advantages, task)
    return weighting(advantages, task)


# --- by hand --------------------------------------------------------------------------------------------------------


def test_w3_beyond_the_clip_all_count_the_same():
    # Q = (0, 4, 6), V = 0, beta = 1, c = 1, reference 1/3 each: (1, e, e)/(1 + 2e)
    weights = exponential_weights(torch.tensor([0.0, 4.0, 6.0]), 1.0, 1.0)
    assert torch.allclose(weights / weights.sum(), torch.tensor([0.1554, 0.4223, 0.4223]), atol=5e-5)


@given(numbers, st.floats(1e-3, 1e3), st.floats(0.1, 10.0))
def test_w1_weights_lie_within_the_clip_and_are_one_at_no_advantage(advantages, beta, clip):
    advantages = torch.tensor([*advantages, 0.0], requires_grad=True)
    weights = exponential_weights(advantages, beta, clip)
    assert not weights.requires_grad and weights[-1] == 1
    assert (weights >= math.exp(-clip) * (1 - 1e-5)).all() and (weights <= math.exp(clip) * (1 + 1e-5)).all()
    order = advantages.detach().argsort()
    assert (weights[order].diff() >= 0).all(), "a better chunk must not count less"


def test_the_running_temperature_is_the_spread_of_everything_seen():
    weighting = Exponential(kappa=2.0, clip=10.0)
    weighted = weighed(weighting, [1.0, -1.0])  # std (ddof 0) 1, beta 2
    assert weighted.tolist() == pytest.approx([E**0.5, E**-0.5])
    # then 1, -1, 3, -3: mean 0, variance (1 + 1 + 9 + 9)/4 = 5, beta 2·√5
    weighted = weighed(weighting, [3.0, -3.0])
    assert weighted.tolist() == pytest.approx([math.exp(3 / (2 * 5**0.5)), math.exp(-3 / (2 * 5**0.5))], rel=1e-5)


def test_a_filter_keeps_what_is_better_than_expected():
    assert filtered_weights(torch.tensor([-1.0, 0.0, 1e-9, 2.0])).tolist() == [0, 0, 1, 1]
    assert weighed(Positive(threshold=1.0), [-1.0, 1.0, 1.5]).tolist() == [0, 0, 1]


def test_the_best_share_of_everything_seen():
    # ten advantages: the best three, above the seventh (0.7)
    first = torch.arange(1, 11) / 10
    weighting = TopShare(share=0.3)
    assert weighed(weighting, first).tolist() == [0.0] * 7 + [1.0] * 3
    # a batch of bad ones has no best third: of all twenty the best six are 0.5 … 1.0
    assert weighed(weighting, first - 5).tolist() == [0.0] * 10
    assert weighting(first, torch.zeros(10).long()).tolist() == [0.0] * 4 + [1.0] * 6
    # 0.57 · 100 and 0.7 · 90 are a little below 57 and 63 in floating point
    assert weighed(TopShare(share=0.57), torch.arange(100.0)).sum() == 57
    assert weighed(TopShare(share=0.7), torch.arange(90.0)).sum() == 63


def test_each_task_has_a_quantile_of_its_own():
    advantages, task = torch.cat([torch.arange(10.0), 100 + torch.arange(10.0)]), [0] * 10 + [1] * 10
    assert weighed(TopShare(share=0.3), advantages, task).tolist() == ([0.0] * 7 + [1.0] * 3) * 2
    assert weighed(TopShare(share=0.3, per_task=False), advantages, task).tolist() == [0.0] * 14 + [1.0] * 6
    weighting = TopShare()
    with pytest.raises(ValueError, match="no advantage was added yet"):
        weighting(advantages, torch.tensor(task))
    weighting.update(advantages[:10], torch.tensor(task[:10]))
    # a task that nothing is remembered of is compared with all that is
    assert weighting(advantages, torch.tensor(task)).tolist() == [0.0] * 7 + [1.0] * 3 + [1.0] * 10


def test_where_the_best_are_equal_they_are_taken():
    # four of five are the largest, so no 30 % exceeds any threshold
    assert weighed(TopShare(share=0.3), [1.0, 2.0, 2.0, 2.0, 2.0]).tolist() == [0, 1, 1, 1, 1]
    # most are 0 and one of ten is not: zeros are not among the best
    assert weighed(TopShare(share=0.3), [0.0] * 9 + [1.0]).tolist() == [0] * 9 + [1]


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=40, unique=True), st.floats(0.05, 0.95))
def test_the_share_that_is_taken_is_the_one_asked_for(advantages, share):
    advantages = torch.tensor(advantages, dtype=torch.float64)
    weighting = TopShare(share=share)
    weighting.update(advantages, torch.zeros(len(advantages)).long())
    taken = weighting(advantages, torch.zeros(len(advantages)).long()).sum()
    # below one sample the largest is taken, as where many are equal
    assert int(taken) == max(1, int(share * len(advantages) + 1e-6))


def test_gains_count_from_two_deviations_below_the_mean_to_two_above():
    # mean 1, std 2: lower end -3, (gain + 3)/8
    gains = torch.tensor([-9.0, -3.0, 1.0, 3.0, 5.0, 99.0])
    assert aligned_weights(gains, 1.0, 2.0).tolist() == pytest.approx([0, 0, 0.5, 0.75, 1, 1])
    # of 0, 0, 4, 4: mean 2, std 2, lower end -2; and a loss of 1 is dropped: mean -1 … 3
    assert weighed(RewardAligned(), [0.0, 0.0, 4.0, 4.0]).tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75])
    # -1, 3: mean 1, std 2
    assert weighed(RewardAligned(), [-1.0, 3.0]).tolist() == pytest.approx([0, 0.75])
    assert weighed(RewardAligned(drop_losses=False), [-1.0, 3.0]).tolist() == pytest.approx([0.25, 0.75])


def test_effective_share_by_hand():
    # (1 + 2 + 3)²/(1 + 4 + 9)/3 = 36/42
    assert float(effective_share(torch.tensor([1.0, 2.0, 3.0]))) == pytest.approx(36 / 42)
    assert float(effective_share(torch.full((7,), 1e-30))) == pytest.approx(1)
    assert float(effective_share(torch.tensor([0.0, 3e38, 0.0, 0.0]))) == pytest.approx(1 / 4)
    assert float(effective_share(torch.zeros(3))) == 0 and float(effective_share(torch.zeros(0))) == 0


# --- what they must not depend on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", EVERY)
@given(numbers, st.data())
def test_a_weight_does_not_depend_on_its_neighbours(make, advantages, data):
    weighting = make()
    whole = weighed(weighting, advantages)
    advantages, task = torch.tensor(advantages), torch.zeros(len(advantages)).long()
    for index in range(len(advantages)):
        assert weighting(advantages[index : index + 1], task[:1]) == whole[index], "alone it counts something else"
    order = torch.tensor(data.draw(st.permutations(range(len(advantages)))))
    assert torch.equal(weighting(advantages[order], task), whole[order])


@pytest.mark.parametrize("make", RUNNING)
@pytest.mark.parametrize("factor", [1e-6, 1e-2, 1e3])
def test_units_do_not_matter(make, factor):
    advantages = torch.randn(200, generator=torch.Generator().manual_seed(0)) + 0.3
    first, second = weighed(make(), advantages), weighed(make(), advantages * factor)
    assert first.std() > 0.1
    assert torch.allclose(first, second, rtol=1e-4)


@pytest.mark.parametrize("make", [TopShare, lambda: RewardAligned(drop_losses=False)])
def test_a_constant_does_not_matter_where_gains_are_compared(make):
    advantages = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(weighed(make(), advantages), weighed(make(), advantages + 7), atol=1e-5)


def test_a_constant_leaves_the_exponential_temperature_alone():
    """The weights change by one common factor, which renormalising takes out."""
    advantages = 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    ratio = weighed(Exponential(clip=50.0), advantages + 0.3) / weighed(Exponential(clip=50.0), advantages)
    assert ratio.min() > 1.5 and torch.allclose(ratio, ratio[:1].expand(200), rtol=1e-3)


# --- extremes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize(
    "advantages", [[1e30, -1e30, 0.0], [1e30] * 4, [3e38, -3e38], [0.0, 0.0], [-2.5], [1e-40, 0.0], [0.1] * 7]
)
def test_extremes_give_finite_weights(make, advantages):
    weights = weighed(make(), advantages)
    assert weights.isfinite().all() and (weights >= 0).all() and weights.max() <= 20 * (1 + 1e-5)


def test_equal_advantages_say_nothing():
    for advantages in ([0.1] * 7, [-2.5], [1e30] * 3):
        assert weighed(Exponential(), advantages).tolist() == [1.0] * len(advantages)
        assert weighed(TopShare(), advantages).tolist() == [1.0] * len(advantages)
        assert weighed(RewardAligned(drop_losses=False), advantages).tolist() == [0.5] * len(advantages)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(make, wrong):
    weighting, task = make(), torch.zeros(3).long()
    weighting.update(torch.tensor([0.0, 1.0, 2.0]), task)
    with pytest.raises(ValueError, match="1 of 3 advantages are NaN or infinite"):
        weighting(torch.tensor([0.0, wrong, 2.0]), task)


@pytest.mark.parametrize("make", RUNNING)
def test_nothing_can_be_compared_before_something_was_seen(make):
    with pytest.raises(ValueError, match=r"pass those of a whole batch to update\(\)"):
        make()(torch.tensor([1.0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        make().update(torch.tensor([math.nan]), torch.tensor([0]))


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_oldest_are_forgotten():
    memory = AdvantageMemory(4)
    memory.add(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 0]))
    assert memory.held().tolist() == [1, 2, 3] and memory.held(0).tolist() == [1, 3]
    memory.add(torch.tensor([4.0, 5.0]), torch.tensor([1, 1]))
    assert sorted(memory.held().tolist()) == [2, 3, 4, 5] and sorted(memory.held(1).tolist()) == [2, 4, 5]
    memory.add(torch.arange(10.0, 20.0), torch.zeros(10).long())  # evenly spaced: 0, 3, 6, 9
    assert sorted(memory.held().tolist()) == [10, 13, 16, 19]


def test_moments_of_a_slow_loop():
    values = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    memory = AdvantageMemory(64)
    memory.add(values, torch.zeros(50).long())
    mean = sum(values.tolist()) / 50
    std = (sum((v - mean) ** 2 for v in values.tolist()) / 50) ** 0.5
    assert memory.moments() == pytest.approx((mean, std))


@pytest.mark.parametrize("make", EVERY)
def test_saved_and_opened_again_it_weighs_the_same(make, tmp_path):
    weighting = make()
    seen = torch.randn(40, generator=torch.Generator().manual_seed(0))
    before = weighed(weighting, seen)
    save_component(weighting, tmp_path)
    again = load_component(tmp_path)
    assert isinstance(again, Weighting)
    assert torch.equal(again(seen, torch.zeros(40).long()), before)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Exponential(beta=0.0), "positive numbers"),
        (lambda: Exponential(beta=math.nan), "positive numbers"),
        (lambda: Exponential(kappa=-1.0), "positive numbers"),
        (lambda: Exponential(clip=100.0), "the clip at most 80"),
        (lambda: Exponential(memory=0), "at least one advantage"),
        (lambda: Positive(threshold=math.inf), "a finite number"),
        (lambda: TopShare(share=1.0), "between 0 and 1"),
        (lambda: RewardAligned(low=1.0, high=1.0), "low < high"),
        (lambda: exponential_weights(torch.ones(1), 0.0), "positive numbers"),
        (lambda: aligned_weights(torch.ones(1), 0.0, -1.0), "no negative deviation"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
