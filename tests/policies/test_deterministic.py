"""A policy without noise is the other one's deterministic chunk."""

import torch
from hypothesis import given, settings

from guerdon.core.batch import Observation
from guerdon.policies.deterministic import Deterministic
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer
from guerdon.testing import check_policy, trajectory_batches


def test_samples_are_the_deterministic_chunk():
    inner = GaussianPolicy(3, 2, horizon=4, execute=2, hidden=(8,)).eval()
    observation = Observation(state=torch.randn(5, 3))
    still = Deterministic(inner)
    wanted = inner.act(observation, deterministic=True)
    for deterministic in (False, True):
        found = still.act(observation, deterministic, torch.Generator().manual_seed(0))
        assert torch.equal(found.chunk, wanted.chunk) and torch.equal(found.executed, wanted.executed)
    assert not torch.equal(inner.act(observation).chunk, wanted.chunk)


def test_it_decides_as_often_as_the_other_policy():
    inner = GaussianPolicy(3, 2, horizon=4, execute=2, hidden=(8,))
    still = Deterministic(inner)
    assert (still.horizon, still.execute, PolicyProposer(still).steps) == (4, 2, 2)


@settings(max_examples=10)
@given(trajectory_batches(state_size=2, min_length=1))
def test_it_keeps_every_promise_of_a_policy(batch):
    check_policy(Deterministic(GaussianPolicy(2, 3, horizon=3, execute=2, hidden=(8,))), batch)
