"""Data module of preference pairs: segments of recorded episodes with people's answers, or arrays of pairs."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from ..backbones.vision import VisionEncoder
from ..core.batch import PreferencePairs, TrajectoryBatch
from ..core.sizes import DataSizes
from ..datasets.episodes import BadEpisodeError
from ..datasets.features import FeatureCache
from ..datasets.joined import joined, open_joined
from ..datasets.reader import EpisodeReader
from ..datasets.sampling import EpochSampler, RowKeys
from .pair_sources import ArrayPairs, PairSource, RecordedPairs
from .pair_splits import split_pairs
from .preference_arrays import read_preference_arrays
from .recorded_pairs import check_labels, places_of, read_answered_pairs, usable_pairs


class SegmentFrames:
    """Frames or frozen features that are loaded with the segments.

    Args:
        cameras: Cameras to load.
        frame_count: Largest number of frames of a camera in a segment, evenly spaced; None takes all.
        frame_size: Shorter side in pixels that frames are scaled to; None keeps the recorded size.
        encoder: Frozen encoder, whose features of every camera are computed once and loaded instead of frames.
        cache: Folder of those features; without an encoder, folder of the frames scaled to ``frame_size``.

    Raises:
        ValueError: If arguments do not belong together.
    """

    def __init__(
        self,
        cameras: list[str] | tuple[str, ...] = (),
        frame_count: int | None = None,
        frame_size: int | None = None,
        encoder: VisionEncoder | None = None,
        cache: str | None = None,
    ) -> None:
        if encoder is not None and (encoder.trainable or cache is None or not cameras):
            raise ValueError("encoder: expected a frozen one, together with cameras and a cache folder")
        if cache is not None and encoder is None and frame_size is None:
            raise ValueError("cache: expected an encoder whose features to keep, or a frame_size to keep frames at")
        self.cameras, self.frame_count, self.frame_size = tuple(cameras), frame_count, frame_size
        self.encoder, self.cache = encoder, cache


class PreferenceData(lightning.LightningDataModule):
    """Data module of preference pairs, for `PreferenceTraining`.

    It reads either pairs of segments of data sets (``pairs``, made by `guerdon label` or `write_segment_pairs`) with
    files of answers, or one ``.npz`` file of arrays (see `read_preference_arrays`), which holds everything. Labels are
    the mean over raters, ties 0.5. Skips, unanswered pairs and answers that contradict another one of the same rater
    are left out and counted.

    Order follows from the seed and the epoch alone, whatever the number of loader processes. In a batch every segment
    is decoded and encoded once, for all its pairs. No episode is in training and validation where the pairs allow it;
    see `split_pairs`.

    Args:
        path: Folder of a data set or several folders, whose episodes are then numbered as in `EpisodeData`; or a
            ``.npz`` file.
        pairs: File of pairs; None for a ``.npz`` file.
        answers: File of answers, or several; none for a ``.npz`` file.
        batch_size: Number of pairs in a batch.
        val_fraction: Share of the pairs that is held out, in [0, 1).
        label: Labels of a ``.npz`` file: those of people or of the scripted rater.
        frames: What to load of the cameras; None loads states and actions only.
        seed: Random seed of the order.
        num_workers: Number of loader processes.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        path: str | list[str],
        pairs: str | None = None,
        answers: str | list[str] | None = None,
        batch_size: int = 16,
        val_fraction: float = 0.2,
        label: Literal["human", "script"] = "human",
        frames: SegmentFrames | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.paths = [path] if isinstance(path, str) else list(path)
        self.answers = [Path(answers)] if isinstance(answers, str) else [Path(name) for name in answers or ()]
        self.arrays = len(self.paths) == 1 and self.paths[0].endswith(".npz")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size {batch_size}, num_workers {num_workers}: expected at least 1 and 0")
        if self.arrays and (pairs is not None or self.answers or frames is not None):
            raise ValueError(f"{self.paths[0]} holds pairs and labels: leave pairs, answers and frames out")
        if not self.arrays and (pairs is None or not self.answers):
            raise ValueError("pairs, answers: expected a file of pairs and at least one file of answers to them")
        self.pair_file = None if pairs is None else Path(pairs)
        self.batch_size, self.val_fraction = batch_size, val_fraction
        self.label: Literal["human", "script"] = label
        self.frames = SegmentFrames() if frames is None else frames
        self.seed, self.num_workers = seed, num_workers
        self.places: dict[str, list[int]] = {}
        """Places of the pairs of each split."""
        self._source: PairSource | None = None

    @property
    def encoder(self) -> VisionEncoder | None:
        """Frozen encoder whose features are loaded."""
        return self.frames.encoder

    @property
    def frame_size(self) -> int | None:
        """Shorter side in pixels that frames are scaled to."""
        return self.frames.frame_size

    @property
    def sizes(self) -> DataSizes:
        """Widths of the states, actions and cached features."""
        return self._ready().sizes

    def prepare_data(self) -> None:
        """Fill the cache in one process before the others read it."""
        trainer = cast(Any, self.trainer)
        if self.frames.cache is not None and trainer is not None and trainer.world_size > 1:
            self.setup("fit")
            self._source = None

    def setup(self, stage: str) -> None:
        """Read pairs and answers, check every segment, and choose the split.

        Args:
            stage: Stage of the trainer, such as ``"fit"`` or ``"validate"``.

        Raises:
            FileNotFoundError: If a file or a data set is missing.
            ValueError: If a file is damaged, a pair cannot be compared, or there is nothing to learn or to validate on.
        """
        if self._source is not None:
            return
        source, described = self._read()
        train, val = split_pairs(source.episodes, self.val_fraction)
        check_labels([source.labels[place] for place in train], described)
        if stage == "validate" and not val:
            raise ValueError(f"{described}: there is no pair to validate on: check val_fraction")
        trainer = cast(Any, self.trainer)
        if trainer is None or trainer.is_global_zero:
            print(f"{described}; {len(train)} to train on, {len(val)} to validate on", file=sys.stderr)
        self.places = {"train": train, "val": val}
        self._source = source

    def _read(self) -> tuple[PairSource, str]:
        """Read the pairs, and describe them in one line."""
        if self.arrays:
            path = Path(self.paths[0])
            source = ArrayPairs(read_preference_arrays(path, self.label), path.name)
            ties = sum(label == 0.5 for label in source.labels)
            return source, f"{len(source.labels)} pairs are labelled ({ties} ties)"
        assert self.pair_file is not None
        found = read_answered_pairs(self.pair_file, self.answers)
        dataset = joined(open_joined(self.paths))
        missing = [camera for camera in self.frames.cameras if camera not in dataset.cameras]
        if missing:
            held = ", ".join(dataset.cameras) or "none"
            raise ValueError(f"{dataset.name} has no camera {', '.join(map(repr, missing))}: it has {held}")
        frames, encoder = self.frames, self.frames.encoder
        cache = None if frames.cache is None else FeatureCache(frames.cache)
        reader = EpisodeReader(dataset, frames.cameras, frames.frame_size, encoder, cache)
        places = places_of(dataset)
        if encoder is not None:
            strategy = getattr(cast(Any, self.trainer), "strategy", None)
            encoder.to(getattr(strategy, "root_device", torch.device("cpu")))
        usable = usable_pairs(found, reader, places)
        if encoder is not None:
            encoder.to("cpu")
        sizes = DataSizes(
            name=dataset.name,
            state_size=dataset.state_size,
            action_size=dataset.action_size,
            feature_sizes={f"{encoder.name}/{c}": encoder.width for c in frames.cameras} if encoder else {},
        )
        source = RecordedPairs(reader, places, usable.pairs, usable.labels, sizes, frames.frame_count)
        return source, usable.describe()

    def state_batches(self) -> Iterator[TrajectoryBatch]:
        """Yield the segments of the training pairs without frames, for fitting a normaliser."""
        source, train = self._ready(), self.places["train"]
        for start in range(0, len(train), self.batch_size):
            yield source.segments(train[start : start + self.batch_size])

    def train_dataloader(self) -> DataLoader[PreferencePairs]:
        """Make the loader of training pairs, in an order that is drawn anew every epoch."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[PreferencePairs] | list[Any]:
        """Make the loader of held-out pairs, in the order of their file; empty where there are none."""
        return self._loader("val") if self._ready() and self.places["val"] else []

    def _ready(self) -> PairSource:
        if self._source is None:
            self.setup("fit")
        assert self._source is not None
        return self._source

    def _loader(self, split: str) -> DataLoader[PreferencePairs]:
        source, trainer = self._ready(), cast(Any, self.trainer)
        sampler = EpochSampler(
            RowKeys(len(self.places[split])),
            num_replicas=1 if trainer is None else trainer.world_size,
            rank=0 if trainer is None else trainer.global_rank,
            shuffle=split == "train",
            seed=self.seed,
        )
        return DataLoader(
            cast(Dataset[Any], sampler.dataset),
            self.batch_size,
            sampler=sampler,
            collate_fn=PairBatches(source, self.places[split]),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class PairBatches:
    """Function that makes a batch of the pairs with some keys (epoch, number).

    Args:
        source: Source of the pairs.
        places: Places of the pairs to take from.
    """

    def __init__(self, source: PairSource, places: Sequence[int]) -> None:
        self.source, self.places = source, list(places)
        self.bad: set[int] = set()

    def __call__(self, keys: Sequence[tuple[int, int]]) -> PreferencePairs:
        """Read pairs; where a video turns out to be broken, a warning names it and other pairs take the place.

        Raises:
            RuntimeError: If no pair is left.
        """
        while True:  # every turn but the last takes one more episode out
            chosen = [self._usable(number) for _, number in keys]
            try:
                return self.source.pairs(chosen)
            except BadEpisodeError as error:
                warnings.warn(f"its pairs are left out from now on: {error} ({error.status})", stacklevel=2)
                if error.index in self.bad:
                    raise
                self.bad.add(error.index)

    def _usable(self, number: int) -> int:
        for offset in range(len(self.places)):
            place = self.places[(number + offset) % len(self.places)]
            if self.bad.isdisjoint(self.source.episodes[place]):
                return place
        raise RuntimeError("no pair is left to read: every one names an episode that cannot be used, see the warnings")


__all__ = ["PairBatches", "PreferenceData", "SegmentFrames"]
