"""Objectives: likelihoods by hand and by loops, gradients of wrong labels, what is left out and counted, flags."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, PreferencePairs, RewardEstimates, TrajectoryBatch
from guerdon.core.losses import bradley_terry, kto
from guerdon.preference.objectives import (
    BradleyTerry,
    FlagLoss,
    correct_pairs,
    preference_log_likelihood,
    row_flags,
)

gaps = st.lists(st.floats(-30, 30), min_size=1, max_size=6)


def rows(lengths=(3, 2, 3, 1), **more):
    steps = max(lengths)
    return TrajectoryBatch(
        state=torch.zeros(len(lengths), steps + 1, 1),
        actions=torch.zeros(len(lengths), steps, 1),
        mask=torch.arange(steps)[None] < torch.tensor(lengths)[:, None],
        **more,
    )


def paired(chosen, rejected, label, weight=None, **more):
    return PreferencePairs(
        batch=rows(**more),
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        label=torch.tensor(label),
        weight=torch.ones(len(chosen)) if weight is None else torch.tensor(weight),
    )


def estimates(rewards, valid=None):
    rewards = torch.tensor(rewards) if isinstance(rewards, list) else rewards
    return RewardEstimates(rewards=rewards, valid=rewards.isfinite() if valid is None else torch.tensor(valid))


# --- the likelihood --------------------------------------------------------------------------------------------------


def test_by_hand_with_ties_and_wrong_answers():
    gap = torch.tensor([0.0, math.log(3.0), math.log(3.0), math.log(3.0)])
    label = torch.tensor([1.0, 1.0, 0.0, 0.5])
    plain = [math.log(0.5), math.log(0.75), math.log(0.25), 0.5 * math.log(0.75) + 0.5 * math.log(0.25)]
    assert preference_log_likelihood(gap, label).tolist() == pytest.approx(plain)
    # ε = 0.1: 0.8 · 0.75 + 0.1 = 0.7 and 0.8 · 0.25 + 0.1 = 0.3
    noisy = [math.log(0.5), math.log(0.7), math.log(0.3), 0.5 * math.log(0.7) + 0.5 * math.log(0.3)]
    assert preference_log_likelihood(gap, label, 0.1).tolist() == pytest.approx(noisy)


@given(gaps, st.floats(0, 0.45), st.floats(0, 1))
def test_equals_a_literal_loop(values, noise, label):
    found = preference_log_likelihood(
        torch.tensor(values, dtype=torch.float64), torch.full((len(values),), label, dtype=torch.float64), noise
    )
    for value, got in zip(values, found.tolist(), strict=True):
        better = (1 - 2 * noise) / (1 + math.exp(-value)) + noise
        worse = (1 - 2 * noise) / (1 + math.exp(value)) + noise
        assert got == pytest.approx(label * math.log(better) + (1 - label) * math.log(worse), rel=1e-7, abs=1e-12)


@given(gaps)
def test_without_noise_it_is_the_bradley_terry_loss(values):
    gap = torch.tensor(values, dtype=torch.float64)
    label = torch.linspace(0, 1, len(values), dtype=torch.float64)
    loss = bradley_terry(gap, torch.zeros_like(gap), label=label)
    assert float(-preference_log_likelihood(gap, label).mean()) == pytest.approx(float(loss))


def slope(gap, noise):
    score = torch.tensor([gap], requires_grad=True)
    (-preference_log_likelihood(score, torch.ones(1), noise)).sum().backward()
    assert score.grad is not None
    return float(score.grad)


def test_a_label_that_contradicts_a_large_gap_pulls_with_all_its_weight_only_without_noise():
    assert slope(-200.0, 0.0) == pytest.approx(-1.0)
    assert slope(-200.0, 0.05) == pytest.approx(0.0, abs=1e-6)
    # the largest pull is found in between, below that of plain Bradley–Terry
    pulls = [-slope(gap / 10, 0.05) for gap in range(-100, 100)]
    assert 0.5 < max(pulls) < 0.75 and all(pull >= 0 for pull in pulls)
    assert float(preference_log_likelihood(torch.tensor([-1e4]), torch.ones(1), 0.05)) == pytest.approx(math.log(0.05))


@pytest.mark.parametrize("noise", [-0.1, 0.5, math.nan])
def test_noise_out_of_range_is_refused(noise):
    with pytest.raises(ValueError, match=r"at least 0 and below 0\.5"):
        BradleyTerry(noise=noise)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_segments_of_unequal_length_are_compared_by_sum_or_by_mean():
    pairs = paired([0], [1], [1.0])  # three steps of 1 against two of 1.25
    given_rewards = estimates(
        [[1.0, 1.0, 1.0], [1.25, 1.25, 9.0], [0.0] * 3, [0.0] * 3],
        [[True] * 3, [True, True, False], [True] * 3, [True] * 3],
    )
    total = BradleyTerry().loss(pairs, given_rewards)
    mean = BradleyTerry("mean").loss(pairs, given_rewards)
    assert float(total["loss"]) == pytest.approx(math.log1p(math.exp(-0.5)))
    assert float(mean["loss"]) == pytest.approx(math.log1p(math.exp(0.25)))
    assert float(total["preference_accuracy"]) == 1.0 and float(mean["preference_accuracy"]) == 0.0


def test_weights_weigh_and_pairs_without_one_do_not_count():
    pairs = paired([0, 0, 2], [1, 2, 1], [1.0, 0.0, 1.0], [3.0, 1.0, 0.0])
    scored = estimates([[1.0, 0, 0], [0.0, 0, 0], [0.0, 0, 0], [0.0, 0, 0]])
    parts = BradleyTerry().loss(pairs, scored)
    wanted = (3 * math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 4
    assert float(parts["loss"]) == pytest.approx(wanted)
    assert float(parts["pairs"]) == 2 and float(parts["pairs_left_out"]) == 0


def test_a_pair_with_a_row_that_cannot_be_scored_is_left_out_and_counted():
    pairs = paired([0, 0], [1, 3], [1.0, 0.0])
    rewards = torch.tensor([[1.0] * 3, [0.0] * 3, [0.0] * 3, [math.nan] * 3], requires_grad=True)
    parts = BradleyTerry().loss(pairs, estimates(rewards))
    assert float(parts["loss"].detach()) == pytest.approx(math.log1p(math.exp(-3.0)))
    assert float(parts["pairs"]) == 1 and float(parts["pairs_left_out"]) == 1
    parts["loss"].backward()
    assert rewards.grad is not None and bool(rewards.grad.isfinite().all()) and not rewards.grad[3].any()


def test_accuracy_counts_equal_scores_half_and_leaves_ties_out():
    pairs = paired([0, 1, 2, 0], [1, 2, 3, 3], [1.0, 0.9, 0.5, 0.0])
    scores = torch.tensor([2.0, 1.0, 1.0, 0.0])
    right, decided = correct_pairs(pairs, scores, torch.ones(4, dtype=torch.bool))
    assert right.tolist() == [1.0, 0.5, 0.0, 0.0] and decided.tolist() == [True, True, False, True]
    parts = BradleyTerry().loss(pairs, estimates([[s, 0, 0] for s in scores.tolist()]))
    assert float(parts["preference_accuracy"]) == pytest.approx(0.5) and float(parts["tie_share"]) == 0.25


def test_nothing_to_compare_is_a_loss_of_zero():
    pairs = paired([0], [3], [1.0])
    rewards = torch.full((4, 3), math.nan, requires_grad=True)
    parts = BradleyTerry(penalty=1.0).loss(pairs, estimates(rewards))
    assert float(parts["loss"].detach()) == 0.0 and float(parts["pairs"]) == 0


def test_the_penalty_is_the_mean_square_of_the_rows_mean_rewards():
    scored = estimates([[1.0, 2.0, 3.0], [-1.0, -1.0, math.nan], [0.0] * 3, [math.nan] * 3])
    parts = BradleyTerry(penalty=0.5).loss(paired([0], [1], [0.5]), scored)
    assert float(parts["penalty"]) == pytest.approx((4 + 1 + 0) / 3)
    plain = BradleyTerry().loss(paired([0], [1], [0.5]), scored)
    assert float(parts["loss"]) == pytest.approx(float(plain["loss"]) + 0.5 * 5 / 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_swapping_both_segments_and_labels_changes_nothing(seed):
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.randn(4, 3, generator=draw)
    label = torch.rand(3, generator=draw).tolist()
    one = BradleyTerry(noise=0.1).loss(paired([0, 1, 2], [1, 2, 3], label), estimates(rewards))
    other = BradleyTerry(noise=0.1).loss(paired([1, 2, 3], [0, 1, 2], [1 - y for y in label]), estimates(rewards))
    torch.testing.assert_close(one, other)


def test_keys_name_the_segments_in_any_order_and_batch():
    pairs = paired(
        [0, 1, 0], [1, 2, 2], [1.0] * 3, episode=torch.tensor([7, 8, 9, 9]), offset=torch.tensor([0, 3, 0, 2])
    )
    swapped = replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)
    keys = BradleyTerry().keys(pairs)
    assert len(set(keys.tolist())) == 3
    assert BradleyTerry().keys(swapped).tolist() == keys.tolist()
    assert BradleyTerry().keys(pairs[[1]]).tolist() == keys[[1]].tolist()


# --- flags -----------------------------------------------------------------------------------------------------------


def flagged(success, known=None, **more):
    return rows(
        success=torch.tensor(success),
        success_known=torch.ones(len(success), dtype=torch.bool) if known is None else torch.tensor(known),
        **more,
    )


def test_the_flag_loss_is_that_of_kto_at_the_batch_mean():
    batch = flagged([1.0, 0.0, 1.0, 0.0])
    scores = torch.tensor([3.0, 1.0, 0.0, -2.0])
    parts = FlagLoss(beta=0.5, weight_desirable=2.0).loss(batch, estimates([[s, 0, 0] for s in scores.tolist()]))
    desirable = torch.tensor([True, False, True, False])
    assert float(parts["reference_point"]) == 0.5
    assert float(parts["loss"]) == pytest.approx(float(kto(scores, desirable, 0.5, 0.5, weight_desirable=2.0)))
    # 3 > 0.5 desirable, 1 > 0.5 undesirable, 0 desirable, −2 undesirable
    assert float(parts["flag_accuracy"]) == 0.5
    assert float(parts["flags"]) == 4 and float(parts["desirable"]) == 2


def test_the_reference_point_is_at_least_zero_and_has_no_gradient():
    batch = flagged([1.0, 0.0, 1.0, 0.0])
    rewards = torch.full((4, 3), -1.0, requires_grad=True)
    parts = FlagLoss().loss(batch, estimates(rewards))
    assert float(parts["reference_point"]) == 0.0
    shifted = torch.full((4, 3), 2.0, requires_grad=True)
    parts = FlagLoss(beta=0.3).loss(batch, estimates(shifted))
    parts["loss"].backward()
    assert shifted.grad is not None  # at the point itself every row pulls with β / 4 / N, up or down by its flag
    assert shifted.grad[:, 0].tolist() == pytest.approx([-0.3 / 16, 0.3 / 16] * 2)


def test_rows_without_a_flag_negatives_and_rows_without_a_score_are_left_out_and_counted():
    negative = Labelled(
        values=torch.tensor([[0.0]] * 3 + [[1.0]]).expand(4, 3), valid=torch.ones(4, 3, dtype=torch.bool)
    )
    batch = flagged([1.0, 0.5, 0.0, 0.0], labels={"negative": negative})
    parts = FlagLoss().loss(batch, estimates([[1.0] * 3, [1.0] * 3, [math.nan] * 3, [1.0] * 3]))
    assert float(parts["flags"]) == 1 and float(parts["flags_left_out"]) == 3
    assert float(parts["loss"]) == pytest.approx(0.5)
    nothing = FlagLoss().loss(flagged([0.5] * 4), estimates([[1.0] * 3] * 4))
    assert float(nothing["loss"]) == 0.0 and float(nothing["flags"]) == 0


def test_a_recorded_flag_takes_precedence_over_success():
    valid = torch.tensor([[True] * 3, [False, True, False], [False] * 3, [True, False, False]])
    values = torch.tensor([[0.0] * 3, [9.0, 1.0, 9.0], [1.0] * 3, [1.0, 0.0, 0.0]])
    batch = flagged([1.0] * 4, labels={"desirable": Labelled(values=values, valid=valid)})
    desirable, known = row_flags(batch)
    assert desirable.tolist() == [False, True, False, True] and known.tolist() == [True, True, False, True]
    mixed = flagged([1.0] * 4, labels={"desirable": Labelled(values=values, valid=torch.ones(4, 3, dtype=torch.bool))})
    with pytest.raises(ValueError, match="cut the row where the flag changes"):
        row_flags(mixed)


def test_without_known_outcomes_there_are_no_flags():
    batch = rows(end=torch.full((4,), int(End.CUT)))
    assert not row_flags(batch)[1].any()


def test_each_objective_names_the_other_for_data_it_does_not_take():
    with pytest.raises(ValueError, match=r"compares pairs.*take FlagLoss"):
        BradleyTerry().rows(rows())
    with pytest.raises(ValueError, match=r"single trajectories.*take BradleyTerry"):
        FlagLoss().rows(paired([0], [1], [1.0]))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"weight_desirable": -1.0}, {"penalty": -1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        FlagLoss(**wrong)
