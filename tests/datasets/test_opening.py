"""The door that tells formats apart, and what it takes to add one."""

import json

import pytest

from guerdon.datasets import opening
from guerdon.datasets.episodes import EpisodeDataset
from guerdon.datasets.formats.clips import ClipsDataset
from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.formats.video import write_video
from guerdon.datasets.opening import FORMATS, open_dataset, recorded_files


@pytest.fixture
def robot(tmp_path, make_episode):
    with LeRobotWriter(tmp_path / "robot", fps=10) as writer:
        writer.add(make_episode(0))
    return tmp_path / "robot"


@pytest.fixture
def clips(tmp_path, make_picture):
    folder = tmp_path / "clips"
    (folder / "lab").mkdir(parents=True)
    write_video(folder / "lab" / "0.mp4", [make_picture(0, t) for t in range(4)], 10)
    (folder / "metadata.jsonl").write_text(json.dumps({"file": "lab/0.mp4", "instruction": "reach"}))
    return folder


def test_each_format_is_opened_by_its_own_reader(robot, clips):
    for folder, reader in ((robot, LeRobotDataset), (clips, ClipsDataset)):
        for given in (folder, str(folder)):
            dataset = open_dataset(given)
            assert type(dataset) is reader and isinstance(dataset, EpisodeDataset) and len(dataset) == 1
        assert sum(known.recognises(folder) for known in FORMATS) == 1


def test_what_is_no_data_set_is_refused_with_what_is_accepted(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set at"):
        open_dataset(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    for path, found in ((tmp_path, "notes.txt"), (tmp_path / "notes.txt", "a single file")):
        message = rf"found: {found}\); accepted are: a LeRobot v3\.0 data set .* a folder of clips"
        with pytest.raises(ValueError, match=message):
            open_dataset(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found: nothing"):
        open_dataset(tmp_path / "empty")


def test_an_older_version_is_refused_by_its_reader_and_not_as_unknown(robot):
    path = robot / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v2.1"}))
    with pytest.raises(ValueError, match=r"version v2\.1; version v3\.0 is read"):
        open_dataset(robot)


def test_the_files_of_a_recording_are_listed_without_what_lies_beside_them(robot, clips):
    for folder in (robot, clips):
        (folder / "scores").mkdir()
        (folder / "scores" / "scores.parquet").write_bytes(b"")
        (folder / "notes.txt").write_text("mine")
    assert [f.relative_to(clips).as_posix() for f in recorded_files(clips)] == ["lab/0.mp4", "metadata.jsonl"]
    listed = {f.relative_to(robot).as_posix() for f in recorded_files(str(robot))}
    tables = {"meta/info.json", "meta/tasks.parquet", "meta/stats.json", "meta/episodes/chunk-000/file-000.parquet"}
    frames = "videos/observation.images.front/chunk-000/file-000.mp4"
    final = {"meta/guerdon.json", "final/rows.parquet", f"final/{frames}"}
    assert listed == {*tables, *final, "data/chunk-000/file-000.parquet", frames}
    assert recorded_files(robot / "nowhere") == [] == recorded_files(robot / "notes.txt")


def test_a_folder_that_only_a_users_own_reader_reads_has_its_videos_listed(tmp_path):
    for name in ("b.mp4", "a.jsonl", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [f.name for f in recorded_files(tmp_path)] == ["a.jsonl", "b.mp4"]


def test_a_new_format_is_one_entry(tmp_path, clips, monkeypatch):
    class Listed:
        """Folders with an ``episodes.txt``."""

        accepted = "a folder with episodes.txt"

        def recognises(self, folder):
            return (folder / "episodes.txt").is_file()

        def open(self, folder):
            return open_dataset(clips)

        def files(self, folder):
            return [folder / "episodes.txt", folder / "gone.txt"]

    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "episodes.txt").write_text("")
    monkeypatch.setattr(opening, "FORMATS", (*FORMATS, Listed()))
    assert len(open_dataset(tmp_path / "new")) == 1
    assert [f.name for f in recorded_files(tmp_path / "new")] == ["episodes.txt"]
    with pytest.raises(ValueError, match=r"a folder of clips .*; a folder with episodes\.txt"):
        open_dataset(tmp_path)
