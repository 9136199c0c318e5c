"""Drift of the policy's observations from the training data of the reward model."""

import math
from collections.abc import Sequence
from pathlib import Path

import lightning

from ...core.batch import TrajectoryBatch
from ...core.interfaces import RewardModel
from .drift import Kind, TrainingFeatures, learn_training_features
from .rollouts import RolloutSummary

FEATURES = "training_features.safetensors"
"""Name of the file with the fitted features, in the folder of the watch."""


class TrainingDrift:
    """Count of the policy's observations that lie outside the training data of the reward model.

    Args:
        training: Training data of the reward model, or features fitted to them (`fit_training_features`); None measures
            no drift.
        features: Features to compare: ``"hidden"``, those that the reward model's heads read, or ``"state"``; None
            takes hidden features where the reward model has such.
    """

    def __init__(
        self,
        training: lightning.LightningDataModule | TrainingFeatures | None = None,
        features: Kind | None = None,
    ) -> None:
        self.training = training
        self.features: Kind | None = features
        self._fitted: TrainingFeatures | None = None

    def fit(self, reward: RewardModel, folder: Path, writes: bool = True) -> None:
        """Load or fit the features of the training data; those of other weights are dropped.

        Args:
            reward: Reward model in evaluation mode.
            folder: Folder of the file with the features.
            writes: Whether features that are fitted now are written to the file.

        Raises:
            ValueError: If there are too few training episodes, or the features asked for do not exist.
        """
        if self.training is not None:
            self._fitted = learn_training_features(reward, self.training, folder / FEATURES, self.features, writes)

    def count(self, reward: RewardModel, batch: TrajectoryBatch) -> tuple[int, int]:
        """Count the observations of a rollout outside the training data, and all of them.

        Args:
            reward: Reward model in evaluation mode.
            batch: Rollout.

        Returns:
            Number outside and number of observations; both 0 where no features are fitted.
        """
        return self._fitted.beyond(reward, batch) if self._fitted is not None else (0, 0)

    def metrics(self, summaries: Sequence[RolloutSummary]) -> dict[str, float]:
        """Compute ``drift``, the share of observations outside the training data; NaN without observations.

        Args:
            summaries: Summaries of rollouts.
        """
        total = sum(summaries, RolloutSummary())
        return {"drift": total.beyond / total.observations if total.observations else math.nan}
