"""Several data sets as one, with unique numbers."""

import bisect
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from .episodes import BadEpisodeError, Episode, EpisodeDataset, EpisodeSummary
from .opening import open_dataset
from .splits import SplitInfo

_APART = 1 << 32  # numbers of different data sets are this far apart


def joined(dataset: EpisodeDataset) -> "JoinedDatasets":
    """Return a data set as a joined one; a data set that is joined already is returned as it is."""
    return dataset if isinstance(dataset, JoinedDatasets) else JoinedDatasets([dataset])


def open_joined(paths: Sequence[str | Path]) -> EpisodeDataset:
    """Open one data set as it is, or several as one.

    Args:
        paths: Folders of data sets, at least one.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a folder is no data set, or their states or actions differ in size.
    """
    datasets = [open_dataset(path) for path in paths]
    return datasets[0] if len(datasets) == 1 else JoinedDatasets(datasets)


class JoinedDatasets:
    """Several data sets one after the other, with unique numbers of episodes, tasks and groups.

    Args:
        datasets: Data sets with the same state and action widths; at least one.

    Raises:
        ValueError: If there is no data set, or widths differ.
    """

    def __init__(self, datasets: Sequence[EpisodeDataset]) -> None:
        if not datasets:
            raise ValueError("expected at least one data set, got none")
        first = datasets[0]
        for other in datasets[1:]:
            if (other.state_size, other.action_size) != (first.state_size, first.action_size):
                raise ValueError(
                    f"{first.name} has states of {first.state_size} and actions of {first.action_size} numbers, "
                    f"{other.name} of {other.state_size} and {other.action_size}: they cannot share batches"
                )
        self.datasets = tuple(datasets)
        self._ends = list(accumulate(len(d) for d in datasets))
        self.name = " + ".join(d.name for d in datasets)
        self.fps = first.fps
        self.state_size, self.action_size = first.state_size, first.action_size
        self.cameras = tuple(dict.fromkeys(c for d in datasets for c in d.cameras))

    def __len__(self) -> int:
        """Return the number of episodes, unreadable ones included."""
        return self._ends[-1]

    def _find(self, place: int) -> tuple[int, int]:
        place = range(len(self))[place]
        which = bisect.bisect_right(self._ends, place)
        return which, place - (self._ends[which - 1] if which else 0)

    def _index(self, which: int, index: int) -> int:
        return index if len(self.datasets) == 1 else which * _APART + index

    def split_info(self, place: int, episode: Episode) -> tuple[int, SplitInfo]:
        """Return the data set that an episode is from, and its split information as that data set names it.

        Args:
            place: Place of the episode.
            episode: The episode as it was read here.

        Returns:
            Number of the data set, and split information with the names and numbers used there.
        """
        which, inner = self._find(place)
        apart = which * _APART
        return which, SplitInfo(
            index=episode.index - apart,
            split=self.datasets[which].summary(inner).split,
            context=episode.context.removeprefix(f"{which}:") if which else episode.context,
            group=None if episode.group is None else episode.group - apart,
        )

    def summary(self, place: int) -> EpisodeSummary:
        """Return what is known of the episode at a place without reading it."""
        which, inner = self._find(place)
        summary = self.datasets[which].summary(inner)
        context = f"{which}:{summary.context}" if which and summary.context else summary.context
        return replace(summary, index=self._index(which, summary.index), context=context)

    def __getitem__(self, place: int) -> Episode:
        """Read the episode at a place.

        Raises:
            BadEpisodeError: If the episode cannot be used.
        """
        which, inner = self._find(place)
        if not which:
            return self.datasets[0][inner]
        try:
            episode = self.datasets[which][inner]
        except BadEpisodeError as error:
            raise BadEpisodeError(self._index(which, error.index), error.status, error.reason) from error
        return replace(
            episode,
            index=self._index(which, episode.index),
            task=which * _APART + episode.task,
            group=None if episode.group is None else which * _APART + episode.group,
            context=f"{which}:{episode.context}" if episode.context else "",
        )
