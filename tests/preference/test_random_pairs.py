"""Random pairs: repeatable, of one task and, where it is recorded, of one initial state."""

from typing import Any, ClassVar, cast

import pytest

from guerdon.datasets.episodes import EpisodeSummary
from guerdon.preference.random_pairs import draw_segment_pairs


class Listed:
    """Summaries alone: reading an episode fails."""

    name, fps, state_size, action_size = "listed", 10.0, 0, 0
    cameras: ClassVar = ("front",)

    def __init__(self, *episodes):
        self.episodes = [
            EpisodeSummary(index=i, steps=steps, instruction=words, context=context)
            for i, (words, context, steps) in enumerate(episodes)
        ]

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        return self.episodes[place]

    def __getitem__(self, place):
        raise AssertionError("nothing needs to be read")


def listed(*episodes) -> Any:
    return Listed(*episodes)


def test_pairs_are_repeatable_different_and_of_one_task_and_start():
    data = listed(*[("push", f"c{i % 3}", 40) for i in range(9)], *[("Open  it", "", 40), ("open it", "", 12)])
    pairs = draw_segment_pairs(data, 50, seconds=2.0, seed=3)
    assert pairs == draw_segment_pairs(data, 50, seconds=2.0, seed=3) != draw_segment_pairs(data, 50, 2.0, seed=4)
    assert len({pair.id for pair in pairs}) == 50
    for pair in pairs:
        a, b = cast(Any, pair.first), cast(Any, pair.second)
        assert a.episode != b.episode and a.start == b.start
        if max(a.episode, b.episode) < 9:
            assert a.episode % 3 == b.episode % 3 and a.stop - a.start == 20 and "initial state" in pair.reason
        else:
            assert {a.episode, b.episode} == {9, 10} and min(a.stop, b.stop) <= 12


def test_a_small_data_set_gives_what_it_holds_and_an_unfit_one_is_refused():
    assert len(draw_segment_pairs(listed(("a", "", 5), ("a", "", 5)), 10, 3.0)) == 1
    with pytest.raises(ValueError, match="expected two episodes of one task"):
        draw_segment_pairs(listed(("a", "", 5), ("b", "", 5), ("b", "", 0)), 10)
    with pytest.raises(ValueError, match="at least one pair"):
        draw_segment_pairs(listed(("a", "", 5), ("a", "", 5)), 0)
