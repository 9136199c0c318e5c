"""Episodes as they are stored: what is refused and under which status, frames in memory, and how errors are named."""

import pickle
from typing import Any

import numpy as np
import pytest

from guerdon.datasets.episodes import (
    ArrayFrames,
    BadEpisodeError,
    Column,
    Episode,
    EpisodeDataset,
    blamed_on,
    readable,
    scale_frames,
)
from guerdon.datasets.joined import JoinedDatasets


def arrays(steps=3, state=2, action=1) -> dict[str, Any]:
    return {
        "state": np.zeros((steps + 1, state), np.float32),
        "actions": np.zeros((steps, action), np.float32),
    }


def with_nan(name, row, column):
    given = arrays()
    given[name][row, column] = np.nan
    return given


WRONG = {
    "no step": (arrays(0), "empty", "expected at least one step"),
    "as many observations as actions": (
        arrays() | {"state": np.zeros((3, 2), np.float32)},
        "shape",
        "expected 4 observations for 3 steps, got 3",
    ),
    "a state that is no number": (with_nan("state", 2, 1), "not_finite", r"state\[1\] at step 2 is nan"),
    "an action that is no number": (with_nan("actions", 0, 0), "not_finite", r"action\[0\] at step 0 is nan"),
    "a success above 1": (arrays() | {"success": 2.0}, "label", r"success in \[0, 1\] or unknown, got 2.0"),
    "a label of another length": (
        arrays() | {"labels": {"stage": Column.known(np.zeros(7))}},
        "shape",
        "label 'stage': expected 3 or 4 rows, got 7",
    ),
    "a track of another length": (
        arrays() | {"tracks": {"tip": Column.known(np.zeros((9, 3)))}},
        "shape",
        "track 'tip': expected 3 or 4 rows, got 9",
    ),
    "a frame after the end": (
        arrays() | {"frames": {"top": ArrayFrames(values=np.zeros((1, 3, 4, 4), np.uint8), step=np.array([9]))}},
        "shape",
        "camera 'top': frames outside observations 0 … 3",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_would_spoil_a_batch_is_refused_by_number_and_status(what):
    given, status, message = WRONG[what]
    with pytest.raises(BadEpisodeError, match=f"episode 7: .*{message}") as caught:
        Episode(index=7, **given)
    assert (caught.value.index, caught.value.status) == (7, status)


def test_an_episode_without_state_or_actions_is_legal_and_knows_its_length():
    episode = Episode(index=0, **arrays(5, 0, 0))
    assert episode.steps == 5 and episode.success is None and episode.last_observed
    nothing = ArrayFrames(values=np.zeros((0, 3, 4, 4), np.uint8), step=np.zeros(0, np.int64))
    assert Episode(index=0, **arrays(), frames={"top": nothing}).frames["top"] is nothing


def test_a_known_column_is_known_everywhere():
    column = Column.known(np.arange(3.0))
    assert column.valid.tolist() == [True] * 3 and column.values.tolist() == [0.0, 1.0, 2.0]


def test_a_bad_episode_survives_the_way_back_from_a_process():
    error = pickle.loads(pickle.dumps(BadEpisodeError(3, "video", "there is no such file")))
    assert (error.index, error.status, error.reason) == (3, "video", "there is no such file")
    assert str(error) == "episode 3: there is no such file"


def test_errors_are_renamed_to_the_number_an_episode_has_here():
    with pytest.raises(BadEpisodeError, match="episode 9: gone") as caught, blamed_on(9):
        raise BadEpisodeError(1, "video", "gone")
    assert (caught.value.index, caught.value.status) == (9, "video")
    with pytest.raises(BadEpisodeError) as caught, blamed_on(9):
        raise BadEpisodeError(9, "video", "gone")
    assert caught.value.__cause__ is None
    with pytest.raises(KeyError), blamed_on(9):
        raise KeyError("not about an episode")


def test_frames_in_memory_are_picked_and_scaled():
    values = np.zeros((3, 3, 8, 12), np.uint8)
    values[:, 0] = np.array([10, 20, 30])[:, None, None]
    frames = ArrayFrames(values=values, step=np.arange(3))
    assert frames.read(np.array([0, 2, 2]))[:, 0, 0, 0].tolist() == [10, 30, 30]
    small = frames.read(np.array([1]), size=4)
    assert small.shape == (1, 3, 4, 6) and small.dtype == np.uint8 and (small[0, 0] == 20).all()


def test_scaling_takes_the_shorter_side_and_leaves_alone_what_fits():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 10), np.uint8)
    assert scale_frames(frames, 10) is frames
    assert scale_frames(frames, 5).shape == (2, 3, 10, 5)
    assert scale_frames(frames[:0], 5).shape == (0, 3, 20, 10)
    halves = frames.reshape(2, 3, 10, 2, 5, 2).mean((3, 5))
    assert np.abs(scale_frames(frames, 5).astype(float)[..., 1:-1, 1:-1] - halves[..., 1:-1, 1:-1]).mean() < 20


def test_reading_a_whole_data_set_gives_errors_in_their_places(make_episode):
    class Stored(JoinedDatasets):
        """Two episodes, the second of which is bad."""

        def __init__(self):
            self.name, self.fps, self.state_size, self.action_size, self.cameras = "stored", 10.0, 2, 1, ()

        def __len__(self):
            return 2

        def __getitem__(self, place):
            if place:
                raise BadEpisodeError(place, "data", "gone")
            return make_episode(0)

    assert isinstance(Stored(), EpisodeDataset)
    first, second = readable(Stored())
    assert first.index == 0 and isinstance(second, BadEpisodeError) and second.index == 1
