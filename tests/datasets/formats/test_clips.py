"""Clips: what the metadata say, what the files say, and every mistake in either."""

import json
from typing import Any

import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import BadEpisodeError, EpisodeDataset, readable
from guerdon.datasets.formats.clips import ClipsDataset
from guerdon.datasets.formats.video import write_video
from guerdon.datasets.opening import open_dataset


def clips(folder, rows, make_picture, frames=6):
    folder.mkdir(exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        write_video(folder / f"{number}.mp4", [make_picture(number, t) for t in range(frames)], 15)
        lines.append(json.dumps({"file": f"{number}.mp4", "instruction": f"do {number}"} | row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder


def test_clips_by_hand(tmp_path, make_picture):
    rows = [
        {"success": True, "suggested_split": "train", "frames": 6, "fps": 15, "lab": "any"},
        {"success": None, "split": "val", "sha256": "a" * 64, "task": "the same"},
        {"success": 0, "task": "the same", "quality": "noisy", "context": "table 3"},
    ]
    dataset = open_dataset(clips(tmp_path / "set", rows, make_picture))
    assert isinstance(dataset, ClipsDataset) and isinstance(dataset, EpisodeDataset)
    assert (len(dataset), dataset.fps, dataset.state_size, dataset.action_size) == (3, 15.0, 0, 0)
    episodes = [dataset[i] for i in range(3)]
    for number, episode in enumerate(episodes):
        assert (episode.index, episode.steps, episode.last_observed, episode.fps) == (number, 5, True, 15.0)
        assert (episode.state.shape, episode.actions.shape) == ((6, 0), (5, 0))
        frames = episode.frames["video"].read(np.array([0, 5]))
        want = np.stack([make_picture(number, 0), make_picture(number, 5)])
        assert np.abs(frames.astype(int) - want).max() < 7
        assert dataset.summary(number).steps == 5
    assert [e.success for e in episodes] == [1.0, None, 0.0]
    assert [e.end for e in episodes] == [End.SUCCESS, End.CUT, End.CUT]
    assert [e.split for e in episodes] == ["train", "val", ""]
    assert [e.task for e in episodes] == [0, 1, 1]
    assert episodes[1].frames["video"].identity == "a" * 64
    assert (episodes[2].quality, episodes[2].context) == ("noisy", "table 3")


def test_bad_clips_are_named_and_the_rest_goes_on(tmp_path, make_picture):
    folder = clips(tmp_path / "set", [{}, {}, {"frames": 1}, {}], make_picture)
    (folder / "0.mp4").unlink()
    (folder / "1.mp4").write_bytes((folder / "1.mp4").read_bytes()[:300])
    found: list[Any] = list(readable(ClipsDataset(folder)))
    assert [(e.index, e.status) for e in found[:3]] == [(0, "video"), (1, "video"), (2, "empty")]
    assert "no such file" in str(found[0]) and "cannot be read" in str(found[1]) and "two frames" in str(found[2])
    assert not isinstance(found[3], BadEpisodeError)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: expected a JSON object"),
        ("[]", "line 1: expected a JSON object"),
        ('{"file": "a.mp4"}', "expected 'instruction' as text, got None"),
        ('{"file": "a.mp4", "instruction": "x", "success": 2}', r"'success' in \[0, 1\]"),
        ('{"file": "a.mp4", "instruction": "x", "fps": 0}', "'fps' > 0"),
        ('{"file": "a.mp4", "instruction": "x", "frames": "many"}', "'frames' as a whole number"),
        ('{"file": "a.mp4", "instruction": "x", "sha256": "12"}', "64 hexadecimal"),
        ("", "at least one clip"),
    ],
)
def test_broken_metadata(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path)


def test_files_left_out_are_mentioned(tmp_path, make_picture):
    folder = clips(tmp_path / "set", [{}], make_picture)
    (folder / "more.mp4").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"leaves out 1 of 2 mp4 files, such as more\.mp4"):
        ClipsDataset(folder)


def test_a_folder_without_metadata_is_no_folder_of_clips(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metadata"):
        ClipsDataset(tmp_path)


def test_real_droid_clips(real_data):
    folder = real_data / "droid_visualizer"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    dataset = open_dataset(folder)
    assert len(dataset) == 379
    splits = [dataset.summary(i).split for i in range(379)]
    assert {s: splits.count(s) for s in splits} == {"train": 273, "val": 45, "test_unseen_lab": 61}
    assert sum(dataset.summary(i).steps + 1 for i in range(379)) == 31_064
    episode = dataset[3]
    source = episode.frames["video"]
    everything = source.read(np.arange(episode.steps + 1))
    assert everything.shape == (71, 3, 180, 320) and everything.std() > 10
    places = np.array([0, 9, 10, 40, 70])  # B-frames: shown in another order than stored
    np.testing.assert_array_equal(source.read(places), everything[places])
    assert source.read(places, 90).shape == (5, 3, 90, 160)
    assert episode.success is None and episode.end == End.CUT and episode.instruction


def test_stages_by_hand(tmp_path, make_picture):
    write_video(tmp_path / "a.mp4", np.stack([make_picture(0, i) for i in range(6)]), 10)
    line = {"file": "a.mp4", "instruction": "make tea", "stages": [[1, 3], [3, 5]]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    stage = ClipsDataset(tmp_path)[0].labels["stage"]
    assert stage.values.tolist() == [0, 0, 0, 1, 1, 1] and stage.valid.tolist() == [False, True, True, True, True, True]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line | {"stages": [[1, 3], [2, 9]]}))
    with pytest.raises(BadEpisodeError, match="stage 1 goes from observation 2 to 9") as caught:
        ClipsDataset(tmp_path)[0]
    assert caught.value.status == "label"
    for wrong in ("reach", [3], [[1]], [[1, 2.5]], [[True, 3]]):
        (tmp_path / "metadata.jsonl").write_text(json.dumps(line | {"stages": wrong}))
        with pytest.raises(ValueError, match="first frame, last frame"):
            ClipsDataset(tmp_path)


def test_real_annotated_stages(real_data, tmp_path):
    """Two real episodes with the boundaries that a person gave 16 stages."""
    root = real_data / "robo_dopamine_stages"
    if not root.is_dir():
        pytest.skip(f"{root} is not here")
    rows = []
    for episode in sorted(root.glob("episode_*")):
        (tmp_path / f"{episode.name}.mp4").symlink_to(episode / "cam_high.mp4")
        marks = json.loads((episode / "annotated_keyframes.json").read_text())
        spans = [[mark["start_frame_id"], mark["end_frame_id"]] for mark in marks]
        rows.append({"file": f"{episode.name}.mp4", "instruction": "clean the table", "stages": spans})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = ClipsDataset(tmp_path)
    for place, row in enumerate(rows):
        stage = dataset[place].labels["stage"]
        assert set(stage.values[stage.valid].tolist()) == set(range(16))
        assert (np.diff(stage.values[stage.valid]) >= 0).all()
        assert stage.values[row["stages"][4][0]] == 4 and not stage.valid[row["stages"][0][0] - 1]
