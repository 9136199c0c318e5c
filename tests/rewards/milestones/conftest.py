import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import Column, Episode


@pytest.fixture(scope="session")
def episode():
    """Makes episodes of a hand that moves on, and of a gripper that closes once."""

    def make(steps=30, success: float | None = 1.0, index=0, last_observed=True, closed_at=15, **more):
        """A hand that moves on at 1 m a step, and a gripper that closes at once (complete three steps later)."""
        g = np.ones(steps + 1)
        g[closed_at:] = 0.4
        hand = np.arange(steps + 1.0)[:, None] * [1, 0, 0]
        tracks = {"gripper": Column.known(g), "end_effector": Column.known(hand)}
        tracks.update(more.pop("tracks", {}))
        end = {1.0: End.SUCCESS, 0.0: End.FAILURE, None: End.CUT}[success]
        return Episode(
            index=index,
            state=np.concatenate([hand, g[:, None]], 1).astype(np.float32),
            actions=np.zeros((steps, 2), np.float32),
            success=success,
            end=end,
            last_observed=last_observed,
            tracks=tracks,
            **more,
        )

    return make
