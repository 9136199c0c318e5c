"""What critics read of an observation: scales, cameras and instructions through frozen encoders, networks on them."""

import math
from dataclasses import replace

import pytest
import torch

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Observation
from guerdon.core.sizes import DataSizes, take_sizes
from guerdon.critics.observations import CriticInputs, ObservationNetwork, Scale, check_values
from guerdon.testing import reopen

from .small_parts import FrozenPixels, FrozenWords

HOST = torch.device("cpu")


def observe(points, state=3, seen=False):
    frames = {c: torch.randint(0, 256, (points, 3, 8, 8), dtype=torch.uint8) for c in ("front", "wrist")}
    words = tuple("push the block" if i % 2 else "open the drawer" for i in range(points))
    return Observation(state=torch.randn(points, state), frames=frames if seen else {}, instructions=words)


def test_a_value_of_the_observation_alone():
    network = ObservationNetwork(3, (16,), seen()).eval()
    observation = observe(4, seen=True)
    found = network(observation)
    assert found.shape == (4,)
    torch.testing.assert_close(reopen(network).eval()(observation), found)
    torch.testing.assert_close(torch.cat([network(observation[i]) for i in range(4)]), found)
    assert not torch.allclose(network(replace(observation, state=observation.state + 1)), found)
    with pytest.raises(ValueError, match="expected a state of width 3, got 2"):
        network(replace(observation, state=torch.zeros(4, 2)))


def seen():
    return CriticInputs(("front", "wrist"), FrozenPixels(), FrozenWords())


def test_inputs_are_camera_features_side_by_side_and_the_instruction():
    reads, observation = seen(), observe(3, seen=True)
    assert reads.width == 6 + 6 + 5
    cameras = reads.camera_features(observation, HOST)
    assert [part.shape for part in cameras] == [(3, 1, 6)] * 2
    torch.testing.assert_close(cameras[1][:, 0], reads.encoder.encode(observation.frames["wrist"]))
    text = reads.instruction_features(observation, HOST)
    torch.testing.assert_close(text, reads.text(list(observation.instructions)))
    torch.testing.assert_close(text[0], text[2])
    assert CriticInputs().width == 0
    assert CriticInputs().camera_features(observation, HOST) == []
    assert CriticInputs().instruction_features(observation, HOST) is None


def test_patches_keep_their_place():
    patches = {f"{FrozenPixels().name}/{c}": torch.randn(2, 9, 6) for c in ("front", "wrist")}
    observation = Observation(state=torch.zeros(2, 1), features=patches)
    found = seen().camera_features(observation, HOST)
    assert torch.equal(found[0], patches[f"{FrozenPixels().name}/front"])


def test_actions_are_clipped_to_the_range():
    actions = torch.tensor([[-3.0, 0.5], [2.0, -1.0]])
    assert CriticInputs(action_range=[-1, 1]).clip(actions).tolist() == [[-1.0, 0.5], [1.0, -1.0]]
    assert CriticInputs().clip(actions) is actions


def test_a_missing_camera_and_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="reads camera 'front', and these observations hold neither"):
        seen().camera_features(observe(2), HOST)
    narrow = {f"{FrozenPixels().name}/{c}": torch.zeros(2, 12) for c in ("front", "wrist")}
    with pytest.raises(ValueError, match="expected width 6, got 12"):
        seen().camera_features(Observation(state=torch.zeros(2, 3), features=narrow), HOST)


def test_inputs_are_saved_by_their_arguments():
    reads = CriticInputs(("front",), FrozenPixels(), frame_size=32, action_range=[-2, 1])
    again = reopen(reads)
    assert (again.cameras, again.frame_size, again.action_range) == (("front",), 32, (-2.0, 1.0))
    assert torch.equal(again.encoder.state_dict()["layers.0.weight"], reads.encoder.state_dict()["layers.0.weight"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cameras": ("a",)}, "together with an encoder"),
        ({"encoder": FrozenPixels()}, "together with an encoder"),
        ({"cameras": ("a", "a"), "encoder": FrozenPixels()}, "each once"),
        ({"cameras": ("a",), "encoder": ConvEncoder(6, (4, 4), 16)}, "expected frozen encoders"),
        ({"text": HashedText(4)}, "expected frozen encoders"),
        ({"action_range": [1, -1]}, "action_range"),
        ({"action_range": [0]}, "action_range"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CriticInputs(**wrong)


def test_scales_standardise_and_clip():
    scale = Scale(2)
    values = torch.randn(400, 2) * torch.tensor([3.0, 1e-9]) + torch.tensor([5.0, 1.0])
    scale.fit(values, floor=0.1)
    torch.testing.assert_close(scale(values)[:, 0].std(correction=0), torch.tensor(1.0))
    assert float(scale.std[1]) in (1.0, pytest.approx(0.1))
    assert scale(torch.tensor([[1e9, 1.0], [-1e9, 1.0]]))[:, 0].tolist() == [10.0, -10.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(2, 3), "made for states of width 2, the data have 3"),
        (torch.zeros(0, 2), "no state in the data"),
        (torch.tensor([[0.0, math.nan]]), "a state is NaN or infinite"),
    ],
)
def test_values_that_give_no_scale_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_values("state", values, 2)


def test_flat_arguments_become_the_inputs():
    flat = ObservationNetwork(
        3,
        (8,),
        cameras=("front",),  # pyright: ignore[reportCallIssue]
        encoder=FrozenPixels(),  # pyright: ignore[reportCallIssue]
    )
    assert flat.reads.cameras == ("front",) and set(flat.init_args) == {"state_size", "hidden", "reads"}
    with pytest.raises(TypeError, match="reads and cameras are both given"):
        ObservationNetwork(3, (8,), reads=CriticInputs(), cameras=("front",))  # pyright: ignore[reportCallIssue]


def test_a_network_without_a_size_takes_it_from_the_data():
    network = ObservationNetwork(hidden=(8,))
    with pytest.raises(ValueError, match=r"ObservationNetwork.state_size unknown"):
        network(observe(2))
    with pytest.raises(ValueError, match=r"ObservationNetwork.state_size unknown"):
        network.fit_state(torch.zeros(2, 3))
    assert take_sizes(network, DataSizes(name="here", state_size=3, action_size=2))
    assert network(observe(2)).shape == (2,)
    with pytest.raises(ValueError, match="the states of there are 5 wide"):
        take_sizes(network, DataSizes(name="there", state_size=5, action_size=2))


def test_weights_of_before_open():
    network = ObservationNetwork(3, (8,), seen())
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else value)
    before = {name.replace("reads.", ""): value.clone() for name, value in network.state_dict().items()}
    assert any(name.startswith("encoder.") for name in before) and any(name.startswith("text.") for name in before)
    opened = ObservationNetwork(
        3, (8,), reads=CriticInputs(cameras=("front", "wrist"), encoder=FrozenPixels(), text=FrozenWords())
    )
    opened.load_state_dict(before)
    observation = observe(4, seen=True)
    torch.testing.assert_close(opened.eval()(observation), network.eval()(observation), rtol=0, atol=0)
