"""Behaviours of chosen quality: expert, noisy, aborted, random."""

from collections.abc import Callable, Mapping

import numpy as np

from ..datasets.episodes import Column
from .task import EXPERT_NOISE as NOISE
from .task import Context, Controller, ExpertTask, Task, expert_noise

QUALITIES = ("expert", "noisy", "aborted", "random")
"""Qualities that are collected without a policy; the place of each is the ``source`` of its episodes."""

POLICY = "policy"
"""Quality of the episodes in which a policy acts; their ``source`` comes after those of `QUALITIES`."""

SOURCES = (*QUALITIES, POLICY)
"""Every recorded quality, in the order of the numbers in ``source``, which are fixed: append, never reorder."""

MIXED: Mapping[str, float] = {"expert": 0.4, "noisy": 0.3, "aborted": 0.15, "random": 0.15}
"""Default mixture of `guerdon collect`."""


class Behaviour:
    """Base of what acts in one episode; a subclass writes ``__call__``.

    Actions are in half ranges: −1 is the lowest of each dimension and 1 the highest.
    """

    def __call__(self, state: np.ndarray) -> np.ndarray | None:
        """Return the action (A,) for a state (S,), or None to end the episode."""
        raise NotImplementedError

    def records(self) -> Mapping[str, Column]:
        """Return what is recorded of the episode so far in addition to states, actions and rewards: nothing here."""
        return {}


ActorMaker = Callable[[Task, Context, np.random.Generator], Behaviour]
"""Function that makes what acts in one episode: from the task, its initial state and the episode's random generator.
The behaviour acts in the next episode; the task is reset to the initial state before its first call."""


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
        noise: Standard deviation of the noise, of all dimensions or of each (A,), in half ranges of the action.
        burst_rate: Probability per step that a burst begins.
        burst_steps: Shortest and longest burst, in control steps.
        disturbed: Dimensions (A,) that a burst takes over, bool; the expert keeps the others. None takes over all.
    """

    def __init__(
        self,
        expert: Controller,
        size: int,
        generator: np.random.Generator,
        noise: float | np.ndarray = NOISE,
        burst_rate: float = 0.015,
        burst_steps: tuple[int, int] = (5, 15),
        disturbed: np.ndarray | None = None,
    ) -> None:
        self._expert, self._size, self._generator = expert, size, generator
        self._noise, self._burst_rate, self._burst_steps = noise, burst_rate, burst_steps
        self._disturbed = np.ones(size, bool) if disturbed is None else disturbed
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
            action = np.where(self._disturbed, self._burst(state), action)
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


class _Late:
    """Controller that is made at its first call: a scripted expert may read the episode that it acts in.

    Args:
        make: Function that makes the controller.
    """

    def __init__(self, make: Callable[[], Controller]) -> None:
        self._make, self._controller = make, None

    _controller: Controller | None

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the action (A,) for a state (S,)."""
        if self._controller is None:
            self._controller = self._make()
        return self._controller(state)


class _Bounds:
    """Conversion between the bounds of a task's actions and half ranges.

    Args:
        task: Task.
    """

    def __init__(self, task: Task) -> None:
        low, high = np.asarray(task.action_low, np.float64), np.asarray(task.action_high, np.float64)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self.plain = bool((low == -1).all() and (high == 1).all())

    def expert(self, make: Callable[[], Controller]) -> Controller:
        """Return a controller in half ranges for an expert in the task's bounds."""
        controller = _Late(make)
        return controller if self.plain else lambda state: (controller(state) - self._middle) / self._half

    def behaviour(self, actor: Behaviour) -> Behaviour:
        """Return a behaviour in the task's bounds for one in half ranges."""
        return actor if self.plain else _Scaled(actor, self._middle, self._half)


class _Scaled(Behaviour):
    """Behaviour in the bounds of a task, made from one in half ranges."""

    def __init__(self, actor: Behaviour, middle: np.ndarray, half: np.ndarray) -> None:
        self._actor, self._middle, self._half = actor, middle, half

    def __call__(self, state: np.ndarray) -> np.ndarray | None:
        """See `Behaviour`."""
        action = self._actor(state)
        return None if action is None else self._middle + self._half * action


def expert_steps(task: ExpertTask, context: Context) -> int:
    """Count the steps that the scripted expert needs to its first success; the task's horizon if it fails.

    The expert is run, and the task is left in the middle of an episode.

    Args:
        task: Task with a scripted expert.
        context: Initial state.
    """
    state = task.reset(context)
    expert = task.expert()
    for count in range(1, task.horizon + 1):
        step = task.step(expert(state))
        if step.success:
            return count
        state = step.state
    return task.horizon


def behaviour(
    task: Task, context: Context, quality: str, generator: np.random.Generator, noise: float | int | None = None
) -> Behaviour:
    """Make the behaviour of a given quality for one episode.

    An aborted expert gives up after 20 to 80 % of the steps that the expert needs from this context, and ends 5 to 25
    steps later. That number is found by running the expert, so that giving up means failing.

    The behaviour acts in the next episode: reset the task to the context before its first call, which makes the expert.
    Its actions are in the task's bounds.

    Args:
        task: Task to act in; it must be reset afterwards.
        context: Initial state of the episode.
        quality: One of `QUALITIES`.
        generator: Random generator.
        noise: Largest noise of noisy experts, in half ranges of the action; None takes the task's own, see
            `guerdon.envs.task.expert_noise`. Each episode draws its noise between half of it and all of it.

    Raises:
        ValueError: If the quality is unknown, or needs an expert and the task has none.
    """
    if quality not in QUALITIES:
        raise ValueError(f"unknown quality {quality!r}: expected one of {', '.join(QUALITIES)}")
    bounds = _Bounds(task)
    if quality == "random":
        return bounds.behaviour(RandomWalk(task.action_size, generator))
    if not isinstance(task, ExpertTask):
        raise ValueError(f"{task.name} has no scripted expert: only quality 'random' can be collected, not {quality!r}")
    expert = bounds.expert(task.expert)
    if quality == "expert":
        return bounds.behaviour(Expert(expert))
    if quality == "noisy":
        own, largest = expert_noise(task), expert_noise(task, noise)
        drawn = _draw_noise(largest, generator)
        return bounds.behaviour(NoisyExpert(expert, task.action_size, generator, drawn, disturbed=own > 0))
    needed = expert_steps(task, context)
    abort_at = max(1, int(generator.uniform(0.2, 0.8) * needed))
    afterwards = int(generator.integers(5, 25, endpoint=True))
    return bounds.behaviour(Aborted(expert, task.action_size, generator, abort_at, afterwards))


def _draw_noise(largest: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw the noise (A,) of one episode: one share, from half to all, of the largest noise of every dimension."""
    peak = float(largest.max(initial=0.0))
    level = generator.uniform(peak / 2, peak)
    return level * (largest / (peak or 1.0))
