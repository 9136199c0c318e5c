"""Episodes read for a model: what each costs to encode, from which cache, and what happens without a camera."""

import pickle
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End
from guerdon.datasets.collate import Window, collate
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Episode, EpisodeSummary
from guerdon.datasets.features import FeatureCache
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.reader import EpisodeReader
from guerdon.evaluation.dataset import evaluate_dataset
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.scoring.dataset import score_dataset
from guerdon.scoring.scores import read_scores
from guerdon.testing import tiny_clip


class Counting(ConvEncoder):
    """A frozen encoder that counts the frames it encodes."""

    def __init__(self) -> None:
        super().__init__(width=6, channels=(4,), size=8)
        self.trainable = False
        self.frames = 0

    def features(self, pixels):
        self.frames += len(pixels)
        return super().features(pixels)


class Stored:
    """Episodes in memory as a data set."""

    def __init__(self, episodes, cameras=("front",)) -> None:
        self.episodes, self.cameras = episodes, cameras
        self.name, self.fps, self.state_size, self.action_size = "stored", 10.0, 1, 1

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        episode = self.episodes[place]
        return EpisodeSummary(index=episode.index, steps=episode.steps, instruction="do")

    def __getitem__(self, place):
        return self.episodes[place]


def recorded(index, steps, *cameras, size=12):
    """An episode with noise as pictures, and a state of its own."""
    rng = np.random.default_rng(index)
    frames = {
        c: ArrayFrames(values=rng.integers(0, 256, (steps + 1, 3, size, size), np.uint8), step=np.arange(steps + 1))
        for c in cameras
    }
    state = rng.normal(size=(steps + 1, 1)).astype(np.float32)
    outcome = {"end": End.SUCCESS, "success": 1.0} if index % 2 else {"end": End.TIME_LIMIT, "success": 0.0}
    actions = np.zeros((steps, 1), np.float32)
    return Episode(index=index, state=state, actions=actions, instruction="do", frames=frames, **outcome)


def model(*cameras, encoder=None, **more: Any) -> Any:
    encoder = encoder or Counting()
    observer = ObservationEncoder(cameras=cameras, encoder=encoder, width=8, layers=1, heads=2, **more)
    return ProgressReward(observer=observer).eval()


def score(reward, data, out, **more):
    return score_dataset(reward, data, out, device="cpu", progress_bar=False, **more)


def test_dense_scoring_costs_an_encode_a_frame_and_one_causal_pass(tmp_path):
    """T frames, T encodes, whatever T; a second scoring through the cache costs none; values agree."""
    for steps in (9, 99):
        reward, data = model("front"), Stored([recorded(1, steps, "front")])
        passes = []
        temporal = reward.observer.temporal
        temporal.register_forward_hook(lambda module, given, gave, passes=passes: passes.append(given[0].shape))

        def costs(name, reward=reward, data=data, passes=passes, steps=steps, **more):
            reward.observer.encoder.frames = 0
            passes.clear()
            scores = read_scores(score(reward, data, tmp_path / f"{name}-{steps}", **more).path)
            assert passes == [(1, steps + 1, 8)]
            return reward.observer.encoder.frames, scores.episodes[0].progress

        cache = tmp_path / f"cache-{steps}"
        (plain, direct), (first, kept), (second, again) = (
            costs("plain"),
            costs("first", cache=cache),
            costs("second", cache=cache),
        )
        assert (plain, first, second) == (steps + 1, steps + 1, 0)
        assert np.allclose(kept, direct, atol=5e-3) and np.array_equal(kept, again)
        assert not np.isnan(direct).any()


def test_scoring_every_fourth_frame_encodes_only_these_and_all_the_rest_later(tmp_path):
    encoder, data = Counting(), Stored([recorded(i, 40, "front") for i in range(3)])
    score(model("front", encoder=encoder, frames_every=4), data, tmp_path / "a", cache=tmp_path / "cache")
    assert encoder.frames == 3 * 11  # 0, 4 … 40
    score(model("front", encoder=encoder), data, tmp_path / "b", cache=tmp_path / "cache")
    assert encoder.frames == 3 * 41
    score(model("front", encoder=encoder, frames_every=5), data, tmp_path / "c", cache=tmp_path / "cache")
    assert encoder.frames == 3 * 41


def test_frames_are_scaled_before_the_encoder_with_a_cache_as_without(tmp_path):
    data = Stored([recorded(1, 5, "front", size=32)])
    reward = model("front", frame_size=16)
    one = read_scores(score(reward, data, tmp_path / "a", cache=tmp_path / "cache").path).episodes[0].progress
    other = read_scores(score(reward, data, tmp_path / "b").path).episodes[0].progress
    assert np.allclose(one, other, atol=5e-3)


@pytest.mark.slow
def test_a_cache_of_another_revision_is_left_alone_and_shown(tmp_path):
    """Two checkpoints of one name: the scores of the second are those it gives without any cache."""
    from guerdon.backbones.openai_clip import ClipEncoder  # openai-clip takes seconds to import

    data, said = Stored([recorded(1, 6, "front")]), []
    for seed in (0, 1):
        checkpoint = tiny_clip(tmp_path / str(seed) / "clip.safetensors", "safetensors", seed=seed)
        torch.manual_seed(0)
        reward = model("front", encoder=ClipEncoder(str(checkpoint)))
        reward.save_pretrained(tmp_path / f"model-{seed}")
        folder = str(tmp_path / f"model-{seed}")
        cached = read_scores(score(folder, data, tmp_path / f"a{seed}", cache=tmp_path / "cache").path).episodes[0]
        plain = read_scores(score(folder, data, tmp_path / f"b{seed}").path).episodes[0]
        assert np.allclose(cached.progress, plain.progress, atol=2e-3)
        said.append(plain.progress)
    assert not np.allclose(said[0], said[1], atol=2e-3)
    groups = FeatureCache(tmp_path / "cache").report().groups
    assert {g.encoder for g in groups} == {"clip-clip"} and len({g.revision for g in groups}) == 2
    assert [(g.entries, g.known) for g in groups] == [(1, 7), (1, 7)]


def test_a_corrupt_file_of_the_cache_does_not_change_a_score(tmp_path):
    reward, data = model("front"), Stored([recorded(i, 9, "front") for i in range(2)])
    before = read_scores(score(reward, data, tmp_path / "a", cache=tmp_path / "cache").path)
    broken = min((tmp_path / "cache").rglob("*.npy"))
    content = bytearray(broken.read_bytes())
    content[200] ^= 0x40  # in the middle of a number: it would still be one
    broken.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{broken} is damaged"):
        after = read_scores(score(reward, data, tmp_path / "b", cache=tmp_path / "cache").path)
    assert all(np.array_equal(x.progress, y.progress) for x, y in zip(before.episodes, after.episodes, strict=True))


MIXED = (("front", "wrist"), ("front",), ("wrist",), ())


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_camera_missing_in_some_episodes(tmp_path, cached, batch_size, trainable):
    """One camera is enough; with none of them the episode is named, and the others are scored all the same."""
    data = Stored([recorded(i, 5 + i, *cameras) for i, cameras in enumerate(MIXED)], ("front", "wrist"))
    encoder = Counting()
    encoder.trainable = trainable
    reward = model("front", "wrist", encoder=encoder, frame_size=12)
    cache = {"cache": tmp_path / "cache"} if cached else {}
    report = score(reward, data, tmp_path / "out", batch_size=batch_size, **cache)
    assert [(e.index, e.status) for e in report.bad] == [(3, "camera")]
    assert report.bad[0].reason == "expected frames of front or wrist, it has none: no estimate"
    table = pq.read_table(report.path)
    assert table.column("status").to_pylist()[-1] == "camera" and not table.column("valid").to_pylist()[-1]
    for index, scored in enumerate(read_scores(report.path).episodes[:3]):
        with torch.no_grad():
            alone = reward(collate([data[index]], cameras=MIXED[index]))
        assert scored.usable and np.allclose(scored.progress, alone.progress.values[0].numpy(), atol=5e-3)


def test_a_camera_that_recorded_nothing_is_as_good_as_absent(tmp_path):
    nothing = ArrayFrames(values=np.zeros((0, 3, 12, 12), np.uint8), step=np.zeros(0, np.int64))
    both, none = recorded(0, 4, "wrist"), recorded(1, 4)
    for episode in (both, none):
        assert isinstance(episode.frames, dict)
        episode.frames["front"] = nothing
    for cache in (None, FeatureCache(tmp_path / "cache")):
        reader = EpisodeReader(Stored([]), ("front", "wrist"), 12, Counting(), cache)
        batch = reader.batch([Window(episode=both)])
        assert list(batch.features or batch.frames) == ["convnet-8/wrist" if cache else "wrist"]
        with pytest.raises(BadEpisodeError, match="episode 1: expected frames of front or wrist, it has none"):
            reader.prepare(none)


def test_evaluation_names_an_episode_without_the_camera():
    episodes = [recorded(i, 5, *(("front",) if i else ())) for i in range(4)]
    said = evaluate_dataset(model("front"), Stored(episodes), batch_size=1)
    assert [(bad["episode"], bad["status"]) for bad in said.bad] == [(0, "camera")]


def test_training_leaves_out_an_episode_without_the_camera_by_name(tmp_path):
    for name, camera in (("a", "front"), ("b", "wrist")):
        with LeRobotWriter(tmp_path / name, fps=10) as writer:
            for index in range(3):
                writer.add(recorded(index, 4, camera, size=16))
    data = EpisodeData(
        [str(tmp_path / "a"), str(tmp_path / "b")], cameras=["front"], batch_size=3, frame_size=16, val_fraction=0.0
    )
    with pytest.warns(UserWarning, match=r"3 of 6 episodes .*\(camera\): expected frames of front, it has wrist"):
        data.setup("fit")
    assert {e.status for e in data.bad} == {"camera"}
    (batch,) = list(data.train_dataloader())
    assert (batch.frames["front"].step[:, 0] >= 0).all() and len(batch) == 3


def test_a_reader_travels_to_another_process_without_its_open_files(tmp_path):
    reader = EpisodeReader(Stored([recorded(0, 4, "front")]), ("front",), 12, None, FeatureCache(tmp_path))
    before = reader.batch([Window(episode=reader(0))])
    again = pickle.loads(pickle.dumps(reader))
    assert torch.equal(again.batch([Window(episode=again(0))]).frames["front"].values, before.frames["front"].values)


def test_what_a_reader_keeps_open_is_not_evicted(tmp_path):
    cache = FeatureCache(tmp_path)
    reader = EpisodeReader(Stored([recorded(0, 4, "front")]), ("front",), 12, Counting(), cache)
    reader.prepare(reader(0))
    assert cache.evict(0).in_use == 1
    del reader
    assert cache.evict(0).removed == 1
