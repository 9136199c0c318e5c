"""Losses by hand, against literal loops, and under padding that holds anything."""

import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.losses import (
    bradley_terry,
    clipped_surrogate,
    clipped_value_loss,
    expectile,
    from_two_hot,
    kto,
    trajectory_preference,
    two_hot,
)

FILLERS = st.sampled_from([0.0, 1e4, -1e4, math.inf, -math.inf, math.nan])


def prefix(lengths, steps):
    return torch.arange(steps) < torch.as_tensor(lengths)[:, None]


class TestBradleyTerry:
    def test_by_hand(self):
        # −log σ(0) = log 2; −log σ(log 3) = −log(3/4); their mean.
        chosen, rejected = torch.tensor([1.0, math.log(3)]), torch.tensor([1.0, 0.0])
        expected = (math.log(2) + math.log(4 / 3)) / 2
        assert bradley_terry(chosen, rejected).item() == pytest.approx(expected)
        # A margin is subtracted: log 3 against a margin of log 3 is a tie again.
        assert bradley_terry(chosen[1:], rejected[1:], math.log(3)).item() == pytest.approx(math.log(2))

    def test_large_gaps_stay_finite(self):
        chosen = torch.tensor([1e4, -1e4], requires_grad=True)
        loss = bradley_terry(chosen, torch.zeros(2))
        loss.backward()
        # Softplus of ∓1e4 is 0 and 1e4; the slope is −1/2 on the wrong one, 0 on the right one.
        assert loss.item() == 5000.0
        assert chosen.grad is not None
        assert chosen.grad.tolist() == [0.0, -0.5]

    @given(st.integers(0, 1000), st.floats(0, 2))
    def test_labels_are_a_cross_entropy(self, seed, margin):
        torch.manual_seed(seed)
        chosen, rejected, weight = torch.randn(6), torch.randn(6), torch.rand(6)
        label = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 0.5])
        got = bradley_terry(chosen, rejected, margin, label, weight).item()
        right = [-math.log(1 / (1 + math.exp(-(float(c - r) - margin)))) for c, r in zip(chosen, rejected, strict=True)]
        wrong = [-math.log(1 / (1 + math.exp(-(float(r - c) - margin)))) for c, r in zip(chosen, rejected, strict=True)]
        mixed = [y * a + (1 - y) * b for y, a, b in zip(label.tolist(), right, wrong, strict=True)]
        total = sum(w * loss for w, loss in zip(weight.tolist(), mixed, strict=True))
        assert got == pytest.approx(total / float(weight.sum()), rel=1e-4)
        assert bradley_terry(chosen, rejected, margin, torch.ones(6), torch.ones(6)).item() == pytest.approx(
            bradley_terry(chosen, rejected, margin).item()
        )

    def test_pairs_without_weight_and_no_pairs(self):
        chosen = torch.tensor([0.0, math.nan], requires_grad=True)
        label, weight = torch.tensor([1.0, math.nan]), torch.tensor([1.0, 0.0])
        loss = bradley_terry(chosen, torch.zeros(2), label=label, weight=weight)
        loss.backward()
        assert loss.item() == pytest.approx(math.log(2))
        assert chosen.grad is not None
        assert chosen.grad.tolist() == [-0.5, 0.0]
        assert bradley_terry(torch.zeros(0), torch.zeros(0)).item() == 0.0
        assert bradley_terry(torch.zeros(2), torch.zeros(2), weight=torch.zeros(2)).item() == 0.0


class TestTwoHot:
    def test_by_hand(self):
        # Centres 0, 1, 2: 0.25 is ¾ of centre 0 and ¼ of centre 1; beyond the ends everything lies on the last centre.
        got = two_hot(torch.tensor([0.25, 2.0, -5.0, 9.0, 1.0]), 0.0, 2.0, 3)
        assert got.tolist() == [[0.75, 0.25, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]

    @given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20), st.integers(2, 201))
    def test_round_trip_is_the_clamp(self, numbers, bins):
        x = torch.tensor(numbers)
        probs = two_hot(x, -1.0, 0.5, bins)
        assert probs.shape == (len(numbers), bins)
        assert (probs >= 0).all()
        assert ((probs > 0).sum(-1) <= 2).all()
        torch.testing.assert_close(probs.sum(-1), torch.ones(len(numbers)), rtol=0, atol=1e-5)
        torch.testing.assert_close(from_two_hot(probs, -1.0, 0.5), x.clamp(-1, 0.5), rtol=0, atol=2e-6)

    def test_201_atoms(self):
        x = torch.tensor([-0.12345, -2.0])
        torch.testing.assert_close(from_two_hot(two_hot(x, -1.0, 0.0, 201), -1.0, 0.0), torch.tensor([-0.12345, -1.0]))

    def test_any_shape_and_unknown_stays_unknown(self):
        assert two_hot(torch.zeros(2, 3, 0), 0.0, 1.0, 5).shape == (2, 3, 0, 5)
        assert two_hot(torch.tensor(0.5), 0.0, 1.0, 3).tolist() == [0, 1, 0]
        assert from_two_hot(torch.tensor([0.5, 0.5]), 2.0, 4.0).item() == 3.0
        assert two_hot(torch.tensor([math.nan]), 0.0, 1.0, 3).isnan().all()

    def test_gradient_of_the_decoded_value(self):
        # d E/d p_i is the centre i.
        probs = torch.full((3,), 1 / 3, requires_grad=True)
        from_two_hot(probs, -1.0, 1.0).backward()
        assert probs.grad is not None
        assert probs.grad.tolist() == [-1.0, 0.0, 1.0]

    @pytest.mark.parametrize(("low", "high", "bins"), [(0.0, 1.0, 1), (1.0, 1.0, 5), (2.0, 1.0, 5)])
    def test_bad_support(self, low, high, bins):
        with pytest.raises(ValueError, match="bins"):
            two_hot(torch.zeros(1), low, high, bins)
        with pytest.raises(ValueError, match="bins"):
            from_two_hot(torch.ones(1, bins), low, high)


class TestExpectile:
    def test_by_hand(self):
        # τ = 0.7: 0.7 · 2² = 2.8 above, 0.3 · 2² = 1.2 below, 0 at 0.
        got = expectile(torch.tensor([2.0, -2.0, 0.0]), 0.7)
        torch.testing.assert_close(got, torch.tensor([2.8, 1.2, 0.0]))

    def test_half_is_half_the_square(self):
        error = torch.randn(50)
        torch.testing.assert_close(expectile(error, 0.5), 0.5 * error.square())

    def test_minimiser_is_the_expectile(self):
        # Data 0 and 1, τ = 0.9: 0.9(1 − m) = 0.1 m gives m = 0.9.
        m = torch.tensor(0.9, requires_grad=True)
        expectile(torch.stack([0 - m, 1 - m]), 0.9).sum().backward()
        assert m.grad is not None
        assert m.grad.item() == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("tau", [-0.1, 1.1])
    def test_tau_out_of_range(self, tau):
        with pytest.raises(ValueError, match="tau"):
            expectile(torch.zeros(1), tau)


def loop_surrogate(log_ratio, advantages, lengths, low, high, average):
    rows = []
    for b, length in enumerate(lengths):
        terms = []
        for t in range(length):
            ratio, gain = math.exp(float(log_ratio[b, t])), float(advantages[b, t])
            terms.append(-min(ratio * gain, min(max(ratio, 1 - low), 1 + high) * gain))
        rows.append(terms)
    if average == "step":
        flat = [x for terms in rows for x in terms]
        return sum(flat) / max(len(flat), 1)
    means = [sum(terms) / len(terms) for terms in rows if terms]
    return sum(means) / max(len(means), 1)


class TestClippedSurrogate:
    def test_by_hand(self):
        # Row 0: ratio 2, A = 1 → −1.2; ratio ½, A = 1 → −0.5. Row 1: ratio ½, A = −1 → 0.8. Row 2 is empty.
        log_ratio = torch.tensor([[math.log(2), math.log(0.5)], [math.log(0.5), math.nan], [math.nan, math.nan]])
        advantages = torch.tensor([[1.0, 1.0], [-1.0, math.nan], [math.nan, math.nan]])
        mask = prefix([2, 1, 0], 2)
        # trajectory: (−0.85 + 0.8) / 2; step: (−1.7 + 0.8) / 3.
        assert clipped_surrogate(log_ratio, advantages, mask).item() == pytest.approx(-0.025)
        assert clipped_surrogate(log_ratio, advantages, mask, average="step").item() == pytest.approx(-0.3)
        # A wider upper clip (0.28) lets the first ratio reach 1.28.
        got = clipped_surrogate(log_ratio, advantages, mask, clip_high=0.28, average="step").item()
        assert got == pytest.approx((-1.28 - 0.5 + 0.8) / 3)

    @given(
        st.lists(st.integers(0, 7), min_size=1, max_size=4),
        st.integers(0, 1000),
        FILLERS,
        st.sampled_from(["trajectory", "step"]),
        st.floats(0, 0.5),
        st.floats(0, 0.5),
    )
    def test_literal_loop_and_gradients_under_any_padding(self, lengths, seed, filler, average, low, high):
        torch.manual_seed(seed)
        mask = prefix(lengths, 7)
        log_ratio = (0.5 * torch.randn(mask.shape)).masked_fill(~mask, filler).requires_grad_()
        advantages = torch.randn(mask.shape).masked_fill(~mask, filler)
        loss = clipped_surrogate(log_ratio, advantages, mask, low, high, average)
        expected = loop_surrogate(log_ratio.detach(), advantages, lengths, low, high, average)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        loss.backward()
        assert log_ratio.grad is not None
        assert (log_ratio.grad[~mask] == 0).all()
        assert log_ratio.grad.isfinite().all()

    def test_gradient_is_zero_beyond_the_clip_on_the_right_side_only(self):
        ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
        log_ratio = ratio.log().requires_grad_()
        advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
        clipped_surrogate(log_ratio, advantages, torch.ones(1, 4, dtype=torch.bool)).backward()
        # −A · ratio / 4 where the unclipped term is the smaller one.
        assert log_ratio.grad is not None
        torch.testing.assert_close(log_ratio.grad, torch.tensor([[0.0, 1.5 / 4, -0.5 / 4, 0.0]]))

    def test_at_ratio_one_it_is_the_policy_gradient(self):
        log_ratio, advantages = torch.zeros(2, 5, requires_grad=True), torch.randn(2, 5)
        mask = prefix([5, 2], 5)
        clipped_surrogate(log_ratio, advantages, mask).backward()
        expected = -advantages * mask / torch.tensor([[5.0], [2.0]]) / 2
        assert log_ratio.grad is not None
        torch.testing.assert_close(log_ratio.grad, expected)

    def test_averages_weigh_long_rows_differently(self):
        # Ratio 1, A = 1 on 10 steps and A = 0 on 100: trajectory −½, step −10/110.
        mask = prefix([10, 100], 100)
        advantages = torch.tensor([[1.0], [0.0]]).expand(2, 100)
        ratio = torch.zeros(2, 100)
        assert clipped_surrogate(ratio, advantages, mask, average="trajectory").item() == pytest.approx(-0.5)
        assert clipped_surrogate(ratio, advantages, mask, average="step").item() == pytest.approx(-10 / 110)

    @pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
    @pytest.mark.parametrize("extreme", [200.0, -200.0, -math.inf])
    def test_extreme_real_ratios_stay_finite(self, advantage, extreme):
        log_ratio = torch.tensor([[extreme, 0.1]], requires_grad=True)
        loss = clipped_surrogate(log_ratio, torch.tensor([[advantage, 1.0]]), prefix([2], 2))
        loss.backward()
        assert loss.isfinite()
        assert log_ratio.grad is not None
        assert log_ratio.grad.isfinite().all()

    def test_nothing_real_gives_zero_with_a_gradient(self):
        log_ratio = torch.full((2, 3), math.nan, requires_grad=True)
        for average in ("trajectory", "step"):
            loss = clipped_surrogate(log_ratio, torch.zeros(2, 3), prefix([0, 0], 3), average=average)
            loss.backward()
            assert loss.item() == 0.0
        assert log_ratio.grad is not None
        assert (log_ratio.grad == 0).all()

    def test_advantages_are_constants(self):
        advantages = torch.ones(1, 2, requires_grad=True)
        loss = clipped_surrogate(torch.zeros(1, 2, requires_grad=True), advantages, prefix([2], 2))
        loss.backward()
        assert advantages.grad is None

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="clip bounds"):
            clipped_surrogate(torch.zeros(1, 2), torch.zeros(1, 2), prefix([2], 2), clip_low=-0.1)


class TestTrajectoryPreference:
    @pytest.mark.parametrize("average", ["trajectory", "step"])
    def test_no_mask_takes_all_for_real(self, average: Literal["trajectory", "step"]):
        log_ratio, advantages = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
        every = torch.ones(3, 5, dtype=torch.bool)
        one = clipped_surrogate(log_ratio, advantages, every, average=average)
        two = clipped_surrogate(log_ratio, advantages, None, average=average)
        assert torch.allclose(one, two, atol=1e-7)
        for found in zip(*(torch.autograd.grad(loss, log_ratio) for loss in (one, two)), strict=True):
            assert torch.allclose(*found, atol=1e-7)
        assert clipped_surrogate(torch.zeros(0, 1), torch.zeros(0, 1), None) == 0

    def test_by_hand(self):
        # Δ_w = (0.5 + 0.3) = 0.8, Δ_l = 0.2 − 0.4 = −0.2, β = 2: −log σ(2) = log(1 + e^−2).
        chosen = torch.tensor([[-1.0, -2.0, math.nan]])
        chosen_ref = torch.tensor([[-1.5, -2.3, math.nan]])
        rejected, rejected_ref = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.2, -0.6]])
        masks = prefix([2], 3), prefix([2], 2)
        got = trajectory_preference(chosen, chosen_ref, rejected, rejected_ref, *masks, 2.0)
        assert got.item() == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)
        # Means: Δ_w = 0.4, Δ_l = −0.1, β = 2: −log σ(1).
        got = trajectory_preference(chosen, chosen_ref, rejected, rejected_ref, *masks, 2.0, reduce="mean")
        assert got.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-5)

    @given(st.integers(0, 1000), FILLERS, st.sampled_from(["sum", "mean"]))
    def test_literal_loop_and_gradients_under_any_padding(self, seed, filler, reduce):
        torch.manual_seed(seed)
        lengths_w, lengths_l = torch.randint(0, 6, (3,)).tolist(), torch.randint(0, 9, (3,)).tolist()
        mask_w, mask_l = prefix(lengths_w, 6), prefix(lengths_l, 9)
        w, w_ref = torch.randn(3, 6).masked_fill(~mask_w, filler), torch.randn(3, 6).masked_fill(~mask_w, filler)
        low, l_ref = torch.randn(3, 9).masked_fill(~mask_l, filler), torch.randn(3, 9).masked_fill(~mask_l, filler)
        w.requires_grad_()
        low.requires_grad_()
        loss = trajectory_preference(w, w_ref, low, l_ref, mask_w, mask_l, 0.7, reduce)
        total = 0.0
        for p in range(3):
            delta_w = sum(float(w.detach()[p, t] - w_ref[p, t]) for t in range(lengths_w[p]))
            delta_l = sum(float(low.detach()[p, t] - l_ref[p, t]) for t in range(lengths_l[p]))
            if reduce == "mean":
                delta_w, delta_l = delta_w / max(lengths_w[p], 1), delta_l / max(lengths_l[p], 1)
            total += math.log1p(math.exp(-0.7 * (delta_w - delta_l)))
        assert loss.item() == pytest.approx(total / 3, rel=1e-4)
        loss.backward()
        for tensor, mask in ((w, mask_w), (low, mask_l)):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert (tensor.grad[~mask] == 0).all()

    def test_equal_to_the_reference_is_log_two(self):
        logp, mask = torch.randn(4, 5), prefix([5, 3, 1, 0], 5)
        got = trajectory_preference(logp, logp, logp, logp, mask, mask, 0.1)
        assert got.item() == pytest.approx(math.log(2))

    def test_one_step_is_direct_preference_optimisation(self):
        # DPO: −log σ(β[(log π_w − log ref_w) − (log π_l − log ref_l)]).
        w, w_ref, low, l_ref = torch.randn(4, 5, 1).unbind()
        mask = prefix([1] * 5, 1)
        expected = -F.logsigmoid(0.3 * ((w - w_ref) - (low - l_ref))).mean()
        torch.testing.assert_close(trajectory_preference(w, w_ref, low, l_ref, mask, mask, 0.3), expected)

    def test_reference_takes_no_gradient(self):
        logp, ref = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
        mask = prefix([3, 2], 3)
        trajectory_preference(logp, ref, logp.detach(), ref, mask, mask, 1.0).backward()
        assert ref.grad is None
        assert logp.grad is not None


class TestClippedValueLoss:
    def test_by_hand(self):
        # target 1, old value 0, clip 0.2: at V = 0.1 it is inside, ½·0.9²; at 0.5 the clipped one is worse, ½·0.8²;
        # at −0.5 the value itself is worse, ½·1.5²
        value = torch.tensor([0.1, 0.5, -0.5])
        found = clipped_value_loss(value, torch.ones(3), torch.zeros(3), clip=0.2)
        assert found.tolist() == pytest.approx([0.405, 0.32, 1.125])
        # Huber with δ = 0.5: 0.5·(0.9 − 0.25), 0.5·(0.8 − 0.25), 0.5·(1.5 − 0.25)
        found = clipped_value_loss(value, torch.ones(3), torch.zeros(3), clip=0.2, delta=0.5)
        assert found.tolist() == pytest.approx([0.325, 0.275, 0.625])

    def test_the_gradient_stops_where_the_value_moved_far_towards_the_target(self):
        value = torch.tensor([0.1, 0.5, -0.5, 1.5], requires_grad=True)
        clipped_value_loss(value, torch.ones(4), torch.zeros(4), clip=0.2).sum().backward()
        # past the target by more than the clip is on the other side: 1.5 is nearer to 1 than 0.2 is, so no gradient
        assert value.grad.tolist() == pytest.approx([-0.9, 0.0, -1.5, 0.0])

    @given(
        numbers=st.lists(st.tuples(*[st.floats(-3, 3, width=32)] * 3), min_size=1, max_size=6),
        clip=st.sampled_from([None, 0.1, 1.0]),
        delta=st.sampled_from([None, 0.5, 10.0]),
    )
    def test_against_a_loop(self, numbers, clip, delta):
        def single(error):
            if delta is None or abs(error) <= delta:
                return 0.5 * error**2
            return delta * (abs(error) - 0.5 * delta)

        wanted = []
        for value, target, old in numbers:
            loss = single(value - target)
            if clip is not None:
                loss = max(loss, single(old + min(max(value - old, -clip), clip) - target))
            wanted.append(loss)
        value, target, old = torch.tensor(numbers).unbind(1)
        found = clipped_value_loss(value, target, old, clip, delta)
        assert found.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)

    def test_it_reduces_to_half_the_squared_error(self):
        value, target, old = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).unbind()
        half = 0.5 * (value - target).square()
        assert torch.equal(clipped_value_loss(value, target), half)
        torch.testing.assert_close(clipped_value_loss(value, target, old, clip=100.0, delta=100.0), half)
        torch.testing.assert_close(clipped_value_loss(value, target, value, clip=0.1), half)

    def test_neither_targets_nor_old_values_get_a_gradient(self):
        value, target, old = (torch.tensor([x], requires_grad=True) for x in (0.3, 1.0, 0.0))
        clipped_value_loss(value, target, old, clip=0.5).sum().backward()
        assert target.grad is None and old.grad is None and value.grad is not None

    def test_what_makes_no_sense(self):
        value = torch.zeros(2)
        with pytest.raises(ValueError, match="clip: expected a positive finite number"):
            clipped_value_loss(value, value, value, clip=0.0)
        with pytest.raises(ValueError, match="delta: expected a positive finite number"):
            clipped_value_loss(value, value, delta=-1.0)
        with pytest.raises(ValueError, match="needs the values when the advantages were formed"):
            clipped_value_loss(value, value, clip=0.2)


class TestRecipesOfTheClippedSurrogate:
    """Clip modes, the dual clip and the fixed divisor, by hand and against a loop."""

    def one(self, ratio: float, advantage: float, **options: Any) -> tuple[float, float]:
        log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
        loss = clipped_surrogate(log_ratio, torch.tensor([[float(advantage)]]), None, **options)
        loss.backward()
        assert log_ratio.grad is not None
        return float(loss.detach()), float(log_ratio.grad)

    def test_the_reciprocal_lower_bound(self):
        # 1/(1 + 0.25) = 0.8, the linear one would be 0.75
        assert self.one(0.78, -1, clip_low=0.25, clip_mode="reciprocal") == (pytest.approx(0.8), 0.0)
        assert self.one(0.78, -1, clip_low=0.25)[0] == pytest.approx(0.78)
        assert self.one(0.78, 1, clip_low=0.25, clip_mode="reciprocal") == (pytest.approx(-0.78), pytest.approx(-0.78))
        # a bound above 1 makes sense here only
        assert self.one(0.2, -1, clip_low=3.0, clip_mode="reciprocal") == (pytest.approx(0.25), 0.0)

    def test_the_dual_clip(self):
        assert self.one(5.0, -2, dual_clip=3) == (pytest.approx(6.0), 0.0)
        assert self.one(2.0, -2, dual_clip=3) == (pytest.approx(4.0), pytest.approx(4.0))
        assert self.one(5.0, 2, dual_clip=3) == (pytest.approx(-2.4), 0.0)  # of good actions nothing changes

    def test_the_fixed_divisor(self):
        log_ratio, gain = torch.zeros(3, 4), torch.tensor([[1.0], [2.0], [9.0]]).expand(3, 4)
        mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
        assert float(clipped_surrogate(log_ratio, gain, mask, average=32)) == pytest.approx(-(1 + 2) / 32)
        assert float(clipped_surrogate(log_ratio, gain, mask)) == pytest.approx(-(1 + 2) / 2)
        assert float(clipped_surrogate(log_ratio, gain, mask, average="step")) == pytest.approx(-(4 + 2) / 5)
        assert float(clipped_surrogate(log_ratio, gain, None, average=4)) == pytest.approx(-12 / 4)

    @given(
        lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
        seed=st.integers(0, 99),
        mode=st.sampled_from(["linear", "reciprocal"]),
        dual=st.sampled_from([None, 1.5, 3.0]),
        average=st.sampled_from(["trajectory", "step", 2, 7.5]),
        low=st.sampled_from([0.0, 0.2, 0.9]),
    )
    def test_literal_loop(self, lengths: list[int], seed: int, mode: Any, dual: Any, average: Any, low: float):
        generator = torch.Generator().manual_seed(seed)
        steps = max(max(lengths), 1)
        log_ratio = torch.randn(len(lengths), steps, generator=generator)
        gain = torch.randn(len(lengths), steps, generator=generator)
        mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
        rows = []
        for i, length in enumerate(lengths):
            losses = []
            for t in range(length):
                ratio, a = math.exp(float(log_ratio[i, t])), float(gain[i, t])
                bottom = 1 / (1 + low) if mode == "reciprocal" else 1 - low
                loss = -min(ratio * a, min(max(ratio, bottom), 1.2) * a)
                losses.append(min(loss, dual * abs(a)) if dual is not None and a < 0 else loss)
            rows.append(losses)
        means = [sum(r) / len(r) for r in rows if r]
        expected = (
            {
                "step": sum(map(sum, rows)) / max(1, sum(map(len, rows))),
                "trajectory": sum(means) / max(1, len(means)),
            }.get(average)
            if isinstance(average, str)
            else sum(means) / average
        )
        padded = log_ratio.masked_fill(~mask, math.nan)
        kind: Any = average
        got = clipped_surrogate(padded, gain, mask, low, 0.2, kind, mode, dual)
        assert float(got) == pytest.approx(expected, abs=1e-4, rel=1e-4)

    @pytest.mark.parametrize(
        "bad, match",
        [
            ({"average": 0}, "expected a positive number to divide by"),
            ({"average": math.nan}, "expected a positive number to divide by"),
            ({"average": True}, "average: expected"),
            ({"dual_clip": 1.0}, "dual_clip: expected a number above 1"),
            ({"clip_low": math.nan}, "clip bounds: expected at least 0"),
            ({"clip_high": math.nan}, "clip bounds: expected at least 0"),
        ],
    )
    def test_bad_arguments(self, bad: dict[str, Any], match: str):
        with pytest.raises(ValueError, match=match):
            clipped_surrogate(torch.zeros(1, 1), torch.zeros(1, 1), None, **bad)


# kto


def test_kto_by_hand():
    log_ratio = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    desirable = torch.tensor([True, False, False])
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = (1.5 * (1 - sigmoid(0.1 * -0.5)) + 2 * (1 - sigmoid(0.1 * -1.5)) + 2 * (1 - sigmoid(0.1 * 1.5))) / 3
    found = kto(log_ratio, desirable, 0.5, 0.1, weight_desirable=1.5, weight_undesirable=2.0)
    assert float(found) == pytest.approx(expected, abs=1e-12)
    halved = kto(log_ratio, desirable, 0.5, 0.1, 1.5, 2.0, weight=torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))
    assert float(halved) == pytest.approx(expected - 1.5 * (1 - sigmoid(0.1 * -0.5)) / 3, abs=1e-12)


def test_kto_is_one_half_at_the_reference_point_and_its_gradient_saturates():
    ratio = torch.zeros(2, requires_grad=True)
    point = torch.zeros((), requires_grad=True)
    loss = kto(ratio, torch.tensor([True, False]), point, 0.1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5)
    assert point.grad is None
    assert ratio.grad is not None and ratio.grad.tolist() == pytest.approx([-0.0125, 0.0125])  # λβ/4 over two outcomes
    for beta, slope in ((0.1, 0.0235), (1.0, 0.0066)):  # an undesirable outcome that is unlikely already
        far = torch.tensor([-5.0], requires_grad=True)
        kto(far, torch.tensor([False]), 0.0, beta).backward()
        assert far.grad is not None and float(far.grad) == pytest.approx(slope, abs=5e-5)


def test_kto_mirrors_when_all_labels_and_signs_are_turned():
    ratio = torch.randn(7, generator=torch.Generator().manual_seed(0))
    desirable = torch.tensor([True, False, True, True, False, False, True])
    assert float(kto(ratio, desirable, 0.3, 0.5)) == pytest.approx(float(kto(-ratio, ~desirable, -0.3, 0.5)), abs=1e-6)


def test_kto_refuses_what_makes_no_sense():
    ratio, flags = torch.zeros(2), torch.tensor([True, False])
    assert float(kto(torch.zeros(0), torch.zeros(0).bool(), 0.0, 0.1)) == 0
    for wrong, match in (
        ((ratio, flags, 0.0, 0.0), "beta 0"),
        ((ratio, flags, math.nan, 0.1), "reference_point"),
    ):
        with pytest.raises(ValueError, match=match):
            kto(*wrong)
    with pytest.raises(ValueError, match="weight_undesirable -1"):
        kto(ratio, flags, 0.0, 0.1, weight_undesirable=-1.0)
