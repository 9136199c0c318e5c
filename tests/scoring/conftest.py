"""Small data sets to score, and a call of the scoring function without its progress bar."""

import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, Column, Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.scoring.dataset import score_dataset


def make(index, steps=6, **more):
    """An episode of noise that its number decides; the reward of step t is t."""
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (steps + 1, 3, 16, 16), dtype=np.uint8)
    given = {
        "index": index,
        "state": rng.normal(size=(steps + 1, 3)).astype(np.float32),
        "actions": np.zeros((steps, 2), np.float32),
        "instruction": "reach",
        "fps": 10.0,
        "end": End.SUCCESS,
        "success": 1.0,
        "frames": {"front": ArrayFrames(values=pixels, step=np.arange(steps + 1))},
        "recorded": {"reward": Column.known(np.arange(steps, dtype=np.float32))},
    }
    return Episode(**(given | more))


@pytest.fixture
def episode():
    """A function that makes one episode from its number."""
    return make


@pytest.fixture
def data(tmp_path):
    """Seven episodes of 4, 5, 6, 4, 5, 6, 4 steps, all of them observed to the end."""
    with LeRobotWriter(tmp_path / "data", fps=10) as writer:
        for i in range(7):
            writer.add(make(i, 4 + i % 3))
    return tmp_path / "data"


@pytest.fixture
def score():
    """The scoring function on the CPU, without a progress bar."""

    def call(model, data, out, **more):
        return score_dataset(model, data, out, **({"device": "cpu", "progress_bar": False} | more))

    return call
