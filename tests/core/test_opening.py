"""Opening saved components for use."""

import pytest
import torch

from guerdon.core.hub import component_hash, save_component
from guerdon.core.interfaces import Critic, RewardModel
from guerdon.core.opening import open_component
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory that holds a reward model."""
    folder = tmp_path_factory.mktemp("opening") / "run"
    torch.manual_seed(0)
    save_component(
        ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=1, heads=2)), folder / "model"
    )
    return folder


def test_a_run_directory_means_the_model_in_it(run):
    for path in (run, run / "model", str(run)):
        reward, identity = open_component(path, RewardModel, "a reward model", "cpu")
        assert isinstance(reward, ProgressReward) and not reward.training
        assert identity["path"] == str(path) and identity["class_path"] == "guerdon.ProgressReward"
        assert identity["hash"] == component_hash(run / "model") and len(identity["hash"]) == 16
        assert identity["init_args"]["state_size"] == 3


def test_any_of_several_kinds_may_be_expected(run):
    opened, _ = open_component(run, (Critic, RewardModel), "a critic or a reward model", "cpu")
    assert isinstance(opened, ProgressReward)


def test_nothing_another_kind_and_no_device_are_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError):
        open_component(tmp_path, RewardModel, "a reward model")
    with pytest.raises(ValueError, match="holds a ProgressReward: expected a critic"):
        open_component(run, Critic, "a critic")
    with pytest.raises(ValueError, match="cannot use device 'nonsense'"):
        open_component(run, RewardModel, "a reward model", "nonsense")
