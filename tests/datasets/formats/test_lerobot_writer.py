"""The writer: what lies on disk, and that nothing half-written does."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Column
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter


def rows_of(folder: Path) -> dict:
    return pq.read_table(folder / "data" / "chunk-000" / "file-000.parquet").to_pydict()


def test_rows_and_meta_by_hand(tmp_path, make_episode):
    folder = tmp_path / "set"
    with LeRobotWriter(folder, fps=10, robot_type="arm") as writer:
        assert writer.add(make_episode(0, steps=2)) == 0
        assert writer.add(make_episode(1, steps=3, last=False)) == 1
    rows = rows_of(folder)
    # 2 steps, then 3 steps whose last observation nobody saw
    assert rows["episode_index"] == [0, 0, 1, 1, 1]
    assert rows["frame_index"] == [0, 1, 0, 1, 2]
    assert rows["index"] == [0, 1, 2, 3, 4]
    assert rows["observation.state"] == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert rows["next.reward"] == [0, 1, 0, 0, 1]
    assert rows["next.done"] == [False, True, False, False, True]
    assert rows["next.success"] == [False, True, False, False, True]
    assert rows["task_index"] == [0, 0, 1, 1, 1]
    np.testing.assert_allclose(rows["action"], [0, 0.01, 1, 1.01, 1.02], rtol=1e-6)
    np.testing.assert_allclose(rows["timestamp"], [0, 0.1, 0, 0.1, 0.2], rtol=1e-6)
    final = pq.read_table(folder / "final" / "rows.parquet").to_pydict()
    assert final["episode_index"] == [0] and final["observation.state"] == [[0, 2]]
    assert final["videos/observation.images.front/timestamp"] == [0]
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "arm")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 5, 2)
    assert set(rows) == {name for name, f in info["features"].items() if f["dtype"] != "video"}
    assert info["features"]["observation.images.front"]["shape"] == [32, 32, 3]
    meta = pq.read_table(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pydict()
    assert meta["length"] == [2, 3] and meta["dataset_from_index"] == [0, 2] and meta["dataset_to_index"] == [2, 5]
    key = "videos/observation.images.front"
    assert meta[f"{key}/from_timestamp"] == [0, 0.2] and meta[f"{key}/to_timestamp"] == [0.2, 0.5]
    assert meta["success"] == [1, 1] and meta["end"] == ["SUCCESS", "SUCCESS"]
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    # steps 0 1 and 0 1 2: mean 4/5, variance 14/25
    assert stats["observation.state"]["mean"][1] == pytest.approx(0.8)
    assert stats["observation.state"]["std"][1] == pytest.approx(0.56**0.5)
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    # red is 40 in two frames of episode 0, 100 in three of episode 1
    assert stats["observation.images.front"]["mean"][0][0][0] == pytest.approx(76 / 255, abs=1e-6)
    assert {p.name for p in tmp_path.iterdir()} == {"set"}, "nothing else remains"
    assert sorted(p.name for p in folder.iterdir()) == ["data", "final", "meta", "videos"]


def test_unknown_success_leaves_no_flag(tmp_path, make_episode):
    with LeRobotWriter(tmp_path / "set", fps=10) as writer:
        writer.add(make_episode(0, success=None, end=End.CUT))
        writer.add(make_episode(1))
    info = json.loads((tmp_path / "set" / "meta" / "info.json").read_text())
    assert "next.success" not in info["features"] and "next.success" not in rows_of(tmp_path / "set")
    assert len(rows_of(tmp_path / "set")["next.done"]) == 10
    columns = pq.read_schema(tmp_path / "set" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").names
    assert "stats/next.done/mean" in columns and "stats/next.success/mean" not in columns


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_leaves_nothing(tmp_path, make_episode, interruption):
    with pytest.raises(interruption), LeRobotWriter(tmp_path / "set", fps=10) as writer:
        writer.add(make_episode(0))
        raise interruption
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_is_there(tmp_path, make_episode):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        LeRobotWriter(tmp_path / "set", fps=10)
    with pytest.raises(ValueError, match="at least one episode"), LeRobotWriter(tmp_path / "other", fps=10):
        pass
    assert not (tmp_path / "other").exists()


def test_a_place_that_cannot_be_written_is_named_as_it_was_given(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"cannot write .*file/set: .*; choose another folder") as caught:
        LeRobotWriter(tmp_path / "file" / "set", fps=10).__enter__()
    assert "partial" not in str(caught.value).split(";")[0]


@pytest.mark.parametrize(
    ("second", "status", "message"),
    [
        (lambda make_episode: make_episode(1, camera=False), "schema", "cameras"),
        (lambda make_episode: make_episode(1, recorded={}), "schema", "next.reward"),
        (lambda make_episode: make_episode(1, state=np.zeros((6, 3), np.float32)), "schema", "observation.state"),
        (lambda make_episode: make_episode(1, labels={"a/b": Column.known(np.zeros(6))}), "schema", "'/'"),
        (
            lambda make_episode: make_episode(1, recorded={"reward": Column.known(np.full(5, np.nan, np.float32))}),
            "not_finite",
            "reward",
        ),
        (
            lambda make_episode: make_episode(
                1, frames={"front": ArrayFrames(values=np.zeros((2, 3, 32, 32), np.uint8), step=np.array([1, 2]))}
            ),
            "video",
            "observation 0",
        ),
        (
            lambda make_episode: make_episode(
                1, frames={"front": ArrayFrames(values=np.zeros((6, 3, 31, 32), np.uint8), step=np.arange(6))}
            ),
            "shape",
            "even",
        ),
    ],
)
def test_a_bad_episode_is_refused_and_the_rest_goes_on(tmp_path, make_episode, second, status, message):
    with LeRobotWriter(tmp_path / "set", fps=10) as writer:
        writer.add(make_episode(0))
        with pytest.raises(BadEpisodeError, match=message) as caught:
            writer.add(second(make_episode))
        assert caught.value.status == status
        writer.add(make_episode(1))
    rows = rows_of(tmp_path / "set")
    assert rows["episode_index"] == [0] * 5 + [1] * 5 and rows["observation.state"][-1] == [1, 4]
    final = pq.read_table(tmp_path / "set" / "final" / "rows.parquet").to_pydict()
    assert final["episode_index"] == [0, 1] and final["observation.state"] == [[0, 5], [1, 5]]
