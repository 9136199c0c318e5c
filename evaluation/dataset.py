"""Evaluation of a reward model on a data set: reads every episode once and runs the model and its controls on it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..core.interfaces import RewardModel
from ..core.moved import public_path
from ..core.opening import open_component
from ..datasets.episodes import BadEpisodeError, EpisodeDataset
from ..datasets.features import FeatureCache
from ..datasets.joined import JoinedDatasets, joined
from ..datasets.model_reader import model_reader, read_usable
from ..datasets.opening import open_dataset
from ..datasets.reader import EpisodeReader
from ..datasets.splits import SplitInfo, in_split_each
from .controls import InstructionMatrix, OtherTasks, predict_episodes, with_constant
from .evaluate import CONFUSION, Evaluation, EvaluationSettings, Provenance, evaluate
from .extraction import describe_conventions, run_model
from .predictions import EpisodePredictions

CONFUSION_TASKS = 12
"""Largest number of instructions in the matrix: with 5 episodes of each task at most 12 · 5 · 11 = 660 more runs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedModel:
    """A reward model in memory together with where it came from."""

    reward: RewardModel
    """The model, on its device and in evaluation mode."""
    identity: Mapping[str, Any]
    """Folder, class, content hash and arguments, as `guerdon.core.opening.open_component` returns them."""


def evaluate_dataset(
    reward: RewardModel | OpenedModel | str | Path,
    dataset: EpisodeDataset | str | Path,
    split: str = "",
    batch_size: int = 8,
    cache: str | Path | None = None,
    seed: int = 0,
    threshold: float | int | None = None,
    confusion: int = CONFUSION,
    quality_order: Sequence[str] = (),
    against: RewardModel | OpenedModel | str | Path | None = None,
    progress_bar: bool = False,
) -> Evaluation:
    """Evaluate a reward model on the episodes of a split, or on all episodes of a data set.

    Every episode is read and decoded once. The model is run four times on it: as it was recorded, in reverse, shuffled,
    and with a wrong instruction. Some episodes are run with every instruction. Episodes that cannot be used are named
    in the result.

    Args:
        reward: Reward model, on its device and in evaluation mode; or the folder or repository that holds one, which is
            opened on a GPU where there is one.
        dataset: Data set, or the folder that holds it.
        split: Name of a split; empty for all episodes. Where none is recorded, ``"train"`` and ``"val"`` are those
            that `EpisodeData` makes by default.
        batch_size: Number of episodes in a forward pass; episodes of similar length share one.
        cache: Folder of the cached features of a frozen encoder; None caches nothing.
        seed: Random seed of shuffled playback, wrong instructions and the bootstrap.
        threshold: Score from which an episode counts as called a success; None takes ½ where scores are in [0, 1].
        confusion: Number of successful episodes of each task that are run with every instruction, of at most
            `CONFUSION_TASKS` tasks; 0 leaves the matrix of instructions out.
        quality_order: Qualities from worst to best; empty takes a known order, or that of numbers.
        against: Another reward model, given in the same ways, to compare with on the same episodes.
        progress_bar: Show a progress bar on standard error.

    Raises:
        ValueError: If there is no such split, no episode of it can be used, an argument is out of range, or the two
            models have no episode in common.
        FileNotFoundError: If there is no such folder.
    """
    if batch_size < 1:
        raise ValueError(f"expected at least one episode at once, got batch_size {batch_size}")
    if confusion < 0:
        raise ValueError(
            f"expected at least 0 episodes of each task for the instruction matrix, got confusion {confusion}"
        )
    settings = EvaluationSettings(threshold=threshold, quality_order=quality_order, confusion=confusion, seed=seed)
    opened = dataset if isinstance(dataset, EpisodeDataset) else open_dataset(dataset)
    walk = _Walk(
        dataset=joined(opened),
        batch_size=batch_size,
        cache=None if cache is None else FeatureCache(cache),
        settings=settings,
        progress_bar=progress_bar,
    )
    model = _opened(reward)
    first = walk.predict(model.reward, "evaluating", split=split)
    second: list[EpisodePredictions] = []
    other = None if against is None else _opened(against)
    if other is not None:
        second = walk.predict(other.reward, "evaluating the other model", {e.episode for e in first.episodes}).episodes
        if not second:
            raise ValueError("the other model can read none of the episodes that this one can: nothing to compare")
    bad = [{"episode": e.index, "status": e.status, "reason": e.reason} for _, e in sorted(first.bad.items())]
    return evaluate(
        first.episodes,
        first.conventions,
        settings,
        Provenance(model=model.identity, data=opened.name, split=split, bad=bad),
        instructions=first.matrix.instructions,
        against=second,
        against_model=None if other is None else other.identity,
    )


def _opened(model: RewardModel | OpenedModel | str | Path) -> OpenedModel:
    if isinstance(model, OpenedModel):
        return model
    if isinstance(model, RewardModel):
        return OpenedModel(reward=model, identity={"class_path": public_path(type(model))})
    reward, identity = open_component(model, RewardModel, "a reward model")
    return OpenedModel(reward=reward, identity=identity)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Predicted:
    episodes: list[EpisodePredictions]
    conventions: dict[str, str]
    bad: dict[int, BadEpisodeError]
    matrix: InstructionMatrix


@dataclass(frozen=True, kw_only=True, eq=False)
class _Survey:
    """What is known of a data set's episodes before a model is run on them."""

    places: list[tuple[int, int]]
    """Place and number of the episodes that can be used."""
    sets: list[list[SplitInfo]]
    """Split information of these episodes, by data set."""
    others: OtherTasks
    same_task: dict[int, int]
    """Task → first task with the same instruction."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walk:
    """A walk over a data set, the same for every model."""

    dataset: JoinedDatasets
    batch_size: int
    cache: FeatureCache | None
    settings: EvaluationSettings
    progress_bar: bool

    def predict(
        self, reward: RewardModel, title: str, only: Collection[int] | None = None, split: str = ""
    ) -> _Predicted:
        """Run a model on the episodes of a split that it can read, or on those of them with the given numbers."""
        reader = model_reader(reward, self.dataset, self.cache)
        bad: dict[int, BadEpisodeError] = {}
        survey = self.survey(reader, bad)
        if only is None:
            places = [survey.places[i][0] for i in in_split_each(survey.sets, split, self.dataset.name)]
        else:
            places = [place for place, index in survey.places if index in only]
        matrix = self.choose_matrix(reader, places, survey)
        episodes: list[EpisodePredictions] = []
        conventions: dict[str, str] = {}
        with Progress(console=Console(stderr=True), disable=not self.progress_bar, transient=True) as progress:
            bar = progress.add_task(title, total=len(places))
            for group in _groups(sorted(places, key=lambda p: (reader(p).steps, p)), self.batch_size):
                batch, read = read_usable(reader, reward, group, bad)
                if batch is not None:
                    qualities = [e.quality for e in read]
                    found = predict_episodes(reward, batch, survey.others, qualities, self.settings.seed, matrix)
                    episodes += [_with_same_tasks(e, survey.same_task) for e in found]
                    conventions = conventions or describe_conventions(run_model(reward, batch[:1]))
                progress.advance(bar, len(group))
        if matrix.instructions:
            conventions["instruction matrix of"] = (
                f"{len(matrix.episodes)} episodes, up to {self.settings.confusion} of each of "
                f"{len(matrix.instructions)} tasks"
            )
        episodes = with_constant(sorted(episodes, key=lambda e: e.episode))
        return _Predicted(episodes=episodes, conventions=conventions, bad=bad, matrix=matrix)

    def survey(self, reader: EpisodeReader, bad: dict[int, BadEpisodeError]) -> _Survey:
        """List the episodes that can be used, with their splits and tasks; the others are put into ``bad``."""
        places: list[tuple[int, int]] = []
        sets: list[list[SplitInfo]] = [[] for _ in self.dataset.datasets]
        instructions: dict[int, str] = {}
        for place, episode in reader.usable(bad):
            instructions.setdefault(episode.task, episode.instruction)
            which, info = self.dataset.split_info(place, episode)
            sets[which].append(info)
            places.append((place, episode.index))
        # data sets joined into one number their tasks apart, though they may hold the same one
        by_text: dict[str, int] = {}
        same = {task: by_text.setdefault(text, task) if text else task for task, text in instructions.items()}
        others = OtherTasks(instructions=instructions, seed=self.settings.seed)
        return _Survey(places=places, sets=sets, others=others, same_task=same)

    def choose_matrix(self, reader: EpisodeReader, places: Sequence[int], survey: _Survey) -> InstructionMatrix:
        """Choose the tasks with most episodes and, of each, random successes (any episodes where none is labelled)."""
        if self.settings.confusion == 0 or len(set(survey.same_task.values())) < 2:
            return InstructionMatrix()
        episodes = [reader(place) for place in places]
        unlabelled = all(e.success is None for e in episodes)
        candidates: dict[int, list[int]] = {task: [] for task in dict.fromkeys(survey.same_task.values())}
        counts = dict.fromkeys(candidates, 0)
        for episode in episodes:
            task = survey.same_task[episode.task]
            counts[task] += 1
            if unlabelled or (episode.success is not None and episode.success >= 0.5):
                candidates[task].append(episode.index)
        tasks = sorted(sorted(candidates, key=lambda t: -counts[t])[:CONFUSION_TASKS])
        chosen: set[int] = set()
        for number, task in enumerate(tasks):
            generator = np.random.default_rng([self.settings.seed, 3, number])
            chosen |= {int(e) for e in generator.permutation(sorted(candidates[task]))[: self.settings.confusion]}
        return InstructionMatrix(
            instructions={task: survey.others.instructions[task] for task in tasks}, episodes=frozenset(chosen)
        )


def _with_same_tasks(episode: EpisodePredictions, same: Mapping[int, int]) -> EpisodePredictions:
    under = {same[task]: score for task, score in episode.under_instruction.items()}
    return replace(episode, task=same[episode.task], under_instruction=under)


def _groups(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))
