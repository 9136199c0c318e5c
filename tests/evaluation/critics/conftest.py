"""Logs of the small reach task, collected once for all tests of critic evaluation."""

import pytest

from guerdon.cli import main
from guerdon.datasets.opening import open_dataset


@pytest.fixture(scope="session")
def logs(tmp_path_factory):
    """Eight episodes, half of experts and half of random walks."""
    folder = tmp_path_factory.mktemp("logs") / "reach"
    arguments = ["--env", "mujoco/reach", "--episodes", "8", "--out", str(folder), "--states-only"]
    assert main(["collect", *arguments, "--quality", "expert=0.5,random=0.5"]) == 0
    return open_dataset(folder)
