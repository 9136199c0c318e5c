"""Advantages of whole trajectories against others from the same initial state."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.batch import Advantages, RewardEstimates, TrajectoryBatch
from ...core.interfaces import AdvantageSource, Proposer, RewardModel
from ...core.returns import group_standardise, leave_one_out, standardise
from ..ranks import over_ranks

_PATIENCE = 5  # batches in a row
_TIE = 1e-6  # share of a score that is rounding
_SMALLEST_STD = 1e-7  # of scores within a group, as in LOOP's released code
Normalise = Literal["none", "zscore", "rank", "leave_one_out", "leave_one_out_std", "mean", "batch"]
NORMALISE = get_args(Normalise)


@runtime_checkable
class _Explains(Protocol):
    """A reward model that explains why it cannot score a row, as GRAPE's does."""

    def why(self, batch: TrajectoryBatch) -> list[str]:
        """Explain each row; a row that can be scored gets an empty text."""
        ...


class GroupScore(AdvantageSource):
    """Advantage of a whole trajectory: its summed reward, compared with others of its task and initial state.

    Groups are rows with the same ``task`` and ``group``. Every decision of a row gets the row's advantage. A row is not
    valid, and not compared with, if it is a piece of an episode, or if a reward is unknown that could be known. A final
    reward that would need an observation that was never made is not missed. Whether a whole row whose end was not
    recorded counts is up to the reward, by the validity of its estimates. If no whole row of a batch counts, a warning
    is given once, with the reason from the reward's method ``why`` if it has one.

    A reward that abstains on a part of a batch leaves out the rows on which it does; the rest of their group is
    compared among itself. A row that is alone in its group, or whose group scored alike, has the advantage 0 unless
    ``normalise`` is ``"none"`` or ``"batch"``. A warning is given once where all rows are alone, and once where no
    advantage was different from 0 for five batches in a row: in both cases nothing is learned.

    After each batch ``figures`` holds the number of rows and groups that took part, the share of groups that were
    compared and did not score alike (``groups_mixed``), and each reward term's share of the variance within
    groups; `PolicyOptimizer` logs them. A term with almost no share is warned about once. Weights that
    look comparable need not be, because terms differ in their spread (GRAPE's paper weighs a term that spans 1 with
    0.01, and another that spans tens of nats). There is no warning about a term that is the same for all rows of each
    group, such as success where all failed: no weight would change it.

    Args:
        reward: Reward model, causal or not; it is frozen and kept in evaluation mode.
        normalise: Map from scores to advantages. ``"none"``: the scores; ``"leave_one_out"``: score minus the mean of
            the others (RLOO, LOOP); ``"leave_one_out_std"``: that, divided by the population standard deviation of the
            group (a switch of LOOP's released code); ``"mean"``: score minus the mean of the group ("leave none out");
            ``"zscore"``: standard score within the group (GRPO); ``"rank"``: from −1 for the lowest to 1 for the
            highest, ties in the middle; ``"batch"``: standard score over all rows of the batch and of all processes,
            whatever their groups.
        normalise_terms: Map of each reward term before they are added: ``"zscore"`` or ``"rank"`` brings it to one
            scale within each group, and the weights inside the reward cancel; ``"none"`` takes the reward as it is.
        term_weights: Weight of each normalised term, by name; None weighs all alike. A term that is not named gets 0.
        min_share: Share of the variance within groups below which a term is warned about, in [0, 1).
        min_advantage: Magnitude of the advantage below which a row is left out of training, 0 or more (LOOP, arXiv
            2502.01600: 0.01).

    Raises:
        ValueError: If an argument makes no sense.
    """

    whole_episodes = True

    def __init__(
        self,
        reward: RewardModel,
        normalise: Normalise = "leave_one_out",
        normalise_terms: Literal["none", "zscore", "rank"] = "none",
        term_weights: Mapping[str, float] | None = None,
        min_share: float = 0.05,
        min_advantage: float = 0.0,
    ) -> None:
        super().__init__()
        if normalise not in NORMALISE or normalise_terms not in NORMALISE[:3]:
            raise ValueError(
                f"normalise {normalise!r}, normalise_terms {normalise_terms!r}: expected {', '.join(NORMALISE)}; for "
                "terms the first three"
            )
        if term_weights is not None and normalise_terms == "none":
            raise ValueError("term_weights weigh normalised terms: choose normalise_terms, or weights in the reward")
        if not 0 <= min_share < 1:
            raise ValueError(f"min_share is {min_share}: expected 0 <= min_share < 1")
        if not 0 <= min_advantage < math.inf:
            raise ValueError(f"min_advantage is {min_advantage}: expected a finite number of 0 or more")
        self.reward = reward.requires_grad_(False).eval()
        self.normalise, self.normalise_terms, self.min_share = normalise, normalise_terms, min_share
        self.min_advantage = min_advantage
        self.term_weights = None if term_weights is None else dict(term_weights)
        self.figures: dict[str, float] = {}
        self._warned: set[str] = set()
        self._told_why = self._told_alone = self._told_idle = False
        self._idle = 0

    @torch.no_grad()
    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards of the rollout."""
        return self.reward(batch)

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute the advantage of each row, with its score as the return, on all decisions that are not context only.

        Raises:
            ValueError: If terms are to be normalised and the reward has none, or lacks one that is weighted.
            FloatingPointError: If a reward that counts as known is not finite.
        """
        valid = complete_rows(batch, rewards)
        if not self._told_why and not bool(valid.any()):
            self._say_why(batch, rewards)
        group = _groups(batch)
        known = rewards.valid & batch.mask
        terms = {name: _row_sum(term, known) for name, term in rewards.terms.items()}
        score = _row_sum(rewards.rewards, known)
        if self.normalise_terms != "none":
            terms = {name: self._normalised(term, group, valid) for name, term in self._weighted(terms).items()}
            terms = {name: term * (self.term_weights or {}).get(name, 1.0) for name, term in terms.items()}
            score = torch.stack(list(terms.values())).sum(0)
        wrong = valid & ~score.isfinite()
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise FloatingPointError(
                f"{type(self.reward).__name__} gave row {row} the known score {float(score[row])}: look for extreme "
                "states or log-probabilities, or a model that diverged"
            )
        score = score.masked_fill(~valid, 0.0)
        advantage = group_normalise(score, group, self.normalise, valid)
        self._note(score, terms, group, valid)
        self._watch(advantage, group, valid)
        if self.min_advantage > 0:
            kept = valid & (advantage.abs() >= self.min_advantage)
            self.figures["group_rows_small_advantage"] = float((valid & ~kept).sum())
            valid = kept
        step = batch.decision_step.clamp(min=0)
        weight = batch.weight.gather(1, step)
        used = batch.decision_mask & valid[:, None] & (weight > 0)
        return Advantages(
            advantages=torch.where(used, advantage[:, None].to(batch.weight.dtype), 0.0),
            returns=torch.where(used, score[:, None].to(batch.weight.dtype), 0.0),
            valid=used,
        )

    def loss(
        self, batch: TrajectoryBatch, advantages: Advantages, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
    ) -> dict[str, Tensor]:
        """Return the metrics of the batch, to be logged; nothing is trained with the policy."""
        return {name: torch.tensor(value, device=rows.device) for name, value in self.figures.items()}

    def _weighted(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = list(terms) if self.term_weights is None else list(self.term_weights)
        missing = [name for name in named if name not in terms]
        if missing or not named:
            held = ", ".join(terms) or "none"
            raise ValueError(
                f"normalise_terms: {type(self.reward).__name__} reports the terms {held}, wanted are "
                f"{', '.join(named) or 'some'}; take normalise_terms='none' for a reward without terms"
            )
        return {name: terms[name] for name in named}

    def _normalised(self, term: Tensor, group: Tensor, valid: Tensor) -> Tensor:
        return group_normalise(term.masked_fill(~valid, 0.0), group, self.normalise_terms, valid)

    def _say_why(self, batch: TrajectoryBatch, rewards: RewardEstimates) -> None:
        """Warn that no whole row counts, if there are any: training would go on and learn nothing."""
        whole = batch[batch.whole]
        if not len(whole):
            return
        self._told_why = True
        unknown = int((~rewards.valid & batch.mask)[batch.whole].sum())
        reason = f"{unknown} of their {int(whole.mask.sum())} rewards are unknown"
        if isinstance(self.reward, _Explains):
            given = Counter(text for text in self.reward.why(whole) if text)
            reason = given.most_common(1)[0][0] if given else reason
        warnings.warn(
            f"{type(self.reward).__name__} scored none of the {len(whole)} whole episodes of this batch, so nothing "
            f"is learned from it: {reason}",
            stacklevel=3,
        )

    def _watch(self, advantage: Tensor, group: Tensor, valid: Tensor) -> None:
        """Warn once if all rows are alone in their groups, and once if nothing is learned batch after batch."""
        learned = bool((advantage[valid] != 0).any())
        self._idle = 0 if learned else self._idle + 1
        count = torch.unique(group[valid], return_counts=True)[1]
        alone = bool(len(count)) and int(count.max()) == 1
        if alone and self.normalise not in ("none", "batch") and not self._told_alone:
            self._told_alone = True
            warnings.warn(
                f"each of the {len(count)} whole episodes of this batch is alone in its group (task and initial "
                f"state), so normalise={self.normalise!r} makes every advantage 0 and nothing is learned: play several "
                "rollouts of one context (groups of RolloutData), load logs whose rows share a group, or set "
                "normalise='none'",
                stacklevel=3,
            )
        if self._idle >= _PATIENCE and not self._told_idle:
            self._told_idle = True
            reason = "all rows of each group scored alike: the tasks are too hard or too easy for the policy"
            if alone:
                reason = "every row is alone in its group"
            elif not len(count):
                reason = "no whole episode has a known score"
            warnings.warn(
                f"no advantage was different from 0 in the last {self._idle} batches, so nothing was learned from "
                f"them: {reason}",
                stacklevel=3,
            )

    def _note(self, score: Tensor, terms: Mapping[str, Tensor], group: Tensor, valid: Tensor) -> None:
        """Compute the metrics, and warn about terms that change almost nothing."""
        rows = int(valid.sum())
        names, count = torch.unique(group[valid], return_counts=True)
        compared = int((count > 1).sum())
        spread = group_variance(score, group, valid)
        flat = sum(
            bool(score[valid & (group == name)].max() == score[valid & (group == name)].min())
            for name, size in zip(names, count, strict=True)
            if int(size) > 1
        )
        self.figures = {
            "group_rows": float(rows),
            "group_rows_left_out": float(len(valid) - rows),
            "groups": float(len(names)),
            "groups_compared": float(compared),
            "groups_flat": float(flat),
            "groups_mixed": (compared - flat) / max(len(names), 1),
            "group_score_std": float(spread.sqrt()),
        }
        for name, share in term_shares(terms, group, valid).items():
            self.figures[f"share_{name}"] = share
            # a share of 0 is a term that is equal here, which no weight changes; it may differ in another batch
            if 0 < share < self.min_share and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"the reward term {name!r} makes {100 * share:.2g} % of the variance within groups: it hardly "
                    "changes which trajectory is preferred; raise its weight, or normalise the terms",
                    stacklevel=3,
                )


def complete_rows(batch: TrajectoryBatch, rewards: RewardEstimates) -> Bool[Tensor, " B"]:
    """Find the whole rows whose rewards are all known, as far as they can be.

    The reward decides by its validity which ends it can score. A whole row with ``End.CUT``, whose end was not
    recorded, counts if the reward is valid on all its steps. A piece never counts; unfinished rollouts are pieces. A
    reward whose next observation was never made (``last_observed`` is False) cannot be known by most models and is not
    missed.

    Args:
        batch: Trajectories.
        rewards: Rewards of their steps.
    """
    unknown = batch.mask & ~rewards.valid & batch.observed[:, 1:]
    return batch.whole & ~unknown.any(1) & (rewards.valid & batch.mask).any(1)


def group_normalise(
    scores: Float[Tensor, " N"], group: Int[Tensor, " N"], how: str, valid: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Normalise scores within groups; see `GroupScore`.

    The result is 0 if not valid, and, unless ``how`` is ``"none"`` or ``"batch"``, if alone or equal to all others.
    Scores that differ by rounding are equal, see `merge_ties`.

    Args:
        scores: Score of each row.
        group: Number of the group of each row.
        how: ``"none"``, ``"zscore"``, ``"leave_one_out"``, ``"leave_one_out_std"``, ``"mean"``, ``"rank"`` or
            ``"batch"``; see `GroupScore`.
        valid: Rows that count.

    Raises:
        ValueError: If a valid score is not finite, or ``how`` is unknown.
    """
    if how == "none":
        return torch.where(valid, scores, 0.0)
    if how == "batch":
        every, own = over_ranks(scores[valid])
        merged = merge_ties(every, torch.zeros(len(every), dtype=torch.long, device=every.device))
        result = torch.zeros_like(scores)
        result[valid] = standardise(merged, torch.ones_like(merged, dtype=torch.bool))[own]
        return result
    known = merge_ties(scores[valid], group[valid])
    scores = torch.zeros_like(scores).masked_scatter(valid, known)
    if how == "zscore":
        return group_standardise(scores, group, valid=valid)
    if how == "leave_one_out":
        return leave_one_out(scores, group, valid)
    if how in ("mean", "leave_one_out_std"):
        return _from_leave_one_out(scores, group, how, valid)
    if how == "rank":
        return group_ranks(scores, group, valid)
    raise ValueError(f"normalise {how!r}: expected {', '.join(NORMALISE)}")


def merge_ties(scores: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Give scores of a group that differ by rounding the same value: the lowest of them.

    Sums of the same terms in another order differ in their last digits, and a standard score or a rank would make whole
    advantages of that. Two neighbours in the order of a group are a tie if they differ by at most 1e-6, or by that
    share of the larger magnitude.

    Args:
        scores: Score of each row.
        group: Number of the group of each row.
    """
    if not len(scores) or not bool(scores.isfinite().all()):
        return scores
    order = torch.argsort(scores, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    value, of = scores[order], group[order]
    apart = value[1:] - value[:-1] > _TIE * torch.maximum(value[1:].abs(), value[:-1].abs()).clamp(min=1)
    first = torch.cat([apart.new_ones(1), apart | (of[1:] != of[:-1])])
    merged = torch.empty_like(scores)
    merged[order] = value[first][first.long().cumsum(0) - 1]
    return merged


def _from_leave_one_out(
    scores: Float[Tensor, " N"], group: Int[Tensor, " N"], how: str, valid: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Compute R − mean = (K − 1)/K · (R − mean of the others), or the latter over the population standard deviation.

    The scores relative to the mean of the others are exactly 0 in a group of equal scores, whatever rounding does.
    """
    apart = leave_one_out(scores, group, valid).double()
    index = torch.unique(group, return_inverse=True)[1]
    count = torch.zeros(int(index.max()) + 1 if len(index) else 0, dtype=torch.float64, device=scores.device)
    count = count.index_add_(0, index, valid.double())[index].clamp(min=1)
    from_mean = apart * (count - 1) / count
    if how == "mean":
        return from_mean.to(scores.dtype)
    squares = torch.zeros_like(count).index_add_(0, index, from_mean.square())[index]
    std = (squares / count).sqrt().clamp(min=_SMALLEST_STD)
    return (apart / std).to(scores.dtype)


def group_ranks(
    scores: Float[Tensor, " N"], group: Int[Tensor, " N"], valid: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Compute (lower − higher)/(K − 1) among the K valid rows of each group: −1 for the lowest, 1 for the highest.

    Args:
        scores: Score of each row.
        group: Number of the group of each row.
        valid: Rows that count.

    Raises:
        ValueError: If a valid score is not finite.
    """
    if not bool(scores[valid].isfinite().all()):
        raise ValueError("scores: NaN or infinity in a score that counts; mark it with valid=False to cut it out")
    score = torch.where(valid, scores, 0.0)
    compared = (group[:, None] == group) & valid[:, None] & valid
    lower = (compared & (score[:, None] > score)).sum(1)
    higher = (compared & (score[:, None] < score)).sum(1)
    return (lower - higher).to(scores.dtype) / (compared.sum(1) - 1).clamp(min=1)


def group_variance(scores: Float[Tensor, " N"], group: Int[Tensor, " N"], valid: Bool[Tensor, " N"]) -> Tensor:
    """Compute the variance within groups, Σ (score − group mean)² / Σ (K − 1), in float64; 0 without a pair."""
    score, index = scores[valid].double(), torch.unique(group[valid], return_inverse=True)[1]
    count = torch.bincount(index).double()
    mean = torch.zeros_like(count).index_add_(0, index, score) / count.clamp(min=1)
    apart = score - mean[index] if len(score) else score
    return apart.square().sum() / (count - 1).sum().clamp(min=1)


def term_shares(
    terms: Mapping[str, Float[Tensor, " N"]], group: Int[Tensor, " N"], valid: Bool[Tensor, " N"]
) -> dict[str, float]:
    """Compute the share of each term in the summed variances within groups; empty if nothing varies."""
    variance = {name: float(group_variance(term, group, valid)) for name, term in terms.items()}
    # the mean of equal numbers may differ from them by rounding: that is no variance
    scale = {
        name: float(term[valid].double().abs().max()) if bool(valid.any()) else 0.0 for name, term in terms.items()
    }
    variance = {name: v if v > (1e-6 * scale[name]) ** 2 else 0.0 for name, v in variance.items()}
    total = sum(variance.values())
    return {name: v / total for name, v in variance.items()} if total > 0 else {}


def _row_sum(values: Float[Tensor, "B T"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    return torch.where(valid, values, 0.0).double().sum(1)


def _groups(batch: TrajectoryBatch) -> Int[Tensor, " B"]:
    """Give each pair of task and initial state a number: two tasks may number their initial states alike."""
    return torch.unique(torch.stack([batch.task, batch.group], 1), dim=0, return_inverse=True)[1]


__all__ = [
    "GroupScore",
    "complete_rows",
    "group_normalise",
    "group_ranks",
    "group_variance",
    "merge_ties",
    "term_shares",
]
