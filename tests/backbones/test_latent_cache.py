"""The cache of tokens: the same numbers as without it, every observation encoded once, nothing stale, bounded."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.backbones.encoder_tokens import EncoderBackbone
from guerdon.backbones.language import HashedText
from guerdon.backbones.latent_cache import LatentCache
from guerdon.backbones.token_states import ObservationTokens, TokenBackbone
from guerdon.core.batch import Observation


class Counting(TokenBackbone):
    """As many tokens as the instruction has words, from a picture and the words; counts what it encodes."""

    def __init__(self):
        super().__init__()
        self.width, self.encoded = 4, 0
        self.weight = torch.nn.Parameter(torch.randn(4), requires_grad=False)
        self.dropout = torch.nn.Dropout(0.5)

    def read(self, observation):
        return Observation(
            state=observation.state[:, :0], frames=observation.frames, instructions=observation.instructions
        )

    def forward(self, observation):
        self.encoded += len(observation)
        words = torch.tensor([len(text.split()) for text in observation.instructions])
        mask = torch.arange(int(words.max()))[None] < words[:, None]
        seen = observation.frames["eye"].float().flatten(1).mean(1)
        hidden = (seen[:, None] * (1 + torch.arange(mask.shape[1])))[..., None] * self.weight
        return ObservationTokens(hidden=self.dropout(hidden.masked_fill(~mask[..., None], torch.nan)), mask=mask)


def observations(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Observation(
        state=torch.randn(count, 3, generator=generator),
        frames={"eye": torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)},
        instructions=tuple("go to the red block"[: 5 + 4 * (i % 3)] for i in range(count)),
    )


def same(one, other):
    return torch.equal(one.mask, other.mask) and torch.equal(one.hidden[one.mask], other.hidden[other.mask])


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(100, 2000))
def test_it_gives_what_the_backbone_gives_whatever_was_asked_before(questions, max_bytes):
    backbone, everything = Counting().eval(), observations(10)
    cache = LatentCache(max_bytes=max_bytes, micro_batch=2)
    for rows in questions:
        asked = everything[rows]
        assert same(cache.tokens(backbone, asked), backbone(asked))
        assert cache.size <= max_bytes


def test_an_observation_is_encoded_once_over_many_passes_and_the_state_does_not_count():
    backbone, cache, seen = Counting(), LatentCache(), observations(20)
    for _epoch in range(5):
        for rows in torch.randperm(20).split(6):
            cache.tokens(backbone, seen[rows])
    moved = Observation(state=seen.state + 1, frames=seen.frames, instructions=seen.instructions)
    cache.tokens(backbone, moved)
    assert backbone.encoded == 20 == cache.misses == cache.entries and cache.hits == 100
    twice = seen[[3, 3, 4]]
    assert same(LatentCache().tokens(backbone, twice), backbone.eval()(twice)) and backbone.encoded == 20 + 2 + 3


def test_another_picture_or_instruction_is_another_observation():
    backbone, cache, seen = Counting(), LatentCache(), observations(1)
    cache.tokens(backbone, seen)
    frames = {"eye": seen.frames["eye"].clone()}
    frames["eye"][0, 0, 0, 0] ^= 1
    cache.tokens(backbone, Observation(state=seen.state, frames=frames, instructions=seen.instructions))
    cache.tokens(backbone, Observation(state=seen.state, frames=seen.frames, instructions=("go there",)))
    assert backbone.encoded == 3


def test_a_change_of_the_weights_drops_everything():
    backbone, cache, seen = Counting().eval(), LatentCache(), observations(4)
    cache.tokens(backbone, seen)
    with torch.no_grad():
        backbone.weight[2] += 1e-4
    assert same(cache.tokens(backbone, seen), backbone(seen)) and cache.entries == 4 and cache.misses == 8


@pytest.mark.parametrize("fused", [True, False])
def test_the_version_follows_a_step_of_any_optimizer_and_equal_weights_have_one_version(fused):
    backbone = EncoderBackbone(state_size=3, text=HashedText(8), width=8, hidden=(), heads=2)
    before, copied = backbone.version, copy.deepcopy(backbone)
    assert backbone.version == before == copied.version
    optimizer = torch.optim.Adam(backbone.parameters(), 1e-6, fused=fused)
    seen = Observation(state=torch.randn(2, 3), instructions=("a", "b"))
    backbone(seen).hidden.square().sum().backward()
    optimizer.step()
    after = backbone.version
    assert after != before
    backbone.load_state_dict(copied.state_dict())
    assert backbone.version == before
    backbone.state_in.fit(seen)  # the scales of the state change its tokens too
    assert backbone.version != before


def test_the_least_recently_used_is_dropped_first():
    backbone, seen = Counting(), observations(3)
    seen = Observation(state=seen.state, frames=seen.frames, instructions=("one",) * 3)
    cache = LatentCache(max_bytes=2 * 4 * 4)  # two observations of one token of four float32
    for rows in ([0], [1], [0], [2]):
        cache.tokens(backbone, seen[rows])
    assert cache.entries == 2 and cache.size == 32
    before = backbone.encoded
    cache.tokens(backbone, seen[[0, 2]])
    assert backbone.encoded == before
    cache.tokens(backbone, seen[[1]])
    assert backbone.encoded == before + 1


def test_tokens_are_those_of_evaluation_mode_and_the_mode_stays():
    backbone, seen = Counting().train(), observations(4)
    assert same(LatentCache().tokens(backbone, seen), copy.deepcopy(backbone).eval()(seen)) and backbone.training


def test_a_backbone_that_learns_is_refused():
    backbone = Counting().requires_grad_(True)
    with pytest.raises(ValueError, match=r"Counting learns, so its tokens cannot be kept: freeze it"):
        LatentCache().tokens(backbone, observations(1))


def test_entries_stay_out_of_copies_and_other_processes():
    cache = LatentCache()
    cache.tokens(Counting(), observations(4))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other.entries == 0 and other.size == 0
    assert cache.entries == 4
    with pytest.raises(ValueError, match="expected positive numbers"):
        LatentCache(max_bytes=0)


@pytest.mark.parametrize("size", [6, 2**20 + 6])
def test_the_version_tells_permuted_weights_apart(size):
    versions: set[str] = set()
    for order in (slice(None), [1, 0, 2, 3, 4, 5], [5, 1, 2, 3, 4, 0]):
        backbone = Counting()
        values = torch.zeros(size)
        values[-6:] = torch.arange(6.0)[order]
        backbone.more = torch.nn.Parameter(values, requires_grad=False)
        versions.add(backbone.version)
    assert len(versions) == 3
