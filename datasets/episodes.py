"""The storage-level episode: what every reader gives and every writer takes, before padding and batching."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from torch.nn.functional import interpolate

from ..core.batch import End


class BadEpisodeError(ValueError):
    """One episode cannot be used; the others can. The message names the episode, what was expected and what came."""

    def __init__(self, index: int, status: str, reason: str) -> None:
        """Keep a short machine-readable status beside the reason, for the ``status`` column of score files."""
        super().__init__(f"episode {index}: {reason}")
        self.index, self.status, self.reason = index, status, reason

    def __reduce__(self) -> tuple[type["BadEpisodeError"], tuple[int, str, str]]:
        """Survive the way back from a loader's worker process."""
        return BadEpisodeError, (self.index, self.status, self.reason)


@contextmanager
def blamed_on(index: int) -> Generator[None]:
    """Let errors name an episode by the number it has here, which a recording does not know.

    Joining data sets, or splitting episodes where the task changes, gives them other numbers. Who leaves bad episodes
    out by their numbers would leave out another one.
    """
    try:
        yield
    except BadEpisodeError as error:
        if error.index == index:
            raise
        raise BadEpisodeError(index, error.status, error.reason) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """A value per step or per observation, with what is unknown marked."""

    values: Shaped[np.ndarray, "K ..."]
    valid: Bool[np.ndarray, " K"]

    @classmethod
    def known(cls, values: np.ndarray) -> "Column":
        """A column in which everything is known."""
        return cls(values=np.asarray(values), valid=np.ones(len(values), bool))


class FrameSource(ABC):
    """Recorded frames of one camera in one episode, decoded when asked for.

    A base class rather than a protocol: a run-time protocol check would ask for ``identity``, and so hash the file.
    """

    step: np.ndarray
    """(F,) int64: observation index of each recorded frame, ascending."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Content address of the recording (a hash): the feature cache's key. Never a path alone."""

    @abstractmethod
    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Decode frames by their place 0 … F−1 in the recording, in one sequential pass.

        Args:
            indices: (M,) ascending places, repeats allowed.
            size: Scale so that the shorter side is this many pixels; None keeps the recorded size.

        Returns:
            (M, 3, H, W) uint8, RGB.

        Raises:
            BadEpisodeError: If the recording cannot be decoded or ends early (status ``"video"``).
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayFrames(FrameSource):
    """Frames held in memory, as a simulator makes them."""

    values: UInt8[np.ndarray, "F 3 H W"]
    step: Int64[np.ndarray, " F"]
    identity: str = ""  # pyright: ignore[reportIncompatibleMethodOverride]  # a frozen field is as good as a property

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Pick frames by place; see `FrameSource.read`."""
        chosen = self.values[indices]
        return chosen if size is None else scale_frames(chosen, size)


def scale_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """Scale (M, 3, H, W) uint8 so that the shorter side is ``size`` pixels, with antialiasing."""
    height, width = frames.shape[2:]
    if min(height, width) == size or not len(frames):
        return frames
    scale = size / min(height, width)
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    scaled = interpolate(torch.from_numpy(np.ascontiguousarray(frames)), shape, mode="bilinear", antialias=True)
    return scaled.numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One recorded episode: T steps, T + 1 observations.

    Widths may be 0 (video without state or actions). Where a recording holds as many observations as actions, the last
    observation is a repeat and ``last_observed`` is False.

    Raises:
        BadEpisodeError: If it is empty, shapes disagree, or a state or action is not a number.
    """

    index: int
    """Number of the episode in its data set."""
    state: Float32[np.ndarray, "Tp1 S"]
    actions: Float32[np.ndarray, "T A"]
    instruction: str = ""
    task: int = 0
    fps: float = 10.0
    """Control steps per second."""
    end: End = End.CUT
    last_observed: bool = True
    success: float | None = None
    """In [0, 1]; None where nobody said."""
    frames: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    labels: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Per observation (T+1): progress, stage, success…"""
    tracks: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Per observation (T+1, 3) or (T+1,): end effector, keypoints, flags, named by what they follow."""
    recorded: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Per step (T): stored rewards, values…"""
    group: int | None = None
    """Episodes with the same task and the same initial state share it."""
    source: int = 0
    """Who acted: an index chosen by whoever recorded."""
    quality: str = ""
    """expert, noisy, aborted, random… where known."""
    context: str = ""
    """Name of the initial state, so that training and evaluation can be kept apart."""
    split: str = ""

    def __post_init__(self) -> None:
        """Refuse what would poison a batch."""
        steps = len(self.actions)

        def bad(status: str, reason: str) -> BadEpisodeError:
            return BadEpisodeError(self.index, status, reason)

        if self.actions.ndim != 2 or self.state.ndim != 2:
            raise bad(
                "shape", f"expected state (T+1, S) and actions (T, A), got {self.state.shape}, {self.actions.shape}"
            )
        if steps == 0:
            raise bad("empty", "expected at least one step, got none: remove the episode")
        if len(self.state) != steps + 1:
            raise bad("shape", f"expected {steps + 1} observations for {steps} steps, got {len(self.state)}")
        for name, values in (("state", self.state), ("action", self.actions)):
            if values.dtype != np.float32:
                raise bad("dtype", f"expected {name} as float32, got {values.dtype}")
            if not np.isfinite(values).all():
                step, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
                raise bad("not_finite", f"{name}[{column}] at step {step} is {values[step, column]}: expected a number")
        if self.success is not None and not 0.0 <= self.success <= 1.0:
            raise bad("label", f"expected success in [0, 1] or unknown, got {self.success}")
        for kind, columns in (("label", self.labels), ("track", self.tracks), ("recorded", self.recorded)):
            for name, column in columns.items():
                if len(column.values) not in (steps, steps + 1) or len(column.valid) != len(column.values):
                    raise bad(
                        "shape", f"{kind} {name!r}: expected {steps} or {steps + 1} rows, got {len(column.values)}"
                    )
        for camera, source in self.frames.items():
            if len(source.step) and not 0 <= int(source.step.min()) <= int(source.step.max()) <= steps:
                raise bad("shape", f"camera {camera!r}: frames outside observations 0 … {steps}")

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.actions)


@dataclass(frozen=True, kw_only=True)
class EpisodeSummary:
    """What is known of an episode without reading it."""

    index: int
    steps: int
    instruction: str = ""
    success: float | None = None
    split: str = ""
    quality: str = ""
    context: str = ""


@runtime_checkable
class EpisodeDataset(Protocol):
    """Episodes on disk; nothing is read before it is asked for."""

    name: str
    """Folder it was opened from."""
    fps: float
    state_size: int
    action_size: int
    cameras: tuple[str, ...]

    def __len__(self) -> int:
        """Number of episodes, unreadable ones included."""
        ...

    def summary(self, place: int) -> EpisodeSummary:
        """What is known of the episode at a place 0 … len−1 without reading it."""
        ...

    def __getitem__(self, place: int) -> Episode:
        """Read one episode; its frames are decoded later.

        Raises:
            BadEpisodeError: If this one cannot be used.
        """
        ...


def readable(dataset: EpisodeDataset) -> Iterator[Episode | BadEpisodeError]:
    """Go through a data set; an episode that cannot be used comes as its error, so nothing is dropped in silence."""
    for place in range(len(dataset)):
        try:
            yield dataset[place]
        except BadEpisodeError as error:
            yield error
