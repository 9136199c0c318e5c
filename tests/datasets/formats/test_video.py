"""Video: any window equals the same frames of one whole pass, whatever the key frames; damage has one clear error."""

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guerdon.datasets.episodes import BadEpisodeError, scale_frames
from guerdon.datasets.formats.video import VideoFrames, count_frames, write_video


def moving(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(F, 3, H, W): a bright block that moves one pixel per frame over a smooth ground, so that no two are alike."""
    y, x = np.mgrid[:height, :width]
    frames = np.empty((count, 3, height, width), np.uint8)
    for t in range(count):
        frames[t] = np.stack([2 * x + t, 3 * y, x + y + 2 * t]).clip(0, 255)
        frames[t, :, 8:24, t % (width - 16) : t % (width - 16) + 16] = 230
    return frames


@pytest.fixture(scope="module", params=[1, 2, 8, 250])
def video(tmp_path_factory, request):
    """A video with a given key-frame interval, its frames, and what a plain decoder makes of it."""
    path = tmp_path_factory.mktemp("video") / "film.mp4"
    frames = moving(60)
    assert write_video(path, iter(frames), 10, key_interval=request.param) == 60
    with av.open(str(path)) as container:
        plain = np.stack([f.to_ndarray(format="rgb24").transpose(2, 0, 1) for f in container.decode(video=0)])
    return path, frames, plain


def whole(path, count=60, **options):
    return VideoFrames(path, np.arange(count), fps=10, **options)


def test_written_frames_come_back(video):
    path, frames, plain = video
    assert count_frames(path) == 60
    got = whole(path).read(np.arange(60))
    np.testing.assert_array_equal(got, plain)
    assert np.abs(got.astype(int) - frames).mean() < 4


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ascending_choice_equals_the_whole_pass(video, data):
    path, _, plain = video
    first = data.draw(st.integers(0, 40), label="first frame of the episode in the file")
    count = data.draw(st.integers(1, 60 - first), label="frames of the episode")
    places = np.array(sorted(data.draw(st.lists(st.integers(0, count - 1), max_size=12), label="places")), np.int64)
    source = VideoFrames(path, np.arange(count), seconds=(first + np.arange(count)) / 10, fps=10)
    np.testing.assert_array_equal(source.read(places), plain[first + places])


def test_sparse_reads_decode_few_frames(tmp_path, monkeypatch):
    """Two far frames of a video with key frames every 8 cost at most two groups of pictures."""
    import guerdon.datasets.formats.video as module

    write_video(tmp_path / "film.mp4", moving(200), 10)
    decoded = []
    original = module._decode_needed

    def counting(*args):
        for frame in original(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(module, "_decode_needed", counting)
    source = VideoFrames(tmp_path / "film.mp4", np.arange(200), seconds=np.arange(200) / 10, fps=10)
    source.read(np.array([15, 180]))
    assert len(decoded) <= 16


def test_scaling_is_close_to_scale_frames(video):
    path, _, plain = video
    for size in (24, 32):
        got = whole(path).read(np.array([0, 30]), size)
        want = scale_frames(plain[[0, 30]], size)
        assert got.shape == want.shape
        assert np.abs(got.astype(int) - want).mean() < 2.5
    np.testing.assert_array_equal(whole(path).read(np.array([5]), 48), plain[[5]])


def test_identity_follows_content_and_range(tmp_path):
    frames = moving(20)
    write_video(tmp_path / "a.mp4", frames, 10)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    write_video(tmp_path / "c.mp4", frames[::-1], 10)

    def part(name, first):
        return VideoFrames(tmp_path / name, np.arange(5), seconds=first + np.arange(5) / 10, fps=10).identity

    assert part("a.mp4", 0.0) == part("b.mp4", 0.0), "a copy is the same recording"
    assert len({part("a.mp4", 0.0), part("a.mp4", 0.5), part("c.mp4", 0.0), whole(tmp_path / "a.mp4").identity}) == 4
    assert whole(tmp_path / "none.mp4", content="ab").identity == "ab"


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_a_truncated_file(tmp_path, keep):
    path = tmp_path / "film.mp4"
    write_video(path, moving(60), 10)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(BadEpisodeError, match=r"film\.mp4.*damaged or incomplete") as caught:
        VideoFrames(path, np.arange(60), fps=10, episode=7).read(np.arange(60))
    assert (caught.value.index, caught.value.status) == (7, "video")


def test_other_damage(tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, moving(20), 10)
    with pytest.raises(BadEpisodeError, match="expected 30 frames, the file holds 20"):
        whole(path, 30).read(np.array([0]))
    late = VideoFrames(path, np.arange(30), seconds=np.arange(30) / 10, fps=10)
    assert late.read(np.array([19])).shape == (1, 3, 48, 64)
    for places in ([18, 20], [25]):
        with pytest.raises(BadEpisodeError, match="ends early"):
            late.read(np.array(places))
    with pytest.raises(BadEpisodeError, match="no such file") as caught:
        whole(tmp_path / "none.mp4").identity
    assert caught.value.status == "video"
    path.write_text("not a film")
    with pytest.raises(BadEpisodeError, match="cannot be decoded"):
        whole(path).read(np.array([0]))


def test_wrong_use_has_its_own_error(video):
    path, _, _ = video
    with pytest.raises(IndexError, match="recording with 60 frames"):
        whole(path).read(np.array([60]))
    with pytest.raises(ValueError, match="ascending"):
        whole(path).read(np.array([3, 2]))
    assert whole(path).read(np.array([], np.int64)).shape == (0, 3, 48, 64)


def test_a_failed_write_leaves_nothing(tmp_path):
    def failing():
        yield from moving(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "film.mp4", failing(), 10)
    for frames, message in (
        ([], "at least one frame"),
        (moving(2, 47), "even height and width"),
        ([moving(1)[0].astype(np.float32)], "uint8"),
        ([moving(1)[0], moving(1, 32)[0]], r"\(3, 48, 64\), got uint8 \(3, 32, 64\)"),
    ):
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / "film.mp4", frames, 10)
    assert list(tmp_path.iterdir()) == []
