"""Mean and standard deviation of the inputs of a model, over data that are read once."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def fit_moments(
    parts: Iterable[Float[Tensor, "_ W"]], width: int
) -> tuple[int, Float64[Tensor, " W"], Float64[Tensor, " W"]]:
    """Compute count, mean and standard deviation (ddof = 0) of vectors that come in parts, in double precision.

    Means and sums of squares are merged (Chan et al. 1983), so that large offsets cost no digits.

    Args:
        parts: Vectors, in any number of parts; a part may be empty.
        width: W, numbers per vector.

    Returns:
        Number of vectors, their mean, and their deviation; 1 where a number is constant up to rounding.
    """
    count, mean, square = 0, torch.zeros(width).double(), torch.zeros(width).double()
    for part in parts:
        seen = part.double().cpu()
        if not len(seen):
            continue
        total, gap = count + len(seen), seen.mean(0) - mean
        square += (seen - seen.mean(0)).square().sum(0) + gap.square() * count * len(seen) / total
        mean += gap * len(seen) / total
        count = total
    std = (square / max(count, 1)).sqrt()
    return count, mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0)


__all__ = ["fit_moments"]
