"""The Laplace policy against torch, and one density for sampling and learning."""

from typing import Any

import pytest
import torch

from guerdon import LaplacePolicy, ScaleHead
from guerdon.core.batch import Observation
from guerdon.policies.distributions import laplace_log_prob


def seen(points=6, seed=0):
    return Observation(state=torch.randn(points, 2, generator=torch.Generator().manual_seed(seed)))


def test_log_probability_is_that_of_torch_and_imitation_is_the_absolute_error():
    policy: Any = LaplacePolicy(2, 2, horizon=2, execute=1, hidden=(8,), log_scale=-0.5)
    decision = policy.act(seen(), generator=torch.Generator().manual_seed(0))
    mean = policy.distribution(seen()).mean
    other = torch.distributions.Laplace(mean, torch.tensor(-0.5).exp())
    evaluated = policy.evaluate(seen(), decision)
    torch.testing.assert_close(evaluated.log_prob, other.log_prob(decision.chunk).flatten(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(evaluated.entropy, other.entropy()[:, :1].sum((1, 2)), atol=1e-5, rtol=0)
    assert torch.equal(decision.log_prob, evaluated.log_prob)
    loss = policy.imitation_loss(seen(), decision.chunk, torch.ones(6, 2, dtype=torch.bool))
    torch.testing.assert_close(loss, (decision.chunk - mean).abs().mean((1, 2)))


def test_the_factor_and_the_bounds_are_in_the_sample_and_in_its_likelihood():
    """RIPT-VLA's released code samples with factor 5 unclamped, and differentiates another density."""
    head = ScaleHead(hidden=(), start=-2.0, low=-2.0, factor=5.0)
    policy: Any = LaplacePolicy(2, 1, hidden=(4,), log_scale=head)
    with torch.no_grad():
        policy.scale.network[-1].bias.fill_(-3.0)  # below the bound, as the released code starts
        policy.scale.network[-1].weight.zero_()
    observation = seen(20_000)
    decision = policy.act(observation, generator=torch.Generator().manual_seed(0))
    mean = policy.distribution(observation).mean
    used = torch.tensor(-2.0) + torch.tensor(5.0).log()
    torch.testing.assert_close(decision.log_prob, laplace_log_prob(decision.chunk, mean, used).flatten(1))
    assert float((decision.chunk - mean.detach()).abs().mean()) == pytest.approx(float(used.exp()), rel=0.03)
