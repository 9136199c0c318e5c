"""Judges a reward model on a data set: reads every episode once, asks the model and its controls, computes figures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..core.batch import TrajectoryBatch
from ..core.interfaces import RewardModel
from ..datasets.episodes import BadEpisodeError, Episode, EpisodeDataset
from ..datasets.features import FeatureCache
from ..datasets.reader import EpisodeReader
from ..datasets.splits import Kin, choose_split
from .controls import OtherTasks, ask, describe_figures, judge, with_constant
from .evaluation import Evaluation, Judged, evaluate
from .scoring import model_reader, read_for


def evaluate_dataset(
    reward: RewardModel,
    dataset: EpisodeDataset,
    split: str = "",
    batch_size: int = 8,
    cache: str | Path | None = None,
    seed: int = 0,
    model: Mapping[str, Any] | None = None,
    version: str = "",
    console: Console | None = None,
) -> Evaluation:
    """Judge a model on the episodes of a split, or on all.

    Every episode is read and decoded once; the model is asked four times about it: as it was, in reverse, shuffled, and
    with a wrong instruction. Episodes that cannot be used are named in the result.

    Args:
        reward: On its device, in evaluation mode.
        dataset: What to judge it on.
        split: Name of a split; empty for all. Where none is recorded, ``"train"`` and ``"val"`` are those `EpisodeData`
            makes by default.
        batch_size: Episodes at once; neighbours are of similar length.
        cache: Folder for features of a frozen encoder.
        seed: Of shuffling, wrong instructions and the bootstrap.
        model: Shown as it is.
        version: Of this package.
        console: Where the progress bar goes; None shows none.

    Raises:
        ValueError: If there is no such split, or no episode in it can be used.
    """
    if batch_size < 1:
        raise ValueError(f"expected at least one episode at once, got {batch_size}")
    reader = model_reader(reward, dataset, None if cache is None else FeatureCache(cache))
    bad: dict[int, BadEpisodeError] = {}
    usable, others = _survey(reader, bad, seed)
    places = _in_split(dataset, usable, split)
    judged: list[Judged] = []
    conventions: dict[str, str] = {}
    with Progress(console=console, disable=console is None, transient=True) as progress:
        bar = progress.add_task("judging", total=len(places))
        for group in _groups(sorted(places, key=lambda p: (reader(p).steps, p)), batch_size):
            batch, episodes = _load(reader, reward, group, bad)
            if batch is not None:
                judged += judge(reward, batch, others, [e.quality for e in episodes], seed)
                conventions = conventions or describe_figures(ask(reward, batch[:1]))
            progress.advance(bar, len(group))
    return evaluate(
        with_constant(sorted(judged, key=lambda j: j.episode)),
        conventions,
        model=model,
        data=dataset.name,
        split=split,
        version=version,
        bad=[{"episode": e.index, "status": e.status, "reason": e.reason} for _, e in sorted(bad.items())],
        seed=seed,
    )


def _survey(
    reader: EpisodeReader, bad: dict[int, BadEpisodeError], seed: int
) -> tuple[list[tuple[int, Kin]], OtherTasks]:
    """Places of the episodes that can be used, and the instructions of all tasks."""
    usable: list[tuple[int, Kin]] = []
    instructions: dict[int, str] = {}
    for place in range(len(reader.dataset)):
        try:
            episode = reader(place)
        except BadEpisodeError as error:
            bad[error.index] = error
            continue
        instructions.setdefault(episode.task, episode.instruction)
        split = reader.dataset.summary(place).split
        kin = Kin(index=episode.index, split=split, context=episode.context, group=episode.group)
        usable.append((place, kin))
    return usable, OtherTasks(instructions=instructions, seed=seed)


def _in_split(dataset: EpisodeDataset, usable: Sequence[tuple[int, Kin]], split: str) -> list[int]:
    if not split:
        return [place for place, _ in usable]
    recorded = sorted({kin.split for _, kin in usable if kin.split})
    if recorded or split not in ("train", "val"):
        chosen = [place for place, kin in usable if kin.split == split]
        if not chosen:
            has = f"it has {', '.join(recorded)}" if recorded else "no split is recorded: expected train or val"
            raise ValueError(f"{dataset.name} has no episode of the split {split!r}: {has}")
        return chosen
    train, val = choose_split([kin for _, kin in usable], "train", "val", 0.1)
    return [usable[i][0] for i in (train if split == "train" else val)]


def _groups(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _load(
    reader: EpisodeReader, reward: RewardModel, places: Iterable[int], bad: dict[int, BadEpisodeError]
) -> tuple[TrajectoryBatch | None, list[Episode]]:
    """A batch without the episodes whose video turns out to be broken; None where none is left."""
    episodes = [reader(place) for place in places]
    while episodes:
        try:
            return read_for(reader, reward, episodes), episodes
        except BadEpisodeError as error:
            left = [e for e in episodes if e.index != error.index]
            if len(left) == len(episodes):
                raise
            bad[error.index], episodes = error, left
    return None, []
