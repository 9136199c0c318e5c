"""Rollouts for a trainer: a sized stream from worker processes, and its data module."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import closing

import lightning

from ...core.arguments import folds
from ...core.batch import End, TrajectoryBatch
from ...core.interfaces import Policy
from ...core.sizes import DataSizes
from ...envs.task import Context
from ...envs.vector import sizes_of
from .frames import RolloutFrames
from .pieces import batch_pieces
from .pool import TaskSetting, WorkerError, WorkerPool, check_tasks, play_episodes


class RolloutStream:
    """Sized stream of rollouts, each by the policy as it is at that moment.

    It has a length on purpose: without one Lightning prefetches, and every rollout would come from a policy one update
    old. It is used in place of a `DataLoader`, which would add nothing but warnings.

    Args:
        pool: Pool that runs the policy.
        policy: Policy that acts; it is put into evaluation mode meanwhile.
        data: Data module whose settings and counters are used.
        rank: Rank of this process.
    """

    def __init__(self, pool: WorkerPool, policy: Policy, data: "RolloutData", rank: int) -> None:
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
            data.outcomes = [math.nan if p.end == End.CUT else float(any(p.success)) for p in pieces]
            yield batch_pieces(pieces, hide_outcome=data.hide_outcome)


def hash_seed(*parts: int) -> int:
    """Hash numbers such as (seed, rank, iteration) to a seed of 48 bits, so that equal sums give different seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


class RolloutData(lightning.LightningDataModule):
    """Data module of rollouts of the policy in training: fresh ones to train on, held-out starts to validate on.

    Several tasks are trained at once. Each environment holds one of them, so that each task gets the same share of the
    steps if their number divides that of the environments. ``batch.task`` is the number of a row's task in the order
    given.

    Args:
        task: Name of the task, see `guerdon.make_task`, or names of several tasks with the same state and action sizes.
        steps: Number of environment steps in a rollout (on every rank).
        rollouts: Number of rollouts in an epoch.
        envs: Number of environments on this machine.
        workers: Number of processes that hold them; 0 uses this one.
        horizon: Time limit in control steps; None takes that of each task.
        end_on_success: Whether the first success ends an episode.
        hide_outcome: Hide the environment's reward and success from training; see
            `guerdon.policies.rollouts.runner.batch_pieces`.
        contexts: Number of training contexts of each task.
        eval_contexts: Number of held-out contexts of each task that a validation plays; 0 leaves validation out.
        task_seed: Seed that fixes the contexts.
        seed: Random seed of everything that is drawn while acting.
        frames: Cameras that are rendered for the policy and stored in the batch; None renders nothing. Its arguments
            may also be given one by one, such as ``cameras=["front"], image_size=96``.
        spares: Number of further simulators in each process, which reset to their next contexts in the background while
            the others play. The result does not depend on the time that resets take.
        eval_split: Split of the contexts that a validation plays.

    Raises:
        ValueError: If the outcome is to be hidden and a success ends an episode, or a setting makes no sense.
    """

    @folds(frames=RolloutFrames)
    def __init__(
        self,
        task: str | Sequence[str],
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
        frames: RolloutFrames | None = None,
        spares: int = 0,
        eval_split: str = "eval",
    ) -> None:
        super().__init__()
        if hide_outcome and end_on_success:
            raise ValueError("hide_outcome needs end_on_success=False: an episode that ends early shows its outcome")
        self.setting = TaskSetting(
            task=task,
            horizon=horizon,
            end_on_success=end_on_success,
            task_seed=task_seed,
            frames=frames,
            spares=spares,
        )
        self.steps, self.rollouts, self.envs, self.workers = steps, rollouts, envs, workers
        self.hide_outcome, self.seed = hide_outcome, seed
        self.counts, self.eval_split = (contexts, eval_contexts), eval_split
        self.env_steps, self.rollouts_made = 0, 0
        self.outcomes: list[float] = []
        """Success of every row of the latest rollout, NaN while it goes on; for observers of training, not for it."""
        self._pool: WorkerPool | None = None
        self._sizes: DataSizes | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks; ``batch.task`` counts them in this order."""
        return self.setting.tasks

    @property
    def sizes(self) -> DataSizes:
        """Widths of the tasks' states and actions; the first task is built once to read them.

        Raises:
            ValueError: If there is no task of that name.
            ModuleNotFoundError: If its simulator is not installed.
        """
        if self._sizes is None:
            with closing(self.setting.make(0)) as task:
                self._sizes = sizes_of(task)
        return self._sizes

    def setup(self, stage: str) -> None:
        """List the contexts of all tasks and of both splits, and start the workers.

        Raises:
            ValueError: If the tasks cannot be played together.
        """
        if self._pool is not None:
            return
        sizes: list[DataSizes] = []
        self.train_contexts: list[Context] = []
        self.eval_contexts: list[Context] = []
        for number in range(len(self.task_names)):
            with closing(self.setting.make(number)) as task:
                sizes.append(sizes_of(task))
                self.train_contexts += task.contexts("train", self.counts[0])
                if self.counts[1]:
                    self.eval_contexts += task.contexts(self.eval_split, self.counts[1])
        check_tasks(sizes)
        self._sizes = sizes[0]
        if not self.eval_contexts and self.trainer is not None:
            self.trainer.limit_val_batches = 0  # an empty loader would do the same, with a warning
        self._pool = WorkerPool(self.setting, self.envs, self.workers, sizes)

    def train_dataloader(self) -> RolloutStream:
        """Make a sized stream of fresh rollouts."""
        pool, policy, rank = self._parts()
        return RolloutStream(pool, policy, self, rank)

    def val_dataloader(self) -> "_Validation | list[object]":
        """Make a stream of one batch: deterministic episodes from the held-out contexts."""
        if not self.eval_contexts:
            return []
        pool, policy, _ = self._parts()
        return _Validation(pool, policy, self)

    def _parts(self) -> tuple[WorkerPool, Policy, int]:
        assert self._pool is not None and self.trainer is not None
        module = self.trainer.lightning_module
        policy = getattr(module, "policy", None)
        if not isinstance(policy, Policy):
            raise TypeError(f"RolloutData needs a module with a policy, such as PolicyOptimizer, got {type(module)}")
        return self._pool, policy, self.trainer.global_rank

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def state_dict(self) -> dict[str, int]:
        """Return the counters, so that a resumed run draws new rollouts and goes on counting."""
        return {"env_steps": self.env_steps, "rollouts_made": self.rollouts_made}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the counters of a checkpoint."""
        self.env_steps, self.rollouts_made = state_dict["env_steps"], state_dict["rollouts_made"]


class _Validation:
    """Stream of one batch of deterministic episodes."""

    def __init__(self, pool: WorkerPool, policy: Policy, data: RolloutData) -> None:
        self.pool, self.policy, self.data = pool, policy, data

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        was_training = self.policy.training
        self.policy.eval()
        # environments of its own would double the memory; training episodes in progress are dropped instead
        pieces = self.pool.play(self.policy, self.data.eval_contexts, self.data.seed)
        self.policy.train(was_training)
        yield batch_pieces(pieces)


__all__ = [
    "RolloutData",
    "RolloutFrames",
    "RolloutStream",
    "TaskSetting",
    "WorkerError",
    "WorkerPool",
    "hash_seed",
    "play_episodes",
]
