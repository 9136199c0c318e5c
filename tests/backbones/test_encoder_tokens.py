"""Tokens of separate encoders: what is read, frozen features, and what is refused."""

import pytest
import torch

from guerdon.backbones.encoder_tokens import EncoderBackbone
from guerdon.backbones.language import HashedText
from guerdon.backbones.openai_clip import ClipEncoder, ClipText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Observation
from guerdon.testing.clip_checkpoints import tiny_clip
from guerdon.testing.conformance import reopen


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(tiny_clip(tmp_path_factory.mktemp("clip") / "clip.safetensors", "safetensors"))


def observations(count=3, size=3, cameras=("eye",)):
    frames = {camera: torch.randint(0, 256, (count, 3, 20, 20), dtype=torch.uint8) for camera in cameras}
    words = ("open the drawer", "close it", "push")
    return Observation(state=torch.randn(count, size), frames=frames, instructions=words[:count])


def backbone(clip, **more):
    return EncoderBackbone(
        state_size=3, cameras=["eye"], encoder=ClipEncoder(clip), text=ClipText(clip), width=16, **more
    )


@pytest.mark.parametrize("layers", [0, 2])
def test_state_camera_and_instruction_are_tokens_that_all_count(clip, layers):
    made, seen = backbone(clip, state_tokens=2, layers=layers), observations()
    tokens = made(seen)
    assert tokens.hidden.shape == (3, 4, 16) and tokens.mask.all()
    others = [
        Observation(state=seen.state + 1, frames=seen.frames, instructions=seen.instructions),
        Observation(state=seen.state, frames={"eye": 255 - seen.frames["eye"]}, instructions=seen.instructions),
        Observation(state=seen.state, frames=seen.frames, instructions=("lift",) * 3),
    ]
    own = [{0, 1}, {2}, {3}]
    for other, wanted in zip(others, own, strict=True):
        change = (made(other).hidden - tokens.hidden).abs().amax((0, 2))
        assert {i for i in range(4) if change[i] > 1e-5} == (wanted if layers == 0 else {0, 1, 2, 3})
    torch.testing.assert_close(made(seen[1]).hidden[0], tokens.hidden[1], atol=1e-5, rtol=1e-5)


def test_features_take_the_place_of_frames(clip):
    made, seen = backbone(clip), observations()
    encoder = ClipEncoder(clip)
    features = {f"{encoder.name}/eye": encoder.encode(seen.frames["eye"])}
    given = Observation(state=seen.state, features=features, instructions=seen.instructions)
    torch.testing.assert_close(made(given).hidden, made(seen).hidden)
    assert not made.read(given).frames and set(made.read(given).features) == set(features)
    patches = {name: torch.stack([values, values + 1], 1) for name, values in features.items()}
    several = Observation(state=seen.state, features=patches, instructions=seen.instructions)
    assert made(several).hidden.shape[1] == 4, "two tokens of one picture"


def test_frozen_encoders_stay_as_they_are_and_out_of_the_file(clip):
    made, seen = backbone(clip), observations()
    made.train()
    made(seen).hidden.square().sum().backward()
    learned = {name for name, p in made.named_parameters() if p.grad is not None}
    assert learned and not any(name.startswith(("encoder.", "text.")) for name in learned)
    assert not any(name.startswith(("encoder.", "text.")) for name, _ in made.own_weights())
    torch.testing.assert_close(reopen(made)(seen).hidden, made(seen).hidden)
    assert made.inputs.encoder is made.encoder and made.inputs.instruction and made.inputs.cameras == ("eye",)


def test_trainable_encoders_learn_and_count_in_the_version():
    made = EncoderBackbone(state_size=0, cameras=["eye"], encoder=ConvEncoder(16, (4, 4), 16), text=HashedText(8))
    seen = observations()
    made(seen).hidden.square().sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    before = made.version
    with torch.no_grad():
        next(p for n, p in made.named_parameters() if n.startswith("encoder.")).add_(1e-3)
    assert made.version != before


def test_the_state_alone_is_a_perceptron():
    made = EncoderBackbone(state_size=3, width=8, hidden=(8,), layers=0, heads=2)
    seen = Observation(state=torch.randn(5, 3), instructions=("a",) * 5)
    torch.testing.assert_close(made(seen).hidden[:, 0], made.state_network(seen.state.clamp(-10, 10)))
    assert made.read(seen).instructions == ("",) * 5, "an instruction that is not read is the same observation"
    assert made.learns and not made.requires_grad_(False).learns


def test_bad_input_is_named(clip):
    with pytest.raises(ValueError, match=r"expected frames of camera 'eye' or features 'clip.*/eye', got \['wrist'\]"):
        backbone(clip)(observations(cameras=("wrist",)))
    with pytest.raises(ValueError, match="expected a state of width 3, got 4"):
        backbone(clip)(observations(size=4))
    with pytest.raises(ValueError, match="cameras and a vision encoder belong together"):
        EncoderBackbone(state_size=3, cameras=["eye"])
    with pytest.raises(ValueError, match="the backbone would read nothing"):
        EncoderBackbone(state_size=0)
    with pytest.raises(ValueError, match="expected a list of names"):
        EncoderBackbone(cameras=["eye", "eye"], encoder=ConvEncoder())
    with pytest.raises(ValueError, match="the width a multiple of the heads"):
        EncoderBackbone(state_size=3, width=6)
    with pytest.raises(ValueError, match=r"EncoderBackbone.state_size"):
        EncoderBackbone()(observations())
    features = {f"{ClipEncoder(clip).name}/eye": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match="expected features of width 32 of camera 'eye', got 5"):
        backbone(clip)(Observation(state=torch.zeros(3, 3), features=features))
