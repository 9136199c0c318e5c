"""Unpaired flags and KTO weights: cases by hand, and checks K1 to K5 of the loss with these weights."""

import math
from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.core.losses import kto
from guerdon.preference.flags import (
    Flag,
    adaptive_weights,
    balanced_draw,
    class_weights,
    decision_flags,
    human_steps,
    reference_point,
    step_flags,
    weight_interval,
)

NO, OPEN, YES = Flag.UNDESIRABLE, Flag.UNLABELLED, Flag.DESIRABLE


def rows(*ends: End, steps: int = 6, **fields) -> TrajectoryBatch:
    count = len(ends)
    fields.setdefault("end", torch.tensor([int(end) for end in ends]))
    mask = torch.ones(count, steps, dtype=torch.bool)
    return TrajectoryBatch(
        state=torch.zeros(count, steps + 1, 1), actions=torch.zeros(count, steps, 1), mask=mask, **fields
    )


def test_flags_by_outcome():
    batch = rows(End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.TAKEOVER, End.CUT)
    flags = step_flags(batch, seconds=0.2, rate=10)
    assert flags.tolist() == [
        [YES] * 6,
        [OPEN] * 4 + [NO] * 2,
        [OPEN] * 4 + [NO] * 2,
        [OPEN] * 4 + [NO] * 2,
        [OPEN] * 6,
    ]
    unknown = replace(batch, success_known=torch.zeros(5, dtype=torch.bool))
    assert step_flags(unknown, 0.2, 10)[2].tolist() == [OPEN] * 6  # a time limit without known success
    assert step_flags(unknown, 0.2, 10)[1].tolist() == [OPEN] * 4 + [NO] * 2
    partial = replace(batch, success=torch.full((5,), 0.5), success_known=torch.ones(5, dtype=torch.bool))
    assert step_flags(partial, 0.2, 10)[[0, 2, 4]].eq(OPEN).all()


@pytest.mark.parametrize(("seconds", "rate", "count"), [(0.5, 10, 5), (0.1, 1, 1), (0.5, 3, 2), (9, 10, 6)])
def test_the_window_is_in_seconds(seconds, rate, count):
    flags = step_flags(rows(End.FAILURE), seconds, rate)
    assert flags[0].tolist() == [OPEN] * (6 - count) + [NO] * count


def test_a_window_of_an_episode_knows_where_it_ends():
    offset, length = torch.tensor([0, 4, 7]), torch.tensor([12, 12, 12])
    batch = rows(
        End.CUT,
        End.CUT,
        End.CUT,
        offset=offset,
        length=length,
        success=torch.zeros(3),
        success_known=torch.ones(3, dtype=torch.bool),
    )
    # steps 9 … 11 of 12 are the last three: none of 0 … 5, step 9 of 4 … 9, and 9 … 11 of 7 … 12
    assert step_flags(batch, 3, 1)[:2].tolist() == [[OPEN] * 6, [OPEN] * 5 + [NO]]
    assert step_flags(batch, 3, 1)[2, :5].tolist() == [OPEN, OPEN, NO, NO, NO]


def test_a_person_in_the_row_is_desirable_and_what_led_there_is_not():
    who = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).float()
    track = {"human": Labelled(values=who, valid=torch.ones(3, 6, dtype=torch.bool))}
    batch = rows(End.SUCCESS, End.FAILURE, End.CUT, tracks=track)
    assert step_flags(batch, 2, 1, "human").tolist() == [
        [YES, NO, NO, YES, YES, YES],
        [OPEN, NO, NO, YES, OPEN, OPEN],  # a person's steps in the last two of a failure are unlabelled
        [YES, YES, OPEN, OPEN, OPEN, OPEN],
    ]
    again = {"human": Labelled(values=torch.tensor([[0, 1.0, 0, 1, 0, 0]]), valid=torch.ones(1, 6, dtype=torch.bool))}
    twice = rows(End.CUT, tracks=again)
    assert step_flags(twice, 2, 1, "human").tolist() == [[NO, YES, NO, YES, OPEN, OPEN]]
    unknown = {"human": Labelled(values=who, valid=torch.zeros(3, 6, dtype=torch.bool))}
    assert not human_steps(replace(batch, tracks=unknown), "human").any()
    with pytest.raises(ValueError, match="expected 'robot', found human"):
        human_steps(batch, "robot")


def test_the_row_after_a_take_over_is_the_persons():
    batch = rows(
        End.TAKEOVER,
        End.CUT,
        End.CUT,
        End.CUT,
        episode=torch.tensor([0, 0, 0, 1]),
        offset=torch.tensor([0, 6, 12, 6]),
        length=torch.tensor([18, 18, 18, 12]),
    )
    assert human_steps(batch).any(1).tolist() == [False, True, False, False]
    assert step_flags(batch, 1, 1).tolist() == [[OPEN] * 5 + [NO], [YES] * 6, [OPEN] * 6, [OPEN] * 6]
    assert not human_steps(replace(batch, source=torch.tensor([0, 1, 0, 0]))).any()


def test_padding_and_decisions():
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    batch = TrajectoryBatch(
        state=torch.zeros(2, 7, 1),
        actions=torch.zeros(2, 6, 1),
        mask=mask,
        end=torch.tensor([int(End.FAILURE), int(End.SUCCESS)]),
        decision_step=torch.tensor([[0, 2, 4], [0, 2, -1]]),
    )
    assert step_flags(batch, 1, 1).tolist() == [[OPEN] * 5 + [NO], [YES] * 3 + [OPEN] * 3]
    # the last decision of the failure covers steps 4 and 5, of which 5 is undesirable
    assert decision_flags(batch, 1, 1).tolist() == [[OPEN, OPEN, NO], [YES, YES, OPEN]]
    late = replace(batch, decision_step=torch.tensor([[0, 1, 2], [1, -1, -1]]))
    assert decision_flags(late, 1, 1).tolist() == [[OPEN, OPEN, NO], [YES, OPEN, OPEN]]


def test_a_decision_is_desirable_if_all_its_steps_are():
    who = torch.tensor([[0, 0, 0, 1, 1, 1]]).float()
    track = {"human": Labelled(values=who, valid=torch.ones(1, 6, dtype=torch.bool))}
    batch = rows(End.CUT, tracks=track, decision_step=torch.tensor([[0, 2, 4]]))
    assert decision_flags(batch, 1, 1, "human").tolist() == [[OPEN, NO, YES]]
    handed_back = {"human": Labelled(values=1 - who, valid=torch.ones(1, 6, dtype=torch.bool))}
    assert decision_flags(replace(batch, tracks=handed_back), 1, 1, "human").tolist() == [[YES, OPEN, OPEN]]
    no_steps = rows(End.SUCCESS, steps=2, decision_step=torch.tensor([[-1, -1]]))
    assert decision_flags(no_steps, 1, 1).tolist() == [[OPEN, OPEN]]


def test_numbers_out_of_range_are_refused():
    for seconds, rate in ((0, 1), (1, 0), (math.inf, 1), (math.nan, 1)):
        with pytest.raises(ValueError, match="expected positive numbers"):
            step_flags(rows(End.SUCCESS), seconds, rate)


def test_intervals_of_the_weights():
    assert weight_interval(30, 70) == pytest.approx((7 / 3, 28 / 9))
    low, high = weight_interval(80, 20, weight_undesirable=1)
    assert (1 / high, 1 / low) == pytest.approx((3.0, 4.0))  # λ_U for λ_D = 1
    assert class_weights(30, 70) == pytest.approx((7 / 3, 1.0))
    assert class_weights(80, 20) == pytest.approx((1.0, 3.0))
    assert class_weights(110, 100) == (1.0, 1.0)
    for n_d in range(1, 40):
        for n_u in range(1, 40):
            d, u = class_weights(n_d, n_u)
            assert 1 - 1e-9 <= d * n_d / (u * n_u) <= 4 / 3 + 1e-9
            assert min(d, u) == 1.0


@pytest.mark.parametrize(("n_d", "n_u", "missing"), [(0, 5, "Add desirable"), (5, 0, "Add undesirable")])
def test_one_sided_data_are_refused(n_d, n_u, missing):
    for compute in (class_weights, weight_interval):
        with pytest.raises(ValueError, match=f"one-sided.*{missing}"):
            compute(n_d, n_u)


def gradient(r: float, desirable: bool, beta: float = 0.1, z: float = 0.0, weight: float = 1.0) -> float:
    value = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    kto(value, torch.tensor([desirable]), z, beta, weight, weight).backward()
    assert value.grad is not None
    return float(value.grad)


def test_k1_both_losses_are_one_half_at_the_reference():
    for side in (True, False):
        assert float(kto(torch.zeros(3), torch.tensor([side] * 3), 0.0, 0.1)) == 0.5


def test_k2_gradients():
    # an undesirable chunk that is unlikely already stops pushing: 0.0235 at r = −5 against 0.025 at 0
    assert gradient(0.0, False) == pytest.approx(0.025)
    assert gradient(-5.0, False) == pytest.approx(0.0235, abs=5e-5)
    assert gradient(-5.0, False, beta=1.0) == pytest.approx(0.0066, abs=5e-5)
    assert gradient(0.0, True) == pytest.approx(-0.025)
    assert all(abs(gradient(r, side)) <= 0.025 + 1e-12 for r in (-50.0, -5.0, 0.0, 5.0) for side in (True, False))


def test_k3_the_reference_point_is_not_negative_and_has_no_gradient():
    ratio = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert float(reference_point(ratio)) == 3.0
    assert not reference_point(ratio).requires_grad
    assert float(reference_point(-ratio)) == 0.0
    assert float(reference_point(torch.zeros(0))) == 0.0


def test_k4_relabelling_all_turns_signs_round():
    for r in (-3.0, 0.0, 0.7):
        assert gradient(r, True) == pytest.approx(-gradient(r, False))


def test_k5_adaptive_weights_are_renormalised():
    error, side = torch.tensor([1.0, 3.0, 0.0, 1.0, 3.0]), torch.tensor([True, True, True, False, False])
    weights = adaptive_weights(error, side, 2.0, 0.5)
    # desirable: mean 4/3, relative .75, 2.25, 0 → clipped .75, 2.25, .2 (mean 16/15); undesirable: relative .5, 1.5
    assert weights[side].tolist() == pytest.approx([2 * x * 15 / 16 for x in (0.75, 2.25, 0.2)])
    one, two = math.exp(-0.5), math.exp(-1.5)
    assert weights[~side].tolist() == pytest.approx([one / (one + two), two / (one + two)])
    assert float(weights[side].sum()) == pytest.approx(2.0 * 3)
    assert float(weights[~side].sum()) == pytest.approx(0.5 * 2)


def test_adaptive_weights_of_one_side_and_of_no_error():
    assert adaptive_weights(torch.zeros(3), torch.tensor([True, False, False])).tolist() == [1.0, 1.0, 1.0]
    assert adaptive_weights(torch.tensor([2.0]), torch.tensor([False]), 1, 3).tolist() == [pytest.approx(3.0)]
    error = torch.tensor([1.0], requires_grad=True)
    assert not adaptive_weights(error, torch.tensor([True])).requires_grad
    with pytest.raises(ValueError, match="at least 0"):
        adaptive_weights(torch.tensor([-1.0]), torch.tensor([True]))
    with pytest.raises(ValueError, match="at least 0"):
        adaptive_weights(torch.tensor([1.0]), torch.tensor([True]), -1)


def test_balanced_draws():
    flags = torch.tensor([YES] * 3 + [YES] * 50 + [NO] * 10 + [OPEN] * 20)
    human = torch.tensor([True] * 3 + [False] * 80)
    drawn = balanced_draw(flags, human, 4000, seed=1)
    share = [float(((drawn >= low) & (drawn < high)).float().mean()) for low, high in ((0, 3), (3, 53), (53, 63))]
    assert share == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    assert torch.equal(drawn, balanced_draw(flags, human, 4000, seed=1))
    two = balanced_draw(torch.tensor([YES, YES, OPEN]), torch.tensor([True, False, False]), 4000)
    assert float((two == 0).float().mean()) == pytest.approx(2 / 3, abs=0.03)
    alone = balanced_draw(torch.tensor([YES, NO, OPEN]), torch.tensor([False] * 3), 4000)
    assert float((alone == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert int(alone.max()) == 1
    with pytest.raises(ValueError, match="a labelled example"):
        balanced_draw(torch.tensor([OPEN]), torch.tensor([True]), 3)
