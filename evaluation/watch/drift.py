"""How far what a policy does lies from what a reward model was trained on."""

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
_LEAST_SHRINKAGE = 1e-3  # a number that never changed in training must not have a variance of zero


class TrainingFeatures:
    """Mean and covariance of a reward model's training observations, and how far held-out ones of them lie from it.

    The distance is Mahalanobis', √((x − μ)ᵀ Σ⁻¹ (x − μ)) on standardised numbers (as in Lee et al. 2018,
    arXiv:1807.03888, for hidden features), Σ shrunk towards a multiple of the identity as Ledoit and Wolf (2004) do. By
    construction 1 − quantile of the held-out training observations lie beyond the threshold.

    Args:
        kind: ``"hidden"``: the features a model's heads read; ``"state"``: the recorded state.
        mean: μ, (D,).
        scale: Standard deviations, (D,); 1 where a number never changed.
        precision: Σ⁻¹, (D, D).
        threshold: Quantile of the distances of held-out training observations.
        quantile: In (0, 1).
        weights: Fingerprint of the model whose features these are; empty for ``"state"``.
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
        """Mahalanobis distance of every observation to the training mean.

        Raises:
            ValueError: If there are more or fewer numbers than in training.
        """
        if features.shape[1] != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} numbers per observation, got {features.shape[1]}")
        away = (features.double().cpu() - self.mean) / self.scale
        return ((away @ self.precision) * away).sum(1).clamp(min=0).sqrt()

    @torch.no_grad()
    def beyond(self, model: RewardModel, batch: TrajectoryBatch) -> tuple[int, int]:
        """Observations of a batch beyond the threshold, and all of them; context (weight 0) is left out."""
        features, _ = observation_features(model, batch, self.kind)
        return int((self.distances(features) > self.threshold).sum()), len(features)

    def fits(self, model: RewardModel) -> bool:
        """Whether these are features of the model as it is."""
        return self.kind == "state" or self.weights == fingerprint(model)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {"mean": self.mean, "scale": self.scale, "precision": self.precision}
        said = {"kind": self.kind, "threshold": self.threshold, "quantile": self.quantile, "weights": self.weights}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as fresh:
            save_file({k: v.contiguous() for k, v in tensors.items()}, fresh, metadata={"training": json.dumps(said)})

    @staticmethod
    def load(path: str | Path) -> "TrainingFeatures":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no {path}: fit_training_features(…).save(path) writes it")
        try:
            with safe_open(path, "pt") as file:
                said = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in ("mean", "scale", "precision")}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no training features: {error}; fit them again") from error
        return TrainingFeatures(**tensors, **said)


def observed_part(model: RewardModel) -> ObservedReward | None:
    """The first model inside that turns observations into hidden features."""
    return next((m for m in model.modules() if isinstance(m, ObservedReward)), None)


def fingerprint(model: RewardModel) -> str:
    """Hash of the weights that make the hidden features, 16 hexadecimal digits; empty where there are none."""
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
    """Numbers per observation made, and the row of each; observations between context steps (weight 0) are left out.

    Raises:
        ValueError: If hidden features are asked of a model that has none, or states of data without.
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
    """Fit mean and covariance on most training episodes, and the threshold on the others.

    Args:
        model: The reward model, in evaluation mode.
        batches: Of its training set; negatives (a label ``negative`` of 1) are left out.
        kind: None takes ``"hidden"`` where the model has such features, else ``"state"``.
        quantile: Share of held-out training observations that count as familiar.
        hold_out: Every how many episodes one is held out.
        limit: Batches at most.

    Raises:
        ValueError: If there are too few episodes to hold one out.
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
            f"cannot say how far training observations lie: expected at least {hold_out} training episodes, to hold "
            f"one out, got {len(number.unique())} (negatives are left out)"
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
    """Features of the training data: as given, as a file holds them for these weights, or computed now.

    Args:
        reward: In evaluation mode.
        training: Features, or the data to compute them from; where the reward looks through no camera, from whole
            training episodes without negatives.
        file: Where an earlier part of the run left them.
        kind: See `fit_training_features`.
        writes: Leave what was computed in the file.

    Returns:
        None where the given features are those of other weights, which say nothing of these.
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
