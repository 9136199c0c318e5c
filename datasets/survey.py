"""Reads every episode of a training run once, before it begins: which can be used, and what is known of each."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.progress import track

from .episodes import BadEpisodeError, Episode
from .filters import EpisodeFilter, FilterCount
from .joined import JoinedDatasets
from .reader import EpisodeReader
from .splits import SplitInfo
from .stages import STAGE


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Result of reading every episode once."""

    sets: list[list[SplitInfo]]
    """Split information of the usable episodes of each data set."""
    usable: list[int]
    """Places of the usable episodes, counted through all data sets."""
    outcomes: list[str]
    """Outcome of each usable episode: success, failure, partial, unknown, or labelled by observation."""
    staged: bool
    """Whether any episode holds a valid stage."""
    bad: list[BadEpisodeError]
    """Episodes that cannot be used."""
    kept: list[bool]
    """Whether the filter keeps each usable episode."""
    tasks: list[tuple[int, str]]
    """Task of each usable episode: the number of its data set, and its instruction."""
    steps: list[int]
    """Number of steps of each usable episode."""
    filtered: FilterCount
    """Number of usable episodes that met each condition of the filter."""

    def reasons(self, most: int = 10) -> str:
        """Name in words the episodes that cannot be used, and why.

        Args:
            most: Number of episodes to name; the others are counted.
        """
        named = "; ".join(f"episode {e.index} ({e.status}): {e.reason}" for e in self.bad[:most])
        return named + (f"; and {len(self.bad) - most} more" if len(self.bad) > most else "")


def survey(reader: EpisodeReader, dataset: JoinedDatasets, keep: EpisodeFilter | None = None) -> Survey:
    """Read every episode once, fill the reader's cache, and check recorded targets.

    Args:
        reader: Reader of the data set.
        dataset: The same data set, which knows where each episode comes from.
        keep: Filter of episodes; of the others nothing is cached. None keeps all.
    """
    filtered = FilterCount(keep)
    kept: list[bool] = []
    tasks: list[tuple[int, str]] = []
    steps: list[int] = []
    sets: list[list[SplitInfo]] = [[] for _ in dataset.datasets]
    usable: list[int] = []
    outcomes: list[str] = []
    bad: list[BadEpisodeError] = []
    staged = False
    places: Iterable[int] = range(len(dataset))
    if reader.cache is not None:
        places = track(places, description="embedding", total=len(dataset), transient=True)
    for place in places:
        try:
            episode = reader(place)
            check_targets(episode)
            wanted = keep is None or keep(episode)
            if wanted:
                reader.prepare(episode)
        except BadEpisodeError as error:
            bad.append(error)
            continue
        staged |= STAGE in episode.labels and bool(episode.labels[STAGE].valid.any())
        which, info = dataset.split_info(place, episode)
        sets[which].append(info)
        usable.append(place)
        kept.append(filtered.add(episode))
        tasks.append((which, episode.instruction))
        steps.append(episode.steps)
        outcomes.append(outcome_of(episode))
    return Survey(
        sets=sets,
        usable=usable,
        outcomes=outcomes,
        staged=staged,
        bad=bad,
        kept=kept,
        tasks=tasks,
        steps=steps,
        filtered=filtered,
    )


def check_targets(episode: Episode) -> None:
    """Require recorded targets to be in [0, 1] where they are valid, before a run begins rather than in its middle.

    Raises:
        BadEpisodeError: If recorded progress or success is no such number (status ``"label"``).
    """
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


def outcome_of(episode: Episode) -> str:
    """Name the outcome of an episode: success, failure, partial, unknown, or labelled by observation."""
    if holds_progress(episode):
        return "labelled"
    flags = episode.labels.get("success")
    if episode.success is None and flags is not None and bool((flags.values[flags.valid] > 0).any()):
        return "labelled"
    return name_of_success(episode.success)


def holds_progress(episode: Episode) -> bool:
    """Tell whether progress is recorded at any observation of an episode."""
    return "progress" in episode.labels and bool(episode.labels["progress"].valid.any())


def name_of_success(success: float | None) -> str:
    """Name the recorded success of an episode: success (1), failure (0), partial, or unknown (None)."""
    return "unknown" if success is None else "success" if success >= 1 else "failure" if success <= 0 else "partial"
