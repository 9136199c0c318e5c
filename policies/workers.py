"""Worker processes that hold several environments and a copy of the policy each, and the stream they feed."""

import copy
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

import lightning
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..core.batch import TrajectoryBatch
from ..core.interfaces import Policy
from ..envs.vector import Context, make_task
from .rollouts import Piece, Runner, batch_pieces, split_evenly


@dataclass(frozen=True, kw_only=True)
class TaskSetting:
    """Everything a worker needs to build its environments."""

    task: str
    horizon: int | None = None
    end_on_success: bool = True
    task_seed: int = 0


class WorkerError(RuntimeError):
    """A worker process failed; the message holds its traceback."""


class WorkerPool:
    """Runs a policy in ``workers`` processes of ``envs // workers`` environments; 0 workers use this process.

    On few cores a process with several environments and its own copy of the policy beats one process per environment:
    nothing is sent but weights on the way out and finished pieces on the way back.

    Args:
        setting: The task.
        envs: Environments altogether.
        workers: Processes.
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
        """Act for about ``steps`` environment steps in all; see `Runner.collect`."""
        if self._runner is not None:
            return self._runner.collect(policy, steps, contexts, torch.Generator().manual_seed(seed))
        shares = [max(1, steps * count // self.envs) for count in self._share]
        return self._ask([("collect", share, list(contexts)) for share in shares], policy, seed)

    def play(self, policy: Policy, contexts: Sequence[Context], seed: int, deterministic: bool = True) -> list[Piece]:
        """Play one whole episode from every context, in their order; see `Runner.play`."""
        if self._runner is not None:
            return self._runner.play(policy, contexts, torch.Generator().manual_seed(seed), deterministic)
        parts = [list(contexts[i :: len(self._links)]) for i in range(len(self._links))]
        pieces = self._ask([("play", deterministic, part) for part in parts], policy, seed)
        order = {context: place for place, context in enumerate(contexts)}
        return sorted(pieces, key=lambda piece: order[piece.context])

    def _ask(self, orders: Sequence[tuple[Any, ...]], policy: Policy, seed: int) -> list[Piece]:
        if any(p.device.type != "cpu" for p in policy.parameters()):
            policy = copy.deepcopy(policy).cpu()
        for number, (link, order) in enumerate(zip(self._links, orders, strict=True)):
            link.send((*order, policy, seed * 1_009 + number))
        pieces: list[Piece] = []
        for link, process in zip(self._links, self._processes, strict=True):
            try:
                answer = link.recv()
            except EOFError:
                raise WorkerError(
                    f"a worker process died (exit code {process.exitcode}): out of memory, or killed from outside"
                ) from None
            if isinstance(answer, str):
                raise WorkerError(f"a worker process failed:\n{answer}")
            pieces += cast(list[Piece], answer)
        return pieces

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
                process.terminate()
        self._links, self._processes = [], []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _make_runner(setting: TaskSetting, envs: int) -> Runner:
    return Runner(setting.task, envs, setting.horizon, setting.end_on_success, setting.task_seed)


def _work(link: Connection, setting: TaskSetting, envs: int) -> None:
    """A worker's whole life: build, then answer until the link closes. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    runner: Runner | None = None
    while True:
        try:
            kind, amount, contexts, policy, seed = link.recv()
        except (EOFError, OSError):
            break
        try:
            runner = runner or _make_runner(setting, envs)
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
    """Play one whole episode from every context and return them as one batch, in the order of the contexts."""
    with WorkerPool(setting, envs, workers) as pool:
        pieces = pool.play(policy, contexts, seed, deterministic)
    return batch_pieces(pieces)


class RolloutStream(IterableDataset[TrajectoryBatch]):
    """A sized stream of rollouts of the policy as it is when each is asked for.

    It has a length on purpose: without one Lightning prefetches, and every rollout would come from a policy one update
    old.
    """

    def __init__(self, pool: WorkerPool, policy: Policy, data: "RolloutData", rank: int) -> None:
        super().__init__()
        self.pool, self.policy, self.data, self.rank = pool, policy, data, rank

    def __len__(self) -> int:
        return self.data.rollouts

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        data = self.data
        for _ in range(data.rollouts):
            seed = hash_seed(data.seed, self.rank, data.rollouts_made)
            data.rollouts_made += 1
            was_training = self.policy.training
            self.policy.eval()
            pieces = self.pool.collect(self.policy, data.steps, data.train_contexts, seed)
            self.policy.train(was_training)
            data.env_steps += sum(len(p.actions) - p.fresh for p in pieces)
            yield batch_pieces(pieces, data.instruction, data.hide_outcome)


def hash_seed(*parts: int) -> int:
    """Mix numbers to a seed, so that (seed, rank, iteration) never share a stream by adding up alike."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % (1 << 62)
    return mixed >> 8


class RolloutData(lightning.LightningDataModule):
    """Rollouts of the policy in training, as a data module: fresh ones to learn from, held-out starts to judge it.

    Args:
        task: Name, see `guerdon.envs.vector.make_task`.
        steps: Environment steps in a rollout (on every rank).
        rollouts: Rollouts in an epoch.
        envs: Environments on this machine.
        workers: Processes that hold them; 0 uses this one.
        horizon: Time limit; None takes the task's own.
        end_on_success: The first success ends an episode.
        hide_outcome: Training sees neither the environment's reward nor its success; see `batch_pieces`.
        contexts: Number of training contexts.
        eval_contexts: Number of held-out contexts a validation plays; 0 leaves validation out.
        task_seed: Fixes the contexts.
        seed: Of everything drawn while acting.
    """

    def __init__(
        self,
        task: str,
        steps: int = 4096,
        rollouts: int = 10,
        envs: int = 8,
        workers: int = 0,
        horizon: int | None = None,
        end_on_success: bool = True,
        hide_outcome: bool = False,
        contexts: int = 40,
        eval_contexts: int = 20,
        task_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hide_outcome and end_on_success:
            raise ValueError("hide_outcome needs end_on_success=False: an episode that ends early tells its outcome")
        self.setting = TaskSetting(task=task, horizon=horizon, end_on_success=end_on_success, task_seed=task_seed)
        self.steps, self.rollouts, self.envs, self.workers = steps, rollouts, envs, workers
        self.hide_outcome, self.seed = hide_outcome, seed
        self.counts = (contexts, eval_contexts)
        self.env_steps, self.rollouts_made = 0, 0
        self._pool: WorkerPool | None = None

    def setup(self, stage: str) -> None:
        """Start the workers and list the contexts of both splits."""
        if self._pool is not None:
            return
        probe = make_task(self.setting.task, self.setting.horizon, self.setting.task_seed)
        self.instruction = probe.instruction
        self.train_contexts = probe.contexts("train", self.counts[0])
        self.eval_contexts = probe.contexts("eval", self.counts[1]) if self.counts[1] else []
        probe.close()
        self._pool = WorkerPool(self.setting, self.envs, self.workers)

    def train_dataloader(self) -> DataLoader[TrajectoryBatch]:
        """A sized stream of fresh rollouts."""
        pool, policy, rank = self._parts()
        return DataLoader(RolloutStream(pool, policy, self, rank), batch_size=None)

    def val_dataloader(self) -> DataLoader[TrajectoryBatch] | list[object]:
        """One batch of deterministic episodes from the held-out contexts."""
        if not self.eval_contexts:
            return []
        pool, policy, _ = self._parts()
        return DataLoader(_Judging(pool, policy, self), batch_size=None)

    def _parts(self) -> tuple[WorkerPool, Policy, int]:
        assert self._pool is not None and self.trainer is not None
        module = self.trainer.lightning_module
        policy = getattr(module, "policy", None)
        if not isinstance(policy, Policy):
            raise TypeError(f"RolloutData needs a module with a policy, such as PolicyOptimizer; got {type(module)}")
        return self._pool, policy, self.trainer.global_rank

    def teardown(self, stage: str) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def state_dict(self) -> dict[str, int]:
        """Counters, so that a resumed run draws new rollouts and goes on counting."""
        return {"env_steps": self.env_steps, "rollouts_made": self.rollouts_made}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        self.env_steps, self.rollouts_made = state_dict["env_steps"], state_dict["rollouts_made"]


class _Judging(IterableDataset[TrajectoryBatch]):
    def __init__(self, pool: WorkerPool, policy: Policy, data: RolloutData) -> None:
        super().__init__()
        self.pool, self.policy, self.data = pool, policy, data

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        was_training = self.policy.training
        self.policy.eval()
        # its own environments would double the memory; the training episodes in flight are given up instead
        pieces = self.pool.play(self.policy, self.data.eval_contexts, self.data.seed)
        self.policy.train(was_training)
        yield batch_pieces(pieces, self.data.instruction)


__all__ = [
    "RolloutData",
    "RolloutStream",
    "TaskSetting",
    "WorkerError",
    "WorkerPool",
    "hash_seed",
    "play_episodes",
]
