"""Data of a calibration: a model's predictions at every labelled observation of a split, and the labels."""

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
from ...datasets.splits import SplitInfo, families, in_split_each
from ..extraction import run_model

Doubt = Literal["spread", "confidence"]
"""Measure of doubt: the predictive spread, or the lack of confidence min(p, 1 − p)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationData:
    """A model's predictions at every observation with a known success label, and the labels."""

    probability: Float[np.ndarray, " N"]
    """Predicted success probability, in [0, 1]."""
    label: Float[np.ndarray, " N"]
    """Success label, in [0, 1]."""
    episode: Int[np.ndarray, " N"]
    """Number of the episode of each observation."""
    family: Int[np.ndarray, " N"]
    """Number of the family of each episode: episodes that share an initial state or a group. Cross-validation keeps a
    family together."""
    spread: Float[np.ndarray, " N"] | None = None
    """Predictive spread of the step that leads to the observation, 0 at the first; None where the model gives none."""
    progress: Float[np.ndarray, " N"] | None = None
    """Predicted progress; NaN where the model abstains, None where it predicts none."""
    target: Float[np.ndarray, " N"] | None = None
    """Progress label; NaN where it is unknown."""

    def doubt(self, by: Doubt, probability: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Return the doubt of each observation, on which a model abstains where it is large.

        Args:
            by: Measure of doubt.
            probability: Calibrated success probability of each observation.

        Raises:
            ValueError: If the doubt is the spread and the model gives none.
        """
        if by == "confidence":
            return np.minimum(probability, 1 - probability)
        if self.spread is None:
            raise ValueError(
                "the model gives no spread to abstain on: put it into an EnsembleReward, or abstain by confidence"
            )
        return self.spread

    def outcomes(self) -> tuple[Int[np.ndarray, " E"], Bool[np.ndarray, " E"], Int[np.ndarray, " E"]]:
        """Return each episode's number, whether any of its observations is a success, and its family."""
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
    progress_bar: bool = False,
) -> CalibrationData:
    """Collect a model's predictions at every labelled observation of a split.

    Args:
        reward: Reward model, on its device and in evaluation mode.
        dataset: Data set with labelled outcomes.
        split: Name of the split; empty for all episodes.
        batch_size: Number of episodes in a forward pass.
        cache: Folder of the cached features of a frozen encoder; None caches nothing.
        bad: Dictionary that receives the episodes that cannot be used, by number; None drops them.
        progress_bar: Show a progress bar on standard error.

    Raises:
        ValueError: If there is no such split, the model estimates no success, or an estimate that it marks as valid is
            not in [0, 1].
    """
    if batch_size < 1:
        raise ValueError(f"expected at least one episode at once, got batch_size {batch_size}")
    dataset = joined(dataset)
    reader = model_reader(reward, dataset, None if cache is None else FeatureCache(cache))
    bad = {} if bad is None else bad
    usable: list[tuple[int, SplitInfo]] = []  # with numbers of the joint set: families of two data sets must not meet
    sets: list[list[SplitInfo]] = [[] for _ in dataset.datasets]
    for place, episode in reader.usable(bad):
        which, info = dataset.split_info(place, episode)
        sets[which].append(info)
        usable.append((place, replace(info, index=episode.index, context=episode.context, group=episode.group)))
    chosen = [usable[i] for i in in_split_each(sets, split, dataset.name)]
    family = {
        place: number
        for number, members in enumerate(families([info for _, info in chosen]).values())
        for place in members
    }
    number = {info.index: family[place] for place, (_, info) in enumerate(chosen)}
    rows: list[CalibrationData] = []
    places = sorted((place for place, _ in chosen), key=lambda p: (reader(p).steps, p))
    with Progress(console=Console(stderr=True), disable=not progress_bar, transient=True) as bar:
        task = bar.add_task("calibrating", total=len(places))
        for start in range(0, len(places), batch_size):
            group = places[start : start + batch_size]
            batch, _ = read_usable(reader, reward, group, bad)
            if batch is not None:
                rows.append(_rows(reward, batch, number))
            bar.advance(task, len(group))
    return _joined(rows)


def _rows(reward: RewardModel, batch: TrajectoryBatch, family: Mapping[int, int]) -> CalibrationData:
    """Collect the labelled observations of a batch.

    Raises:
        ValueError: If the model estimates no success, or an estimate that it marks as valid is not in [0, 1].
    """
    batch = with_progress_targets(with_success_targets(batch))
    estimates = run_model(reward, batch)
    if estimates.success is None:
        raise ValueError(
            f"{type(reward).__name__} estimates no success: there is nothing to calibrate; train a ProgressReward or a "
            "SuccessReward"
        )
    for name, column in (("success", estimates.success), ("progress", estimates.progress)):
        if column is not None:
            _check_numbers(reward, name, column, batch)
    if estimates.std is not None and bool((estimates.valid & ~estimates.std.isfinite()).any()):
        raise ValueError(f"{type(reward).__name__} gave a spread that is no number for a step it claims to know")
    label, target = batch.labels["success"], batch.labels["progress"]
    used = label.valid & estimates.success.valid & batch.observed
    row = used.nonzero()[:, 0]
    episode = batch.episode[row].numpy()
    spread = None if estimates.std is None else torch.where(estimates.valid, estimates.std, 0.0)
    progress = None if estimates.progress is None else estimates.progress.values.double()
    if estimates.progress is not None and progress is not None:
        progress = torch.where(estimates.progress.valid, progress, torch.nan)
    return CalibrationData(
        probability=estimates.success.values.double()[used].numpy(),
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
