"""The meta folder: what must be in it, what its entries mean, and where it contradicts itself."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.datasets.formats.lerobot_columns import Field
from guerdon.datasets.formats.lerobot_meta import (
    OWN,
    camera_names,
    inconsistencies,
    own_entries,
    read_episodes,
    read_info,
    read_own,
    read_tasks,
    split_of,
    vector_key,
    video_of,
)

INFO = {
    "codebase_version": "v3.0",
    "fps": 10,
    "features": {"action": {"dtype": "float32", "shape": [2]}},
    "data_path": "data/{chunk_index}/{file_index}.parquet",
}


def write_info(folder, **changes):
    (folder / "meta").mkdir(exist_ok=True)
    info = {key: value for key, value in {**INFO, **changes}.items() if value is not None}
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def test_the_information_that_is_needed_is_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a LeRobot data set: it has no meta/info\.json"):
        read_info(tmp_path)
    write_info(tmp_path)
    assert read_info(tmp_path)["fps"] == 10
    for changes, message in (
        ({"codebase_version": "v2.1"}, r"of version v2\.1; version v3\.0 is read\. Convert it"),
        ({"codebase_version": None}, "of version unnamed"),
        ({"features": None}, "features"),
        ({"fps": 0}, "fps > 0"),
        ({"fps": "ten"}, "fps"),
        ({"features": {"action": {"shape": [2]}}}, "feature 'action' needs a dtype and a shape"),
    ):
        write_info(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            read_info(tmp_path)
    (tmp_path / "meta" / "info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info\.json is no JSON: .*the description of a LeRobot data set"):
        read_info(tmp_path)


NEEDED = {"length": [3, 4], "data/chunk_index": [0, 0], "data/file_index": [0, 0]}


def write_episodes(folder, name="file-000", **columns):
    path = folder / "meta" / "episodes" / "chunk-000" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_episodes_come_in_order_and_without_statistics(tmp_path):
    with pytest.raises(ValueError, match="found no table of episodes"):
        read_episodes(tmp_path, {})
    write_episodes(tmp_path, "file-000", episode_index=[3, 1], **NEEDED, **{"stats/action/mean": [0.0, 0.0]})
    write_episodes(tmp_path, "file-001", episode_index=[2, 0], **NEEDED)
    found = read_episodes(tmp_path, {})
    assert [row["episode_index"] for row in found] == [0, 1, 2, 3] and "stats/action/mean" not in found[1]
    with pytest.raises(ValueError, match=r"lacks the columns videos/observation\.images\.top/chunk_index"):
        read_episodes(tmp_path, {"top": "observation.images.top"})
    (tmp_path / "meta" / "episodes" / "chunk-000" / "file-001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_episodes(tmp_path, {})


def test_tasks_are_found_whatever_their_column_is_called(tmp_path):
    (tmp_path / "meta").mkdir()
    path = tmp_path / "meta" / "tasks.parquet"
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_tasks(tmp_path)
    for name, kind in (("task", pa.string()), ("__index_level_0__", pa.string()), ("words", pa.large_string())):
        pq.write_table(pa.table({"task_index": [1, 0], name: pa.array(["close", "open"], kind)}), path)
        assert read_tasks(tmp_path) == {0: "open", 1: "close"}
    pq.write_table(pa.table({"task_index": [0]}), path)
    with pytest.raises(ValueError, match="expected task_index and a column of text"):
        read_tasks(tmp_path)


def test_totals_that_the_tables_contradict_are_named():
    info = {"total_episodes": 2, "total_frames": 9, "total_tasks": 1}
    episodes = [{"length": 3}, {"length": 4}]
    assert inconsistencies(info, episodes, {0: "open"}) == ["total_frames is 9, the tables hold 7"]
    assert inconsistencies({}, episodes, {}) == []


def test_cameras_lose_the_prefixes_of_lerobot():
    features = {"observation.images.top": "video", "observation.side": "video", "observation.state": "float32"}
    found = camera_names({name: {"dtype": dtype, "shape": [1]} for name, dtype in features.items()})
    assert found == {"top": "observation.images.top", "side": "observation.side"}


def test_a_state_under_another_name_is_never_taken_for_none(tmp_path):
    features = {
        "observation.qpos": {"dtype": "float32", "shape": [7]},
        "observation.images.top": {"dtype": "video", "shape": [8, 8, 3]},
    }
    assert vector_key(tmp_path, features, "observation.qpos", "observation") == "observation.qpos"
    assert vector_key(tmp_path, features, "action", "action") is None
    with pytest.raises(ValueError, match=r"has no column 'observation\.state': name one of observation\.qpos instead"):
        vector_key(tmp_path, features, "observation.state", "observation")
    with pytest.raises(ValueError, match=r"has no column 'torque'"):
        vector_key(tmp_path, features, "torque", "action")
    with pytest.raises(ValueError, match="to be a vector of numbers"):
        vector_key(tmp_path, features, "observation.images.top", "observation")


def test_a_split_is_recorded_with_the_episode_or_in_ranges():
    ranges = {"splits": {"train": "0:3", "val": "3:5"}}
    assert split_of(ranges, {"episode_index": 2, "split": "test"}) == "test"
    assert [split_of(ranges, {"episode_index": i}) for i in (0, 2, 3, 5)] == ["train", "train", "val", ""]
    assert split_of({"splits": {"train": "0:5"}}, {"episode_index": 2}) == ""  # one that covers everything says nothing
    assert split_of({"splits": {"a": "all", "b": "1:x"}}, {"episode_index": 1}) == ""
    assert split_of({}, {"episode_index": 0, "split": None}) == ""


def test_repeated_pictures_of_a_slow_camera_are_no_frames(tmp_path):
    info = {"video_path": "videos/{video_key}/{chunk_index}-{file_index}.mp4", "fps": 10}
    row = {"episode_index": 4, "videos/k/chunk_index": 1, "videos/k/file_index": 2, "videos/k/from_timestamp": 5.0}
    seconds = np.arange(6) / 10
    every = video_of(tmp_path, info, row, "top", "k", seconds, 0)
    assert every.path == tmp_path / "videos" / "k" / "1-2.mp4" and every.step.tolist() == list(range(6))
    assert every._seconds is not None
    assert every.episode == 4 and np.allclose(every._seconds, 5.0 + seconds)
    slow = row | {"frame_steps/top": [0, 3, 6, 9]}
    assert video_of(tmp_path, info, slow, "top", "k", seconds, 0).step.tolist() == [0, 3]
    # a piece from row 4 on begins with the picture of row 3, which it repeats
    piece = video_of(tmp_path, info, slow, "top", "k", seconds, 4)
    assert piece.step.tolist() == [0, 2, 5]


def test_what_only_guerdon_reads_lies_in_a_file_of_its_own_or_where_it_was_before(tmp_path):
    write_info(tmp_path)
    assert read_own(tmp_path, read_info(tmp_path)) == {}, "somebody else's data set"
    write_info(tmp_path, guerdon={"format": 1, "columns": {}})
    assert read_own(tmp_path, read_info(tmp_path)) == {"format": 1, "columns": {}}
    fields = {"action": Field("float32", (2,), "step"), "track.tip": Field("float64", (2, 3))}
    entries = own_entries(fields, {"next.reward": Field("float32", (), "step")}, finals=4)
    (tmp_path / OWN).write_text(json.dumps(entries))
    found = read_own(tmp_path, read_info(tmp_path))
    assert found["columns"] == {"track.tip": {"per": "observation", "shape": [2, 3]}}
    assert found["unknown"] == {"next.reward": {"per": "step", "shape": [], "dtype": "float32"}}
    assert (found["format"], found["final_observations"]) == (2, 4)
