"""Base of reward models over an observation encoder, and the loss of success that several of them share."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..backbones.model_inputs import ModelInputs
from ..core.arguments import folds
from ..core.batch import Labelled, TrajectoryBatch
from ..core.interfaces import RewardModel
from .observation_encoder import ObservationEncoder


class ObservedReward(RewardModel):
    """Base of reward models that hold an observation encoder; a subclass adds heads and writes ``forward``.

    A subclass builds what depends on the sizes of the data only where ``state_size`` is known.

    Args:
        state_size: S, numbers per state; 0 reads no state. None takes that of the observer, or of the training data.
            An observer made without one is given this number, in place.
        observer: Encoder of observations; None encodes the state with the default settings.

    Raises:
        ValueError: If the observer was made for another state size.
    """

    causal = True

    @folds(observer=ObservationEncoder)
    def __init__(self, state_size: int | None = None, observer: ObservationEncoder | None = None) -> None:
        super().__init__()
        observer = ObservationEncoder() if observer is None else observer
        if state_size is not None:
            observer.fill_state_size(state_size)
        self.observer = observer
        self.state_size = observer.state_size
        """S, numbers per state; 0 reads no state, None is not known yet."""

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the model reads."""
        return self.observer.inputs

    @property
    def normalised(self) -> bool:
        """Whether mean and standard deviation of the state are known, or no state is read."""
        return self.observer.normalised

    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Fit mean and standard deviation of the state; see `ObservationEncoder.fit_normaliser`."""
        self.observer.fit_normaliser(batches)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load weights, also those saved before 0.2, when the observer's lay in the model itself."""
        own = dict(self.named_children())
        moved = {
            *(name for name, _ in self.observer.named_children()),
            *(name for name, _ in self.observer.named_parameters(recurse=False)),
            *(name for name, _ in self.observer.named_buffers(recurse=False)),
        } - own.keys()
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name.partition(".")[0] in moved:
                state_dict[f"{prefix}observer.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def balanced_bernoulli(
    logit: Float[Tensor, "B K"], target: Labelled, weight: Float[Tensor, "B K"]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Compute a cross-entropy of success in which positives and negatives weigh the same, however rare one is.

    ½ · mean over positives of −log σ(z) + ½ · mean over negatives of −log(1 − σ(z)); means weighted by ``weight`` and
    by the target itself where it lies between 0 and 1. A side without an entry contributes 0.

    Args:
        logit: z, predicted logit of success.
        target: Success in [0, 1].
        weight: Weight of each entry, at least 0.

    Returns:
        The loss, and the sums of weights of its positives and negatives.
    """
    used = torch.where(target.valid, weight, 0.0)
    positive, negative = used * target.values, used * (1 - target.values)

    def mean(loss: Tensor, share: Tensor) -> Tensor:
        total = share.sum()
        return (loss * share).sum() / torch.where(total > 0, total, 1.0)

    loss = 0.5 * mean(functional.softplus(-logit), positive) + 0.5 * mean(functional.softplus(logit), negative)
    return loss, {"success_positives": positive.sum().detach(), "success_negatives": negative.sum().detach()}


def required_label(batch: TrajectoryBatch, names: tuple[str, ...], model: str) -> dict[str, Labelled]:
    """Return those of the named labels that a batch holds.

    Args:
        batch: Trajectories with labels.
        names: Names of the labels that a model learns from.
        model: Name of the model, for the error.

    Raises:
        ValueError: If the batch holds none of them.
    """
    found = {name: batch.labels[name] for name in names if name in batch.labels}
    if not found:
        raise ValueError(
            f"{model} learns from labels {' and '.join(names)}, this batch holds {sorted(batch.labels) or 'none'}: add "
            "them with guerdon.LabelFactory, or train through EpisodeData, which does"
        )
    return found


__all__ = ["ObservedReward", "balanced_bernoulli", "required_label"]
