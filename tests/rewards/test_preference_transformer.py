"""Preference transformer: the contract, its weights against a loop, and what its reward depends on."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import TrajectoryBatch
from guerdon.core.edit import pad
from guerdon.rewards.preference_transformer import PreferenceTransformer, attention_weights
from guerdon.testing import check_reward_model


def rows(lengths=(6, 4, 1), seed=0):
    draw = torch.Generator().manual_seed(seed)
    steps = max(lengths)
    return TrajectoryBatch(
        state=torch.randn(len(lengths), steps + 1, 3, generator=draw),
        actions=torch.randn(len(lengths), steps, 2, generator=draw),
        mask=torch.arange(steps)[None] < torch.tensor(lengths)[:, None],
    )


def model(**more):
    torch.manual_seed(0)
    given: Any = {"width": 8, "heads": 2} | more
    return PreferenceTransformer(3, 2, **given)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans())
def test_it_keeps_the_contract(lengths, positions):
    batch = rows(tuple(lengths))
    made = model(positions=positions, layers=2)
    made.fit_normaliser([batch])
    check_reward_model(made, batch)


def literal(query, key, mask):
    """w_t of every row, by loops over queries and keys."""
    found = torch.zeros(mask.shape)
    for row in range(len(mask)):
        real = [t for t in range(mask.shape[1]) if mask[row, t]]
        for i in real:
            logits = [float(query[row, i] @ key[row, t]) / query.shape[-1] ** 0.5 for t in real]
            total = sum(2.718281828459045**x for x in logits)
            for t, x in zip(real, logits, strict=True):
                found[row, t] += 2.718281828459045**x / total / len(real)
    return found


def test_weights_equal_a_literal_loop_and_sum_to_one():
    draw = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 3, 5, 4, generator=draw).unbind(0)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    weights = attention_weights(query, key, mask)
    torch.testing.assert_close(weights, literal(query, key, mask))
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert not weights[~mask].any()


def test_equal_keys_give_the_mean_of_the_rewards():
    made = model().eval()
    with torch.no_grad():
        made.attention.weight[8:16].zero_()
        made.attention.bias[8:16].zero_()
    batch = rows()
    scored = made(batch)
    mean = scored.terms["reward"].sum(1) / batch.steps
    torch.testing.assert_close(scored.rewards.sum(1), mean)
    assert float(scored.rewards.abs().sum().detach()) > 0


def test_rewards_sum_to_the_weighted_sum_of_the_terms():
    made = model().eval()
    scored = made(rows())
    torch.testing.assert_close(scored.rewards, scored.terms["weight"] * scored.terms["reward"])
    torch.testing.assert_close(scored.terms["weight"].sum(1), torch.ones(3))


def test_more_padding_changes_nothing():
    made = model(layers=2).eval()
    batch = rows()
    shorter, longer = made(batch), made(pad(batch, steps=11))
    torch.testing.assert_close(longer.rewards[:, :6], shorter.rewards)
    assert not longer.rewards[:, 6:].any() and not longer.valid[:, 6:].any()


def test_the_term_reward_is_causal_and_the_weight_is_not():
    made = model(layers=2).eval()
    batch = rows((6,))
    other = replace(batch, state=batch.state.clone(), actions=batch.actions.clone())
    other.state[:, 4:] += 1.0
    other.actions[:, 4:] -= 1.0
    before, after = made(batch), made(other)
    torch.testing.assert_close(before.terms["reward"][:, :4], after.terms["reward"][:, :4])
    assert float((before.rewards[:, :4] - after.rewards[:, :4]).abs().max().detach()) > 1e-4
    assert not made.causal


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="multiple of heads"):
        PreferenceTransformer(3, 2, width=10, heads=4)
    with pytest.raises(ValueError, match="dropout"):
        PreferenceTransformer(3, 2, dropout=1.0)
