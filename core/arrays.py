"""Tensors, arrays and sequences of numbers, as numpy arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Numbers = Tensor | npt.NDArray[Any] | Sequence[Any]
"""Argument type of every metric."""


def as_array(x: Numbers) -> Array:
    """Convert to a numpy array; half precision becomes float32, which numpy can sort and sum."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
    return np.asarray(x)


def paired(x: Numbers, y: Numbers) -> tuple[Array, Array]:
    """Flatten both to arrays, without the places where either is NaN.

    Raises:
        ValueError: If lengths differ.
    """
    left, right = as_array(x).ravel(), as_array(y).ravel()
    if left.shape != right.shape:
        raise ValueError(f"expected as many of both, got {left.size} and {right.size}")
    kept = ~(np.isnan(left) | np.isnan(right))
    return left[kept], right[kept]
