"""Sources of preference pairs for training: arrays in memory, and segments of recorded episodes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..core.batch import PreferencePairs, TrajectoryBatch
from ..core.sizes import DataSizes
from ..datasets.collate import Window, collate
from ..datasets.reader import EpisodeReader
from .segments import Segment, SegmentPair


class PairSource(ABC):
    """Pairs by place, each of two segments, with a label: the probability that the first segment is the better one."""

    names: Sequence[str]
    """Name of each pair, for messages."""
    labels: list[float]
    """Label of each pair, in [0, 1]."""
    episodes: list[tuple[int, int]]
    """Episodes that the two segments of each pair are from."""
    sizes: DataSizes
    """Widths of states, actions and features."""

    @abstractmethod
    def pairs(self, places: Sequence[int]) -> PreferencePairs:
        """Read pairs, with each segment once."""

    @abstractmethod
    def segments(self, places: Sequence[int]) -> TrajectoryBatch:
        """Read the distinct segments of pairs without frames, for fitting a normaliser."""


class ArrayPairs(PairSource):
    """Pairs whose segments lie in memory.

    Args:
        pairs: Pairs; rows of one episode and offset are one segment.
        name: Name of what they were read from.
    """

    def __init__(self, pairs: PreferencePairs, name: str) -> None:
        self._pairs = pairs
        self.names = [f"{name}, pair {place}" for place in range(len(pairs))]
        self.labels: list[float] = pairs.label.tolist()
        sides = pairs.batch.episode[torch.stack([pairs.chosen, pairs.rejected], 1)]
        self.episodes: list[tuple[int, int]] = [(first, second) for first, second in sides.tolist()]
        batch = pairs.batch
        self.sizes = DataSizes(name=name, state_size=batch.state.shape[2], action_size=batch.actions.shape[2])

    def pairs(self, places: Sequence[int]) -> PreferencePairs:
        """Take pairs, with each segment once.

        Args:
            places: Places of the pairs.
        """
        return with_used_rows(self._pairs[list(places)])

    def segments(self, places: Sequence[int]) -> TrajectoryBatch:
        """Take the distinct segments of pairs.

        Args:
            places: Places of the pairs.
        """
        return self.pairs(places).batch


class RecordedPairs(PairSource):
    """Pairs of segments of a data set.

    Args:
        reader: Reader of the data set.
        places: Place of each episode in the data set, by its index.
        pairs: Pairs with a label.
        labels: Label of each pair, in [0, 1].
        sizes: Widths of states, actions and features.
        frame_count: Largest number of frames of a camera in a segment; None takes all.
    """

    def __init__(
        self,
        reader: EpisodeReader,
        places: Mapping[int, int],
        pairs: Sequence[SegmentPair],
        labels: Sequence[float],
        sizes: DataSizes,
        frame_count: int | None = None,
    ) -> None:
        self._frame_count = frame_count
        self._reader, self._places, self._segment_pairs = reader, dict(places), list(pairs)
        self.names = [f"pair {pair.id!r}" for pair in pairs]
        self.labels: list[float] = list(labels)
        self.episodes = [(pair.first.episode, pair.second.episode) for pair in pairs]
        self.sizes = sizes

    def pairs(self, places: Sequence[int]) -> PreferencePairs:
        """Read pairs, with each segment once: it is decoded, or its features are read, once for all its pairs.

        Args:
            places: Places of the pairs.

        Raises:
            BadEpisodeError: If an episode cannot be used.
        """
        chosen = [self._segment_pairs[place] for place in places]
        row = {segment: number for number, segment in enumerate(_distinct(chosen))}
        batch = self._reader.batch([self._window(segment) for segment in row], self._frame_count)
        return PreferencePairs(
            batch=batch,
            chosen=torch.tensor([row[pair.first] for pair in chosen], dtype=torch.long),
            rejected=torch.tensor([row[pair.second] for pair in chosen], dtype=torch.long),
            label=torch.tensor([self.labels[place] for place in places]),
            weight=torch.ones(len(chosen)),
        )

    def segments(self, places: Sequence[int]) -> TrajectoryBatch:
        """Read the distinct segments of pairs without frames.

        Args:
            places: Places of the pairs.
        """
        chosen = [self._segment_pairs[place] for place in places]
        return collate([self._window(segment) for segment in _distinct(chosen)])

    def _window(self, segment: Segment) -> Window:
        episode = self._reader(self._places[segment.episode])
        stop = episode.steps if segment.stop is None else segment.stop
        return Window(episode=episode, offset=segment.start, steps=stop - segment.start)


def _distinct(pairs: Sequence[SegmentPair]) -> list[Segment]:
    """Return the segments of pairs, each once."""
    return list(dict.fromkeys(segment for pair in pairs for segment in (pair.first, pair.second)))


def with_used_rows(pairs: PreferencePairs) -> PreferencePairs:
    """Leave out the rows that no pair names, and all but the first of the rows that show one segment.

    Args:
        pairs: Pairs; rows of one episode, offset and number of steps show the same segment.
    """
    batch = pairs.batch
    key = torch.stack([batch.episode, batch.offset, batch.steps], 1)
    used = torch.cat([pairs.chosen, pairs.rejected])
    distinct, inverse = torch.unique(key[used], dim=0, return_inverse=True)
    rows = used.new_full((len(distinct),), len(key)).scatter_reduce(0, inverse, used, "amin")  # the first of each
    order = torch.argsort(rows)
    place = torch.argsort(order)[inverse]
    count = len(pairs.chosen)
    return replace(pairs, batch=batch[rows[order]], chosen=place[:count], rejected=place[count:])


__all__ = ["ArrayPairs", "PairSource", "RecordedPairs", "with_used_rows"]
