"""Tiny OpenAI CLIP checkpoints with random weights for tests."""

import warnings
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from ..backbones.openai_clip import CLIP
from ..core.files import replacing


def tiny_clip(
    path: str | Path,
    format: Literal["archive", "state_dict", "safetensors"] = "archive",
    image_size: int = 32,
    width: int = 64,
    embed_dim: int = 32,
    seed: int = 0,
) -> Path:
    """Write a small CLIP checkpoint with random weights that openai-clip and guerdon open like a published one.

    Args:
        path: The file to write; it is replaced as a whole.
        format: ``"archive"``, a TorchScript archive as OpenAI publishes them; ``"state_dict"``, what ``torch.save``
            makes of the tensors; or ``"safetensors"``.
        image_size: Height and width of the images it reads, in pixels; a multiple of 16, its patch size.
        width: Width of both towers; a multiple of 64, the width of CLIP's attention heads.
        embed_dim: D, width of the features.
        seed: Random seed of the weights; equal arguments give equal weights in every format.

    Returns:
        The path.

    Raises:
        ValueError: If a size does not fit.
    """
    if image_size < 16 or image_size % 16 or width < 64 or width % 64:
        raise ValueError(f"image_size {image_size}, width {width}: expected positive multiples of 16 and of 64")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(embed_dim, image_size, 2, width, 16, 77, 49408, width, width // 64, 2).eval()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as fresh:
        if format == "archive":
            image, tokens = torch.zeros(1, 3, image_size, image_size), torch.zeros(1, 77, dtype=torch.long)
            inputs = {"encode_image": image, "encode_text": tokens, "forward": (image, tokens)}
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # TorchScript is deprecated, and OpenAI's format all the same
                torch.jit.save(torch.jit.trace_module(model, inputs), fresh)
        elif format == "state_dict":
            torch.save(model.state_dict(), fresh)
        else:
            save_file(model.state_dict(), fresh)
    return target
