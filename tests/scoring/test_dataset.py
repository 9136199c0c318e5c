"""Scoring a data set: every row, every abstention, every bad episode, and runs that were interrupted."""

import json
import multiprocessing
import os
import signal
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from guerdon.backbones.chat import Chat
from guerdon.backbones.language import HashedText
from guerdon.backbones.recorded_chat import RecordedChat
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Labelled, RewardEstimates
from guerdon.core.hub import component_hash
from guerdon.core.interfaces import RewardModel
from guerdon.datasets.collate import collate
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.formats.video import VideoFrames
from guerdon.datasets.opening import open_dataset
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedReward
from guerdon.scoring import dataset as scoring
from guerdon.scoring.scores import read_scores


def spoil(data, index):
    """Put a NaN into the state of an episode."""
    file = next((data / "data").rglob("*.parquet"))
    table = pq.read_table(file)
    column = table["observation.state"].to_numpy(zero_copy_only=False)
    place = np.flatnonzero(table["episode_index"].to_numpy() == index)[1]
    column[place] = np.full(3, np.nan, np.float32)
    field = table.schema.get_field_index("observation.state")
    changed = pa.array(list(column), type=table.schema.field(field).type)
    pq.write_table(table.set_column(field, table.schema.field(field), changed), file, row_group_size=5)


def test_every_recorded_observation_has_a_row_and_it_is_what_the_model_says(data, tmp_path, score):
    model = ProgressReward(state_size=3, observer=ObservationEncoder(width=16, layers=1, heads=2)).eval()
    report = score(model, data, tmp_path / "out", batch_size=3)
    assert report.episodes == 7 and not report.bad and not (tmp_path / "out" / "parts").exists()
    dataset, table = open_dataset(data), pq.read_table(report.path)
    assert table.column_names[:9] == [
        *("episode_index", "frame_index", "timestamp", "progress", "success", "reward", "std", "valid", "status")
    ]
    scores = read_scores(tmp_path / "out")
    assert len(table) == sum(4 + i % 3 + 1 for i in range(7)) and [e.index for e in scores.episodes] == list(range(7))
    for place, scored in enumerate(scores.episodes):
        with torch.no_grad():
            alone = model(collate([dataset[place]]))
        assert np.allclose(scored.progress, alone.progress.values[0].numpy(), atol=1e-5)
        assert np.allclose(scored.success, alone.success.values[0].numpy(), atol=1e-5)
        assert np.allclose(scored.reward[:-1], alone.rewards[0].numpy(), atol=1e-5) and np.isnan(scored.reward[-1])
        assert np.allclose(scored.std[:-1], alone.std[0].numpy(), atol=1e-5) and np.isnan(scored.std[-1])
        assert np.allclose(scored.seconds, np.arange(len(scored.seconds)) / 10)
        assert scored.total == pytest.approx(float(alone.rewards.sum()), abs=1e-4) and scored.usable
    assert table["valid"].to_pylist() == [True] * len(table)


def test_the_metadata_say_what_was_scored_with_what(data, tmp_path, score):
    model = ProgressReward(state_size=3, observer=ObservationEncoder(width=16, layers=0))
    model.save_pretrained(tmp_path / "model")
    report = score(str(tmp_path / "model"), str(data), tmp_path / "out")
    metadata = read_scores(report.path).metadata
    assert metadata["data"] == str(data.resolve()) and metadata["model"] == str(tmp_path / "model")
    assert metadata["model_hash"] == component_hash(tmp_path / "model")
    assert metadata["configuration"]["init_args"]["state_size"] == 3
    assert metadata["class_path"] == "guerdon.ProgressReward"
    assert metadata["version"] and metadata["created_at"].startswith("20")
    raw = pq.read_schema(report.path).metadata
    assert raw[b"data"].decode() == str(data.resolve()) and json.loads(raw[b"configuration"])["init_args"]


@pytest.mark.slow
def test_a_recorded_reward_is_copied_and_what_it_lacks_is_null(data, tmp_path, score):
    table = pq.read_table(score(RecordedReward(), data, tmp_path / "out").path)
    first = table.slice(0, 5)
    assert first["reward"].to_pylist() == [0.0, 1.0, 2.0, 3.0, None]
    assert first["progress"].to_pylist() == [None] * 5 and first["std"].to_pylist() == [None] * 5
    assert first["valid"].to_pylist() == [True] * 4 + [False]


def test_where_the_last_observation_was_not_made_there_is_no_row_for_it(tmp_path, score, episode):
    state = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    state[-1] = state[-2]
    with LeRobotWriter(tmp_path / "data", fps=10) as writer:
        writer.add(episode(0, 4, state=state, last_observed=False, frames={}))
    table = pq.read_table(
        score(
            ProgressReward(state_size=3, observer=ObservationEncoder(layers=0)), tmp_path / "data", tmp_path / "out"
        ).path
    )
    assert table["frame_index"].to_pylist() == [0, 1, 2, 3]
    # the last step leads to an observation nobody made: its reward is unknown
    assert [r is None for r in table["reward"].to_pylist()] == [False, False, False, True]
    assert [p is None for p in table["progress"].to_pylist()] == [False] * 4


def test_a_bad_episode_is_named_in_its_rows_and_the_others_are_scored(data, tmp_path, score):
    spoil(data, 3)
    report = score(ProgressReward(state_size=3, observer=ObservationEncoder(layers=0)), data, tmp_path / "out")
    assert [(e.index, e.status) for e in report.bad] == [(3, "not_finite")]
    table = pq.read_table(report.path)
    bad = pc.field("episode_index") == 3
    rows = table.filter(bad)
    assert set(rows["status"].to_pylist()) == {"not_finite"} and rows["valid"].to_pylist() == [False] * len(rows)
    assert len(rows) >= 4 and rows["progress"].null_count == len(rows)
    assert "state[0] at step 1 is nan" in rows["reason"][0].as_py()
    rest = table.filter(~bad)
    assert set(rest["status"].to_pylist()) == {"ok"} and rest["progress"].null_count == 0
    assert list(read_scores(report.path).bad) == [3]
    assert not next(e for e in read_scores(report.path).episodes if e.index == 3).usable


@pytest.mark.slow
def test_a_broken_video_is_named_and_frames_are_held_in_between(data, tmp_path, score, episode):
    encoder = ConvEncoder(width=8, channels=(4,), size=8)
    model = ProgressReward(
        observer=ObservationEncoder(
            cameras=["front"], encoder=encoder, text=HashedText(8, 16), width=16, layers=1, heads=2, frames_every=3
        )
    )
    dataset = open_dataset(data)
    source = dataset[2].frames["front"]

    class Broken:
        def __getattr__(self, name):
            return getattr(dataset, name)

        def __len__(self):
            return len(dataset)

        def __getitem__(self, place):
            good = dataset[place]
            gone = VideoFrames(data / "gone.mp4", source.step, fps=10, episode=2)
            return episode(2, good.steps, frames={"front": gone}) if place == 2 else good

    report = score(model, Broken(), tmp_path / "out", batch_size=4)
    assert [(e.index, e.status) for e in report.bad] == [(2, "video")]
    first = read_scores(report.path).episodes[0]  # frames 0, 3 and the last of 0 … 4 are looked at
    assert first.progress[0] == first.progress[1] == first.progress[2]
    assert len({*first.progress[2:]}) == 3
    cached = score(model, Broken(), tmp_path / "again", batch_size=4, cache=tmp_path / "cache")
    assert np.allclose(read_scores(cached.path).episodes[0].progress, first.progress, atol=1e-6)


class Sulking(RewardModel):
    """Abstains on every second step and claims nonsense about one episode."""

    def __init__(self, nonsense: int = 5) -> None:
        super().__init__()
        self.nonsense = nonsense

    def forward(self, batch):
        valid = batch.mask & (torch.arange(batch.mask.shape[1]) % 2 == 0)
        bad = (batch.episode == self.nonsense)[:, None]
        rewards = torch.where(valid, torch.where(bad, torch.nan, 1.0), 0.0)
        unknown = Labelled(values=torch.zeros(batch.observed.shape), valid=torch.zeros_like(batch.observed))
        return RewardEstimates(rewards=rewards, valid=valid, progress=unknown)


def test_abstentions_are_null_and_nonsense_is_named(data, tmp_path, score):
    report = score(Sulking(), data, tmp_path / "out")
    assert [(e.index, e.status) for e in report.bad] == [(5, "model_not_finite")]
    table = pq.read_table(report.path).slice(0, 5)
    assert table["reward"].to_pylist() == [1.0, None, 1.0, None, None]
    assert table["progress"].to_pylist() == [None] * 5 and table["valid"].to_pylist() == [
        True,
        False,
        True,
        False,
        False,
    ]


class Counting(RewardModel):
    """Knows nothing, and counts it, as does the chat it asks."""

    def __init__(self, chat: Chat) -> None:
        super().__init__()
        self.chat = chat
        self.abstained = Counter({"never": 0, "before": 3})

    def forward(self, batch):
        self.abstained["no idea"] += int(batch.made.sum())
        self.chat.reply([["?"]] * len(batch))
        unknown = torch.zeros_like(batch.mask)
        return RewardEstimates(rewards=unknown.float(), valid=unknown)


@pytest.fixture
def silent(tmp_path):
    line = {"name": "someone", "kind": "reply", "key": "of another prompt", "text": "Yes", "problem": ""}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    return Counting(RecordedChat(str(tmp_path / "answers.jsonl"), missing="problem"))


@pytest.mark.slow
def test_a_model_that_abstains_throughout_is_told_from_one_that_scored(data, tmp_path, silent, score):
    spoil(data, 3)  # it has 4 of the 41 observations
    report = score(silent, data, tmp_path / "out", part_size=2)
    # 6 good episodes of 5, 6, 7, 6, 7, 5 observations; what was counted before is not of this run
    counted = {"Counting.abstained": {"no idea": 36}, "RecordedChat.failures": {"not recorded": 6}}
    assert (report.observations, report.estimated, report.counters) == (36, 0, counted)
    stored = read_scores(report.path)
    assert stored.estimated == (0, 36) and stored.counters == counted
    assert (stored.metadata["observations"], stored.metadata["estimated"]) == ("36", "0")
    again = score(silent, data, tmp_path / "out", part_size=2)
    assert again.resumed == 7 and again.counters == counted and again.estimated == 0


@pytest.mark.slow
def test_what_an_interrupted_run_counted_is_kept(data, tmp_path, silent, monkeypatch, score):
    write, calls = scoring.write_part, []

    def stop(table, file):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(file)
        write(table, file)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(scoring, "write_part", stop)
        score(silent, data, tmp_path / "out", part_size=2)
    report = score(Counting(silent.chat), data, tmp_path / "out", part_size=2)
    assert report.resumed == 4 and report.counters["Counting.abstained"] == {"no idea": 41}
    assert report.counters["RecordedChat.failures"] == {"not recorded": 7}


def test_partly_known_episodes_are_counted_by_observation(data, tmp_path, score):
    # every second step of 4, 5, 6, 4, 5, (6 is nonsense,) 4 is known: 2 + 3 + 3 + 2 + 3 + 2
    report = score(Sulking(), data, tmp_path / "out")
    assert (report.estimated, report.observations, report.counters) == (15, 5 + 6 + 7 + 5 + 6 + 5, {})


def test_a_finished_file_from_before_anything_was_counted_stays_finished(data, tmp_path, score):
    report = score(Sulking(), data, tmp_path / "out")
    table = pq.read_table(report.path)
    added = {b"observations", b"estimated", b"counters"}
    old = {k: v for k, v in table.schema.metadata.items() if k not in added}
    assert len(old) == len(table.schema.metadata) - 3
    pq.write_table(table.replace_schema_metadata(old), report.path)
    again = score(Sulking(), data, tmp_path / "out")
    assert (again.resumed, again.estimated, again.observations, again.counters) == (7, 15, 34, {})


def test_nothing_is_scored_where_nothing_can_be_written(data, tmp_path, score):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write scores to .*; choose another folder"):
        score(RecordedReward(), data, tmp_path / "file" / "out")
    with pytest.raises(ValueError, match="batch_size 0, part_size 64: expected positive numbers"):
        score(RecordedReward(), data, tmp_path / "out", batch_size=0)
    with pytest.raises(ValueError, match=r"reads a state of 9 numbers, .* has 3"):
        score(ProgressReward(state_size=9), data, tmp_path / "out")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_gives_the_same_file(data, tmp_path, monkeypatch, score):
    model = ProgressReward(state_size=3, observer=ObservationEncoder(width=16, layers=0))
    whole = score(model, data, tmp_path / "whole", part_size=2)
    calls = 0
    forward = ProgressReward.forward

    def interrupted(self, batch):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return forward(self, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ProgressReward, "forward", interrupted)
        score(model, data, tmp_path / "cut", part_size=2)
    left = sorted(p.name for p in (tmp_path / "cut").rglob("*") if p.is_file())
    assert left == ["part-00000.parquet", "part-00001.parquet", "run.json"]
    with pytest.raises(FileNotFoundError, match="the run was interrupted"):
        read_scores(tmp_path / "cut")
    report = score(model, data, tmp_path / "cut", part_size=2)
    assert report.resumed == 4
    assert pq.read_table(report.path).equals(pq.read_table(whole.path))
    assert score(model, data, tmp_path / "cut", part_size=2).resumed == 7  # finished: nothing to do


@pytest.mark.slow
def test_scores_of_another_run_are_not_mixed_in(data, tmp_path, score):
    model, other = (ProgressReward(state_size=3, observer=ObservationEncoder(width=w, layers=0)) for w in (8, 16))
    score(model, data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds scores of another run \(model: .* there, .* now\): choose another"):
        score(other, data, tmp_path / "out")
    assert score(other, data, tmp_path / "out", overwrite=True).resumed == 0


def _die_in_the_third_part(score, model, data, out):
    write, done = scoring.write_part, []

    def write_two(table, file):
        if len(done) == 2:
            file.with_name(f".{file.name}.1").write_bytes(b"PAR1 half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(table, file)
        done.append(file)

    scoring.write_part = write_two
    score(model, data, out, part_size=2)


@pytest.mark.slow
def test_a_killed_run_goes_on(data, tmp_path, score):
    """A process that dies without a word leaves whole parts only."""
    model = ProgressReward(state_size=3, observer=ObservationEncoder(width=16, layers=0))
    process = multiprocessing.get_context("fork").Process(
        target=_die_in_the_third_part, args=(score, model, data, tmp_path / "out")
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    report = score(model, data, tmp_path / "out", part_size=2)
    assert report.resumed == 4 and len(read_scores(report.path).episodes) == 7
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scores.parquet"]
