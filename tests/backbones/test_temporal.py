from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from guerdon.backbones.temporal import CausalTransformer, sinusoidal


def build(**changes: Any):
    torch.manual_seed(1)
    given: dict[str, Any] = {"input_width": 6, "width": 16, "layers": 2, "heads": 2}
    return CausalTransformer(**(given | changes))


def test_sinusoidal_by_hand():
    # two periods, 4 and 16: position 1 is a quarter turn of the first and a sixteenth of the second
    # sin(π/2) = 1, cos(π/2) = 0, sin(π/8) = 0.382683, cos(π/8) = 0.923880
    got = sinusoidal(torch.tensor([0, 1]), 4, 4.0, 16.0)
    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.382683, 0.923880]])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_equals_a_literal_loop_over_frames():
    """Attention written out for one frame, head and earlier frame at a time."""
    model = build(layers=1)
    x = torch.randn(1, 5, 6)
    block: Any = model.blocks[0]
    stream = model.embedding(x[0]) + sinusoidal(torch.arange(5), 16, *model.periods)
    mixed = block.query_key_value(block.attention_norm(stream))  # (F, 3 · heads · d), d = 8
    out = torch.zeros(5, 16)
    for i in range(5):
        for head in range(2):
            query = mixed[i, 8 * head : 8 * head + 8]
            scores = torch.stack(
                [(query * mixed[j, 16 + 8 * head : 24 + 8 * head]).sum() / 8**0.5 for j in range(i + 1)]
            )
            share = scores.exp() / scores.exp().sum()
            for j in range(i + 1):
                out[i, 8 * head : 8 * head + 8] += share[j] * mixed[j, 32 + 8 * head : 40 + 8 * head]
    stream = stream + block.projection(out)
    stream = stream + block.perceptron(block.perceptron_norm(stream))
    torch.testing.assert_close(model(x)[0], model.norm(stream), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_the_future_changes_nothing(seed, frames):
    model = build()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, frames, 6, generator=generator)
    mask = torch.rand(2, frames, generator=generator) < 0.7
    cut = int(torch.randint(frames, (), generator=generator))
    other = x.clone()
    other[:, cut:] += torch.randn(2, frames - cut, 6, generator=generator)
    other_mask = mask.clone()
    other_mask[:, cut:] = torch.rand(2, frames - cut, generator=generator) < 0.5
    torch.testing.assert_close(model(x, mask)[:, :cut], model(other, other_mask)[:, :cut], atol=1e-6, rtol=0)


def test_the_present_and_the_past_do_matter():
    model = build()
    x = torch.randn(1, 4, 6)
    other = x.clone()
    other[:, 1] += 1.0
    moved = (model(x) - model(other)).abs().amax(-1)[0]
    assert moved[0] == 0 and (moved[1:] > 1e-4).all()


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(1, 10))
def test_padding_is_invisible_wherever_it_stands(seed, frames):
    model = build()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, frames, 6, generator=generator)
    places = torch.randperm(frames + 5, generator=generator)[:frames].sort().values
    padded = torch.full((1, frames + 5, 6), float("nan"))
    padded[:, places] = x
    mask = torch.zeros(1, frames + 5, dtype=torch.bool)
    mask[:, places] = True
    got = model(padded, mask)
    torch.testing.assert_close(got[:, places], model(x), atol=1e-5, rtol=1e-5)
    assert (got[~mask] == 0).all()


def test_padding_passes_no_nan_to_gradients():
    model = build()
    x = torch.randn(2, 6, 6)
    mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    x[~mask] = float("nan")
    x.requires_grad_()
    model(x, mask).square().sum().backward()
    assert x.grad is not None and (x.grad[~mask] == 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@given(st.integers(0, 10**6))
def test_step_by_step_equals_the_full_pass(seed):
    model = build()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 9, 6, generator=generator)
    mask = torch.rand(3, 9, generator=generator) < 0.7
    x[~mask] = float("nan")
    times = torch.rand(3, 9, generator=generator).cumsum(1) if seed % 2 else None
    state, outputs = None, []
    for i in range(9):
        y, state = model.step(state, x[:, i], mask[:, i], None if times is None else times[:, i])
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), model(x, mask, times), atol=1e-5, rtol=1e-5)


def test_a_reset_row_starts_anew_and_the_others_go_on():
    model = build().eval()
    x = torch.randn(2, 8, 6)
    state = None
    for i in range(8):
        if i == 5:
            state = state.reset(torch.tensor([True, False]))
        y, state = model.step(state, x[:, i])
    torch.testing.assert_close(y[0], model(x[:1, 5:])[0, -1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[1], model(x[1:])[0, -1], atol=1e-5, rtol=1e-5)
    assert state.reset(torch.tensor([True, True])).valid.shape == (2, 0)
    assert state.reset(torch.tensor([False, True])).valid.shape == (2, 3)  # frames 5, 6, 7 of the first row


def test_training_and_evaluation_agree_without_dropout_and_differ_with_it():
    x = torch.randn(2, 5, 6)
    plain, dropping = build(), build(dropout=0.5)
    assert torch.equal(plain.train()(x), plain.eval()(x))
    assert not torch.allclose(dropping.train()(x), dropping.eval()(x))


def test_order_is_felt_through_positions():
    """With the earlier frames swapped, the last frame sees the same set: only positions tell them apart."""
    x = torch.randn(1, 3, 6)
    swapped = x[:, [1, 0, 2]]
    bare, placed = build(positions=False, layers=1), build(layers=1)
    torch.testing.assert_close(bare(x)[:, 2], bare(swapped)[:, 2], atol=1e-6, rtol=0)
    assert (placed(x)[:, 2] - placed(swapped)[:, 2]).abs().max() > 1e-4


def test_times_are_by_default_the_number_of_real_frames_before():
    model = build()
    x = torch.randn(1, 4, 6)
    assert torch.equal(model(x), model(x, times=torch.arange(4)[None]))
    assert not torch.allclose(model(x), model(x, times=3 * torch.arange(4)[None]))


def test_any_length_and_late_times():
    model = build(layers=1)
    with torch.no_grad():
        assert model(torch.randn(1, 3000, 6)).isfinite().all()
        now = torch.tensor([[1.7e9, 1.7e9 + 0.25]], dtype=torch.float64)  # seconds since 1970 at 4 Hz
        first, second = model(torch.ones(1, 2, 6), times=now)[0]
    assert (first - second).abs().max() > 1e-3


def test_empty_inputs_give_empty_outputs():
    model = build()
    assert model(torch.zeros(0, 3, 6)).shape == (0, 3, 16)
    assert model(torch.zeros(2, 0, 6)).shape == (2, 0, 16)


def test_bad_input_is_named():
    model = build()
    with pytest.raises(ValueError, match="NaN or infinity"):
        model(torch.full((1, 2, 6), float("nan")))
    with pytest.raises(ValueError, match="width 5: this transformer reads 6"):
        model(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="width 5: this transformer reads 6"):
        model.step(None, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="multiple of heads"):
        build(width=18, heads=4)
    with pytest.raises(ValueError, match="expected positive"):
        build(layers=0)


@pytest.mark.slow
def test_it_learns_to_count():
    """Needs memory of all earlier frames: the running mean of the first input."""
    model = build(layers=1, heads=1)
    readout = torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *readout.parameters()], lr=3e-3)
    for _ in range(200):
        x = torch.randn(32, 8, 6)
        target = x[..., 0].cumsum(1) / torch.arange(1, 9)
        loss = (readout(model(x))[..., 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # guessing 0 leaves the target's own variance: mean of 1/k over k = 1…8 is 0.34
    assert loss < 0.05


def test_saved_and_opened_again(tmp_path):
    model = build(dropout=0.1).eval()
    x = torch.randn(2, 5, 6)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(CausalTransformer.from_pretrained(tmp_path / "model")(x), model(x))
