"""Spare simulators, whose next episodes are prepared while others play."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from ...envs.task import Context, Task


@dataclass(frozen=True, kw_only=True)
class Start:
    """Beginning of an episode."""

    context: Context
    """Initial state."""
    place: int = 0
    """Number of the episode in the order in which episodes were asked for."""
    draw: int | None = None
    """Number of the draw of the context, which its rollouts share; None where contexts are drawn one by one."""


Supply = Callable[[str], Start | None]
"""Function that returns the start of the next episode of a task by its name, or None where there is no more."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Episode that was begun in a simulator."""

    start: Start
    task: Task
    """Simulator that was reset."""
    state: np.ndarray
    """First state (S,)."""


@dataclass(frozen=True)
class _Pending:
    start: Start
    task: Task
    state: "Future[np.ndarray]"


class Spares:
    """Idle simulators that reset to their next contexts in a background thread.

    Starts are taken from the supply when an episode begins, never when a reset is done: which episode starts where does
    not depend on the time that resets take. One thread runs all resets, one after the other, since simulators may seed
    a random generator that they share (robosuite seeds numpy's). The thread only resets: rendering contexts are bound
    to the thread that made them.

    Args:
        tasks: Idle simulators. A task without one is reset while its environment waits.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._idle: dict[str, list[Task]] = {}
        self._pending: dict[str, deque[_Pending]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guerdon-reset")
        for task in tasks:
            self._idle.setdefault(task.name, []).append(task)

    def begin(self, task: Task, supply: Supply) -> Prepared | None:
        """Exchange a simulator for the one whose episode was prepared first, and wait for that if need be.

        Args:
            task: Simulator that is free; it becomes a spare, unless its task has none.
            supply: Starts of the episodes to come.

        Returns:
            The episode that begins; None where the supply has no more.

        Raises:
            Exception: The error of the task if its reset failed. All simulators are kept.
        """
        self._prepare(task.name, supply)
        pending = self._pending.get(task.name)
        if not pending:
            start = supply(task.name)
            if start is None:
                return None
            return Prepared(start=start, task=task, state=self._thread.submit(task.reset, start.context).result())
        first = pending.popleft()
        try:
            state = first.state.result()
        except BaseException:
            self._idle[task.name].append(first.task)
            raise
        self._idle[task.name].append(task)
        self._prepare(task.name, supply)
        return Prepared(start=first.start, task=first.task, state=state)

    def _prepare(self, name: str, supply: Supply) -> None:
        """Begin the reset of every idle simulator of a task for which there is a start."""
        idle = self._idle.get(name, [])
        while idle:
            start = supply(name)
            if start is None:
                return
            task = idle.pop(0)
            future = self._thread.submit(task.reset, start.context)
            self._pending.setdefault(name, deque()).append(_Pending(start, task, future))

    def prepared(self) -> list[Context]:
        """List the contexts of the episodes that were begun here, in the order in which they will be used."""
        return [one.start.context for pending in self._pending.values() for one in pending]

    def drop(self) -> None:
        """Give up the episodes that were prepared, whether or not their resets failed.

        Resets in progress are waited for and none is cancelled, so that what a simulator did before does not depend on
        time.
        """
        for name, pending in self._pending.items():
            wait([one.state for one in pending])
            self._idle[name] += [one.task for one in pending]
            pending.clear()

    def close(self) -> None:
        """End the thread after the reset in progress, and close the idle simulators."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        tasks = [task for idle in self._idle.values() for task in idle]
        tasks += [one.task for pending in self._pending.values() for one in pending]
        self._idle, self._pending = {}, {}
        for task in tasks:
            task.close()


__all__ = ["Prepared", "Spares", "Start", "Supply"]
