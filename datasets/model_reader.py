"""Reads the episodes of a data set as a model evaluates them, from what the model says of its inputs."""

from collections.abc import Iterable, Sequence

from ..backbones.model_inputs import inputs_of
from ..core.batch import TERMINATING, TrajectoryBatch
from ..core.interfaces import Component
from .collate import Window
from .episodes import BadEpisodeError, Episode, EpisodeDataset
from .features import FeatureCache
from .reader import EpisodeReader


def model_reader(
    model: Component,
    dataset: EpisodeDataset,
    cache: FeatureCache | None = None,
    terminating: Iterable[int] = TERMINATING,
) -> EpisodeReader:
    """Make a reader that gives a model what it was built for.

    Args:
        model: Component whose ``inputs`` name cameras, frame size, state size and frozen encoder.
        dataset: Data set to read.
        cache: Folder of frozen features, or of frames at the model's size.
        terminating: Ends after which nothing is bootstrapped.

    Raises:
        ValueError: If the data set has another state size, or none of the model's cameras.
    """
    inputs = inputs_of(model)
    if inputs.state_size and inputs.state_size != dataset.state_size:
        raise ValueError(
            f"{type(model).__name__} reads a state of {inputs.state_size} numbers, {dataset.name} has "
            f"{dataset.state_size}: score the data it was made for, or train a model for this robot"
        )
    if inputs.cameras and not set(inputs.cameras) & set(dataset.cameras):
        raise ValueError(
            f"{type(model).__name__} looks through {', '.join(inputs.cameras)}; {dataset.name} has "
            f"{', '.join(dataset.cameras) or 'no camera'}"
        )
    useful = cache if inputs.encoder is not None or inputs.frame_size is not None else None
    return EpisodeReader(dataset, inputs.cameras, inputs.frame_size, inputs.encoder, useful, terminating)


def read_for(reader: EpisodeReader, model: Component, episodes: Sequence[Episode]) -> TrajectoryBatch:
    """Batch whole episodes as a model evaluates them: every ``frames_every``-th recorded frame.

    Raises:
        BadEpisodeError: If a video cannot be decoded.
    """
    return reader.batch([Window(episode=e) for e in episodes], None, inputs_of(model).frames_every)


def read_places(
    reader: EpisodeReader, model: Component, places: Iterable[int]
) -> tuple[TrajectoryBatch | None, dict[int, Episode | BadEpisodeError]]:
    """Read the episodes at some places and batch those that can be used.

    Args:
        reader: Reader made by `model_reader`.
        model: Model that will evaluate the batch.
        places: Places in the data set.

    Returns:
        The batch, a row for each episode that can be used, in order, or None without any; and, by place, each episode
        or why it cannot be used.
    """
    found: dict[int, Episode | BadEpisodeError] = {}
    for place in places:
        try:
            found[place] = reader(place)
        except BadEpisodeError as error:
            found[place] = error
    while good := {place: e for place, e in found.items() if isinstance(e, Episode)}:
        try:
            return read_for(reader, model, list(good.values())), found
        except BadEpisodeError as error:  # a video that turns out to be broken; the others are read again
            broken = [place for place, e in good.items() if e.index == error.index]
            if not broken:
                raise
            found[broken[0]] = error
    return None, found


def read_usable(
    reader: EpisodeReader, model: Component, places: Iterable[int], bad: dict[int, BadEpisodeError]
) -> tuple[TrajectoryBatch | None, list[Episode]]:
    """Batch the episodes at some places that can be used; see `read_places`.

    Args:
        reader: Reader made by `model_reader`.
        model: Model that will evaluate the batch.
        places: Places in the data set.
        bad: Filled with the episodes that cannot be used, by their number.

    Returns:
        The batch, or None without any, and the episodes of its rows.
    """
    batch, found = read_places(reader, model, places)
    bad.update({e.index: e for e in found.values() if isinstance(e, BadEpisodeError)})
    return batch, [e for e in found.values() if isinstance(e, Episode)]
