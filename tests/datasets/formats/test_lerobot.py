"""The reader: what was written comes back, and every way a data set can be broken has one clear error."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Column, EpisodeDataset, readable
from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def write(folder, episodes, **options):
    with LeRobotWriter(folder, fps=10, **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder


def change_table(path, change):
    """Rewrite a parquet file with ``change`` applied to its columns (as Python lists)."""
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path)


def change_info(folder, change):
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def strip_our_columns(folder):
    """Make a data set look as if somebody else had written it."""
    own = ("success", "end", "last_observed", "task", "group", "source", "quality", "context", "split")
    change_table(folder / EPISODES, lambda c: [c.pop(name) for name in own])


def assert_same_column(got, want):
    assert got.values.dtype == want.values.dtype
    np.testing.assert_array_equal(got.valid, want.valid)
    np.testing.assert_array_equal(got.values[got.valid], want.values[want.valid])


def test_everything_comes_back(tmp_path, make_episode):
    rng = np.random.default_rng(0)

    def rich(number, **changes):
        steps = 4 + number
        half = np.arange(steps + 1) % 2 == 0
        return make_episode(
            number,
            steps,
            labels={
                "progress": Column(values=rng.random(steps + 1).astype(np.float32), valid=half),
                "stage": Column(values=rng.integers(0, 9, steps + 1), valid=~half),
            },
            tracks={
                "gripper": Column.known(rng.random((steps + 1, 3)).astype(np.float32)),
                "box": Column.known(rng.random((steps + 1, 2, 2))),
                "flag": Column.known(half),
                "one": Column.known(rng.random((steps + 1, 1))),
            },
            recorded={
                "reward": Column(values=rng.random(steps).astype(np.float32), valid=half[1:]),
                "value": Column.known(rng.random(steps)),
            },
            **changes,
        )

    episodes = [
        rich(0, success=None, end=End.CUT, quality="random", context="seed-7", split="eval", group=3, source=2, task=9),
        rich(1, success=0.25, end=End.TIME_LIMIT),
        rich(2, success=0.0, end=End.FAILURE),
    ]
    dataset = LeRobotDataset(write(tmp_path / "set", episodes))
    assert isinstance(dataset, EpisodeDataset)
    assert (len(dataset), dataset.fps, dataset.state_size, dataset.action_size) == (3, 10.0, 2, 1)
    assert dataset.cameras == ("front",)
    for place, want in enumerate(episodes):
        got = dataset[place]
        np.testing.assert_array_equal(got.state, want.state)
        np.testing.assert_array_equal(got.actions, want.actions)
        for name in ("index", "instruction", "task", "fps", "end", "last_observed", "success", "group", "source"):
            assert getattr(got, name) == getattr(want, name), name
        assert (got.quality, got.context, got.split) == (want.quality, want.context, want.split)
        for kind in ("labels", "tracks", "recorded"):
            assert set(getattr(got, kind)) == set(getattr(want, kind))
            for name, column in getattr(want, kind).items():
                assert_same_column(getattr(got, kind)[name], column)
        summary = dataset.summary(place)
        assert (summary.index, summary.steps, summary.success) == (place, want.steps, want.success)
        assert (summary.instruction, summary.split) == (want.instruction, want.split)


def test_last_observation_not_recorded(tmp_path, make_episode):
    label = Column(values=np.arange(6.0), valid=np.arange(6) < 5)  # nothing can be known of observation 5
    given = make_episode(0, 5, last=False, labels={"progress": label})
    dataset = LeRobotDataset(write(tmp_path / "set", [given, make_episode(1, 5, labels={"progress": label})]))
    first, second = dataset[0], dataset[1]
    assert (first.steps, first.last_observed, len(first.frames["front"].step)) == (5, False, 5)
    assert (second.steps, second.last_observed, len(second.frames["front"].step)) == (5, True, 6)
    np.testing.assert_array_equal(first.state[-1], first.state[-2])
    assert_same_column(first.labels["progress"], label)
    assert dataset.summary(0).steps == dataset.summary(1).steps == 5
    wrong = make_episode(2, 5, last=False, labels={"progress": Column.known(np.arange(6.0))})
    with pytest.raises(BadEpisodeError, match="not observed"):
        write(tmp_path / "other", [wrong])


def test_frames_of_several_episodes_in_one_video(tmp_path, make_episode, make_picture):
    dataset = LeRobotDataset(write(tmp_path / "set", [make_episode(e, 20) for e in range(3)]))
    assert len(list((tmp_path / "set" / "videos").rglob("*.mp4"))) == 1
    for place in (2, 0, 1):
        source = dataset[place].frames["front"]
        frames = source.read(np.arange(21))
        want = np.stack([make_picture(place, t) for t in range(21)])
        assert np.abs(frames.astype(int) - want).max() <= 6, "h264 at crf 23 of flat pictures"
        window = source.read(np.array([3, 3, 17, 20]))
        np.testing.assert_array_equal(window, frames[[3, 3, 17, 20]])
    identities = {dataset[place].frames["front"].identity for place in range(3)}
    assert len(identities) == 3, "the same file, but other frames of it"
    assert dataset[0].frames["front"].identity in identities


def test_a_camera_slower_than_control(tmp_path, make_episode, make_picture):
    """Frames at observations 0, 3 and 6 come back as those three, not as the repeats LeRobot stores."""
    values = np.stack([make_picture(0, t) for t in (0, 3, 6)])
    slow = {"front": ArrayFrames(values=values, step=np.array([0, 3, 6]))}
    dataset = LeRobotDataset(write(tmp_path / "set", [make_episode(0, 8, frames=slow)]))
    source = dataset[0].frames["front"]
    assert source.step.tolist() == [0, 3, 6]
    assert np.abs(source.read(np.arange(3)).astype(int) - values).max() <= 6


def test_states_only_and_pickle(tmp_path, make_episode):
    quiet = make_episode(0, camera=False, state=np.zeros((6, 0), np.float32), actions=np.zeros((5, 0), np.float32))
    dataset = LeRobotDataset(write(tmp_path / "set", [quiet]))
    assert (dataset.state_size, dataset.action_size, dataset.cameras) == (0, 0, ())
    assert dataset[0].state.shape == (6, 0)
    again = pickle.loads(pickle.dumps(dataset))
    assert again[0].recorded["reward"].values.tolist() == [0, 0, 0, 0, 1]


def test_one_row_group_for_all(tmp_path, make_episode):
    """Other writers put all episodes into one row group."""
    folder = write(tmp_path / "set", [make_episode(e) for e in range(3)])
    change_table(folder / DATA, lambda columns: None)
    assert pq.ParquetFile(folder / DATA).num_row_groups == 1
    dataset = LeRobotDataset(folder)
    for place in (1, 2, 0):
        assert dataset[place].state[3].tolist() == [place, 3]


def test_several_tasks_are_split(tmp_path, make_episode):
    folder = write(tmp_path / "set", [make_episode(0, 6), make_episode(1, 3)])
    strip_our_columns(folder)

    def tasks(columns):  # rows of episode 0: task 0 0 0 1 1 1, and its final observation
        columns["task_index"][:6] = [0, 0, 0, 1, 1, 1]

    change_table(folder / DATA, tasks)
    change_table(folder / EPISODES, lambda c: c.update(tasks=[["task 0", "task 1"], ["task 1"]]))
    dataset = LeRobotDataset(folder)
    assert len(dataset) == 3
    first, second, third = (dataset[i] for i in range(3))
    assert [e.index for e in (first, second, third)] == [0, 1, 2], "numbers stay unique"
    assert [e.instruction for e in (first, second, third)] == ["task 0", "task 1", "task 1"]
    assert [dataset.summary(i).instruction for i in range(3)] == ["task 0", "task 1", "task 1"]
    assert first.state[:, 1].tolist() == [0, 1, 2, 3] and second.state[:, 1].tolist() == [3, 4, 5, 6]
    assert (first.steps, second.steps, first.last_observed, second.last_observed) == (3, 3, True, True)
    assert [dataset.summary(i).steps for i in range(3)] == [3, 3, 3]
    assert (first.end, first.success) == (End.CUT, None) and (second.end, second.success) == (End.SUCCESS, 1.0)
    assert first.recorded["reward"].values.tolist() == [0, 0, 0] and second.recorded["reward"].values.tolist() == [
        0,
        0,
        1,
    ]
    green = second.frames["front"].read(np.array([0, 3]))[:, 1, 9, 9].astype(int)
    assert np.abs(green - [10 + 8 * 3, 10 + 8 * 6]).max() < 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "success", "end"),
    [
        ({"next.success": [False, True, False, False]}, 1.0, End.SUCCESS),
        ({"next.success": [False] * 4}, 0.0, End.CUT),
        ({"next.success": [False] * 4, "next.done": [False, False, False, True]}, 0.0, End.TIME_LIMIT),
        ({"next.reward": [0.0, 0.0, 0.0, 1.0]}, 1.0, End.SUCCESS),
        ({"next.reward": [0.0] * 4}, None, End.CUT),
        ({"next.reward": [0.0, 0.5, 0.0, 1.0]}, None, End.CUT),
        ({}, None, End.CUT),
    ],
)
def test_outcome_by_lerobot_conventions(tmp_path, make_episode, columns, success, end):
    folder = write(tmp_path / "set", [make_episode(0, 4, last=False)])
    strip_our_columns(folder)
    signals = ("next.success", "next.done", "next.reward")
    change_info(folder, lambda info: [info["features"].pop(n) for n in signals if n not in columns])

    def replace(table):
        for name in signals:
            table.pop(name)
        table.update(columns)

    change_table(folder / DATA, replace)
    episode = LeRobotDataset(folder)[0]
    assert (episode.success, episode.end) == (success, end)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (lambda c: c.pop("action"), "column", "lacks action"),
        (lambda c: c.update({"observation.state": [[0.0]] * 10}), "shape", "expected 2 numbers per row"),
        (lambda c: c["observation.state"].__setitem__(7, [0.0]), "shape", "at row 2 it is 1 wide"),
        (lambda c: c["observation.state"].__setitem__(7, [np.nan, 0.0]), "not_finite", r"state\[0\] at step 2"),
        (lambda c: c["observation.state"].__setitem__(7, None), "not_finite", "1 empty row"),
        (lambda c: c.update(action=["left"] * 10), "dtype", "expected numbers, got string"),
        (lambda c: c["task_index"].__setitem__(5, 7), "task", "task_index 7"),
        (lambda c: [v.pop() for v in c.values()], "shape", "5 consecutive rows"),
    ],
)
def test_a_bad_episode_is_named_and_the_others_go_on(tmp_path, make_episode, change, status, message):
    folder = write(tmp_path / "set", [make_episode(e) for e in range(2)])
    change_table(folder / DATA, change)
    dataset = LeRobotDataset(folder)
    with pytest.raises(BadEpisodeError, match=message) as caught:
        dataset[1]
    assert (caught.value.index, caught.value.status) == (1, status)
    if status not in ("column", "dtype") and "expected 2" not in message:
        first, second = readable(dataset)
        assert not isinstance(first, BadEpisodeError) and isinstance(second, BadEpisodeError)


def test_damaged_files(tmp_path, make_episode):
    folder = write(tmp_path / "set", [make_episode(e, 30) for e in range(2)])
    dataset = LeRobotDataset(folder)
    video = next((folder / "videos").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    episode = dataset[1]
    with pytest.raises(BadEpisodeError, match=r"file-000\.mp4") as caught:
        episode.frames["front"].read(np.arange(31))
    assert (caught.value.index, caught.value.status) == (1, "video")
    video.unlink()
    with pytest.raises(BadEpisodeError, match="there is no such file"):
        episode.frames["front"].read(np.arange(31))
    data = folder / DATA
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(BadEpisodeError, match="cannot be read as parquet") as caught:
        LeRobotDataset(folder)[0]
    assert caught.value.status == "data"
    data.unlink()
    with pytest.raises(BadEpisodeError, match="there is no file"):
        LeRobotDataset(folder)[0]


def test_refused_at_the_door(tmp_path, make_episode):
    with pytest.raises(FileNotFoundError, match=r"no meta/info.json"):
        LeRobotDataset(tmp_path)
    folder = write(tmp_path / "set", [make_episode(0)])
    with pytest.raises(ValueError, match=r"no column .observation\.joints.: name one of observation\.state"):
        LeRobotDataset(folder, state_key="observation.joints")
    with pytest.raises(ValueError, match="to be a vector of numbers"):
        LeRobotDataset(folder, state_key="observation.images.front")
    change_info(folder, lambda info: info.update(codebase_version="v2.1"))
    with pytest.raises(ValueError, match=r"version v2\.1; version v3\.0 is read"):
        LeRobotDataset(folder)
    change_info(folder, lambda info: info.update(codebase_version="v3.0", fps=0))
    with pytest.raises(ValueError, match="fps > 0"):
        LeRobotDataset(folder)
    change_info(folder, lambda info: info.update(fps=10))
    change_table(folder / EPISODES, lambda c: c.pop("length"))
    with pytest.raises(ValueError, match="lacks the columns length"):
        LeRobotDataset(folder)
    (folder / "meta" / "info.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        LeRobotDataset(folder)


def test_other_columns_need_a_name(tmp_path, make_episode):
    """A state under another name is never taken for no state at all."""
    folder = write(tmp_path / "set", [make_episode(0, last=False)])
    change_info(folder, lambda i: i["features"].update({"observation.qpos": i["features"].pop("observation.state")}))
    change_table(folder / DATA, lambda c: c.update({"observation.qpos": c.pop("observation.state")}))
    with pytest.raises(ValueError, match=r"name one of observation\.qpos"):
        LeRobotDataset(folder)
    assert LeRobotDataset(folder, state_key="observation.qpos")[0].state[2].tolist() == [0, 2]


def test_real_reachy_without_its_video(real_data):
    folder = real_data / "reachy2_lerobot_v30_meta"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    with pytest.warns(UserWarning, match="total_frames is 14983, the tables hold 899"):
        dataset = LeRobotDataset(folder)
    assert (len(dataset), dataset.state_size, dataset.action_size, dataset.fps) == (3, 19, 19, 30.0)
    episodes = [dataset[i] for i in range(3)]
    assert [e.steps for e in episodes] == [299, 300, 300]
    assert {e.instruction for e in episodes} == {"place the apple in the plate"}
    assert all(e.success is None and e.end == End.CUT and not e.last_observed for e in episodes)
    with pytest.raises(BadEpisodeError, match="there is no such file") as caught:
        episodes[2].frames["image"].read(np.array([0]))
    assert (caught.value.index, caught.value.status) == (2, "video")


@pytest.mark.parametrize(
    ("name", "version"), [("g1_real_lerobot_v21", "v2.1"), ("gr00t_picknplace_lerobot_v20", "v2.0")]
)
def test_real_older_versions_are_named(real_data, name, version):
    if not (real_data / name).is_dir():
        pytest.skip(f"{real_data / name} is not here")
    with pytest.raises(ValueError, match=f"version {version}; version v3.0 is read"):
        LeRobotDataset(real_data / name)
