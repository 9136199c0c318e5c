"""Agreement of raters: Cohen's and Fleiss' κ, and the bias of each rater."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
from jaxtyping import Int
from scipy.stats import binomtest

from ..core.intervals import Estimate
from .answers import Answer, Choice
from .segments import SegmentPair

_MIRROR: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie", "skip": "skip"}
CATEGORIES: tuple[Choice, ...] = ("first", "second", "tie")
"""Choices that count as answers in `choice_counts`, in the order of its columns."""


def cohens_kappa(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> float:
    """Compute Cohen's κ of two raters (Cohen 1960): (p_o − p_e) / (1 − p_e).

    p_o is the share of items on which they agree, p_e = Σ_c p_1(c) p_2(c) the share expected by chance from how often
    each uses category c. Items that either rater left out (None) are left out of all of it.

    Args:
        first: Category of each item by the first rater; None where it was not rated.
        second: Categories of the same items by the second rater.

    Returns:
        κ in [−1, 1]; NaN without an item that both rated, or where p_e = 1 (both use one category only).

    Raises:
        ValueError: If the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"expected the same items of both raters, got {len(first)} and {len(second)}")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return math.nan
    count = len(both)
    one, two = Counter(a for a, _ in both), Counter(b for _, b in both)
    agreed = sum(a == b for a, b in both) * count
    chance = sum(one[c] * two[c] for c in one)
    return math.nan if chance == count * count else (agreed - chance) / (count * count - chance)


def fleiss_kappa(counts: Int[np.ndarray, "N K"]) -> float:
    """Compute Fleiss' κ of any number of raters (Fleiss 1971): (P̄ − P_e) / (1 − P_e).

    With n_ij the number of raters who put item i into category j and n_i = Σ_j n_ij, P̄ is the mean over items of
    (Σ_j n_ij² − n_i) / (n_i (n_i − 1)), the share of pairs of raters who agree. P_e = Σ_j p_j² with p_j the share of
    all ratings in category j.

    Fleiss has the same n_i for every item. Here n_i may differ (missing answers): items with fewer than two ratings are
    left out, every other item counts once in P̄, and every rating of it once in p_j. With equal n_i this is Fleiss' κ.

    Args:
        counts: Number of raters n_ij, at least 0.

    Returns:
        κ of at most 1; NaN without an item of two ratings, or where all ratings are in one category.

    Raises:
        ValueError: If the counts are no table, or one is negative.
    """
    if counts.ndim != 2 or (counts.size and int(counts.min()) < 0):
        raise ValueError(f"counts: expected (items, categories) with numbers of at least 0, got shape {counts.shape}")
    rated = counts[counts.sum(1) >= 2].astype(np.float64)
    if not len(rated):
        return math.nan
    raters = rated.sum(1)
    agreed = float((((rated**2).sum(1) - raters) / (raters * (raters - 1))).mean())
    totals = rated.sum(0)
    if np.count_nonzero(totals) == 1:
        return math.nan
    chance = float(((totals / totals.sum()) ** 2).sum())
    return (agreed - chance) / (1 - chance)


def choice_counts(answers: Sequence[Answer]) -> Int[np.ndarray, "N 3"]:
    """Count the raters of each pair who chose the first, the second and a tie; skips are missing answers.

    Args:
        answers: Answers, at most one of a rater to a pair.

    Returns:
        A row for each pair that is named, in the order of first mention; a column for each of `CATEGORIES`.
    """
    rows = {pair: row for row, pair in enumerate(dict.fromkeys(answer.pair for answer in answers))}
    counts = np.zeros((len(rows), len(CATEGORIES)), dtype=np.int64)
    for answer in answers:
        if answer.choice != "skip":
            counts[rows[answer.pair], CATEGORIES.index(answer.choice)] += 1
    return counts


def kappa_of_raters(answers: Sequence[Answer], first: str, second: str) -> float:
    """Compute Cohen's κ of two raters on the pairs that both answered; skips are missing.

    Args:
        answers: Answers, at most one of a rater to a pair.
        first: Name of the first rater.
        second: Name of the second rater.

    Returns:
        `cohens_kappa` of the categories first, second and tie.
    """
    given: dict[str, dict[str, Choice]] = {first: {}, second: {}}
    for answer in answers:
        if answer.rater in given and answer.choice != "skip":
            given[answer.rater][answer.pair] = answer.choice
    pairs = list(given[first])
    return cohens_kappa([given[first][pair] for pair in pairs], [given[second].get(pair) for pair in pairs])


@dataclass(frozen=True, kw_only=True)
class RaterSummary:
    """Habits of one rater; NaN where a metric is undefined."""

    rater: str
    """Name of the rater."""
    answers: int
    """Number of answers, skips included."""
    first_share: Estimate
    """Share of "first" among choices of a side; its exact (Clopper–Pearson) interval should hold ½."""
    tie_rate: float
    """Share of ties among answers that are no skips."""
    skip_rate: float
    """Share of skips among all answers."""
    seconds: float
    """Median time of an answer in seconds, where it was measured."""
    majority_agreement: Estimate
    """Share of pairs with the majority choice of the other raters, with its exact interval. Skips do not count, nor do
    pairs without a single most frequent choice of the others."""
    self_consistency: Estimate
    """Share of repetitions on which the rater chose alike, with its exact interval; a repetition is two answers to the
    same two segments, in either order. Skips do not count."""


def summarise_raters(
    answers: Sequence[Answer], pairs: Sequence[SegmentPair] = (), level: float | int = 0.95
) -> list[RaterSummary]:
    """Describe the habits of each rater.

    Args:
        answers: Answers of all raters.
        pairs: Segments of the pairs, by which the same question is found under another name or with sides swapped;
            without them only answers to a pair of the same name are repetitions.
        level: Confidence level of the intervals, in (0, 1).

    Returns:
        One summary a rater, in the order of their first answer.
    """
    turned = _questions(pairs)
    by_pair: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_pair[answer.pair].append(answer)
    return [_summary(rater, answers, by_pair, turned, level) for rater in dict.fromkeys(a.rater for a in answers)]


def _summary(
    rater: str,
    answers: Sequence[Answer],
    by_pair: dict[str, list[Answer]],
    turned: dict[str, tuple[Hashable, bool]],
    level: float | int,
) -> RaterSummary:
    own = [answer for answer in answers if answer.rater == rater]
    decided = [answer for answer in own if answer.choice != "skip"]
    sided = [answer for answer in decided if answer.choice != "tie"]
    times = [answer.seconds for answer in own if answer.seconds is not None]
    agreed: list[bool] = []
    for answer in decided:
        ranked = Counter(
            o.choice for o in by_pair[answer.pair] if o.rater != rater and o.choice != "skip"
        ).most_common()
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            agreed.append(answer.choice == ranked[0][0])
    repeated: dict[Hashable, list[Choice]] = defaultdict(list)
    for answer in decided:
        question, swapped = turned.get(answer.pair, (answer.pair, False))
        repeated[question].append(_MIRROR[answer.choice] if swapped else answer.choice)
    alike = [a == b for choices in repeated.values() for a, b in combinations(choices, 2)]
    return RaterSummary(
        rater=rater,
        answers=len(own),
        first_share=_exact([answer.choice == "first" for answer in sided], level),
        tie_rate=1 - len(sided) / len(decided) if decided else math.nan,
        skip_rate=1 - len(decided) / len(own),
        seconds=median(times) if times else math.nan,
        majority_agreement=_exact(agreed, level),
        self_consistency=_exact(alike, level),
    )


def _exact(hits: Sequence[bool], level: float | int) -> Estimate:
    if not hits:
        return Estimate(value=math.nan)
    interval = binomtest(sum(hits), len(hits)).proportion_ci(level, method="exact")
    return Estimate(value=sum(hits) / len(hits), low=float(interval.low), high=float(interval.high))


def _questions(pairs: Sequence[SegmentPair]) -> dict[str, tuple[Hashable, bool]]:
    """Name the question behind each pair, one for both orders of its segments, and whether its sides are swapped."""
    found: dict[str, tuple[Hashable, bool]] = {}
    for pair in pairs:
        one = (pair.first.episode, pair.first.start, -1 if pair.first.stop is None else pair.first.stop)
        two = (pair.second.episode, pair.second.start, -1 if pair.second.stop is None else pair.second.stop)
        found[pair.id] = ((min(one, two), max(one, two)), two < one)
    return found


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Two answers of one rater that prefer different segments of the same two."""

    rater: str
    """Name of the rater."""
    earlier: Answer
    """Answer that comes first in the list."""
    later: Answer
    """Answer that contradicts it."""


def find_contradictions(answers: Sequence[Answer], pairs: Sequence[SegmentPair] = ()) -> list[Contradiction]:
    """Find pairs of answers in which one rater prefers both sides of the same two segments.

    A tie or a skip contradicts nothing.

    Args:
        answers: Answers of all raters.
        pairs: Segments of the pairs, by which a mirrored or repeated pair of another name is found.

    Returns:
        Every contradictory couple of answers, in the order of the later one.
    """
    turned = _questions(pairs)
    seen: dict[tuple[str, Hashable], list[tuple[Choice, Answer]]] = defaultdict(list)
    found: list[Contradiction] = []
    for answer in answers:
        question, swapped = turned.get(answer.pair, (answer.pair, False))
        choice = _MIRROR[answer.choice] if swapped else answer.choice
        if choice not in ("first", "second"):
            continue
        before = seen[answer.rater, question]
        found += [Contradiction(rater=answer.rater, earlier=e, later=answer) for c, e in before if c != choice]
        before.append((choice, answer))
    return found


@dataclass(frozen=True, kw_only=True)
class MergedLabel:
    """Answers of all raters to one pair as one soft label."""

    pair: str
    """Name of the pair."""
    label: float | None
    """Probability that the first segment is better, in [0, 1]; None where nobody answered."""
    raters: int
    """Number of raters whose answers are in the label."""
    skips: int
    """Number of raters who only skipped the pair."""


def merge_answers(
    answers: Sequence[Answer], pairs: Sequence[SegmentPair] = (), by_confidence: bool = False
) -> list[MergedLabel]:
    """Merge the answers of several raters into one soft label per pair: the mean over raters.

    A rater who answers a pair of one name several times without a contradiction counts once, with the mean of these
    answers.

    Args:
        answers: Answers of all raters.
        pairs: Segments of the pairs, by which contradictions between mirrored pairs are found, too.
        by_confidence: Whether to weight raters by their confidence; a confidence that was not asked counts as 1.

    Returns:
        One label for each pair that is named, in the order of first mention.

    Raises:
        ValueError: If a rater contradicts themselves; `find_contradictions` lists all such answers, so that they can be
            left out or asked again.
    """
    wrong = find_contradictions(answers, pairs)
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"rater {first.rater!r} chooses {first.earlier.choice!r} in pair {first.earlier.pair!r} and "
            f"{first.later.choice!r} in pair {first.later.pair!r}, which contradict each other ({len(wrong)} such "
            "couples): leave both out, or ask again; find_contradictions lists all"
        )
    grouped: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        held = grouped[answer.pair][answer.rater]
        if answer.label is not None:
            held.append((answer.label, answer.confidence if by_confidence and answer.confidence is not None else 1.0))
    merged: list[MergedLabel] = []
    for pair, raters in grouped.items():
        voted = [given for given in raters.values() if given]
        means = [(_mean([w for _, w in given]), _mean([label for label, _ in given])) for given in voted]
        total = sum(weight for weight, _ in means)
        label = sum(weight * value for weight, value in means) / total if total > 0 else None
        merged.append(MergedLabel(pair=pair, label=label, raters=len(voted), skips=len(raters) - len(voted)))
    return merged


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


__all__ = [
    "CATEGORIES",
    "Contradiction",
    "MergedLabel",
    "RaterSummary",
    "choice_counts",
    "cohens_kappa",
    "find_contradictions",
    "fleiss_kappa",
    "kappa_of_raters",
    "merge_answers",
    "summarise_raters",
]
