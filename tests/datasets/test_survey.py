"""Every episode read once before a run: which can be used, how each ended, and what is said of the others."""

import numpy as np
import pytest

from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Column, EpisodeSummary
from guerdon.datasets.features import FeatureCache
from guerdon.datasets.joined import JoinedDatasets
from guerdon.datasets.reader import EpisodeReader
from guerdon.datasets.survey import check_targets, outcome_of, survey


class Stored:
    """Episodes in memory; an error in the place of one is raised when it is asked for."""

    def __init__(self, *episodes):
        self.episodes, self.cameras = episodes, ("front",)
        self.name, self.fps, self.state_size, self.action_size = "stored", 10.0, 2, 1

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        one = self.episodes[place]
        return EpisodeSummary(index=one.index, steps=5, split=getattr(one, "split", ""))

    def __getitem__(self, place):
        if isinstance(self.episodes[place], BadEpisodeError):
            raise self.episodes[place]
        return self.episodes[place]


def labelled(name, values, valid=None):
    values = np.asarray(values, np.float32)
    known = np.ones(len(values), bool) if valid is None else np.asarray(valid)
    return {"labels": {name: Column(values=values, valid=known)}}


def test_usable_episodes_are_listed_by_data_set_with_their_outcome(make_episode):
    one = Stored(make_episode(0, split="train"), BadEpisodeError(1, "data", "gone"), make_episode(2, success=None))
    other = Stored(make_episode(0, success=0.0, group=7))
    dataset = JoinedDatasets([one, other])
    found = survey(EpisodeReader(dataset), dataset)
    assert found.usable == [0, 2, 3] and found.outcomes == ["success", "unknown", "failure"] and not found.staged
    assert [[info.index for info in infos] for infos in found.sets] == [[0, 2], [0]]
    assert found.sets[0][0].split == "train" and found.sets[1][0].group == 7
    assert [(e.index, e.status) for e in found.bad] == [(1, "data")]
    assert found.reasons() == "episode 1 (data): gone"


def test_reasons_are_counted_beyond_a_number_of_episodes():
    dataset = JoinedDatasets([Stored(*(BadEpisodeError(i, "data", "gone") for i in range(5)))])
    found = survey(EpisodeReader(dataset), dataset)
    assert found.usable == [] and len(found.bad) == 5
    assert found.reasons(2) == "episode 0 (data): gone; episode 1 (data): gone; and 3 more"


def test_a_stage_somewhere_is_enough(make_episode):
    stages = labelled("stage", [0, 0, 0, 1, 1, 1])
    nowhere = labelled("stage", [0] * 6, [False] * 6)
    for given, staged in (([{}, stages], True), ([nowhere, {}], False)):
        dataset = JoinedDatasets([Stored(*(make_episode(i, **more) for i, more in enumerate(given)))])
        assert survey(EpisodeReader(dataset), dataset).staged is staged


def test_the_cache_is_filled_and_an_episode_without_the_camera_named(make_episode, tmp_path):
    dataset = JoinedDatasets([Stored(make_episode(0), make_episode(1, camera=False))])
    cache = FeatureCache(tmp_path)
    found = survey(EpisodeReader(dataset, ["front"], 16, None, cache), dataset)
    assert found.usable == [0] and [(e.index, e.status) for e in found.bad] == [(1, "camera")]
    (group,) = cache.report().groups
    assert (group.entries, group.known, group.places) == (1, 6, 6)


@pytest.mark.parametrize("name", ["progress", "success"])
def test_a_recorded_target_outside_its_range_makes_an_episode_unusable(make_episode, name):
    for values in ([0, 0, 0, 0, 0, 1.5], [-0.1] * 6, [np.nan] * 6):
        with pytest.raises(BadEpisodeError, match=f"episode 3: recorded {name} is .*: expected a number in") as caught:
            check_targets(make_episode(0, index=3, **labelled(name, values)))
        assert caught.value.status == "label"
    check_targets(make_episode(0, **labelled(name, [9] * 6, [False] * 6)))  # unknown, whatever it holds
    check_targets(make_episode(0, **labelled("stage", [9] * 6)))


def test_an_outcome_has_a_name(make_episode):
    assert [outcome_of(make_episode(0, success=s)) for s in (1.0, 0.0, 0.5, None)] == [
        *("success", "failure", "partial", "unknown")
    ]
    assert outcome_of(make_episode(0, success=0.0, **labelled("progress", [0.1] * 6))) == "labelled"
    assert outcome_of(make_episode(0, success=0.0, **labelled("progress", [0.1] * 6, [False] * 6))) == "failure"
    flags = labelled("success", [0, 0, 0, 0, 0, 1])
    assert outcome_of(make_episode(0, success=None, **flags)) == "labelled"
    assert outcome_of(make_episode(0, success=None, **labelled("success", [0] * 6))) == "unknown"


def test_frames_that_break_while_the_cache_is_filled_are_named(make_episode, tmp_path):
    class Broken(ArrayFrames):
        def read(self, indices, size=None):
            raise BadEpisodeError(9, "video", "cannot be decoded")

    frames = {"front": Broken(values=np.zeros((6, 3, 8, 8), np.uint8), step=np.arange(6))}
    dataset = JoinedDatasets([Stored(make_episode(0), make_episode(1, frames=frames))])
    found = survey(EpisodeReader(dataset, ["front"], 16, None, FeatureCache(tmp_path)), dataset)
    assert found.usable == [0] and [(e.index, e.status) for e in found.bad] == [(1, "video")]
