"""Rules by which rows of a group become preference pairs: best against worst, and controls."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Made = list[tuple[int, int]]
"""Pairs of rows, the chosen one first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairCandidates:
    """Rows of which pairs are made."""

    scores: Float[Tensor, " N"]
    """Score; NaN where unknown."""
    group: Int[Tensor, " N"]
    """Group; pairs are made within one group only."""
    valid: Bool[Tensor, " N"]
    """Rows that count."""
    steps: Int[Tensor, " N"]
    """Length in control steps."""
    success: Float[Tensor, " N"]
    """Success in [0, 1]; NaN where unknown."""

    def groups(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each group and its rows that count, in the order of their first row."""
        members, counted = self.group.tolist(), self.valid.tolist()
        for name in dict.fromkeys(members):
            yield name, [row for row, group in enumerate(members) if group == name and counted[row]]


class PairRule:
    """Pairs of the best rows of every group with its worst (GRAPE, arXiv 2411.19309, Algorithm 1).

    Args:
        top: Largest number m of rows on either side of a group's pairs, at least 1; there are at most m² pairs.
        margin: A pair is kept if its scores differ by more than this, at least 0.
        cap: Largest number of pairs that one row takes part in, so that a single rollout does not dominate; the pairs
            with the largest margins stay. None sets no limit.
        require_success_gap: Keep only pairs of a more successful row with a less successful one.

    Raises:
        ValueError: If a number makes no sense.
    """

    named = ""
    """What a pair's reason adds about the rule; empty where the scores decide."""

    def __init__(
        self,
        top: int = 1,
        margin: float | int = 1e-3,
        cap: int | None = None,
        require_success_gap: bool = False,
    ) -> None:
        if top < 1 or not 0 <= margin < float("inf") or (cap is not None and cap < 1):
            raise ValueError(
                f"top {top}, margin {margin}, cap {cap}: expected at least one row, a finite margin of at least 0, and "
                "at least one pair for each row"
            )
        self.top, self.margin, self.cap, self.require_success_gap = top, margin, cap, require_success_gap

    def choose(self, rows: PairCandidates) -> Made:
        """Choose pairs of rows, the chosen one first, group by group.

        Args:
            rows: Rows, with their groups.
        """
        return self._kept(rows, self._ranked(rows))

    def _ranked(self, rows: PairCandidates) -> Made:
        chosen, rejected = group_pairs(rows.scores, rows.group, self.top, self.margin, rows.valid)
        return list(zip(chosen.tolist(), rejected.tolist(), strict=True))

    def _kept(self, rows: PairCandidates, made: Iterable[tuple[int, int]]) -> Made:
        """Leave out pairs without a success gap, and those beyond the cap of one of their rows."""
        success, scores = rows.success.tolist(), rows.scores.tolist()
        pairs = [(a, b) for a, b in made if not self.require_success_gap or success[a] > success[b]]
        if self.cap is None:
            return pairs
        used: Counter[int] = Counter()
        kept: set[tuple[int, int]] = set()
        for better, worse in _widest_first(pairs, scores):
            if max(used[better], used[worse]) < self.cap:
                used.update((better, worse))
                kept.add((better, worse))
        return [pair for pair in pairs if pair in kept]


class LengthMatchedPairs(PairRule):
    """Pairs of rows of a group that are about equally long: a control for scores that measure length.

    In every group the pairs with the largest margins are kept, so that no row is on both sides and neither side has
    more than ``top`` rows.

    Args:
        ratio: Largest length of the longer row over that of the shorter, at least 1.
        top: Largest number of rows on either side, at least 1.
        margin: A pair is kept if its scores differ by more than this, at least 0.
        cap: Largest number of pairs that one row takes part in; None sets no limit.
        require_success_gap: Keep only pairs of a more successful row with a less successful one.

    Raises:
        ValueError: If a number makes no sense.
    """

    named = "length-matched"

    def __init__(
        self,
        ratio: float | int = 1.1,
        top: int = 1,
        margin: float | int = 1e-3,
        cap: int | None = None,
        require_success_gap: bool = False,
    ) -> None:
        super().__init__(top=top, margin=margin, cap=cap, require_success_gap=require_success_gap)
        if not 1 <= ratio < float("inf"):
            raise ValueError(f"ratio {ratio}: expected the longer length over the shorter, at least 1")
        self.ratio = ratio

    def _ranked(self, rows: PairCandidates) -> Made:
        scores, steps = rows.scores.tolist(), rows.steps.tolist()
        made: Made = []
        for _, members in rows.groups():
            near = [
                (a, b)
                for a, b in itertools.permutations(members, 2)
                if scores[a] - scores[b] > self.margin
                and max(steps[a], steps[b]) <= self.ratio * max(min(steps[a], steps[b]), 1)
            ]
            better: set[int] = set()
            worse: set[int] = set()
            for a, b in _widest_first(near, scores):
                room = len(better | {a}) <= self.top and len(worse | {b}) <= self.top
                if room and a not in worse and b not in better:
                    better.add(a)
                    worse.add(b)
                    made.append((a, b))
        return made


class SuccessPairs(PairRule):
    """Pairs of a random success with a random failure of the same group, whatever their scores.

    This is the ablation "random success against failure" of GRAPE (arXiv 2411.19309, table 3). A group without a
    known success or without a known failure makes no pair.

    Args:
        top: Largest number of pairs of a group, at least 1; no row is in two of them.
        seed: Random seed.

    Raises:
        ValueError: If a number makes no sense.
    """

    named = "random success against failure"

    def __init__(self, top: int = 1, seed: int = 0) -> None:
        super().__init__(top=top, margin=0.0)
        self.seed = seed

    def _ranked(self, rows: PairCandidates) -> Made:
        success = rows.success.tolist()
        made: Made = []
        for name, members in rows.groups():
            draw = random.Random(f"{self.seed} {name}")
            won = [row for row in members if success[row] > 0]
            lost = [row for row in members if success[row] <= 0]
            made += list(zip(_drawn(won, self.top, draw), _drawn(lost, self.top, draw), strict=False))
        return made


class RandomPairs(PairRule):
    """Pairs of two random rows of a group in a random order: a control that knows nothing.

    Args:
        top: Largest number of pairs of a group, at least 1; no row is in two of them.
        seed: Random seed.

    Raises:
        ValueError: If a number makes no sense.
    """

    named = "random"

    def __init__(self, top: int = 1, seed: int = 0) -> None:
        super().__init__(top=top, margin=0.0)
        self.seed = seed

    def _ranked(self, rows: PairCandidates) -> Made:
        made: Made = []
        for name, members in rows.groups():
            draw = random.Random(f"{self.seed} {name}")
            k = min(self.top, len(members) // 2)
            drawn = _drawn(members, 2 * k, draw)
            made += list(zip(drawn[:k], drawn[k:], strict=True))
        return made


def _widest_first(pairs: Made, scores: Sequence[float]) -> Made:
    def margin(pair: tuple[int, int]) -> float:
        return scores[pair[0]] - scores[pair[1]]

    return sorted(pairs, key=margin, reverse=True)


def _drawn(rows: Sequence[int], count: int, draw: random.Random) -> list[int]:
    return draw.sample(list(rows), min(count, len(rows)))


def group_pairs(
    scores: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    top: int = 1,
    margin: float | int = 0.0,
    valid: Bool[Tensor, " N"] | None = None,
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Pair the best rows of every group with its worst (GRAPE, arXiv 2411.19309, Algorithm 1: top-m × bottom-m).

    With k = min(``top``, valid rows of the group // 2), each of the k best is paired with each of the k worst, so that
    no row is on both sides. Rows with equal scores rank in their order.

    Args:
        scores: Score of each row.
        group: Group of each row: pairs are made within one group only.
        top: Largest number m of rows on either side, at least 1.
        margin: A pair is kept if its scores differ by more than this, at least 0; equal scores make no pair.
        valid: Rows that count; the others may hold NaN. None takes all.

    Returns:
        Rows that are chosen and rejected (P,): groups in the order of their first row, in a group by the rank of the
        chosen row, then of the rejected row.

    Raises:
        ValueError: If shapes differ, ``top`` or ``margin`` is out of range, or the score of a valid row is not finite.
    """
    if scores.dim() != 1 or group.shape != scores.shape or (valid is not None and valid.shape != scores.shape):
        got = [tuple(scores.shape), tuple(group.shape), *(() if valid is None else (tuple(valid.shape),))]
        raise ValueError(f"scores, group and valid: expected one shape (N,), got {', '.join(map(str, got))}")
    if top < 1 or not margin >= 0:
        raise ValueError(f"top {top}, margin {margin}: expected at least one row a side and a margin of at least 0")
    used = torch.ones_like(group, dtype=torch.bool) if valid is None else valid
    if not bool(scores[used].isfinite().all()):
        row = int((used & ~scores.isfinite()).nonzero()[0, 0])
        raise ValueError(
            f"the score of row {row} is {float(scores[row])}: expected a finite number; leave rows that cannot be "
            "scored out with valid"
        )
    values, members = scores.detach().cpu().double(), group.cpu()
    counted = used.cpu()
    chosen: list[int] = []
    rejected: list[int] = []
    for name in dict.fromkeys(members.tolist()):
        rows = ((members == name) & counted).nonzero()[:, 0]
        k = min(top, len(rows) // 2)
        ranked = rows[torch.argsort(values[rows], descending=True, stable=True)].tolist()
        for better in ranked[:k]:
            for worse in ranked[len(ranked) - k :]:
                if float(values[better] - values[worse]) > margin:
                    chosen.append(better)
                    rejected.append(worse)
    return (
        torch.tensor(chosen, dtype=torch.long, device=group.device),
        torch.tensor(rejected, dtype=torch.long, device=group.device),
    )


__all__ = ["LengthMatchedPairs", "PairCandidates", "PairRule", "RandomPairs", "SuccessPairs", "group_pairs"]
