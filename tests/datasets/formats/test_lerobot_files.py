"""Files under construction: they roll over, join without encoding again, and lose a column when they must."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_files import DataFiles, VideoFiles, drop_columns, episode_table, task_table
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.formats.video import VideoFrames, write_video


def rows(value, count=3):
    return pa.table({"x": np.full(count, value), "y": np.arange(count)})


def test_rows_are_a_row_group_each_and_roll_over(tmp_path):
    files = DataFiles(tmp_path, limit_mb=1e-6)
    assert [files.write(rows(i)) for i in range(3)] == [(0, 0), (0, 1), (0, 2)]
    files.close()
    files.close()  # nothing is open: nothing to do
    found = sorted((tmp_path / "data" / "chunk-000").iterdir())
    assert [f.name for f in found] == ["file-000.parquet", "file-001.parquet", "file-002.parquet"]
    assert pq.read_table(found[1])["x"].to_pylist() == [1, 1, 1]
    large = DataFiles(tmp_path / "large", limit_mb=100)
    assert [large.write(rows(i)) for i in range(3)] == [(0, 0)] * 3
    large.close()
    file = pq.ParquetFile(tmp_path / "large" / "data" / "chunk-000" / "file-000.parquet")
    assert file.num_row_groups == 3 and file.metadata.num_rows == 9


def test_a_chunk_holds_a_thousand_files(tmp_path):
    files = DataFiles(tmp_path, limit_mb=1e-6)
    files.number = 998
    assert [files.write(rows(i)) for i in range(2)] == [(0, 999), (1, 0)]
    files.close()
    assert (tmp_path / "data" / "chunk-001" / "file-000.parquet").is_file()


def test_videos_are_joined_frame_by_frame_and_roll_over(tmp_path, make_picture):
    clips = []
    for number in range(3):
        clips.append(tmp_path / f"{number}.mp4")
        write_video(clips[-1], [make_picture(number, t) for t in range(4)], 10)
    files = VideoFiles(tmp_path, "observation.images.front", limit_mb=100)
    assert [files.join(clip, 10) for clip in clips] == [(0, 0, 0), (0, 0, 4), (0, 0, 8)]
    files.close()
    path = tmp_path / "videos" / "observation.images.front" / "chunk-000" / "file-000.mp4"
    joined = VideoFrames(path, np.arange(12), fps=10).read(np.arange(12))
    want = np.stack([make_picture(number, t) for number in range(3) for t in range(4)])
    assert np.abs(joined.astype(int) - want).max() < 8
    files = VideoFiles(tmp_path / "small", "k", limit_mb=1e-6)
    assert [files.join(clip, 10) for clip in clips] == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
    files.close()


def test_a_data_set_of_many_files_is_read_in_any_order(tmp_path, make_episode):
    episodes = [make_episode(e, 6) for e in range(4)]
    with LeRobotWriter(tmp_path / "set", fps=10, data_file_mb=1e-6, video_file_mb=1e-6) as writer:
        for episode in episodes:
            writer.add(episode)
    assert len(list((tmp_path / "set" / "data").rglob("*.parquet"))) == 4
    assert len(list((tmp_path / "set" / "videos").rglob("*.mp4"))) == 4
    dataset = LeRobotDataset(tmp_path / "set")
    for place in (3, 0):
        np.testing.assert_array_equal(dataset[place].state, episodes[place].state)
        assert abs(int(dataset[place].frames["front"].read(np.array([6]))[0, 0, 5, 5]) - (40 + 60 * place)) < 7


def test_a_column_is_dropped_and_row_groups_stay(tmp_path):
    path = tmp_path / "rows.parquet"
    with pq.ParquetWriter(path, rows(0).schema) as writer:
        for number in range(2):
            writer.write_table(rows(number))
    drop_columns(path, {"y"})
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == ["x"] and file.num_row_groups == 2
    assert file.read()["x"].to_pylist() == [0, 0, 0, 1, 1, 1] and list(tmp_path.iterdir()) == [path]


def test_the_table_of_episodes_names_types_where_every_value_may_be_missing():
    found = episode_table(
        [
            {"episode_index": 0, "success": None, "group": None, "frame_steps/front": None},
            {"episode_index": 1, "success": None, "group": None, "frame_steps/front": None, "late": "x"},
        ]
    )
    types = {name: str(found.schema.field(name).type) for name in found.schema.names}
    assert types["success"] == "double" and types["group"] == "int64"
    assert types["frame_steps/front"].startswith("list<") and "int64" in types["frame_steps/front"]
    assert found["late"].to_pylist() == [None, "x"]
    assert found["meta/episodes/chunk_index"].to_pylist() == [0, 0] == found["meta/episodes/file_index"].to_pylist()


def test_the_table_of_tasks_is_a_pandas_frame_with_the_instruction_as_index(tmp_path):
    pandas = pytest.importorskip("pandas")
    pq.write_table(task_table({"open": 0, "close": 1}), tmp_path / "tasks.parquet")
    frame = pandas.read_parquet(tmp_path / "tasks.parquet")
    assert frame.index.tolist() == ["open", "close"] and frame["task_index"].tolist() == [0, 1]
    assert json.loads(pq.read_schema(tmp_path / "tasks.parquet").metadata[b"pandas"])["index_columns"]
