"""Decisions taken one observation at a time, with noise of each episode's own, so that nothing else moves a bit."""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

from ...core.batch import Decision, Observation
from ...core.interfaces import Policy


def episode_generator(seed: int, place: int) -> torch.Generator:
    """Make the random generator of the noise of one episode.

    Args:
        seed: Random seed of all episodes.
        place: Place of the episode in the order of its contexts.
    """
    drawn = np.random.SeedSequence([seed % (1 << 64), place]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(drawn[0]) << 31 | int(drawn[1]) >> 1)


@contextmanager
def global_noise_restored(policy: Policy) -> Generator[None]:
    """Restore torch's global generators at the end of the block: `decide_alone` seeds them at each decision.

    Args:
        policy: Policy that acts in the block.
    """
    device = device_of(policy)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def decide_alone(policy: Policy, observation: Observation, generator: torch.Generator, deterministic: bool) -> Decision:
    """Let a policy decide on one observation, with the noise of its episode.

    A product of several rows rounds differently from that of one, and a policy's noise depends on how many rows draw it
    together. Policies that draw from torch's global generators find them seeded from that of the episode; see
    `global_noise_restored`.

    Args:
        policy: Policy that acts, on any device.
        observation: Observation at one decision point.
        generator: Random generator of the episode.
        deterministic: Take the policy's deterministic chunk.
    """
    device = device_of(policy)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes eighty times as long
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    return policy.act(observation if device.type == "cpu" else observation.to(device), deterministic, generator)


def device_of(policy: Policy) -> torch.device:
    """Return the device of a policy; that of one without parameters is the CPU.

    Args:
        policy: Policy.
    """
    parameter = next(policy.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


__all__ = ["decide_alone", "device_of", "episode_generator", "global_noise_restored"]
