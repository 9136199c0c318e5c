"""Online bootstrap: how often each member of an ensemble counts each sample, as a hash and not a state."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# P(X ≤ k) of a Poisson variable of mean 1, up to where float64 rounds it to 1
_POISSON = np.cumsum([math.exp(-1.0) / math.factorial(k) for k in range(19)])


def bootstrap_weights(episode: Int[Tensor, " B"], member: int, seed: int = 0) -> Float[Tensor, " B"]:
    """Draw how often a member counts each episode: Poisson of mean 1, a function of (seed, member, episode) alone.

    Args:
        episode: Index of each episode, or any other key of a sample.
        member: Index of the member.
        seed: Random seed, at least 0.

    Returns:
        Whole numbers of at least 0, on the host; about 37 % are 0.
    """
    state = np.full(len(episode), seed, np.uint64)
    for part in (np.full(len(episode), member, np.uint64), episode.cpu().numpy().astype(np.uint64)):
        state = _scrambled(_scrambled(state) ^ part)
    uniform = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy(np.searchsorted(_POISSON, uniform, side="right").astype(np.float32))


def hashed_keys(*parts: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Hash several numbers of each sample to one key, on the host.

    Args:
        parts: Numbers that together name a sample, such as an episode and an offset; at least one.
    """
    state = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        state = _scrambled(state ^ part.cpu().numpy().astype(np.uint64))
    return torch.from_numpy(state.view(np.int64))


def _scrambled(state: np.ndarray) -> np.ndarray:
    """Hash numbers with SplitMix64 (Steele et al. 2014), modulo 2^64: neighbouring numbers become unrelated."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


__all__ = ["bootstrap_weights", "hashed_keys"]
