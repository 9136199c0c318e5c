"""Bases of chunk policies: heads that predict the scale, the hidden state, and what all of them refuse."""

from typing import Any

import pytest
import torch

from guerdon import GaussianPolicy, LaplacePolicy, ScaleHead, load_component
from guerdon.core.batch import Decision, Observation
from guerdon.testing import check_policy


def seen(points=6, seed=0):
    return Observation(state=torch.randn(points, 2, generator=torch.Generator().manual_seed(seed)))


def test_it_keeps_the_contract_of_a_policy():
    for policy in (
        LaplacePolicy(2, 2, horizon=3, execute=2, hidden=(8,)),
        LaplacePolicy(2, 2, hidden=(8,), log_scale=ScaleHead(hidden=(4,), factor=2)),
        GaussianPolicy(2, 2, hidden=(8,), log_std=ScaleHead(hidden=())),
    ):
        check_policy(policy, seen())


def test_the_hidden_state_is_the_one_that_an_evaluation_reports():
    policy: Any = LaplacePolicy(2, 1, hidden=(8, 5))
    decision = policy.act(seen())
    assert policy.hidden_size == 5
    assert torch.equal(policy.hidden(seen()), policy.evaluate(seen(), decision).hidden)


def test_a_scale_head_learns_the_noise_of_each_place_and_never_moves_the_mean():
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(4096, 2, generator=generator) * 2 - 1
    observation = Observation(state=state)
    noisy = state[:, 0] > 0
    scale = torch.where(noisy, 0.6, 0.2)[:, None, None]
    chunk = torch.distributions.Laplace(torch.zeros(4096, 1, 1), scale).sample()
    mask = torch.ones(4096, 1, dtype=torch.bool)
    policy: Any = LaplacePolicy(2, 1, hidden=(16,), log_scale=ScaleHead(hidden=(16,)))
    policy.imitation_loss(observation, chunk, mask).mean().backward()
    with_scale = policy.network[-1].weight.grad.clone()
    twin: Any = LaplacePolicy(2, 1, hidden=(16,))
    twin.network.load_state_dict(policy.network.state_dict())
    twin.imitation_loss(observation, chunk, mask).mean().backward()
    assert torch.equal(with_scale, twin.network[-1].weight.grad)  # the likelihood gave the mean nothing
    optimizer = torch.optim.Adam(policy.scale.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        policy.imitation_loss(observation, chunk, mask).mean().backward()
        optimizer.step()
    found = policy.distribution(observation)[1].detach().exp().flatten()
    assert float(found[noisy].mean()) == pytest.approx(0.6, rel=0.15)
    assert float(found[~noisy].mean()) == pytest.approx(0.2, rel=0.15)


def test_a_chunk_of_another_robot_is_refused():
    policy: Any = LaplacePolicy(2, 2, hidden=(4,))
    other = Decision(chunk=torch.zeros(6, 1, 3), executed=torch.ones(6, dtype=torch.long))
    with pytest.raises(ValueError, match="another policy's, or another robot's"):
        policy.evaluate(seen(), other)


@pytest.mark.parametrize("bad", [{"start": -3.0}, {"factor": 0.0}, {"low": 1.0}])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="expected a start between the bounds, and a positive factor"):
        ScaleHead(**bad)


def test_it_is_saved_with_its_scale_head(tmp_path):
    policy: Any = LaplacePolicy(2, 1, hidden=(4,), log_scale=ScaleHead(hidden=(3,), high=0.25))
    policy.save_pretrained(tmp_path / "policy")
    again: Any = load_component(tmp_path / "policy")
    assert torch.equal(again.distribution(seen()).log_scale, policy.distribution(seen()).log_scale)
    assert again.scale.high == 0.25


def test_padding_of_the_chunk_gives_no_gradient():
    policy: Any = LaplacePolicy(2, 1, horizon=2, hidden=(4,), log_scale=ScaleHead())
    chunk = torch.tensor([[[0.5], [float("nan")]]])
    loss = policy.imitation_loss(seen(1), chunk, torch.tensor([[True, False]]))
    loss.sum().backward()
    assert bool(loss.isfinite().all()) and all(bool(p.grad.isfinite().all()) for p in policy.parameters())


def test_nan_in_steps_that_were_not_executed_reaches_no_gradient():
    policy: Any = GaussianPolicy(2, 2, horizon=3, execute=1, hidden=(4,))
    chunk = torch.zeros(2, 3, 2)
    chunk[:, 1:] = float("nan")
    decision = Decision(chunk=chunk, executed=torch.ones(2, dtype=torch.long))
    evaluated = policy.evaluate(seen(2), decision)
    evaluated.log_prob.masked_fill(~evaluated.unit_mask, 0.0).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters())
    broken = Decision(chunk=torch.full((2, 3, 2), float("nan")), executed=torch.ones(2, dtype=torch.long))
    assert bool(policy.evaluate(seen(2), broken).log_prob[:, :2].isnan().all())  # an executed one does not pass


def test_a_scale_head_of_two_policies_is_built_once():
    head = ScaleHead(hidden=(3,))
    one: Any = GaussianPolicy(2, 1, hidden=(4,), log_std=head)
    network = head.network
    two: Any = GaussianPolicy(2, 1, hidden=(4,), log_std=head)
    assert one.scale is two.scale and head.network is network
    with pytest.raises(ValueError, match="give each policy a ScaleHead of its own"):
        GaussianPolicy(2, 2, hidden=(4,), log_std=head)
