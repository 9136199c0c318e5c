"""Retraining of a reward model on the episodes that fooled it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import lightning
import torch
from torch import Tensor, nn

from ...core.batch import Labelled, TrajectoryBatch
from ...core.interfaces import RewardModel
from ...rewards.calibration import Calibrated
from .spot_labels import as_failures


class Retrain:
    """Recipe for retraining a reward model on the episodes that fooled it; a subclass implements ``__call__``."""

    def __call__(self, reward: RewardModel, fooled: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute new weights of a reward model.

        Args:
            reward: Reward model that the policy is trained with; it must not be changed.
            fooled: False positives: whole episodes that failed although the reward model claims that they succeeded.

        Returns:
            State dictionary for ``reward.load_state_dict``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not retrain: implement __call__(reward, fooled)")


class PushBack(Retrain):
    """Continued training on the training data, and on the false positives with labels of failures.

    Success is 0 at every observation of a failed episode. Its true progress is unknown; as in the push-back of
    PROGRESSOR (Ayalew et al. 2024, arXiv:2411.17764), the target is a share of what the model predicts now. The
    training data keep the model from forgetting what success looks like.

    Args:
        data: Labelled training data of the reward model, such as `EpisodeData`.
        steps: Number of updates.
        learning_rate: Learning rate of AdamW.
        weight: Weight of the loss on the false positives; the loss on the training data has weight 1.
        progress_decay: Target progress of a false positive as a share of its present prediction, in [0, 1].
        batch_size: Number of false positives per update.
        seed: Random seed of their order.

    Raises:
        ValueError: If a number lies outside its range.
    """

    def __init__(
        self,
        data: lightning.LightningDataModule,
        steps: int = 200,
        learning_rate: float = 3e-4,
        weight: float = 1.0,
        progress_decay: float = 0.9,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        if steps < 1 or batch_size < 1 or learning_rate <= 0 or weight <= 0 or not 0 <= progress_decay <= 1:
            raise ValueError(
                f"steps {steps}, batch_size {batch_size}, learning_rate {learning_rate}, weight {weight}, "
                f"progress_decay {progress_decay}: expected positive numbers, the last one in [0, 1]"
            )
        self.data, self.steps, self.learning_rate, self.weight = data, steps, learning_rate, weight
        self.progress_decay, self.batch_size, self.seed = progress_decay, batch_size, seed

    def __call__(self, reward: RewardModel, fooled: TrajectoryBatch) -> dict[str, Tensor]:
        """Train a copy of the reward model and return its weights.

        Args:
            reward: Reward model that the policy is trained with; it is not changed.
            fooled: False positives.

        Returns:
            State dictionary for ``reward.load_state_dict``.

        Raises:
            ValueError: If nothing in the reward model can be trained, it is calibrated, or there is no training data.
            FloatingPointError: If the loss becomes NaN or infinite.
        """
        if any(isinstance(part, Calibrated) for part in reward.modules()):
            raise ValueError(
                "a calibrated reward cannot be pushed back: its map and its limits were fitted to the old weights; "
                "watch the reward inside, and calibrate again after training"
            )
        copied = copy.deepcopy(reward)
        learner = trainable_part(copied)
        trained = unfrozen_parameters(learner)
        device = next(iter(trained)).device
        rows = self._labelled(learner.eval(), fooled.to(device))
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        generator = torch.Generator().manual_seed(self.seed)
        batches = self._batches()
        learner.train()
        with torch.enable_grad():
            for parameter in trained:
                parameter.requires_grad_(True)
            for step in range(self.steps):
                chosen = torch.randperm(len(rows), generator=generator)[: self.batch_size]
                kept = learner.loss(next(batches).to(device))["loss"]
                pushed = learner.loss(rows[chosen])["loss"]
                loss = kept + self.weight * pushed
                if not bool(loss.isfinite()):
                    raise FloatingPointError(
                        f"pushing back diverged at update {step}: the loss is {float(loss)}; lower learning_rate"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return {name: value.detach().clone() for name, value in copied.state_dict().items()}

    @torch.no_grad()
    def _labelled(self, learner: RewardModel, fooled: TrajectoryBatch) -> TrajectoryBatch:
        """Label episodes as failures, with a share of the present progress as target."""
        rows = as_failures(fooled)
        progress = learner(rows).progress
        if progress is None:
            return rows
        lower = Labelled(values=self.progress_decay * progress.values, valid=progress.valid)
        return replace(rows, labels={**rows.labels, "progress": lower})

    def _batches(self) -> Iterator[TrajectoryBatch]:
        """Yield batches of the training data without end."""
        self.data.setup("fit")
        loader = self.data.train_dataloader()
        while True:
            count = 0
            for batch in loader:
                count += 1
                yield cast(TrajectoryBatch, batch)
            if not count:
                raise ValueError("pushing back needs the reward's training data: the loader gave no batch")


def trainable_part(reward: RewardModel) -> RewardModel:
    """Return the outermost part of a reward model that has a loss; the parts around it scale, sum and shape.

    Args:
        reward: Reward model.

    Raises:
        ValueError: If no part has a loss.
    """
    for module in reward.modules():
        if isinstance(module, RewardModel) and type(module).loss is not RewardModel.loss:
            return module
    raise ValueError(f"{type(reward).__name__} holds nothing to train: none of its models has a loss(batch)")


def unfrozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters outside frozen encoders, whether they require gradients now or not.

    Args:
        model: Model to train; while it serves as a reward, none of its parameters requires gradients.

    Raises:
        ValueError: If there is none.
    """
    frozen = {
        id(parameter)
        for module in model.modules()
        if getattr(module, "frozen_reference", False) is True or getattr(module, "trainable", True) is False
        for parameter in module.parameters()
    }
    found = [p for p in model.parameters() if id(p) not in frozen]
    if not found:
        raise ValueError(f"{type(model).__name__} has no weight outside its frozen encoders: nothing to train")
    return found


__all__ = ["PushBack", "Retrain", "trainable_part", "unfrozen_parameters"]
