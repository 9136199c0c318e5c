"""Moments at which a camera shows something, and progress that holds from one to the next."""

import math

import pytest
import torch

from guerdon.core.batch import Sampled, TrajectoryBatch
from guerdon.rewards.moments import each_once, held_progress, likely, moments, steps_of


def batch_of(steps, **frames):
    """Rows of equal length; of each camera the numbers that its frames hold, and their observations."""
    shown = {}
    for name, (values, step) in frames.items():
        pictures = torch.tensor(values, dtype=torch.uint8)[..., None, None, None].repeat(1, 1, 3, 2, 2)
        shown[name] = Sampled(values=pictures, step=torch.tensor(step))
    count = len(next(iter(frames.values()))[0])
    return TrajectoryBatch(
        state=torch.zeros(count, steps + 1, 0),
        actions=torch.zeros(count, steps, 0),
        mask=torch.ones(count, steps, dtype=torch.bool),
        frames=shown,
    )


def parts_of(moment):
    """Names as they are, and the number that a picture holds."""
    return [part if isinstance(part, str) else int(part.max()) for part in moment.parts]


def test_a_moment_shows_the_last_frame_of_every_camera_under_its_name():
    batch = batch_of(5, wrist=([[10, 11, 12]], [[0, 2, 4]]), **{"front:left": ([[20, 21, 0]], [[1, 2, -1]])})
    found = moments(batch, ["wrist", "front:left", "absent"])[0]
    assert [moment.step for moment in found] == [0, 1, 2, 4]
    names = [" wrist", " front left"]  # a colon would read like the end of a label
    assert [parts_of(m) for m in found] == [
        [names[0], 10],
        *([names[0], w, names[1], f] for w, f in ((10, 20), (11, 21), (12, 21))),
    ]


def test_one_camera_needs_no_name_and_unmade_observations_are_left_out():
    batch = batch_of(2, wrist=([[1, 2, 3], [4, 5, 6]], [[0, 1, 2], [1, 2, -1]]))
    shown = moments(batch, ["wrist"])
    assert [[(m.step, parts_of(m)) for m in row] for row in shown] == [
        [(0, [1]), (1, [2]), (2, [3])],
        [(1, [4]), (2, [5])],
    ]
    assert steps_of(shown).tolist() == [[0, 1, 2], [1, 2, -1]]
    assert steps_of([[], []]).tolist() == [[-1], [-1]], "at least one column"
    with pytest.raises(ValueError, match="expected frames of front, the trajectories hold frames of wrist"):
        moments(batch, ["front"])


def test_progress_holds_and_nothing_holds_across_an_unknown_value():
    batch = batch_of(5, wrist=([[0]], [[0]]))
    step = torch.tensor([[1, 3, 4]])
    found = held_progress(
        step,
        torch.tensor([[0.2, 0.9, 0.5]]),
        torch.tensor([[True, False, True]]),
        batch,
        {"score": torch.tensor([[1.0, 2.0, 3.0]])},
    )
    assert found.progress.valid.tolist() == [[False, True, True, False, True, True]]
    assert found.progress.values[0, [1, 2, 4, 5]].tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5])
    assert found.valid.tolist() == [[False, True, False, False, True]]
    assert found.rewards.tolist() == [[0.0] * 5]
    assert found.terms["score"].tolist() == [[1, 1, 0, 3, 3]]  # at the step that leads to each observation


def test_unlikely_answers_are_no_answers():
    log_probs = torch.tensor([[0.004, 0.005], [0.006, 0.005], [0.5, math.nan]]).log()
    assert likely(log_probs, 0.01).tolist() == [False, True, False]
    assert likely(log_probs, 0.0).tolist() == [True, True, False]


def test_a_list_of_names_is_no_lone_text():
    assert each_once("cameras", ["a", "b"]) == ("a", "b")
    with pytest.raises(ValueError, match=r"cameras 'wrist': expected a list, got one text: write \['wrist'\]"):
        each_once("cameras", "wrist")
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="expected at least one, each once"):
            each_once("cameras", wrong)
