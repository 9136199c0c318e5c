"""Trains a reward model: the LightningModule that ``guerdon fit`` runs."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import lightning
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ..backbones.model_inputs import inputs_of
from ..backbones.optimization import ScheduledAdamW
from ..backbones.training_setup import check_frames, fit_normaliser, prepare_model
from ..core.batch import TrajectoryBatch
from ..core.interfaces import RewardModel
from ..core.metrics import value_order_correlation
from ..datasets.labels import LabelFactory


class RewardTraining(lightning.LightningModule):
    """Training of a reward model: minimises ``reward.loss`` with AdamW and logs all its parts.

    At the start, mean and standard deviation of the state are fitted on the training data, once; a resumed run keeps
    them. Sizes that the model lacks come from the data. In validation the value-order correlation of rows that are
    neither negatives nor known failures is logged as ``val_value_order``.

    Args:
        reward: Reward model to train, which is saved at the end.
        learning_rate: Largest learning rate, above 0.
        weight_decay: Weight decay of AdamW on weights with two dimensions or more, at least 0.
        warmup_steps: Number of updates over which the learning rate rises from 0.
        schedule: Learning rate after the warm-up: constant, or falling to 0 as half a cosine until the last update.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        reward: RewardModel,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 0,
        schedule: Literal["constant", "cosine"] = "constant",
    ) -> None:
        super().__init__()
        if learning_rate <= 0 or weight_decay < 0 or warmup_steps < 0:
            raise ValueError(
                f"learning_rate {learning_rate}, weight_decay {weight_decay}, warmup_steps {warmup_steps}: expected "
                "a positive number and none below 0"
            )
        self.reward = reward
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps = warmup_steps
        self.schedule: Literal["constant", "cosine"] = schedule

    def setup(self, stage: str) -> None:
        """Build a model whose sizes come from the data, and refuse what cannot work before anything is loaded.

        Raises:
            ValueError: If the precision would cut trajectories to half precision, the model was made for data of other
                sizes or still lacks one, or nothing of it can be trained.
        """
        prepare_model(self, self.reward, stage)

    def on_fit_start(self) -> None:
        """Check that the data have targets, and fit the normaliser; every process takes that of the first."""
        data = cast(Any, self.trainer).datamodule
        if hasattr(data, "outcomes") and isinstance(getattr(data, "labels", None), LabelFactory):
            check_outcomes(data.outcomes, data.labels)
        check_frames(inputs_of(self.reward), data)
        fit_normaliser(self, self.reward, self._state_batches(data))

    def _state_batches(self, data: object) -> Iterator[TrajectoryBatch]:
        if hasattr(data, "state_batches"):  # without decoding a frame
            yield from cast(Any, data).state_batches()
        else:
            self.trainer.fit_loop.setup_data()
            yield from cast(Any, self.trainer.train_dataloader)

    def training_step(self, batch: TrajectoryBatch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        parts = self.reward.loss(batch)
        self.log_dict({f"train_{name}": value.detach() for name, value in parts.items()}, batch_size=len(batch))
        self.log("loss", parts["loss"].detach(), prog_bar=True, logger=False, batch_size=len(batch))
        return parts["loss"]

    def validation_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        """Log the loss and the value-order correlation of progress."""
        parts = self.reward.loss(batch)
        rows = len(batch)
        self.log("val_loss", parts.pop("loss"), prog_bar=True, batch_size=rows, sync_dist=True)
        self.log_dict({f"val_{name}": value for name, value in parts.items()}, batch_size=rows, sync_dist=True)
        negative = batch.labels.get("negative")
        rising = ~batch.success_known | (batch.success > 0)
        original = batch[rising if negative is None else rising & (negative.values[:, 0] == 0)]
        progress = self.reward(original).progress if len(original) else None
        if progress is None:
            return
        order = value_order_correlation(progress.values, original.mask, progress.valid)
        order = order[~order.isnan()]
        if len(order):
            self.log("val_value_order", order.mean(), prog_bar=True, batch_size=len(order), sync_dist=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW without decay on biases and norms, and a schedule by update."""
        settings = ScheduledAdamW(
            learning_rate=self.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
        )
        return settings.configure(self.reward.parameters(), lambda: int(self.trainer.estimated_stepping_batches))


def check_outcomes(outcomes: Mapping[str, int], labels: LabelFactory) -> None:
    """Refuse training episodes without any target, and warn where all are successes.

    Args:
        outcomes: Number of training episodes by outcome, as `EpisodeData` counts them.
        labels: Factory of the targets.

    Raises:
        ValueError: If no episode is a success, and no target can be computed without one.
    """
    counts = ", ".join(f"{count} {name}" for name, count in outcomes.items())
    succeeded = outcomes.get("success", 0) + (outcomes.get("unknown", 0) if labels.assume_success else 0)
    targets = succeeded + outcomes.get("labelled", 0) + (outcomes.get("partial", 0) if labels.partial_success else 0)
    if not targets and labels.progress == "linear":
        raise ValueError(
            f"no training episode is a success ({counts or 'there is none'}): progress has no target and success never "
            "comes; add successes, record progress or success per observation, set partial_success to learn from "
            "partial ones, or, if the unlabelled ones are demonstrations, set assume_success"
        )
    if succeeded and not labels.assume_success and set(outcomes) <= {"success"}:
        warnings.warn(
            f"all {succeeded} training episodes are successes: a success head sees no failed ending, so its "
            "prediction on failures is a guess; add failures, or leave success out of the heads (predicts)",
            stacklevel=2,
        )
