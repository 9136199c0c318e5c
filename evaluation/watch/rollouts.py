"""What one rollout shows of a reward model, evaluated without changing the training run."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import lightning
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ...core.batch import End, TrajectoryBatch
from ...core.interfaces import RewardModel
from .claim import SuccessClaim
from .metrics import EpisodeRecord
from .probes import ProbeResult

T = TypeVar("T")


@dataclass(kw_only=True)
class RolloutSummary:
    """What one rollout showed of a reward model, on one process or on all."""

    episodes: list[EpisodeRecord] = field(default_factory=list[EpisodeRecord])
    """Its finished episodes."""
    beyond: int = 0
    """Number of observations outside the training data."""
    observations: int = 0
    """Number of observations compared with the training data."""
    probes: dict[str, ProbeResult] = field(default_factory=dict[str, ProbeResult])
    """Results of the probes, and of the unaltered clips under ``"honest"``."""

    def __add__(self, other: "RolloutSummary") -> "RolloutSummary":
        names = dict.fromkeys((*self.probes, *other.probes))
        return RolloutSummary(
            episodes=self.episodes + other.episodes,
            beyond=self.beyond + other.beyond,
            observations=self.observations + other.observations,
            probes={n: self.probes.get(n, ProbeResult()) + other.probes.get(n, ProbeResult()) for n in names},
        )

    def to_state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_state(state: dict[str, Any]) -> "RolloutSummary":
        """Make a summary from the values that ``to_state`` returned."""
        return RolloutSummary(
            episodes=[EpisodeRecord(**e) for e in state["episodes"]],
            beyond=state["beyond"],
            observations=state["observations"],
            probes={name: ProbeResult(**p) for name, p in state["probes"].items()},
        )


def finished_rows(batch: TrajectoryBatch) -> Int[Tensor, " N"]:
    """Return the indices of the rows that are whole episodes: from the first observation to an end that is no cut.

    Args:
        batch: Rollouts.
    """
    finished = (batch.end != int(End.CUT)) | batch.success_known
    return (finished & (batch.offset == 0) & (batch.steps > 0)).nonzero()[:, 0]


def outcomes_of(
    batch: TrajectoryBatch,
    outcome: Callable[[TrajectoryBatch], Tensor] | None = None,
    withheld: object = None,
) -> Float[Tensor, " B"]:
    """Return whether every row succeeded: 1, 0, or NaN where that is unknown.

    Args:
        batch: Rollouts.
        outcome: Function that returns the success (B,) of a batch. Without, it is the batch's own success.
        withheld: What the data module withholds from training, where the batch knows no outcome: a list of B numbers.
            Anything else is ignored, since other data keep other things under that name.

    Returns:
        Outcomes (B,) on the host; graded success counts from 0.5 on.

    Raises:
        ValueError: If the function returns another number of values.
    """
    if outcome is not None:
        success = outcome(batch).float().cpu()
        if success.shape != (len(batch),):
            raise ValueError(f"outcome: expected {len(batch)} numbers, one a row, got {tuple(success.shape)}")
    else:
        success = torch.where(batch.success_known, batch.success.float(), torch.nan).cpu()
        if isinstance(withheld, list) and len(withheld) == len(batch) and bool(success.isnan().all()):
            success = torch.tensor(withheld, dtype=torch.float32)
    return torch.where(success.isnan(), success, (success >= 0.5).float())


def records_of(
    reward: RewardModel,
    rows: TrajectoryBatch,
    outcome: Float[Tensor, " B"],
    names: list[str],
    claim: SuccessClaim,
) -> list[EpisodeRecord]:
    """Evaluate a reward model on whole episodes.

    Args:
        reward: Reward model in evaluation mode.
        rows: Whole episodes.
        outcome: Success (B,): 1, 0, or NaN where it is unknown.
        names: Names of the episodes.
        claim: Rule by which the reward model claims a success.

    Returns:
        One record per episode.

    Raises:
        ValueError: If the reward model does not make the prediction that serves as the score.
    """
    estimates = reward(rows)
    there = rows.to(estimates.valid.device)
    score = claim.scores(estimates, there).tolist()
    known = estimates.valid & there.mask
    total = torch.where(known, estimates.rewards, 0.0).sum(1)
    learned = torch.where(known.any(1), total, torch.nan).tolist()
    recorded = [math.nan] * len(rows)
    column = rows.recorded.get("reward")
    if column is not None and column.values.shape == rows.mask.shape:
        whole = (column.valid | ~rows.mask).all(1)
        recorded = torch.where(whole, torch.where(rows.mask, column.values, 0.0).sum(1), torch.nan).tolist()
    return [
        EpisodeRecord(name=n, learned=float(r), score=float(s), success=float(o), recorded=float(e))
        for n, r, s, o, e in zip(names, learned, score, outcome.tolist(), recorded, strict=True)
    ]


def reward_of(module: lightning.LightningModule) -> RewardModel:
    """Return the reward model that a policy optimizer learns from.

    Args:
        module: Module in training.

    Raises:
        TypeError: If the module has none.
    """
    reward = getattr(getattr(module, "advantage", None), "reward", None)
    if not isinstance(reward, RewardModel):
        raise TypeError(
            "HackingWatch needs a module whose advantage source has a reward model, such as PolicyOptimizer with "
            f"RewardToGo; got {type(module).__name__}"
        )
    return reward


@contextmanager
def undisturbed(reward: RewardModel) -> Generator[None]:
    """Put a reward model into evaluation mode, without gradients; restore its modes and all random states at the end.

    Args:
        reward: Reward model in use.
    """
    modes = {module: module.training for module in reward.modules()}
    reward.eval()
    try:
        # no inference mode: what a model keeps for later, such as embedded instructions, could not be trained on
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def gather(trainer: lightning.Trainer, mine: T) -> list[T]:
    """Return the objects of all processes in the order of their ranks.

    Args:
        trainer: Trainer in use.
        mine: Object of this process.
    """
    if trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
