"""Recording of an episode while it is played."""

import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.envs.reach import Reach
from guerdon.envs.recording import Recording


class Drawn(Reach):
    """Reach task whose pictures hold the number of the control step."""

    shown = 0

    def reset(self, context):
        self.shown = 0
        return super().reset(context)

    def step(self, action):
        self.shown += 1
        return super().step(action)

    def render(self, camera=None, size=(96, 96)):
        return np.full((3, *size), self.shown, np.uint8)


def test_a_recording_holds_what_was_executed_and_seen():
    task = Drawn(horizon=9)
    context = task.contexts("train", 1)[0]
    recording = Recording(task, ["top"], (4, 4), 2)
    states = [recording.start(context)]
    for place in range(3):
        step = recording.take(np.array([2.0, -0.5, place / 2]))  # the first number is clipped to 1
        states.append(step.state)
    recording.finish()
    assert recording.steps == 3 and recording.task is task
    episode = recording.episode(5, context, "random", End.CUT, {})
    assert np.array_equal(episode.state, np.stack(states))
    assert episode.actions.tolist() == [[1.0, -0.5, 0.0], [1.0, -0.5, 0.5], [1.0, -0.5, 1.0]]
    assert (episode.index, episode.end, episode.group, episode.success) == (5, End.CUT, 0, 0.0)
    frames = episode.frames["top"]
    assert frames.step.tolist() == [0, 2, 3]  # every second one, and the last
    assert frames.read(np.arange(3))[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert len(episode.recorded["reward"].values) == 3 and len(episode.tracks["goal"].values) == 4
    assert recording.blank_cameras() == {"top"}


def test_a_recording_is_of_one_episode():
    task = Drawn()
    recording = Recording(task, [], (4, 4), 1)
    recording.start(task.contexts("train", 1)[0])
    with pytest.raises(RuntimeError, match="this recording holds an episode already"):
        recording.start(task.contexts("train", 1)[0])
