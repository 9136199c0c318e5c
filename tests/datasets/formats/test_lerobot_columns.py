"""Columns of an episode: which it needs, what they hold where something is unknown, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import BadEpisodeError, Column
from guerdon.datasets.formats.lerobot_columns import (
    Field,
    arrow_column,
    columns_of,
    fields_of,
    index_columns,
    masks_of,
    require_same_fields,
)


def test_the_columns_of_an_episode_in_order(make_episode):
    tip = Column.known(np.zeros((6, 3)))
    found = fields_of(make_episode(0, tracks={"tip": tip}))
    assert list(found) == [
        *("observation.state", "action", "track.tip", "track.tip.valid", "next.reward", "recorded.reward.valid"),
        *("next.done", "next.success"),
    ]
    assert found["track.tip"] == Field("float64", (3,)) and found["next.reward"] == Field("float32", (), "step")
    assert found["track.tip"].feature == {"dtype": "float64", "shape": [3], "names": None}
    assert found["next.done"].feature["shape"] == [1]
    assert [name for name, field in found.items() if field.per == "step"] == [
        *("action", "next.reward", "recorded.reward.valid", "next.done", "next.success")
    ]
    empty = make_episode(0, state=np.zeros((6, 0), np.float32), actions=np.zeros((5, 0), np.float32))
    assert "action" not in fields_of(empty) and "observation.state" not in fields_of(empty)


def test_a_reward_per_observation_is_no_reward_of_lerobot(make_episode):
    episode = make_episode(0, recorded={"reward": Column.known(np.zeros(6, np.float32))})
    assert "recorded.reward" in fields_of(episode) and "next.reward" not in fields_of(episode)


def test_the_rows_of_an_episode_whose_last_observation_is_real(make_episode):
    episode = make_episode(1, 3, recorded={"reward": Column.known(np.array([1, 2, 3], np.float32))})
    columns, final = columns_of(episode, fields_of(episode))
    assert columns["next.reward"].tolist() == [1, 2, 3] and columns["action"].tolist() == episode.actions.tolist()
    assert columns["observation.state"].tolist() == episode.state[:3].tolist()
    assert columns["next.done"].tolist() == columns["next.success"].tolist() == [False, False, True]
    assert {name: values.tolist() for name, values in final.items()} == {"observation.state": [[1, 3]]}
    assert {name: mask.tolist() for name, mask in masks_of(columns).items()} == {"next.reward": [True] * 3}
    cut, _ = columns_of(make_episode(1, 3, end=End.CUT, success=0.5), fields_of(episode))
    assert not cut["next.done"].any() and not cut["next.success"].any()


def test_the_rows_of_an_episode_whose_last_observation_is_a_repeat(make_episode):
    episode = make_episode(1, 3, last=False)
    columns, final = columns_of(episode, fields_of(episode))
    assert len(columns["action"]) == 3 and final == {}
    assert columns["observation.state"].tolist() == episode.state[:3].tolist()


def test_unknown_values_are_0(make_episode):
    known = np.array([True, False, True, False])
    labels = {
        "progress": Column(values=np.array([0.5, np.nan, 0.5, np.inf], np.float32), valid=known),
        "stage": Column(values=np.full(4, 7), valid=known),
    }
    episode = make_episode(0, 3, labels=labels)
    columns, final = columns_of(episode, fields_of(episode))
    assert columns["label.stage"].tolist() == [7, 0, 7] and columns["label.progress"].tolist() == [0.5, 0, 0.5]
    assert final["label.stage"].tolist() == final["label.progress"].tolist() == [0]
    masks = masks_of(columns)
    assert masks["label.stage"].tolist() == columns["label.progress.valid"].tolist() == known[:3].tolist()
    assert final["label.stage.valid"].tolist() == [False]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"labels": {"a/b": Column.known(np.zeros(4))}}, "schema", "label 'a/b': LeRobot allows no '/' in names"),
        (
            {"labels": {"a": Column.known(np.zeros(4)), "a.valid": Column.known(np.zeros(4))}},
            "schema",
            "label 'a.valid' has the name of the flags of 'a': rename it",
        ),
        ({"labels": {"a": Column.known(np.array(["x"] * 4))}}, "dtype", "label 'a': expected numbers or bools"),
        ({"labels": {"a": Column.known(np.full(4, np.inf))}}, "not_finite", "holds a valid value that is not a number"),
        ({"last": False, "labels": {"a": Column.known(np.zeros(4))}}, "label", "which was not observed"),
    ],
)
def test_what_cannot_be_written_is_refused(make_episode, changes, status, message):
    with pytest.raises(BadEpisodeError, match=message) as caught:
        episode = make_episode(0, 3, **changes)
        columns_of(episode, fields_of(episode))
    assert caught.value.status == status


def test_another_column_than_before_is_named(make_episode):
    episode = make_episode(3)
    wanted = fields_of(episode)
    require_same_fields(episode, dict(wanted), wanted)
    with pytest.raises(BadEpisodeError, match=r"expected column 'action' .* as in .* before, got no such") as e:
        require_same_fields(episode, {k: v for k, v in wanted.items() if k != "action"}, wanted)
    assert (e.value.index, e.value.status) == (3, "schema")
    with pytest.raises(BadEpisodeError, match="expected column 'extra' absent"):
        require_same_fields(episode, wanted | {"extra": Field("bool", ())}, wanted)


def test_the_index_columns_count_through_the_data_set():
    found = index_columns(2, 1, 10, 3, 5)
    assert found["timestamp"].tolist() == pytest.approx([0.0, 0.2, 0.4]) and found["timestamp"].dtype == np.float32
    assert found["frame_index"].tolist() == [0, 1, 2] and found["index"].tolist() == [10, 11, 12]
    assert found["episode_index"].tolist() == [2, 2, 2] and found["task_index"].tolist() == [1, 1, 1]


def test_vectors_have_a_fixed_size_and_a_vector_of_one_is_a_number():
    assert arrow_column(np.zeros((4, 1), np.float32)).type == pa.float32()
    assert arrow_column(np.zeros((4, 2, 3), np.float32)).type == pa.list_(pa.float32(), 6)
