"""What one rollout shows of a learned reward, seen without leaving a trace."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ...core.batch import End, TrajectoryBatch
from ...core.interfaces import RewardModel
from .metrics import EpisodeRecord, Score, best_and_last, score_kind, score_track
from .probes import Probed


@dataclass(kw_only=True)
class Seen:
    """What one rollout showed, on one process or on all."""

    episodes: list[EpisodeRecord] = field(default_factory=list[EpisodeRecord])
    beyond: int = 0
    """Observations beyond the familiar ones."""
    observations: int = 0
    probes: dict[str, Probed] = field(default_factory=dict[str, Probed])

    def __add__(self, other: "Seen") -> "Seen":
        names = dict.fromkeys((*self.probes, *other.probes))
        return Seen(
            episodes=self.episodes + other.episodes,
            beyond=self.beyond + other.beyond,
            observations=self.observations + other.observations,
            probes={n: self.probes.get(n, Probed()) + other.probes.get(n, Probed()) for n in names},
        )

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Seen":
        """Read ``to_state``'s values."""
        return Seen(
            episodes=[EpisodeRecord(**e) for e in state["episodes"]],
            beyond=state["beyond"],
            observations=state["observations"],
            probes={name: Probed(**p) for name, p in state["probes"].items()},
        )


def finished_rows(batch: TrajectoryBatch) -> Tensor:
    """Places of the rows that are whole episodes: from their first observation to an end that is no cut."""
    finished = (batch.end != int(End.CUT)) | batch.success_known
    return (finished & (batch.offset == 0) & (batch.steps > 0)).nonzero()[:, 0]


def records_of(
    reward: RewardModel,
    rows: TrajectoryBatch,
    outcome: Tensor,
    names: list[str],
    kind: Score | None,
    judged: Literal["best", "last"],
) -> list[EpisodeRecord]:
    """What the reward and the environment say of whole episodes."""
    estimates = reward(rows)
    told = rows.to(estimates.valid.device)
    best, last = best_and_last(*score_track(estimates, told, kind or score_kind(estimates)))
    score = (best if judged == "best" else last).tolist()
    known = estimates.valid & told.mask
    total = torch.where(known, estimates.rewards, 0.0).sum(1)
    learned = torch.where(known.any(1), total, torch.nan).tolist()
    recorded = torch.full((len(rows),), torch.nan)
    column = rows.recorded.get("reward")
    if column is not None and column.values.shape == rows.mask.shape:
        whole = (column.valid | ~rows.mask).all(1)
        recorded = torch.where(whole, torch.where(rows.mask, column.values, 0.0).sum(1), torch.nan)
    return [
        EpisodeRecord(name=n, learned=float(r), score=float(s), success=float(o), recorded=float(e))
        for n, r, s, o, e in zip(names, learned, score, outcome.tolist(), recorded.tolist(), strict=True)
    ]


def reward_of(module: lightning.LightningModule) -> RewardModel:
    """The reward model a policy optimizer learns from.

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
    """Ask the reward without leaving a trace: random states, modes and gradients are as before afterwards."""
    modes = {module: module.training for module in reward.modules()}
    reward.eval()
    try:
        # no inference mode: what a model keeps for later, such as embedded instructions, could not be trained on
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def gather(trainer: lightning.Trainer, mine: Any) -> list[Any]:
    """What every process holds, in the order of their ranks."""
    if trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
