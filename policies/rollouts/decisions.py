"""Decisions of a policy in rollouts: what it is asked, what it recorded, and the checks between."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...core.batch import Decision, Observation
from ...core.interfaces import Policy
from .alone import decide_alone, episode_generator, global_noise_restored


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Observations on which a policy must decide."""

    observation: Observation
    """Observation of each running environment, M in all."""
    places: tuple[int, ...]
    """Number of the episode of each, in the order in which whole episodes were asked for."""
    steps: tuple[int, ...]
    """Number of steps of each episode so far."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """Decisions as plain arrays, which travel between processes."""

    chunk: np.ndarray
    """Actions (M, H, A) as the policy drew them."""
    executed: np.ndarray
    """Number of steps of each chunk that are executed, (M,) int."""
    behaviour: Mapping[str, np.ndarray]
    """What is recorded of each decision, name → (M, …)."""


def records_of(decision: Decision, version: int | None = None) -> Records:
    """Convert and check decisions.

    Args:
        decision: Decisions of a policy, M of them.
        version: Version of the policy, recorded as ``policy_version``; None records none.

    Raises:
        ValueError: If an action is not finite, or the number of executed steps is not 1 … H.
    """
    chunk = decision.chunk.detach().cpu().numpy()
    executed = decision.executed.cpu().numpy()
    if not np.isfinite(chunk).all():
        row = int(np.flatnonzero(~np.isfinite(chunk).all((1, 2)))[0])
        raise ValueError(
            f"expected a finite action, got {chunk[row].tolist()} from the policy: it diverged, or its input holds "
            "numbers that are not finite"
        )
    if len(executed) and not (1 <= executed.min() and executed.max() <= chunk.shape[1]):
        raise ValueError(
            f"expected decisions that execute 1 … {chunk.shape[1]} steps, got {sorted(set(executed.tolist()))}"
        )
    recorded = {"sample": decision.chunk, "log_prob": decision.log_prob, **decision.extras}
    behaviour = {name: part.detach().cpu().numpy() for name, part in recorded.items() if part is not None}
    if version is not None:
        behaviour["policy_version"] = np.full(len(chunk), version, np.int64)
    return Records(chunk=chunk, executed=executed, behaviour=behaviour)


class Acting:
    """Policy that decides in rollouts.

    Args:
        policy: Policy, in evaluation mode.
        generator: Random generator of its noise.
        deterministic: Take its deterministic chunks.
        version: Version that is recorded with each decision; None records none.
    """

    def __init__(
        self, policy: Policy, generator: torch.Generator, deterministic: bool = False, version: int | None = None
    ) -> None:
        self.policy, self.generator, self.deterministic, self.version = policy, generator, deterministic, version

    def __call__(self, asked: Asked) -> Records:
        """Decide on all observations at once."""
        return records_of(self.policy.act(asked.observation, self.deterministic, self.generator), self.version)


class ActingAlone:
    """Policy that decides on one observation at a time, with a random generator for each episode.

    A product of several rows rounds differently from that of one, and rows would share a generator. So an episode would
    depend, in its last digits and its noise, on what else is played at the moment; in this way it does not.

    Args:
        policy: Policy, in evaluation mode.
        seed: Random seed; the noise of an episode depends on it and on the number of the episode alone.
        deterministic: Take its deterministic chunks.
        numbers: Numbers of the episodes, by their place in the order; None numbers them by their places.
        version: Version that is recorded with each decision; None records none.
    """

    def __init__(
        self,
        policy: Policy,
        seed: int,
        deterministic: bool = True,
        numbers: Sequence[int] | None = None,
        version: int | None = None,
    ) -> None:
        self.policy, self.seed, self.deterministic = policy, seed, deterministic
        self.numbers, self.version = numbers, version
        self._generators: dict[int, torch.Generator] = {}

    def __call__(self, asked: Asked) -> Records:
        """Decide on each observation by itself."""
        found: list[Records] = []
        with global_noise_restored(self.policy):
            for row, place in enumerate(asked.places):
                number = place if self.numbers is None else self.numbers[place]
                if number not in self._generators or not asked.steps[row]:  # it begins, or begins again
                    self._generators[number] = episode_generator(self.seed, number)
                seen = asked.observation if len(asked.places) == 1 else asked.observation[row : row + 1]
                noise = self._generators[number]
                found.append(records_of(decide_alone(self.policy, seen, noise, self.deterministic), self.version))
        if len(found) == 1:
            return found[0]
        return Records(
            chunk=np.concatenate([one.chunk for one in found]),
            executed=np.concatenate([one.executed for one in found]),
            behaviour={name: _joined([one.behaviour[name] for one in found]) for name in found[0].behaviour},
        )


def hash_seed(*parts: int) -> int:
    """Hash numbers such as (seed, rank, iteration) to a seed of 48 bits, so that equal sums give different seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenate the records of single decisions; those of different widths stay apart in an array of objects."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    apart = np.empty(len(parts), object)
    for place, part in enumerate(parts):
        apart[place] = part[0]
    return apart


__all__ = ["Acting", "ActingAlone", "Asked", "Records", "hash_seed", "records_of"]
