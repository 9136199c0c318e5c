"""Data module of a training run on logged episodes: splits, windows, targets and negatives."""

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from ..backbones.vision import VisionEncoder
from ..core.arguments import folds
from ..core.batch import TrajectoryBatch, named_ends
from ..core.sizes import DataSizes
from .collate import Window, collate
from .episodes import BadEpisodeError
from .features import FeatureCache
from .filters import EpisodeFilter
from .joined import JoinedDatasets, joined, open_joined
from .labels import LabelFactory
from .reader import EpisodeReader
from .sampling import EpochSampler, RowBatches, RowKeys, task_balanced
from .splits import VAL_FRACTION, split_each
from .survey import Survey, survey

_TRAIN, _VAL = 0, 1


class EpisodeData(lightning.LightningDataModule):
    """Data module of logged episodes: windows for training and whole episodes for validation, with labels.

    Order, windows and negatives follow from the seed and the epoch alone, whatever the number of loader processes.
    Episodes that cannot be used are named in one warning and left out. A video that turns out to be broken later is
    named then, and another episode takes its place.

    Args:
        path: Folder of a data set, or several folders, each of which is split by itself.
        cameras: Cameras to load.
        frame_count: Largest number of frames of a camera in a row, evenly spaced; None takes all.
        frame_size: Shorter side in pixels that frames are scaled to; None keeps the recorded size.
        frames_every: Interval between the recorded frames that are taken.
        batch_size: Number of rows in a batch.
        window: Largest number of steps in a training row, from a random place; None takes whole episodes.
        repeats: Number of training rows of every episode in an epoch.
        encoder: Frozen encoder, whose features of every camera are computed once and loaded instead of frames.
        cache: Folder of those features; without an encoder, folder of the frames scaled to ``frame_size``.
        labels: Factory that adds targets and draws negatives; None takes its defaults.
        train_split: Name of the recorded split to train on.
        val_split: Name of the recorded split to validate on.
        val_fraction: Share of contexts held out where no validation split is recorded, in [0, 1).
        seed: Random seed of order, windows and negatives.
        num_workers: Number of loader processes.
        terminating: Names of the ends after which nothing is bootstrapped: ``success``, ``failure``, ``time_limit``,
            ``takeover``. Critics and potentials use it; ALOE takes all four.
        keep: Filter of training and validation episodes; None keeps all. The split is made before: an episode is on the
            same side with and without a filter. Its arguments may also be given one by one, such as ``success=True``.
        balance_tasks: Repeat training episodes so that every task has about the same number of steps in an epoch; each
            instruction of each data set is a task.

    Raises:
        ValueError: If an argument makes no sense.
    """

    @folds(keep=EpisodeFilter)
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
        keep: EpisodeFilter | None = None,
        balance_tasks: bool = False,
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
        self.keep, self.balance_tasks = keep, balance_tasks
        self.bad: list[BadEpisodeError] = []
        self._reader: EpisodeReader | None = None
        self.outcomes: Counter[str] = Counter()
        """Training episodes by outcome: success, failure, partial, unknown, or labelled by observation."""
        self.places: dict[str, list[int]] = {}
        self._rows: list[int] = []
        self._added: list[str] = []

    def with_added(self, paths: Sequence[str], balance_tasks: bool) -> "EpisodeData":
        """Make a data module with the same settings, and with data sets that are trained on whole.

        Splits and the filter hold for the data sets of this one alone.

        Args:
            paths: Folders of the further data sets.
            balance_tasks: Whether every task has the same number of steps in an epoch.
        """
        other = copy.copy(self)
        other.trainer, other._reader = None, None
        other._added, other.balance_tasks = list(paths), balance_tasks
        other.bad, other.outcomes, other.places, other._rows = [], Counter(), {}, []
        return other

    @property
    def folders(self) -> list[str]:
        """Folders of all data sets, those that are trained on whole last."""
        return [*self.paths, *self._added]

    def prepare_data(self) -> None:
        """Fill the cache in one process before the others read it."""
        trainer = cast(Any, self.trainer)
        if self.cache is not None and trainer is not None and trainer.world_size > 1:
            self.setup("fit")
            self._reader = None

    def setup(self, stage: str) -> None:
        """Open the data, read every episode once, and choose the split.

        Episodes that cannot be used are named in a warning.

        Args:
            stage: Stage of the trainer, such as ``"fit"`` or ``"validate"``.

        Raises:
            ValueError: If no episode can be used, or a camera is missing.
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
        found = self._survey(reader, dataset)
        self.bad = found.bad
        if not found.usable:
            raise ValueError(f"no episode of {dataset.name} can be used: {found.reasons()}")
        if found.bad:
            warnings.warn(
                f"{len(found.bad)} of {len(dataset)} episodes of {dataset.name} cannot be used and are left out: "
                f"{found.reasons()}",
                stacklevel=2,
            )
        if getattr(self.labels, "progress", "") == "stages" and not found.staged:
            raise ValueError(
                f"{dataset.name}: progress by stages was asked for, and no episode holds a stage per observation "
                '(labels["stage"]): record it, or take the linear target'
            )
        own = len(self.paths)
        sets = [s for s in found.sets[:own] if s]
        split = split_each(sets, self.train_split, self.val_split, self.val_fraction)
        train, val = self._filtered(found, split)
        for number, path in enumerate(self._added, own):
            added = [i for i, (which, _) in enumerate(found.tasks) if which == number]
            if not added:
                raise ValueError(f"no episode of {path} can be used: {found.reasons()}")
            train = [*train, *added]
        self.places = {"train": [found.usable[i] for i in train], "val": [found.usable[i] for i in val]}
        self._rows = self.places["train"]
        if self.balance_tasks:
            length = [found.steps[i] if self.window is None else min(self.window, found.steps[i]) for i in train]
            self._rows = [self._rows[place] for place in task_balanced([found.tasks[i] for i in train], length)]
        unnamed = sum(not e.split for infos in sets if any(e.split for e in infos) for e in infos)
        if unnamed:
            warnings.warn(
                f"{unnamed} episodes of {dataset.name} have no split, while others have one: they are neither trained "
                "nor validated on; record a split for them",
                stacklevel=2,
            )
        self.outcomes = Counter(found.outcomes[i] for i in train)
        if not val and split[1] and stage == "validate":
            raise ValueError(
                f"{dataset.name}: keep leaves none of the {len(split[1])} validation episodes; "
                f"{found.filtered.describe()}: relax a condition of keep"
            )
        if not val and stage == "validate":
            raise ValueError(f"{dataset.name} has no episode to validate on: check val_split and val_fraction")
        self._reader = reader

    def _filtered(self, found: Survey, split: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
        """Leave out the episodes that the filter does not keep, and print how many of each split are left.

        Raises:
            ValueError: If the filter keeps no training episode.
        """
        if self.keep is None:
            return split
        train, val = ([i for i in part if found.kept[i]] for part in split)
        counts = f"{len(train)} of {len(split[0])} training and {len(val)} of {len(split[1])} validation episodes"
        if not train:
            raise ValueError(
                f"the filter keeps {counts}; of {found.filtered.seen} episodes meet {found.filtered.describe()}: relax "
                "a condition of keep"
            )
        trainer = cast(Any, self.trainer)
        if trainer is not None and trainer.is_global_zero:
            print(f"kept {counts}; {found.filtered.describe()}", file=sys.stderr)
        return train, val

    @property
    def sizes(self) -> DataSizes:
        """Widths of the states, actions and cached features; a data set that is not set up yet is opened to read them.

        Raises:
            FileNotFoundError: If there is no data set at a path.
            ValueError: If a data set has another format, or several have different widths.
        """
        dataset = self._opened() if self._reader is None else self._reader.dataset
        encoder = self.encoder
        return DataSizes(
            name=dataset.name,
            state_size=dataset.state_size,
            action_size=dataset.action_size,
            feature_sizes={f"{encoder.name}/{camera}": encoder.width for camera in self.cameras} if encoder else {},
        )

    def _opened(self) -> JoinedDatasets:
        return joined(open_joined(self.folders))

    def _survey(self, reader: EpisodeReader, dataset: JoinedDatasets) -> Survey:
        """Read every episode once; a frozen encoder fills the cache on the device of the training."""
        if self.encoder is None:
            return survey(reader, dataset, self.keep)
        self.encoder.to(getattr(getattr(cast(Any, self.trainer), "strategy", None), "root_device", torch.device("cpu")))
        found = survey(reader, dataset, self.keep)
        self.encoder.to("cpu")
        return found

    def state_batches(self) -> Iterator[TrajectoryBatch]:
        """Yield whole training episodes without frames or drawn labels, for fitting a normaliser."""
        reader = self._ready()
        for start in range(0, len(self.places["train"]), self.batch_size):
            chosen = self.places["train"][start : start + self.batch_size]
            yield collate([reader(place) for place in chosen], terminating=self.terminating)

    def episodes(self, split: Literal["train", "val"]) -> Iterator[TrajectoryBatch]:
        """Yield whole episodes of a split one by one, with frames and recorded columns, without targets or negatives.

        An episode whose video turns out to be broken is named in a warning and left out.

        Args:
            split: Split to read.
        """
        self._ready()
        for place in self.places[split]:
            try:
                yield self.whole([place])
            except BadEpisodeError as error:
                warnings.warn(f"left out: {error} ({error.status})", stacklevel=2)

    def whole(self, places: Sequence[int]) -> TrajectoryBatch:
        """Read whole episodes into one batch, with frames and recorded columns, without targets or negatives.

        Args:
            places: Places of the episodes in the data set, such as some of ``places["train"]``.

        Raises:
            BadEpisodeError: If a video turns out to be broken.
        """
        reader = self._ready()
        windows = [Window(episode=reader(place)) for place in places]
        return reader.batch(windows, self.frame_count, self.frames_every)

    def train_dataloader(self) -> DataLoader[TrajectoryBatch]:
        """Make the loader of training windows, in an order that is drawn anew every epoch."""
        return self._loader("train", _TRAIN, self.repeats)

    def val_dataloader(self) -> DataLoader[TrajectoryBatch] | list[Any]:
        """Make the loader of held-out episodes, with the same negatives every time; empty where there are none."""
        return self._loader("val", _VAL, 1) if self._ready() and self.places["val"] else []

    def _ready(self) -> EpisodeReader:
        if self._reader is None:
            self.setup("fit")
        assert self._reader is not None
        return self._reader

    def _loader(self, split: str, stage: int, repeats: int) -> DataLoader[TrajectoryBatch]:
        reader = self._ready()
        places = self._rows if stage == _TRAIN else self.places[split]
        rows = len(places) * repeats
        trainer = cast(Any, self.trainer)
        sampler = EpochSampler(
            RowKeys(rows),
            num_replicas=1 if trainer is None else trainer.world_size,
            rank=0 if trainer is None else trainer.global_rank,
            shuffle=stage == _TRAIN,
            seed=self.seed,
        )
        batches = RowBatches(
            reader,
            places,
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
