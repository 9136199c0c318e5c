"""Trains a reward model further on what fooled it."""

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
    """Makes a better reward out of the episodes that fooled it; a subclass writes ``__call__``."""

    def __call__(self, reward: RewardModel, fooled: TrajectoryBatch) -> dict[str, Tensor]:
        """New weights of a reward.

        Args:
            reward: As it is used for training the policy; it must not be changed.
            fooled: Whole episodes that failed although the reward says that they succeeded.

        Returns:
            A state dictionary for ``reward.load_state_dict``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not retrain: write __call__(reward, fooled)")


class PushBack(Retrain):
    """Trains on: on the training data, and on what fooled the reward as failures.

    Success is 0 at every observation of an episode that failed. Its true progress nobody knows; as in the push-back of
    PROGRESSOR (Ayalew et al. 2024, arXiv:2411.17764), it is pulled down to a share of what the model says now. The
    training data keep the model from forgetting what success looks like.

    Args:
        data: The reward's training data with labels, such as `EpisodeData`.
        steps: Updates.
        learning_rate: Of AdamW.
        weight: Of the loss on the episodes that fooled it, next to that on the training data.
        progress_decay: Share of its present progress that an episode that fooled it should show, in [0, 1].
        batch_size: Episodes that fooled it in an update.
        seed: Of their order.

    Raises:
        ValueError: If an argument makes no sense.
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
        """Train a copy and return its weights.

        Raises:
            ValueError: If nothing in the reward can be trained, or it is calibrated.
            FloatingPointError: If the loss stops being a number.
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
        rows = as_failures(fooled)
        progress = learner(rows).progress
        if progress is None:
            return rows
        lower = Labelled(values=self.progress_decay * progress.values, valid=progress.valid)
        return replace(rows, labels={**rows.labels, "progress": lower})

    def _batches(self) -> Iterator[TrajectoryBatch]:
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
    """The outermost model in a reward that has a loss: what is inside scales, sums and shapes.

    Raises:
        ValueError: If there is none.
    """
    for module in reward.modules():
        if isinstance(module, RewardModel) and type(module).loss is not RewardModel.loss:
            return module
    raise ValueError(f"{type(reward).__name__} holds nothing to train: none of its models has a loss(batch)")


def unfrozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters outside frozen encoders; whether they ask for gradients does not matter, a reward in use never does.

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
