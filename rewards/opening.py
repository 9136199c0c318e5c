"""Opens a saved reward model for use, wherever it is kept."""

from pathlib import Path
from typing import Any

from ..core.interfaces import RewardModel
from ..core.opening import open_component


def open_reward_model(
    path: str | Path, device: str = "auto", trust: bool = False
) -> tuple[RewardModel, dict[str, Any]]:
    """Open a saved reward model for use, and say which it is; see `guerdon.core.opening.open_component`.

    Raises:
        ValueError: If the folder holds another component, or there is no such device.
        FileNotFoundError: If there is nothing.
    """
    return open_component(path, RewardModel, "a reward model", device, trust)
