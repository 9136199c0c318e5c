"""Attention pooling: order does not count, padding is not seen, and it finds the token that matters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guerdon.backbones.token_learner import TokenLearner
from guerdon.testing.conformance import reopen


def learner(queries=2):
    torch.manual_seed(0)
    return TokenLearner(width=8, queries=queries, heads=2, token_width=6)


@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 100))
def test_the_order_of_tokens_and_what_padding_holds_do_not_count(tokens, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    pool, real = learner(), torch.randn(3, tokens, 6, generator=generator)
    wanted = pool(real, torch.ones(3, tokens, dtype=torch.bool))
    assert wanted.shape == (3, pool.output_width) == (3, 16)
    padded = torch.cat([real, torch.full((3, padding, 6), torch.nan)], 1)
    order = torch.randperm(tokens + padding, generator=generator)
    mask = (torch.arange(tokens + padding) < tokens)[order].expand(3, -1)
    torch.testing.assert_close(pool(padded[:, order], mask), wanted, atol=1e-5, rtol=1e-5)


def test_each_token_can_change_the_result():
    pool, tokens = learner(), torch.randn(1, 4, 6)
    mask = torch.ones(1, 4, dtype=torch.bool)
    for place in range(4):
        other = tokens.clone()
        other[0, place] += torch.randn(6)
        assert (pool(other, mask) - pool(tokens, mask)).abs().max() > 1e-4


def test_a_row_without_a_token_gives_0_and_leaves_gradients_finite():
    pool, tokens = learner(), torch.randn(2, 3, 6, requires_grad=True)
    out = pool(tokens, torch.tensor([[False] * 3, [True] * 3]))
    assert (out[0] == 0).all() and (out[1] != 0).any()
    out.square().sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all() and (tokens.grad[0] == 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pool.parameters())


def test_it_equals_a_literal_loop_over_heads():
    pool, tokens = learner(queries=1), torch.randn(1, 3, 6)
    normal = pool.token_norm(tokens)[0]
    query, key, value = pool.query_in(pool.queries)[0], *pool.key_value(normal).chunk(2, -1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        share = torch.softmax(torch.stack([query[head] @ key[i, head] for i in range(3)]) / 2.0, 0)
        heads.append(torch.stack([share[i] * value[i, head] for i in range(3)]).sum(0))
    mixed = pool.query_norm(pool.queries[0] + pool.attended(torch.cat(heads)))
    wanted = pool.norm(mixed + pool.perceptron(mixed))
    torch.testing.assert_close(pool(tokens, torch.ones(1, 3, dtype=torch.bool))[0], wanted)


def test_saving_keeps_it():
    pool, tokens, mask = learner(), torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(reopen(pool)(tokens, mask), pool(tokens, mask))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="the width a multiple of the heads"):
        TokenLearner(width=7)
    with pytest.raises(ValueError, match="made for tokens of width 6, the backbone gives tokens of width 5"):
        learner().build(5)
    with pytest.raises(ValueError, match="expected tokens of width 6, got 5"):
        learner()(torch.zeros(1, 2, 5), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="a real token is NaN or infinite"):
        learner()(torch.full((1, 2, 6), torch.nan), torch.ones(1, 2, dtype=torch.bool))


def found_error(seed, mean_pooled):
    """Error after training on: the answer stands in the one token that carries a mark, at a random place."""
    torch.manual_seed(seed)
    pool = TokenLearner(width=16, heads=2, token_width=6)
    head = nn.Linear(6 if mean_pooled else 16, 1)
    optimizer = torch.optim.Adam([*pool.parameters(), *head.parameters()], 5e-3)

    def batch(count=64):
        tokens = torch.randn(count, 8, 6)
        tokens[..., 0] = 0.0
        place = torch.randint(8, (count,))
        tokens[torch.arange(count), place, 0] = 4.0
        return tokens, tokens[torch.arange(count), place, 1]

    def predicted(tokens):
        pooled = tokens.mean(1) if mean_pooled else pool(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        return head(pooled).squeeze(1)

    for _ in range(250):
        tokens, wanted = batch()
        optimizer.zero_grad()
        (predicted(tokens) - wanted).square().mean().backward()
        optimizer.step()
    tokens, wanted = batch(1000)
    with torch.no_grad():
        return float((predicted(tokens) - wanted).square().mean())


@pytest.mark.slow
def test_it_learns_which_token_to_look_at_and_a_mean_does_not():
    # the answer has variance 1; a mean of 8 tokens tells an eighth of it. Every seed must show it.
    assert all(found_error(seed, mean_pooled=False) < 0.35 for seed in range(5))
    assert all(found_error(seed, mean_pooled=True) > 0.7 for seed in range(5))


def test_a_device_is_not_waited_for():
    pool = learner().to("meta")
    tokens = torch.zeros(1, 2, 6, device="meta")
    assert pool(tokens, torch.ones(1, 2, dtype=torch.bool, device="meta")).shape == (1, 16)
