"""Objectives of reward models that learn from preferences: Bradley–Terry for pairs, a KTO-like loss for flags."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..core.batch import PreferencePairs, RewardEstimates, TrajectoryBatch
from ..core.losses import kto
from ..core.resampling import hashed_keys
from .scores import Reduce, row_scores

Data = TypeVar("Data", PreferencePairs, TrajectoryBatch)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
    """Weighted mean in two parts, which add up over batches."""

    total: Tensor
    """Sum of the weighted values."""
    weight: Tensor
    """Sum of the weights."""

    @property
    def value(self) -> Tensor:
        """The mean; 0 without any weight."""
        return self.total / torch.where(self.weight > 0, self.weight, 1.0)


def preference_log_likelihood(
    gap: Float[Tensor, " P"], label: Float[Tensor, " P"], noise: float | int = 0.0
) -> Float[Tensor, " P"]:
    """Compute the log-likelihood of labels under a Bradley–Terry model in which a share of answers is wrong.

    P(first is better) = (1 − 2ε) σ(Δ) + ε: with probability 2ε an answer is a coin flip, so ε of all answers are wrong
    whatever Δ is (the robust likelihood of Christiano et al. 2017, arXiv 1706.03741, §2.2.3, which takes 2ε = 0.1).
    The result is y log P + (1 − y) log(1 − P). ε = 0 is the Bradley–Terry model. With ε > 0 the likelihood of a label
    is at least ε, and the gradient of one that contradicts a large gap vanishes instead of approaching 1.

    Args:
        gap: Δ, score of the first minus that of the second.
        label: y, probability that the first is better; 0.5 is a tie.
        noise: ε, in [0, 0.5).

    Raises:
        ValueError: If the noise is out of its range.
    """
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise is {noise}: expected a share of wrong answers, at least 0 and below 0.5")
    first, second = functional.logsigmoid(gap), functional.logsigmoid(-gap)
    if noise:
        kept, flipped = math.log1p(-2 * noise), torch.full_like(gap, math.log(noise))
        first, second = torch.logaddexp(kept + first, flipped), torch.logaddexp(kept + second, flipped)
    return label * first + (1 - label) * second


class PreferenceObjective(ABC, Generic[Data]):
    """Objective of a reward model on a batch of judgements; `PreferenceTraining` minimises it.

    Args:
        reduce: Reduction of the rewards of a row to its score: see `row_scores`.
        penalty: Coefficient of an L2 penalty on the mean reward, at least 0: mean over the scored rows of the square of
            the row's mean reward. Comparisons of rows of one length do not identify an offset of the reward, and the
            scale grows without bound where the training data can be separated. The penalty keeps both near 0; it does
            not make rewards of two models comparable.

    Raises:
        ValueError: If an argument is out of its range.
    """

    counted: str
    """Name of the number of judgements that are used, in ``counts``."""

    def __init__(self, reduce: Reduce = "sum", penalty: float = 0.0) -> None:
        if reduce not in ("sum", "mean") or not 0 <= penalty < math.inf:
            raise ValueError(
                f'reduce {reduce!r}, penalty {penalty}: expected "sum" or "mean", and a number of at least 0'
            )
        self.reduce: Reduce = reduce
        self.penalty = penalty

    @abstractmethod
    def rows(self, data: object) -> TrajectoryBatch:
        """Return the trajectories that a batch of judgements is about.

        Raises:
            ValueError: If the batch holds no such judgements.
        """

    @abstractmethod
    def keys(self, data: Data) -> Int[Tensor, " N"]:
        """Return a key of each judgement, the same in every epoch, by which an ensemble draws its weights."""

    @abstractmethod
    def reweighed(self, data: Data, times: Float[Tensor, " N"]) -> Data:
        """Return the judgements with other weights.

        Args:
            data: Trajectories with judgements.
            times: How often each judgement counts, at least 0.
        """

    @abstractmethod
    def means(self, data: Data, scores: Float[Tensor, " B"], scored: Bool[Tensor, " B"]) -> dict[str, Mean]:
        """Compute the loss without the penalty and its metrics as sums and the weights they are divided by.

        Args:
            data: Trajectories with judgements.
            scores: Score of each row.
            scored: Whether each row has a score. Judgements about the others are left out.
        """

    @abstractmethod
    def counts(self, data: Data, scored: Bool[Tensor, " B"]) -> dict[str, Tensor]:
        """Count the judgements that are used, and those that are left out.

        Args:
            data: Trajectories with judgements.
            scored: Whether each row has a score.
        """

    def loss(self, data: Data, estimates: RewardEstimates) -> dict[str, Tensor]:
        """Compute the loss, with the penalty, and its metrics.

        Args:
            data: Trajectories with judgements.
            estimates: Rewards of the trajectories, with gradients.
        """
        scores, scored = row_scores(estimates, self.reduce)
        parts = {name: mean.value for name, mean in self.means(data, scores, scored).items()}
        if self.penalty:
            mean, scored = row_scores(estimates, "mean")
            parts["penalty"] = mean.square().sum() / scored.sum().clamp(min=1)
            parts["loss"] = parts["loss"] + self.penalty * parts["penalty"]
        return parts | self.counts(data, scored)


class BradleyTerry(PreferenceObjective[PreferencePairs]):
    """Bradley–Terry likelihood of answers to pairs (Bradley and Terry 1952), with ties and wrong answers.

    A tie is a label of 0.5, and several answers are a soft label: the loss is the cross-entropy. Segments may differ
    in length. A pair with a row that the model cannot score is left out and counted; it never counts as a score of 0.

    Args:
        reduce: Reduction of the rewards of a segment to its score: see `row_scores`. With ``"sum"`` the longer segment
            has more to collect, with ``"mean"`` length does not count.
        noise: ε, share of answers that are wrong whatever the segments are, in [0, 0.5).
        penalty: Coefficient of an L2 penalty on the mean reward: see `PreferenceObjective`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    counted = "pairs"

    def __init__(self, reduce: Reduce = "sum", noise: float = 0.0, penalty: float = 0.0) -> None:
        super().__init__(reduce=reduce, penalty=penalty)
        preference_log_likelihood(torch.zeros(1), torch.ones(1), noise)
        self.noise = noise

    def rows(self, data: object) -> TrajectoryBatch:
        """Return the segments of the pairs.

        Raises:
            ValueError: If the batch holds no pairs.
        """
        if not isinstance(data, PreferencePairs):
            raise ValueError(
                f"BradleyTerry compares pairs, and the data give {type(data).__name__}: train on PreferenceData, or "
                "take FlagLoss for trajectories that are flagged one by one"
            )
        return data.batch

    def keys(self, data: PreferencePairs) -> Int[Tensor, " P"]:
        """Return a key of each pair: a hash of its two segments, whichever is first."""
        batch = data.batch
        segment = hashed_keys(batch.episode, batch.offset, batch.steps)
        one, other = segment[data.chosen.cpu()], segment[data.rejected.cpu()]
        return hashed_keys(torch.minimum(one, other), torch.maximum(one, other))

    def reweighed(self, data: PreferencePairs, times: Float[Tensor, " P"]) -> PreferencePairs:
        """Return the pairs with their weights multiplied."""
        return replace(data, weight=data.weight * times.to(data.weight))

    def used(self, data: PreferencePairs, scored: Bool[Tensor, " B"]) -> Bool[Tensor, " P"]:
        """Find the pairs with a weight and two rows that have a score.

        Args:
            data: Pairs.
            scored: Whether each row has a score.
        """
        return scored[data.chosen] & scored[data.rejected] & (data.weight > 0)

    def means(self, data: PreferencePairs, scores: Float[Tensor, " B"], scored: Bool[Tensor, " B"]) -> dict[str, Mean]:
        """Compute the negative log-likelihood, weighted, the accuracy on pairs that are no tie, and the share of ties.

        Args:
            data: Pairs.
            scores: Score of each row.
            scored: Whether each row has a score.
        """
        used = self.used(data, scored)
        weight = torch.where(used, data.weight.to(scores.dtype), 0.0)
        gap = scores[data.chosen] - scores[data.rejected]
        likely = preference_log_likelihood(gap, data.label.to(gap.dtype), self.noise)
        likely = torch.where(used, likely, 0.0)
        right, decided = correct_pairs(data, scores.detach(), used)
        return {
            "loss": Mean(total=-(weight * likely).sum(), weight=weight.sum()),
            "preference_accuracy": Mean(total=right.sum(), weight=decided.sum()),
            "log_likelihood": Mean(total=likely.detach().sum(), weight=used.sum()),
            "tie_share": Mean(total=(used & ~decided).sum(), weight=used.sum()),
        }

    def counts(self, data: PreferencePairs, scored: Bool[Tensor, " B"]) -> dict[str, Tensor]:
        """Count the pairs that are used, and those with a weight that are not because a row has no score.

        Args:
            data: Pairs.
            scored: Whether each row has a score.
        """
        used = self.used(data, scored)
        return {"pairs": used.sum().float(), "pairs_left_out": (~used & (data.weight > 0)).sum().float()}


def correct_pairs(
    data: PreferencePairs, scores: Float[Tensor, " B"], used: Bool[Tensor, " P"]
) -> tuple[Float[Tensor, " P"], Bool[Tensor, " P"]]:
    """Compare the order of the scores with the labels; equal scores are half right.

    Args:
        data: Pairs.
        scores: Score of each row.
        used: Pairs that count.

    Returns:
        1, 0.5 or 0 for each pair that counts and is no tie, 0 for the others; and which pairs are not.
    """
    gap = scores[data.chosen] - scores[data.rejected]
    wanted = data.label - 0.5
    decided = used & (wanted != 0)
    right = 0.5 + 0.5 * torch.sign(gap) * torch.sign(wanted).to(gap.dtype)
    return torch.where(decided, right, 0.0), decided


class FlagLoss(PreferenceObjective[TrajectoryBatch]):
    """KTO-like loss of trajectories that are flagged desirable or undesirable one by one (KTO, arXiv 2402.01306).

    The score of a trajectory takes the place of KTO's log-ratio: the loss is `guerdon.core.losses.kto` with the
    reference point max(0, mean score of the scored rows of the batch), without gradient. There is no reference model:
    a score of 0 is where a new model starts. Rows without a flag, negatives that the data module made, and rows that
    cannot be scored are left out and counted.

    The flag of a row is ``batch.labels["desirable"]`` (1 or 0, the same on all valid entries of the row), and without
    that label its known success: 1 is desirable, 0 undesirable, in between there is no flag.

    Args:
        reduce: Reduction of the rewards of a row to its score: see `row_scores`.
        beta: β, how fast the loss saturates, above 0.
        weight_desirable: λ_D, at least 0.
        weight_undesirable: λ_U, at least 0. KTO advises λ_D n_D / (λ_U n_U) in [1, 4/3], n being the numbers of rows.
        penalty: Coefficient of an L2 penalty on the mean reward: see `PreferenceObjective`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    counted = "flags"

    def __init__(
        self,
        reduce: Reduce = "sum",
        beta: float = 1.0,
        weight_desirable: float = 1.0,
        weight_undesirable: float = 1.0,
        penalty: float = 0.0,
    ) -> None:
        super().__init__(reduce=reduce, penalty=penalty)
        self.beta, self.weight_desirable, self.weight_undesirable = beta, weight_desirable, weight_undesirable
        self._kto(torch.zeros(1), torch.ones(1, dtype=torch.bool), torch.zeros(()))  # checks the numbers

    def _kto(self, scores: Tensor, desirable: Tensor, point: Tensor) -> Tensor:
        return kto(scores, desirable, point, self.beta, self.weight_desirable, self.weight_undesirable)

    def rows(self, data: object) -> TrajectoryBatch:
        """Return the trajectories.

        Raises:
            ValueError: If the batch holds pairs.
        """
        if not isinstance(data, TrajectoryBatch):
            raise ValueError(
                f"FlagLoss learns from single trajectories, and the data give {type(data).__name__}: train on "
                "EpisodeData, or take BradleyTerry for pairs"
            )
        return data

    def keys(self, data: TrajectoryBatch) -> Int[Tensor, " B"]:
        """Return the episode of each row."""
        return data.episode

    def reweighed(self, data: TrajectoryBatch, times: Float[Tensor, " B"]) -> TrajectoryBatch:
        """Return the rows with their weights multiplied; a row of weight 0 does not count, all others count once."""
        return replace(data, weight=data.weight * times.to(data.weight)[:, None])

    def _used(self, data: TrajectoryBatch, scored: Tensor) -> tuple[Tensor, Tensor]:
        desirable, flagged = row_flags(data)
        return desirable, scored & flagged & (data.weight > 0).any(1)

    def means(self, data: TrajectoryBatch, scores: Float[Tensor, " B"], scored: Bool[Tensor, " B"]) -> dict[str, Mean]:
        """Compute the loss of the flagged rows, and the share of them on the right side of the reference point.

        Args:
            data: Trajectories with flags or known success.
            scores: Score of each row.
            scored: Whether each row has a score.
        """
        desirable, used = self._used(data, scored)
        kept, good, count = scores[used], desirable[used], used.sum()
        point = kept.detach().mean().clamp(min=0) if len(kept) else scores.new_zeros(())
        loss = self._kto(kept, good, point) if len(kept) else 0.0 * scores.sum()
        right = ((kept.detach() > point) == good).sum()
        return {
            "loss": Mean(total=loss * count, weight=count),
            "flag_accuracy": Mean(total=right, weight=count),
            "reference_point": Mean(total=point * count, weight=count),
        }

    def counts(self, data: TrajectoryBatch, scored: Bool[Tensor, " B"]) -> dict[str, Tensor]:
        """Count the flagged rows that are used, the desirable ones among them, and the real rows that are left out.

        Args:
            data: Trajectories with flags or known success.
            scored: Whether each row has a score.
        """
        desirable, used = self._used(data, scored)
        left_out = ~used & (data.weight > 0).any(1)
        return {
            "flags": used.sum().float(),
            "desirable": (used & desirable).sum().float(),
            "flags_left_out": left_out.sum().float(),
        }


def row_flags(batch: TrajectoryBatch) -> tuple[Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """Read whether each row is desirable, and whether it has a flag at all; see `FlagLoss`.

    Raises:
        ValueError: If the entries of a row's flag differ, or are neither 0 nor 1.
    """
    known = batch.success_known & ((batch.success <= 0) | (batch.success >= 1))
    desirable = batch.success >= 1
    if "desirable" in batch.labels:
        flag = batch.labels["desirable"]
        known = flag.valid.any(1)
        high = torch.where(flag.valid, flag.values.float(), -math.inf).amax(1)
        low = torch.where(flag.valid, flag.values.float(), math.inf).amin(1)
        wrong = known & ((high != low) | ((high != 0) & (high != 1)))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f'labels["desirable"] of row {row} holds {float(low[row])} to {float(high[row])}: expected one flag of '
                "0 or 1 for the whole row; cut the row where the flag changes"
            )
        desirable = high == 1
    negative = batch.labels.get("negative")
    if negative is not None:
        known = known & (negative.values[:, 0] == 0)
    return desirable & known, known


__all__ = [
    "BradleyTerry",
    "FlagLoss",
    "Mean",
    "PreferenceObjective",
    "correct_pairs",
    "preference_log_likelihood",
    "row_flags",
]
