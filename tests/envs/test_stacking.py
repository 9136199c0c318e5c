"""Named numbers of several environments: one row for each, split by name."""

import numpy as np
import pytest

from guerdon.envs.stacking import Stacker
from guerdon.envs.vector import make_task

TASKS = [make_task("mujoco/reach") for _ in range(3)]


def test_plain_numbers_are_stacked_by_name():
    stacked = Stacker(TASKS).numbers([0, 1, 2], [{"near": i, "far": 10.0 + i} for i in range(3)])
    assert list(stacked) == ["near", "far"] and len(stacked) == 2
    assert stacked["near"].tolist() == [0, 1, 2] and stacked["far"].tolist() == [10, 11, 12]
    assert stacked["near"].dtype == stacked.rows.dtype == np.float32
    assert stacked.rows.tolist() == [[0, 10], [1, 11], [2, 12]]


def test_arrays_lie_side_by_side_in_the_order_of_their_task():
    given = [{"goal": np.array([1.0, 2, 3]), "opening": np.array([4.0])}, {"opening": np.array([5.0])}]
    stacked = Stacker(TASKS).arrays([0, 2], given)
    nan = float("nan")
    np.testing.assert_array_equal(stacked.rows, [[1, 2, 3, 4], [nan] * 4, [5, nan, nan, nan]])
    np.testing.assert_array_equal(stacked["goal"], [[1, 2, 3], [nan] * 3, [nan] * 3])
    np.testing.assert_array_equal(stacked["opening"], [[4], [nan], [5]])
    assert "object" not in stacked
    with pytest.raises(KeyError, match="object"):
        stacked["object"]


def test_a_step_keeps_its_numbers_while_later_ones_come():
    stacker, point = Stacker(TASKS), np.zeros(2)
    first = stacker.arrays([0, 1], [{"goal": point}] * 2)
    point += 1
    second = stacker.arrays([1], [{"goal": point}])
    assert first["goal"][:2].tolist() == [[0, 0], [0, 0]]
    assert second["goal"][1].tolist() == [1, 1] and np.isnan(second["goal"][0]).all()
    wider = stacker.arrays([1], [{"goal": point, "object": np.full(3, 7.0)}])  # a task that gives more from here on
    assert wider["object"][1].tolist() == [7, 7, 7] and np.isnan(wider["object"][0]).all()
    assert list(second) == ["goal"]


def test_nothing_to_stack_gives_no_names():
    for stacked in (Stacker(TASKS).arrays([0, 1, 2], [{}] * 3), Stacker(TASKS).numbers([], [])):
        assert dict(stacked) == {} and stacked.rows.shape == (3, 0)


def test_one_name_of_two_widths_is_refused():
    stacker = Stacker(TASKS)
    stacker.arrays([0, 1], [{"goal": np.zeros(3)}] * 2)
    with pytest.raises(ValueError, match="mujoco/reach: track 'goal' has 1 numbers, and 3 in another task"):
        stacker.arrays([2], [{"goal": np.zeros(1)}])
