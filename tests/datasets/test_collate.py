"""Episodes to batches: every value says which episode and step it came from, so a shift by one shows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End
from guerdon.datasets.collate import Window, choose_frames, collate
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Column, Episode


def frames(index, at, size=(4, 6)):
    """Frames whose pixels hold 20 · episode + observation."""
    at = np.asarray(at, np.int64)
    pixel = (20 * index + at).astype(np.uint8)
    return ArrayFrames(values=np.broadcast_to(pixel[:, None, None, None], (len(at), 3, *size)).copy(), step=at)


def episode(index, steps, cameras=None, **more):
    """State, actions, labels and records hold 100 · episode + step; actions half a step more."""
    seen = 100 * index + np.arange(steps + 1, dtype=np.float32)
    given = {
        "state": np.stack([seen, -seen], 1),
        "actions": seen[:-1, None] + 0.5,
        "instruction": f"task {index}",
        "task": 10 + index,
        "labels": {"progress": Column.known(seen)},
        "recorded": {"reward": Column.known(seen[:-1].astype(np.float64))},
        "frames": {name: frames(index, at) for name, at in (cameras or {}).items()},
    }
    return Episode(index=index, **(given | more))


# --- by hand --------------------------------------------------------------------------------------------------------


def test_two_episodes_by_hand():
    batch = collate(
        [
            episode(1, 3, end=End.SUCCESS, success=1.0, group=7, source=2),
            episode(2, 1, end=End.TIME_LIMIT, success=0.25),
        ]
    )
    assert batch.state[..., 0].tolist() == [[100, 101, 102, 103], [200, 201, 0, 0]]
    assert batch.state[..., 1].tolist() == [[-100, -101, -102, -103], [-200, -201, 0, 0]]
    assert batch.actions[..., 0].tolist() == [[100.5, 101.5, 102.5], [200.5, 0, 0]]
    assert batch.mask.int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.instructions == ("task 1", "task 2")
    assert batch.task.tolist() == [11, 12]
    assert batch.end.tolist() == [End.SUCCESS, End.TIME_LIMIT]
    assert batch.terminated.tolist() == [True, False]
    assert batch.success.tolist() == [1.0, 0.25]
    assert batch.success_known.tolist() == [True, True]
    assert batch.episode.tolist() == [1, 2]
    assert (batch.offset.tolist(), batch.length.tolist()) == ([0, 0], [3, 1])
    assert batch.group.tolist() == [7, -3], "an unknown initial state is a group of its own, -1 - 2"
    assert batch.source.tolist() == [2, 0]
    assert batch.labels["progress"].values.tolist() == [[100, 101, 102, 103], [200, 201, 0, 0]]
    assert batch.labels["progress"].valid.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.recorded["reward"].values.tolist() == [[100, 101, 102], [200, 0, 0]]
    assert batch.recorded["reward"].valid.int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.weight.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.decision_step.tolist() == [[0, 1, 2], [0, -1, -1]]
    assert {batch.state.dtype, batch.actions.dtype, batch.recorded["reward"].values.dtype} == {torch.float32}


def test_a_window_in_the_middle_is_cut_and_does_not_terminate():
    whole = episode(1, 5, end=End.SUCCESS, success=1.0)
    batch = collate([Window(episode=whole, offset=1, steps=2), Window(episode=whole, offset=3)])
    assert batch.state[..., 0].tolist() == [[101, 102, 103], [103, 104, 105]]
    assert batch.actions[..., 0].tolist() == [[101.5, 102.5], [103.5, 104.5]]
    assert batch.labels["progress"].values.tolist() == [[101, 102, 103], [103, 104, 105]]
    assert batch.recorded["reward"].values.tolist() == [[101, 102], [103, 104]]
    assert batch.end.tolist() == [End.CUT, End.SUCCESS]
    assert batch.terminated.tolist() == [False, True]
    assert (batch.offset.tolist(), batch.length.tolist()) == ([1, 3], [5, 5])
    assert batch.success.tolist() == [1, 1], "the outcome is the episode's"


@pytest.mark.parametrize("offset, steps", [(-1, 2), (0, 6), (4, 2), (5, -1), (0, 0)])
def test_a_window_outside_its_episode_is_refused(offset, steps):
    with pytest.raises(ValueError, match="does not lie inside episode 1 of 5 steps"):
        Window(episode=episode(1, 5), offset=offset, steps=steps)


@given(st.data())
def test_windows_against_a_literal_loop(data):
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    windows = []
    for i, length in enumerate(lengths):
        offset = data.draw(st.integers(0, length - 1))
        steps = data.draw(st.integers(1, length - offset))
        windows.append(Window(episode=episode(i, length, end=End.FAILURE), offset=offset, steps=steps))
    batch = collate(windows)
    for row, window in enumerate(windows):
        for t in range(window.steps):
            where = 100 * window.episode.index + window.offset + t
            assert batch.state[row, t, 0] == batch.recorded["reward"].values[row, t] == where
            assert batch.actions[row, t, 0] == where + 0.5
        assert batch.steps[row] == window.steps
        ends = window.offset + window.steps == window.episode.steps
        assert batch.end[row] == (End.FAILURE if ends else End.CUT)
    assert not batch.state[:, 1:][~batch.mask].any()
    assert not batch.actions[~batch.mask].any()


# --- outcome, termination, last observation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terminating, expected",
    [
        ({End.SUCCESS, End.FAILURE}, [False, True, True, False, False]),
        ({End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.TAKEOVER}, [False, True, True, True, True]),
        ((), [False] * 5),
    ],
)
def test_termination_comes_from_an_explicit_set(terminating, expected):
    pieces = [episode(i, 2, end=end) for i, end in enumerate(End)]
    assert collate(pieces, terminating=terminating).terminated.tolist() == expected
    assert collate(pieces).terminated.tolist() == [False, True, True, False, False]


def test_unknown_success_is_not_failure():
    batch = collate([episode(0, 2), episode(1, 2, success=0.0)])
    assert batch.success_known.tolist() == [False, True]
    assert batch.success.tolist() == [0, 0]


def test_a_repeated_last_observation_has_no_label_but_its_step_keeps_its_reward():
    whole = episode(1, 3, last_observed=False, end=End.SUCCESS)
    batch = collate([whole, Window(episode=whole, offset=0, steps=2), Window(episode=whole, offset=1, steps=2)])
    assert batch.last_observed.tolist() == [False, True, False]
    assert batch.labels["progress"].valid.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.recorded["reward"].valid.int().tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert batch.observed.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]


# --- columns --------------------------------------------------------------------------------------------------------


def test_a_column_an_episode_lacks_is_unknown_there_and_known_elsewhere():
    bare = episode(2, 2, labels={}, recorded={})
    batch = collate([bare, episode(1, 1)])
    assert batch.labels["progress"].valid.int().tolist() == [[0, 0, 0], [1, 1, 0]]
    assert batch.labels["progress"].values.tolist() == [[0, 0, 0], [100, 101, 0]]
    assert batch.recorded["reward"].valid.int().tolist() == [[0, 0], [1, 0]]


def test_gaps_in_a_column_stay_gaps_and_the_episode_is_not_changed():
    valid = np.array([True, False, True, True])
    holed = episode(
        1,
        3,
        last_observed=False,
        labels={"progress": Column(values=np.array([0.0, np.nan, 0.5, 1.0]), valid=valid)},
    )
    batch = collate([Window(episode=holed, offset=1)])
    assert batch.labels["progress"].valid.int().tolist() == [[0, 1, 0]]
    assert batch.labels["progress"].values[0, 1] == 0.5
    assert valid.tolist() == [True, False, True, True]


def test_points_and_mixed_number_types_are_padded_together():
    one = episode(
        1,
        2,
        tracks={"tip": Column.known(np.ones((3, 3), np.float32))},
        labels={"stage": Column.known(np.array([0, 1, 2]))},
    )
    two = episode(2, 1, labels={"stage": Column.known(np.array([0.5, 1.5]))})
    batch = collate([one, two])
    assert batch.tracks["tip"].values.shape == (2, 3, 3)
    assert batch.tracks["tip"].valid.int().tolist() == [[1, 1, 1], [0, 0, 0]]
    assert batch.labels["stage"].values.tolist() == [[0, 1, 2], [0.5, 1.5, 0]]
    assert batch.labels["stage"].values.dtype == torch.float32
    assert collate([one]).labels["stage"].values.dtype == torch.int64


WRONG = {
    "nothing": (lambda: collate([]), "at least one row"),
    "two state widths": (
        lambda: collate([episode(1, 2), episode(2, 2, state=np.zeros((3, 5), np.float32))]),
        r"state: expected one size in a batch, got \(2,\), \(5,\): batch data of different widths apart",
    ),
    "two action widths": (
        lambda: collate([episode(1, 2), episode(2, 2, actions=np.zeros((2, 4), np.float32))]),
        r"actions: expected one size in a batch, got \(1,\), \(4,\)",
    ),
    "a column of two shapes": (
        lambda: collate([episode(1, 2), episode(2, 2, labels={"progress": Column.known(np.zeros((3, 2)))})]),
        r"labels\['progress'\]: expected one size in a batch, got \(\), \(2,\)",
    ),
    "a column of two clocks": (
        lambda: collate([episode(1, 2), episode(2, 2, labels={"progress": Column.known(np.zeros(2))})]),
        r"labels\['progress'\]: expected a value per step or per observation in all rows, got both",
    ),
    "frames of two sizes": (
        lambda: collate(
            [episode(1, 2, frames={"top": frames(1, [0])}), episode(2, 2, frames={"top": frames(2, [0], (4, 4))})],
            cameras=["top"],
        ),
        r"frames\['top'\]: expected one size.*frame_size",
    ),
    "no frame in the window": (
        lambda: collate([Window(episode=episode(1, 4, {"top": [3]}), offset=0, steps=2)], cameras=["top"]),
        "episode 1: camera 'top' has no frame for the window",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_clear_error(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_frame_names_the_episode_for_the_score_file():
    with pytest.raises(BadEpisodeError) as caught:
        WRONG["no frame in the window"][0]()
    assert (caught.value.index, caught.value.status) == (1, "video")


# --- frames ---------------------------------------------------------------------------------------------------------


def test_cameras_keep_clocks_of_their_own():
    batch = collate([episode(1, 4, {"top": [0, 1, 2, 3, 4], "wrist": [0, 3]})], cameras=["top", "wrist"])
    assert batch.frames["top"].step.tolist() == [[0, 1, 2, 3, 4]]
    assert batch.frames["wrist"].step.tolist() == [[0, 3]]
    assert batch.frames["wrist"].values[0, :, 0, 0, 0].tolist() == [20, 23]
    assert (batch.frames["top"].values.dtype, batch.frames["top"].values.shape) == (torch.uint8, (1, 5, 3, 4, 6))
    assert collate([episode(1, 4, {"top": [0]})]).frames == {}, "cameras nobody asked for are not decoded"


def test_the_frame_held_at_a_windows_start_comes_from_before_it():
    window = Window(episode=episode(1, 6, {"top": [0, 3, 5, 6]}), offset=4, steps=1)
    batch = collate([window], cameras=["top"])
    # observation 4 shows the frame of 3, observation 5 its own; 6 lies behind the window
    assert batch.frames["top"].step.tolist() == [[0, 1]]
    assert batch.frames["top"].values[0, :, 0, 0, 0].tolist() == [23, 25]
    held = batch.observe(torch.tensor([0, 0]), torch.tensor([0, 1])).frames["top"]
    assert held[:, 0, 0, 0].tolist() == [23, 25]


def test_rows_with_and_without_a_camera_share_a_batch():
    batch = collate(
        [episode(1, 2), episode(2, 2, {"top": [0, 2]}), episode(3, 2, {"top": [1]})], cameras=["top", "side"]
    )
    assert list(batch.frames) == ["top"]
    assert batch.frames["top"].step.tolist() == [[-1, -1], [0, 2], [1, -1]]
    assert batch.frames["top"].values[:, :, 0, 0, 0].tolist() == [[0, 0], [40, 42], [61, 0]]


def test_frames_are_scaled_to_the_shorter_side():
    assert collate([episode(1, 2, {"top": [0]})], ["top"], frame_size=2).frames["top"].values.shape == (1, 1, 3, 2, 3)


@given(st.data())
def test_chosen_frames_are_exactly_what_a_window_can_show(data):
    steps = data.draw(st.integers(1, 12))
    step = np.array(sorted(data.draw(st.sets(st.integers(0, steps), min_size=1))))
    offset = data.draw(st.integers(0, steps - 1))
    length = data.draw(st.integers(1, steps - offset))
    places = choose_frames(step, offset, length)
    shown = {max((i for i, s in enumerate(step) if s <= j), default=-1) for j in range(offset, offset + length + 1)}
    assert places.tolist() == sorted(shown - {-1})
    every = data.draw(st.integers(1, 3))
    assert choose_frames(step, offset, length, every=every).tolist() == sorted(
        {*places.tolist()[::every], *places.tolist()[-1:]}
    )
    count = data.draw(st.integers(1, 4))
    fewer = choose_frames(step, offset, length, count)
    assert len(fewer) == min(count, len(places))
    assert set(fewer) <= set(places.tolist())
    assert (np.diff(fewer) > 0).all()
    if len(fewer):
        assert fewer[0] == places[0], "the frame held at the start is always among them"
    if len(fewer) > 1:
        assert fewer[-1] == places[-1]


def test_a_count_thins_frames_evenly():
    batch = collate([episode(1, 9, {"top": list(range(10))})], cameras=["top"], frame_count=4)
    assert batch.frames["top"].step.tolist() == [[0, 3, 6, 9]]
