"""Draws the rows of a training run: each follows from the seed, the epoch and its number, in any loader process."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from ..core.batch import TrajectoryBatch
from .collate import Window
from .episodes import BadEpisodeError
from .reader import EpisodeReader


class RowKeys(Dataset[tuple[int, int]]):
    """Rows that stand for themselves: a batch is made of their keys in one go, where a bad episode can be replaced.

    Args:
        rows: Number of rows in an epoch.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Return the number of rows in an epoch."""
        return self.rows

    def __getitem__(self, key: Any) -> tuple[int, int]:
        """Return the key (epoch, row) as it is."""
        return key


def task_balanced(tasks: Sequence[Hashable], steps: Sequence[int]) -> list[int]:
    """Repeat episodes so that every task has about the same number of steps in an epoch.

    The task with the most steps has each of its episodes once. The episodes of every other task are repeated in turn
    until the task is within half an episode of it.

    Args:
        tasks: Task of each episode.
        steps: Number of steps of each episode, at least 1.

    Returns:
        Places of the episodes, each at least once, by task in the order of their first episodes.
    """
    of: dict[Hashable, list[int]] = {}
    for place, task in enumerate(tasks):
        of.setdefault(task, []).append(place)
    most = max((sum(steps[place] for place in places) for places in of.values()), default=0)
    found: list[int] = []
    for places in of.values():
        total = 0
        for place in cycle(places):
            if total + steps[place] / 2 > most:
                break
            found.append(place)
            total += steps[place]
    return found


class EpochSampler(DistributedSampler[Any]):
    """Sampler of (epoch, row), so that what is drawn for a row changes with the epoch in every loader process.

    Being a distributed sampler, it is left alone by Lightning, which sets its epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        """Go through the rows of this process; without shuffling the epoch is always 0."""
        epoch = self.epoch if self.shuffle else 0
        return ((epoch, row) for row in super().__iter__())


class RowBatches:
    """Makes a batch of the rows with some keys (epoch, row).

    Args:
        reader: Reader of the data set.
        places: Places of the episodes to draw from; row i shows the episode at place i, modulo their number.
        window: Length of a row in steps; None takes whole episodes.
        frame_count: Largest number of frames of a camera in a row; None takes all.
        frames_every: Interval between the recorded frames that are taken.
        labels: Function that adds targets and draws negatives.
        seed: Random seed: of the run, and of its stage.
    """

    def __init__(
        self,
        reader: EpisodeReader,
        places: Sequence[int],
        window: int | None,
        frame_count: int | None,
        frames_every: int,
        labels: Callable[[TrajectoryBatch, torch.Generator], TrajectoryBatch],
        seed: tuple[int, int],
    ) -> None:
        self.reader, self.places, self.window = reader, places, window
        self.frame_count, self.frames_every, self.labels, self.seed = frame_count, frames_every, labels, seed
        self.bad: set[int] = set()

    def __call__(self, keys: Sequence[tuple[int, int]]) -> TrajectoryBatch:
        """Read the rows with some keys; an episode whose video is broken is named in a warning and replaced.

        Raises:
            RuntimeError: If no episode is left.
        """
        while True:  # every turn but the last takes one more episode out
            windows = [self._draw(epoch, row) for epoch, row in keys]
            try:
                batch = self.reader.batch(windows, self.frame_count, self.frames_every)
            except BadEpisodeError as error:
                warnings.warn(f"left out from now on: {error} ({error.status})", stacklevel=2)
                self.bad.add(error.index)
                continue
            drawn = np.random.SeedSequence([*self.seed, *(n for key in keys for n in key)]).generate_state(1)[0]
            return self.labels(batch, torch.Generator().manual_seed(int(drawn)))

    def _draw(self, epoch: int, row: int) -> Window:
        for offset in range(len(self.places)):
            try:
                episode = self.reader(self.places[(row + offset) % len(self.places)])
            except BadEpisodeError as error:
                self.bad.add(error.index)
                continue
            if episode.index not in self.bad:
                break
        else:
            raise RuntimeError("no episode is left to train on: every one turned out to be unusable, see the warnings")
        if self.window is None or self.window >= episode.steps:
            return Window(episode=episode)
        # drawn beyond both ends and cut back, so that first and last observations are met as often as others
        beyond = self.window // 2
        start = int(np.random.default_rng([*self.seed, epoch, row]).integers(-beyond, episode.steps - beyond))
        return Window(episode=episode, offset=min(max(start, 0), episode.steps - self.window), steps=self.window)
