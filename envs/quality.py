"""Behaviours of chosen quality: expert, noisy, aborted, random."""

from collections.abc import Mapping

import numpy as np

from .experts import Controller, has_expert, scripted_expert
from .task import Context, Task

QUALITIES = ("expert", "noisy", "aborted", "random")

MIXED: Mapping[str, float] = {"expert": 0.4, "noisy": 0.3, "aborted": 0.15, "random": 0.15}
"""Default mixture of `guerdon collect`."""

NOISE = 0.5
"""Default noise of noisy experts, in half ranges of the action: enough that some of them fail."""


class Behaviour:
    """Base of what acts in one episode; a subclass writes ``__call__``."""

    def __call__(self, state: np.ndarray) -> np.ndarray | None:
        """Return the action (A,) for a state (S,), or None to end the episode."""
        raise NotImplementedError


class Expert(Behaviour):
    """Behaviour of the scripted expert.

    Args:
        expert: Scripted expert.
    """

    def __init__(self, expert: Controller) -> None:
        self._expert = expert

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """See `Behaviour`."""
        return self._expert(state)


class Constant(Behaviour):
    """Behaviour with the same action at every step.

    Args:
        action: Action (A,).
    """

    def __init__(self, action: np.ndarray) -> None:
        self._action = action

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """See `Behaviour`."""
        return self._action


class RandomWalk(Behaviour):
    """Random actions from a stationary autoregressive process, so that the arm really moves.

    Args:
        size: Number A of action dimensions.
        generator: Random generator.
        persistence: Correlation of one action with the next, in [0, 1).
        scale: Standard deviation of each dimension, in half ranges of the action.
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
    """Expert with Gaussian noise on every action, and with occasional bursts of random actions instead of its own.

    Args:
        expert: Scripted expert.
        size: Number A of action dimensions.
        generator: Random generator.
        noise: Standard deviation of the noise, in half ranges of the action.
        burst_rate: Probability per step that a burst begins.
        burst_steps: Shortest and longest burst, in control steps.
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
    """Expert up to a step, then zero, constant or random actions for a while, then the end.

    Args:
        expert: Scripted expert.
        size: Number A of action dimensions.
        generator: Random generator; it also chooses what follows the expert.
        abort_at: Number of steps of the expert.
        afterwards: Number of steps from there to the end.
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
    """Count the steps that the scripted expert needs to its first success; the task's horizon if it fails.

    The expert is run, and the task is left in the middle of an episode.

    Args:
        task: Task with a scripted expert.
        context: Initial state.
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
    """Make the behaviour of a given quality for one episode.

    An aborted expert gives up after 20 to 80 % of the steps that the expert needs from this context, and ends 5 to 25
    steps later. That number is found by running the expert, so that giving up means failing.

    Args:
        task: Task to act in; it must be reset afterwards.
        context: Initial state of the episode.
        quality: One of `QUALITIES`.
        generator: Random generator.
        noise: Largest noise of noisy experts, in half ranges of the action; each episode draws its own between half of
            it and all of it.

    Raises:
        ValueError: If the quality is unknown, or needs an expert and the task has none.
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
