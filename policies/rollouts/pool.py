"""Worker processes that hold several environments and a copy of the policy each.

This module is separate from the data module: a worker imports it alone, and so starts without Lightning.
"""

import copy
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch

from ...core.batch import TrajectoryBatch
from ...core.interfaces import Policy
from ...core.sizes import DataSizes
from ...envs.task import Task
from ...envs.vector import Context, check_same_sizes, make_task, sizes_of
from .frames import RolloutFrames
from .pieces import Piece, batch_pieces
from .runner import Runner, split_evenly


@dataclass(frozen=True, kw_only=True)
class TaskSetting:
    """Settings from which a worker builds its environments."""

    task: str | Sequence[str]
    """Name of the task, see `guerdon.make_task`, or names of several tasks with the same state and action sizes."""
    horizon: int | None = None
    """Time limit in control steps; None takes that of each task."""
    end_on_success: bool = True
    """Whether the first success ends an episode."""
    task_seed: int = 0
    """Seed that fixes the contexts."""
    frames: RolloutFrames | None = None
    """Cameras that are rendered; None renders nothing."""
    spares: int = 0
    """Number of further simulators in each process, which reset in the background while the others play."""

    def __post_init__(self) -> None:
        """Check that there is a task, each named once, and the number of spares.

        Raises:
            ValueError: If not.
        """
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"task {list(self.tasks)}: expected at least one name, each once")
        if self.spares < 0:
            raise ValueError(f"spares {self.spares}: expected a number of simulators, 0 or more")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in their order."""
        return (self.task,) if isinstance(self.task, str) else tuple(self.task)

    def make(self, number: int) -> Task:
        """Build one simulator of a task.

        Args:
            number: Number of the task in the order of ``tasks``.
        """
        return make_task(self.tasks[number], self.horizon, self.task_seed)


def check_tasks(sizes: Sequence[DataSizes]) -> None:
    """Check that tasks can be played in one run.

    Args:
        sizes: Name and sizes of each task, in their order.

    Raises:
        ValueError: If sizes differ, or two tasks call themselves the same, so that their contexts cannot be told apart.
    """
    names = [one.name for one in sizes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two of the tasks call themselves {twice[0]!r}: give each class a name of its own")
    check_same_sizes(sizes)


class WorkerError(RuntimeError):
    """Failure of a worker process; the message holds its traceback."""


class WorkerPool:
    """Pool of processes that run a policy in several environments each.

    On few cores a process with several environments and its own copy of the policy beats one process per environment:
    only weights are sent to it, and only finished pieces come back.

    Args:
        setting: Tasks that are run.
        envs: Number of environments in all; they are split evenly over the processes. Environment i plays task number
            i modulo the number of tasks.
        workers: Number of processes; 0 runs everything in this one.
        sizes: Names and sizes of the tasks, if they are known and checked; None builds each task once to read them.

    Raises:
        ValueError: If there are fewer environments than workers or tasks, a task is unknown, or tasks cannot be played
            together.
    """

    seconds: list[float]
    """Time that each worker took for the latest order, in seconds; the slowest keeps the others waiting. Empty before
    the first order, and where there is no worker."""

    def __init__(
        self, setting: TaskSetting, envs: int, workers: int = 0, sizes: Sequence[DataSizes] | None = None
    ) -> None:
        if envs < max(1, workers):
            raise ValueError(f"expected at least one environment per worker, got {envs} for {workers}")
        if envs < len(setting.tasks):
            raise ValueError(
                f"expected at least one environment per task, got {envs} for {len(setting.tasks)}: each holds the "
                f"simulator of one task; set envs to {len(setting.tasks)} or a multiple of it"
            )
        self.setting, self.envs, self.seconds = setting, envs, []
        self._runner: Runner | None = None
        self._links: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._share = split_evenly(envs, max(1, workers))
        self._first = [sum(self._share[:number]) for number in range(len(self._share))]
        if workers == 0:
            self._runner = _make_runner(setting, envs)
            return
        if sizes is None:  # what is wrong with a task fails here, not in a worker
            sizes = read_sizes(setting)
        self._names = [one.name for one in sizes]
        spawn = multiprocessing.get_context("spawn")
        for count, first in zip(self._share, self._first, strict=True):
            ours, theirs = spawn.Pipe()
            order = (theirs, setting, count, first, os.getcwd())
            process = spawn.Process(target=_work, args=order, daemon=True)
            process.start()
            theirs.close()
            self._links.append(ours)
            self._processes.append(process)

    def collect(self, policy: Policy, steps: int, contexts: Sequence[Context], seed: int) -> list[Piece]:
        """Act for about ``steps`` environment steps in all; see `guerdon.policies.rollouts.runner.Runner.collect`."""
        if self._runner is not None:
            return self._runner.collect(policy, steps, contexts, torch.Generator().manual_seed(seed))
        shares = [max(1, steps * count // self.envs) for count in self._share]
        answers = self._ask([("collect", share, list(contexts)) for share in shares], policy, seed)
        return [piece for answer in answers for piece in answer]

    def play(
        self,
        policy: Policy,
        contexts: Sequence[Context],
        seed: int,
        deterministic: bool = True,
        one_by_one: bool = False,
    ) -> list[Piece]:
        """Play one whole episode from every context; see `guerdon.policies.rollouts.runner.Runner.play`.

        With ``one_by_one`` an episode is the same, bit by bit, whatever the number of workers and environments is.
        """
        if self._runner is not None:
            return self._runner.play(policy, contexts, torch.Generator().manual_seed(seed), deterministic, one_by_one)
        dealt = self._deal(contexts)
        orders = [
            ("play", (deterministic, (seed, places) if one_by_one else None), [contexts[place] for place in places])
            for places in dealt
        ]
        answers = self._ask(orders, policy, seed)
        found = {
            place: piece
            for places, pieces in zip(dealt, answers, strict=True)
            for place, piece in zip(places, pieces, strict=True)
        }
        return [found[place] for place in range(len(contexts))]

    def _deal(self, contexts: Sequence[Context]) -> list[list[int]]:
        """Deal the places of contexts to the workers that play their tasks, in turns.

        Raises:
            ValueError: If no worker plays the task of a context.
        """
        players: dict[str, list[int]] = {name: [] for name in self._names}
        for worker, (first, count) in enumerate(zip(self._first, self._share, strict=True)):
            for number in dict.fromkeys(i % len(self._names) for i in range(first, first + count)):
                players[self._names[number]].append(worker)
        dealt: list[list[int]] = [[] for _ in self._share]
        turn = dict.fromkeys(self._names, 0)
        for place, context in enumerate(contexts):
            if context.task not in players:
                raise ValueError(f"no environment plays {context.task}: they play {', '.join(self._names)}")
            of = players[context.task]
            dealt[of[turn[context.task] % len(of)]].append(place)
            turn[context.task] += 1
        return dealt

    def _ask(self, orders: Sequence[tuple[Any, ...]], policy: Policy, seed: int) -> list[list[Piece]]:
        """Send every worker its order, and wait for all answers, so that none is left in a pipe.

        Raises:
            WorkerError: If a worker died or failed, or the pool is closed.
        """
        if not self._links:
            raise WorkerError("the workers were closed: make a new pool")
        if any(p.device.type != "cpu" for p in policy.parameters()):
            policy = copy.deepcopy(policy).cpu()
        weights = pickle.dumps(policy)  # by value: torch's own way would share memory with the policy in training
        answers: list[list[Piece]] = []
        failures: list[str] = []
        seconds: list[float] = []
        asked = [
            self._send(link, (*order, weights, seed * 1_009 + number))
            for number, (link, order) in enumerate(zip(self._links, orders, strict=True))
        ]
        for link, process, sent in zip(self._links, self._processes, asked, strict=True):
            try:
                if not sent:
                    raise EOFError
                answer, took = link.recv()
            except (EOFError, OSError):
                process.join(timeout=1)
                failures.append(f"a worker process died (exit code {process.exitcode}): out of memory, or killed")
                continue
            if isinstance(answer, str):
                failures.append(f"a worker process failed:\n{answer}")
            else:
                answers.append(cast(list[Piece], answer))
                seconds.append(took)
        if failures:
            raise WorkerError(failures[0])
        self.seconds = seconds
        return answers

    @staticmethod
    def _send(link: Connection, order: tuple[Any, ...]) -> bool:
        try:
            link.send(order)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End the workers and free the simulators."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None
        for link in self._links:
            link.close()
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()  # in the middle of a rollout that is not needed any more
                process.join()
            process.close()
        self._links, self._processes = [], []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_sizes(setting: TaskSetting) -> list[DataSizes]:
    """Build each task once, and return its name and sizes.

    Raises:
        ValueError: If a task is unknown, or tasks cannot be played together.
    """
    found: list[DataSizes] = []
    for number in range(len(setting.tasks)):
        with closing(setting.make(number)) as task:
            found.append(sizes_of(task))
    check_tasks(found)
    return found


def _make_runner(setting: TaskSetting, envs: int, first: int = 0) -> Runner:
    return Runner(
        setting.task,
        envs,
        horizon=setting.horizon,
        end_on_success=setting.end_on_success,
        task_seed=setting.task_seed,
        frames=setting.frames,
        spares=setting.spares,
        first=first,
    )


def _work(link: Connection, setting: TaskSetting, envs: int, first: int, folder: str) -> None:
    """Run a worker: build the environments, and answer until the link closes. Ctrl-C is handled by the parent.

    Args:
        link: Link to the parent.
        setting: Tasks that are run.
        envs: Number of environments of this worker.
        first: Number of its first environment.
        folder: Current folder of the parent, from which it may import tasks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)  # a spawned process starts where its parent started, not where that is now
    torch.set_num_threads(1)
    runner: Runner | None = None
    while True:
        try:
            kind, amount, contexts, weights, seed = link.recv()
        except (EOFError, OSError):
            break
        begun = time.perf_counter()
        try:
            runner = runner or _make_runner(setting, envs, first)
            policy = cast(Policy, pickle.loads(weights))
            generator = torch.Generator().manual_seed(seed)
            if kind == "collect":
                answer: object = runner.collect(policy, amount, contexts, generator)
            else:
                deterministic, alone = amount
                if alone is not None:  # all workers share one seed: noise follows from it and the episode's place
                    generator = torch.Generator().manual_seed(alone[0])
                places = None if alone is None else alone[1]
                answer = runner.play(policy, contexts, generator, deterministic, alone is not None, places)
        except Exception:
            answer = traceback.format_exc()
        try:
            link.send((answer, time.perf_counter() - begun))
        except OSError:
            break
    os._exit(0)  # simulators' own clean-up at exit may hang without a display


def play_episodes(
    setting: TaskSetting,
    policy: Policy,
    contexts: Sequence[Context],
    envs: int = 8,
    workers: int = 0,
    seed: int = 0,
    deterministic: bool = True,
    one_by_one: bool = False,
) -> TrajectoryBatch:
    """Play one whole episode from every context, and return them as one batch in the order of the contexts.

    Args:
        setting: Tasks that are played.
        policy: Policy that acts.
        contexts: Initial states, of any of the tasks.
        envs: Number of environments in all.
        workers: Number of processes; 0 uses this one.
        seed: Random seed of the policy's noise.
        deterministic: Take the policy's deterministic chunks.
        one_by_one: Decide at one observation per forward pass, with noise of each episode's own: the same episodes bit
            by bit, whatever the number of environments and processes.
    """
    with WorkerPool(setting, envs, workers) as pool:
        pieces = pool.play(policy, contexts, seed, deterministic, one_by_one)
    return batch_pieces(pieces)
