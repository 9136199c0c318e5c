"""Start of a training run of a reward model: sizes, precision and normaliser from the data of the run."""

from collections.abc import Iterable
from typing import Any, cast

import lightning

from ..core.batch import TrajectoryBatch
from ..core.interfaces import Component, Normalised
from ..core.sizes import HasSizes, require_sizes, take_sizes
from .model_inputs import ModelInputs


def prepare_model(module: lightning.LightningModule, model: Component, stage: str) -> None:
    """Build a model whose sizes come from the data, and refuse what cannot work before anything is loaded.

    Args:
        module: Training module, which holds the model.
        model: Model that is trained.
        stage: Stage of the trainer, such as ``"fit"`` or ``"validate"``.

    Raises:
        ValueError: If the precision would cut trajectories to half precision, the model was made for data of other
            sizes or still lacks one, or nothing of it can be trained.
    """
    if str(module.trainer.precision) in ("bf16-true", "16-true"):
        raise ValueError(
            f"precision {module.trainer.precision} would cut states, rewards and labels to half precision: use "
            "bf16-mixed or 32-true"
        )
    data: object = cast(Any, module.trainer).datamodule
    if isinstance(data, HasSizes):
        take_sizes(module, data.sizes)
    require_sizes(model)
    if stage == "fit" and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has nothing to train: use it as it is")


def fit_normaliser(module: lightning.LightningModule, model: Component, batches: Iterable[TrajectoryBatch]) -> None:
    """Fit the normaliser of a model that has none yet; every process takes the numbers of the first.

    Args:
        module: Training module, which holds the model.
        model: Model that is trained.
        batches: Training data, read only where the normaliser is not fitted.
    """
    if not isinstance(model, Normalised) or model.normalised:
        return
    model.fit_normaliser(batches)
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2].startswith("state_"):
            buffer.copy_(module.trainer.strategy.broadcast(buffer))


def check_frames(inputs: ModelInputs, data: object) -> None:
    """Refuse cached features that the model itself would not compute from the same frames when it scores.

    Args:
        inputs: Inputs that the model reads.
        data: Data module of its training data; only one with an encoder is checked.

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


__all__ = ["check_frames", "fit_normaliser", "prepare_model"]
