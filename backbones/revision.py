"""Content hashes of the weights that made a feature, so that a cache never mixes two of them."""

import hashlib

import torch
from torch import nn

DIGITS = 16
"""Hexadecimal digits kept of a SHA-256: 64 bits, no accidental collision in any realistic cache."""


def weights_revision(module: nn.Module) -> str:
    """Hash of a module's parameters and buffers: names, types, shapes and bytes; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # flattened first: a 0-dimensional tensor cannot be viewed as bytes
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]
