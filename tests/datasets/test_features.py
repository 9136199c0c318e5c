import multiprocessing
import signal
import time

import numpy as np
import pytest
import torch

from guerdon.backbones.vision import ConvEncoder
from guerdon.datasets.collate import Window, collate
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError
from guerdon.datasets.features import FeatureCache


class Counting(ConvEncoder):
    """A frozen encoder that counts the frames it encodes."""

    def __init__(self) -> None:
        super().__init__(width=6, channels=(4,), size=8)
        self.trainable = False
        self.frames = 0

    def features(self, pixels):
        self.frames += len(pixels)
        return super().features(pixels)


def test_every_frame_is_encoded_once_and_read_back(tmp_path, make_episode):
    cache, encoder, episodes = FeatureCache(tmp_path), Counting(), [make_episode(0), make_episode(1, 3)]
    direct = [encoder.encode(torch.from_numpy(e.frames["front"].values)).numpy() for e in episodes]
    encoder.frames = 0
    for _ in range(2):
        for episode, wanted in zip(episodes, direct, strict=True):
            source = cache.features(episode, "front", encoder)
            assert np.allclose(source.read(np.arange(len(source.step))), wanted, atol=1e-2)  # half precision
    assert encoder.frames == 6 + 4  # T + 1 frames of each, whatever was asked how often
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    FeatureCache(tmp_path).features(episodes[0], "front", encoder)
    assert encoder.frames == 10  # another process finds them too


def test_other_weights_frames_cameras_and_sizes_are_other_entries(tmp_path, make_episode):
    cache, episode = FeatureCache(tmp_path), make_episode(0)
    paths = {cache.features(episode, "front", Counting()).path, cache.features(episode, "front", Counting()).path}
    paths |= {cache.features(make_episode(1), "front", Counting()).path}
    paths |= {cache.frames(episode, "front", 8).path, cache.frames(episode, "front", 16).path}
    assert len(paths) == 5  # the two encoders differ in their random weights


def test_a_trainable_encoder_and_an_absent_camera_are_refused(tmp_path, make_episode):
    with pytest.raises(ValueError, match="is trainable"):
        FeatureCache(tmp_path).features(make_episode(0), "front", ConvEncoder(width=4, channels=(4,), size=8))
    with pytest.raises(ValueError, match=r"no camera 'wrist': it has \['front'\]"):
        FeatureCache(tmp_path).features(make_episode(0), "wrist", Counting())
    nothing = ArrayFrames(values=np.zeros((0, 3, 8, 8), np.uint8), step=np.zeros(0, np.int64))
    with pytest.raises(BadEpisodeError, match="recorded no frame"):
        FeatureCache(tmp_path).frames(make_episode(0, frames={"front": nothing}), "front", 8)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="choose another folder"):
        FeatureCache(file)


def test_frames_at_one_size(tmp_path, make_episode):
    episode = make_episode(0)
    kept = FeatureCache(tmp_path).frames(episode, "front", 16)
    assert np.array_equal(kept.read(np.array([1, 3]), 16), episode.frames["front"].read(np.array([1, 3]), 16))
    with pytest.raises(ValueError, match="kept at 16 pixels, asked for 8"):
        kept.read(np.array([0]), 8)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"rubbish"])
def test_a_damaged_entry_is_made_again(tmp_path, make_episode, damage):
    cache, encoder = FeatureCache(tmp_path), Counting()
    source = cache.features(make_episode(0), "front", encoder)
    whole = source.read(np.arange(6))
    source.path.write_bytes(damage)
    assert np.array_equal(cache.features(make_episode(0), "front", encoder).read(np.arange(6)), whole)


def test_a_failed_encoder_leaves_nothing(tmp_path, make_episode):
    class Failing(Counting):
        def features(self, pixels):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        FeatureCache(tmp_path).features(make_episode(0), "front", Failing())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def _write_for_ever(folder, episode):
    cache = FeatureCache(folder)
    while True:
        for path in folder.rglob("*.npy"):
            path.unlink(missing_ok=True)
        cache.frames(episode, "front", 64)


def test_killed_writers_leave_whole_entries_or_none(tmp_path, make_episode):
    values = np.random.default_rng(0).integers(0, 256, (40, 3, 96, 96), dtype=np.uint8)
    episode = make_episode(0, 39, camera=False, frames={"front": ArrayFrames(values=values, step=np.arange(40))})
    wanted = FeatureCache(tmp_path / "alone").frames(episode, "front", 64).read(np.arange(40))
    context = multiprocessing.get_context("fork")
    for pause in (0.05, 0.12):
        writers = [context.Process(target=_write_for_ever, args=(tmp_path / "both", episode)) for _ in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(pause)
        for writer in writers:
            writer.kill()
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
        for path in (tmp_path / "both").rglob("*.npy"):
            if not path.name.startswith("."):
                assert np.array_equal(np.load(path), wanted)
        assert np.array_equal(FeatureCache(tmp_path / "both").frames(episode, "front", 64).read(np.arange(40)), wanted)


def test_batches_get_features_sampled_like_frames(tmp_path, make_episode):
    cache, encoder = FeatureCache(tmp_path), Counting()
    name = f"{encoder.name}/front"
    windows = [
        Window(episode=make_episode(0, 8), offset=2, steps=4),
        Window(episode=make_episode(1, 3)),
        Window(episode=make_episode(2, 3, camera=False)),
    ]

    def features(episode):
        return {name: cache.features(episode, "front", encoder)} if episode.frames else {}

    batch = collate(windows, cameras=["front"], frame_count=3, features=features)
    assert torch.equal(batch.features[name].step, batch.frames["front"].step)
    assert batch.features[name].step.tolist() == [[0, 2, 4], [0, 2, 3], [-1, -1, -1]]
    encoded = encoder.encode(batch.frames["front"].values[0])
    assert torch.allclose(batch.features[name].values[0], encoded, atol=1e-2)
    assert batch.features[name].values.dtype == torch.float32
    every = collate(windows, features=features, frames_every=2)
    assert every.features[name].step[0].tolist() == [0, 2, 4]
