"""Returns by hand, against literal loops, and where they reduce to one another."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.returns import (
    chunk_td_targets,
    discounted_returns,
    gae,
    group_standardise,
    leave_one_out,
    macro_rewards,
    standardise,
)

UNITS = st.sampled_from([0.0, 1e-8, 0.3, 0.9, 0.99, 1.0])


def prefix(lengths, steps):
    return torch.arange(steps) < torch.as_tensor(lengths)[:, None]


@st.composite
def rollouts(draw, longest=40):
    """Rewards, values, prefix mask and termination flags; padding holds NaN."""
    rows, steps = draw(st.integers(1, 4)), draw(st.integers(1, longest))
    lengths = draw(st.lists(st.integers(0, steps), min_size=rows, max_size=rows))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    mask, terminated = prefix(lengths, steps), torch.rand(rows) < 0.5
    rewards, values = torch.randn(rows, steps), torch.randn(rows, steps + 1)
    rewards[~mask] = math.nan
    for row, length in enumerate(lengths):
        values[row, length + 1 :] = math.nan
        if terminated[row] or length == 0:
            values[row, length] = math.nan  # nothing follows: the value must not be read
    return rewards, values, mask, terminated


def loop_returns(rewards, mask, gamma, bootstrap=None):
    out = torch.zeros_like(rewards, dtype=torch.float64)
    for b in range(len(rewards)):
        length = int(mask[b].sum())
        following = 0.0 if bootstrap is None else float(bootstrap[b])
        for t in reversed(range(length)):
            following = float(rewards[b, t]) + gamma * following
            out[b, t] = following
    return out


def loop_gae(rewards, values, mask, terminated, gamma, lam):
    advantages = torch.zeros_like(rewards, dtype=torch.float64)
    returns = torch.zeros_like(advantages)
    for b in range(len(rewards)):
        length, following = int(mask[b].sum()), 0.0
        for t in reversed(range(length)):
            ends = t == length - 1 and bool(terminated[b])
            after = 0.0 if ends else float(values[b, t + 1])
            g = float(gamma[b, t]) if isinstance(gamma, torch.Tensor) else gamma
            following = float(rewards[b, t]) + g * after - float(values[b, t]) + g * lam * following
            advantages[b, t] = following
            returns[b, t] = following + float(values[b, t])
    return advantages, returns


def loop_chunk(rewards, next_values, mask, terminated, horizon, gamma):
    out = torch.zeros_like(rewards, dtype=torch.float64)
    for b in range(len(rewards)):
        length = int(mask[b].sum())
        for t in range(length):
            n = min(int(horizon[b, t]), length - t)
            out[b, t] = sum(gamma**k * float(rewards[b, t + k]) for k in range(n))
            if not (t + n == length and bool(terminated[b])):
                out[b, t] += gamma**n * float(next_values[b, t + n])
    return out


def loop_macro(rewards, decision_step, mask, gamma):
    out = torch.zeros(decision_step.shape, dtype=torch.float64)
    for b in range(len(rewards)):
        length = int(mask[b].sum())
        steps = [int(d) for d in decision_step[b] if 0 <= d < length]
        for n, (first, beyond) in enumerate(zip(steps, (*steps, length)[1:], strict=True)):
            out[b, n] = sum(gamma ** (k - first) * float(rewards[b, k]) for k in range(first, beyond))
    return out


def close(actual, expected, atol=1e-5):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=atol)


class TestDiscountedReturns:
    def test_by_hand(self):
        # γ = 0.5, rewards 1, 2, 4: G2 = 4, G1 = 2 + 2 = 4, G0 = 1 + 2 = 3; padding is NaN.
        rewards, mask = torch.tensor([[1.0, 2.0, 4.0, math.nan]]), prefix([3], 4)
        assert discounted_returns(rewards, mask, 0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]
        # bootstrap 8 adds 0.5^(3−t) · 8 = 1, 2, 4.
        assert discounted_returns(rewards, mask, 0.5, torch.tensor([8.0])).tolist() == [[4.0, 6.0, 8.0, 0.0]]

    @given(rollouts(longest=80), UNITS, st.booleans())
    def test_literal_loop(self, rollout, gamma, with_bootstrap):
        rewards, _, mask, _ = rollout
        bootstrap = None
        if with_bootstrap:
            bootstrap = torch.randn(len(rewards))
            bootstrap[~mask.any(1)] = math.nan  # an empty row has nothing to continue
        close(discounted_returns(rewards, mask, gamma, bootstrap), loop_returns(rewards, mask, gamma, bootstrap))

    @pytest.mark.slow
    @pytest.mark.parametrize("steps", [31, 32, 33, 64, 1023, 1024, 1025, 3000])
    @pytest.mark.parametrize("gamma", [0.0, 1e-30, 0.5, 0.999, 1.0])
    def test_long_rows_across_blocks(self, steps, gamma):
        rewards, mask = torch.randn(3, steps), prefix([steps, steps - 1, steps // 2], steps)
        bootstrap = torch.tensor([1.0, -2.0, 3.0])
        expected = loop_returns(rewards, mask, gamma, bootstrap)
        close(discounted_returns(rewards, mask, gamma, bootstrap), expected)
        whole = torch.ones_like(mask)
        close(discounted_returns(rewards, whole, gamma, bootstrap), loop_returns(rewards, whole, gamma, bootstrap))

    def test_undiscounted_count_down_is_exact(self):
        # −1 per step, γ = 1: G_t = −(T − t), integers that float32 holds exactly.
        steps = 5000
        mask = torch.ones(1, steps, dtype=torch.bool)
        assert torch.equal(discounted_returns(-torch.ones(1, steps), mask, 1.0)[0], torch.arange(-steps, 0.0))

    def test_chain_of_minus_ones(self):
        # Geometric sum: with −1 on all but the last of d steps G_0 = −(1 − 0.99^(d−1)) / 0.01.
        for length, expected in ((50, -38.8883), (300, -95.0464)):
            rewards = -torch.ones(1, length)
            rewards[0, -1] = 0.0
            value = discounted_returns(rewards, torch.ones_like(rewards, dtype=torch.bool), 0.99)[0, 0]
            assert value.item() == pytest.approx(expected, abs=5e-5)

    def test_input_is_left_alone_and_gradients_stop(self):
        rewards = torch.randn(2, 70, dtype=torch.float64, requires_grad=True)
        before, mask = rewards.detach().clone(), torch.ones(2, 70, dtype=torch.bool)
        result = discounted_returns(rewards, mask, 0.9, torch.ones(2, dtype=torch.float64))
        assert torch.equal(rewards.detach(), before)
        assert not result.requires_grad
        assert result.dtype == torch.float64

    def test_transposed_memory(self):
        rewards = torch.randn(70, 2).T
        mask = torch.ones(2, 70, dtype=torch.bool)
        close(discounted_returns(rewards, mask, 0.9), loop_returns(rewards, mask, 0.9))

    def test_hole_is_cut_out(self):
        # γ = 0.5, steps 0, 1 and 3 real: G3 = 8, G1 = 2 + 0.25 · 8 = 4, G0 = 1 + 2 = 3.
        rewards, mask = torch.tensor([[1.0, 2.0, math.nan, 8.0]]), torch.tensor([[True, True, False, True]])
        assert discounted_returns(rewards, mask, 0.5).tolist() == [[3.0, 4.0, 0.0, 8.0]]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_real_step_that_is_not_finite(self, bad):
        with pytest.raises(ValueError, match="NaN or infinite"):
            discounted_returns(torch.tensor([[1.0, bad]]), prefix([2], 2), 0.9)

    @pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
    def test_gamma_out_of_range(self, gamma):
        with pytest.raises(ValueError, match="gamma"):
            discounted_returns(torch.ones(1, 2), prefix([2], 2), gamma)


class TestGae:
    def test_by_hand(self):
        # γ = 0.99, λ = 0.95, terminal. δ2 = 1 − 0.8 = 0.2; δ1 = 0.99·0.8 − 0.5 = 0.292; δ0 = 0.99·0.5 − 0.2 = 0.295;
        # A1 = 0.292 + 0.9405·0.2 = 0.4801; A0 = 0.295 + 0.9405·0.4801 = 0.746534.
        result = gae(
            torch.tensor([[0.0, 0.0, 1.0]]),
            torch.tensor([[0.2, 0.5, 0.8, math.nan]]),
            prefix([3], 3),
            torch.tensor([True]),
            0.99,
            0.95,
        )
        close(result.advantages, torch.tensor([[0.746534, 0.480100, 0.200000]]), atol=1e-6)
        close(result.returns, torch.tensor([[0.946534, 0.980100, 1.0]]), atol=1e-6)

    @given(rollouts(longest=80), UNITS, UNITS)
    def test_literal_loop(self, rollout, gamma, lam):
        rewards, values, mask, terminated = rollout
        result = gae(rewards, values, mask, terminated, gamma, lam)
        advantages, returns = loop_gae(rewards, values, mask, terminated, gamma, lam)
        close(result.advantages, advantages)
        close(result.returns, returns)

    @pytest.mark.slow
    @pytest.mark.parametrize("steps", [32, 33, 1024, 1100])
    def test_long_rows_without_padding(self, steps):
        rewards, values = torch.randn(4, steps), torch.randn(4, steps + 1)
        mask, terminated = torch.ones(4, steps, dtype=torch.bool), torch.tensor([True, False, True, False])
        values[terminated, -1] = math.nan
        for gamma, lam in ((0.99, 0.95), (1.0, 1.0), (1.0, 0.0), (0.0, 0.5), (1e-20, 1e-20)):
            result = gae(rewards, values, mask, terminated, gamma, lam)
            advantages, returns = loop_gae(rewards, values, mask, terminated, gamma, lam)
            close(result.advantages, advantages)
            close(result.returns, returns)

    @given(rollouts(), UNITS)
    def test_lambda_one_is_the_return_minus_the_value(self, rollout, gamma):
        rewards, values, mask, terminated = rollout
        last = values.gather(1, mask.sum(1)[:, None])[:, 0]
        bootstrap = torch.where(terminated, 0.0, last)
        expected = discounted_returns(rewards, mask, gamma, bootstrap) - torch.where(mask, values[:, :-1], 0.0)
        close(gae(rewards, values, mask, terminated, gamma, 1.0).advantages, expected)

    @given(rollouts(), UNITS)
    def test_lambda_zero_is_the_one_step_error(self, rollout, gamma):
        rewards, values, mask, terminated = rollout
        expected = chunk_td_targets(rewards, values, mask, terminated, 1, gamma)
        result = gae(rewards, values, mask, terminated, gamma, 0.0)
        close(result.returns, expected)
        close(result.advantages, expected - torch.where(mask, values[:, :-1], 0.0))

    def test_exact_value_has_no_advantage(self):
        # V = the discounted return itself: every temporal-difference error is 0, for any λ.
        rewards, mask = -torch.ones(1, 60), torch.ones(1, 60, dtype=torch.bool)
        values = torch.cat([discounted_returns(rewards, mask, 0.97), torch.zeros(1, 1)], 1)
        for lam in (0.0, 0.5, 0.95, 1.0):
            result = gae(rewards, values, mask, torch.tensor([True]), 0.97, lam)
            close(result.advantages, torch.zeros(1, 60), atol=2e-5)

    @given(rollouts(), UNITS, UNITS)
    def test_truncation_adds_the_discounted_last_value(self, rollout, gamma, lam):
        rewards, values, mask, _ = rollout
        values = values.nan_to_num(1.7)
        length = mask.sum(1)
        cut = gae(rewards, values, mask, torch.zeros(len(rewards), dtype=torch.bool), gamma, lam)
        ended = gae(rewards, values, mask, torch.ones(len(rewards), dtype=torch.bool), gamma, lam)
        last = values.gather(1, length[:, None])
        remaining = (length[:, None] - 1 - torch.arange(mask.shape[1])).clamp(min=0)
        expected = torch.where(mask, (gamma * lam) ** remaining.double() * gamma * last, 0.0)
        close(cut.advantages - ended.advantages, expected)

    @given(rollouts(), st.integers(1, 50), st.sampled_from([0.0, 7.0, math.inf, math.nan]))
    def test_padding_never_matters(self, rollout, more, filler):
        rewards, values, mask, terminated = rollout
        steps = mask.shape[1]
        wide_mask = torch.cat([mask, torch.zeros(len(mask), more, dtype=torch.bool)], 1)
        wide_rewards = torch.cat([rewards.masked_fill(~mask, filler), torch.full((len(mask), more), filler)], 1)
        known = torch.cat([mask, torch.zeros(len(mask), 1, dtype=torch.bool)], 1)
        known |= (torch.arange(steps + 1) == mask.sum(1)[:, None]) & ~terminated[:, None] & mask.any(1)[:, None]
        wide_values = torch.cat([values.masked_fill(~known, filler), torch.full((len(mask), more), filler)], 1)
        narrow = gae(rewards, values, mask, terminated, 0.99, 0.95)
        wide = gae(wide_rewards, wide_values, wide_mask, terminated, 0.99, 0.95)
        for few, many in zip(narrow, wide, strict=True):
            torch.testing.assert_close(many[:, :steps], few)
            assert (many[:, steps:] == 0).all()
            assert (few[~mask] == 0).all()

    def test_hole_ends_a_piece(self):
        # A hole at step 2: steps 0–1 are a piece cut at observation 2 (bootstrapped), step 3 ends the row (terminated).
        rewards = torch.tensor([[1.0, 2.0, math.nan, 3.0]])
        values = torch.tensor([[0.5, 0.25, 4.0, 1.0, math.nan]])
        mask, terminated = torch.tensor([[True, True, False, True]]), torch.tensor([True])
        result = gae(rewards, values, mask, terminated, 0.9, 0.8)
        first, second = rewards[:, :2], rewards[:, 3:]
        whole = torch.ones(1, 2, dtype=torch.bool)
        before = gae(first, values[:, :3], whole, torch.tensor([False]), 0.9, 0.8)
        after = gae(second, values[:, 3:], whole[:, :1], torch.tensor([True]), 0.9, 0.8)
        expected = torch.cat([before.advantages, torch.zeros(1, 1), after.advantages], 1)
        torch.testing.assert_close(result.advantages, expected)

    @given(rollouts(longest=80), UNITS)
    def test_discounts_per_step_against_a_literal_loop(self, rollout, lam):
        rewards, values, mask, terminated = rollout
        gamma = torch.rand(mask.shape).masked_fill(torch.rand(mask.shape) < 0.1, 0.0).masked_fill(~mask, math.nan)
        result = gae(rewards, values, mask, terminated, gamma, lam)
        advantages, returns = loop_gae(rewards, values, mask, terminated, gamma, lam)
        close(result.advantages, advantages)
        close(result.returns, returns)

    @given(rollouts(), UNITS, UNITS)
    def test_equal_discounts_are_one_discount(self, rollout, gamma, lam):
        rewards, values, mask, terminated = rollout
        one = gae(rewards, values, mask, terminated, gamma, lam)
        each = gae(rewards, values, mask, terminated, torch.full_like(rewards, gamma), lam)
        close(each.advantages, one.advantages)
        close(each.returns, one.returns)

    def test_discounts_per_step_by_hand(self):
        # γ = (0.5, 0.9), λ = 0.8, cut: δ1 = 1 + 0.9·4 − 3 = 1.6; δ0 = 2 + 0.5·3 − 1 = 2.5; A0 = 2.5 + 0.4·1.6 = 3.14
        rewards, values = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0, 4.0]])
        result = gae(rewards, values, prefix([2], 2), torch.tensor([False]), torch.tensor([[0.5, 0.9]]), 0.8)
        close(result.advantages, torch.tensor([[3.14, 1.6]]))

    def test_hole_ends_a_piece_with_discounts_per_step_too(self):
        rewards = torch.tensor([[1.0, 2.0, math.nan, 3.0]])
        values = torch.tensor([[0.5, 0.25, 4.0, 1.0, math.nan]])
        mask, terminated = torch.tensor([[True, True, False, True]]), torch.tensor([True])
        gamma = torch.tensor([[0.9, 0.9, math.nan, 0.9]])
        one = gae(rewards, values, mask, terminated, 0.9, 0.8)
        close(gae(rewards, values, mask, terminated, gamma, 0.8).advantages, one.advantages)

    @pytest.mark.parametrize("gamma", [torch.full((1, 2), 1.5), torch.tensor([[0.5, math.nan]])])
    def test_discounts_per_step_lie_in_the_unit_interval(self, gamma):
        with pytest.raises(ValueError, match="gamma: expected numbers in"):
            gae(torch.ones(1, 2), torch.ones(1, 3), prefix([2], 2), torch.tensor([True]), gamma, 0.9)

    def test_no_gradients_and_dtypes(self):
        values = torch.randn(2, 6, requires_grad=True)
        mask, terminated = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
        result = gae(torch.randn(2, 5, requires_grad=True), values, mask, terminated, 0.9, 0.9)
        assert not result.advantages.requires_grad
        assert not result.returns.requires_grad
        for dtype in (torch.float64, torch.bfloat16):
            got = gae(torch.ones(2, 5, dtype=dtype), torch.ones(2, 6, dtype=dtype), mask, terminated, 0.9, 0.9)
            assert got.advantages.dtype == got.returns.dtype == dtype

    def test_no_steps_at_all(self):
        result = gae(
            torch.zeros(2, 0), torch.zeros(2, 1), prefix([0, 0], 0), torch.zeros(2, dtype=torch.bool), 0.9, 0.9
        )
        assert result.advantages.shape == (2, 0)

    def test_real_value_that_is_not_finite(self):
        with pytest.raises(ValueError, match="NaN or infinite"):
            gae(
                torch.ones(1, 2),
                torch.tensor([[1.0, math.nan, 0.0]]),
                prefix([2], 2),
                torch.tensor([True]),
                0.9,
                0.9,
            )


class TestChunkTargets:
    def test_tail_of_a_chunk(self):
        # Ten steps of −1, the last 0 on success, γ = 0.99, chunk of 50: −Σ_{k<9} 0.99^k = −8.6483, and no bootstrap.
        rewards = -torch.ones(1, 10)
        rewards[0, -1] = 0.0
        low = torch.full((1, 11), -100.0)
        mask, yes, no = prefix([10], 10), torch.tensor([True]), torch.tensor([False])
        assert chunk_td_targets(rewards, low, mask, yes, 50, 0.99)[0, 0].item() == pytest.approx(-8.6483, abs=5e-5)
        # The same tail cut by a time limit bootstraps: + 0.99^10 · −100 = −90.4382.
        expected = -8.648275 - 100 * 0.99**10
        assert chunk_td_targets(rewards, low, mask, no, 50, 0.99)[0, 0].item() == pytest.approx(expected, abs=1e-4)

    @given(rollouts(), UNITS, st.integers(0, 1000))
    def test_literal_loop(self, rollout, gamma, seed):
        rewards, values, mask, terminated = rollout
        steps = mask.shape[1]
        torch.manual_seed(seed)
        horizon = torch.randint(1, steps + 5, mask.shape)
        expected = loop_chunk(rewards, values, mask, terminated, horizon, gamma)
        horizon[~mask] = -7  # padding may hold anything
        close(chunk_td_targets(rewards, values, mask, terminated, horizon, gamma), expected)
        fixed = int(torch.randint(1, steps + 5, ()))
        expected = loop_chunk(rewards, values, mask, terminated, torch.full(mask.shape, fixed), gamma)
        close(chunk_td_targets(rewards, values, mask, terminated, fixed, gamma), expected)

    @given(rollouts(), UNITS)
    def test_long_horizon_is_the_return(self, rollout, gamma):
        rewards, values, mask, terminated = rollout
        last = values.gather(1, mask.sum(1)[:, None])[:, 0]
        expected = discounted_returns(rewards, mask, gamma, torch.where(terminated, 0.0, last))
        close(chunk_td_targets(rewards, values, mask, terminated, 10**6, gamma), expected)

    def test_one_step(self):
        # y = r + γ · next value: 1 + 0.5·4 = 3, then 2 + 0.5·6 = 5 where cut and 2 where terminated.
        rewards, values = torch.tensor([[1.0, 2.0]] * 2), torch.tensor([[9.0, 4.0, 6.0]] * 2)
        result = chunk_td_targets(rewards, values, prefix([2, 2], 2), torch.tensor([False, True]), 1, 0.5)
        assert result.tolist() == [[3.0, 5.0], [3.0, 2.0]]

    def test_fixed_point_is_the_same_for_every_horizon(self):
        # With exact values every horizon gives back the value, −(1 − 0.9^(L−t)) / 0.1, terminated after L = 12.
        value = torch.tensor([[-(1 - 0.9 ** (12 - t)) / 0.1 for t in range(13)]])
        for horizon in (1, 2, 3, 5, 50):
            result = chunk_td_targets(-torch.ones(1, 12), value, prefix([12], 12), torch.tensor([True]), horizon, 0.9)
            close(result, value[:, :-1])

    def test_a_huge_later_reward_does_not_drown_a_small_one(self):
        rewards, mask = torch.tensor([[1e-6, 0.0, 0.0, 1e12]], dtype=torch.float64), prefix([4], 4)
        values = torch.zeros(1, 5, dtype=torch.float64)
        result = chunk_td_targets(rewards, values, mask, torch.tensor([True]), 2, 1.0)
        assert result[0, 0].item() == 1e-6
        assert result[0, 1].item() == 0.0

    @pytest.mark.parametrize("horizon", [0, -1, torch.tensor([[1, 0]])])
    def test_horizon_below_one(self, horizon):
        with pytest.raises(ValueError, match="horizon"):
            chunk_td_targets(torch.ones(1, 2), torch.ones(1, 3), prefix([2], 2), torch.tensor([True]), horizon, 0.9)


class TestMacroRewards:
    def test_by_hand(self):
        # Decisions at 1 and 3 of L = 5: step 0 belongs to none; 2 + 0.5·4 = 4; 8 + 0.5·16 = 16.
        rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, math.nan]])
        steps, mask = torch.tensor([[1, 3, -1]]), prefix([5], 6)
        assert macro_rewards(rewards, steps, mask, 0.5).tolist() == [[4.0, 16.0, 0.0]]
        assert macro_rewards(rewards, steps, mask).tolist() == [[6.0, 24.0, 0.0]]

    @given(rollouts(), UNITS, st.data())
    def test_literal_loop(self, rollout, gamma, data):
        rewards, _, mask, _ = rollout
        rows, steps = mask.shape
        chosen = [data.draw(st.sets(st.integers(0, steps - 1))) for _ in range(rows)]
        width = max(len(c) for c in chosen) + 1
        decisions = torch.tensor([sorted(c) + [-1] * (width - len(c)) for c in chosen])
        close(macro_rewards(rewards, decisions, mask, gamma), loop_macro(rewards, decisions, mask, gamma))

    @given(rollouts())
    def test_a_decision_at_every_step_is_the_reward(self, rollout):
        rewards, _, mask, _ = rollout
        every = torch.arange(mask.shape[1]).expand(mask.shape)
        assert torch.equal(macro_rewards(rewards, every, mask, 0.9), torch.where(mask, rewards, 0.0))

    @given(rollouts(), st.integers(1, 9), UNITS)
    def test_discounted_between_decisions_it_is_the_return(self, rollout, chunk, gamma):
        rewards, _, mask, _ = rollout
        decisions = torch.arange(0, mask.shape[1], chunk).expand(len(mask), -1)
        macro = macro_rewards(rewards, decisions, mask, gamma)
        decided = decisions < mask.sum(1)[:, None]
        got = discounted_returns(macro, decided, gamma**chunk)
        expected = discounted_returns(rewards, mask, gamma)[:, ::chunk]
        close(got, expected)

    def test_sparse_reward_leaves_exact_zeros(self):
        rewards = torch.zeros(1, 9)
        rewards[0, -1] = 0.1
        result = macro_rewards(rewards, torch.tensor([[0, 3, 6]]), prefix([9], 9), 0.97)
        assert result[0, :2].tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("steps", [[2, 1], [1, 1], [0, 9]])
    def test_decisions_that_do_not_increase(self, steps):
        with pytest.raises(ValueError, match="strictly increasing"):
            macro_rewards(torch.ones(1, 4), torch.tensor([steps]), prefix([4], 4))

    def test_no_decisions(self):
        assert macro_rewards(torch.ones(2, 4), torch.zeros(2, 0, dtype=torch.long), prefix([4, 1], 4)).shape == (2, 0)
        assert macro_rewards(torch.ones(1, 4), torch.tensor([[-1, -1]]), prefix([4], 4)).tolist() == [[0.0, 0.0]]


class TestGroups:
    def test_by_hand(self):
        # Group 7: 1, 0, 0, 0: leave-one-out 1 − 0 = 1 and 0 − 1/3; mean 0.25, std 0.5: (1.5, −0.5, −0.5, −0.5).
        # Group 2: all equal; group 5: alone.
        scores = torch.tensor([1.0, 0.1, 0.0, 0.1, 0.0, 0.0, 3.0, 0.1])
        group = torch.tensor([7, 2, 7, 2, 7, 7, 5, 2])
        expected = torch.tensor([1.0, 0, -1 / 3, 0, -1 / 3, -1 / 3, 0, 0])
        torch.testing.assert_close(leave_one_out(scores, group), expected)
        expected = torch.tensor([1.5, 0, -0.5, 0, -0.5, -0.5, 0, 0])
        torch.testing.assert_close(group_standardise(scores, group, eps=0.0), expected)
        # eps is added to the standard deviation: 0.75 / (0.5 + 0.25) = 1.
        assert group_standardise(scores, group, eps=0.25)[0].item() == pytest.approx(1.0)

    @pytest.mark.parametrize(("size", "successes", "one_out", "standard"), [(8, 1, 2.0, 5.29), (8, 4, 32 / 7, 8.0)])
    def test_mass_of_binary_groups(self, size, successes, one_out, standard):
        # Σ|A| is 2S(K − S)/(K − 1) left-one-out, and 2√(S(K − S)) · √((K − 1)/K) with the deviation of ddof = 1.
        scores = torch.tensor([1.0] * successes + [0.0] * (size - successes))
        group = torch.zeros(size, dtype=torch.long)
        assert leave_one_out(scores, group).abs().sum().item() == pytest.approx(one_out, abs=1e-5)
        mass = group_standardise(scores, group, eps=0.0).abs().sum().item()
        assert mass == pytest.approx(standard * math.sqrt((size - 1) / size), abs=5e-3)

    @given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=12))
    def test_leave_one_out_is_the_scaled_distance_from_the_mean_and_adds_up_to_zero(self, scores):
        # A = K/(K − 1) · (R − mean R): LOOP (arXiv 2502.01600), section 3
        given, size = torch.tensor(scores, dtype=torch.float64), len(scores)
        found = leave_one_out(given, torch.zeros(size, dtype=torch.long))
        torch.testing.assert_close(found, size / (size - 1) * (given - given.mean()), rtol=1e-9, atol=1e-9)
        assert found.sum().item() == pytest.approx(0, abs=1e-9 * (1 + float(given.abs().sum())))

    @given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(-2, 3)), max_size=30))
    def test_literal_loop(self, pairs):
        scores = torch.tensor([score for score, _ in pairs])
        group = torch.tensor([g for _, g in pairs], dtype=torch.long)
        one_out, standard = leave_one_out(scores, group), group_standardise(scores, group)
        for i, (score, g) in enumerate(pairs):
            members = [s for s, other in pairs if other == g]
            if len(members) == 1 or max(members) == min(members):
                assert one_out[i] == standard[i] == 0
                continue
            mean = math.fsum(members) / len(members)
            others = (math.fsum(members) - score) / (len(members) - 1)
            std = math.sqrt(math.fsum((s - mean) ** 2 for s in members) / (len(members) - 1))
            assert one_out[i].item() == pytest.approx(score - others, rel=1e-5, abs=1e-6)
            assert standard[i].item() == pytest.approx((score - mean) / (std + 1e-6), rel=1e-5, abs=1e-6)

    @given(st.floats(-1e6, 1e6, width=32), st.integers(1, 200))
    def test_equal_scores_give_exact_zeros(self, score, size):
        scores, group = torch.full((size,), score), torch.zeros(size, dtype=torch.int32)
        for dtype in (torch.float32, torch.float64):
            assert (leave_one_out(scores.to(dtype) / 3, group) == 0).all()
            assert (group_standardise(scores.to(dtype) / 3, group) == 0).all()

    def test_tiny_spread_on_a_large_score_is_kept(self):
        # 1000 and 1000 + 2^-14 differ in float32; std with ddof = 1 of two is spread / √2: ±1/√2 where eps = 0.
        scores = torch.tensor([1000.0, 1000.0 + 2**-14])
        result = group_standardise(scores, torch.zeros(2, dtype=torch.long), eps=0.0)
        torch.testing.assert_close(result, torch.tensor([-(0.5**0.5), 0.5**0.5]))

    def test_invalid_scores_are_cut_out(self):
        scores, group = torch.tensor([1.0, math.nan, 0.0, 0.0]), torch.tensor([0, 0, 0, 1])
        valid = torch.tensor([True, False, True, True])
        assert leave_one_out(scores, group, valid).tolist() == [1.0, 0.0, -1.0, 0.0]
        # mean 0.5, std √0.5: ±0.5/√0.5 = ±√0.5
        half = pytest.approx(0.5**0.5)
        assert group_standardise(scores, group, 0.0, valid).tolist() == [half, 0.0, pytest.approx(-(0.5**0.5)), 0.0]
        for function in (leave_one_out, group_standardise):
            with pytest.raises(ValueError, match="valid=False"):
                function(scores, group)

    def test_empty(self):
        nothing = torch.zeros(0, dtype=torch.long)
        assert leave_one_out(torch.zeros(0), nothing).shape == (0,)
        assert group_standardise(torch.zeros(0), nothing).shape == (0,)


class TestBandit:
    """Gradient estimators on a bandit of two arms, in expectation over all outcomes of a group: nothing is sampled."""

    SIZE, PAYS = 6, (0.05, 0.95)  # episodes of a group; probability that an arm pays 1

    def moments(self, chance, advantages):
        """Return mean and variance of the estimate mean_k A_k d log π(a_k), with respect to the logit of arm 1."""
        outcomes = torch.tensor(list(itertools.product([(0, 0), (0, 1), (1, 0), (1, 1)], repeat=self.SIZE)))
        arm, paid = outcomes.double().unbind(-1)
        pays = torch.tensor(self.PAYS, dtype=torch.float64)[outcomes[..., 0]]
        drawn = torch.tensor([1 - chance, chance], dtype=torch.float64)[outcomes[..., 0]]
        weight = (drawn * torch.where(paid == 1, pays, 1 - pays)).prod(1)
        groups = torch.arange(len(paid)).repeat_interleave(self.SIZE)
        gain = advantages(paid.flatten(), groups).view_as(paid)
        estimate = (gain * (arm - chance)).mean(1)  # d log π(a)/d logit = a − p
        mean = (weight * estimate).sum()
        return mean.item(), (weight * (estimate - mean).square()).sum().item()

    def exact(self, chance):
        """Return dJ/d logit of J = p · 0.95 + (1 − p) · 0.05."""
        return chance * (1 - chance) * (self.PAYS[1] - self.PAYS[0])

    @pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
    def test_leave_one_out_is_unbiased_and_the_mean_of_all_is_not(self, chance):
        assert self.moments(chance, leave_one_out)[0] == pytest.approx(self.exact(chance), rel=1e-9)

        def centred(scores, group):  # R − mean R
            return scores - scores.view(-1, self.SIZE).mean(1).repeat_interleave(self.SIZE)

        shrunk = (self.SIZE - 1) / self.SIZE * self.exact(chance)
        assert self.moments(chance, centred)[0] == pytest.approx(shrunk, rel=1e-9)

    def test_leave_one_out_varies_less_than_no_baseline_until_most_episodes_succeed(self):
        lower = []
        for chance in (0.1, 0.5, 0.9):
            plain, spread = self.moments(chance, lambda scores, group: scores)
            assert plain == pytest.approx(self.exact(chance), rel=1e-9)
            lower.append(self.moments(chance, leave_one_out)[1] < spread)
        # at 0.9 the likely arm has a small d log π, and no baseline weighs the rare arm, which fails, with 0
        assert lower == [True, True, False]

    def test_standard_scores_are_biased_by_a_factor_that_depends_on_the_policy(self):
        middle, edge = (self.moments(chance, group_standardise)[0] / self.exact(chance) for chance in (0.5, 0.9))
        assert 1.5 < middle < 0.95 * edge, "one factor for all would be a learning rate"


class TestStandardise:
    @given(rollouts())
    def test_mean_zero_and_deviation_one_over_real_steps(self, rollout):
        rewards, _, mask, _ = rollout
        result = standardise(rewards, mask)
        assert (result[~mask] == 0).all()
        real = result[mask]
        if len(real) < 2:
            assert (real == 0).all()
        else:
            assert real.mean().item() == pytest.approx(0, abs=1e-5)
            assert real.std(correction=0).item() == pytest.approx(1, abs=1e-4)

    def test_by_hand(self):
        # 1, 3: mean 2, std 1 with ddof = 0; eps 1 halves them.
        x, mask = torch.tensor([[1.0, 3.0, math.nan]]), prefix([2], 3)
        assert standardise(x, mask, eps=1.0).tolist() == [[-0.5, 0.5, 0.0]]

    def test_equal_numbers_give_exact_zeros(self):
        assert (standardise(torch.full((7, 13), 0.1), torch.ones(7, 13, dtype=torch.bool)) == 0).all()

    def test_nothing_real(self):
        assert (standardise(torch.full((2, 2), math.nan), prefix([0, 0], 2)) == 0).all()

    def test_real_entry_that_is_not_finite(self):
        with pytest.raises(ValueError, match="NaN or infinite"):
            standardise(torch.tensor([1.0, math.nan]), torch.tensor([True, True]))


@pytest.mark.slow
def test_wrong_shapes_are_refused_where_annotations_are_not_enforced():
    code = """
import torch
from guerdon.core import returns
ones, yes = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
done = torch.ones(2, dtype=torch.bool)
attempts = [
    lambda: returns.discounted_returns(ones, yes[:1], 0.9),
    lambda: returns.discounted_returns(ones, ones, 0.9),
    lambda: returns.discounted_returns(ones.long(), yes, 0.9),
    lambda: returns.gae(ones, ones, yes, done, 0.9, 0.9),
    lambda: returns.gae(ones, torch.ones(2, 4), yes, done[:1], 0.9, 0.9),
    lambda: returns.chunk_td_targets(ones, torch.ones(2, 4), yes, done, torch.ones(2, 1).long(), 0.9),
    lambda: returns.macro_rewards(ones, torch.zeros(1, 1).long(), yes),
    lambda: returns.leave_one_out(ones[0], torch.zeros(1).long()),
    lambda: returns.standardise(ones, yes[:1]),
]
for number, attempt in enumerate(attempts):
    try:
        attempt()
    except ValueError as error:
        assert "expected" in str(error), error
    else:
        raise SystemExit(f"attempt {number} passed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
