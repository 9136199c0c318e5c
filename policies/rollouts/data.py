"""Rollouts for a trainer: a data module of simulated tasks, whose state a checkpoint keeps."""

import copy
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import lightning
import torch

from ...core.arguments import folds
from ...core.interfaces import Policy
from ...core.sizes import DataSizes
from ...envs.task import Context
from ...envs.vector import sizes_of
from ..loops.curriculum import Curriculum
from .decisions import hash_seed
from .frames import RolloutFrames
from .groups import GroupDraws, GroupRollouts
from .pool import WorkerPool, play_episodes
from .ray_pool import make_pool
from .resume import contexts_to_plain, from_plain, to_plain
from .setting import TaskSetting, check_tasks
from .starts import CurriculumStarts
from .stream import AheadStream, GroupStream, Progress, RolloutStream, StreamSetting, Validation


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
        groups: Whole episodes in groups of one initial state each, for advantage sources that compare them, such as
            `guerdon.GroupScore`; ``steps`` is not used then. None makes rollouts of ``steps`` steps, in which an
            episode may go on in the next rollout. Its arguments may also be given as ``groups.size`` and so on.
        overlap: Make the next rollout while the policy learns from the one before. The policy that acts is then one
            update old. Needs worker processes.
        pool: Where the environments are: ``"processes"`` of this machine (see ``workers``); ``"ray"``, actors of a
            local Ray or of the cluster in the variable RAY_ADDRESS; or the address of a cluster, such as
            ``"HOST:6379"``.
        policy_stays: Let the policy decide in this process, and send observations to it instead of weights to the
            workers: for policies that are large, or need this process's accelerator.
        curriculum: Probabilities of the initial states of rollouts of ``steps`` steps, from the latest attempts at
            them; None draws all alike. Groups have a curriculum of their own.

    Raises:
        ValueError: If the outcome is to be hidden and a success ends an episode or is compared in groups, or a setting
            makes no sense.
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
        groups: GroupRollouts | None = None,
        overlap: bool = False,
        pool: str = "processes",
        policy_stays: bool = False,
        curriculum: Curriculum | None = None,
    ) -> None:
        super().__init__()
        if hide_outcome and end_on_success:
            raise ValueError("hide_outcome needs end_on_success=False: an episode that ends early shows its outcome")
        if curriculum is not None and (groups is not None or hide_outcome):
            raise ValueError(
                "curriculum: with groups set groups.curriculum instead, which draws whole groups"
                if groups is not None
                else "curriculum: with hide_outcome it would show the outcome; leave one of them out"
            )
        if groups is not None and hide_outcome:
            compared = groups.compare == "success" and groups.rejection != "none"
            if compared or groups.curriculum is not None or groups.skip_solved:
                raise ValueError(
                    "hide_outcome with groups: rejection by success, a curriculum and skip_solved would show the "
                    "outcome; set groups.compare to score or groups.rejection to none, and leave the others out"
                )
        if overlap and (groups is not None or policy_stays or (pool == "processes" and workers == 0)):
            raise ValueError(
                f"overlap with workers={workers}, policy_stays={policy_stays}, groups={'set' if groups else 'none'}: "
                "rollouts are made while the policy learns only by workers with a copy of it, and in a stream of steps"
            )
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
        self.groups, self.overlap, self.pool, self.policy_stays = groups, overlap, pool, policy_stays
        self.curriculum = curriculum
        self.starts: CurriculumStarts | None = None
        """Draws of initial states by a curriculum, where rollouts are cut after a number of steps."""
        self.draws: GroupDraws | None = None
        """Draws of initial states, where there are groups."""
        self.progress = Progress()
        """Counters, and metrics for observers of training."""
        self._saved: dict[str, Any] | None = None
        self._pool: WorkerPool | None = None
        self._sizes: DataSizes | None = None

    def for_task(self, task: str, seed: int | None = None) -> "RolloutData":
        """Make a data module of one task with the same settings, which has played nothing yet.

        Args:
            task: Name of the task.
            seed: Random seed of everything that is drawn while acting; None takes that of this one.
        """
        other = copy.copy(self)
        other.trainer = None
        other.setting = replace(self.setting, task=task)
        other.groups = copy.deepcopy(self.groups)  # with the memory of its curriculum
        other.seed = self.seed if seed is None else seed
        other.curriculum = copy.deepcopy(self.curriculum)
        other.draws, other.starts, other.progress = None, None, Progress()
        other._saved, other._pool, other._sizes = None, None, None
        return other

    @property
    def cuts_episodes(self) -> bool:
        """Whether an episode may go on in the next rollout."""
        return self.groups is None

    @property
    def env_steps(self) -> int:
        """Number of environment steps so far, with those of rejected groups."""
        return self.progress.env_steps

    @property
    def rollouts_made(self) -> int:
        """Number of rollouts so far."""
        return self.progress.made

    @property
    def outcomes(self) -> list[float]:
        """Success of every row of the latest rollout, NaN while it goes on; for observers of training, not for it."""
        return self.progress.outcomes

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the latest rollout by name: groups that were tried and accepted, and what was lost so far."""
        lost = self._lost_episodes
        return {**self.progress.metrics, **({"lost_episodes": float(lost)} if lost else {})}

    @property
    def _lost_episodes(self) -> int:
        return self.progress.lost_episodes + (0 if self._pool is None else self._pool.lost.fragments)

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
                self._sizes = self._with_features(sizes_of(task))
        return self._sizes

    def _with_features(self, sizes: DataSizes) -> DataSizes:
        frames = self.setting.frames
        return sizes if frames is None else replace(sizes, feature_sizes=frames.feature_sizes)

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
        self._sizes = self._with_features(sizes[0])
        _require_apart(self.train_contexts, self.eval_contexts)
        if not self.eval_contexts and self.trainer is not None:
            self.trainer.limit_val_batches = 0  # an empty loader would do the same, with a warning
        if self.groups is not None:
            self.draws = GroupDraws(self.groups, self.train_contexts)
        if self.curriculum is not None:
            self.starts = CurriculumStarts(self.curriculum, self.train_contexts)
        self._pool = make_pool(self.pool, self.setting, self.envs, self.workers, sizes, self.policy_stays)
        if self._saved is not None:
            self._go_on(self._saved)

    def train_dataloader(self) -> RolloutStream:
        """Make a sized stream of fresh rollouts."""
        pool, policy, rank = self._parts()
        assert self.trainer is not None
        epochs = self.trainer.max_epochs
        setting = StreamSetting(
            steps=self.steps,
            rollouts=self.rollouts,
            in_all=None if epochs is None or epochs < 0 else epochs * self.rollouts,
            contexts=self.train_contexts,
            seed=self.seed,
            hide_outcome=self.hide_outcome,
        )
        if self.draws is not None:
            module = self.trainer.lightning_module
            return GroupStream(pool, policy, setting, self.progress, rank, self.draws, module)
        kind = AheadStream if self.overlap else RolloutStream
        return kind(pool, policy, setting, self.progress, rank, self.starts)

    def val_dataloader(self) -> "Validation | list[object]":
        """Make a stream of one batch: deterministic episodes from the held-out contexts."""
        if not self.eval_contexts:
            return []
        pool, policy, _ = self._parts()
        return Validation(pool, policy, self.eval_contexts, self.seed, self.progress)

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
            self.progress.lost_episodes = self._lost_episodes
            self._pool.close()
            self._pool = None
        self.progress.ordered, self.progress.waiting = False, None

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers of a run that ends with an error or an interrupt."""
        self.teardown("fit")

    def state_dict(self) -> dict[str, Any]:
        """Return counters, unfinished episodes and what is remembered of initial states, of all ranks.

        Together with the weights and the state of the optimizer this makes a resumed run the uninterrupted one.
        """
        progress = self.progress
        own: dict[str, Any] = {
            "env_steps": progress.env_steps,
            "rollouts_made": progress.made,
            "unfinished": [to_plain(piece) for piece in progress.unfinished[0]],
            "prepared": [contexts_to_plain(contexts) for contexts in progress.unfinished[1]],
            "lost_episodes": self._lost_episodes,
            "acting": progress.acting,
            "draws": None if self.draws is None else self.draws.state_dict(),
            "starts": None if self.starts is None else self.starts.state_dict(),
        }
        ranks: list[Any] = [own]
        if _distributed():
            ranks = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, own)
        return {"env_steps": own["env_steps"], "rollouts_made": own["rollouts_made"], "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint kept; unfinished episodes are repeated when the environments are there."""
        ranks = state_dict.get("ranks", [state_dict])  # older checkpoints hold the counters of one process
        rank = torch.distributed.get_rank() if _distributed() else 0
        world = torch.distributed.get_world_size() if _distributed() else 1
        if len(ranks) > world:
            warnings.warn(
                f"the checkpoint was written by {len(ranks)} processes, and {world} go on: the episodes in progress "
                "and the environment steps of the others are left out",
                stacklevel=2,
            )
        if len(ranks) <= rank:
            ranks = [*ranks, *({"env_steps": 0, "rollouts_made": ranks[0]["rollouts_made"]} for _ in range(rank))]
        self._saved = dict(ranks[rank])
        self.progress.env_steps = int(self._saved["env_steps"])
        self.progress.made = int(self._saved["rollouts_made"])
        self.progress.lost_episodes = int(self._saved.get("lost_episodes", 0))
        if self._pool is not None:
            self._go_on(self._saved)

    def _go_on(self, saved: dict[str, Any]) -> None:
        """Repeat the unfinished episodes of a checkpoint."""
        assert self._pool is not None
        self._saved = None
        if self.draws is not None and saved.get("draws") is not None:
            self.draws.load_state_dict(saved["draws"])
        if self.starts is not None and saved.get("starts") is not None:
            self.starts.load_state_dict(saved["starts"])
        self.progress.acting = saved.get("acting")
        pieces = [from_plain(piece) for piece in saved.get("unfinished", [])]
        prepared = [[Context(*context) for context in contexts] for contexts in saved.get("prepared", [])]
        if pieces or any(prepared):
            self._pool.restore(pieces, prepared)
        self.progress.unfinished = (pieces, prepared)


def _distributed() -> bool:
    """Tell whether this is one of several processes of a distributed run."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _require_apart(train: Sequence[Context], judged: Sequence[Context]) -> None:
    """Check that no initial state is both trained on and judged on.

    Raises:
        ValueError: If one is.
    """
    shared = set(train) & set(judged)
    if shared:
        raise ValueError(
            f"{len(shared)} of the {len(judged)} initial states of the validation are trained on (split "
            f"{judged[0].split!r}): the success rate would show what was memorised; set eval_split to eval"
        )


__all__ = [
    "RolloutData",
    "RolloutFrames",
    "RolloutStream",
    "TaskSetting",
    "WorkerPool",
    "hash_seed",
    "play_episodes",
]
