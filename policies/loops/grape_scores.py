"""Scores of the rollouts of an iteration: every term of each row, and what each adds to the differences in a group."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ...core.batch import RewardEstimates, TrajectoryBatch
from ...core.files import read_json, sha256_file, write_json
from ...core.interfaces import RewardModel
from ..advantages.group_score import complete_rows, term_shares
from .grape_rollouts import ROLLOUTS, device_of, group_rows, part_paths, read_parts
from .rollout_files import read_batch
from .stages import tell

SCORES = "scores.json"
"""Last file of a stage of scores."""

LEAST_SHARE = 0.05
"""Share of the variance within groups below which a term is warned of."""


@runtime_checkable
class Explains(Protocol):
    """A reward model that explains why it cannot score a row, as GRAPE's does."""

    def why(self, batch: TrajectoryBatch) -> list[str]:
        """Explain each row; a row that can be scored gets an empty text."""
        ...


@runtime_checkable
class HasRawTerms(Protocol):
    """A reward model that gives its terms before they are weighted, as GRAPE's does."""

    def raw_terms(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the terms (B,) of every row, NaN where unknown."""
        ...


@dataclass(frozen=True, kw_only=True)
class RolloutScores:
    """Scores of the rows of a batch."""

    score: Tensor
    """Score (B,) in float64; NaN where it is unknown."""
    terms: dict[str, Tensor]
    """Weighted terms (B,) by name, as they are summed; NaN in rows without a score."""
    raw: dict[str, Tensor]
    """Terms (B,) before they are weighted, NaN where unknown; empty where the reward model has none."""
    reasons: list[str]
    """Reason why each row has no score; empty where it has one."""


@torch.no_grad()
def score_rows(batch: TrajectoryBatch, reward: RewardModel) -> RolloutScores:
    """Score every row of a batch of whole episodes.

    Args:
        batch: Whole episodes.
        reward: Reward model, whose rewards are summed over each row.
    """
    estimates = reward(batch)
    known = complete_rows(batch, estimates)
    kept = estimates.valid & batch.mask

    def summed(values: Tensor) -> Tensor:
        return torch.where(known, torch.where(kept, values, 0.0).double().sum(1), torch.nan).cpu()

    score = summed(estimates.rewards)
    reasons = [
        f"its score is {number}, which is not a finite number" if scored and not math.isfinite(number) else text
        for scored, number, text in zip(
            known.tolist(), score.tolist(), _reasons(batch, reward, estimates, known), strict=True
        )
    ]
    return RolloutScores(
        score=torch.where(score.isfinite(), score, torch.nan),
        terms={name: summed(values) for name, values in estimates.terms.items()},
        raw={name: values.double().cpu() for name, values in reward.raw_terms(batch).items()}
        if isinstance(reward, HasRawTerms)
        else {},
        reasons=reasons,
    )


def _reasons(batch: TrajectoryBatch, reward: RewardModel, estimates: RewardEstimates, known: Tensor) -> list[str]:
    told = reward.why(batch) if isinstance(reward, Explains) else [""] * len(batch)
    unknown = (~estimates.valid & batch.mask).sum(1).tolist()
    return [
        "" if scored else text or f"{count} of its {steps} rewards are unknown"
        for scored, text, count, steps in zip(known.tolist(), told, unknown, batch.steps.tolist(), strict=True)
    ]


def score_iteration(folder: Path, rollouts: Path, reward: RewardModel) -> None:
    """Score the rollouts of an iteration, and complete its stage of scores.

    Args:
        folder: Folder of the stage.
        rollouts: Folder of the stage of rollouts.
        reward: Reward model that scores whole episodes.
    """
    paths = part_paths(rollouts)
    device = device_of(reward)
    found = _joined([score_rows(read_batch(path).to(device), reward) for path in paths])
    batch = read_parts(paths)
    shares = group_shares(batch, found)
    rows = [
        {
            "row": row,
            "task": int(batch.task[row]),
            "group": int(batch.group[row]),
            "steps": int(batch.steps[row]),
            "success": float(batch.success[row]) if bool(batch.success_known[row]) else None,
            "score": _number(found.score[row]),
            "terms": {name: _number(values[row]) for name, values in found.terms.items()},
            "raw_terms": {name: _number(values[row]) for name, values in found.raw.items()},
            "reason": found.reasons[row],
        }
        for row in range(len(batch))
    ]
    warn_of_shares(shares["within_groups"])
    write_json(
        folder / SCORES,
        {
            "made_from": sha256_file(rollouts / ROLLOUTS),
            "reward": type(reward).__name__,
            "scored": sum(not reason for reason in found.reasons),
            "shares": shares,
            "rows": rows,
        },
    )


def _joined(parts: Sequence[RolloutScores]) -> RolloutScores:
    """Join the scores of parts; a term that one of them lacks is unknown there."""

    def column(each: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
        unknown = [torch.full_like(part.score, torch.nan) for part in parts]
        return torch.cat([values.get(name, missing) for values, missing in zip(each, unknown, strict=True)])

    terms, raw = [part.terms for part in parts], [part.raw for part in parts]
    return RolloutScores(
        score=torch.cat([part.score for part in parts]),
        terms={name: column(terms, name) for name in dict.fromkeys(name for each in terms for name in each)},
        raw={name: column(raw, name) for name in dict.fromkeys(name for each in raw for name in each)},
        reasons=[reason for part in parts for reason in part.reasons],
    )


def warn_of_shares(shares: Mapping[str, float]) -> None:
    """Print a warning for every term that hardly changes which rollout of a group is preferred.

    Args:
        shares: Share of each term in the variance of the score within groups.
    """
    for name, share in shares.items():
        if share == 0:
            tell(f"warning: the term {name!r} is the same for all rollouts of each group, so it prefers none")
        elif share < LEAST_SHARE:
            tell(
                f"warning: the term {name!r} makes {100 * share:.2g} % of the variance of the score within groups: it "
                "hardly changes which rollout is preferred; raise its weight, or set it to 0"
            )


def group_shares(batch: TrajectoryBatch, scores: RolloutScores) -> dict[str, Any]:
    """Compute the share of each term in the variance of the score: within all groups, and within each.

    Args:
        batch: Whole episodes.
        scores: Their scores.
    """
    known = ~scores.score.isnan()
    index = torch.zeros(len(batch), dtype=torch.long)
    each: list[dict[str, Any]] = []
    for number, ((task, group), rows) in enumerate(group_rows(batch).items()):
        index[rows] = number
        inside = torch.zeros_like(known)
        inside[rows] = True
        shares = term_shares(scores.terms, torch.zeros_like(index), known & inside)
        each.append({"task": task, "group": group, "shares": shares})
    return {"within_groups": term_shares(scores.terms, index, known), "groups": each}


def read_scores(folder: Path) -> tuple[Tensor, list[str]]:
    """Read the score of every row, NaN where it is unknown, and the reasons.

    Args:
        folder: Folder of a complete stage of scores.

    Raises:
        FileNotFoundError: If the stage is not complete.
        ValueError: If its file is damaged.
    """
    rows = cast(list[dict[str, Any]], read_json(folder / SCORES, "the scores of an iteration")["rows"])
    score = [math.nan if row["score"] is None else float(row["score"]) for row in rows]
    return torch.tensor(score, dtype=torch.float64), [str(row["reason"]) for row in rows]


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


__all__ = ["LEAST_SHARE", "SCORES", "RolloutScores", "group_shares", "read_scores", "score_iteration", "score_rows"]
