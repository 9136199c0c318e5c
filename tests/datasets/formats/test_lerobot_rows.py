"""Rows of single episodes: only the row groups that hold them are read, and every kind of damage has its status."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.datasets.episodes import BadEpisodeError
from guerdon.datasets.formats.lerobot_rows import EpisodeRows, numbers


def table(lengths, first=0):
    """Episodes of some lengths; x counts through all rows."""
    owner = np.repeat(np.arange(first, first + len(lengths)), lengths)
    return pa.table({"episode_index": owner, "x": np.arange(len(owner)) + 100 * first, "unused": owner})


@pytest.fixture
def file(tmp_path):
    """Episodes 0, 1, 2 of 3, 2, 4 rows, a row group each."""
    path = tmp_path / "rows.parquet"
    whole = table([3, 2, 4])
    with pq.ParquetWriter(path, whole.schema) as writer:
        for start, length in ((0, 3), (3, 2), (5, 4)):
            writer.write_table(whole.slice(start, length))
    return path


def x(rows, path, episode, length):
    return rows.read(path, episode, length)["x"].to_pylist()


def test_an_episode_is_read_from_its_row_group_alone(file):
    rows = EpisodeRows(["x", "episode_index"])
    assert x(rows, file, 1, 2) == [3, 4] and len(rows._held[1]) == 2
    assert x(rows, file, 2, 4) == [5, 6, 7, 8] and x(rows, file, 0, 3) == [0, 1, 2]
    assert rows.read(file, 0, 3).column_names == ["x", "episode_index"]


def test_a_row_group_with_several_episodes_is_cut(tmp_path):
    pq.write_table(table([3, 2, 4]), tmp_path / "one.parquet")
    pq.write_table(table([2], first=3), tmp_path / "two.parquet")
    rows = EpisodeRows(["x", "episode_index"])
    assert x(rows, tmp_path / "one.parquet", 1, 2) == [3, 4]
    assert x(rows, tmp_path / "two.parquet", 3, 2) == [300, 301]  # another file
    assert x(rows, tmp_path / "one.parquet", 2, 4) == [5, 6, 7, 8]


def test_open_files_stay_behind_on_the_way_to_a_worker(file):
    rows = EpisodeRows(["x", "episode_index"])
    rows.read(file, 0, 3)
    again = pickle.loads(pickle.dumps(rows))
    assert again.columns == ["x", "episode_index"] and x(again, file, 1, 2) == [3, 4]


def test_what_the_tables_promise_must_be_there(file, tmp_path):
    rows = EpisodeRows(["x", "episode_index"])
    with pytest.raises(BadEpisodeError, match=r"promises 3 consecutive rows in .*, got 2") as caught:
        rows.read(file, 1, 3)
    assert (caught.value.index, caught.value.status) == (1, "shape")
    with pytest.raises(BadEpisodeError, match="there is no file") as caught:
        rows.read(tmp_path / "none.parquet", 1, 2)
    assert caught.value.status == "data"
    with pytest.raises(BadEpisodeError, match=r"lacks y, which info\.json promises; it has episode_index, x, unused"):
        EpisodeRows(["y", "episode_index"]).read(file, 1, 2)
    scattered = pa.table({"episode_index": [0, 1, 0], "x": [0, 1, 2]})
    pq.write_table(scattered, tmp_path / "scattered.parquet")
    with pytest.raises(BadEpisodeError, match="promises 2 consecutive rows"):
        rows.read(tmp_path / "scattered.parquet", 0, 2)
    (tmp_path / "cut.parquet").write_bytes(file.read_bytes()[:50])
    with pytest.raises(BadEpisodeError, match="cannot be read as parquet") as caught:
        rows.read(tmp_path / "cut.parquet", 0, 3)
    assert caught.value.status == "data"
    assert x(rows, file, 0, 3) == [0, 1, 2]  # the damage of one file is not that of the next


def column(values, kind=None):
    return pa.table({"c": pa.array(values, kind)})


def test_columns_are_numbers_or_vectors_of_numbers():
    assert numbers(column([1, 2]), "c", 0).tolist() == [1, 2]
    assert numbers(column([True, False]), "c", 0).dtype == bool
    fixed = pa.list_(pa.float32(), 2)
    for kind in (fixed, pa.list_(pa.float32()), pa.large_list(pa.float32())):
        assert numbers(column([[1, 2], [3, 4]], kind), "c", 0).tolist() == [[1, 2], [3, 4]]
    empty = pa.table({"c": pa.chunked_array([], pa.int64())})
    assert numbers(empty, "c", 0).shape == (0,)


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (column(["a"]), "dtype", "column 'c': expected numbers, got string"),
        (column([1, None]), "not_finite", "column 'c' has 1 empty rows"),
        (column([[1, None], [2, 3]]), "not_finite", "column 'c' has 1 empty entries"),
        (column([[1], [2], [3, 4]]), "shape", "column 'c' is 1 wide, at row 2 it is 2 wide"),
    ],
)
def test_a_column_of_anything_else_is_refused(given, status, message):
    with pytest.raises(BadEpisodeError, match=message) as caught:
        numbers(given, "c", 5)
    assert (caught.value.index, caught.value.status) == (5, status)
