"""Distance of observations from the training data of a reward model."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from ...backbones.model_inputs import inputs_of
from ...core.batch import TrajectoryBatch
from ...core.files import replacing
from ...core.interfaces import RewardModel
from ...rewards.observed import ObservedReward

Kind = Literal["hidden", "state"]
"""Features of an observation: hidden features of the reward model, or the recorded state."""

_LEAST_SHRINKAGE = 1e-3  # a number that never changed in training must not have a variance of zero


class TrainingFeatures:
    """Mean and covariance of the features of training observations, and a threshold of the distance from them.

    The distance is Mahalanobis', √((x − μ)ᵀ Σ⁻¹ (x − μ)) on standardised features (as in Lee et al. 2018,
    arXiv:1807.03888, for hidden features), with Σ shrunk towards a multiple of the identity as in Ledoit and Wolf
    (2004). A share of 1 − quantile of the held-out training observations lies beyond the threshold.

    Args:
        kind: Features: ``"hidden"``, those that the model's heads read, or ``"state"``, the recorded state.
        mean: Mean μ of the training observations, (D,).
        scale: Standard deviations, (D,); 1 where a feature is constant.
        precision: Inverse covariance Σ⁻¹ of the standardised features, (D, D).
        threshold: Quantile of the distances of held-out training observations.
        quantile: Level of that quantile, in (0, 1).
        weights: Fingerprint of the model that computed the features; empty for ``"state"``.
    """

    def __init__(
        self,
        kind: Kind,
        mean: Float[Tensor, " D"],
        scale: Float[Tensor, " D"],
        precision: Float[Tensor, "D D"],
        threshold: float,
        quantile: float,
        weights: str,
    ) -> None:
        self.kind: Kind = kind
        self.mean, self.scale, self.precision = mean.double(), scale.double(), precision.double()
        self.threshold, self.quantile, self.weights = threshold, quantile, weights

    def distances(self, features: Float[Tensor, "M D"]) -> Float[Tensor, " M"]:
        """Return the Mahalanobis distance of every observation from the training mean.

        Args:
            features: Features of M observations, (M, D).

        Returns:
            Distances (M,), at least 0.

        Raises:
            ValueError: If the number of features is another than in training.
        """
        if features.shape[1] != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} numbers per observation, got {features.shape[1]}")
        away = (features.double().cpu() - self.mean) / self.scale
        return ((away @ self.precision) * away).sum(1).clamp(min=0).sqrt()

    @torch.no_grad()
    def beyond(self, model: RewardModel, batch: TrajectoryBatch) -> tuple[int, int]:
        """Count the observations of a batch beyond the threshold, and all of them.

        Args:
            model: Reward model in evaluation mode.
            batch: Trajectories; context (weight 0) is left out.

        Returns:
            Number of observations beyond the threshold, and number of observations.

        Raises:
            ValueError: If the model or the batch does not have these features.
        """
        features, _ = observation_features(model, batch, self.kind)
        return int((self.distances(features) > self.threshold).sum()), len(features)

    def fits(self, model: RewardModel) -> bool:
        """Return whether these features are those of a model with its present weights.

        Args:
            model: Reward model.
        """
        return self.kind == "state" or self.weights == fingerprint(model)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: File to write; its folder is made if it is not there.

        Raises:
            OSError: If the file cannot be written.
        """
        tensors = {"mean": self.mean, "scale": self.scale, "precision": self.precision}
        fields = {"kind": self.kind, "threshold": self.threshold, "quantile": self.quantile, "weights": self.weights}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as fresh:
            save_file({k: v.contiguous() for k, v in tensors.items()}, fresh, metadata={"training": json.dumps(fields)})

    @staticmethod
    def load(path: str | Path) -> "TrainingFeatures":
        """Read a file that ``save`` wrote.

        Args:
            path: Safetensors file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no {path}: fit_training_features(…).save(path) writes it")
        try:
            with safe_open(path, "pt") as file:
                fields = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in ("mean", "scale", "precision")}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no training features: {error}; fit them again") from error
        return TrainingFeatures(**tensors, **fields)


def observed_part(model: RewardModel) -> ObservedReward | None:
    """Return the first part of a reward model that computes hidden features of observations; None without one.

    Args:
        model: Reward model.
    """
    return next((m for m in model.modules() if isinstance(m, ObservedReward)), None)


def fingerprint(model: RewardModel) -> str:
    """Return a hash of the weights that compute the hidden features: 16 hexadecimal digits, empty without such weights.

    Args:
        model: Reward model.
    """
    part = observed_part(model)
    if part is None:
        return ""
    digest = hashlib.sha256()
    named = {name.removeprefix("observer."): value for name, value in part.state_dict().items()}  # as before 0.2
    for name, value in sorted(named.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def observation_features(
    model: RewardModel, batch: TrajectoryBatch, kind: Kind
) -> tuple[Float[Tensor, "M D"], Int[Tensor, " M"]]:
    """Return the features of all observations, and the row of each.

    Args:
        model: Reward model in evaluation mode.
        batch: Trajectories; observations between context steps (weight 0) are left out.
        kind: Features to return.

    Returns:
        Features (M, D) and rows (M,) of the M observations, on the host.

    Raises:
        ValueError: If the model has no hidden features, or the batch no state.
    """
    if kind == "state":
        if not batch.state.shape[2]:
            raise ValueError('these trajectories hold no state: ask for kind="hidden"')
        weight = torch.where(batch.mask, batch.weight, 0.0)
        pad = torch.nn.functional.pad
        used = batch.observed & (torch.maximum(pad(weight, (0, 1)), pad(weight, (1, 0))) > 0)
        return batch.state[used].float().cpu(), used.nonzero()[:, 0].cpu()
    part = observed_part(model)
    if part is None:
        raise ValueError(f'{type(model).__name__} holds no model with hidden features: ask for kind="state"')
    encoded = part.observer.encode(batch)
    used = encoded.weights(encoded.match_device(batch)) > 0
    return encoded.hidden[used].float().cpu(), used.nonzero()[:, 0].cpu()


def fit_training_features(
    model: RewardModel,
    batches: Iterable[TrajectoryBatch],
    kind: Kind | None = None,
    quantile: float = 0.99,
    hold_out: int = 4,
    limit: int = 64,
) -> TrainingFeatures:
    """Fit mean and covariance on most training episodes, and the threshold on the held-out ones.

    Args:
        model: Reward model in evaluation mode.
        batches: Batches of its training data; negatives (label ``negative`` of 1) are left out.
        kind: Features; None takes ``"hidden"`` where the model has such, else ``"state"``.
        quantile: Share of held-out training observations within the threshold, in (0, 1).
        hold_out: Interval between held-out episodes, at least 2.
        limit: Largest number of batches.

    Returns:
        Fitted features.

    Raises:
        ValueError: If a number lies outside its range, or there are too few episodes to hold one out.
    """
    if not 0 < quantile < 1 or hold_out < 2:
        raise ValueError(f"expected a quantile in (0, 1) and hold_out of at least 2, got {quantile} and {hold_out}")
    chosen: Kind = kind or ("state" if observed_part(model) is None else "hidden")
    parts: list[Tensor] = []
    episodes: list[Tensor] = []
    for batch in islice(batches, limit):
        negative = batch.labels.get("negative")
        kept = batch if negative is None else batch[negative.values[:, 0] == 0]
        if len(kept):
            features, row = observation_features(model, kept, chosen)
            parts.append(features)
            episodes.append(kept.episode.cpu()[row])
    features, episode = (torch.cat(p) if p else torch.zeros(0) for p in (parts, episodes))
    _, number = episode.unique(return_inverse=True)
    held = number % hold_out == hold_out - 1
    if not bool(held.any()) or int((~held).sum()) < 2:
        raise ValueError(
            f"cannot fit distances of training observations: expected at least {hold_out} training episodes, to hold "
            f"one out, got {len(number.unique())} (negatives are left out); give more, or a smaller hold_out"
        )
    fitted = features[~held].double()
    mean, scale = fitted.mean(0), fitted.std(0)
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1.0)
    standard = ((fitted - mean) / scale).numpy()
    shrinkage = max(float(ledoit_wolf(standard)[1]), _LEAST_SHRINKAGE)
    sample = np.cov(standard, rowvar=False, bias=True).reshape(len(mean), len(mean))
    level = max(float(np.trace(sample)) / len(mean), 1e-12)
    covariance = (1 - shrinkage) * sample + shrinkage * level * np.eye(len(mean))
    precision = torch.from_numpy(np.linalg.inv(covariance))
    weights = fingerprint(model) if chosen == "hidden" else ""
    found = TrainingFeatures(chosen, mean, scale, precision, 0.0, quantile, weights)
    found.threshold = float(np.quantile(found.distances(features[held]).numpy(), quantile, method="higher"))
    return found


def learn_training_features(
    reward: RewardModel,
    training: lightning.LightningDataModule | TrainingFeatures,
    file: Path,
    kind: Kind | None = None,
    writes: bool = True,
) -> TrainingFeatures | None:
    """Return features of the training data: as given, from a file that belongs to these weights, or fitted now.

    Args:
        reward: Reward model in evaluation mode.
        training: Features, or the data to fit them to: whole training episodes without negatives where the reward model
            observes no camera.
        file: File that an earlier part of the run may have written.
        kind: Features; None takes hidden ones where the reward model has such.
        writes: Whether features that are fitted now are written to the file.

    Returns:
        Features; None where those given belong to other weights and do not apply.
    """
    if isinstance(training, TrainingFeatures):
        return training if training.fits(reward) else None
    if file.is_file():
        found = TrainingFeatures.load(file)
        if found.fits(reward) and kind in (None, found.kind):
            return found
    training.setup("fit")
    batches: Iterable[TrajectoryBatch] = training.train_dataloader()
    if hasattr(training, "state_batches") and not inputs_of(reward).cameras:
        batches = cast(Any, training).state_batches()  # no frame is decoded
    found = fit_training_features(reward, batches, kind)
    if writes:
        found.save(file)
    return found
