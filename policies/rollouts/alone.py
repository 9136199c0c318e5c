"""Decisions taken one observation at a time, with noise of each episode's own, so that nothing else moves a bit."""

from collections.abc import Sequence

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


def decide_alone(
    policy: Policy, observations: Sequence[Observation], generators: Sequence[torch.Generator], deterministic: bool
) -> Decision:
    """Let a policy decide at one observation per forward pass, and join what it returns.

    A product of several rows rounds differently from that of one, and a policy's noise depends on how many rows draw it
    together. Policies that draw from torch's global generator find it seeded from that of the episode, and it is
    restored afterwards.

    Args:
        policy: Policy that acts, on any device.
        observations: Observations with one decision point each.
        generators: Random generator of the episode of each observation.
        deterministic: Take the policy's deterministic chunks.
    """
    parameter = next(policy.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    found: list[Decision] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for observation, generator in zip(observations, generators, strict=True):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            found.append(policy.act(observation.to(device), deterministic, generator))
    log_probs = [one.log_prob for one in found if one.log_prob is not None]
    return Decision(
        chunk=torch.cat([one.chunk for one in found]),
        executed=torch.cat([one.executed for one in found]),
        log_prob=torch.cat(log_probs) if len(log_probs) == len(found) else None,
        extras={name: torch.cat([one.extras[name] for one in found]) for name in found[0].extras},
    )


__all__ = ["decide_alone", "episode_generator"]
