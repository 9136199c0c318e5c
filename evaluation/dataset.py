"""Judges a reward model on a data set: reads every episode once, asks the model and its controls, computes figures."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..core.interfaces import RewardModel
from ..datasets.episodes import BadEpisodeError, EpisodeDataset
from ..datasets.features import FeatureCache
from ..datasets.joined import JoinedDatasets, joined
from ..datasets.model_reader import model_reader, read_usable
from ..datasets.reader import EpisodeReader
from ..datasets.splits import Kin, in_split_each
from .controls import InstructionMatrix, OtherTasks, ask, describe_figures, judge, with_constant
from .evaluate import Evaluation, evaluate
from .predictions import Judged

CONFUSION = 5
"""Episodes of each task that are asked every instruction, unless told otherwise."""
CONFUSION_TASKS = 12
"""At most so many instructions: with 5 episodes of each that is at most 12 · 5 · 11 = 660 more readings."""


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
    threshold: float | int | None = None,
    confusion: int = CONFUSION,
    quality_order: Sequence[str] = (),
    against: RewardModel | None = None,
    against_model: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judge a model on the episodes of a split, or on all.

    Every episode is read and decoded once; the model is asked four times about it: as it was, in reverse, shuffled, and
    with a wrong instruction. Some episodes are asked every instruction. Episodes that cannot be used are named in the
    result.

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
        threshold: From which score on an episode counts as called a success; None takes ½ where scores are in [0, 1].
        confusion: Successful episodes of each task that are asked every instruction, of at most `CONFUSION_TASKS`
            tasks; 0 leaves the matrix of instructions out.
        quality_order: Qualities from worst to best; empty takes the order of those that are known.
        against: Another model, to compare with on the same episodes; on its device, in evaluation mode.
        against_model: Which that is.

    Raises:
        ValueError: If there is no such split, no episode in it can be used, an argument makes no sense, or the two
            models have no episode in common.
    """
    if batch_size < 1:
        raise ValueError(f"expected at least one episode at once, got {batch_size}")
    if confusion < 0:
        raise ValueError(f"expected at least 0 episodes of each task to be asked every instruction, got {confusion}")
    work = _Work(dataset, split, batch_size, cache, seed, confusion, console)
    first = work.judge(reward)
    second: list[Judged] = []
    if against is not None:
        second = work.judge(against, "judging the other model", {j.episode for j in first.judged}).judged
        if not second:
            raise ValueError("the other model can judge none of the episodes that this one can: nothing to compare")
    return evaluate(
        first.judged,
        first.conventions,
        model=model,
        data=dataset.name,
        split=split,
        version=version,
        bad=[{"episode": e.index, "status": e.status, "reason": e.reason} for _, e in sorted(first.bad.items())],
        seed=seed,
        threshold=threshold,
        quality_order=quality_order,
        instructions=first.matrix.instructions,
        against=second,
        against_model=against_model,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    judged: list[Judged]
    conventions: dict[str, str]
    bad: dict[int, BadEpisodeError]
    matrix: InstructionMatrix


class _Work:
    """What is judged and how, the same for every model."""

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: str,
        batch_size: int,
        cache: str | Path | None,
        seed: int,
        confusion: int,
        console: Console | None,
    ) -> None:
        self.dataset, self.split, self.batch_size, self.seed = dataset, split, batch_size, seed
        self.cache, self.confusion, self.console = cache, confusion, console

    def judge(self, reward: RewardModel, what: str = "judging", only: Collection[int] | None = None) -> _Found:
        """Ask a model about the episodes of the split that it can read, or about those of them with given numbers."""
        dataset = joined(self.dataset)
        reader = model_reader(reward, dataset, None if self.cache is None else FeatureCache(self.cache))
        bad: dict[int, BadEpisodeError] = {}
        usable, sets, others, same = _survey(reader, dataset, bad, self.seed)
        if only is None:
            places = [usable[i][0] for i in in_split_each(sets, self.split, dataset.name)]
        else:
            places = [place for place, index in usable if index in only]
        matrix = _choose_matrix(reader, places, others, same, self.confusion, self.seed)
        judged: list[Judged] = []
        conventions: dict[str, str] = {}
        with Progress(console=self.console, disable=self.console is None, transient=True) as progress:
            bar = progress.add_task(what, total=len(places))
            for group in _groups(sorted(places, key=lambda p: (reader(p).steps, p)), self.batch_size):
                batch, episodes = read_usable(reader, reward, group, bad)
                if batch is not None:
                    qualities = [e.quality for e in episodes]
                    found = judge(reward, batch, others, qualities, self.seed, matrix)
                    judged += [replace(j, task=same[j.task], under=_merged(j, same)) for j in found]
                    conventions = conventions or describe_figures(ask(reward, batch[:1]))
                progress.advance(bar, len(group))
        if matrix.instructions:
            asked = (
                f"{len(matrix.episodes)} episodes, up to {self.confusion} of each of {len(matrix.instructions)} tasks"
            )
            conventions["instruction matrix of"] = asked
        judged = with_constant(sorted(judged, key=lambda j: j.episode))
        return _Found(judged=judged, conventions=conventions, bad=bad, matrix=matrix)


def _merged(judged: Judged, same: Mapping[int, int]) -> dict[int, float]:
    return {same[task]: score for task, score in judged.under.items()}


def _survey(
    reader: EpisodeReader, dataset: JoinedDatasets, bad: dict[int, BadEpisodeError], seed: int
) -> tuple[list[tuple[int, int]], list[list[Kin]], OtherTasks, dict[int, int]]:
    """Survey the episodes.

    Place and number of those that can be used, what they share in each data set, the instructions of all tasks, and
    tasks that are the same in words.
    """
    usable: list[tuple[int, int]] = []
    sets: list[list[Kin]] = [[] for _ in dataset.datasets]
    instructions: dict[int, str] = {}
    for place, episode in reader.usable(bad):
        instructions.setdefault(episode.task, episode.instruction)
        which, kin = dataset.kin(place, episode)
        sets[which].append(kin)
        usable.append((place, episode.index))
    # data sets joined into one number their tasks apart, though they may hold the same one
    by_text: dict[str, int] = {}
    same = {task: by_text.setdefault(text, task) if text else task for task, text in instructions.items()}
    return usable, sets, OtherTasks(instructions=instructions, seed=seed), same


def _choose_matrix(
    reader: EpisodeReader,
    places: Sequence[int],
    others: OtherTasks,
    same: Mapping[int, int],
    confusion: int,
    seed: int,
) -> InstructionMatrix:
    """Tasks with most episodes and, of each, episodes drawn from its successes (from all where none is labelled)."""
    if confusion == 0 or len(set(same.values())) < 2:
        return InstructionMatrix()
    episodes = [reader(place) for place in places]
    unlabelled = all(e.success is None for e in episodes)
    held: dict[int, list[int]] = {task: [] for task in dict.fromkeys(same.values())}
    counts = dict.fromkeys(held, 0)
    for episode in episodes:
        counts[same[episode.task]] += 1
        if unlabelled or (episode.success is not None and episode.success >= 0.5):
            held[same[episode.task]].append(episode.index)
    tasks = sorted(sorted(held, key=lambda t: -counts[t])[:CONFUSION_TASKS])
    chosen: set[int] = set()
    for number, task in enumerate(tasks):
        generator = np.random.default_rng([seed, 3, number])
        chosen |= {int(e) for e in generator.permutation(sorted(held[task]))[:confusion]}
    return InstructionMatrix(
        instructions={task: others.instructions[task] for task in tasks}, episodes=frozenset(chosen)
    )


def _groups(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))
