"""Pairs with answers: raters merged, what is left out, what cannot be compared, labels that teach nothing."""

import warnings

import numpy as np
import pytest

from guerdon.datasets.episodes import Episode
from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.reader import EpisodeReader
from guerdon.preference.answers import Answer, write_answers
from guerdon.preference.recorded_pairs import (
    AnsweredPairs,
    check_labels,
    places_of,
    read_answered_pairs,
    usable_pairs,
)
from guerdon.preference.segments import Segment, SegmentPair, write_segment_pairs


def pair(name, first=(0, 0, 3), second=(1, 1, None)):
    one, other = (Segment(episode=e, start=start, stop=stop) for e, start, stop in (first, second))
    return SegmentPair(id=name, first=one, second=other)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Three episodes of 4 steps, the last of another task."""
    path = tmp_path_factory.mktemp("recorded") / "lift"
    with LeRobotWriter(path, fps=10) as writer:
        for index, task in enumerate(("lift", "lift", "push")):
            state = np.full((5, 2), index, np.float32)
            writer.add(Episode(index=index, state=state, actions=state[:4], instruction=task, task=int(task != "lift")))
    return EpisodeReader(LeRobotDataset(path), ())


def test_labels_are_means_over_raters_and_what_is_left_out_is_counted(tmp_path):
    names = ("agreed", "split", "tied", "skipped", "unasked")
    write_segment_pairs([pair(name, (0, n, 9)) for n, name in enumerate(names)], tmp_path / "pairs.jsonl")
    for rater, choices in {"ann": ("second", "first", "tie", "skip"), "bob": ("second", "second", "skip")}.items():
        given = [Answer(pair=name, choice=choice, rater=rater) for name, choice in zip(names, choices, strict=False)]
        write_answers(given, tmp_path / f"{rater}.jsonl")
    found = read_answered_pairs(tmp_path / "pairs.jsonl", [tmp_path / "ann.jsonl", tmp_path / "bob.jsonl"])
    assert [one.id for one in found.pairs] == ["agreed", "split", "tied"]
    assert found.labels == [0.0, 0.5, 0.5] and (found.skipped, found.unanswered, found.contradicted) == (1, 1, 0)
    assert found.describe() == "3 of 5 pairs are labelled (2 ties), 1 skipped, 1 without an answer"


def test_places_follow_the_index_of_each_episode(reader):
    assert places_of(reader.dataset) == {0: 0, 1: 1, 2: 2}


def test_segments_that_lie_in_the_data_are_kept(reader):
    found = AnsweredPairs(pairs=[pair("a"), pair("b", (0, 0, 2), (0, 2, 4))], labels=[1.0, 0.0], skipped=2)
    assert usable_pairs(found, reader, places_of(reader.dataset)) == found


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (pair("p", (7, 0, 3)), "'p' names episode 7, and .*lift has episodes 0 to 2"),
        (pair("p", (0, 2, 9)), "'p': steps 2 to 9 do not lie in episode 0, which has 4 steps"),
        (pair("p", (0, 1, None), (0, 1, 4)), "'p': both segments are the same steps"),
        (pair("p", (0, 0, 3), (2, 0, 3)), "'p' compares two tasks, 'lift' and 'push'"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(reader, wrong, message):
    with pytest.raises(ValueError, match=message):
        usable_pairs(AnsweredPairs(pairs=[wrong], labels=[1.0]), reader, places_of(reader.dataset))


def test_labels_that_teach_nothing_are_refused_and_one_sided_ones_are_warned_of():
    with pytest.raises(ValueError, match="mine: every label is a tie"):
        check_labels([0.5, 0.5], "mine")
    with pytest.raises(ValueError, match="mine: there is no training pair with a label"):
        check_labels([], "mine")
    with pytest.warns(UserWarning, match="all 2 decided training labels prefer the second"):
        check_labels([0.0, 0.5, 0.25], "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_labels([1.0, 0.0], "mine")
        check_labels([1.0], "mine")
