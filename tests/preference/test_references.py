"""References of preference optimisation."""

import pytest
import torch

from guerdon.core.batch import Decision, Observation
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.preference.references import FrozenReference, RecordedReference, Reference
from guerdon.preference.surrogate import decision_log_prob


def policy(seed=0):
    torch.manual_seed(seed)
    return GaussianPolicy(state_size=2, action_size=1, hidden=(8,), horizon=2)


def decided(actor, rows=5):
    observation = Observation(state=torch.randn(rows, 2, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        return observation, actor.act(observation, generator=torch.Generator().manual_seed(2))


def test_a_frozen_copy_is_the_policy_when_it_was_attached():
    actor = policy()
    observation, decision = decided(actor)
    with torch.no_grad():
        expected = decision_log_prob(actor, observation, decision)
    reference = FrozenReference()
    with pytest.raises(ValueError, match="no policy yet"):
        reference.log_prob(actor, observation, decision, decision_log_prob)
    reference.attach(actor)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(1.0)
    reference.attach(actor)  # a second time, as after a resumed setup: the first copy stays
    assert torch.equal(reference.log_prob(actor, observation, decision, decision_log_prob), expected)
    assert not any(p.requires_grad for p in reference.parameters())
    assert not reference.train().training and all(p.requires_grad for p in actor.parameters())


def test_a_given_policy_is_the_reference_of_every_iteration():
    initial, actor = policy(1), policy(2)
    observation, decision = decided(actor)
    reference = FrozenReference(initial)
    reference.attach(actor)
    with torch.no_grad():
        expected = decision_log_prob(initial, observation, decision)
    assert torch.equal(reference.log_prob(actor, observation, decision, decision_log_prob), expected)


def test_recorded_log_probabilities_are_summed_over_executed_units():
    actor = policy()
    observation, decision = decided(actor)
    assert decision.log_prob is not None
    half = Decision(
        chunk=decision.chunk, executed=torch.ones_like(decision.executed), log_prob=decision.log_prob, extras={}
    )
    found = RecordedReference().log_prob(policy(9), observation, half, decision_log_prob)
    assert torch.allclose(found, decision.log_prob[:, 0])
    with pytest.raises(ValueError, match="not finite"):
        broken = decision.log_prob.clone()
        broken[2, 0] = torch.nan
        RecordedReference().log_prob(
            actor, observation, Decision(chunk=half.chunk, executed=half.executed, log_prob=broken), decision_log_prob
        )


def test_a_reference_of_ones_own_says_what_it_lacks():
    observation, decision = decided(policy())
    with pytest.raises(NotImplementedError, match="Reference gives no log-probabilities"):
        Reference().log_prob(policy(), observation, decision, decision_log_prob)
