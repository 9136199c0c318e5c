"""Preference pairs of an iteration: made within groups from the stored scores, and kept with their reasons."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...core.batch import PreferencePairs, TrajectoryBatch
from ...core.files import read_json, sha256_file, write_json
from ...preference.pairs import RowScores, ScoredPairs, pairs_of_scores
from ...preference.rules import PairRule
from .grape_rollouts import group_rows, part_paths, read_parts
from .grape_scores import SCORES

PAIRS = "pairs.json"
"""Last file of a stage of pairs."""

BY_SELF = "failure > failure by self"
"""Reason of a pair of two failures of which the likelihood is the term that differs most."""


@dataclass(frozen=True, kw_only=True)
class IterationPairs:
    """Pairs of an iteration: those that are learned from, and those of the groups that are held out."""

    train: PreferencePairs
    held_out: PreferencePairs


def pair_iteration(folder: Path, rollouts: Path, scores: Path, rule: PairRule, held_out: float, seed: int) -> None:
    """Make the pairs of an iteration, and complete its stage of pairs.

    A share of the groups that have a pair is held out: nothing is learned from their pairs, which measure how well the
    implicit reward of the policy orders rollouts that it was not trained on.

    Args:
        folder: Folder of the stage.
        rollouts: Folder of the stage of rollouts.
        scores: Folder of the stage of scores.
        rule: Which rows of a group are paired.
        held_out: Share of the groups with a pair that is held out, in [0, 1).
        seed: Random seed of the choice of these groups.

    Raises:
        ValueError: If no pair can be made.
    """
    batch = read_parts(part_paths(rollouts))
    stored = cast(list[dict[str, Any]], read_json(scores / SCORES, "the scores of an iteration")["rows"])
    made = pairs_of_scores(batch, stored_scores(batch, stored), rule)
    groups = group_rows(batch)
    without = _without(groups, made, stored)
    if not len(made):
        raise ValueError(_nothing_to_learn(len(groups), without, made))
    key = list(zip(batch.task.tolist(), batch.group.tolist(), strict=True))
    chosen, rejected = made.pairs.chosen.tolist(), made.pairs.rejected.tolist()
    kept_out = _held_out([key[row] for row in chosen], held_out, seed)
    write_json(
        folder / PAIRS,
        {
            "made_from": sha256_file(scores / SCORES),
            "rule": type(rule).__name__,
            "groups": len(groups),
            "groups_with_a_pair": len({key[row] for row in chosen}),
            "groups_without_a_pair": [
                {"task": task, "group": group, "why": why} for (task, group), why in without.items()
            ],
            "left_out": dict(made.left_out),
            "reasons": dict(Counter(made.reasons).most_common()),
            "pairs": [
                {
                    "task": key[better][0],
                    "group": key[better][1],
                    "chosen": better,
                    "rejected": worse,
                    "margin": _known(made.margin[place]),
                    "reason": made.reasons[place],
                    "lengths": [int(batch.steps[better]), int(batch.steps[worse])],
                    "held_out": key[better] in kept_out,
                }
                for place, (better, worse) in enumerate(zip(chosen, rejected, strict=True))
            ],
        },
    )


def stored_scores(batch: TrajectoryBatch, stored: list[dict[str, Any]]) -> RowScores:
    """Return stored scores and their terms as tensors, NaN where a row has none.

    Args:
        batch: Whole episodes.
        stored: Stored scores of its rows, in their order.

    Raises:
        ValueError: If the number of rows differs.
    """
    if len(stored) != len(batch):
        raise ValueError(
            f"{len(stored)} scores for {len(batch)} rollouts: remove the folder of the scores, and give the same "
            "command again"
        )

    def column(values: list[Any]) -> Tensor:
        return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)

    names = dict.fromkeys(name for row in stored for name in row["terms"])
    return RowScores(
        scores=column([row["score"] for row in stored]),
        terms={name: column([row["terms"].get(name) for row in stored]) for name in names},
    )


def read_pairs(folder: Path, rollouts: Path) -> IterationPairs:
    """Read the pairs of an iteration, with those rollouts only that are in a pair.

    Args:
        folder: Folder of a complete stage of pairs.
        rollouts: Folder of the stage of rollouts.

    Raises:
        FileNotFoundError: If a stage is not complete.
        ValueError: If a file is damaged.
    """
    pairs = cast(list[dict[str, Any]], read_json(folder / PAIRS, "the pairs of an iteration")["pairs"])
    paths = part_paths(rollouts)
    return IterationPairs(
        train=_pairs(paths, [pair for pair in pairs if not pair["held_out"]]),
        held_out=_pairs(paths, [pair for pair in pairs if pair["held_out"]]),
    )


def _pairs(paths: list[Path], pairs: list[dict[str, Any]]) -> PreferencePairs:
    used = sorted({int(pair[side]) for pair in pairs for side in ("chosen", "rejected")})
    place = {row: number for number, row in enumerate(used)}
    batch = read_parts(paths, set(used), frames=True) if used else read_parts(paths[:1])[[]]
    sides = {
        side: torch.tensor([place[int(pair[side])] for pair in pairs], dtype=torch.long)
        for side in ("chosen", "rejected")
    }
    ones = torch.ones(len(pairs))
    return PreferencePairs(batch=batch, **sides, label=ones, weight=ones.clone())


def _held_out(groups: list[tuple[int, int]], share: float, seed: int) -> set[tuple[int, int]]:
    """Draw the groups that are held out, at least one where there are several, and never all."""
    distinct = list(dict.fromkeys(groups))
    count = min(len(distinct) - 1, max(1, round(share * len(distinct)))) if share > 0 else 0
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    return {distinct[number] for number in order[:count]}


def _without(
    groups: dict[tuple[int, int], list[int]], made: ScoredPairs, stored: list[dict[str, Any]]
) -> dict[tuple[int, int], str]:
    """Explain why groups have no pair."""
    paired = set(made.pairs.chosen.tolist())
    found: dict[tuple[int, int], str] = {}
    for key, rows in groups.items():
        if paired & set(rows):
            continue
        scores = [float(stored[row]["score"]) for row in rows if stored[row]["score"] is not None]
        if len(scores) < 2:
            reasons = Counter(str(stored[row]["reason"]) for row in rows if stored[row]["reason"])
            told = f": {reasons.most_common(1)[0][0]}" if reasons else ""
            found[key] = f"{len(scores)} of {len(rows)} rollouts could be scored{told}"
        elif max(scores) == min(scores):
            found[key] = "all rollouts scored alike"
        else:
            found[key] = "the rule left its pairs out (margin, cap, success gap)"
    return found


def _nothing_to_learn(groups: int, without: dict[tuple[int, int], str], made: ScoredPairs) -> str:
    common = Counter(without.values()).most_common(2)
    told = "; ".join(f"{why} ({count} groups)" for why, count in common)
    more = made.left_out.get("pairs of identical trajectories", 0)
    same = f"; {more} pairs were of identical rollouts" if more else ""
    return (
        f"none of {groups} groups has a preference pair, so there is nothing to learn: {told}{same}. Play "
        "more rollouts of each initial state (groups.size) or let the policy vary more, choose tasks that sometimes "
        "succeed, lower the margin of tpo.pairs, or let the reward weigh a term that differs within groups. Remove "
        "the folder of the scores (and of the rollouts, if those should be others) and give the same command again"
    )


def _known(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


__all__ = ["BY_SELF", "PAIRS", "IterationPairs", "pair_iteration", "read_pairs", "stored_scores"]
