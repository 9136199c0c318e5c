"""Record of a policy's training on rollouts: numbers of every rollout and validation, and of the start policy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import TrajectoryBatch
from ..core.files import read_json, without_nan, write_json
from ..core.intervals import wilson_interval
from .watch.rollouts import finished_rows, outcomes_of

CURVES = "curves.json"
"""Name of the file with the numbers of a learning curve, in the run directory."""


@dataclass(frozen=True, kw_only=True)
class SuccessPoint:
    """Success rate on the held-out starts after a number of environment steps."""

    env_steps: int
    """Number of environment steps that training took before, over all processes."""
    successes: int
    episodes: int
    """Number of played episodes whose outcome is known."""

    @property
    def rate(self) -> float:
        """Success rate in [0, 1]; NaN without an episode."""
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate; NaN without an episode."""
        return wilson_interval(self.successes, self.episodes)

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the rate and its interval."""
        low, high = self.interval
        counts = {"env_steps": self.env_steps, "successes": self.successes, "episodes": self.episodes}
        return {**counts, "success": self.rate, "low": low, "high": high}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "SuccessPoint":
        """Make a point from what ``to_json`` returned."""
        return SuccessPoint(**{name: int(values[name]) for name in ("env_steps", "successes", "episodes")})


@dataclass(kw_only=True)
class LearningRecord:
    """Numbers of a learning curve."""

    tasks: tuple[str, ...] = ()
    """Names of the tasks."""
    start: SuccessPoint | None = None
    """Success of the policy that training started from; None where it was not played."""
    rollouts: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """Metrics of every rollout, ``env_steps`` among them; NaN where a metric is undefined."""
    validations: list[SuccessPoint] = field(default_factory=list[SuccessPoint])
    """Success at every validation."""

    def column(self, name: str) -> Float[Tensor, "2 N"]:
        """Return the environment steps and the values of a metric of the rollouts in which it is defined."""
        pairs = [(r["env_steps"], r[name]) for r in self.rollouts if not math.isnan(r.get(name, math.nan))]
        return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T

    def to_json(self) -> dict[str, Any]:
        """Return plain values; undefined ones are None."""
        return without_nan(
            {
                "tasks": list(self.tasks),
                "start": None if self.start is None else self.start.to_json(),
                "validations": [point.to_json() for point in self.validations],
                "rollouts": self.rollouts,
            }
        )

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "LearningRecord":
        """Make a record from what ``to_json`` returned."""
        start = values["start"]
        return LearningRecord(
            tasks=tuple(values["tasks"]),
            start=None if start is None else SuccessPoint.from_json(start),
            rollouts=[{k: math.nan if v is None else float(v) for k, v in r.items()} for r in values["rollouts"]],
            validations=[SuccessPoint.from_json(point) for point in values["validations"]],
        )

    def write(self, folder: Path) -> Path:
        """Write the numbers to ``curves.json`` in a folder, and return its path."""
        write_json(folder / CURVES, self.to_json())
        return folder / CURVES


def read_learning_record(folder: Path) -> LearningRecord | None:
    """Read the learning curve of a run; None where the run has none.

    Args:
        folder: Run directory.

    Raises:
        ValueError: If the file is no learning curve.
    """
    path = folder / CURVES
    if not path.is_file():
        return None
    values = read_json(path, "a learning curve")
    try:
        return LearningRecord.from_json(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no learning curve: expected what training wrote, {error!r} is wrong") from error


def count_successes(batches: Sequence[TrajectoryBatch], env_steps: int) -> SuccessPoint:
    """Count the successes among the played episodes of known outcome.

    Args:
        batches: Whole episodes.
        env_steps: Number of environment steps that training took before.
    """
    outcomes = torch.cat([outcomes_of(batch) for batch in batches]) if batches else torch.zeros(0)
    known = outcomes[~outcomes.isnan()]
    return SuccessPoint(env_steps=env_steps, successes=int(known.sum()), episodes=len(known))


def ended_totals(batch: TrajectoryBatch, withheld: object = None) -> dict[str, float]:
    """Sum length, success and recorded reward over the episodes that ended in a rollout, with the number of each.

    Args:
        batch: Rollout.
        withheld: Outcomes of the rows that the data module withholds from training, if any; see `outcomes_of`.

    Returns:
        ``episodes`` and the sum ``length`` in control steps, ``outcomes`` (number of known ones) and ``successes``,
        ``rewarded`` (number of episodes whose reward is recorded at every step) and the sum ``env_return``.
    """
    chosen = finished_rows(batch)
    success = outcomes_of(batch, None, withheld)[chosen.cpu()]
    total = {
        "episodes": float(len(chosen)),
        "length": float(batch.steps[chosen].sum()),
        "outcomes": float((~success.isnan()).sum()),
        "successes": float(success.nansum()),
        "rewarded": 0.0,
        "env_return": 0.0,
    }
    reward = batch.recorded.get("reward")
    if reward is not None and reward.values.shape == batch.mask.shape:
        mask = batch.mask[chosen]
        whole = (reward.valid[chosen] | ~mask).all(1)
        total["rewarded"] = float(whole.sum())
        total["env_return"] = float(reward.values[chosen].masked_fill(~mask, 0.0).sum(1)[whole].sum())
    return total


__all__ = [
    "CURVES",
    "LearningRecord",
    "SuccessPoint",
    "count_successes",
    "ended_totals",
    "read_learning_record",
]
