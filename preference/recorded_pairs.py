"""Pairs of segments of a data set with the answers that people gave to them, checked before a run begins."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.episodes import BadEpisodeError, Episode, EpisodeDataset
from ..datasets.reader import EpisodeReader
from .agreement import find_contradictions, merge_answers
from .answer_log import read_answers
from .answers import check_answers
from .segments import Segment, SegmentPair, read_segment_pairs


@dataclass(frozen=True, kw_only=True)
class AnsweredPairs:
    """Pairs with a label, and what was left out."""

    pairs: list[SegmentPair]
    """Pairs with a label."""
    labels: list[float]
    """Label of each: probability that the first segment is better, the mean over raters."""
    skipped: int = 0
    """Number of pairs that every rater skipped."""
    unanswered: int = 0
    """Number of pairs without an answer."""
    contradicted: int = 0
    """Number of answers that are left out because their rater contradicts them."""

    def describe(self) -> str:
        """Describe the pairs in one line."""
        total = len(self.pairs) + self.skipped + self.unanswered
        ties = sum(label == 0.5 for label in self.labels)
        parts = [f"{len(self.pairs)} of {total} pairs are labelled ({ties} ties)"]
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{self.unanswered} without an answer"] if self.unanswered else []
        return ", ".join(parts)


def read_answered_pairs(pairs: Path, answers: Sequence[Path]) -> AnsweredPairs:
    """Read pairs and the answers to them, and merge the raters' answers to one label a pair.

    A label is the mean over raters, who count alike. Answers in which one rater contradicts themselves are left out,
    with a warning, and so are skips.

    Args:
        pairs: File of pairs, as `read_segment_pairs` reads it.
        answers: Files of answers, as `read_answers` reads them; at least one.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, an answer names an unknown pair, or a rater answers a pair twice.
    """
    asked = read_segment_pairs(pairs)
    given = [answer for path in answers for answer in read_answers(path)]
    check_answers(given, [pair.id for pair in asked], " + ".join(map(str, answers)))
    wrong = find_contradictions(given, asked)
    if wrong:
        removed = {id(answer) for couple in wrong for answer in (couple.earlier, couple.later)}
        first = wrong[0]
        warnings.warn(
            f"{len(removed)} answers contradict another one of the same rater and are left out: rater "
            f"{first.rater!r} chooses {first.earlier.choice!r} in pair {first.earlier.pair!r} and "
            f"{first.later.choice!r} in pair {first.later.pair!r}",
            stacklevel=2,
        )
        count = len(removed)
        given = [answer for answer in given if id(answer) not in removed]
    else:
        count = 0
    merged = {label.pair: label.label for label in merge_answers(given, asked)}
    labels = {name: label for name, label in merged.items() if label is not None}
    kept = [pair for pair in asked if pair.id in labels]
    return AnsweredPairs(
        pairs=kept,
        labels=[labels[pair.id] for pair in kept],
        skipped=len(merged) - len(labels),
        unanswered=len(asked) - len(merged),
        contradicted=count,
    )


def places_of(dataset: EpisodeDataset) -> dict[int, int]:
    """Return the place of each episode of a data set by its index.

    Args:
        dataset: Data set.
    """
    return {dataset.summary(place).index: place for place in range(len(dataset))}


def usable_pairs(found: AnsweredPairs, reader: EpisodeReader, places: Mapping[int, int]) -> AnsweredPairs:
    """Read the episodes of all pairs, fill the reader's cache, and check that the segments can be compared.

    Pairs with an episode that cannot be used are named in a warning and left out.

    Args:
        found: Pairs with labels.
        reader: Reader of the data set.
        places: Place of each episode by its index.

    Raises:
        ValueError: If a segment does not lie in the data, the two segments of a pair are of different tasks or are the
            same steps.
    """
    bad: dict[int, BadEpisodeError] = {}
    episodes: dict[int, Episode] = {}
    for pair in found.pairs:
        for segment in (pair.first, pair.second):
            if segment.episode not in places:
                raise ValueError(
                    f"pair {pair.id!r} names episode {segment.episode}, and {reader.dataset.name} has episodes "
                    f"{min(places)} to {max(places)}: name the data set that the pairs were made of"
                )
            if segment.episode in episodes or segment.episode in bad:
                continue
            try:
                episode = reader(places[segment.episode])
                reader.prepare(episode)
                episodes[segment.episode] = episode
            except BadEpisodeError as error:
                bad[segment.episode] = error
    kept = [
        (pair, label)
        for pair, label in zip(found.pairs, found.labels, strict=True)
        if pair.first.episode not in bad and pair.second.episode not in bad
    ]
    if bad:
        reasons = "; ".join(str(error) for error in list(bad.values())[:10])
        warnings.warn(
            f"{len(found.pairs) - len(kept)} of {len(found.pairs)} labelled pairs are left out, because an episode "
            f"cannot be used: {reasons}",
            stacklevel=2,
        )
    for pair, _ in kept:
        _check_pair(pair, episodes)
    return AnsweredPairs(
        pairs=[pair for pair, _ in kept],
        labels=[label for _, label in kept],
        skipped=found.skipped,
        unanswered=found.unanswered,
        contradicted=found.contradicted,
    )


def _check_pair(pair: SegmentPair, episodes: Mapping[int, Episode]) -> None:
    """Check that two segments lie in their episodes, are of one task, and differ."""
    spans: list[tuple[int, int, int]] = []
    for segment in (pair.first, pair.second):
        episode = episodes[segment.episode]
        stop = _stop(segment, episode)
        if not segment.start < stop <= episode.steps:
            raise ValueError(
                f"pair {pair.id!r}: steps {segment.start} to {stop} do not lie in episode {segment.episode}, which has "
                f"{episode.steps} steps: make the pairs of this data set"
            )
        spans.append((segment.episode, segment.start, stop))
    if spans[0] == spans[1]:
        raise ValueError(f"pair {pair.id!r}: both segments are the same steps of one episode: remove the pair")
    first, second = episodes[pair.first.episode], episodes[pair.second.episode]
    if first.task != second.task:
        raise ValueError(
            f"pair {pair.id!r} compares two tasks, {first.instruction!r} and {second.instruction!r}: compare segments "
            "of one task only"
        )


def _stop(segment: Segment, episode: Episode) -> int:
    return episode.steps if segment.stop is None else segment.stop


def check_labels(labels: Sequence[float], what: str) -> None:
    """Refuse labels from which nothing can be learned, and warn of those that teach the side alone.

    Args:
        labels: Labels of the training pairs.
        what: Description of the pairs, for the message.

    Raises:
        ValueError: If there is no pair, or every label is a tie.
    """
    decided = [label for label in labels if label != 0.5]
    if not decided:
        why = "every label is a tie" if labels else "there is no training pair with a label"
        raise ValueError(f"{what}: {why}, so there is nothing to learn: ask about pairs that differ more")
    if len(decided) > 1 and len({label > 0.5 for label in decided}) == 1:
        side = "first" if decided[0] > 0.5 else "second"
        warnings.warn(
            f"{what}: all {len(decided)} decided training labels prefer the {side} segment; a reward learns nothing of "
            "the side, but this is how answers look that were not given by what the segments show: shuffle the sides, "
            "and check the answers",
            stacklevel=2,
        )


__all__ = ["AnsweredPairs", "check_labels", "places_of", "read_answered_pairs", "usable_pairs"]
