"""Action distributions against torch's own, numerical integration, and their own samples."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from guerdon.policies.distributions import (
    BinnedActions,
    GaussianActions,
    LaplaceActions,
    gaussian_log_prob,
    laplace_log_prob,
)

CONTINUOUS: list[Any] = [(GaussianActions, torch.distributions.Normal), (LaplaceActions, torch.distributions.Laplace)]
numbers = st.floats(-5, 5, width=32)


@given(numbers, numbers, st.floats(-3, 2, width=32))
def test_log_densities_are_those_of_torch(x, mean, log_scale):
    at, centre, scale = (torch.tensor([v], dtype=torch.float64) for v in (x, mean, log_scale))
    for ours, theirs in ((gaussian_log_prob, "Normal"), (laplace_log_prob, "Laplace")):
        expected = getattr(torch.distributions, theirs)(centre, scale.exp()).log_prob(at)
        torch.testing.assert_close(ours(at, centre, scale), expected, rtol=1e-9, atol=1e-9)


def test_by_hand():
    zero, one = torch.zeros(1), torch.ones(1)
    assert float(laplace_log_prob(one, zero, zero)) == pytest.approx(-1 - math.log(2))
    assert float(laplace_log_prob(zero, zero, one * math.log(0.05))) == pytest.approx(-math.log(0.1), rel=1e-5)
    assert float(gaussian_log_prob(one, zero, zero)) == pytest.approx(-0.5 - 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("log_scale", [-2.0, 0.3])
@pytest.mark.parametrize("density", [gaussian_log_prob, laplace_log_prob])
def test_densities_integrate_to_one(density, log_scale):
    def at(x: float) -> float:
        point = torch.tensor(x, dtype=torch.float64)
        return math.exp(float(density(point, point.new_tensor(0.4), point.new_tensor(log_scale))))

    parts = [integrate.quad(at, a, b, epsabs=1e-10)[0] for a, b in ((-40, 0.4), (0.4, 40))]
    assert sum(parts) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("ours, theirs", CONTINUOUS)
def test_samples_follow_the_density_that_is_reported(ours, theirs):
    mean, log_scale = torch.full((20_000, 1, 1), 0.3), torch.tensor(-0.7)
    actions = ours(mean, log_scale)
    drawn = actions.sample(torch.Generator().manual_seed(1)).flatten().numpy()
    other = {"Normal": stats.norm, "Laplace": stats.laplace}[theirs.__name__](0.3, math.exp(-0.7))
    assert stats.kstest(drawn, other.cdf).pvalue > 0.01
    edges = other.ppf(np.linspace(0, 1, 21))
    counts = np.histogram(drawn, np.nan_to_num(edges, neginf=-1e9, posinf=1e9))[0]
    assert stats.chisquare(counts).pvalue > 0.01
    # the mean of −log p over its own samples is the entropy
    x = torch.tensor(drawn).view_as(mean)
    assert float(-actions.log_prob(x).mean()) == pytest.approx(float(actions.entropy().mean()), abs=0.02)
    assert float(actions.entropy()[0, 0, 0]) == pytest.approx(
        float(theirs(mean[0, 0, 0], log_scale.exp()).entropy()), abs=1e-6
    )


@pytest.mark.parametrize("ours, theirs", CONTINUOUS)
def test_samples_repeat_with_the_generator_and_are_finite(ours, theirs):
    actions = ours(torch.zeros(100_000, 1, 1), torch.zeros(()))
    one, two = (actions.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and bool(one.isfinite().all())
    assert not torch.equal(one, actions.sample(torch.Generator().manual_seed(4)))


def test_the_imitation_error_is_minimal_at_the_mean_of_maximum_likelihood():
    x = torch.tensor([0.0, 0.1, 0.2, 5.0]).view(4, 1, 1)
    grid = torch.linspace(-1, 6, 701)
    for kind in (GaussianActions, LaplaceActions):
        errors = torch.stack([kind(m.expand(4, 1, 1), torch.zeros(())).error(x).sum() for m in grid])
        likely = torch.stack([kind(m.expand(4, 1, 1), torch.zeros(())).log_prob(x).sum() for m in grid])
        assert float(errors[likely.argmax()]) == pytest.approx(float(errors.min()), abs=1e-5)
        assert float(likely[errors.argmin()]) == pytest.approx(float(likely.max()), abs=1e-5)


@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=6), st.floats(0.3, 3), st.integers(1, 6), st.data())
def test_bins_by_a_literal_loop(logits, temperature, top_k, data):
    token = data.draw(st.integers(0, len(logits) - 1))
    actions = BinnedActions(torch.tensor([logits]), temperature, top_k)
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    allowed = set(order[:top_k])
    if len({logits[i] for i in range(len(logits))}) < len(logits):
        return  # ties may be cut either way
    support = allowed | {token}
    total = sum(math.exp(logits[i] / temperature) for i in support)
    expected = logits[token] / temperature - math.log(total)
    assert float(actions.log_prob(torch.tensor([token]))[0]) == pytest.approx(expected, abs=1e-4)
    p = [math.exp(logits[i] / temperature) for i in allowed]
    entropy = -sum(q / sum(p) * math.log(q / sum(p)) for q in p)
    assert float(actions.entropy()[0]) == pytest.approx(entropy, abs=1e-4)
    assert int(actions.mode()[0]) == order[0]


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (1.6, None), (0.5, 3), (2.0, 2)])
def test_bins_are_drawn_with_the_probability_that_is_reported(temperature, top_k):
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    actions = BinnedActions(logits.expand(30_000, 5), temperature, top_k)
    drawn = actions.sample(torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=5).numpy()
    log_prob = BinnedActions(logits.expand(5, 5), temperature, top_k).log_prob(torch.arange(5))
    drawable = np.zeros(5, bool)
    drawable[np.argsort(-logits.numpy())[: top_k or 5]] = True
    assert (counts[~drawable] == 0).all()
    held = log_prob.exp().double().numpy()[drawable]
    assert held.sum() == pytest.approx(1, abs=1e-6)
    assert stats.chisquare(counts[drawable], 30_000 * held / held.sum()).pvalue > 0.01


def test_a_recorded_bin_that_left_the_likeliest_stays_finite_with_a_gradient():
    logits = torch.tensor([[3.0, 2.0, 0.0]], requires_grad=True)
    log_prob = BinnedActions(logits, top_k=2).log_prob(torch.tensor([2]))
    log_prob.sum().backward()
    assert float(log_prob.detach()) == pytest.approx(-math.log(math.e**3 + math.e**2 + 1), abs=1e-5)
    assert logits.grad is not None and bool(logits.grad.isfinite().all()) and float(logits.grad[0, 2]) > 0


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": 0}])
def test_a_likelihood_without_noise_is_refused(bad):
    actions = BinnedActions(torch.zeros(1, 3), **bad)
    with pytest.raises(ValueError, match="expected a temperature above 0 and at least one bin"):
        actions.log_prob(torch.tensor([0]))
    with pytest.raises(ValueError, match="act deterministically"):
        actions.sample()
    assert int(actions.mode()[0]) == 0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_bin_that_returns_among_the_likeliest_jumps_by_at_most_one_more_of_them(k):
    logits = torch.zeros(2, k + 2)
    logits[:, -1] = -5.0
    logits[:, -2] = torch.tensor([-1e-6, 1e-6])
    out, back = BinnedActions(logits, 1.0, k).log_prob(torch.tensor([k, k])).tolist()
    assert back - out == pytest.approx(math.log((k + 1) / k), abs=1e-4)
