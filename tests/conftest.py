"""Settings every test shares."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)  # small networks on two cores: more threads are slower
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A deadline would fail on a busy machine. `make test-quick` names the second profile.
hypothesis.settings.register_profile("full", max_examples=50, deadline=None)
hypothesis.settings.register_profile("quick", max_examples=5, deadline=None)
hypothesis.settings.load_profile("full")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real logged trajectories, or a skip where it is missing."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("GUERDON_REAL_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real trajectories are not here ({folder}); set GUERDON_REAL_DATA to run this test")
    return folder
