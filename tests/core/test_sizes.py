"""Components made without sizes are built from those of a data set."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from guerdon.core.interfaces import Component
from guerdon.core.sizes import DataSizes, HasSizes, require_sizes, take_sizes, unknown_sizes
from guerdon.critics.distributional import DistributionalValue
from guerdon.critics.value import ValueCritic
from guerdon.policies.gaussian import GaussianPolicy

DATA = DataSizes(name="data/reach", state_size=12, action_size=3)


class Network(Component):
    def __init__(self, state_size: int | None = None, action_size: int | None = None, width: int = 5) -> None:
        super().__init__()
        self.state_size, self.action_size = state_size, action_size
        if state_size is not None and action_size is not None:
            self.layer = nn.Linear(state_size + action_size, width)


class Judge(Component):
    """Copies its network in its constructor, as critics with target networks do."""

    def __init__(self, network: Network, others: Sequence[Component] = ()) -> None:
        super().__init__()
        self.network, self.target, self.others = network, copy.deepcopy(network), nn.ModuleList(others)


def test_sizes_are_filled_in_and_the_parents_built_again():
    inner = Network()
    judge: Any = Judge(inner, others=[Network(width=2)])
    assert take_sizes(judge, DATA)
    assert judge.network is inner
    assert inner.layer.weight.shape == (5, 15)
    assert judge.target.layer.weight.shape == (5, 15)
    assert judge.others[0].layer.weight.shape == (2, 15)
    assert inner.init_args == {"state_size": 12, "action_size": 3, "width": 5}


def test_given_sizes_stay_and_nothing_is_built_again():
    network = Network(12, 3)
    before = network.layer.weight.clone()
    assert not take_sizes(network, DATA)
    assert torch.equal(network.layer.weight, before)


def test_zero_reads_nothing_and_fits_any_data():
    assert not take_sizes(Network(0, 3), DATA)


def test_a_size_that_disagrees_is_refused_naming_both():
    with pytest.raises(ValueError, match=r"Network has state_size 39, and the states of data/reach are 12 wide"):
        take_sizes(Judge(Network(39, 3)), DATA)


def test_a_training_module_is_searched_for_components():
    class Training(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

    training = Training(Network())
    assert take_sizes(training, DATA)
    assert training.model.state_size == 12


def test_the_mode_is_kept():
    network = Network().eval()
    take_sizes(network, DATA)
    assert not network.training


def test_what_is_missing_is_named():
    assert unknown_sizes(Judge(Network(state_size=4))) == ["Network.action_size"]
    with pytest.raises(ValueError, match=r"Judge is not built yet, Network.action_size unknown"):
        require_sizes(Judge(Network(state_size=4)))
    require_sizes(Judge(Network(4, 2)))


def test_a_module_of_data_is_known_by_its_sizes():
    class Named:
        sizes = DATA

    assert isinstance(Named(), HasSizes) and not isinstance(object(), HasSizes)


def test_a_part_that_two_components_share_builds_both_again():
    shared = Network()
    both: Any = nn.ModuleList([Judge(shared), Judge(shared)])
    assert take_sizes(both, DATA)
    assert both[0].network is both[1].network is shared
    assert both[0].target.layer.weight.shape == both[1].target.layer.weight.shape == (5, 15)


# --- features -------------------------------------------------------------------------------------------------------

FEATURES = DataSizes(name="data/reach", state_size=12, action_size=3, feature_sizes={"clip/front": 4, "clip/wrist": 6})


@pytest.mark.parametrize("made", [ValueCritic, DistributionalValue, GaussianPolicy])
def test_widths_of_features_are_filled_in(made, tmp_path):
    component = made(feature_sizes={"clip/wrist": None, "clip/front": 4})
    assert f"{made.__name__}.feature_sizes['clip/wrist']" in unknown_sizes(component)
    assert take_sizes(component, FEATURES)
    assert component.init_args["feature_sizes"] == {"clip/wrist": 6, "clip/front": 4}
    layer = next(m for m in component.modules() if isinstance(m, nn.Linear))
    assert layer.in_features == 12 + 6 + 4
    component.save_pretrained(tmp_path / "saved")
    assert made.from_pretrained(tmp_path / "saved").init_args["feature_sizes"] == {"clip/wrist": 6, "clip/front": 4}


def test_features_that_nobody_names_are_not_read():
    critic = ValueCritic()
    assert take_sizes(critic, FEATURES)
    assert critic.reads.feature_sizes == {}


def test_a_width_that_disagrees_is_refused_naming_both():
    with pytest.raises(ValueError, match=r"'clip/front' of width 5, and those of data/reach are 4 wide"):
        take_sizes(GaussianPolicy(feature_sizes={"clip/front": 5}), FEATURES)


def test_features_that_are_not_loaded_are_refused_naming_those_that_are():
    with pytest.raises(ValueError, match=r"'clip/top', and data/reach is loaded with features clip/front \(4 wide\)"):
        take_sizes(GaussianPolicy(feature_sizes={"clip/top": None}), FEATURES)
    with pytest.raises(ValueError, match=r"loaded with features none"):
        take_sizes(GaussianPolicy(feature_sizes={"clip/top": None}), DATA)


def test_a_component_without_the_width_of_a_feature_is_not_used():
    critic = ValueCritic(2, feature_sizes={"clip/front": None})
    with pytest.raises(ValueError, match=r"ValueCritic\.feature_sizes\['clip/front'\] unknown"):
        require_sizes(critic)
