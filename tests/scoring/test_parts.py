"""Parts of a score file: which episodes they hold, and what is known once they are joined."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.datasets.episodes import BadEpisodeError
from guerdon.scoring.parts import join_parts, plan_parts, write_part
from guerdon.scoring.scores import COUNTERS, OK, SCHEMA, bad_rows, read_scores


def good(index, rows, known):
    """Rows of a scored episode, the first of them with an estimate."""
    arrays = {f.name: pa.nulls(rows, f.type) for f in SCHEMA}
    arrays |= {
        "episode_index": pa.array([index] * rows),
        "frame_index": pa.array(range(rows)),
        "timestamp": pa.array([float(i) for i in range(rows)]),
        "valid": pa.array([i < known for i in range(rows)]),
        "status": pa.array([OK] * rows),
    }
    return pa.table(arrays, schema=SCHEMA)


@pytest.mark.parametrize("episodes", [0, 1, 4, 5])
def test_every_episode_is_in_one_part(episodes):
    parts = plan_parts(Path("out"), episodes, 2)
    assert [place for part in parts for place in part.places] == list(range(episodes))
    assert [part.number for part in parts] == list(range(-(-episodes // 2)))
    assert [part.file for part in parts] == [Path(f"out/parts/part-0000{i}.parquet") for i in range(len(parts))]


def test_joined_parts_keep_order_errors_and_counters(tmp_path):
    tables = [
        pa.concat_tables([good(0, 3, 2), bad_rows(BadEpisodeError(1, "video", "gone"), 4)]),
        good(2, 2, 0),
    ]
    for number, (table, counted) in enumerate(zip(tables, ({"A.failures": {"x": 1}}, {}), strict=True)):
        write_part(table.replace_schema_metadata({COUNTERS: json.dumps(counted)}), tmp_path / f"{number}.parquet")
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    joined = join_parts(files, tmp_path / "scores.parquet", {"data": "d"})
    assert [(e.index, e.status, e.reason) for e in joined.bad] == [(1, "video", "gone")]
    assert (joined.estimated, joined.observations, joined.counters) == (2, 5, {"A.failures": {"x": 1}})
    scores = read_scores(tmp_path)
    assert [e.index for e in scores.episodes] == [0, 1, 2] and scores.metadata["data"] == "d"
    assert (scores.metadata["observations"], scores.metadata["estimated"]) == ("5", "2")
    assert scores.counters == joined.counters and scores.estimated == (2, 5)


def test_a_part_that_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    def cut(table, path):
        Path(path).write_bytes(b"PAR1")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", cut)
    with pytest.raises(OSError, match="no space left"):
        write_part(good(0, 1, 1), tmp_path / "part.parquet")
    assert list(tmp_path.iterdir()) == []
