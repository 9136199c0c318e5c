"""Data read as a model asks for them: what fits it, which frames it sees, and episodes that turn out to be broken."""

import numpy as np
import pytest
import torch

from guerdon.backbones.model_inputs import ModelInputs
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End
from guerdon.core.interfaces import RewardModel
from guerdon.datasets.collate import collate
from guerdon.datasets.episodes import BadEpisodeError, EpisodeSummary, FrameSource
from guerdon.datasets.features import FeatureCache
from guerdon.datasets.model_reader import model_reader, read_for, read_places, read_usable


class Reading(RewardModel):
    """Says what it reads, and nothing else."""

    def __init__(self, state_size=0, cameras=(), encoder=None, frame_size=None, frames_every=1):
        super().__init__()
        self.inputs = ModelInputs(
            state_size=state_size,
            cameras=tuple(cameras),
            encoder=encoder,
            frame_size=frame_size,
            frames_every=frames_every,
        )


class Broken(FrameSource):
    """A video that cannot be decoded, which shows when it is read."""

    @property
    def identity(self):
        return "broken"

    def __init__(self, episode, frames):
        self.episode, self.step = episode, np.arange(frames)

    def read(self, indices, size=None):
        raise BadEpisodeError(self.episode, "video", "cannot be decoded")


class Stored:
    """Episodes in memory; an error in the place of one is raised when it is asked for."""

    def __init__(self, episodes):
        self.episodes, self.cameras = episodes, ("front",)
        self.name, self.fps, self.state_size, self.action_size = "stored", 10.0, 2, 1

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        return EpisodeSummary(index=self.episodes[place].index, steps=5)

    def __getitem__(self, place):
        if isinstance(self.episodes[place], BadEpisodeError):
            raise self.episodes[place]
        return self.episodes[place]


@pytest.fixture
def stored(make_episode):
    """Numbers 10 … 14; 11 cannot be read, the video of 13 is broken."""
    episodes = [make_episode(i % 3, index=10 + i) for i in range(5)]
    episodes[1] = BadEpisodeError(11, "data", "there is no file")
    episodes[3] = make_episode(0, index=13, frames={"front": Broken(13, 6)})
    return Stored(episodes)


def test_data_that_do_not_fit_the_model_are_refused(stored):
    with pytest.raises(ValueError, match="Reading reads a state of 9 numbers, stored has 2: score the data it was"):
        model_reader(Reading(state_size=9), stored)
    with pytest.raises(ValueError, match="Reading looks through wrist; stored has front"):
        model_reader(Reading(cameras=["wrist"]), stored)
    for fits in (Reading(state_size=2), Reading(cameras=["wrist", "front"]), Reading()):
        assert model_reader(fits, stored).dataset is stored


def test_a_cache_is_used_only_for_what_it_can_keep(stored, tmp_path):
    cache = FeatureCache(tmp_path)
    encoder = ConvEncoder(width=4, channels=(4,), size=8)
    encoder.trainable = False
    assert model_reader(Reading(cameras=["front"]), stored, cache).cache is None
    assert model_reader(Reading(cameras=["front"], frame_size=16), stored, cache).cache is cache
    embedded = model_reader(Reading(cameras=["front"], encoder=encoder), stored, cache)
    assert embedded.cache is cache and embedded.encoder is encoder


def test_the_ends_after_which_nothing_is_bootstrapped_are_an_argument(stored):
    ended = stored[0]
    assert ended.end == End.SUCCESS
    plain = read_for(model_reader(Reading(), stored), Reading(), [ended])
    other = read_for(model_reader(Reading(), stored, terminating=[End.FAILURE]), Reading(), [ended])
    assert (plain.terminated.tolist(), other.terminated.tolist()) == ([True], [False])


def test_a_model_sees_every_nth_frame_and_the_last_of_whole_episodes(stored):
    model = Reading(cameras=["front"], frames_every=2)
    batch = read_for(model_reader(model, stored), model, [stored[0], stored[2]])
    assert batch.frames["front"].step.tolist() == [[0, 2, 4, 5]] * 2 and batch.steps.tolist() == [5, 5]
    assert torch.equal(batch.state, collate([stored[0], stored[2]]).state)


def test_what_cannot_be_used_is_named_by_its_place_and_the_others_are_one_batch(stored):
    model = Reading(cameras=["front"])
    reader = model_reader(model, stored)
    batch, found = read_places(reader, model, range(5))
    assert list(found) == [0, 1, 2, 3, 4] and batch.episode.tolist() == [10, 12, 14]
    bad = {place: (e.index, e.status) for place, e in found.items() if isinstance(e, BadEpisodeError)}
    assert bad == {1: (11, "data"), 3: (13, "video")}
    assert [found[place].index for place in (0, 2, 4)] == [10, 12, 14]
    assert read_places(reader, model, [3])[0] is None and read_places(reader, model, []) == (None, {})


def test_usable_episodes_come_with_their_batch_and_the_others_by_their_number(stored):
    model, bad = Reading(cameras=["front"]), {}
    reader = model_reader(model, stored)
    batch, episodes = read_usable(reader, model, [4, 3, 2, 1], bad)
    assert [e.index for e in episodes] == batch.episode.tolist() == [14, 12]
    assert {number: error.status for number, error in bad.items()} == {13: "video", 11: "data"}
    assert read_usable(reader, model, [3], bad) == (None, [])


def test_an_error_that_names_no_episode_of_the_batch_is_not_swallowed(make_episode):
    stored = Stored([make_episode(0, frames={"front": Broken(0, 6)})])
    model = Reading(cameras=["front"])
    reader = model_reader(model, stored)

    def elsewhere(*_, **__):
        raise BadEpisodeError(99, "video", "of somebody else")

    reader.batch = elsewhere
    with pytest.raises(BadEpisodeError, match="episode 99"):
        read_places(reader, model, [0])
