"""Saved components as arguments of a configuration."""

import pytest

from guerdon.core.pretrained import pretrained_critic, pretrained_policy, pretrained_reward
from guerdon.critics.value import ValueCritic
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.rewards.recorded import RecordedReward


@pytest.mark.parametrize(
    ("component", "opener"),
    [
        (RecordedReward("dense"), pretrained_reward),
        (ValueCritic(3), pretrained_critic),
        (GaussianPolicy(3, 2, horizon=4, execute=2), pretrained_policy),
    ],
)
def test_opens_what_was_saved(tmp_path, component, opener):
    component.save_pretrained(tmp_path / "saved")
    opened = opener(str(tmp_path / "saved"))
    assert type(opened) is type(component)
    assert opened.init_args == component.init_args


def test_another_component_is_refused_by_name(tmp_path):
    ValueCritic(3).save_pretrained(tmp_path / "saved")
    with pytest.raises(TypeError, match="holds a ValueCritic, expected a RewardModel"):
        pretrained_reward(str(tmp_path / "saved"))
