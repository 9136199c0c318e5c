import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.datasets.episodes import Column, Episode
from guerdon.datasets.stages import stage_fraction, stage_proportions


def fraction(stage, completed, valid=None):
    stage = np.array(stage)
    found = stage_fraction(stage, np.ones(len(stage), bool) if valid is None else np.array(valid, bool), completed)
    return [round(float(v), 4) if k else None for v, k in zip(found.values, found.valid, strict=True)]


def test_by_hand():
    assert fraction([0, 0, 1, 1, 1], True) == [0, 0.5, 0, 0.5, 1]
    assert fraction([0, 0, 1, 1, 1], False) == [0, 0.5, None, None, None]  # nobody knows how far stage 1 had come
    assert fraction([0, 1, 1, 0, 0], True) == [0, None, None, 0, 1]  # a relapse: stage 1 was broken off
    assert fraction([0, 2, 2], True) == [0, 0, 1]  # a stage may be skipped
    assert fraction([0], True) == [1.0]
    assert fraction([0, 0, 0, 1], True) == [0, 0.3333, 0.6667, 1.0]  # entered at the very end: done at once
    assert fraction([0, 0, 9, 1, 1], True, [1, 1, 0, 1, 1]) == [None, None, None, 0, 1]


def test_a_last_observation_that_was_never_made():
    assert fraction([0, 0, 0, 0], True, [1, 1, 1, 0]) == [0, 0.5, 1, None]
    assert fraction([0, 0, 0, 0], False, [1, 1, 1, 0]) == [None] * 4


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), completed=st.booleans())
def test_inside_a_stage_time_passes_evenly(lengths, completed):
    stage = np.repeat(np.arange(len(lengths)), lengths)
    found = stage_fraction(stage, np.ones(len(stage), bool), completed)
    at = 0
    for k, n in enumerate(lengths):
        last = k == len(lengths) - 1
        for j in range(n):
            assert bool(found.valid[at + j]) == (completed or not last)
            if found.valid[at + j]:
                wanted = j / n if not last else 1.0 if n == 1 else j / (n - 1)
                assert found.values[at + j] == pytest.approx(wanted)
        at += n


def episode(stage, success):
    stage = np.array(stage)
    return Episode(
        index=0,
        state=np.zeros((len(stage), 1), np.float32),
        actions=np.zeros((len(stage) - 1, 0), np.float32),
        success=success,
        labels={"stage": Column.known(stage)},
    )


def test_proportions_are_means_over_successes():
    found = stage_proportions([episode([0, 0, 1, 1, 1], 1.0), episode([0, 1, 1, 1, 1], 1.0), episode([0] * 9, 0.0)])
    assert found == pytest.approx([(0.5 + 0.25) / 2, (0.5 + 0.75) / 2])
    with pytest.raises(ValueError, match="no successful episode"):
        stage_proportions([episode([0, 1], None)])
