"""Several data sets as one: numbers that never meet, and errors under them."""

import pytest

from guerdon.datasets.episodes import BadEpisodeError, EpisodeDataset, EpisodeSummary
from guerdon.datasets.joined import JoinedDatasets, joined


class Stored:
    """Episodes in memory; an error in the place of one is raised when it is asked for."""

    def __init__(self, name, episodes, state_size=2, cameras=("front",)):
        self.name, self.episodes, self.cameras = name, episodes, cameras
        self.fps, self.state_size, self.action_size = 10.0, state_size, 1

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        one = self.episodes[place]
        return EpisodeSummary(index=one.index, steps=5, context=getattr(one, "context", ""))

    def __getitem__(self, place):
        if isinstance(self.episodes[place], BadEpisodeError):
            raise self.episodes[place]
        return self.episodes[place]


@pytest.fixture
def two(make_episode):
    """Three and two episodes with the same numbers, tasks, groups and contexts."""
    given = {"group": 5, "context": "start"}
    first = Stored("one", [make_episode(i, **given) for i in range(3)])
    second = Stored("two", [make_episode(i, **given) for i in range(2)], cameras=("wrist", "front"))
    return first, second


def test_numbers_of_different_data_sets_never_meet(two):
    both = JoinedDatasets(two)
    assert isinstance(both, EpisodeDataset) and len(both) == 5
    episodes = [both[place] for place in range(5)]
    assert len({e.index for e in episodes}) == 5
    for kept in range(3):  # the first data set keeps its own
        assert episodes[kept] is two[0][kept]
    for place in (3, 4):
        assert episodes[place].task != episodes[0].task and episodes[place].group != episodes[0].group
        assert episodes[place].context == "1:start" and episodes[0].context == "start"
    assert [both.summary(place).index for place in range(5)] == [e.index for e in episodes]
    assert [both.summary(place).context for place in (2, 3)] == ["start", "1:start"]
    assert both[-1].index == both[4].index
    with pytest.raises(IndexError):
        both[5]


def test_what_is_known_of_all_is_known_of_the_joint_set(two):
    both = JoinedDatasets(two)
    assert both.name == "one + two" and both.cameras == ("front", "wrist") and both.fps == 10.0
    assert (both.state_size, both.action_size) == (2, 1)


def test_an_error_names_the_number_an_episode_has_here(two):
    two[1].episodes[1] = BadEpisodeError(1, "data", "gone")
    both = JoinedDatasets(two)
    with pytest.raises(BadEpisodeError, match="gone") as caught:
        both[4]
    assert caught.value.index == both.summary(4).index == 2**32 + 1 and caught.value.status == "data"


def test_data_sets_that_cannot_share_batches_are_refused(two):
    with pytest.raises(ValueError, match="at least one data set"):
        JoinedDatasets([])
    with pytest.raises(ValueError, match=r"one has states of 2 and actions of 1 numbers, other of 7 and 1"):
        JoinedDatasets([two[0], Stored("other", [], state_size=7)])


def test_a_single_data_set_is_joined_once(two):
    alone = joined(two[0])
    assert len(alone.datasets) == 1 and alone[1].index == 1 and joined(alone) is alone
