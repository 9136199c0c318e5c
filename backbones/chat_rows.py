"""Prompts as rows of a Hugging Face data set in TRL's conversational form, with pictures as PNG."""

import io
from typing import Any

from PIL import Image
from torch import Tensor

from .chat import Prompt


def content_of(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the content of the turn that holds a prompt: texts, and a place for every picture.

    Args:
        prompt: Texts and pictures.
    """
    return [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "text": None} for p in prompt]


def pictures_of(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the pictures of a prompt as values of ``datasets.Image``.

    Args:
        prompt: Texts and pictures, uint8 (3, H, W).
    """
    found: list[dict[str, Any]] = []
    for part in prompt:
        if isinstance(part, Tensor):
            stream = io.BytesIO()
            Image.fromarray(part.permute(1, 2, 0).cpu().numpy()).save(stream, "PNG")
            found.append({"bytes": stream.getvalue(), "path": None})
    return found


__all__ = ["content_of", "pictures_of"]
