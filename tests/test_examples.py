"""The example scripts run on data as a user would make it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guerdon.datasets.episodes import Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.scoring.dataset import score_dataset

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_doubtful_labels(tmp_path):
    with LeRobotWriter(tmp_path / "data", fps=10) as writer:
        for index, success in enumerate((1.0, 0.0, None)):
            state = np.full((5, 2), index, np.float32)
            writer.add(Episode(index=index, state=state, actions=np.zeros((4, 1), np.float32), success=success))
    torch.manual_seed(0)
    model = ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=0))
    with torch.no_grad():  # says 0.73 of everything: σ(1)
        linear: Any = model.head.of["success"]
        linear.weight.zero_()
        linear.bias.fill_(1.0)
    score_dataset(model, tmp_path / "data", tmp_path / "scores", progress_bar=False)
    command = [sys.executable, EXAMPLES / "doubtful_labels.py", "--data", tmp_path / "data"]
    done = subprocess.run([*command, "--scores", tmp_path / "scores"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["1", "0.00", "0.73", "0.73"],
        ["0", "1.00", "0.73", "0.27"],
    ]
    assert "2 episodes compared; 0 without a score, 1 without a label" in " ".join(done.stdout.split())


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"doubtful_labels.py"}
