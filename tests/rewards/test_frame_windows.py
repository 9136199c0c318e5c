"""Windows evaluate every moment once, and none depends on what comes behind it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.rewards.frame_windows import FrameWindows, windows


@given(count=st.integers(0, 60), size=st.integers(1, 12), data=st.data())
def test_windows_evaluate_every_moment_once_and_never_look_ahead(count, size, data):
    context = data.draw(st.integers(0, size - 1))
    found = windows(count, size, context)
    new = [shown[len(shown) - fresh :] for shown, fresh in found]
    assert [place for part in new for place in part] == list(range(count))
    for number, (shown, fresh) in enumerate(found):
        assert shown == sorted(set(shown)) and len(shown) <= size
        assert number == 0 or len(shown) - fresh == context
        assert number == 0 or context == 0 or shown[0] == 0
    # where a window begins depends on nothing behind it: fewer moments give the same windows, cut
    shorter = windows(max(count - 1, 0), size, context)
    for (shown, _), (cut, _) in zip(found, shorter, strict=False):
        assert shown[: len(cut)] == cut


def test_windows_by_hand():
    # five at a time, two of them again: 0-4, then the first, the one before, and three new
    assert windows(9, 5, 2) == [([0, 1, 2, 3, 4], 5), ([0, 4, 5, 6, 7], 3), ([0, 7, 8], 1)]
    assert windows(4, 2, 0) == [([0, 1], 2), ([2, 3], 2)]
    assert windows(3, 5, 4) == [([0, 1, 2], 3)] and windows(0, 5, 1) == []


def test_a_row_is_split_as_the_settings_say(tmp_path):
    frames = FrameWindows(frame_size=64, frames_every=2, max_frames=5, context_frames=2)
    assert frames.split(9) == windows(9, 5, 2)
    inputs = frames.inputs(["wrist", "front"])
    assert (inputs.cameras, inputs.frame_size, inputs.frames_every) == (("wrist", "front"), 64, 2)
    assert inputs.instruction
    frames.save_pretrained(tmp_path / "frames")
    assert FrameWindows.from_pretrained(tmp_path / "frames").init_args == frames.init_args


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="max_frames 4, context_frames 4: expected more frames than context"):
        FrameWindows(max_frames=4)
    with pytest.raises(ValueError, match="frames_every is 0: expected at least 1"):
        FrameWindows(frames_every=0)
