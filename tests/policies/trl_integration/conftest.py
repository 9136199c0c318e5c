"""Fixtures of the tests that run TRL's trainers."""

from typing import Any

import pytest

from guerdon.testing.language_checkpoints import tiny_language


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory) -> str:
    """Folder of a tiny language model with a context for tool calls."""
    return str(tiny_language(tmp_path_factory.mktemp("trl") / "tiny", max_tokens=4096))


@pytest.fixture
def trl_settings(tmp_path):
    """Make the settings of a trainer of TRL for a run of seconds, without checkpoints or reports."""

    def made(kind: Any, **more: Any) -> Any:
        short: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return kind(**(short | more))

    return made
