"""Networks behind the critics of chunks: masks, members, what they read, and twins."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Observation
from guerdon.core.sizes import DataSizes, take_sizes
from guerdon.critics.action import ActionCritic
from guerdon.critics.ensembles import polyak
from guerdon.critics.networks import ChunkPerceptron, ChunkTransformer, Scale
from guerdon.critics.observations import CriticInputs
from guerdon.testing import reopen

from .small_parts import FrozenPixels, FrozenWords

SMALL: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2}
KINDS = ["shared", "separate", "attention", "perceptron"]


def make(kind, state: int | None = 3, action: int | None = 2, horizon=4, members=2, seen=False) -> Any:
    reads = CriticInputs(("front", "wrist"), FrozenPixels(), FrozenWords()) if seen else None
    if kind == "perceptron":
        return ChunkPerceptron(state, action, horizon, members, hidden=(16,), reads=reads).eval()
    pool = "attention" if kind == "attention" else "mean"
    shared = kind != "separate"
    return ChunkTransformer(state, action, horizon, members, **SMALL, shared=shared, pool=pool, reads=reads).eval()


def observe(points, state=3, seen=False):
    frames = {c: torch.randint(0, 256, (points, 3, 8, 8), dtype=torch.uint8) for c in ("front", "wrist")}
    words = tuple("push the block" if i % 2 else "open the drawer" for i in range(points))
    return Observation(state=torch.randn(points, state), frames=frames if seen else {}, instructions=words)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_what_stands_behind_the_mask_changes_neither_value_nor_gradient(kind, lengths, seen):
    network, observation = make(kind, seen=seen), observe(len(lengths), seen=seen)
    chunk = torch.randn(len(lengths), 4, 2)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    found = []
    for junk in (0.0, 7.0, math.nan, math.inf):
        network.zero_grad()
        given_chunk = chunk.masked_fill(~mask[..., None], junk).requires_grad_()
        value = network(observation, given_chunk, mask)
        value.square().sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        found.append([value.detach(), given_chunk.grad, *(g.clone() for g in gradients)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert bool((found[0][1][~mask] == 0).all()) and bool(found[0][1][mask].abs().sum(-1).gt(0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_may_be_shorter_than_the_horizon(kind):
    network, observation, chunk = make(kind), observe(3), torch.randn(3, 4, 2)
    mask = torch.tensor([True, True, False, False]).expand(3, -1)
    torch.testing.assert_close(network(observation, chunk[:, :2], mask[:, :2]), network(observation, chunk, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_every_shown_action_its_place_and_the_number_of_them_matter(kind):
    network, observation, chunk = make(kind), observe(1), torch.randn(1, 4, 2)
    full = torch.ones(1, 4, dtype=torch.bool)
    base = network(observation, chunk, full)
    for step in range(4):
        other = chunk.clone()
        other[:, step] += 1.0
        assert not torch.allclose(network(observation, other, full), base)
        if step:
            assert not torch.allclose(network(observation, chunk, full & (torch.arange(4) < step)), base)
    assert not torch.allclose(network(observation, chunk.flip(1), full), base)
    assert not torch.allclose(network(replace(observation, state=observation.state + 1), chunk, full), base)


@pytest.mark.parametrize("kind", KINDS)
def test_points_do_not_see_each_other(kind):
    network, observation, chunk = make(kind, seen=True), observe(4, seen=True), torch.randn(4, 4, 2)
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 3])[:, None]
    together = network(observation, chunk, mask)
    assert together.shape == (2, 4)
    for i in range(4):
        torch.testing.assert_close(network(observation[i], chunk[i : i + 1], mask[i : i + 1]), together[:, i : i + 1])


def touched(network, member):
    """Names of the parameters that the value of a member depends on."""
    network.zero_grad(set_to_none=True)
    network(observe(2), torch.randn(2, 4, 2), torch.ones(2, 4, dtype=torch.bool))[member].sum().backward()
    return {n for n, p in network.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}


@pytest.mark.parametrize("kind", ["separate", "perceptron"])
def test_separate_members_share_nothing(kind):
    network = make(kind)
    assert touched(network, 0) and not touched(network, 0) & touched(network, 1)


def test_a_shared_trunk_is_shared_and_heads_are_not():
    network = make("shared")
    first, second = touched(network, 0), touched(network, 1)
    assert any("blocks" in name for name in first & second)
    assert any("heads.0" in name for name in first - second) and any("heads.1" in name for name in second - first)


@pytest.mark.parametrize("kind", ["separate", "perceptron"])
def test_members_may_change_places(kind):
    network, observation, chunk = make(kind, members=3), observe(2), torch.randn(2, 4, 2)
    mask = torch.ones(2, 4, dtype=torch.bool)
    before = network(observation, chunk, mask)
    parts = network.networks if kind == "perceptron" else network.trunks
    order = [2, 0, 1]
    states = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    for part, source in zip(parts, order, strict=True):
        part.load_state_dict(states[source])
    torch.testing.assert_close(network(observation, chunk, mask), before[order])
    pessimism = [ActionCritic(network).pessimistic(values) for values in (before, before[order])]
    torch.testing.assert_close(*pessimism)


def test_members_start_apart():
    for kind in KINDS:
        found = make(kind)(observe(3), torch.randn(3, 4, 2), torch.ones(3, 4, dtype=torch.bool))
        assert not torch.allclose(found[0], found[1])


def test_the_published_size_has_56_tokens():
    # [K = 2 Q tokens, state, 50 actions, 3 cameras]: the only K that makes the paper's L = 56
    reads = CriticInputs(("left", "right", "top"), FrozenPixels())
    network: Any = ChunkTransformer(3, 2, 50, **SMALL, reads=reads)
    seen = []
    network.trunks[0].blocks[0].register_forward_pre_hook(lambda *a: seen.append(a))
    original = type(network.trunks[0].blocks[0]).mix
    lengths = []

    def mix(block, stream, *rest):
        lengths.append(stream.shape[1])
        return original(block, stream, *rest)

    network.trunks[0].blocks[0].mix = lambda *a: mix(network.trunks[0].blocks[0], *a)
    features = {f"{FrozenPixels().name}/{c}": torch.randn(1, 6) for c in ("left", "right", "top")}
    network(Observation(state=torch.zeros(1, 3), features=features), torch.zeros(1, 50, 2), torch.ones(1, 50) > 0)
    assert lengths == [56]


@pytest.mark.parametrize("kind", KINDS)
def test_cameras_and_instructions_are_read(kind):
    network, observation = make(kind, seen=True), observe(2, seen=True)
    assert network.inputs.cameras == ("front", "wrist") and network.inputs.instruction
    chunk, mask = torch.randn(2, 4, 2), torch.ones(2, 4, dtype=torch.bool)
    base = network(observation, chunk, mask)
    for camera in ("front", "wrist"):
        frames = {**observation.frames, camera: 255 - observation.frames[camera]}
        assert not torch.allclose(network(replace(observation, frames=frames), chunk, mask), base)
    other = replace(observation, instructions=("push the block",) * 2)
    found = network(other, chunk, mask)
    assert not torch.allclose(found[:, 0], base[:, 0])
    torch.testing.assert_close(found[:, 1], base[:, 1])
    # features from a cache are the same as frames, and go before them
    features = {
        f"{network.reads.encoder.name}/{c}": network.reads.encoder.encode(f) for c, f in observation.frames.items()
    }
    cached = Observation(state=observation.state, features=features, instructions=observation.instructions)
    torch.testing.assert_close(network(cached, chunk, mask), base)


def test_patches_are_pooled():
    network = make("attention", seen=True)
    patches = {f"{network.reads.encoder.name}/{c}": torch.randn(2, 9, 6) for c in ("front", "wrist")}
    chunk, mask = torch.randn(2, 4, 2), torch.ones(2, 4, dtype=torch.bool)
    observation = Observation(state=torch.randn(2, 3), features=patches, instructions=("a", "b"))
    base = network(observation, chunk, mask)
    shuffled = {k: v[:, torch.randperm(9)] for k, v in patches.items()}
    torch.testing.assert_close(network(replace(observation, features=shuffled), chunk, mask), base)


def test_without_a_state_the_cameras_are_enough_whatever_the_data_hold():
    network = make("shared", state=0, seen=True)
    chunk, mask = torch.randn(2, 4, 2), torch.ones(2, 4, dtype=torch.bool)
    observation = observe(2, state=5, seen=True)
    base = network(observation, chunk, mask)
    torch.testing.assert_close(network(replace(observation, state=torch.full((2, 5), math.nan)), chunk, mask), base)
    network.fit(torch.randn(9, 5), torch.randn(9, 2))
    assert network.inputs.state_size == 0


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_saved(kind):
    network, observation = make(kind, seen=True), observe(3, seen=True)
    network.fit(torch.randn(20, 3) * 5, torch.randn(20, 2))
    chunk, mask = torch.randn(3, 4, 2), torch.ones(3, 4, dtype=torch.bool)
    again = reopen(network).eval()
    torch.testing.assert_close(again(observation, chunk, mask), network(observation, chunk, mask))
    assert bool(again.fitted)


def test_a_twin_has_its_own_weights_and_the_same_encoders():
    network = make("shared", seen=True)
    twin = network.twin()
    assert twin.reads.encoder is network.reads.encoder and twin.reads.text is network.reads.text and not twin.training
    encoder = {k: v.clone() for k, v in network.reads.encoder.state_dict().items()}
    own = {id(p) for p in network.parameters()} & {id(p) for p in twin.parameters()}
    assert own == {id(p) for part in (network.reads.encoder, network.reads.text) for p in part.parameters()}
    with torch.no_grad():
        for parameter in network.trunks.parameters():
            parameter.add_(1.0)
    polyak(twin, network, 0.5)
    mine, theirs = network.trunks[0].queries, twin.trunks[0].queries
    torch.testing.assert_close(mine - theirs, torch.full_like(mine, 0.5))
    assert all(torch.equal(v, encoder[k]) for k, v in network.reads.encoder.state_dict().items())
    critic = ActionCritic(network)
    opened = reopen(critic)
    assert opened.target.reads.encoder is opened.network.reads.encoder


def test_scales_are_those_of_the_data():
    network = make("perceptron")
    state, actions = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.0]) + 2, torch.rand(500, 2) * 4 - 1
    network.fit(state, actions)
    torch.testing.assert_close(network.state_scale.mean, state.mean(0))
    # what never moves keeps a scale of 1, what hardly does one of 0.1, an action one of 0.001
    torch.testing.assert_close(network.state_scale.std, torch.tensor([*state.std(0, correction=0)[:2], 1.0]))
    network.fit(torch.stack([torch.linspace(0, 1e-3, 9)] * 3, 1), torch.stack([torch.linspace(0, 1e-5, 9)] * 2, 1))
    torch.testing.assert_close(network.state_scale.std, torch.full((3,), 0.1))
    torch.testing.assert_close(network.action_scale.std, torch.full((2,), 1e-3))
    network.fit(state, actions)
    torch.testing.assert_close(network.action_scale.low, actions.amin(0))
    torch.testing.assert_close(network.action_scale.high, actions.amax(0))
    scale = Scale(1)
    assert scale(torch.tensor([[1e9], [-1e9]])).tolist() == [[10.0], [-10.0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"state_size": -1}, "state_size -1"),
        ({"state_size": 0}, "would see nothing"),
        ({"action_size": 0}, "at least one action"),
        ({"horizon": 0}, "at least one action"),
        ({"members": 0}, "at least one action"),
        ({"cameras": ("a",)}, "together with an encoder"),
        ({"encoder": FrozenPixels()}, "together with an encoder"),
        ({"cameras": ("a", "a"), "encoder": FrozenPixels()}, "each once"),
        ({"cameras": ("a",), "encoder": ConvEncoder(6, (4, 4), 16)}, "expected frozen encoders"),
        ({"text": HashedText(4)}, "expected frozen encoders"),
    ],
)
@pytest.mark.parametrize("network", [ChunkTransformer, ChunkPerceptron])
def test_networks_that_make_no_sense_are_refused(network, wrong, message):
    with pytest.raises(ValueError, match=message):
        network(**{"state_size": 2, "action_size": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"layers": 0}, {"width": 0}, {"pool": "max"}])
def test_transformers_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=r"expected|Expected type"):
        ChunkTransformer(2, 1, **wrong)


def test_input_that_does_not_fit_is_refused():
    network, observation = make("shared"), observe(2)
    mask = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="values actions of 2 dimensions, these chunks have 3"):
        network(observation, torch.zeros(2, 4, 3), mask)
    for length in (0, 5):
        with pytest.raises(ValueError, match=f"chunks of 1 … 4 steps, got {length}"):
            network(observation, torch.zeros(2, length, 2), torch.ones(2, length, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected a state of width 3, got 1"):
        network(observe(2, state=1), torch.zeros(2, 4, 2), mask)
    sighted = make("shared", seen=True)
    with pytest.raises(ValueError, match="reads camera 'front', and these observations hold neither"):
        sighted(observation, torch.zeros(2, 4, 2), mask)
    narrow = {f"{sighted.reads.encoder.name}/{c}": torch.zeros(2, 12) for c in ("front", "wrist")}
    with pytest.raises(ValueError, match="expected width 6, got 12"):
        sighted(Observation(state=torch.zeros(2, 3), features=narrow), torch.zeros(2, 4, 2), mask)


def test_scales_from_bad_data_are_refused():
    network = make("perceptron")
    with pytest.raises(ValueError, match="actions of width 2, the data have 7: set its action_size"):
        network.fit(torch.zeros(3, 3), torch.zeros(3, 7))
    with pytest.raises(ValueError, match="there is no state in the data"):
        network.fit(torch.zeros(0, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="a state is NaN"):
        network.fit(torch.full((3, 3), math.nan), torch.zeros(3, 2))
    assert not bool(network.fitted)


@pytest.mark.parametrize("kind", [ChunkTransformer, ChunkPerceptron])
def test_actions_are_cut_to_what_is_carried_out(kind):
    network = kind(3, 2, horizon=4, action_range=[-1, 1])
    seen, whole = Observation(state=torch.randn(5, 3)), torch.ones(5, 4, dtype=torch.bool)
    chunk = 3 * torch.randn(5, 4, 2)
    assert torch.equal(network(seen, chunk, whole), network(seen, chunk.clamp(-1, 1), whole))
    free = kind(3, 2, horizon=4)
    free.load_state_dict(network.state_dict())
    assert not torch.allclose(free(seen, chunk, whole), network(seen, chunk, whole))
    assert torch.equal(free(seen, chunk.clamp(-1, 1), whole), network(seen, chunk, whole))
    for wrong in ([1, -1], [0], [0, 0]):
        with pytest.raises(ValueError, match="action_range"):
            kind(3, 2, horizon=4, action_range=wrong)


def test_an_action_that_never_moved_keeps_its_unit():
    # a gripper closed all along: an opening of 0.5 must not look like 500 deviations
    network = ChunkPerceptron(1, 2, horizon=1)
    network.fit(torch.randn(20, 1), torch.stack([torch.linspace(-1, 1, 20), torch.ones(20)], 1))
    assert network.action_scale.std[1] == 1
    assert network.action_scale(torch.tensor([0.0, 0.5]))[1] == -0.5


@pytest.mark.parametrize("kind", [ChunkTransformer, ChunkPerceptron])
def test_flat_arguments_become_the_inputs(kind):
    flat = kind(3, 2, cameras=("front",), encoder=FrozenPixels(), action_range=[-1, 1], frame_size=32)
    assert (flat.reads.cameras, flat.reads.action_range, flat.inputs.frame_size) == (("front",), (-1.0, 1.0), 32)
    assert isinstance(flat.init_args["reads"], CriticInputs) and "cameras" not in flat.init_args
    assert reopen(flat).reads.cameras == ("front",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_without_sizes_is_built_from_those_of_the_data(kind):
    network, chunk, mask = make(kind, None, None, seen=True), torch.randn(2, 4, 2), torch.ones(2, 4) > 0
    observation = observe(2, seen=True)
    with pytest.raises(ValueError, match=r"state_size and Chunk\w+.action_size unknown"):
        network(observation, chunk, mask)
    with pytest.raises(ValueError, match="is not built yet"):
        network.fit(torch.zeros(1, 3), torch.zeros(1, 2))
    assert take_sizes(network, DataSizes(name="here", state_size=3, action_size=2))
    assert network(observation, chunk, mask).shape == (2, 2)
    assert not take_sizes(network, DataSizes(name="here", state_size=3, action_size=2))


def test_a_network_without_a_state_takes_the_width_of_the_actions_alone():
    network = make("shared", 0, None, seen=True)
    assert take_sizes(network, DataSizes(name="here", state_size=39, action_size=2))
    assert (network.state_size, network.action_size) == (0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_before_open(kind):
    """Encoders lay in the network itself; everything else goes by the name it had."""
    network = make(kind, seen=True)
    before = {name.replace("reads.", ""): value.clone() for name, value in network.state_dict().items()}
    opened = make(kind, seen=True)
    opened.load_state_dict(before)
    observation, chunk, mask = observe(3, seen=True), torch.randn(3, 4, 2), torch.ones(3, 4) > 0
    torch.testing.assert_close(opened(observation, chunk, mask), network(observation, chunk, mask), rtol=0, atol=0)


def test_weights_of_before_open_inside_a_critic():
    critic = ActionCritic(make("perceptron", seen=True))
    before = {name.replace("reads.", ""): value.clone() for name, value in critic.state_dict().items()}
    assert "network.encoder.layers.0.weight" in before and "target.encoder.layers.0.weight" in before
    ActionCritic(make("perceptron", seen=True)).load_state_dict(before)
