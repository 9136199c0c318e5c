"""Decisions taken one observation at a time, with noise of each episode's own, so that nothing else moves a bit."""

from collections.abc import Generator, Sequence
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
    device = _device(policy)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def decide_alone(
    policy: Policy, observation: Observation, generators: Sequence[torch.Generator], deterministic: bool
) -> Decision:
    """Let a policy decide at one observation per forward pass, and join what it returns.

    A product of several rows rounds differently from that of one, and a policy's noise depends on how many rows draw it
    together. Policies that draw from torch's global generators find them seeded from that of the episode; see
    `global_noise_restored`.

    Args:
        policy: Policy that acts, on any device.
        observation: Observation at M decision points, each of another episode.
        generators: Random generator of each episode, M in all.
        deterministic: Take the policy's deterministic chunks.
    """
    device = _device(policy)
    found: list[Decision] = []
    for row, generator in enumerate(generators):
        seed = int(torch.randint(1 << 62, (), generator=generator))
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes eighty times as long
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        one = observation if len(generators) == 1 else observation[row : row + 1]
        found.append(policy.act(one if device.type == "cpu" else one.to(device), deterministic, generator))
    if len(found) == 1:
        return found[0]
    log_probs = [one.log_prob for one in found if one.log_prob is not None]
    return Decision(
        chunk=torch.cat([one.chunk for one in found]),
        executed=torch.cat([one.executed for one in found]),
        log_prob=torch.cat(log_probs) if len(log_probs) == len(found) else None,
        extras={name: torch.cat([one.extras[name] for one in found]) for name in found[0].extras},
    )


def _device(policy: Policy) -> torch.device:
    parameter = next(policy.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


__all__ = ["decide_alone", "episode_generator", "global_noise_restored"]
