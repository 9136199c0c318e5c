"""Preference pairs of trajectories: which of two rows of a batch is the better one, and why."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.batch import PreferencePairs, Record, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .rules import PairCandidates, PairRule, group_pairs

START_TOLERANCE = 1e-4
"""Largest difference of the first observations of two rows of one group, per number of the state."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredPairs:
    """Pairs of rows within groups, with the scores they were made from."""

    pairs: PreferencePairs
    """Pairs with label 1 and weight 1; there may be none."""
    scores: Float[Tensor, " B"]
    """Score of every row of the batch; NaN where it could not be scored."""
    margin: Float[Tensor, " P"]
    """Score of the chosen row minus that of the rejected one; NaN where the rule does not score."""
    reasons: tuple[str, ...]
    """Why each pair was made, such as ``"success > failure"`` or ``"failure > failure by external"``."""
    left_out: Mapping[str, int]
    """Number of rows, pairs or groups that were left out, by reason."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScores(Record):
    """Scores of the rows of a batch."""

    scores: Float[Tensor, " B"]
    """Sum of the rewards of each row; NaN where one of its rewards is unknown or it is no whole episode."""
    terms: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict[str, Tensor])
    """The same of each term of the reward."""


@torch.no_grad()
def reward_pairs(
    batch: TrajectoryBatch,
    reward: RewardModel,
    rule: PairRule | None = None,
    start_tolerance: float | int | None = START_TOLERANCE,
) -> ScoredPairs:
    """Score the rows of a batch with a reward model, and make preference pairs within its groups.

    The score of a row is the sum of its rewards. A row counts if it is a whole episode and the reward of each of its
    steps is known.

    Args:
        batch: Episodes; rows of one ``group`` are of one task and begin in one initial state.
        reward: Reward model.
        rule: Which rows of a group are paired; None takes the best against the worst.
        start_tolerance: Largest difference of the first states of a group, per number; None does not compare them.

    Raises:
        ValueError: If rows of one group differ in task, instruction or initial state.
    """
    return pairs_of_scores(batch, row_scores(batch, reward(batch)), rule, start_tolerance)


def row_scores(batch: TrajectoryBatch, estimates: RewardEstimates) -> RowScores:
    """Sum the rewards of every whole episode of a batch, and each of their terms.

    Args:
        batch: Episodes.
        estimates: Estimates of a reward model for them.
    """
    counted = (estimates.valid | ~batch.mask).all(1) & batch.whole
    real = batch.mask & counted[:, None]

    def total(values: Tensor) -> Tensor:
        return torch.where(counted, torch.where(real, values, 0.0).sum(1), torch.nan)

    return RowScores(
        scores=total(estimates.rewards), terms={name: total(term) for name, term in estimates.terms.items()}
    )


def pairs_of_scores(
    batch: TrajectoryBatch,
    scored: RowScores,
    rule: PairRule | None = None,
    start_tolerance: float | int | None = START_TOLERANCE,
) -> ScoredPairs:
    """Make preference pairs of rows that are scored already; see `reward_pairs`.

    Args:
        batch: Episodes.
        scored: Their scores.
        rule: Which rows of a group are paired; None takes the best against the worst.
        start_tolerance: Largest difference of the first states of a group, per number; None does not compare them.

    Raises:
        ValueError: If rows of one group differ in task, instruction or initial state.
    """
    rule = PairRule() if rule is None else rule
    require_one_start(batch, start_tolerance)
    counted = ~scored.scores.isnan()
    candidates = PairCandidates(
        scores=scored.scores,
        group=batch.group,
        valid=counted,
        steps=batch.steps,
        success=torch.where(batch.success_known, batch.success, torch.nan),
    )
    made = rule.choose(candidates)
    same = _identical(batch, made)
    chosen, rejected = (torch.tensor(side, dtype=torch.long, device=batch.group.device) for side in _sides(made, same))
    ones = torch.ones(len(chosen), device=batch.weight.device)
    left_out = {
        "rows that are no whole episode": int((~batch.whole).sum()),
        "whole rows that could not be scored": int((batch.whole & ~counted).sum()),
        "pairs of identical trajectories": sum(same),
        "groups without a pair": len(set(batch.group[counted].tolist()) - set(batch.group[chosen].tolist())),
    }
    return ScoredPairs(
        pairs=PreferencePairs(batch=batch, chosen=chosen, rejected=rejected, label=ones, weight=ones.clone()),
        scores=scored.scores,
        margin=scored.scores[chosen] - scored.scores[rejected],
        reasons=tuple(
            _reason(batch, scored.terms, better, worse, rule.named)
            for better, worse in zip(chosen.tolist(), rejected.tolist(), strict=True)
        ),
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def require_one_start(batch: TrajectoryBatch, tolerance: float | int | None = START_TOLERANCE) -> None:
    """Require that all rows of each group are of one task and instruction and begin in one state.

    Preferences compare trajectories from one initial state only: otherwise the normaliser of the implicit reward and
    the dynamics do not cancel (GRAPE, arXiv 2411.19309, Eq. 4).

    Args:
        batch: Rows; padding does not count. States are compared between rows that begin their episode.
        tolerance: Largest difference of the first states, per number; None does not compare them.

    Raises:
        ValueError: If rows of one group differ; the message names them.
    """
    first: dict[int, int] = {}
    for row, group in enumerate(batch.group.tolist()):
        if int(batch.steps[row]) == 0:
            continue
        other = first.setdefault(group, row)
        tasks = (int(batch.task[other]), int(batch.task[row]))
        texts = (batch.instructions[other], batch.instructions[row])
        if tasks[0] != tasks[1] or texts[0] != texts[1]:
            raise ValueError(
                f"rows {other} and {row} are in group {group} and differ in task: {tasks[0]} ({texts[0]!r}) and "
                f"{tasks[1]} ({texts[1]!r}); a group is one task and one initial state: number groups by both"
            )
        begin = int(batch.offset[other]) == 0 and int(batch.offset[row]) == 0
        if tolerance is None or not begin or batch.state.shape[2] == 0:
            continue
        apart = float((batch.state[other, 0] - batch.state[row, 0]).abs().max())
        if not apart <= tolerance:
            raise ValueError(
                f"rows {other} and {row} are in group {group} and begin in states that differ by {apart:.3g}: expected "
                f"one initial state (within {tolerance:g}); number groups by initial state, or set start_tolerance"
            )


def _identical(batch: TrajectoryBatch, made: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell which pairs are of two rows with the same states and actions: they teach nothing, whatever their scores."""
    found: list[bool] = []
    for better, worse in made:
        steps = int(batch.steps[better])
        found.append(
            steps == int(batch.steps[worse])
            and torch.equal(batch.actions[better, :steps], batch.actions[worse, :steps])
            and torch.equal(batch.state[better, : steps + 1], batch.state[worse, : steps + 1])
            and (batch.state.shape[2] > 0 or batch.actions.shape[2] > 0)
        )
    return found


def _sides(made: Sequence[tuple[int, int]], left_out: Sequence[bool]) -> tuple[list[int], list[int]]:
    kept = list(itertools.compress(made, (not out for out in left_out)))
    return [better for better, _ in kept], [worse for _, worse in kept]


def _reason(batch: TrajectoryBatch, terms: Mapping[str, Tensor], better: int, worse: int, rule: str) -> str:
    """Explain a pair by the outcomes of its rows, and by the term that tells them apart where outcomes do not."""
    names = [
        ("success" if float(batch.success[row]) > 0 else "failure") if bool(batch.success_known[row]) else "unknown"
        for row in (better, worse)
    ]
    text = f"{names[0]} > {names[1]}"
    if rule:
        return f"{text} ({rule})"
    gaps = {name: float(total[better] - total[worse]) for name, total in terms.items()}
    known = {name: gap for name, gap in gaps.items() if not math.isnan(gap)}
    if names[0] == names[1] and known:
        return f"{text} by {max(known, key=lambda name: known[name])}"
    return text


def preference_pairs(batch: TrajectoryBatch, margin: float | int = 0.1) -> PreferencePairs:
    """Make pairs of rows of one task and instruction of which one is known to have come further.

    This is known of two rows whose progress targets at their last observations differ by more than ``margin``, and of
    a row that ends in success and one of a known failure. Other rows are not compared. Preference heads learn from
    these pairs.

    Args:
        batch: Rows with targets of progress and success; negatives may be among them.
        margin: Smallest difference in progress, in [0, 1).

    Returns:
        Each unordered pair once, with weight 1 and label 1; there may be none.
    """
    progress, has_progress = _final(batch, "progress")
    success, has_success = _final(batch, "success")
    text = {t: i for i, t in enumerate(dict.fromkeys(batch.instructions))}
    wording = torch.tensor([text[t] for t in batch.instructions], device=batch.task.device)
    same = (batch.task[:, None] == batch.task) & (wording[:, None] == wording)
    further = has_progress[:, None] & has_progress & (progress[:, None] - progress > margin)
    failed = batch.success_known & (batch.success <= 0)
    beside = (has_success & (success >= 1))[:, None] & (failed & ~has_progress)
    chosen, rejected = (same & (further | beside)).nonzero(as_tuple=True)
    ones = torch.ones(len(chosen), device=batch.task.device)
    return PreferencePairs(batch=batch, chosen=chosen, rejected=rejected, label=ones, weight=ones)


def _final(batch: TrajectoryBatch, name: str) -> tuple[Tensor, Bool[Tensor, " B"]]:
    """Return a label at the last observation that each row made, and whether it is known."""
    last = (batch.observed.sum(1) - 1).clamp(min=0)[:, None]
    label = batch.labels.get(name)
    if label is None:
        return torch.zeros_like(last[:, 0], dtype=torch.float32), torch.zeros_like(last[:, 0], dtype=torch.bool)
    return label.values.gather(1, last)[:, 0].float(), label.valid.gather(1, last)[:, 0] & (batch.steps > 0)


__all__ = [
    "START_TOLERANCE",
    "RowScores",
    "ScoredPairs",
    "group_pairs",
    "pairs_of_scores",
    "preference_pairs",
    "require_one_start",
    "reward_pairs",
    "row_scores",
]
