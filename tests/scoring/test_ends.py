"""The ends that the reward beside a critic prices."""

import json

import pytest

from guerdon.rewards.recorded import RecordedReward
from guerdon.rewards.step_cost import StepCost
from guerdon.scoring.ends import priced_ends, reward_beside


@pytest.fixture
def critic(tmp_path):
    """Folder of a critic in a run; nothing but its place matters."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    return tmp_path / "run" / "model"


def test_without_a_reward_they_are_success_and_failure(critic):
    for folder in (critic, critic.parent):
        assert reward_beside(folder) is None and priced_ends(folder) == ("success", "failure")


def test_a_step_cost_says_which_they_are(critic):
    StepCost(failures=["failure", "time_limit"]).save_pretrained(critic.parent / "reward")
    for folder in (critic, critic.parent, str(critic)):
        assert reward_beside(folder) == critic.parent / "reward"
        assert priced_ends(folder) == ("success", "failure", "time_limit")


def test_of_another_reward_they_are_success_and_failure(critic):
    RecordedReward().save_pretrained(critic.parent / "reward")
    assert priced_ends(critic) == ("success", "failure")


def test_a_step_cost_of_an_earlier_version_or_of_somebody_else(critic):
    StepCost(failures=["takeover"]).save_pretrained(critic.parent / "reward")
    file = critic.parent / "reward" / "component.json"
    spec = json.loads(file.read_text())
    for path, ends in (
        ("guerdon.rewards.costs_of_before.StepCost", ("success", "takeover")),
        ("elsewhere.StepCost", ("success", "failure")),
    ):
        file.write_text(json.dumps(spec | {"class_path": path}))
        assert priced_ends(critic) == ends


def test_a_reward_beside_a_folder_that_is_no_model_of_a_run_is_not_taken(critic):
    StepCost(failures=["takeover"]).save_pretrained(critic.parent / "reward")
    other = critic.parent / "other"
    other.mkdir()
    assert reward_beside(other) is None
