"""Episodes of chosen quality: expert, noisy, aborted, random."""

from collections.abc import Mapping

import numpy as np

from .experts import Controller, has_expert, scripted_expert
from .task import Context, Task

QUALITIES = ("expert", "noisy", "aborted", "random")

MIXED: Mapping[str, float] = {"expert": 0.4, "noisy": 0.3, "aborted": 0.15, "random": 0.15}
"""The mixture `guerdon collect` records unless told otherwise."""

NOISE = 0.5
"""Default noise of noisy experts, in half ranges of the action: enough that some of them fail."""


class Behaviour:
    """Somebody acting in one episode: called with each state, returns an action or None to stop there."""

    def __call__(self, state: np.ndarray) -> np.ndarray | None:
        """Act on a state (S,)."""
        raise NotImplementedError


class Expert(Behaviour):
    """The scripted expert as it is."""

    def __init__(self, expert: Controller) -> None:
        self._expert = expert

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """See `Behaviour`."""
        return self._expert(state)


class Constant(Behaviour):
    """The same action (A,) at every step."""

    def __init__(self, action: np.ndarray) -> None:
        self._action = action

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """See `Behaviour`."""
        return self._action


class RandomWalk(Behaviour):
    """Actions that wander: a stationary autoregressive process, so that the arm really goes somewhere.

    Args:
        size: A.
        generator: source of randomness.
        persistence: correlation of one action with the next, in [0, 1).
        scale: standard deviation of each dimension, in half ranges.
    """

    def __init__(self, size: int, generator: np.random.Generator, persistence: float = 0.9, scale: float = 0.8) -> None:
        self._generator, self._persistence, self._scale = generator, persistence, scale
        self._action = generator.normal(0.0, scale, size)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """See `Behaviour`."""
        fresh = self._generator.normal(0.0, self._scale, self._action.shape)
        self._action = self._persistence * self._action + np.sqrt(1 - self._persistence**2) * fresh
        return np.clip(self._action, -1.0, 1.0)


class NoisyExpert(Behaviour):
    """The expert with Gaussian noise on every action and, now and then, a burst of wandering instead of it.

    Args:
        expert: whom to disturb.
        size: A.
        generator: source of randomness.
        noise: standard deviation, in half ranges.
        burst_rate: probability per step that a burst begins.
        burst_steps: shortest and longest burst.
    """

    def __init__(
        self,
        expert: Controller,
        size: int,
        generator: np.random.Generator,
        noise: float = NOISE,
        burst_rate: float = 0.015,
        burst_steps: tuple[int, int] = (5, 15),
    ) -> None:
        self._expert, self._size, self._generator = expert, size, generator
        self._noise, self._burst_rate, self._burst_steps = noise, burst_rate, burst_steps
        self._burst: RandomWalk | None = None
        self._left = 0

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """See `Behaviour`."""
        if self._left == 0 and self._generator.random() < self._burst_rate:
            self._burst = RandomWalk(self._size, self._generator)
            self._left = int(self._generator.integers(*self._burst_steps, endpoint=True))
        action = self._expert(state)
        if self._left > 0 and self._burst is not None:
            self._left -= 1
            action = self._burst(state)
        return np.clip(action + self._generator.normal(0.0, self._noise, self._size), -1.0, 1.0)


class Aborted(Behaviour):
    """The expert up to a point, then somebody who holds still, drifts off or wanders for a while, and stops.

    Args:
        expert: who begins.
        size: A.
        generator: source of randomness.
        abort_at: steps of the expert.
        afterwards: steps until the end.
    """

    def __init__(
        self, expert: Controller, size: int, generator: np.random.Generator, abort_at: int, afterwards: int
    ) -> None:
        self._expert, self._abort_at, self._end = expert, abort_at, abort_at + afterwards
        self._step = 0
        drift = np.clip(generator.normal(0.0, 0.7, size), -1.0, 1.0)
        walk = RandomWalk(size, generator)
        self._after: Controller = [Constant(np.zeros(size)), Constant(drift), walk][generator.integers(3)]

    def __call__(self, state: np.ndarray) -> np.ndarray | None:
        """See `Behaviour`."""
        self._step += 1
        if self._step > self._end:
            return None
        return self._expert(state) if self._step <= self._abort_at else self._after(state)


def expert_steps(task: Task, context: Context) -> int:
    """Steps the scripted expert needs to its first success from a context, or the task's horizon if it fails.

    It runs the expert, and leaves the task in the middle of an episode.
    """
    expert = scripted_expert(task.name)
    state = task.reset(context)
    for count in range(1, task.horizon + 1):
        step = task.step(expert(state))
        if step.success:
            return count
        state = step.state
    return task.horizon


def behaviour(
    task: Task, context: Context, quality: str, generator: np.random.Generator, noise: float = NOISE
) -> Behaviour:
    """Somebody of a given quality, for one episode.

    An aborted expert gives up after 20 to 80 % of the steps the expert needs from this very context (found by running
    it, so that giving up means failing), and ends 5 to 25 steps later.

    Args:
        task: where to act; it must be reset afterwards.
        context: the initial state of the episode.
        quality: one of `QUALITIES`.
        generator: source of randomness.
        noise: upper end of the noise of noisy experts, in half ranges; each episode draws its own from the upper half.

    Raises:
        ValueError: an unknown quality, or one that needs an expert where there is none.
    """
    if quality not in QUALITIES:
        raise ValueError(f"unknown quality {quality!r}: expected one of {', '.join(QUALITIES)}")
    if quality == "random":
        return RandomWalk(task.action_size, generator)
    if not has_expert(task.name):
        raise ValueError(f"{task.name} has no scripted expert: only quality 'random' can be collected, not {quality!r}")
    expert = scripted_expert(task.name)
    if quality == "expert":
        return Expert(expert)
    if quality == "noisy":
        return NoisyExpert(expert, task.action_size, generator, generator.uniform(noise / 2, noise))
    needed = expert_steps(task, context)
    abort_at = max(1, int(generator.uniform(0.2, 0.8) * needed))
    afterwards = int(generator.integers(5, 25, endpoint=True))
    return Aborted(expert, task.action_size, generator, abort_at, afterwards)
