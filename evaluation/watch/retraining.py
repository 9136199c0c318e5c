"""Retraining of the reward model during a run: when, and on which episodes."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...core.batch import TrajectoryBatch
from ...core.interfaces import RewardModel
from .metrics import EpisodeRecord
from .push_back import Retrain
from .spot_labels import stack_rows


class Retraining:
    """Collection of a reward model's false positives, and its retraining on them.

    Args:
        retrain: Recipe that computes new weights, such as `PushBack`; None never retrains.
        max_retrains: Largest number of times the reward model is retrained; after that an alarm of false positives is
            treated like any other.
        keep: Number of false positives per process kept in memory, the latest ones.

    Raises:
        ValueError: If a number lies outside its range.
    """

    def __init__(self, retrain: Retrain | None = None, max_retrains: int = 3, keep: int = 64) -> None:
        if max_retrains < 0 or keep < 1:
            raise ValueError(
                f"max_retrains {max_retrains}, keep {keep}: expected at least 0 of the first, at least 1 of the second"
            )
        self.retrain, self.max_retrains = retrain, max_retrains
        self.retrained = 0
        """Number of times the reward model was retrained."""
        self._fooled: deque[tuple[str, TrajectoryBatch]] = deque(maxlen=keep)

    @property
    def collected(self) -> list[tuple[str, TrajectoryBatch]]:
        """Names and episodes (batches of one row) of the false positives on this process, the oldest first."""
        return list(self._fooled)

    def collect(self, rows: TrajectoryBatch, records: Sequence[EpisodeRecord], threshold: float | int) -> None:
        """Keep the failed episodes that the reward model takes for successes; none without a recipe.

        Args:
            rows: Finished episodes of a rollout.
            records: Record of each episode.
            threshold: Smallest score that claims a success.
        """
        if self.retrain is not None:
            fooled = [i for i, record in enumerate(records) if record.success == 0 and record.claimed(threshold)]
            self._fooled.extend((records[i].name, stack_rows([rows[i]])) for i in fooled)

    def is_due(self, alarms: Sequence[str]) -> bool:
        """Return whether the reward model is to be retrained.

        Args:
            alarms: Names of the alarms of a rollout.
        """
        return "false_positives" in alarms and self.retrain is not None and self.retrained < self.max_retrains

    def weights(self, reward: RewardModel, fooled: Mapping[str, TrajectoryBatch]) -> dict[str, Tensor] | None:
        """Compute new weights of the reward model.

        Args:
            reward: Reward model in use; it is not changed.
            fooled: False positives by name, one row each.

        Returns:
            State dictionary; None where there is no false positive, as after resuming a run, or no recipe.
        """
        if self.retrain is None or not fooled:
            return None
        return self.retrain(reward, stack_rows(list(fooled.values())))

    def finish(self) -> None:
        """Count a retraining and drop the false positives of the old weights."""
        self.retrained += 1
        self._fooled.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the count; the false positives are not part of it."""
        return {"retrained": self.retrained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the values that ``state_dict`` returned.

        Args:
            state_dict: Values of a checkpoint; other keys are ignored.
        """
        self.retrained = state_dict["retrained"]
