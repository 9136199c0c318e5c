import multiprocessing
import signal
import time

import numpy as np
import pytest
import torch

from guerdon.backbones.vision import ConvEncoder
from guerdon.datasets.collate import Window, collate
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Episode
from guerdon.datasets.features import FeatureCache, revision_of


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


def folder(source):
    (only,) = {file.parent for file in source.files}
    return only


def test_other_weights_frames_cameras_and_sizes_are_other_entries(tmp_path, make_episode):
    cache, episode = FeatureCache(tmp_path), make_episode(0)
    first = Counting()
    episode.frames["side"] = episode.frames["front"]  # the same pictures under another name
    found = {folder(cache.features(episode, "front", first)), folder(cache.features(episode, "front", Counting()))}
    found |= {folder(cache.features(make_episode(1), "front", first)), folder(cache.features(episode, "side", first))}
    found |= {folder(cache.features(episode, "front", first, size=16))}
    found |= {folder(cache.frames(episode, "front", 8)), folder(cache.frames(episode, "front", 16))}
    assert len(found) == 7  # the two encoders differ in their random weights


class Blurred(Counting):
    """The same name and weights, another transform."""

    def __init__(self, blur: int = 2) -> None:
        super().__init__()
        self.blur = blur

    def preprocess(self, frames):
        return super().preprocess(frames[:, :, :: self.blur, :: self.blur])


def test_another_transform_is_another_entry(tmp_path, make_episode):
    cache, episode = FeatureCache(tmp_path), make_episode(0)
    found = set()
    for make in (Counting, Blurred, lambda: Blurred(4), Blurred):
        torch.manual_seed(0)
        encoder = make()
        direct = encoder.encode(torch.from_numpy(episode.frames["front"].values)).numpy()
        source = cache.features(episode, "front", encoder)
        assert np.allclose(source.read(np.arange(6)), direct, atol=1e-2)
        found.add(folder(source))
    assert len(found) == 3
    assert len(cache.report().groups) == 1  # one name, one revision


def test_weights_that_change_in_place_are_never_mixed(tmp_path, make_episode):
    cache, encoder, episode = FeatureCache(tmp_path), Counting(), make_episode(0)
    before = cache.features(episode, "front", encoder, compute=False)
    first = before.read(np.array([0]))
    with torch.no_grad():
        encoder.head.bias.add_(1.0)
    with pytest.raises(ValueError, match="weights of convnet-8 have changed"):
        before.read(np.arange(6))
    after = cache.features(episode, "front", encoder)
    assert np.allclose(after.read(np.array([0])), first + 1.0, atol=1e-2)
    assert after.revision == encoder.revision != before.revision
    encoder.head.bias = torch.nn.Parameter(torch.zeros(6))  # replaced: no count of changes would tell
    assert revision_of(encoder) == encoder.revision != after.revision
    assert [g.known for g in sorted(cache.report().groups, key=lambda g: g.known)] == [1, 6]


def test_frames_are_encoded_when_they_are_asked_for_and_never_twice(tmp_path, make_episode):
    """A model that looks at every fourth frame, then one that looks at all: 26 frames in all, 7 by the first."""
    cache, encoder, episode = FeatureCache(tmp_path), Counting(), make_episode(0, 25)
    direct = encoder.encode(torch.from_numpy(episode.frames["front"].values)).numpy()
    encoder.frames = 0
    source = cache.features(episode, "front", encoder, compute=False)
    assert encoder.frames == 0 and source.files == []
    every = np.arange(0, 26, 4)
    assert np.allclose(source.read(every), direct[every], atol=1e-2)
    assert encoder.frames == 7 and source.known().nonzero()[0].tolist() == every.tolist()
    (group,) = cache.report().groups
    assert (group.known, group.places, group.entries) == (7, 26, 1)
    rest = FeatureCache(tmp_path).features(episode, "front", encoder, compute=False)
    assert np.allclose(rest.read(np.arange(26)), direct, atol=1e-2)
    assert encoder.frames == 26
    assert np.allclose(source.read(np.array([7, 3, 3])), direct[[7, 3, 3]], atol=1e-2)
    assert source.read(np.zeros(0, np.int64)).shape == (0, 6)
    assert encoder.frames == 26
    with pytest.raises(IndexError, match=r"expected 0 … 25"):
        source.read(np.array([26]))


class Interrupted(Counting):
    """Ctrl-C after so many frames."""

    allowed = 10**9

    def features(self, pixels):
        if self.frames >= self.allowed:
            raise KeyboardInterrupt
        return super().features(pixels)


def test_an_interrupted_episode_goes_on_where_it_stopped(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (640, 3, 8, 8), dtype=np.uint8)
    episode = make_long(values)
    encoder = Interrupted()
    encoder.allowed = 384  # 60 %, three blocks of 128
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path).features(episode, "front", encoder)
    encoder.allowed = 10**9
    source = FeatureCache(tmp_path).features(episode, "front", encoder, compute=False)
    assert source.known().nonzero()[0].tolist() == list(range(384))
    source.fill()
    assert encoder.frames == 640
    assert np.allclose(source.read(np.arange(640)), encoder.encode(torch.from_numpy(values)).numpy(), atol=1e-2)


def make_long(values):
    frames = {"front": ArrayFrames(values=values, step=np.arange(len(values)))}
    state, actions = np.zeros((len(values), 1), np.float32), np.zeros((len(values) - 1, 1), np.float32)
    return Episode(index=7, state=state, actions=actions, frames=frames)


class Told(Counting):
    """Gives what it is told to on bright frames."""

    value = 0.0

    def features(self, pixels):
        bright = pixels.mean((1, 2, 3)) > 0
        return torch.where(bright[:, None], self.value, super().features(pixels))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "hold NaN or infinity, nothing was stored: check the encoder's weights"),
        (-np.inf, "hold NaN or infinity"),
        (7e4, r"reach 7e\+04, above float16's largest number 65504"),
        (1e-7, "are as small as 1e-07, too small for float16"),
    ],
)
def test_features_that_half_precision_would_spoil_are_refused_by_name(tmp_path, value, says):
    values = np.zeros((4, 3, 8, 8), np.uint8)
    values[2:] = 255
    encoder = Told()
    encoder.value = value
    cache = FeatureCache(tmp_path)
    with pytest.raises(ValueError, match=rf"convnet-8 on camera 'front' of episode 7: .*frame 2 and 1 more {says}"):
        cache.features(make_long(values), "front", encoder)
    assert cache.report().entries == 0
    source = cache.features(make_long(values), "front", encoder, compute=False)
    assert source.read(np.array([0, 1])).shape == (2, 6)  # the good ones can be had
    encoder.value = 0.0  # nothing at all is a number like any other
    assert (source.read(np.arange(4))[2:] == 0).all()


def test_a_trainable_encoder_and_an_absent_camera_are_refused(tmp_path, make_episode):
    with pytest.raises(ValueError, match="is trainable"):
        FeatureCache(tmp_path).features(make_episode(0), "front", ConvEncoder(width=4, channels=(4,), size=8))
    with pytest.raises(ValueError, match=r"no camera 'wrist': it has \['front'\]"):
        FeatureCache(tmp_path).features(make_episode(0), "wrist", Counting())
    nothing = ArrayFrames(values=np.zeros((0, 3, 8, 8), np.uint8), step=np.zeros(0, np.int64))
    with pytest.raises(BadEpisodeError, match="recorded no frame"):
        FeatureCache(tmp_path).frames(make_episode(0, frames={"front": nothing}), "front", 8)
    elsewhere = Counting()
    elsewhere.name = "../clip"
    with pytest.raises(ValueError, match=r"'\.\./clip': expected text that can name a folder"):
        FeatureCache(tmp_path).features(make_episode(0), "front", elsewhere)


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
    (file,) = source.files
    file.write_bytes(damage)
    assert cache.report().groups[0].damaged == 1
    with pytest.warns(UserWarning, match=f"{file.name} is damaged .*computed again"):
        again = cache.features(make_episode(0), "front", encoder)
    assert np.array_equal(again.read(np.arange(6)), whole)
    assert encoder.frames == 12 and cache.report().groups[0].damaged == 0


def test_a_failed_encoder_leaves_nothing(tmp_path, make_episode):
    class Failing(Counting):
        def features(self, pixels):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        FeatureCache(tmp_path).features(make_episode(0), "front", Failing())
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["guerdon-cache.json"]


def _write_for_ever(folder, episode):
    cache = FeatureCache(folder)
    while True:
        for path in folder.rglob("*.npy"):
            path.unlink(missing_ok=True)
        cache.frames(episode, "front", 64)


@pytest.mark.slow
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
