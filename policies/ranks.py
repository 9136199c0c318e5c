"""Statistics over all processes of a distributed run, so that they do not depend on how a batch was divided."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ..core.returns import standardise

_JOINED: ContextVar[bool] = ContextVar("joined", default=False)


@contextmanager
def joined_ranks(joined: bool) -> Generator[None]:
    """Compute statistics within the block over all ranks, each of which must enter it.

    Outside of such a block every process computes alone: advantages that one rank asks for by itself wait for nobody.

    Args:
        joined: Whether there is more than one rank.
    """
    before = _JOINED.set(joined)
    try:
        yield
    finally:
        _JOINED.reset(before)


def over_ranks(values: Shaped[Tensor, "N ..."]) -> tuple[Shaped[Tensor, "K ..."], slice]:
    """Join the values of all ranks in the order of the ranks, and tell where this rank's own are.

    Args:
        values: Values of this rank; each rank may have another number N of them, or none.

    Returns:
        The values of all ranks, and the slice of this rank's. Outside of ``joined_ranks`` these are ``values`` alone.
    """
    if not _JOINED.get() or not dist.is_initialized():
        return values, slice(0, len(values))
    ranks, mine = dist.get_world_size(), dist.get_rank()
    sizes = [torch.zeros((), dtype=torch.long, device=values.device) for _ in range(ranks)]
    dist.all_gather(sizes, torch.tensor(len(values), device=values.device))
    counts = [int(size) for size in sizes]
    padded = values.new_zeros((max(counts), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    start = sum(counts[:mine])
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]), slice(start, start + len(values))


def standardise_over_ranks(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standardise real entries with the mean and standard deviation of those of all ranks; see `standardise`.

    Args:
        x: Numbers of this rank.
        mask: Entries that count.

    Raises:
        ValueError: If a real entry of any rank is NaN or infinite.
    """
    every, own = over_ranks(x[mask])
    result = torch.zeros_like(x)
    result[mask] = standardise(every, torch.ones_like(every, dtype=torch.bool))[own]
    return result


__all__ = ["joined_ranks", "over_ranks", "standardise_over_ranks"]
