"""Logged episodes as the data of a training run: splits, windows, targets and negatives, bad episodes named."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import lightning
import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..backbones.vision import VisionEncoder
from ..core.batch import TrajectoryBatch, named_ends
from ..core.sizes import DataSizes
from .collate import Window, collate
from .episodes import BadEpisodeError, Episode
from .features import FeatureCache
from .joined import JoinedDatasets
from .labels import LabelFactory
from .opening import open_dataset
from .reader import EpisodeReader
from .splits import VAL_FRACTION, SplitInfo, split_each
from .stages import STAGE

_TRAIN, _VAL = 0, 1


class EpisodeData(lightning.LightningDataModule):
    """Batches of windows of episodes for training, of whole episodes for validation, with labels.

    All that is drawn (order, windows, negatives) follows from the seed and the epoch alone, whatever the number of
    loader processes. Episodes that cannot be used are named in one warning and left out; a video that turns out to be
    broken later is named then, and another episode takes its place.

    Args:
        path: Folder of a data set, or several, each of which is split by itself.
        cameras: Cameras to load.
        frame_count: At most this many frames of a camera in a row, evenly spaced; None takes all.
        frame_size: Scale frames so that the shorter side is this many pixels; None keeps the recorded size.
        frames_every: Of the recorded frames take every how many.
        batch_size: Rows.
        window: Steps of a training row at most, from a random place; None takes whole episodes.
        repeats: How often an epoch draws from every episode.
        encoder: A frozen encoder: its features of every camera are computed once and loaded instead of frames.
        cache: Folder for those features; without an encoder, for frames scaled to ``frame_size``.
        labels: Adds targets and draws negatives.
        train_split: Name of the recorded split to train on.
        val_split: Name of the recorded split to validate on.
        val_fraction: Share of contexts held out where no validation split is recorded.
        seed: Of all draws.
        num_workers: Loader processes.
        terminating: Names of the ends after which nothing is bootstrapped: ``success``, ``failure``, ``time_limit``,
            ``takeover``. Critics and potentials ask; ALOE takes all four.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        path: str | list[str],
        cameras: list[str] | tuple[str, ...] = (),
        frame_count: int | None = None,
        frame_size: int | None = None,
        frames_every: int = 1,
        batch_size: int = 16,
        window: int | None = None,
        repeats: int = 1,
        encoder: VisionEncoder | None = None,
        cache: str | None = None,
        labels: LabelFactory | None = None,
        train_split: str = "train",
        val_split: str = "val",
        val_fraction: float = VAL_FRACTION,
        seed: int = 0,
        num_workers: int = 0,
        terminating: Sequence[str] = ("success", "failure"),
    ) -> None:
        super().__init__()
        self.terminating = named_ends("terminating", terminating)
        if batch_size < 1 or repeats < 1 or frames_every < 1 or (window is not None and window < 1):
            raise ValueError(
                f"batch_size {batch_size}, repeats {repeats}, frames_every {frames_every}, window {window}: expected "
                "positive numbers"
            )
        if encoder is not None and (encoder.trainable or cache is None or not cameras):
            raise ValueError("encoder: expected a frozen one, together with cameras and a cache folder")
        if cache is not None and encoder is None and frame_size is None:
            raise ValueError("cache: expected an encoder whose features to keep, or a frame_size to keep frames at")
        self.paths = [path] if isinstance(path, str) else list(path)
        self.cameras, self.batch_size, self.window, self.repeats = tuple(cameras), batch_size, window, repeats
        self.frame_count, self.frame_size, self.frames_every = frame_count, frame_size, frames_every
        self.encoder, self.cache = encoder, cache
        self.labels = LabelFactory() if labels is None else labels
        self.train_split, self.val_split, self.val_fraction = train_split, val_split, val_fraction
        self.seed, self.num_workers = seed, num_workers
        self.bad: list[BadEpisodeError] = []
        self._reader: EpisodeReader | None = None
        self.outcomes: Counter[str] = Counter()
        """Training episodes by outcome: success, failure, partial, unknown, or labelled by observation."""
        self.places: dict[str, list[int]] = {}

    def prepare_data(self) -> None:
        """Fill the cache in one process before the others look."""
        trainer = cast(Any, self.trainer)
        if self.cache is not None and trainer is not None and trainer.world_size > 1:
            self.setup("fit")
            self._reader = None

    def setup(self, stage: str) -> None:
        """Open the data, find the split, go through all episodes once and say which cannot be used.

        Raises:
            ValueError: If none can be used, or a camera is not there.
        """
        if self._reader is not None:
            return
        dataset = self._opened()
        missing = [c for c in self.cameras if c not in dataset.cameras]
        if missing:
            held = ", ".join(dataset.cameras) or "none"
            raise ValueError(f"{dataset.name} has no camera {', '.join(map(repr, missing))}: it has {held}")
        cache = None if self.cache is None else FeatureCache(self.cache)
        reader = EpisodeReader(dataset, self.cameras, self.frame_size, self.encoder, cache, self.terminating)
        sets, usable, outcomes, staged = self._go_through(reader, dataset)
        if not usable:
            raise ValueError(f"no episode of {dataset.name} can be used: {self._reasons()}")
        if self.bad:
            warnings.warn(
                f"{len(self.bad)} of {len(dataset)} episodes of {dataset.name} cannot be used and are left out: "
                f"{self._reasons()}",
                stacklevel=2,
            )
        if getattr(self.labels, "progress", "") == "stages" and not staged:
            raise ValueError(
                f"{dataset.name}: progress by stages was asked for, and no episode holds a stage per observation "
                '(labels["stage"]): record it, or take the linear target'
            )
        train, val = split_each([s for s in sets if s], self.train_split, self.val_split, self.val_fraction)
        self.places = {"train": [usable[i] for i in train], "val": [usable[i] for i in val]}
        unnamed = sum(not e.split for infos in sets if any(e.split for e in infos) for e in infos)
        if unnamed:
            warnings.warn(
                f"{unnamed} episodes of {dataset.name} have no split, while others have one: they are neither trained "
                "nor validated on; record a split for them",
                stacklevel=2,
            )
        self.outcomes = Counter(outcomes[i] for i in train)
        if not val and stage == "validate":
            raise ValueError(f"{dataset.name} has no episode to validate on: check val_split and val_fraction")
        self._reader = reader

    @property
    def sizes(self) -> DataSizes:
        """Widths of the states and actions; a data set that is not set up yet is opened to read them.

        Raises:
            FileNotFoundError: If there is no data set at a path.
            ValueError: If a data set has another format, or several have different widths.
        """
        dataset = self._opened() if self._reader is None else self._reader.dataset
        return DataSizes(name=dataset.name, state_size=dataset.state_size, action_size=dataset.action_size)

    def _opened(self) -> JoinedDatasets:
        return JoinedDatasets([open_dataset(p) for p in self.paths])

    def _go_through(
        self, reader: EpisodeReader, dataset: JoinedDatasets
    ) -> tuple[list[list[SplitInfo]], list[int], list[str], bool]:
        """The episodes of each data set that can be used; place and outcome of all; whether any holds stages."""
        sets: list[list[SplitInfo]] = [[] for _ in self.paths]
        usable: list[int] = []
        outcomes: list[str] = []
        staged = False
        self.bad = []
        places = range(len(reader.dataset))
        shown = track(places, description="embedding", transient=True) if reader.cache is not None else places
        device = getattr(getattr(cast(Any, self.trainer), "strategy", None), "root_device", torch.device("cpu"))
        if self.encoder is not None:
            self.encoder.to(device)
        for place in shown:
            try:
                episode = reader(place)
                _check_targets(episode)
                reader.prepare(episode)
            except BadEpisodeError as error:
                self.bad.append(error)
                continue
            staged |= STAGE in episode.labels and bool(episode.labels[STAGE].valid.any())
            which, info = dataset.split_info(place, episode)
            sets[which].append(info)
            usable.append(place)
            outcomes.append(_outcome(episode))
        if self.encoder is not None:
            self.encoder.to("cpu")
        return sets, usable, outcomes, staged

    def _reasons(self) -> str:
        named = "; ".join(f"episode {e.index} ({e.status}): {e.reason}" for e in self.bad[:10])
        return named + (f"; and {len(self.bad) - 10} more" if len(self.bad) > 10 else "")

    def state_batches(self) -> Iterator[TrajectoryBatch]:
        """Whole training episodes without frames or labels: what a normaliser is fitted on."""
        reader = self._ready()
        for start in range(0, len(self.places["train"]), self.batch_size):
            chosen = self.places["train"][start : start + self.batch_size]
            yield collate([reader(place) for place in chosen], terminating=self.terminating)

    def episodes(self, split: Literal["train", "val"]) -> Iterator[TrajectoryBatch]:
        """Whole episodes of a split one by one, with frames and what was recorded; without drawn labels or negatives.

        An episode whose video turns out to be broken is named in a warning and left out.
        """
        reader = self._ready()
        for place in self.places[split]:
            try:
                yield reader.batch([Window(episode=reader(place))], self.frame_count, self.frames_every)
            except BadEpisodeError as error:
                warnings.warn(f"left out: {error} ({error.status})", stacklevel=2)

    def train_dataloader(self) -> DataLoader[TrajectoryBatch]:
        """Windows in an order drawn anew every epoch."""
        return self._loader("train", _TRAIN, self.repeats)

    def val_dataloader(self) -> DataLoader[TrajectoryBatch] | list[Any]:
        """Whole episodes, in order, with the same negatives every time; empty where nothing is held out."""
        return self._loader("val", _VAL, 1) if self._ready() and self.places["val"] else []

    def _ready(self) -> EpisodeReader:
        if self._reader is None:
            self.setup("fit")
        assert self._reader is not None
        return self._reader

    def _loader(self, split: str, stage: int, repeats: int) -> DataLoader[TrajectoryBatch]:
        reader = self._ready()
        rows = len(self.places[split]) * repeats
        trainer = cast(Any, self.trainer)
        sampler = _Epochs(
            _Keys(rows),
            num_replicas=1 if trainer is None else trainer.world_size,
            rank=0 if trainer is None else trainer.global_rank,
            shuffle=stage == _TRAIN,
            seed=self.seed,
        )
        batches = _Batches(
            reader,
            self.places[split],
            window=self.window if stage == _TRAIN else None,
            frame_count=self.frame_count,
            frames_every=self.frames_every,
            labels=self.labels,
            seed=(self.seed, stage),
        )
        return DataLoader(
            cast(Dataset[Any], sampler.dataset),
            self.batch_size,
            sampler=sampler,
            collate_fn=batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _check_targets(episode: Episode) -> None:
    """Recorded targets must be numbers in [0, 1] where they are valid; better said now than in the middle of a run."""
    for name in ("progress", "success"):
        column = episode.labels.get(name)
        if column is None:
            continue
        known = column.values[column.valid]
        wrong = known[~((known >= 0) & (known <= 1))]
        if len(wrong):
            raise BadEpisodeError(
                episode.index, "label", f"recorded {name} is {float(wrong[0])}: expected a number in [0, 1]"
            )


def _outcome(episode: Episode) -> str:
    if "progress" in episode.labels and bool(episode.labels["progress"].valid.any()):
        return "labelled"
    if episode.success is None:
        flags = episode.labels.get("success")
        return "labelled" if flags is not None and bool((flags.values[flags.valid] > 0).any()) else "unknown"
    return "success" if episode.success >= 1 else "failure" if episode.success <= 0 else "partial"


class _Keys(Dataset[tuple[int, int]]):
    """Rows stand for themselves: the batch is made of them in one go, where a bad episode can be replaced."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, key: Any) -> tuple[int, int]:
        return key


class _Epochs(DistributedSampler[Any]):
    """Yields (epoch, row), so that what is drawn for a row changes from epoch to epoch in every loader process.

    Being a distributed sampler, it is left alone by lightning, which tells it the epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch if self.shuffle else 0
        return ((epoch, row) for row in super().__iter__())


class _Batches:
    """Makes a batch of rows named by (epoch, row)."""

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
