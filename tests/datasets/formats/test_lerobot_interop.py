"""Both ways with ``lerobot`` itself, which needs an environment of its own (another torch and numpy)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import Column
from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "lerobot_interop"


@pytest.fixture
def lerobot(tmp_path):
    """Run one of the scripts with lerobot's Python; its standard output."""
    python = os.environ.get("GUERDON_LEROBOT_PYTHON")
    if not python:
        pytest.skip("set GUERDON_LEROBOT_PYTHON to a Python that has lerobot 0.4 … 0.6 installed")

    def run(script: str, folder: Path) -> str:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [python, str(SCRIPTS / script), str(folder)], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_we_read_what_lerobot_writes(tmp_path, lerobot):
    lerobot("write_with_lerobot.py", tmp_path / "theirs")
    dataset = LeRobotDataset(tmp_path / "theirs")
    assert (len(dataset), dataset.fps, dataset.state_size, dataset.action_size) == (3, 10.0, 3, 2)
    assert dataset.cameras == ("front", "wrist")
    for e in range(3):
        episode = dataset[e]
        steps = 9 + e  # N rows: N steps whose last observation is a repeat
        assert (episode.index, episode.steps, episode.last_observed) == (e, steps, False)
        assert (episode.instruction, episode.success, episode.end) == (f"task {e % 2}", None, End.CUT)
        t = np.arange(steps)
        np.testing.assert_array_equal(episode.state[:-1], np.stack([0 * t + e, t, e + t], 1))
        np.testing.assert_allclose(episode.actions, np.stack([0 * t - e, t / 10], 1), rtol=1e-6)
        for camera, blue, shape in (("front", 90, (48, 64)), ("wrist", 160, (64, 64))):
            frames = episode.frames[camera].read(t)
            assert frames.shape == (steps, 3, *shape)
            want = np.stack([0 * t + 40 + 60 * e, 10 + 15 * t, 0 * t + blue], 1)
            assert np.abs(frames.mean((2, 3)) - want).max() < 6, "lerobot encodes at crf 30"


@pytest.mark.slow
def test_lerobot_reads_what_we_write(tmp_path, lerobot, make_episode):
    labels = {"progress": Column(values=np.arange(8.0), valid=np.arange(8) % 2 == 0)}
    tracks = {"gripper": Column.known(np.ones((8, 3), np.float32))}
    more = {"labels": labels, "tracks": tracks}
    two = np.ones((7, 2), np.float32)
    episodes = [
        make_episode(0, 7, actions=two, **more),
        make_episode(1, 7, actions=two, success=0.0, end=End.FAILURE, **more),
        make_episode(2, 7, actions=two, **more),
    ]
    with LeRobotWriter(tmp_path / "ours", fps=10, robot_type="arm") as writer:
        for episode in episodes:
            writer.add(episode)
    seen = json.loads(lerobot("read_with_lerobot.py", tmp_path / "ours").splitlines()[-1])
    assert (seen["episodes"], seen["frames"], seen["fps"]) == (3, 21, 10)
    for row in seen["rows"]:
        e, t = row["episode"], row["frame"]
        assert row["state"] == [e, t] and row["action"] == [1, 1]
        assert row["task"] == f"task {e % 2}"
        assert row["reward"] == float(t == 6) and row["success"] == (e != 1 and t == 6)
        assert row["observation.images.front.shape"] == [3, 32, 32]
        want = [40 + 60 * e, 10 + 8 * t, 90]
        assert np.abs(np.array(row["observation.images.front"]) - want).max() < 6
    assert [(r["episode"], r["frame"]) for r in seen["rows"]] == [(e, t) for e in range(3) for t in range(7)]
    assert seen["window"] == [2, 3, 32, 32] and np.abs(np.array(seen["window_greens"]) - [10, 18]).max() < 6
    assert seen["batch"] == [4, 2]
    assert seen["stats"]["observation.state"] == pytest.approx([1.0, 3.0])
