"""Opens a saved reward model for use, wherever it is kept."""

from pathlib import Path
from typing import Any

import torch

from ..core.hub import SPEC, component_hash, load_component, read_spec
from ..core.interfaces import RewardModel


def open_reward_model(
    path: str | Path, device: str = "auto", trust: bool = False
) -> tuple[RewardModel, dict[str, Any]]:
    """Open a saved reward model for use, and say which it is.

    Args:
        path: Folder, or repository ``owner/name``.
        device: Where it runs; ``"auto"`` takes a GPU where there is one.
        trust: Open classes outside guerdon.

    Returns:
        The model in evaluation mode; folder, class path and, for a folder, content hash.

    Raises:
        ValueError: If the folder holds another component, or there is no such device.
        FileNotFoundError: If there is nothing.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / SPEC).is_file() and (folder / "model").is_dir():
        folder = folder / "model"  # a run directory means the model it left
    model = load_component(folder if folder.is_dir() else path, trust=trust)
    if not isinstance(model, RewardModel):
        raise ValueError(f"{path} holds a {type(model).__name__}: expected a reward model")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use device {device!r}: {' '.join(str(error).split())[:200]}") from error
    said: dict[str, Any] = {"path": str(path), "class_path": f"{type(model).__module__}.{type(model).__qualname__}"}
    if folder.is_dir():
        said |= {"hash": component_hash(folder), "init_args": read_spec(folder)["init_args"]}
    return model.eval(), said
