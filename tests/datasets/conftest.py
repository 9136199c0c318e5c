"""Small episodes whose values name their episode and step."""

from collections.abc import Callable

import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, Column, Episode


def picture(episode: int, step: int, size: int = 32) -> np.ndarray:
    """(3, H, W): red says which episode, green which step."""
    frame = np.zeros((3, size, size), np.uint8)
    frame[0], frame[1], frame[2] = 40 + 60 * episode, 10 + 8 * step, 90
    return frame


def make(episode: int, steps: int = 5, *, last: bool = True, camera: bool = True, **changes) -> Episode:
    """Values that name their episode and step: state (e, t), action e + t / 100."""
    time = np.arange(steps + 1, dtype=np.float32)
    state = np.stack([np.full_like(time, episode), time], 1)
    if not last:
        state[-1] = state[-2]
    rows = steps + int(last)
    frames = {}
    if camera:
        values = np.stack([picture(episode, t) for t in range(rows)])
        frames = {"front": ArrayFrames(values=values, step=np.arange(rows))}
    reward = Column.known((np.arange(steps) == steps - 1).astype(np.float32))
    given = {
        "index": episode,
        "state": state,
        "actions": (episode + time[:-1, None] / 100).astype(np.float32),
        "instruction": f"task {episode % 2}",
        "end": End.SUCCESS,
        "success": 1.0,
        "last_observed": last,
        "frames": frames,
        "recorded": {"reward": reward},
    }
    return Episode(**(given | changes))


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """A function that makes one episode from its number."""
    return make


@pytest.fixture
def make_picture() -> Callable[..., np.ndarray]:
    """A function that makes the picture of an episode and a step."""
    return picture
