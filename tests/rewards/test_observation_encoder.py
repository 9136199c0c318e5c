"""The encoder of observations: sizes that come from the data, normalisation, frames and features, fusion, causality."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Sampled, TrajectoryBatch
from guerdon.core.sizes import DataSizes, take_sizes, unknown_sizes
from guerdon.rewards.observation_encoder import ObservationEncoder, encode_frames

DATA = DataSizes(name="data/reach", state_size=3, action_size=2)


def rows(state, steps=None, **more):
    steps = torch.tensor(steps or [state.shape[1] - 1] * len(state))
    mask = torch.arange(state.shape[1] - 1)[None] < steps[:, None]
    return TrajectoryBatch(state=state, actions=torch.zeros(*mask.shape, 0), mask=mask, **more)


def filmed(*cameras, steps=((0, 2, 3),), states=0):
    frames = {
        camera: Sampled(
            values=torch.randint(0, 256, (len(steps), len(steps[0]), 3, 8, 8), dtype=torch.uint8),
            step=torch.tensor(steps),
        )
        for camera in cameras
    }
    return rows(torch.randn(len(steps), 5, states), frames=frames)


def convnet():
    return ConvEncoder(width=8, channels=(4, 8), size=8)


def pixels(*cameras, **more):
    small = {"encoder": convnet(), "width": 16, "layers": 1, "heads": 2}
    return ObservationEncoder(cameras=cameras, **small | more)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_without_a_state_size_nothing_is_built_until_the_data_name_it():
    encoder = ObservationEncoder(width=8, layers=1, heads=2)
    assert encoder.state_size is None and not list(encoder.parameters())
    assert unknown_sizes(encoder) == ["ObservationEncoder.state_size"] and not encoder.normalised
    for use in (lambda: encoder.encode(rows(torch.zeros(1, 3, 3))), lambda: encoder.fit_normaliser([])):
        with pytest.raises(ValueError, match=r"is not built yet, ObservationEncoder\.state_size unknown"):
            use()
    assert take_sizes(encoder, DATA)
    assert encoder.encode(rows(torch.zeros(1, 3, 3))).hidden.shape == (1, 3, 8)


def test_a_size_from_the_data_gives_the_weights_of_one_that_was_given():
    torch.manual_seed(4)
    given = ObservationEncoder(state_size=3, width=8)
    torch.manual_seed(4)
    taken = ObservationEncoder(width=8)
    take_sizes(taken, DATA)
    assert taken.init_args == given.init_args
    for one, other in zip(given.parameters(), taken.parameters(), strict=True):
        assert torch.equal(one, other)


def test_with_cameras_no_size_reads_no_state():
    encoder = pixels("wrist")
    assert encoder.state_size == 0 and encoder.inputs.state_size == 0 and encoder.normalised
    assert not take_sizes(encoder, DATA)
    assert encoder.encode(filmed("wrist", states=3)).hidden.shape == (1, 3, 16)


def test_a_size_is_filled_in_once():
    encoder = pixels("wrist").eval()
    encoder.fill_state_size(3)
    assert (encoder.state_size, encoder.training, encoder.init_args["state_size"]) == (3, False, 3)
    encoder.fill_state_size(3)
    with pytest.raises(ValueError, match="state_size 4 of the model, and 3 of its observer"):
        encoder.fill_state_size(4)
    none = pixels("wrist")
    weights = none.vision_in.weight
    none.fill_state_size(0)
    assert none.vision_in.weight is weights, "it read no state already: there was nothing to build"


# --- what is refused -------------------------------------------------------------------------------------------------


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="state_size 0 and no camera: the model would read nothing"):
        ObservationEncoder(state_size=0)
    with pytest.raises(ValueError, match="belong together"):
        ObservationEncoder(state_size=2, cameras=("wrist",))
    with pytest.raises(ValueError, match="belong together"):
        ObservationEncoder(state_size=2, encoder=convnet())
    refused: list[dict[str, Any]] = [{"width": 0}, {"layers": -1}, {"frames_every": 0}]
    for wrong in refused:
        with pytest.raises(ValueError, match="expected a positive width and stride, and at least 0 layers"):
            ObservationEncoder(state_size=2, **wrong)


def test_bad_input_is_named():
    encoder = ObservationEncoder(state_size=2, width=8, layers=0)
    with pytest.raises(ValueError, match="reads a state of 2 numbers, these trajectories have 3"):
        encoder.encode(rows(torch.zeros(1, 3, 3)))
    state = torch.zeros(1, 3, 2)
    state[0, 1, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite at a real observation"):
        encoder.encode(rows(state))
    with pytest.raises(ValueError, match="looks through wrist: the trajectories hold no frame of these"):
        pixels("wrist").encode(rows(state))


# --- states ----------------------------------------------------------------------------------------------------------


def test_the_normaliser_is_the_mean_and_deviation_of_real_observations_and_is_saved(tmp_path):
    state = torch.randn(4, 6, 3) * torch.tensor([2.0, 100.0, 0.0]) + torch.tensor([1.0, -1e4, 5.0])
    batches = [rows(state[:2], [5, 3]), rows(state[2:], [2, 1], last_observed=torch.tensor([True, False]))]
    encoder = ObservationEncoder(state_size=3, width=8)
    assert not encoder.normalised
    encoder.fit_normaliser(batches)
    seen = torch.cat([state[0, :6], state[1, :4], state[2, :3], state[3, :1]])
    assert encoder.normalised and float(encoder.state_count) == 14
    assert torch.allclose(encoder.state_mean, seen.mean(0), rtol=1e-5)
    assert torch.allclose(encoder.state_std[:2], seen.std(0, correction=0)[:2], rtol=1e-4)
    assert float(encoder.state_std[2]) == 1  # a constant keeps its scale
    encoder.save_pretrained(tmp_path / "m")
    assert torch.equal(ObservationEncoder.from_pretrained(tmp_path / "m").state_std, encoder.state_std)
    with pytest.raises(ValueError, match="no observation"):
        encoder.fit_normaliser([])


def test_every_observation_that_was_made_is_evaluated_without_cameras():
    batch = rows(torch.randn(2, 4, 3), [3, 2], last_observed=torch.tensor([True, False]))
    encoded = ObservationEncoder(state_size=3, width=8, layers=1, heads=2).encode(batch)
    assert encoded.step.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]
    assert bool((encoded.hidden[1, 2:] == 0).all())


def test_layers_look_back_and_never_ahead():
    encoder = ObservationEncoder(state_size=3, width=8, layers=1, heads=2).eval()
    state = torch.randn(1, 5, 3)
    changed = state.clone()
    changed[0, 2] += 1
    difference = (encoder.encode(rows(state)).hidden - encoder.encode(rows(changed)).hidden).abs().sum(-1)[0]
    assert bool((difference[:2] == 0).all()) and bool((difference[2:] > 0).all())
    alone = ObservationEncoder(state_size=3, width=8, layers=0).eval()
    difference = (alone.encode(rows(state)).hidden - alone.encode(rows(changed)).hidden).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [2]


def test_an_instruction_changes_every_feature():
    encoder = ObservationEncoder(state_size=3, text=HashedText(8, 256), width=8, layers=0).eval()
    state = torch.randn(1, 3, 3)
    one, other = (encoder.encode(rows(state, instructions=(text,))).hidden for text in ("open the drawer", "close it"))
    assert encoder.inputs.instruction and bool((one != other).any(-1).all())


# --- frames ----------------------------------------------------------------------------------------------------------


def test_observations_with_a_frame_of_any_camera_are_evaluated():
    one, other = filmed("wrist", steps=((0, 3, -1),)), filmed("front", steps=((1, 3, 4),))
    batch = replace(one, frames={**one.frames, **other.frames})
    assert pixels("wrist", "front").encode(batch).step.tolist() == [[0, 1, 3, 4]]
    assert pixels("wrist", "absent").encode(batch).step.tolist() == [[0, 3]]


def test_cameras_are_fused_by_their_mean_or_their_sum():
    batch = filmed("wrist", "front")
    twice = replace(batch, frames={name: batch.frames["wrist"] for name in ("wrist", "front")})
    for fusion, factor in (("mean", 1.0), ("sum", 2.0)):
        encoder = pixels("wrist", "front", fusion=fusion, layers=0).eval()
        with torch.no_grad():
            encoder.camera_embedding.zero_()
            encoder.vision_in.bias.zero_()
        alone = pixels("wrist", fusion=fusion, layers=0).eval()
        alone.load_state_dict({**encoder.state_dict(), "camera_embedding": encoder.camera_embedding[:1]})
        with torch.no_grad():  # the projection of one camera, scaled, is what both together give
            alone.vision_in.weight.mul_(factor)
            alone.change_in.weight.mul_(factor)
        assert torch.allclose(encoder.encode(twice).hidden, alone.encode(batch).hidden, atol=1e-5)


def test_a_view_that_does_not_change_is_not_told_apart_by_its_change():
    """Only the change since the start reaches an encoder whose other way in is closed."""
    encoder = pixels("wrist", layers=0).eval()
    with torch.no_grad():
        encoder.vision_in.weight.zero_()
    still = torch.randint(0, 256, (1, 1, 3, 8, 8), dtype=torch.uint8).expand(1, 3, 3, 8, 8)
    moving = torch.randint(0, 256, (1, 3, 3, 8, 8), dtype=torch.uint8)
    step = torch.tensor([[0, 1, 2]])
    spread = [
        encoder.encode(rows(torch.zeros(1, 3, 0), frames={"wrist": Sampled(values=f.contiguous(), step=step)}))
        .hidden.std(1)
        .max()
        for f in (still, moving)
    ]
    assert spread[0] < 1e-6 < spread[1]
    assert not hasattr(pixels("wrist", since_start=False), "change_in")


def test_frozen_features_replace_frames():
    encoder, batch = pixels("wrist").eval(), filmed("wrist")
    encoder.encoder.trainable = False
    frames = batch.frames["wrist"]
    features = torch.stack([encoder.encoder.encode(f) for f in frames.values])
    stored = {f"{encoder.encoder.name}/wrist": Sampled(values=features, step=frames.step)}
    assert encoder.inputs.encoder is encoder.encoder and pixels("wrist").inputs.encoder is None
    cached = encoder.encode(replace(batch, frames={}, features=stored))
    assert torch.allclose(encoder.encode(batch).hidden, cached.hidden, atol=1e-6)
    patches = {name: replace(s, values=s.values[:, :, None].expand(-1, -1, 4, -1)) for name, s in stored.items()}
    pooled = encoder.encode(replace(batch, frames={}, features=patches))  # several vectors a frame: their mean
    assert torch.allclose(cached.hidden, pooled.hidden, atol=1e-6)


def test_a_trainable_vision_encoder_gets_its_gradient_and_padding_is_zero():
    encoder, frames = convnet(), filmed("wrist", steps=((0, 2, -1), (1, -1, -1))).frames["wrist"]
    features = encode_frames(encoder, frames)
    assert features.values.requires_grad and bool((features.values[~frames.mask] == 0).all())
    assert torch.allclose(features.values[frames.mask], encoder.encode(frames.values[frames.mask]), atol=1e-6)
    encoder.trainable = False
    assert not encode_frames(encoder, frames).values.requires_grad
