"""Reward models and critics as reward functions of TRL's GRPO and RLOO trainers."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from ...core.batch import TrajectoryBatch
from ...core.edit import concat
from ...core.interfaces import Critic, Proposer, RewardModel
from ...critics.chunks import ChunkCritic
from .actions import LoggedTurns
from .completions import Completion, completions_of

Reduction = Literal["sum", "mean", "last"]
"""Reduction of the rewards of a trajectory to one number: their sum, their mean, or the last one."""


@runtime_checkable  # the tests' shape checks ask isinstance
class TrajectoryReader(Protocol):
    """Function that turns a completion into a trajectory."""

    def __call__(self, completion: Completion) -> TrajectoryBatch | None:
        """Return a batch of one row; None where the completion cannot be read."""
        ...


class TRLRewardFunction:
    """Base of reward functions of TRL's trainers: one number per completion, or None where there is none.

    TRL leaves a None out of the reward; a completion with no reward at all gets the advantage 0 (trl 1.16). An error
    in the reward stops the training. It is no ``torch.nn.Module``, which a trainer would take for a model that reads
    texts, and it is pickled with what it holds.

    Args:
        name: Name in the trainer's logs.
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name

    # the trainers pass the data set's columns as keywords, whatever they are
    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score completions.

        Args:
            prompts: Prompt of each completion.
            completions: Texts, or lists of messages.
            completion_ids: Token numbers of each completion.
            columns: Columns of the data set, and what else the trainer passes. Its ``log_metric`` is given the share of
                completions without a reward.

        Returns:
            Reward of each completion; None where it cannot be read, or the reward abstains.
        """
        found = completions_of(completions, completion_ids, columns)
        scores = self.scores(found)
        log = columns.get("log_metric")
        if callable(log) and scores:
            log(f"{self.__name__}/without_reward", sum(score is None for score in scores) / len(scores))
        return scores

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Score completions that were read from the trainer's arguments."""
        raise NotImplementedError(f"{type(self).__name__} does not score: write scores(completions)")


class TRLReward(TRLRewardFunction):
    """Reward model as a reward function of TRL's GRPO and RLOO trainers, over trajectories read from completions.

    Args:
        reward: Reward model.
        read: Reader of trajectories, such as `LoggedTurns`, or a function of your own that plays a completion.
        reduce: Reduction of the rewards of a trajectory; see `trajectory_scores`.
        name: Name in the trainer's logs; None takes the name of the reward's class.

    Raises:
        ValueError: If the reduction is unknown, or chunks of several steps at logged observations are to be scored by
            their observations, which were never made.
    """

    def __init__(
        self, reward: RewardModel, read: TrajectoryReader, reduce: Reduction = "sum", name: str | None = None
    ) -> None:
        super().__init__(type(reward).__name__ if name is None else name)
        require_reduction(reduce)
        if isinstance(read, LoggedTurns) and read.horizon > 1:
            raise ValueError(
                f"chunks of {read.horizon} steps at a logged observation have no observations behind their first step "
                "to score: take guerdon.TRLActionValue with a critic of actions, chunks of one step, or a reader that "
                "plays the chunk in a simulator"
            )
        self.reward, self.read = reward, read
        self.reduce: Reduction = reduce

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Score the trajectories of completions in one batch."""
        rows = [self.read(completion) for completion in completions]
        return spread(rows, lambda batch: trajectory_scores(self.reward, batch, self.reduce))


class TRLActionValue(TRLRewardFunction):
    """Critic of actions as a reward function: Q of the chunk that a completion holds at its observation.

    Args:
        critic: Critic that values actions; those of logged chunks (`guerdon.ActionCritic`, …) need no proposer.
        read: Reader of trajectories whose first step is the decision, such as `LoggedTurns`.
        proposer: Proposer of the policy, for critics that value actions with it only.
        name: Name in the trainer's logs; None takes the name of the critic's class.
    """

    def __init__(
        self,
        critic: Critic,
        read: TrajectoryReader,
        proposer: Proposer | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(type(critic).__name__ if name is None else name)
        self.critic, self.read, self.proposer = critic, read, proposer

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Value the chunks of completions in one batch."""
        return spread([self.read(completion) for completion in completions], self._values)

    def _values(self, batch: TrajectoryBatch) -> list[float | None]:
        with evaluated(self.critic):
            placed = batch.to(device_of(self.critic))
            if isinstance(self.critic, ChunkCritic) and self.proposer is None:
                q = self.critic.pessimistic(self.critic.logged_q(placed))
            else:
                q = self.critic(placed, self.proposer).q
        if q is None:
            raise ValueError(
                f"{type(self.critic).__name__} values observations only: expected a critic of actions, such as "
                "guerdon.ActionCritic"
            )
        return require_finite(q[:, 0].cpu(), type(self.critic).__name__)


def spread(
    rows: Sequence[TrajectoryBatch | None], score: Callable[[TrajectoryBatch], list[float | None]]
) -> list[float | None]:
    """Score the rows that are there in one batch; the others have None.

    Args:
        rows: Batches of one row.
        score: Function from a batch (B rows) to B scores.
    """
    places = [place for place, row in enumerate(rows) if row is not None]
    found: list[float | None] = [None] * len(rows)
    if places:
        batch = concat([row for row in rows if row is not None])
        for place, value in zip(places, score(batch), strict=True):
            found[place] = value
    return found


def trajectory_scores(reward: RewardModel, batch: TrajectoryBatch, reduce: Reduction = "sum") -> list[float | None]:
    """Score every row of a batch by one number, in evaluation mode and without gradients.

    A row has a score if the reward is valid on at least one step, and on all whose next observation was made. For
    ``"last"`` it must be valid on the last step alone.

    Args:
        reward: Reward model.
        batch: Trajectories.
        reduce: ``"sum"`` of the valid rewards, their ``"mean"``, or the ``"last"`` one.

    Returns:
        Score of each row; None where the reward abstains.

    Raises:
        FloatingPointError: If a valid reward is not finite.
    """
    require_reduction(reduce)
    with evaluated(reward):
        found = reward(batch.to(device_of(reward)))
    rewards, valid = found.rewards.detach().cpu().double(), found.valid.cpu() & batch.mask.cpu()
    last = (batch.steps.cpu() - 1).clamp(min=0)[:, None]
    if reduce == "last":
        known = valid.gather(1, last)[:, 0] if valid.shape[1] else torch.zeros(len(batch), dtype=torch.bool)
        valid = valid & (torch.arange(valid.shape[1])[None] == last)
    else:
        missed = batch.mask.cpu() & ~valid & batch.observed.cpu()[:, 1:]
        known = ~missed.any(1) & valid.any(1)
    total = torch.where(valid, rewards, 0.0).sum(1)
    values = total / valid.sum(1).clamp(min=1) if reduce == "mean" else total
    checked = require_finite(torch.where(known, values, 0.0), type(reward).__name__)
    return [value if sure else None for value, sure in zip(checked, known.tolist(), strict=True)]


def require_reduction(reduce: str) -> None:
    """Refuse an unknown reduction.

    Raises:
        ValueError: If it is none of ``"sum"``, ``"mean"`` and ``"last"``.
    """
    if reduce not in get_args(Reduction):
        raise ValueError(f"reduce {reduce!r}: expected sum, mean or last")


def require_finite(values: Tensor, name: str) -> list[float | None]:
    """Return numbers (N,) as a list.

    Args:
        values: Numbers (N,).
        name: Name of the model, for the error.

    Raises:
        FloatingPointError: If one is not finite.
    """
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).nonzero()[0, 0])
        raise FloatingPointError(
            f"{name} scored completion {row} of {len(values)} with {float(values[row])}, marked as valid: expected a "
            "finite number; the model diverged, or its input holds numbers that are not finite"
        )
    return [float(value) for value in values]


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer of a module; the CPU where it has none."""
    for held in (module.parameters(), module.buffers()):
        for tensor in held:
            return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluated(module: nn.Module) -> Generator[None]:
    """Put a module into evaluation mode and take no gradients; afterwards each of its parts gets its mode back.

    Args:
        module: Reward model or critic.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


__all__ = [
    "Reduction",
    "TRLActionValue",
    "TRLReward",
    "TRLRewardFunction",
    "TrajectoryReader",
    "device_of",
    "evaluated",
    "require_finite",
    "require_reduction",
    "spread",
    "trajectory_scores",
]
