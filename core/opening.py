"""Opens saved components for use, wherever they are kept, and says which they are."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from .hub import SPEC, class_path, component_hash, load_component, read_spec
from .interfaces import Component, RewardModel

C = TypeVar("C", bound=Component)


def open_component(
    path: str | Path, kind: type[C] | tuple[type[C], ...], expected: str, device: str = "auto", trust: bool = False
) -> tuple[C, dict[str, Any]]:
    """Open a saved component of a kind for use.

    Args:
        path: Folder, or repository ``owner/name``; a run directory means the model it left.
        kind: What it has to be.
        expected: That in words, such as ``"a reward model"``.
        device: Where it runs; ``"auto"`` takes a GPU where there is one.
        trust: Open classes outside guerdon.

    Returns:
        The component in evaluation mode; folder, class path and, for a folder, content hash and arguments.

    Raises:
        ValueError: If the folder holds another component, or there is no such device.
        FileNotFoundError: If there is nothing.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / SPEC).is_file() and (folder / "model").is_dir():
        folder = folder / "model"
    model = load_component(folder if folder.is_dir() else path, trust=trust)
    if not isinstance(model, kind):
        raise ValueError(f"{path} holds a {type(model).__name__}: expected {expected}")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use device {device!r}: {' '.join(str(error).split())[:200]}") from error
    identity: dict[str, Any] = {"path": str(path), "class_path": class_path(type(model))}
    if folder.is_dir():
        identity |= {"hash": component_hash(folder), "init_args": read_spec(folder)["init_args"]}
    return model.eval(), identity


def open_reward_model(
    path: str | Path, device: str = "auto", trust: bool = False
) -> tuple[RewardModel, dict[str, Any]]:
    """Open a saved reward model for use; see `open_component`.

    Raises:
        ValueError: If the folder holds another component, or there is no such device.
        FileNotFoundError: If there is nothing at the path.
    """
    return open_component(path, RewardModel, "a reward model", device, trust)


__all__ = ["open_component", "open_reward_model"]
