"""Opening of published models of transformers: from a folder or the local cache, without running their code."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig


@dataclass(frozen=True, kw_only=True)
class PublishedKind:
    """Kind of published models: the classes that open one, and its description in errors."""

    model: Any
    """Class of transformers that opens the model, such as ``AutoModelForCausalLM``."""
    processor: Any
    """Class of transformers that opens what prepares its inputs."""
    types: Container[str]
    """Model types that can be opened."""
    name: str
    """Name of the kind, such as ``"language model"``."""
    lacks: str
    """What a model of another type does not do, such as ``"write text"``."""
    expected: str
    """What was expected instead, with an example."""


def open_published(
    name: str, revision: str | None, download: bool, dtype: torch.dtype, kind: PublishedKind
) -> tuple[Any, Any, str | None]:
    """Open a model and its processor or tokeniser, and find the commit of a repository.

    Args:
        name: A folder, or a repository on the Hugging Face hub.
        revision: Commit, branch or tag of that repository.
        download: Fetch a repository that is not in the local cache yet.
        dtype: Number type of the weights.
        kind: Kind of the model.

    Returns:
        Model, processor or tokeniser, and the commit; None for a folder.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it lacks a part.
        ValueError: If the checkpoint is of another type.
    """
    folder = Path(name).is_dir()
    if folder and revision is not None:
        raise ValueError(f"{name} is a folder, which has no revision {revision}: leave it out")
    if not folder and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"there is no folder {name}: {_WHERE}")
    where: dict[str, Any] = {"local_files_only": folder or not download, "trust_remote_code": False}
    where |= {} if revision is None else {"revision": revision}
    try:
        config: Any = AutoConfig.from_pretrained(name, **where)
        if config.model_type not in kind.types:
            raise ValueError(
                f"{name} is a {config.model_type} model, which does not {kind.lacks}: expected {kind.expected}"
            )
        processor: Any = kind.processor.from_pretrained(name, **where)
        model, report = kind.model.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **where
        )
    except OSError as error:
        told = " ".join(str(error).split())
        raise FileNotFoundError(f"cannot open the {kind.name} {name!r}: {told}; {_WHERE}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights, first {missing[0]!r}: the copy did not finish?")
    return model, processor, None if folder else getattr(model.config, "_commit_hash", None) or revision


_WHERE = (
    "expected a folder with config, safetensors and processor or tokeniser (if it was moved, change 'name' where it is "
    "written: in the YAML, or in component.json), or a repository in the local cache (nothing is downloaded unless "
    "download=True)"
)


__all__ = ["PublishedKind", "open_published"]
