"""Pools of workers that hold several environments and, unless it is too large, a copy of the policy each.

This module is separate from the data module: a worker imports it alone, and so starts without Lightning.
"""

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from ...core.batch import TrajectoryBatch
from ...core.interfaces import Policy
from ...core.sizes import DataSizes
from ...envs.task import Context
from .decisions import Asked
from .frames import RolloutFrames
from .host import Answer, Collect, Order, Play
from .links import InProcess, Link, ProcessLink, WorkerError, packed_policy
from .pieces import Piece, batch_pieces
from .runner import split_evenly
from .setting import TaskSetting, check_tasks
from .simulators import Losses
from .worker import Worker


@runtime_checkable
class Pool(Protocol):
    """Pool of environments that a policy acts in, in this process, in others, or on other machines."""

    lost: Losses
    """What was lost since the pool was made."""

    def order(
        self,
        policy: Policy,
        steps: int,
        contexts: Sequence[Context],
        seed: int,
        version: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Order rollouts of a policy as it is now; see `WorkerPool.order`."""
        ...

    def answer(self) -> list[Piece]:
        """Wait for the rollouts that were ordered."""
        ...

    def play(self, policy: Policy, contexts: Sequence[Context], seed: int, deterministic: bool = True) -> list[Piece]:
        """Play one whole episode from every context."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class WorkerPool:
    """Pool of processes that run a policy in several environments each.

    On few cores a process with several environments and its own copy of the policy beats one process per environment:
    only weights are sent to it, and only finished pieces come back. A policy too large to send stays here
    (``policy_stays``), and observations come to it.

    A worker that dies or hangs is started again. It repeats the unfinished episodes and the order, so that the result
    is that of an undisturbed run. If it fails again, its unfinished episodes are given up and counted in ``lost``, and
    it collects with another seed. A third failure is raised.

    Args:
        setting: Tasks that are run.
        envs: Number of environments in all; they are split evenly over the workers. Environment i plays task number
            i modulo the number of tasks.
        workers: Number of processes; 0 runs everything in this one.
        sizes: Names and sizes of the tasks, if they are known and checked; None builds each task once to read them.
        policy_stays: Whether the policy decides in this process.
        patience: Time in seconds without a step or decision after which a worker counts as hanging; None waits for
            ever.

    Raises:
        ValueError: If there are fewer environments than workers or tasks, a task is unknown, or tasks cannot be played
            together.
    """

    seconds: list[float]
    """Time that each worker took for the latest order, in seconds; the slowest keeps the others waiting. Empty before
    the first order."""

    def __init__(
        self,
        setting: TaskSetting,
        envs: int,
        workers: int = 0,
        sizes: Sequence[DataSizes] | None = None,
        policy_stays: bool = False,
        patience: float | int | None = 600.0,
    ) -> None:
        self._patience = patience
        if envs < max(1, workers):
            raise ValueError(f"expected at least one environment per worker, got {envs} for {workers}")
        if envs < len(setting.tasks):
            raise ValueError(
                f"expected at least one environment per task, got {envs} for {len(setting.tasks)}: each holds the "
                f"simulator of one task; set envs to {len(setting.tasks)} or a multiple of it"
            )
        self.setting, self.envs, self.seconds, self.lost = setting, envs, [], Losses()
        self.policy_stays = policy_stays
        self._share = split_evenly(envs, max(1, workers))
        self._first = [sum(self._share[:number]) for number in range(len(self._share))]
        if workers and sizes is None:  # what is wrong with a task fails here, not in a worker
            sizes = setting.sizes()
        self._told: set[str] = set()
        self._workers = [Worker(link, self._count, self._tell) for link in self._connect(workers)]
        if sizes is None:
            only = self._workers[0].link
            assert isinstance(only, InProcess)
            self._names = list(dict.fromkeys(task.name for task in only.host.runner.simulators.tasks))
        else:
            self._names = [one.name for one in sizes]

    def _connect(self, workers: int) -> "list[Link]":
        """Start the workers."""
        if workers == 0:
            return [InProcess(self.setting, self.envs)]
        pairs = zip(self._share, self._first, strict=True)
        return [ProcessLink(self.setting, count, first, self._patience) for count, first in pairs]

    @property
    def processes(self) -> list[int]:
        """Numbers (pid) of the worker processes; empty where everything runs in this one."""
        links = [worker.link for worker in self._workers]
        return [link.process.pid or 0 for link in links if isinstance(link, ProcessLink)]

    @property
    def unfinished(self) -> tuple[list[Piece], list[list[Context]]]:
        """Episodes that the latest rollouts left unfinished, and the contexts that each worker drew for later ones."""
        pieces = [piece for worker in self._workers for piece in worker.unfinished.pieces]
        return pieces, [list(worker.unfinished.prepared) for worker in self._workers]

    def order(
        self,
        policy: Policy,
        steps: int,
        contexts: Sequence[Context],
        seed: int,
        version: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Order rollouts of about ``steps`` environment steps in all, by a policy as it is now; ``answer`` waits.

        Args:
            policy: Policy that acts, in evaluation mode.
            steps: Number of environment steps over all environments.
            contexts: Initial states that new episodes are drawn from, each environment's from those of its task.
            seed: Random seed of contexts and noise.
            version: Version of the policy that is recorded with each decision; None records none.
            weights: Weight of each initial state in the draws, among those of its task; None draws all alike.
        """
        shares = [max(1, steps * count // self.envs) for count in self._share]
        several = len(self._share) > 1
        seeds = [seed * 1_009 + number if several else seed for number in range(len(self._share))]
        self._send(
            [
                Collect(steps=share, contexts=list(contexts), seed=own, version=version, weights=weights)
                for share, own in zip(shares, seeds, strict=True)
            ],
            policy,
        )

    def answer(self) -> list[Piece]:
        """Wait for the rollouts that were ordered.

        Raises:
            WorkerError: If a worker failed, or nothing was ordered.
        """
        answers = self._receive()
        for worker, answer in zip(self._workers, answers, strict=True):
            worker.unfinished = Answer(pieces=[p for p in answer.pieces if not p.end], prepared=answer.prepared)
        return [piece for answer in answers for piece in answer.pieces]

    def collect(
        self, policy: Policy, steps: int, contexts: Sequence[Context], seed: int, version: int | None = None
    ) -> list[Piece]:
        """Act for about ``steps`` environment steps in all; see `guerdon.policies.rollouts.runner.Runner.collect`."""
        self.order(policy, steps, contexts, seed, version)
        return self.answer()

    def play(
        self,
        policy: Policy,
        contexts: Sequence[Context],
        seed: int,
        deterministic: bool = True,
        one_by_one: bool = False,
        draws: Sequence[int] | None = None,
        version: int | None = None,
    ) -> list[Piece]:
        """Play one whole episode from every context; see `guerdon.policies.rollouts.runner.Runner.play`.

        Args:
            policy: Policy that acts, in evaluation mode.
            contexts: Initial states, of any of the tasks.
            seed: Random seed of the policy's noise.
            deterministic: Take the policy's deterministic chunks.
            one_by_one: Let the policy decide on one observation at a time, with noise that depends on the seed and the
                number of the episode alone. An episode is then the same, bit by bit, whatever the number of workers
                and environments and whatever else is played.
            draws: Number of the draw of each context, which becomes the group of its row; None groups by context.
            version: Version of the policy that is recorded with each decision; None records none.
        """
        dealt = self._deal(contexts)
        self._send(
            [
                Play(
                    contexts=[contexts[place] for place in places],
                    seed=seed if one_by_one or len(dealt) == 1 else seed * 1_009 + number,
                    deterministic=deterministic,
                    draws=None if draws is None else [draws[place] for place in places],
                    numbers=tuple(places) if one_by_one else None,
                    version=version,
                )
                for number, places in enumerate(dealt)
            ],
            policy,
        )
        answers = self._receive()
        found = {
            place: piece
            for places, answer in zip(dealt, answers, strict=True)
            for place, piece in zip(places, answer.pieces, strict=True)
        }
        return [found[place] for place in range(len(contexts))]

    def restore(self, pieces: Sequence[Piece], prepared: Sequence[Sequence[Context]] = ()) -> None:
        """Repeat unfinished episodes, so that the next rollouts go on with them.

        Args:
            pieces: Unfinished episodes that ``collect`` returned, here or in a pool before an interruption.
            prepared: Contexts that each worker drew for episodes to come; those of another number of workers are left
                out.

        Raises:
            WorkerError: If a worker fails again and again, or the pool is closed.
        """
        self._require_free()
        shares: list[list[Piece]] = [[] for _ in self._workers]
        for piece in pieces:
            # the environments of a pool of other size begin anew at 0
            holder = [i for i, first in enumerate(self._first) if first <= piece.env % self.envs]
            shares[holder[-1]].append(piece)
        drawn = prepared if len(prepared) == len(shares) else [()] * len(shares)
        for worker, share, own in zip(self._workers, shares, drawn, strict=True):
            worker.restore(Answer(pieces=share, prepared=list(own)))
        for worker in self._workers:
            worker.reply()

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

    def _require_free(self) -> None:
        if not self._workers:
            raise WorkerError("the workers were closed: make a new pool")
        if any(worker.busy for worker in self._workers):
            raise WorkerError("an order is being carried out: wait for its answer first")

    def _send(self, orders: Sequence[Order], policy: Policy) -> None:
        """Send every worker its order, with the policy unless it stays.

        Raises:
            WorkerError: If the pool is closed, or carries out an order.
        """
        self._require_free()
        weights: Any = None
        if isinstance(self._workers[0].link, InProcess) and not self.policy_stays:
            weights = policy
        elif not self.policy_stays:
            if any(p.device.type != "cpu" for p in policy.parameters()):
                policy = copy.deepcopy(policy).cpu()
            weights = self._pack(policy)
        for worker, order in zip(self._workers, orders, strict=True):
            worker.begin(order, weights, policy if self.policy_stays else None)

    def _pack(self, policy: Policy) -> Any:
        """Make what is sent of a policy."""
        return packed_policy(policy)

    def _receive(self) -> list[Answer]:
        """Wait for all answers, so that none is left in a link.

        Raises:
            WorkerError: If a worker failed, or failed to start again.
        """
        if not any(worker.busy for worker in self._workers):
            raise WorkerError("nothing was ordered, or the workers were closed")
        answers: dict[int, Answer] = {}
        failures: list[Exception] = []
        waiting = list(range(len(self._workers)))
        try:
            while waiting:
                questions: dict[int, Asked] = {}
                for number in waiting:
                    try:
                        reply = self._workers[number].reply()
                    except WorkerError as error:
                        failures.append(error)
                        continue
                    if isinstance(reply, Answer):
                        answers[number] = reply
                    else:
                        questions[number] = reply
                for number, question in questions.items():
                    self._workers[number].decide(question)
                waiting = list(questions)
        except BaseException:
            if not isinstance(self._workers[0].link, InProcess):
                self.close()  # answers that nobody waits for would be taken for those of the next order
            raise
        if failures:
            raise failures[0]
        found = [answers[number] for number in range(len(self._workers))]
        self.seconds = [answer.seconds for answer in found]
        return found

    def _count(self, lost: Losses) -> None:
        self.lost.merge(lost)
        for reason in lost.reasons:
            self._tell(reason)

    def _tell(self, reason: str) -> None:
        """Warn of a loss, once for each reason."""
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(reason, RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """End the workers and free the simulators."""
        links = [worker.link for worker in self._workers]
        for link in links:
            if isinstance(link, ProcessLink):
                link.hang_up()  # all end at the same time
        for link in links:
            link.close()
        self._workers = []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
        one_by_one: Let the policy decide on one observation at a time, so that an episode does not depend on the number
            of environments and workers; see `WorkerPool.play`.
    """
    with WorkerPool(setting, envs, workers) as pool:
        pieces = pool.play(policy, contexts, seed, deterministic, one_by_one)
    return batch_pieces(pieces)


__all__ = [
    "Pool",
    "RolloutFrames",
    "TaskSetting",
    "WorkerError",
    "WorkerPool",
    "check_tasks",
    "play_episodes",
]
