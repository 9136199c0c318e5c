"""A saved policy as the proposer of a critic."""

import pytest

from guerdon.commands.proposer import open_proposer
from guerdon.core.hub import component_hash
from guerdon.critics.value import ValueCritic
from guerdon.policies.gaussian import GaussianPolicy


def test_a_policy_is_opened_as_a_proposer_that_says_which_it_is(tmp_path):
    GaussianPolicy(3, 2, horizon=4, execute=2, hidden=(4,)).save_pretrained(tmp_path / "run" / "model")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        proposer, opened = open_proposer(str(folder), "cpu", trust=False)
        assert isinstance(proposer.policy, GaussianPolicy) and proposer.steps == 2 and not proposer.policy.training
        assert opened["path"] == str(folder) and opened["hash"] == component_hash(tmp_path / "run" / "model")


def test_what_is_no_policy_is_refused(tmp_path):
    ValueCritic(3, hidden=(4,)).save_pretrained(tmp_path / "critic")
    with pytest.raises(ValueError, match="holds a ValueCritic: expected a policy"):
        open_proposer(str(tmp_path / "critic"), "cpu", trust=False)
