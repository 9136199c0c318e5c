"""Episodes → `TrajectoryBatch`: the one place where layout, dtype and padding are fixed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..core.batch import TERMINATING, End, Labelled, Sampled, TrajectoryBatch, terminated_from
from ..core.joining import join_fields
from .episodes import BadEpisodeError, Column, Episode, blamed_on
from .stages import FRACTION, STAGE, stage_fraction


@runtime_checkable
class FeatureReader(Protocol):
    """Features of one camera in one episode."""

    step: np.ndarray
    """(F,) observation index of each recorded frame, ascending."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Features of frames by their place, (M, D) or (M, K, D) float32."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Part of an episode: observations ``offset`` … ``offset + steps``.

    Raises:
        ValueError: If it reaches outside the episode.
    """

    episode: Episode
    offset: int = 0
    steps: int = -1
    """−1: up to the episode's end."""

    def __post_init__(self) -> None:
        """Check that the window lies inside the episode."""
        if self.steps == -1:
            object.__setattr__(self, "steps", self.episode.steps - self.offset)
        if self.offset < 0 or self.steps < 1 or self.offset + self.steps > self.episode.steps:
            raise ValueError(
                f"window of {self.steps} steps from {self.offset} does not lie inside episode {self.episode.index} "
                f"of {self.episode.steps} steps"
            )

    @property
    def reaches_end(self) -> bool:
        """True if the episode ends with this window."""
        return self.offset + self.steps == self.episode.steps

    @property
    def end(self) -> End:
        """How the window ends: as the episode does, or cut."""
        return self.episode.end if self.reaches_end else End.CUT


def choose_frames(step: np.ndarray, offset: int, steps: int, count: int | None = None, every: int = 1) -> np.ndarray:
    """Places of the recorded frames a window uses, ascending and distinct.

    The frame held at the window's first observation is always among them, so nothing has to be invented there.

    Args:
        step: (F,) observation index of every recorded frame, ascending.
        offset: First observation of the window.
        steps: Steps of the window.
        count: Keep at most this many, evenly spaced from the first to the last; None keeps all.
        every: Of those recorded keep every how many, from the first on, and the last one, which shows how it ended;
            before ``count`` thins them out.
    """
    last = int(np.searchsorted(step, offset + steps, side="right"))
    first = max(int(np.searchsorted(step, offset, side="right")) - 1, 0)
    places = np.arange(first, last, every)
    if len(places) and places[-1] != last - 1:
        places = np.append(places, last - 1)
    if count is not None and len(places) > count:
        places = places[np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))]
    return places


def collate(
    pieces: Sequence[Episode | Window],
    cameras: Sequence[str] = (),
    frame_count: int | None = None,
    frame_size: int | None = None,
    terminating: Iterable[int] = TERMINATING,
    frames_every: int = 1,
    features: Callable[[Episode], Mapping[str, FeatureReader]] | None = None,
) -> TrajectoryBatch:
    """Pad episodes or windows to one batch on the host.

    Args:
        pieces: One per row.
        cameras: Cameras to decode; a row without that camera gets none of its frames.
        frame_count: At most this many frames of a camera in a row, evenly spaced; None takes all.
        frame_size: Scale frames so that the shorter side is this many pixels; None keeps the recorded size.
        terminating: Ends after which nothing is bootstrapped.
        frames_every: Of the recorded frames take every how many.
        features: Frozen features of an episode by ``"<encoder.name>/<camera>"``, sampled like frames (a
            `FeatureCache` gives them); a camera that is read this way need not be among ``cameras``.

    Returns:
        State, actions float32; frames uint8, channels first, RGB; padding is 0.

    Raises:
        ValueError: If there is no piece, or widths or frame sizes differ between rows.
        BadEpisodeError: If a video cannot be decoded.
    """
    windows = [p if isinstance(p, Window) else Window(episode=p) for p in pieces]
    choice = _Choice(frame_count, frames_every, frame_size)
    fields = join_fields([_row(window, cameras, choice, features) for window in windows])
    return TrajectoryBatch(**fields, terminated=terminated_from(fields["end"], terminating))


@dataclass(frozen=True)
class _Choice:
    """Which of the recorded frames are taken, and their size."""

    count: int | None
    every: int
    size: int | None


def _row(
    window: Window,
    cameras: Sequence[str],
    choice: _Choice,
    features: Callable[[Episode], Mapping[str, FeatureReader]] | None,
) -> dict[str, Any]:
    """Make the fields of one row, each with a leading dimension of 1."""
    episode, first, last = window.episode, window.offset, window.offset + window.steps
    numbers = {
        "task": episode.task,
        "end": int(window.end),
        "episode": episode.index,
        "offset": first,
        "length": episode.steps,
        # an episode of unknown initial state is a group of its own: negative, so it never meets a recorded one
        "group": -1 - episode.index if episode.group is None else episode.group,
        "source": episode.source,
        "last_observed": episode.last_observed or not window.reaches_end,
        "success": float(episode.success or 0.0),
        "success_known": episode.success is not None,
    }
    return {
        "state": _tensor(episode.state[first : last + 1]),
        "actions": _tensor(episode.actions[first:last]),
        "mask": torch.ones(1, window.steps, dtype=torch.bool),
        "instructions": (episode.instruction,),
        "frames": {
            camera: _sampled(window, f"camera {camera!r}", source.step, choice, partial(source.read, size=choice.size))
            for camera, source in episode.frames.items()
            if camera in cameras
        },
        "features": {
            name: _sampled(window, f"features {name!r}", reader.step, choice, reader.read)
            for name, reader in (features(episode) if features is not None else {}).items()
        },
        "labels": {name: _column(window, column) for name, column in _labels(episode).items()},
        "tracks": {name: _column(window, column) for name, column in episode.tracks.items()},
        "recorded": {name: _column(window, column) for name, column in episode.recorded.items()},
        **{name: [number] for name, number in numbers.items()},
    }


def _tensor(values: np.ndarray) -> Tensor:
    """Convert an array to a tensor with a leading dimension of 1; double precision becomes single."""
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    elif not values.flags.writeable:  # torch takes no read-only memory, such as that of a parquet file
        values = values.copy()
    return torch.from_numpy(np.ascontiguousarray(values))[None]


def _labels(episode: Episode) -> Mapping[str, Column]:
    """Recorded labels; a stage gets its fraction here, because a window alone does not show where its stages begin."""
    stage = episode.labels.get(STAGE)
    if stage is None or FRACTION in episode.labels or stage.values.shape != (episode.steps + 1,):
        return episode.labels
    known = stage.valid.copy()
    known[-1] &= episode.last_observed
    completed = episode.success is not None and episode.success >= 1
    return {**episode.labels, FRACTION: stage_fraction(stage.values, known, completed)}


def _column(window: Window, column: Column) -> Labelled:
    """Cut a stored column to the window; a repeated last observation has no label of its own."""
    extra = len(column.values) - window.episode.steps
    span = slice(window.offset, window.offset + window.steps + extra)
    valid = column.valid[span].copy()
    if extra and window.reaches_end and not window.episode.last_observed:
        valid[-1] = False
    return Labelled(values=_tensor(column.values[span]), valid=_tensor(valid))


def _sampled(
    window: Window, what: str, step: np.ndarray, choice: _Choice, read: Callable[[np.ndarray], np.ndarray]
) -> Sampled:
    """Read the frames or features that a window uses.

    Raises:
        BadEpisodeError: If it has none, or the recording cannot be decoded.
    """
    places = choose_frames(step, window.offset, window.steps, choice.count, choice.every)
    if not len(places):
        raise BadEpisodeError(window.episode.index, "video", f"{what} has no frame for the window")
    with blamed_on(window.episode.index):
        values = read(places)
    # the frame held at the window's start was recorded before it
    index = np.maximum(step[places] - window.offset, 0).astype(np.int64)
    return Sampled(values=_tensor(values), step=_tensor(index))
