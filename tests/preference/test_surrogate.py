"""Log-probabilities of decisions, and the surrogate of flows."""

import pytest
import torch

from guerdon.preference.surrogate import flow_matching_error


def gaussian_velocity(x, t, mean, std):
    """The marginal velocity of a flow from a standard normal (t = 1) to N(mean, std²) (t = 0)."""
    variance = t**2 + ((1 - t) * std) ** 2
    expected_noise = t * (x - (1 - t) * mean) / variance
    expected_data = mean + (1 - t) * std**2 * (x - (1 - t) * mean) / variance
    return expected_noise - expected_data


def errors(action, mean, std, t, noise):
    x = t * noise + (1 - t) * action
    velocity = gaussian_velocity(x, t, mean, std)
    one = action.reshape(1, 1, 1)
    shape = (len(t), 1, 1, 1)
    return flow_matching_error(velocity.reshape(shape), one, noise.reshape(shape), torch.ones(1, 1, 1).bool())[0]


def test_the_surrogate_is_proportional_to_the_log_ratio_where_the_mean_moves():
    """Shift 0.1, spread 0.5: the difference of errors at five actions, with shared draws."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(200_000, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    actions = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
    found = [float(errors(a, 0.0, 0.5, t, noise) - errors(a, 0.1, 0.5, t, noise)) for a in actions]
    exact = [(a**2 - (a - 0.1) ** 2) / (2 * 0.25) for a in actions.tolist()]
    assert exact == pytest.approx([-0.42, -0.22, -0.02, 0.18, 0.38])
    factors = [one / other for one, other in zip(found, exact, strict=True)]
    assert max(factors) - min(factors) < 0.02 and sum(factors) / 5 == pytest.approx(0.79, abs=0.02)


def test_shared_draws_have_a_fraction_of_the_variance_of_others():
    generator = torch.Generator().manual_seed(0)
    t, other_t = torch.rand(2, 1000, generator=generator, dtype=torch.float64)
    noise, other_noise = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
    action = torch.tensor(-1.0, dtype=torch.float64)
    shared, apart = [], []
    for n in range(1000):
        one = slice(n, n + 1)
        first = errors(action, 0.0, 0.5, t[one], noise[one])
        shared.append(float(first - errors(action, 0.1, 0.5, t[one], noise[one])))
        apart.append(float(first - errors(action, 0.1, 0.5, other_t[one], other_noise[one])))
    assert torch.tensor(apart).var() > 25 * torch.tensor(shared).var()


def test_padding_weights_and_draws_by_a_literal_loop():
    generator = torch.Generator().manual_seed(1)
    velocity = torch.randn(3, 2, 4, 2, generator=generator)
    chunk = torch.randn(2, 4, 2, generator=generator)
    noise = torch.randn(3, 1, 4, 2, generator=generator)
    mask = torch.rand(2, 4, 2, generator=generator) > 0.4
    weight = torch.tensor([0.5, 1.0, 2.0])
    expected = [
        sum(
            float(weight[r]) * float((noise[r, 0] - chunk[m] - velocity[r, m])[mask[m]].square().sum())
            for r in range(3)
        )
        / 3
        for m in range(2)
    ]
    chunk[~mask] = torch.nan
    velocity[:, ~mask] = torch.nan
    found = flow_matching_error(velocity, chunk, noise, mask, weight)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_surrogate_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(2)
    t = torch.rand(16, generator=generator, dtype=torch.float64)
    noise = torch.randn(16, generator=generator, dtype=torch.float64)
    action = torch.tensor(0.4, dtype=torch.float64)
    mean = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(errors(action, mean, 0.5, t, noise), mean)
    step = 1e-6
    near = [float(errors(action, torch.tensor(0.1 + d, dtype=torch.float64), 0.5, t, noise)) for d in (step, -step)]
    assert float(slope) == pytest.approx((near[0] - near[1]) / (2 * step), rel=1e-6)
