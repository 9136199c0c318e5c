"""Streams of rollouts for a trainer: fresh ones in every batch, in groups, or one ahead of learning."""

import copy
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import lightning
import torch
from torch import Tensor

from ...core.batch import End, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Policy
from ...envs.task import Context
from ..advantages.group_score import complete_rows
from .decisions import hash_seed
from .groups import GroupDraws, play_groups
from .pieces import Piece, batch_pieces
from .pool import WorkerPool
from .starts import CurriculumStarts


@dataclass(frozen=True, kw_only=True)
class StreamSetting:
    """Settings of a stream of rollouts."""

    steps: int
    """Number of environment steps in a rollout."""
    rollouts: int
    """Number of rollouts in an epoch."""
    in_all: int | None
    """Number of rollouts in the whole run; None where it has no end."""
    contexts: Sequence[Context]
    """Initial states that are trained on."""
    seed: int
    """Random seed of everything that is drawn."""
    hide_outcome: bool
    """Hide the environment's reward and success from training."""


@dataclass
class Progress:
    """Progress of a stream: what a checkpoint keeps of it, and what observers of training read."""

    env_steps: int = 0
    """Number of environment steps so far, with those of rejected groups."""
    made: int = 0
    """Number of rollouts so far."""
    outcomes: list[float] = field(default_factory=list[float])
    """Success of every row of the latest rollout, NaN while it goes on."""
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """Metrics of the latest rollout by name."""
    unfinished: tuple[list[Piece], list[list[Context]]] = field(default_factory=lambda: ([], []))
    """Episodes that go on in the next rollout, and the contexts that each worker drew for those to come."""
    lost_episodes: int = 0
    """Number of episodes that were lost before an interruption."""
    ordered: bool = False
    """Whether the next rollout was ordered already."""
    waiting: list[Piece] | None = None
    """The next rollout, where it came in before it was asked for."""
    acting: dict[str, Tensor] | None = None
    """Weights of the policy that makes the next rollout, where it is not that in training."""

    def count(self, pieces: Sequence[Piece], env_steps: int | None = None) -> None:
        """Count a rollout.

        Args:
            pieces: Its pieces.
            env_steps: Number of its environment steps; None takes those of the pieces.
        """
        self.made += 1
        self.env_steps += sum(len(p.actions) - p.fresh for p in pieces) if env_steps is None else env_steps
        self.outcomes = [math.nan if p.end == End.CUT else float(any(p.success)) for p in pieces]


class RolloutStream:
    """Sized stream of rollouts, each by the policy as it is at that moment.

    It has a length on purpose: without one Lightning prefetches, and every rollout would come from a policy one update
    old. It is used in place of a `DataLoader`, which would add nothing but warnings.

    Args:
        pool: Pool that runs the policy.
        policy: Policy that acts; it is put into evaluation mode meanwhile.
        setting: Settings.
        progress: Progress so far; it is updated.
        rank: Rank of this process.
        starts: Probabilities of the initial states from earlier outcomes; None draws all alike.
    """

    def __init__(
        self,
        pool: WorkerPool,
        policy: Policy,
        setting: StreamSetting,
        progress: Progress,
        rank: int = 0,
        starts: CurriculumStarts | None = None,
    ) -> None:
        self.pool, self.policy, self.setting, self.progress, self.rank = pool, policy, setting, progress, rank
        self.starts = starts

    def __len__(self) -> int:
        return self.setting.rollouts

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        for _ in range(self.setting.rollouts):
            yield self.next()

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the data module keeps the state. Lightning takes it that a run can go on in mid-epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore nothing."""

    def next(self) -> TrajectoryBatch:
        """Make the next rollout."""
        progress = self.progress
        with evaluating(self.policy):
            self._order(progress.made, self.policy, version=progress.made)
            pieces = self.pool.answer()
        self._learn_from(pieces)
        progress.unfinished = self.pool.unfinished
        progress.count(pieces)
        return batch_pieces(pieces, hide_outcome=self.setting.hide_outcome)

    def _order(self, number: int, policy: Policy, version: int) -> None:
        """Order the rollout of a number in the run."""
        seed = hash_seed(self.setting.seed, self.rank, number)
        weights = None if self.starts is None else self.starts.weights()
        self.pool.order(policy, self.setting.steps, self.setting.contexts, seed, version, weights)

    def _learn_from(self, pieces: Sequence[Piece]) -> None:
        """Let the curriculum, if there is one, remember the outcomes of a rollout."""
        if self.starts is not None:
            self.starts.add(pieces)
            self.progress.metrics = self.starts.metrics()


class AheadStream(RolloutStream):
    """Sized stream of rollouts that are made while the policy learns from the one before.

    The policy that acts is one update old; the probability ratios of the objective are against the policy that acted.
    """

    def next(self) -> TrajectoryBatch:
        """Take the rollout that was made meanwhile, and order the next."""
        progress, number = self.progress, self.progress.made
        with evaluating(self.policy):
            if not progress.ordered:
                acting = self.policy
                if progress.acting is not None:  # after an interruption
                    acting = copy.deepcopy(self.policy).eval()
                    acting.load_state_dict(progress.acting)
                self._order(number, acting, version=max(0, number - 1))
            pieces = self.pool.answer() if progress.waiting is None else progress.waiting
            progress.waiting, progress.ordered, progress.acting = None, False, None
            self._learn_from(pieces)
            progress.unfinished = self.pool.unfinished
            if self.setting.in_all is None or number + 1 < self.setting.in_all:
                progress.acting = {
                    name: value.detach().cpu().clone() for name, value in self.policy.state_dict().items()
                }
                self._order(number + 1, self.policy, version=number)
                progress.ordered = True
        progress.count(pieces)
        return batch_pieces(pieces, hide_outcome=self.setting.hide_outcome)


class GroupStream(RolloutStream):
    """Sized stream of whole episodes in groups of one initial state each.

    Args:
        pool: Pool that runs the policy.
        policy: Policy that acts; it is put into evaluation mode meanwhile.
        setting: Settings.
        progress: Progress so far; it is updated.
        rank: Rank of this process.
        draws: Draws of initial states.
        module: Module in training, whose advantage source scores episodes if the settings of the groups say so.
    """

    def __init__(
        self,
        pool: WorkerPool,
        policy: Policy,
        setting: StreamSetting,
        progress: Progress,
        rank: int,
        draws: GroupDraws,
        module: lightning.LightningModule,
    ) -> None:
        super().__init__(pool, policy, setting, progress, rank)
        self.draws, self.module = draws, module

    def next(self) -> TrajectoryBatch:
        """Play groups until enough are accepted; where none is, the batch has the weight 0 everywhere."""
        progress, number = self.progress, self.progress.made
        generator = torch.Generator().manual_seed(hash_seed(self.setting.seed, self.rank, number, 0))

        def play(contexts: list[Context], numbers: list[int], wave: int) -> list[Piece]:
            seed = hash_seed(self.setting.seed, self.rank, number, 1 + wave)
            return self.pool.play(self.policy, contexts, seed, False, draws=numbers, version=number)

        with evaluating(self.policy):
            found = play_groups(self.draws, play, self._score, generator)
        progress.count(found.pieces, found.env_steps)
        progress.metrics = found.metrics
        batch = batch_pieces(found.pieces, hide_outcome=self.setting.hide_outcome)
        return batch if found.accepted else replace(batch, weight=torch.zeros_like(batch.weight))

    def _score(self, pieces: list[Piece]) -> list[float]:
        """Score whole episodes with the reward of the advantage source, all in one batch."""
        source = getattr(self.module, "advantage", None)
        if not isinstance(source, AdvantageSource):
            got = type(self.module).__name__
            raise TypeError(f"compare='score' needs a module with an advantage source, got {got}")
        batch = batch_pieces(pieces, hide_outcome=self.setting.hide_outcome).to(self.module.device)
        rewards = source.estimate(batch)
        known = complete_rows(batch, rewards)
        score = torch.where(rewards.valid & batch.mask, rewards.rewards, 0.0).double().sum(1)
        return torch.where(known, score, math.nan).tolist()


class Validation:
    """Sized stream of one batch of deterministic episodes from the held-out contexts; training goes on undisturbed.

    Args:
        pool: Pool that runs the policy. Episodes of the training in progress are set aside meanwhile.
        policy: Policy that acts; it is put into evaluation mode meanwhile.
        contexts: Held-out contexts.
        seed: Random seed of the policy's noise, if it has any.
        progress: Progress of the training; a rollout that was ordered is waited for, and kept there.
    """

    def __init__(
        self, pool: WorkerPool, policy: Policy, contexts: Sequence[Context], seed: int, progress: Progress
    ) -> None:
        self.pool, self.policy, self.contexts, self.seed, self.progress = pool, policy, contexts, seed, progress

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        if self.progress.ordered and self.progress.waiting is None:
            self.progress.waiting = self.pool.answer()
        with evaluating(self.policy):
            pieces = self.pool.play(self.policy, self.contexts, self.seed)
        yield batch_pieces(pieces)


@contextmanager
def evaluating(policy: Policy) -> Generator[None]:
    """Put a policy into evaluation mode, and back afterwards.

    Args:
        policy: Policy that acts.
    """
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)


__all__ = ["AheadStream", "GroupStream", "Progress", "RolloutStream", "StreamSetting", "Validation", "evaluating"]
