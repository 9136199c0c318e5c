"""The reference without low-rank updates."""

import pytest
import torch

from guerdon import ActionBins, LanguageDecoder, LoRA, TokenPolicy
from guerdon.core.batch import Observation
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.preference.adapter_reference import AdapterReference
from guerdon.preference.surrogate import decision_log_prob
from guerdon.testing.language_checkpoints import tiny_language


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return str(tiny_language(tmp_path_factory.mktemp("language") / "model"))


def token_policy(language):
    torch.manual_seed(0)
    return TokenPolicy(
        decoder=LanguageDecoder(language, lora=LoRA(rank=2)), bins=ActionBins(bins=8), state_size=2, action_size=1
    )


def decided(policy):
    observation = Observation(state=torch.randn(3, 2), instructions=("reach",) * 3)
    with torch.no_grad():
        return observation, policy.act(observation, generator=torch.Generator().manual_seed(0))


def test_it_is_the_policy_before_any_update(language):
    policy = token_policy(language).eval()
    frozen = [name for name, p in policy.named_parameters() if p.requires_grad and "lora" not in name]
    PolicyAdam(frozen_parts=tuple(dict.fromkeys(frozen))).freeze(policy)
    reference = AdapterReference()
    reference.attach(policy)
    observation, decision = decided(policy)
    with torch.no_grad():
        before = decision_log_prob(policy, observation, decision)
        assert torch.equal(reference.log_prob(policy, observation, decision, decision_log_prob), before)
        for name, parameter in policy.named_parameters():
            if "lora" in name:
                parameter.add_(0.3)
        assert not torch.allclose(decision_log_prob(policy, observation, decision), before, atol=1e-3)
        found = reference.log_prob(policy, observation, decision, decision_log_prob)
    assert torch.allclose(found, before, atol=1e-6)
    learned = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert learned and all("lora" in name for name in learned)


def test_whatever_else_learns_is_refused(language):
    with pytest.raises(ValueError, match="no low-rank updates to leave out"):
        AdapterReference().attach(GaussianPolicy(state_size=2, action_size=1))
    policy = token_policy(language)
    policy.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="learns and is no low-rank update"):
        AdapterReference().attach(policy)


def test_what_was_frozen_stays_frozen_and_a_failure_switches_the_updates_on_again(language):
    policy = token_policy(language).eval()
    frozen = [name for name, p in policy.named_parameters() if "lora" not in name or ".0." in name]
    PolicyAdam(frozen_parts=tuple(frozen)).freeze(policy)
    assert any("lora" in name for name in frozen)
    learned = {name: p.requires_grad for name, p in policy.named_parameters()}
    observation, decision = decided(policy)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora" in name:
                parameter.add_(0.3)
        before = decision_log_prob(policy, observation, decision)

        def fails(*_):
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            AdapterReference().log_prob(policy, observation, decision, fails)
        assert torch.equal(decision_log_prob(policy, observation, decision), before)
    assert {name: p.requires_grad for name, p in policy.named_parameters()} == learned
