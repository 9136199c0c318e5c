"""The identity of a scoring run: what changes it, what does not, and what happens where another run lies."""

import json
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from guerdon.core.hub import component_hash, hash_component, read_spec
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.joined import JoinedDatasets
from guerdon.datasets.opening import open_dataset
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.scoring.run import begin_run, fingerprint, hash_recording, run_identity, run_metadata
from guerdon.scoring.scores import read_scores


def model(width=8, **more: Any):
    torch.manual_seed(0)
    return ProgressReward(state_size=3, observer=ObservationEncoder(width=width, layers=0, **more))


def test_the_identity_holds_all_that_scores_depend_on(data):
    found = run_identity(model(), open_dataset(data), 64, terminating=["success", "failure", "success"])
    assert found.keys() == {"model_hash", "data", "data_hash", "settings"}
    assert found["model_hash"] == hash_component(model()) and found["data"] == str(data.resolve())
    assert json.loads(found["settings"]) == {
        "part_size": 64,
        "frames_every": 1,
        "frame_size": None,
        "cameras": [],
        "episodes": 7,
        "terminating": ["failure", "success"],
    }


def test_the_fingerprint_changes_with_the_model_the_policy_and_every_setting(data):
    dataset = open_dataset(data)
    policy = GaussianPolicy(3, 2, hidden=(4,))
    runs = [
        run_identity(model(), dataset, 64),
        run_identity(model(16), dataset, 64),
        run_identity(model(frames_every=2), dataset, 64),
        run_identity(model(), dataset, 32),
        run_identity(model(), dataset, 64, terminating=["success"]),
        run_identity(model(), dataset, 64, PolicyProposer(policy)),
        run_identity(model(), dataset, 64, PolicyProposer(policy, seed=1)),
        run_identity(model(), JoinedDatasets([dataset, dataset]), 64),
    ]
    assert len({fingerprint(run) for run in runs}) == len(runs)
    assert fingerprint(run_identity(model(), open_dataset(str(data)), 64)) == fingerprint(runs[0])


def test_the_fingerprint_of_a_run_of_version_0_1():
    """A literal of before: a run finished then is finished now."""
    settings = {"part_size": 64, "frames_every": 1, "frame_size": None, "cameras": [], "episodes": 10}
    identity = {
        "model_hash": "c24fdb40e15ad87a",
        "data": "/tmp/oldruns/held",
        "settings": json.dumps(settings),
        "data_hash": "d9f8376b05f5bf6a",
    }
    assert fingerprint(identity) == "8f535b56bbf47c6b"


@pytest.mark.slow
def test_a_component_in_a_folder_is_known_by_that_folder_as_it_stands(data, tmp_path, score):
    """What an earlier version wrote lacks arguments that came later: written again it would have another hash."""
    model().save_pretrained(tmp_path / "model")
    spec = read_spec(tmp_path / "model")
    del spec["init_args"]["remaining_loss_weight"]
    (tmp_path / "model" / "component.json").write_text(json.dumps(spec))
    kept = component_hash(tmp_path / "model")
    assert kept != hash_component(model())
    report = score(tmp_path / "model", data, tmp_path / "out")
    metadata = read_scores(report.path).metadata
    identity = {key: metadata[key] for key in ("model_hash", "data", "data_hash")}
    identity["settings"] = json.dumps(metadata["settings"])
    assert identity["model_hash"] == kept and metadata["fingerprint"] == fingerprint(identity)
    assert score(str(tmp_path / "model"), data, tmp_path / "out").resumed == 7


@pytest.mark.slow
def test_a_run_directory_is_the_model_it_holds(data, tmp_path, score):
    model().save_pretrained(tmp_path / "run" / "model")
    score(tmp_path / "run", data, tmp_path / "out")
    assert score(tmp_path / "run" / "model", data, tmp_path / "out").resumed == 7
    assert score(model(), data, tmp_path / "out").resumed == 7  # the same in memory


def test_identifying_a_model_writes_nothing(data, monkeypatch):
    monkeypatch.setattr("guerdon.core.hub.save_file", None)
    monkeypatch.setattr("tempfile.mkdtemp", None)
    assert len(run_identity(model(), open_dataset(data), 64)["model_hash"]) == 16


def test_a_recording_is_its_episodes_and_files_and_nothing_that_lies_beside_them(data):
    before = hash_recording(open_dataset(data))
    (data / "scores").mkdir()
    (data / "notes.txt").write_text("mine")
    assert hash_recording(open_dataset(data)) == before
    file = next((data / "data").rglob("*.parquet"))
    os.utime(file, ns=(0, 0))
    assert hash_recording(open_dataset(data)) != before


def test_a_recording_in_memory_is_its_episodes(data):
    class InMemory:
        def __init__(self, instruction="reach"):
            self.inner, self.instruction, self.name = open_dataset(data), instruction, "in memory"

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, place):
            return self.inner[place]

        def summary(self, place):
            return replace(self.inner.summary(place), instruction=self.instruction)

    def hashed(*instruction: Any) -> str:
        recording: Any = InMemory(*instruction)
        return hash_recording(recording)

    assert hashed() == hashed() != hashed("push")


@pytest.mark.slow
def test_a_recording_made_again_is_not_taken_for_the_one_that_was_scored(data, tmp_path, score, episode):
    assert score(model(), data, tmp_path / "out").resumed == 0
    assert score(model(), data, tmp_path / "out").resumed == 7
    score(model(), data, data / "scores")
    assert score(model(), data, data / "scores").resumed == 7  # scores beside the recording are none of it
    shutil.rmtree(data)
    with LeRobotWriter(data, fps=10) as writer:
        for i in range(7):
            again = episode(i, 4 + i % 3)
            writer.add(replace(again, state=again.state + 1))
    with pytest.raises(ValueError, match=r"holds scores of another run \(episodes: "):
        score(model(), data, tmp_path / "out")
    assert score(model(), data, tmp_path / "out", overwrite=True).resumed == 0


def metadata(**changes):
    identity = {"model_hash": "a", "data": "/d", "data_hash": "b", "settings": "{}"} | changes
    return run_metadata(identity, model(), "somewhere")


def test_the_metadata_are_the_identity_and_what_a_reader_wants_to_know():
    found = metadata(policy_hash="p")
    assert found["fingerprint"] == fingerprint({k: found[k] for k in list(found)[:5]}) != metadata()["fingerprint"]
    assert found["class_path"].endswith("ProgressReward") and found["model"] == "somewhere"
    assert json.loads(found["configuration"])["init_args"]["state_size"] == 3
    assert found["version"] and found["created_at"].startswith("20") and found["policy_hash"] == "p"


def parts(folder):
    return sorted(p.name for p in (folder / "parts").iterdir())


def test_an_interrupted_run_is_gone_on_with_and_another_one_refused(tmp_path):
    assert begin_run(tmp_path, metadata(), overwrite=False) is None
    (tmp_path / "parts" / "part-00000.parquet").write_bytes(b"")
    assert begin_run(tmp_path, metadata(), overwrite=False) is None
    assert parts(tmp_path) == ["part-00000.parquet", "run.json"]
    with pytest.raises(ValueError, match=r"another run \(model: a there, z now; policy: None there, p now\): choose"):
        begin_run(tmp_path, metadata(model_hash="z", policy_hash="p"), overwrite=False)
    assert parts(tmp_path) == ["part-00000.parquet", "run.json"]
    assert begin_run(tmp_path, metadata(model_hash="z"), overwrite=True) is None
    assert parts(tmp_path) == ["run.json"]
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["model_hash"] == "z"


def test_overwriting_starts_the_same_run_again(tmp_path):
    begin_run(tmp_path, metadata(), overwrite=False)
    (tmp_path / "parts" / "part-00000.parquet").write_bytes(b"")
    begin_run(tmp_path, metadata(), overwrite=True)
    assert parts(tmp_path) == ["run.json"]


def test_parts_that_do_not_say_whose_they_are_are_removed(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part-00000.parquet").write_bytes(b"")
    assert begin_run(tmp_path, metadata(), overwrite=False) is None
    assert parts(tmp_path) == ["run.json"]


@pytest.mark.slow
def test_a_finished_run_is_returned_unless_it_is_to_be_made_again(data, tmp_path, score):
    score(model(), data, tmp_path / "out")
    same = run_metadata(run_identity(model(), open_dataset(data), 64), model())
    found = begin_run(tmp_path / "out", same, overwrite=False)
    assert found is not None and len(found.episodes) == 7 and not (tmp_path / "out" / "parts").exists()
    other = run_metadata(run_identity(model(), open_dataset(data), 2), model())
    with pytest.raises(ValueError, match=r"settings: .* there, .* now"):
        begin_run(tmp_path / "out", other, overwrite=False)
    assert begin_run(tmp_path / "out", same, overwrite=True) is None
