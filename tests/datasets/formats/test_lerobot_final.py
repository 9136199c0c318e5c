"""Final observations: no row of the data, the same episode as before, and never those of other rows."""

import json
import pickle
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Column, Episode
from guerdon.datasets.formats.lerobot import LeRobotDataset, LeRobotFormat
from guerdon.datasets.formats.lerobot_files import task_table
from guerdon.datasets.formats.lerobot_final import ChainedFrames, checksum
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.formats.video import VideoFrames, write_video
from guerdon.testing.strategies import trajectory_batches

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
KEY = "observation.images.front"


def write(folder, episodes, **options):
    with LeRobotWriter(folder, fps=10, **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder


def change_table(path, change):
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path)


def assert_same_episode(got, want):
    """Everything but the pixels, which H.264 changes: NaN stands for unknown numbers, as it always did."""
    for field in fields(Episode):
        a, b = getattr(got, field.name), getattr(want, field.name)
        if field.name in ("labels", "tracks", "recorded"):
            assert set(a) == set(b)
            for name, column in b.items():
                assert a[name].values.dtype == column.values.dtype and a[name].values.shape == column.values.shape
                np.testing.assert_array_equal(a[name].valid, column.valid)
                np.testing.assert_array_equal(a[name].values[a[name].valid], column.values[column.valid])
                if column.values.dtype.kind == "f":
                    assert np.isnan(a[name].values[~a[name].valid]).all()
        elif field.name == "frames":
            assert list(a) == list(b)
            for camera, source in b.items():
                np.testing.assert_array_equal(a[camera].step, source.step)
                places = np.arange(len(source.step))
                assert np.abs(a[camera].read(places).astype(int) - source.read(places)).max(initial=0) <= 8
        elif isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


def old_form(folder, frame_steps=None):
    """One episode of 3 steps with a final observation, by hand in the form that was written before."""
    success = [0.0, 0.0, 0.0, 1.0]
    rows = {
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 2),
        "action": pa.array(np.array([0.1, 0.2, 0.3, 0.3], np.float32)),
        "label.success": pa.array(np.array([np.nan, *success[1:]], np.float32)),
        "label.success.valid": pa.array([False, True, True, True]),
        "label.stage": pa.array(np.array([0, 0, 1, 2])),
        "label.stage.valid": pa.array([True] * 4),
        "track.tip": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(16.0)), 4),
        "track.tip.valid": pa.array([True] * 4),
        "recorded.value": pa.array(np.array([5, 6, 7, np.nan])),
        "recorded.value.valid": pa.array([True, True, True, False]),
        "next.reward": pa.array(np.array([0, 0, 1, 0], np.float32)),
        "recorded.reward.valid": pa.array([True, True, True, False]),
        "next.done": pa.array([False, False, True, True]),
        "next.success": pa.array([False, False, True, True]),
        "final": pa.array([False, False, False, True]),
        "timestamp": pa.array(np.arange(4, dtype=np.float32) / 10),
        **{n: pa.array(np.arange(4)) for n in ("frame_index", "index")},
        **{n: pa.array(np.zeros(4, np.int64)) for n in ("episode_index", "task_index")},
    }
    shapes = {"observation.state": [2], "track.tip": [4]}
    features = {n: {"dtype": str(v.type), "shape": shapes.get(n, [1]), "names": None} for n, v in rows.items()}
    features[KEY] = {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}
    steps, views = {"per": "step", "shape": []}, {"per": "observation", "shape": []}
    own = {"label.success": views, "label.stage": views, "track.tip": views | {"shape": [2, 2]}}
    own |= {"recorded.value": steps, "recorded.reward.valid": steps}
    info = {"codebase_version": "v3.0", "fps": 10, "features": features, "guerdon": {"format": 1, "columns": own}}
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    row = {"episode_index": 0, "length": 4, "tasks": ["stack"], "data/chunk_index": 0, "data/file_index": 0}
    row |= {f"videos/{KEY}/chunk_index": 0, f"videos/{KEY}/file_index": 0, f"videos/{KEY}/from_timestamp": 0.0}
    row |= {"success": 1.0, "end": "SUCCESS", "last_observed": True, "task": 4, "group": 2, "source": 1}
    row |= {"quality": "expert", "context": "seed-1", "split": "train", "frame_steps/front": frame_steps}
    for part in ("data/chunk-000", "meta/episodes/chunk-000", f"videos/{KEY}/chunk-000"):
        (folder / part).mkdir(parents=True)
    pq.write_table(pa.table(rows), folder / DATA)
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), folder / EPISODES)
    pq.write_table(task_table({"stack": 0}), folder / "meta" / "tasks.parquet")
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    held = [max(s for s in frame_steps or range(4) if s <= t) for t in range(4)]
    write_video(folder / f"videos/{KEY}/chunk-000/file-000.mp4", [picture(t) for t in held], 10)
    return folder


def picture(step, size=32):
    return np.full((3, size, size), 20 + 30 * step, np.uint8)


def same_episode(frame_steps=(0, 1, 2, 3)):
    """The episode that `old_form` holds."""
    step = np.array(frame_steps)
    return Episode(
        index=0,
        state=np.arange(8, dtype=np.float32).reshape(4, 2),
        actions=np.array([[0.1], [0.2], [0.3]], np.float32),
        instruction="stack",
        task=4,
        end=End.SUCCESS,
        success=1.0,
        frames={"front": ArrayFrames(values=np.stack([picture(t) for t in step]), step=step)},
        labels={
            "success": Column(values=np.array([0, 0, 0, 1], np.float32), valid=np.arange(4) > 0),
            "stage": Column.known(np.array([0, 0, 1, 2])),
        },
        tracks={"tip": Column.known(np.arange(16.0).reshape(4, 2, 2))},
        recorded={
            "value": Column.known(np.array([5.0, 6, 7])),
            "reward": Column.known(np.array([0, 0, 1], np.float32)),
        },
        group=2,
        source=1,
        quality="expert",
        context="seed-1",
        split="train",
    )


@pytest.mark.parametrize("frame_steps", [(0, 1, 2, 3), (0, 2), (0, 3)])
def test_both_forms_give_the_same_episode(tmp_path, frame_steps):
    stored = list(frame_steps) if len(frame_steps) < 4 else None
    old = LeRobotDataset(old_form(tmp_path / "old", stored))
    new = LeRobotDataset(write(tmp_path / "new", [same_episode(frame_steps)]))
    assert "final" in old.info["features"] and "final" not in new.info["features"]
    for dataset in (old, new):
        assert_same_episode(dataset[0], same_episode(frame_steps))
        assert dataset.summary(0) == old.summary(0) and dataset.summary(0).steps == 3
        assert dataset[0].last_observed
    assert sum(int(row["length"]) for row in new._episodes) == 3, "three steps are three rows"


def test_cached_features_of_the_old_form_stay_valid(tmp_path):
    folder = old_form(tmp_path / "old")
    path = folder / f"videos/{KEY}/chunk-000/file-000.mp4"
    before = VideoFrames(path, np.arange(4), seconds=np.arange(4) / 10, fps=10)
    assert LeRobotDataset(folder)[0].frames["front"].identity == before.identity


def test_a_row_of_the_old_form_that_is_flagged_too_early_is_refused(tmp_path):
    folder = old_form(tmp_path / "old")
    change_table(folder / DATA, lambda c: c["final"].__setitem__(1, True))
    with pytest.raises(BadEpisodeError, match="row 1 of 4 is flagged final"):
        LeRobotDataset(folder)[0]


def test_nothing_written_is_nan_and_what_says_nothing_is_left_out(tmp_path, make_episode):
    some = np.array([True, False, True, False])

    def episode(number, known):
        nothing = np.zeros(4, bool)
        return make_episode(
            number,
            3,
            success=None,
            labels={
                "progress": Column(values=np.full(4, np.nan), valid=nothing) if not known else
                Column(values=np.array([0.25, np.nan, 0.75, np.nan]), valid=some),
                "never": Column(values=np.full((4, 2, 2), np.nan, np.float32), valid=nothing),
                "at the end": Column(values=np.arange(4), valid=np.arange(4) == 3),
                "till the end": Column(values=np.arange(4.0), valid=np.arange(4) < 3),
            },
            recorded={"reward": Column(values=np.full(3, np.nan, np.float32), valid=np.zeros(3, bool))},
        )  # fmt: skip

    episodes = [episode(0, True), episode(1, False), make_episode(2, 3, **vars_of(episode(2, True)), last=False)]
    folder = write(tmp_path / "set", episodes)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        for name in table.schema.names:
            if name in ("success", "group") or name.startswith(("frame_steps/", "videos/")):
                continue  # null where it is unknown, in columns that only guerdon reads
            assert "nan" not in str(table[name].to_pylist()) and "None" not in str(table[name].to_pylist()), name
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    assert stats["label.progress"]["mean"] == [0.5] and stats["label.progress"]["count"] == [4], "known values only"
    meta = pq.read_table(folder / EPISODES).to_pydict()
    assert meta["stats/label.progress/mean"] == [[0.5]] * 3 and meta["stats/label.progress/count"] == [[2], [1], [2]]
    names = set(pq.read_schema(folder / DATA).names)
    assert names & {"label.progress", "label.progress.valid"} == {"label.progress", "label.progress.valid"}
    assert "label.till the end" in names and "label.till the end.valid" not in names
    for left_out in ("label.never", "label.at the end", "next.reward", "next.success"):
        assert left_out not in names and left_out not in stats and f"{left_out}.valid" not in names
    dataset = LeRobotDataset(folder)
    for place, want in enumerate(episodes):
        assert_same_episode(dataset[place], want)


def vars_of(episode):
    """Columns of an episode without what is known of the last observation."""
    labels = {n: Column(values=c.values, valid=c.valid & (np.arange(4) < 3)) for n, c in episode.labels.items()}
    return {"labels": labels, "recorded": episode.recorded, "success": None}


@st.composite
def recordings(draw):
    """Episodes of one schema from the batches of `guerdon.testing`, with flat pictures that tell their step."""
    shape = {"state_size": draw(st.integers(0, 3)), "action_size": draw(st.integers(0, 3)), "tracks": True}
    batch = draw(trajectory_batches(cameras=("front", "side"), min_length=1, stored_labels=True, **shape))
    episodes = []
    for row, steps in enumerate(batch.mask.sum(1).tolist()):
        last = bool(batch.last_observed[row])

        def column(values, valid, per, steps=steps, last=last):
            values, valid = values[: steps + per].numpy(), valid[: steps + per].numpy().copy()
            valid[steps:] &= last
            return Column(values=values, valid=valid & np.isfinite(values.reshape(len(values), -1)).all(1))

        def columns(held, row=row, column=column):
            return {
                n: column(c.values[row], c.valid[row], c.values.shape[1] - batch.mask.shape[1]) for n, c in held.items()
            }

        frames = {}
        for camera, sampled in batch.frames.items():
            step = sampled.step[row].numpy()
            step = step[(step >= 0) & (step < steps + last)]
            values = np.stack([picture(t, 16) for t in step])
            frames[camera] = ArrayFrames(values=values, step=step.astype(np.int64))
        state = batch.state[row, : steps + 1].numpy().copy()
        state[steps:] = state[steps:] if last else state[steps - 1 : steps]
        end = End(int(batch.end[row]))
        episodes.append(
            Episode(
                index=row,
                state=state,
                actions=batch.actions[row, :steps].numpy(),
                instruction=batch.instructions[row],
                task=int(batch.task[row]),
                end=end,
                success=draw(st.sampled_from([None, 0.0, 0.5, 1.0])),
                last_observed=last,
                frames=frames,
                labels=columns(batch.labels),
                tracks=columns(batch.tracks),
                recorded=columns(batch.recorded),
            )
        )
    return episodes


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(recordings(), st.sampled_from([1e-6, 100]))
def test_what_is_written_is_read(episodes, file_mb):
    with tempfile.TemporaryDirectory() as home:
        sizes = {"data_file_mb": file_mb, "video_file_mb": file_mb}
        dataset = LeRobotDataset(write(Path(home) / "set", episodes, **sizes))
        assert len(dataset) == len(episodes)
        for place in reversed(range(len(episodes))):
            assert_same_episode(dataset[place], episodes[place])
            assert dataset.summary(place).steps == episodes[place].steps


def test_frames_at_the_end_are_read_with_the_others(tmp_path, make_episode, make_picture):
    folder = write(tmp_path / "set", [make_episode(e, 4) for e in range(3)], video_file_mb=1e-6)
    assert len(list((folder / "final" / "videos").rglob("*.mp4"))) == 3
    dataset = pickle.loads(pickle.dumps(LeRobotDataset(folder)))
    for place in (2, 0, 1):
        source = dataset[place].frames["front"]
        assert isinstance(source, ChainedFrames) and source.step.tolist() == [0, 1, 2, 3, 4]
        for wanted in ([4], [0, 3, 4, 4], [1, 2], []):
            want = np.stack([make_picture(place, t) for t in wanted]) if wanted else np.zeros((0, 3, 32, 32))
            got = source.read(np.array(wanted, np.int64))
            assert got.shape == want.shape and np.abs(got.astype(int) - want).max(initial=0) <= 6
        assert source.read(np.array([3, 4]), size=16).shape == (2, 3, 16, 16)
        with pytest.raises(ValueError, match="ascending"):
            source.read(np.array([4, 3]))
        with pytest.raises(IndexError):
            source.read(np.array([5]))
    assert len({dataset[place].frames["front"].identity for place in range(3)}) == 3
    next((folder / "final" / "videos").rglob("*.mp4")).write_bytes(b"")
    broken = [place for place in range(3) if fails(lambda p=place: dataset[p].frames["front"].read(np.array([4])))]
    assert len(broken) == 1, "the rows of the episode and the others can be read"
    assert dataset[broken[0]].frames["front"].read(np.array([3])).shape == (1, 3, 32, 32)


def fails(call):
    try:
        call()
    except BadEpisodeError as error:
        return error.status == "video"
    return False


def test_the_recording_includes_its_final_observations(tmp_path, make_episode):
    folder = write(tmp_path / "set", [make_episode(0)])
    listed = {str(p.relative_to(folder)) for p in LeRobotFormat().files(folder) if p.is_file()}
    assert {"final/rows.parquet", f"final/videos/{KEY}/chunk-000/file-000.mp4", "meta/guerdon.json"} <= listed
    dataset = LeRobotDataset(folder)
    before = dataset[0].frames["front"].identity
    shutil.copytree(folder, tmp_path / "copy")
    assert LeRobotDataset(tmp_path / "copy")[0].frames["front"].identity == before
    video = next((folder / "final").rglob("*.mp4"))
    write_video(video, [np.zeros((3, 32, 32), np.uint8)], 10)
    assert LeRobotDataset(folder)[0].frames["front"].identity != before, "another final frame is another recording"


def test_an_episode_that_another_program_changed_loses_its_final_observation(tmp_path, make_episode):
    folder = write(tmp_path / "set", [make_episode(e, 4, labels={"x": Column.known(np.arange(5.0))}) for e in range(2)])
    change_table(folder / DATA, lambda c: c["action"].__setitem__(5, 0.5))
    dataset = LeRobotDataset(folder)
    assert dataset[0].last_observed and dataset[0].labels["x"].values[-1] == 4
    with pytest.warns(UserWarning, match=r"final observation of episode 1 was written with other rows"):
        changed = dataset[1]
    assert (changed.steps, changed.last_observed) == (4, False)
    assert changed.state[-1].tolist() == changed.state[-2].tolist() == [1, 3]
    assert changed.labels["x"].valid.tolist() == [True] * 4 + [False] and np.isnan(changed.labels["x"].values[-1])
    assert changed.frames["front"].step.tolist() == [0, 1, 2, 3]


def test_a_column_that_another_program_added_is_unknown_at_the_final_observation(tmp_path, make_episode):
    folder = write(tmp_path / "set", [make_episode(0, 3)])
    change_table(folder / DATA, lambda c: c.update({"label.new": [1, 2, 3]}))
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["label.new"] = {"dtype": "int64", "shape": [1], "names": None}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    found = LeRobotDataset(folder)[0]
    assert found.last_observed and found.labels["new"].values[:3].tolist() == [1, 2, 3]
    assert found.labels["new"].valid.tolist() == [True, True, True, False]


def test_without_our_files_it_is_a_data_set_like_any_other(tmp_path, make_episode):
    """Tools of ``lerobot`` copy rows, videos and tables, and neither ``final`` nor ``meta/guerdon.json``."""
    folder = write(tmp_path / "set", [make_episode(0, 4, group=3, task=7)])
    shutil.rmtree(folder / "final")
    with pytest.warns(UserWarning, match=r"there is no final/rows\.parquet"):
        dataset = LeRobotDataset(folder)
    assert (dataset[0].steps, dataset[0].last_observed, dataset[0].task, dataset[0].group) == (4, False, 7, 3)
    (folder / "meta" / "guerdon.json").unlink()
    dataset = LeRobotDataset(folder)  # nothing promises a final observation
    assert (dataset[0].steps, dataset[0].last_observed, dataset[0].success) == (4, False, 1.0)
    assert (dataset[0].task, dataset[0].group) == (0, None), "numbers of joined data sets may mean different things"


def test_damaged_final_observations(tmp_path, make_episode):
    folder = write(tmp_path / "set", [make_episode(0)])
    (folder / "final" / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadEpisodeError, match=r"rows\.parquet cannot be read as final observations") as caught:
        LeRobotDataset(folder)[0]
    assert (caught.value.index, caught.value.status) == (0, "data")
    (folder / "meta" / "guerdon.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        LeRobotDataset(folder)


def test_no_final_observation_leaves_no_folder(tmp_path, make_episode):
    folder = write(tmp_path / "set", [make_episode(0, last=False)])
    assert not (folder / "final").exists()
    assert not LeRobotDataset(folder)[0].last_observed


def test_the_check_sum_tells_rows_apart():
    state, action = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((3, 1), np.float32)
    whole = checksum({"observation.state": state, "action": action})
    assert whole == checksum({"action": action[:, 0], "observation.state": state, "label.x": state})
    others = [
        checksum({"observation.state": state[:2], "action": action[:2]}),
        checksum({"observation.state": state[::-1], "action": action}),
        checksum({"observation.state": state}),
        checksum({"action": action}),
    ]
    assert len({whole, *others}) == 5
