"""Networks and input scales, by hand."""

import math

import pytest
import torch

from guerdon.backbones.perceptron import Inputs, tanh_network
from guerdon.core.batch import Observation


def test_the_network_is_orthogonal_with_zero_biases():
    network = tanh_network(3, (5, 4), 2, last_gain=0.01)
    layers = [m for m in network if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(3, 5), (5, 4), (4, 2)]
    assert [type(m).__name__ for m in network] == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), 0.01), strict=True):
        singular = torch.linalg.svdvals(layer.weight)
        assert torch.allclose(singular, torch.full_like(singular, gain), rtol=1e-4)
        assert not layer.bias.any()


def test_without_hidden_layers_it_is_linear():
    assert [type(m).__name__ for m in tanh_network(3, (), 2, 1.0)] == ["Linear"]


def test_state_and_features_are_joined_in_the_order_asked_for():
    inputs = Inputs(2, {"b": 2, "a": 1})
    observation = Observation(
        state=torch.tensor([[1.0, 2.0]]),
        features={"a": torch.tensor([[5.0]]), "unused": torch.zeros(1, 9), "b": torch.tensor([[[3.0], [4.0]]])},
    )
    assert inputs.width == 5
    assert inputs.vector(observation).tolist() == [[1, 2, 3, 4, 5]]


def test_fitted_inputs_are_standardised_and_clipped():
    inputs = Inputs(2)
    fitted = Observation(state=torch.tensor([[1.0, 0.0], [3.0, 0.002]]))
    inputs.fit(fitted, floor=0.01)
    # first column: mean 2, spread 1; second: mean 0.001, spread 0.001 raised to the floor
    assert torch.allclose(inputs(fitted), torch.tensor([[-1, -0.1], [1, 0.1]]))
    assert inputs(Observation(state=torch.tensor([[1e6, -1e6]]))).tolist() == [[10, -10]]
    assert bool(inputs.fitted)


def test_scales_travel_with_the_weights():
    inputs, other = Inputs(1), Inputs(1)
    inputs.fit(Observation(state=torch.tensor([[1.0], [3.0]])))
    other.load_state_dict(inputs.state_dict())
    assert (bool(other.fitted), other.mean.item(), other.std.item()) == (True, 2.0, 1.0)


WRONG = {
    "nothing to look at": (lambda: Inputs(0), "state or at least one feature"),
    "another state": (lambda: Inputs(3)(Observation(state=torch.zeros(1, 2))), "state of width 3, got 2"),
    "a feature that is missing": (
        lambda: Inputs(1, {"clip/top": 2})(
            Observation(state=torch.zeros(1, 1), features={"dino/top": torch.zeros(1, 2)})
        ),
        r"expected features \['clip/top'\], got \['dino/top'\]",
    ),
    "a feature of another width": (
        lambda: Inputs(1, {"clip/top": 2})(
            Observation(state=torch.zeros(1, 1), features={"clip/top": torch.zeros(1, 3)})
        ),
        "'clip/top' of width 2, got 3",
    ),
    "nothing to fit": (lambda: Inputs(1).fit(Observation(state=torch.zeros(0, 1))), "got no observation"),
    "a NaN to fit": (lambda: Inputs(1).fit(Observation(state=torch.tensor([[torch.nan]]))), "NaN or infinite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_one_clear_error(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
