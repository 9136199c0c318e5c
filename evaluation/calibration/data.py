"""What a calibration is fitted on: what a model says of every labelled observation of a split, and what was true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import pad

from ...core.batch import Labelled, TrajectoryBatch
from ...core.interfaces import RewardModel
from ...datasets.episodes import BadEpisodeError, EpisodeDataset
from ...datasets.features import FeatureCache
from ...datasets.joined import joined
from ...datasets.labels import with_progress_targets, with_success_targets
from ...datasets.model_reader import model_reader, read_usable
from ...datasets.splits import Kin, families, in_split_each
from ..controls import ask

Doubt = Literal["spread", "confidence"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationData:
    """What a model said at every observation with a known success label, and what was true."""

    probability: Float[np.ndarray, " N"]
    label: Float[np.ndarray, " N"]
    """In [0, 1]."""
    episode: Int[np.ndarray, " N"]
    family: Int[np.ndarray, " N"]
    """Episodes that share an initial state or a group; they are fitted on, or judged, together."""
    spread: Float[np.ndarray, " N"] | None = None
    """Predictive spread of the step that leads to the observation, 0 at the first; None where the model gives none."""
    progress: Float[np.ndarray, " N"] | None = None
    target: Float[np.ndarray, " N"] | None = None
    """Of progress; NaN where it is not known, or the model abstained."""

    def doubt(self, by: Doubt, probability: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """What is abstained on where it is large: the spread, or min(p, 1 − p) of the calibrated probability."""
        if by == "confidence":
            return np.minimum(probability, 1 - probability)
        if self.spread is None:
            raise ValueError(
                "the model gives no spread to abstain on: put it into an EnsembleReward, or abstain by confidence"
            )
        return self.spread

    def outcomes(self) -> tuple[Int[np.ndarray, " E"], Bool[np.ndarray, " E"], Int[np.ndarray, " E"]]:
        """Every episode once: its number, whether any of its observations is a success, and its family."""
        names, first, place = np.unique(self.episode, return_index=True, return_inverse=True)
        reached = np.zeros(len(names), bool)
        np.logical_or.at(reached, place, self.label >= 0.5)
        return names, reached, self.family[first]


def collect(
    reward: RewardModel,
    dataset: EpisodeDataset,
    split: str = "",
    batch_size: int = 8,
    cache: str | Path | None = None,
    bad: dict[int, BadEpisodeError] | None = None,
    console: Console | None = None,
) -> CalibrationData:
    """Ask a model about every labelled observation of a split.

    Args:
        reward: On its device, in evaluation mode.
        dataset: Labelled episodes.
        split: Which of them; empty for all.
        batch_size: Episodes at once.
        cache: Folder for features of a frozen encoder.
        bad: Episodes that cannot be used are put in here.
        console: Where the progress bar goes; None shows none.

    Raises:
        ValueError: If there is no such split, or the model estimates no success or gives a number where it is none.
    """
    dataset = joined(dataset)
    reader = model_reader(reward, dataset, None if cache is None else FeatureCache(cache))
    bad = {} if bad is None else bad
    usable: list[tuple[int, Kin]] = []  # as they are named here: families of two data sets must not meet
    sets: list[list[Kin]] = [[] for _ in dataset.datasets]
    for place, episode in reader.usable(bad):
        which, kin = dataset.kin(place, episode)
        sets[which].append(kin)
        usable.append((place, replace(kin, index=episode.index, context=episode.context, group=episode.group)))
    chosen = [usable[i] for i in in_split_each(sets, split, dataset.name)]
    family = {
        place: number
        for number, members in enumerate(families([kin for _, kin in chosen]).values())
        for place in members
    }
    number = {kin.index: family[place] for place, (_, kin) in enumerate(chosen)}
    rows: list[CalibrationData] = []
    places = sorted((place for place, _ in chosen), key=lambda p: (reader(p).steps, p))
    with Progress(console=console, disable=console is None, transient=True) as bar:
        task = bar.add_task("calibrating", total=len(places))
        for start in range(0, len(places), batch_size):
            group = places[start : start + batch_size]
            batch, _ = read_usable(reader, reward, group, bad)
            if batch is not None:
                rows.append(_rows(reward, batch, number))
            bar.advance(task, len(group))
    return _joined(rows)


def _rows(reward: RewardModel, batch: TrajectoryBatch, family: Mapping[int, int]) -> CalibrationData:
    """The labelled observations of a batch.

    Raises:
        ValueError: If the model estimates no success, or claims to know what is no number in [0, 1].
    """
    batch = with_progress_targets(with_success_targets(batch))
    said = ask(reward, batch)
    if said.success is None:
        raise ValueError(
            f"{type(reward).__name__} estimates no success: there is nothing to calibrate; train a ProgressReward or a "
            "SuccessReward"
        )
    for name, column in (("success", said.success), ("progress", said.progress)):
        if column is not None:
            _check_numbers(reward, name, column, batch)
    if said.std is not None and bool((said.valid & ~said.std.isfinite()).any()):
        raise ValueError(f"{type(reward).__name__} gave a spread that is no number for a step it claims to know")
    label, target = batch.labels["success"], batch.labels["progress"]
    used = label.valid & said.success.valid & batch.observed
    row = used.nonzero()[:, 0]
    episode = batch.episode[row].numpy()
    spread = None if said.std is None else torch.where(said.valid, said.std, 0.0)
    progress = None if said.progress is None else said.progress.values.double()
    if said.progress is not None and progress is not None:
        progress = torch.where(said.progress.valid, progress, torch.nan)
    return CalibrationData(
        probability=said.success.values.double()[used].numpy(),
        label=label.values.double()[used].numpy(),
        episode=episode,
        family=np.array([family[int(e)] for e in episode], int),
        spread=None if spread is None else pad(spread.double(), (1, 0))[used].numpy(),
        progress=None if progress is None else progress[used].numpy(),
        target=torch.where(target.valid, target.values.double(), torch.nan)[used].numpy(),
    )


def _check_numbers(reward: RewardModel, name: str, column: Labelled, batch: TrajectoryBatch) -> None:
    wrong = column.valid & ~((column.values >= 0) & (column.values <= 1))
    if bool(wrong.any()):
        row, place = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"{type(reward).__name__} gave {float(column.values[row, place])} as {name} of episode "
            f"{int(batch.episode[row])} at observation {place}, which it claims to know: expected a number in [0, 1]"
        )


def _joined(rows: Sequence[CalibrationData]) -> CalibrationData:
    def column(name: str) -> np.ndarray | None:
        parts = [getattr(part, name) for part in rows]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if known and len(known) == len(parts) else None

    def required(name: str, kind: type) -> np.ndarray:
        found = column(name)
        return np.zeros(0, kind) if found is None else found

    return CalibrationData(
        probability=required("probability", float),
        label=required("label", float),
        episode=required("episode", int),
        family=required("family", int),
        spread=column("spread"),
        progress=column("progress"),
        target=column("target"),
    )


__all__ = ["CalibrationData", "Doubt", "collect"]
