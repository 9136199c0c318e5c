"""Trains a reward model: the LightningModule that ``guerdon fit`` runs."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, cast

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ..backbones.model_inputs import ModelInputs, inputs_of
from ..core.batch import TrajectoryBatch
from ..core.interfaces import Normalised, RewardModel
from ..core.metrics import value_order_correlation
from ..core.sizes import HasSizes, require_sizes, take_sizes
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
        self.warmup_steps, self.schedule = warmup_steps, schedule

    def setup(self, stage: str) -> None:
        """Build a model whose sizes come from the data, and refuse what cannot work before anything is loaded.

        Raises:
            ValueError: If the precision would cut trajectories to half precision, the model was made for data of other
                sizes or still lacks one, or nothing of it can be trained.
        """
        if str(self.trainer.precision) in ("bf16-true", "16-true"):
            raise ValueError(
                f"precision {self.trainer.precision} would cut states, rewards and labels to half precision: use "
                "bf16-mixed or 32-true"
            )
        data: object = cast(Any, self.trainer).datamodule
        if isinstance(data, HasSizes):
            take_sizes(self, data.sizes)
        require_sizes(self.reward)
        if stage == "fit" and not any(p.requires_grad for p in self.reward.parameters()):
            raise ValueError(f"{type(self.reward).__name__} has nothing to train: use it as it is")

    def on_fit_start(self) -> None:
        """Check that the data have targets, and fit the normaliser; every process takes that of the first."""
        data = cast(Any, self.trainer).datamodule
        if hasattr(data, "outcomes") and isinstance(getattr(data, "labels", None), LabelFactory):
            check_outcomes(data.outcomes, data.labels)
        check_frames(inputs_of(self.reward), data)
        if not isinstance(self.reward, Normalised) or self.reward.normalised:
            return
        if hasattr(data, "state_batches"):  # without decoding a frame
            self.reward.fit_normaliser(data.state_batches())
        else:
            self.trainer.fit_loop.setup_data()
            loader = cast(Any, self.trainer.train_dataloader)
            self.reward.fit_normaliser(cast(TrajectoryBatch, batch) for batch in loader)
        for name, buffer in self.reward.named_buffers():
            if name.rpartition(".")[2].startswith("state_"):
                buffer.copy_(self.trainer.strategy.broadcast(buffer))

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
        trained = [p for p in self.reward.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
                {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
        )
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        total = int(self.trainer.estimated_stepping_batches) if self.schedule == "cosine" else 0

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / (self.warmup_steps + 1)
            if self.schedule == "constant":
                return 1.0
            done = (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_frames(inputs: ModelInputs, data: object) -> None:
    """Refuse cached features that the model itself would not compute from the same frames when it scores.

    Args:
        inputs: Inputs that the model reads.
        data: Data module of its training data; only an `EpisodeData` with an encoder is checked.

    Raises:
        ValueError: If the encoder of the data has the model's encoder's name and other weights, or is shown frames of
            another size.
    """
    encoder = getattr(data, "encoder", None)
    if inputs.encoder is None or encoder is None or encoder.name != inputs.encoder.name:
        return
    if encoder is not inputs.encoder and encoder.revision != inputs.encoder.revision:
        raise ValueError(
            f"the data's encoder {encoder.name} has revision {encoder.revision}, the model's has "
            f"{inputs.encoder.revision}: name the same checkpoint in both places"
        )
    size = getattr(data, "frame_size", None)
    if size != inputs.frame_size:
        raise ValueError(
            f"the data show their encoder frames of size {size}, the model asks for {inputs.frame_size} when it "
            "scores: set the same frame_size in both places"
        )


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
