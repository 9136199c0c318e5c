"""Prediction heads of a reward model: progress, success, preference and remaining time."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import Component
from ..core.losses import bradley_terry, from_two_hot, two_hot
from ..preference.pairs import preference_pairs
from .encoded_observations import EncodedObservations
from .observed import balanced_bernoulli

PREDICTS = ("progress", "success", "preference", "remaining")
"""Names of the heads, in the order of their weights."""


class PredictionSettings(Component):
    """Heads of a reward model, and the weights of their parts in its reward and its loss.

    Args:
        predicts: Names of the heads, any of `PREDICTS`, at least one.
        bins: Number of centres of progress on [0, 1], and of remaining time on [0, log(1 + longest)]; at least 2.
        success_weight: Weight of the success probability in Φ.
        success_loss_weight: Weight of the success loss.
        preference_loss_weight: Weight of the Bradley–Terry loss.
        remaining_loss_weight: Weight of the loss of remaining time.
        longest: Largest number of remaining control steps that is predicted, at least 1.

    Raises:
        ValueError: If an argument is out of its range, or the reward would be 0 everywhere.
    """

    def __init__(
        self,
        predicts: tuple[str, ...] | list[str] = ("progress", "success"),
        bins: int = 25,
        success_weight: float = 0.0,
        success_loss_weight: float = 1.0,
        preference_loss_weight: float = 1.0,
        remaining_loss_weight: float = 1.0,
        longest: int = 1000,
    ) -> None:
        super().__init__()
        unknown = [name for name in predicts if name not in PREDICTS]
        if unknown or not predicts or len(set(predicts)) < len(predicts):
            raise ValueError(f"predicts {list(predicts)}: expected some of {', '.join(PREDICTS)}, each once")
        if bins < 2 or longest < 1:
            raise ValueError(f"bins is {bins}, longest {longest}: expected at least 2 and at least 1")
        if set(predicts) <= {"success", "preference"} and "success" in predicts and success_weight <= 0:
            raise ValueError(
                f"predicts {list(predicts)} with success_weight {success_weight}: the reward would be 0; give a "
                "positive weight, or use SuccessReward"
            )
        self.predicts, self.bins, self.longest = tuple(predicts), bins, longest
        self.success_weight, self.success_loss_weight = success_weight, success_loss_weight
        self.preference_loss_weight, self.remaining_loss_weight = preference_loss_weight, remaining_loss_weight


class Heads(nn.Module):
    """A linear head for each prediction, the estimates they give together, and their losses.

    The reward is the change of a potential Φ = progress + success_weight · success. Without a progress head,
    1 − remaining / longest takes its place. A model with a preference head alone rewards every step with the score of
    the observation it leads to.

    Args:
        width: D, numbers per hidden feature vector.
        predictions: What is predicted, and with what weights; None predicts progress and success.
    """

    def __init__(self, width: int, predictions: PredictionSettings | None = None) -> None:
        super().__init__()
        self.predictions = PredictionSettings() if predictions is None else predictions
        sizes = {"progress": self.predictions.bins, "success": 1, "preference": 1, "remaining": self.predictions.bins}
        names = [name for name in PREDICTS if name in self.predictions.predicts]
        self.of = nn.ModuleDict({name: nn.Linear(width, sizes[name]) for name in names})

    def _read(self, name: str, encoded: EncodedObservations) -> Float[Tensor, "B K N"]:
        return self.of[name](encoded.hidden).float()

    def estimates(self, encoded: EncodedObservations, batch: TrajectoryBatch) -> RewardEstimates:
        """Predict at every observation, holding values between evaluated ones, and reward the change of the potential.

        Returns:
            ``terms`` holds the change of progress and of success, neither weighted, and at the observation each step
            leads to the remaining control steps (``"remaining"``) and the score (``"preference"``; that of a trajectory
            is its mean over evaluated observations). ``std`` is √(σ²_t + σ²_{t+1}) of the predicted distributions of Φ,
            as if errors at both ends were independent. They are not, so it ranks steps rather than bounds their error.
            A model of preferences alone has none.
        """
        settings, batch = self.predictions, encoded.match_device(batch)
        place, valid = encoded.last_at_observations(batch)
        known = batch.mask & valid[:, 1:] & valid[:, :-1]

        def hold(values: Tensor) -> Tensor:
            return torch.where(valid, values.gather(1, place), 0.0)

        def change(values: Tensor) -> Tensor:
            return torch.where(known, values[:, 1:] - values[:, :-1], 0.0)

        found: dict[str, Any] = {}
        terms: dict[str, Tensor] = {}
        potential, spread = torch.zeros_like(encoded.hidden[..., 0]).float(), torch.zeros_like(encoded.hidden[..., 0])
        if "progress" in self.of:
            potential, spread = _moments(self._read("progress", encoded), torch.linspace(0, 1, settings.bins))
            potential = potential.clamp(0, 1)
            found["progress"] = Labelled(values=hold(potential), valid=valid)
            terms["progress"] = change(found["progress"].values)
        if "remaining" in self.of:
            steps = torch.linspace(0, math.log1p(settings.longest), settings.bins).expm1()
            left, doubt = _moments(self._read("remaining", encoded), steps)
            terms["remaining"] = torch.where(known, hold(left.clamp(0, settings.longest))[:, 1:], 0.0)
            if "progress" not in self.of:
                potential, spread = 1 - left.clamp(0, settings.longest) / settings.longest, doubt / settings.longest**2
        if "success" in self.of:
            chance = self._read("success", encoded)[..., 0].sigmoid()
            found["success"] = Labelled(values=hold(chance), valid=valid)
            terms["success"] = change(found["success"].values)
            potential = potential + settings.success_weight * chance
            spread = spread + settings.success_weight**2 * chance * (1 - chance)
        rewards, held = change(hold(potential)), hold(spread)
        std = torch.where(known, (held[:, 1:] + held[:, :-1]).sqrt(), 0.0)
        if "preference" in self.of:
            terms["preference"] = torch.where(known, hold(self._read("preference", encoded)[..., 0])[:, 1:], 0.0)
        if settings.predicts == ("preference",):
            return RewardEstimates(rewards=terms["preference"], valid=known, terms=terms)
        return RewardEstimates(rewards=rewards, valid=known, std=std, terms=terms, **found)

    def loss(self, encoded: EncodedObservations, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the losses at evaluated observations, and their weighted sum ``"loss"``.

        Two-hot cross-entropy of progress and of log(1 + remaining steps); cross-entropy of success, in which positives
        and negatives count the same; Bradley–Terry on the mean score of the rows that `preference_pairs` compares.
        Entries without a valid label are left out, and each counts with the weight of the steps at its observation. A
        batch without any gives 0 (with a gradient of 0), and the counts are 0.

        Raises:
            ValueError: If the batch holds none of the labels these heads learn from.
        """
        self._check_labels(batch)
        settings, batch = self.predictions, encoded.match_device(batch)
        weight = encoded.weights(batch)
        total = 0.0 * torch.stack([self._read(name, encoded).sum() for name in self.of]).sum()
        parts: dict[str, Tensor] = {}
        if "progress" in self.of and "progress" in batch.labels:
            target = encoded.select(batch.labels["progress"])
            logits, used = self._read("progress", encoded), torch.where(target.valid, weight, 0.0)
            parts["progress_loss"] = _two_hot_loss(logits, target.values, used, 1.0)
            error = (from_two_hot(logits.softmax(-1), 0.0, 1.0) - target.values).abs()
            parts["progress_error"] = (error * _share(used)).sum().detach()
            parts["progress_labels"] = (used > 0).sum().float()
            total = total + parts["progress_loss"]
        if "success" in self.of and "success" in batch.labels:
            target = encoded.select(batch.labels["success"])
            loss, counts = balanced_bernoulli(self._read("success", encoded)[..., 0], target, weight)
            parts |= {"success_loss": loss, **counts}
            total = total + settings.success_loss_weight * loss
        if "remaining" in self.of and "remaining" in batch.labels:
            target = encoded.select(batch.labels["remaining"])
            logits, used = self._read("remaining", encoded), torch.where(target.valid, weight, 0.0)
            wanted = target.values.clamp(0, settings.longest).log1p()
            parts["remaining_loss"] = _two_hot_loss(logits, wanted, used, math.log1p(settings.longest))
            parts["remaining_labels"] = (used > 0).sum().float()
            total = total + settings.remaining_loss_weight * parts["remaining_loss"]
        if "preference" in self.of:
            parts |= self._preference(encoded, batch, weight)
            total = total + settings.preference_loss_weight * parts["preference_loss"]
        return {"loss": total, **parts}

    def _preference(self, encoded: EncodedObservations, batch: TrajectoryBatch, weight: Tensor) -> dict[str, Tensor]:
        score = pooled(self._read("preference", encoded)[..., 0], (weight > 0) & encoded.mask)
        pairs = preference_pairs(batch)
        chosen, rejected = score[pairs.chosen], score[pairs.rejected]
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        return {
            "preference_loss": bradley_terry(chosen, rejected),
            "preference_accuracy": (right.sum() / max(len(right), 1)).detach(),
            "preference_pairs": torch.tensor(float(len(right)), device=score.device),
        }

    def _check_labels(self, batch: TrajectoryBatch) -> None:
        predicts, wanted = self.predictions.predicts, {"preference": ("progress", "success")}
        names = list(dict.fromkeys(n for head in predicts for n in wanted.get(head, (head,))))
        if not any(name in batch.labels for name in names):
            raise ValueError(
                f"the heads {', '.join(predicts)} learn from labels {' and '.join(names)}, this batch holds "
                f"{sorted(batch.labels) or 'none'}: add them with guerdon.LabelFactory, or train "
                "through EpisodeData, which does"
            )


def pooled(score: Float[Tensor, "B K"], used: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Average the score of a row over its evaluated observations; 0 for a row without any.

    Args:
        score: Score of each evaluated observation.
        used: True on the observations that count.
    """
    return torch.where(used, score, 0.0).sum(1) / used.sum(1).clamp(min=1)


def _moments(logits: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of distributions over centres."""
    probs, centres = logits.softmax(-1), centres.to(logits.device)
    mean = (probs * centres).sum(-1)
    return mean, (probs * (centres - mean[..., None]).square()).sum(-1)


def _share(used: Tensor) -> Tensor:
    return used / torch.where(used.sum() > 0, used.sum(), 1.0)


def _two_hot_loss(logits: Tensor, target: Tensor, used: Tensor, high: float) -> Tensor:
    wanted = two_hot(target, 0.0, high, logits.shape[-1])
    return (-(wanted * functional.log_softmax(logits, -1)).sum(-1) * _share(used)).sum()
