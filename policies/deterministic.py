"""A policy without noise: the most likely chunk of another policy."""

from typing import Any

from ..core.batch import Decision, Observation
from ..core.interfaces import Policy


class Deterministic(Policy):
    """Policy that always takes the deterministic chunk of another one. It acts only; train the other policy.

    Args:
        policy: Policy whose chunks are taken.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.horizon = policy.horizon
        self.execute = int(getattr(policy, "execute", policy.horizon))

    def act(self, observation: Observation, deterministic: bool = False, generator: Any = None) -> Decision:
        """Take the deterministic chunk at each of M observations; the generator is not used."""
        return self.policy.act(observation, deterministic=True, generator=generator)


__all__ = ["Deterministic"]
