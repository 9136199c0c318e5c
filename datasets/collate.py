"""Episodes → `TrajectoryBatch`: the one place where layout, dtype and padding are fixed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..core.batch import TERMINATING, End, Labelled, Sampled, TrajectoryBatch, terminated_from
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
    if not windows:
        raise ValueError("expected at least one episode to batch, got none")
    for name, widths in (
        ("state", {w.episode.state.shape[1] for w in windows}),
        ("action", {w.episode.actions.shape[1] for w in windows}),
    ):
        if len(widths) > 1:
            raise ValueError(f"expected one {name} width in a batch, got {sorted(widths)}: batch data sets apart")
    longest = max(w.steps for w in windows)
    end = torch.tensor([int(w.end) for w in windows])
    real = torch.tensor([w.steps for w in windows])
    return TrajectoryBatch(
        state=_pad([w.episode.state[w.offset : w.offset + w.steps + 1] for w in windows], longest + 1),
        actions=_pad([w.episode.actions[w.offset : w.offset + w.steps] for w in windows], longest),
        mask=torch.arange(longest)[None] < real[:, None],
        frames=_frames(windows, cameras, _Choice(frame_count, frames_every), frame_size),
        features={} if features is None else _features(windows, features, _Choice(frame_count, frames_every)),
        instructions=tuple(w.episode.instruction for w in windows),
        task=torch.tensor([w.episode.task for w in windows]),
        end=end,
        terminated=terminated_from(end, terminating),
        last_observed=torch.tensor([w.episode.last_observed or not w.reaches_end for w in windows]),
        success=torch.tensor([w.episode.success or 0.0 for w in windows], dtype=torch.float32),
        success_known=torch.tensor([w.episode.success is not None for w in windows]),
        episode=torch.tensor([w.episode.index for w in windows]),
        offset=torch.tensor([w.offset for w in windows]),
        length=torch.tensor([w.episode.steps for w in windows]),
        # an episode of unknown initial state is a group of its own: negative, so it never meets a recorded one
        group=torch.tensor([-1 - w.episode.index if w.episode.group is None else w.episode.group for w in windows]),
        source=torch.tensor([w.episode.source for w in windows]),
        labels=_columns(windows, [_labels(w.episode) for w in windows], longest),
        tracks=_columns(windows, [w.episode.tracks for w in windows], longest),
        recorded=_columns(windows, [w.episode.recorded for w in windows], longest),
    )


def _pad(arrays: Sequence[np.ndarray], length: int) -> Tensor:
    dtype = torch.from_numpy(np.zeros(0, arrays[0].dtype)).dtype
    padded = torch.zeros(len(arrays), length, *arrays[0].shape[1:], dtype=dtype)
    for row, values in enumerate(arrays):
        padded[row, : len(values)] = torch.from_numpy(np.ascontiguousarray(values))
    return padded


def _labels(episode: Episode) -> Mapping[str, Column]:
    """Recorded labels; a stage gets its fraction here, because a window alone does not show where its stages begin."""
    stage = episode.labels.get(STAGE)
    if stage is None or FRACTION in episode.labels or stage.values.shape != (episode.steps + 1,):
        return episode.labels
    known = stage.valid.copy()
    known[-1] &= episode.last_observed
    completed = episode.success is not None and episode.success >= 1
    return {**episode.labels, FRACTION: stage_fraction(stage.values, known, completed)}


def _columns(windows: Sequence[Window], stored: Sequence[Mapping[str, Column]], longest: int) -> dict[str, Labelled]:
    """Pad stored columns; where an episode lacks one, its entries are unknown."""
    batched: dict[str, Labelled] = {}
    for name in dict.fromkeys(name for columns in stored for name in columns):
        shapes = {columns[name].values.shape[1:] for columns in stored if name in columns}
        per_observation = {
            len(c[name].values) == w.episode.steps + 1 for w, c in zip(windows, stored, strict=True) if name in c
        }
        if len(shapes) > 1 or len(per_observation) > 1:
            raise ValueError(f"column {name!r}: episodes disagree on its shape ({sorted(shapes)}) or its clock")
        extra = int(per_observation.pop())
        dtype = np.result_type(*(c[name].values.dtype for c in stored if name in c))
        dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
        values: list[np.ndarray] = []
        valid: list[np.ndarray] = []
        for window, columns in zip(windows, stored, strict=True):
            span = slice(window.offset, window.offset + window.steps + extra)
            if name in columns:
                known = columns[name].valid[span].copy()
                if extra and window.reaches_end and not window.episode.last_observed:
                    known[-1] = False  # a repeated observation has no label of its own
                values.append(columns[name].values[span].astype(dtype))
                valid.append(known)
            else:
                values.append(np.zeros((window.steps + extra, *shapes.copy().pop()), dtype))
                valid.append(np.zeros(window.steps + extra, bool))
        batched[name] = Labelled(values=_pad(values, longest + extra), valid=_pad(valid, longest + extra))
    return batched


@dataclass(frozen=True)
class _Choice:
    """Which of the recorded frames are taken."""

    count: int | None
    every: int


def _frames(windows: Sequence[Window], cameras: Sequence[str], choice: _Choice, size: int | None) -> dict[str, Sampled]:
    batched: dict[str, Sampled] = {}
    for camera in cameras:

        def read(window: Window, places: np.ndarray, camera: str = camera) -> np.ndarray:
            return window.episode.frames[camera].read(places, size)

        steps = [w.episode.frames[camera].step if camera in w.episode.frames else None for w in windows]
        if (sampled := _sampled(windows, f"camera {camera!r}", steps, choice, read)) is not None:
            batched[camera] = sampled
    return batched


def _features(
    windows: Sequence[Window], features: Callable[[Episode], Mapping[str, FeatureReader]], choice: _Choice
) -> dict[str, Sampled]:
    stored = [features(w.episode) for w in windows]
    batched: dict[str, Sampled] = {}
    for name in dict.fromkeys(name for sources in stored for name in sources):
        held = {id(w): sources.get(name) for w, sources in zip(windows, stored, strict=True)}

        def read(window: Window, places: np.ndarray, held: Mapping[int, FeatureReader | None] = held) -> np.ndarray:
            source = held[id(window)]
            assert source is not None
            return source.read(places)

        steps = [None if (source := held[id(w)]) is None else source.step for w in windows]
        if (sampled := _sampled(windows, f"features {name!r}", steps, choice, read)) is not None:
            batched[name] = sampled
    return batched


def _sampled(
    windows: Sequence[Window],
    what: str,
    steps: Sequence[np.ndarray | None],
    choice: _Choice,
    read: Callable[[Window, np.ndarray], np.ndarray],
) -> Sampled | None:
    """Pad what was sampled of every window; None where no window has any."""
    taken: list[np.ndarray | None] = []
    index: list[np.ndarray] = []
    for window, step in zip(windows, steps, strict=True):
        if step is None:
            taken.append(None)
            index.append(np.zeros(0, np.int64))
            continue
        places = choose_frames(step, window.offset, window.steps, choice.count, choice.every)
        if not len(places):
            raise BadEpisodeError(window.episode.index, "video", f"{what} has no frame for the window")
        with blamed_on(window.episode.index):
            taken.append(read(window, places))
        # the frame held at the window's start was recorded before it
        index.append(np.maximum(step[places] - window.offset, 0))
    shapes = {values.shape[1:] for values in taken if values is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise ValueError(
            f"{what}: of different sizes {sorted(shapes)} cannot share a batch; for frames pass frame_size and keep "
            "one aspect ratio per batch"
        )
    longest = max(len(s) for s in index)
    dtype = next(torch.from_numpy(v[:0].copy()).dtype for v in taken if v is not None)
    values = torch.zeros(len(windows), longest, *shapes.pop(), dtype=dtype)
    step = torch.full((len(windows), longest), -1, dtype=torch.long)
    for row, (sample, at) in enumerate(zip(taken, index, strict=True)):
        if sample is not None:
            values[row, : len(at)] = torch.from_numpy(np.ascontiguousarray(sample))
            step[row, : len(at)] = torch.from_numpy(at)
    return Sampled(values=values, step=step)
