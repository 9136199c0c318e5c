"""Pairs of segments drawn at random from a data set, for people to compare."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ..datasets.episodes import EpisodeDataset, EpisodeSummary
from .segments import Segment, SegmentPair

_TRIES = 20  # draws per pair that is asked for, before the data set counts as used up


def draw_segment_pairs(
    dataset: EpisodeDataset, count: int = 100, seconds: float | int = 3.0, seed: int = 0
) -> list[SegmentPair]:
    """Draw pairs of segments of two different episodes of one task.

    Where episodes that share an initial state are recorded (`EpisodeSummary.context`), both episodes of a pair share
    it; other tasks are paired by the task alone. Both segments of a pair cover the same time since the start of their
    episodes; an episode shorter than a segment is taken whole. Episodes and times are drawn uniformly. No pair of
    segments comes twice, in either order.

    Args:
        dataset: Data set; only summaries are read.
        count: Number of pairs.
        seconds: Length of a segment in seconds.
        seed: Random seed; one seed gives one list of pairs.

    Returns:
        ``count`` pairs, or fewer where the data set does not hold as many. Their names state both segments, such as
        ``"e3_0-30__e8_0-30"``.

    Raises:
        ValueError: If ``count`` or ``seconds`` is not positive, or no task has two episodes with a step.
    """
    if count < 1 or not 0 < seconds < float("inf"):
        raise ValueError(f"expected at least one pair of segments longer than 0 s, got {count} pairs of {seconds} s")
    length = max(1, round(seconds * dataset.fps))
    groups = _groups([dataset.summary(place) for place in range(len(dataset))])
    if not groups:
        raise ValueError(
            f"{dataset.name}: expected two episodes of one task to compare, found none among {len(dataset)} episodes: "
            "record more, or write pairs of your own"
        )
    generator = np.random.default_rng(seed)
    share = np.array([len(episodes) for _, episodes in groups], float)
    pairs: dict[frozenset[tuple[int, int]], SegmentPair] = {}
    for _ in range(_TRIES * count):
        reason, episodes = groups[int(generator.choice(len(groups), p=share / share.sum()))]
        a, b = (episodes[int(i)] for i in generator.choice(len(episodes), 2, replace=False))
        start = int(generator.integers(max(1, min(a.steps, b.steps) - length + 1)))
        first, second = _segment(a, start, length), _segment(b, start, length)
        key = frozenset({(first.episode, first.start), (second.episode, second.start)})
        if key not in pairs:
            pairs[key] = SegmentPair(id=f"{_name(first)}__{_name(second)}", first=first, second=second, reason=reason)
        if len(pairs) == count:
            break
    return list(pairs.values())


def _groups(summaries: Sequence[EpisodeSummary]) -> list[tuple[str, list[EpisodeSummary]]]:
    """Group episodes that may be compared, each group with the reason."""
    tasks: Mapping[str, list[EpisodeSummary]] = defaultdict(list)
    for summary in summaries:
        if summary.steps > 0:
            tasks[" ".join(summary.instruction.casefold().split())].append(summary)
    groups: list[tuple[str, list[EpisodeSummary]]] = []
    for episodes in tasks.values():
        contexts: Mapping[str, list[EpisodeSummary]] = defaultdict(list)
        for summary in episodes:
            contexts[summary.context].append(summary)
        shared = [found for context, found in contexts.items() if context and len(found) > 1]
        if shared:
            groups.extend(zip(itertools.repeat("random, same task and initial state"), shared, strict=False))
        elif len(episodes) > 1:
            groups.append(("random, same task", episodes))
    return groups


def _segment(episode: EpisodeSummary, start: int, length: int) -> Segment:
    return Segment(episode=episode.index, start=start, stop=min(start + length, episode.steps))


def _name(segment: Segment) -> str:
    return f"e{segment.episode}_{segment.start}-{segment.stop}"


__all__ = ["draw_segment_pairs"]
