"""Worker processes that hold several environments and a copy of the policy each.

This module is separate from the data module: a worker imports it alone, and so starts without Lightning.
"""

import copy
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch

from ...core.batch import TrajectoryBatch
from ...core.interfaces import Policy
from ...envs.vector import Context, make_task
from .runner import Piece, Runner, batch_pieces, split_evenly


@dataclass(frozen=True, kw_only=True)
class TaskSetting:
    """Settings from which a worker builds its environments."""

    task: str
    """Name of the task, see `guerdon.make_task`."""
    horizon: int | None = None
    """Time limit in control steps; None takes the task's own."""
    end_on_success: bool = True
    """Whether the first success ends an episode."""
    task_seed: int = 0
    """Seed that fixes the contexts."""


class WorkerError(RuntimeError):
    """Failure of a worker process; the message holds its traceback."""


class WorkerPool:
    """Pool of processes that run a policy in several environments each.

    On few cores a process with several environments and its own copy of the policy beats one process per environment:
    only weights are sent to it, and only finished pieces come back.

    Args:
        setting: Task that is run.
        envs: Number of environments in all; they are split evenly over the processes.
        workers: Number of processes; 0 runs everything in this one.

    Raises:
        ValueError: If there are fewer environments than workers, or none, or the task is unknown.
    """

    def __init__(self, setting: TaskSetting, envs: int, workers: int = 0) -> None:
        if envs < max(1, workers):
            raise ValueError(f"expected at least one environment per worker, got {envs} for {workers}")
        self.setting, self.envs = setting, envs
        self._runner: Runner | None = None
        self._links: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._share = split_evenly(envs, max(1, workers))
        if workers == 0:
            self._runner = _make_runner(setting, envs)
            return
        make_task(setting.task, setting.horizon, setting.task_seed).close()  # a wrong name fails here, not in a worker
        spawn = multiprocessing.get_context("spawn")
        for count in self._share:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(theirs, setting, count), daemon=True)
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

    def play(self, policy: Policy, contexts: Sequence[Context], seed: int, deterministic: bool = True) -> list[Piece]:
        """Play one whole episode from every context; see `guerdon.policies.rollouts.runner.Runner.play`."""
        if self._runner is not None:
            return self._runner.play(policy, contexts, torch.Generator().manual_seed(seed), deterministic)
        workers = len(self._links)
        answers = self._ask([("play", deterministic, list(contexts[i::workers])) for i in range(workers)], policy, seed)
        return [answers[place % workers][place // workers] for place in range(len(contexts))]

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
        asked = [
            self._send(link, (*order, weights, seed * 1_009 + number))
            for number, (link, order) in enumerate(zip(self._links, orders, strict=True))
        ]
        for link, process, sent in zip(self._links, self._processes, asked, strict=True):
            try:
                if not sent:
                    raise EOFError
                answer = link.recv()
            except (EOFError, OSError):
                process.join(timeout=1)
                failures.append(f"a worker process died (exit code {process.exitcode}): out of memory, or killed")
                continue
            if isinstance(answer, str):
                failures.append(f"a worker process failed:\n{answer}")
            else:
                answers.append(cast(list[Piece], answer))
        if failures:
            raise WorkerError(failures[0])
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


def _make_runner(setting: TaskSetting, envs: int) -> Runner:
    return Runner(setting.task, envs, setting.horizon, setting.end_on_success, setting.task_seed)


def _work(link: Connection, setting: TaskSetting, envs: int) -> None:
    """Run a worker: build the environments, and answer until the link closes. Ctrl-C is handled by the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    runner: Runner | None = None
    while True:
        try:
            kind, amount, contexts, weights, seed = link.recv()
        except (EOFError, OSError):
            break
        try:
            runner = runner or _make_runner(setting, envs)
            policy = cast(Policy, pickle.loads(weights))
            generator = torch.Generator().manual_seed(seed)
            if kind == "collect":
                answer: object = runner.collect(policy, amount, contexts, generator)
            else:
                answer = runner.play(policy, contexts, generator, amount)
        except Exception:
            answer = traceback.format_exc()
        try:
            link.send(answer)
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
) -> TrajectoryBatch:
    """Play one whole episode from every context, and return them as one batch in the order of the contexts.

    Args:
        setting: Task that is played.
        policy: Policy that acts.
        contexts: Initial states.
        envs: Number of environments in all.
        workers: Number of processes; 0 uses this one.
        seed: Random seed of the policy's noise.
        deterministic: Take the policy's deterministic chunks.
    """
    with WorkerPool(setting, envs, workers) as pool:
        pieces = pool.play(policy, contexts, seed, deterministic)
    return batch_pieces(pieces)
