"""Episodes as they are stored: what every reader returns and every writer takes, before padding and batching."""

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
    """Error of one episode that cannot be used, while the others can.

    Args:
        index: Number of the episode.
        status: Short machine-readable reason, for the ``status`` column of score files.
        reason: Reason in words: what was expected and what came.
    """

    def __init__(self, index: int, status: str, reason: str) -> None:
        """Make the message of the number and the reason."""
        super().__init__(f"episode {index}: {reason}")
        self.index, self.status, self.reason = index, status, reason

    def __reduce__(self) -> tuple[type["BadEpisodeError"], tuple[int, str, str]]:
        """Pickle the arguments, so that the error comes back from a loader's process."""
        return BadEpisodeError, (self.index, self.status, self.reason)


@contextmanager
def blamed_on(index: int) -> Generator[None]:
    """Make errors name an episode by the number it has here, which its recording does not know.

    Joining data sets, or splitting episodes where the task changes, gives episodes other numbers. Leaving out bad
    episodes by the number of the recording would leave out another one.

    Args:
        index: Number that the episode has here.
    """
    try:
        yield
    except BadEpisodeError as error:
        if error.index == index:
            raise
        raise BadEpisodeError(index, error.status, error.reason) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """Value per step or per observation, with a mask of the known ones."""

    values: Shaped[np.ndarray, "K ..."]
    """Values; K = T per step, K = T + 1 per observation."""
    valid: Bool[np.ndarray, " K"]
    """Mask of the known values."""

    @classmethod
    def known(cls, values: np.ndarray) -> "Column":
        """Make a column in which everything is known."""
        return cls(values=np.asarray(values), valid=np.ones(len(values), bool))


class FrameSource(ABC):
    """Recorded frames of one camera in one episode, decoded when they are read.

    It is a base class and no protocol, because a protocol check at run time would read ``identity`` and so hash the
    file.
    """

    step: np.ndarray
    """Observation index of each recorded frame, (F,) int64, ascending."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Content address of the recording: a hash, never a path alone. It is the key of the feature cache."""

    @abstractmethod
    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Decode frames by their place 0 … F−1 in the recording, in one sequential pass.

        Args:
            indices: Ascending places (M,), with repeats allowed.
            size: Shorter side in pixels that frames are scaled to; None keeps the recorded size.

        Returns:
            Frames (M, 3, H, W), uint8, RGB.

        Raises:
            BadEpisodeError: If the recording cannot be decoded or ends early (status ``"video"``).
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayFrames(FrameSource):
    """Frames in memory, such as those of a simulator."""

    values: UInt8[np.ndarray, "F 3 H W"]
    """Frames, RGB."""
    step: Int64[np.ndarray, " F"]
    """Observation index of each frame, ascending."""
    identity: str = ""  # pyright: ignore[reportIncompatibleMethodOverride]  # a frozen field is as good as a property

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Return frames by their place; see `FrameSource.read`."""
        chosen = self.values[indices]
        return chosen if size is None else scale_frames(chosen, size)


def scale_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """Scale frames with antialiasing.

    Args:
        frames: Frames (M, 3, H, W), uint8.
        size: Shorter side of the result, in pixels.
    """
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

    Widths may be 0, for video without state or actions. Where a recording holds as many observations as actions, the
    last observation is a repeat and ``last_observed`` is False.

    Raises:
        BadEpisodeError: If the episode is empty, shapes disagree, or a state or action is not finite.
    """

    index: int
    """Number of the episode in its data set."""
    state: Float32[np.ndarray, "Tp1 S"]
    """State at each observation."""
    actions: Float32[np.ndarray, "T A"]
    """Action of each step, as it was executed."""
    instruction: str = ""
    """Instruction in words."""
    task: int = 0
    """Number of the task; paraphrases of an instruction share it."""
    fps: float = 10.0
    """Control steps per second."""
    end: End = End.CUT
    """End of the episode."""
    last_observed: bool = True
    """Whether the last observation is real; False where it repeats the one before."""
    success: float | None = None
    """Success in [0, 1]; None where it is unknown."""
    frames: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    labels: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Values per observation (T+1): progress, stage, success, …"""
    tracks: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Values per observation, (T+1, 3) or (T+1,): end effector, keypoints, flags, by name."""
    recorded: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Values per step (T): stored rewards, values, …"""
    group: int | None = None
    """Number shared by the episodes of one task and one initial state; None where it is unknown."""
    source: int = 0
    """Number of the source of the actions, as the recorder chose it."""
    quality: str = ""
    """Recorded quality of the behaviour: expert, noisy, aborted, random, …; empty where it is unknown."""
    context: str = ""
    """Name of the initial state; it keeps training and evaluation apart."""
    split: str = ""
    """Recorded split; empty where none is recorded."""

    def __post_init__(self) -> None:
        """Check shapes, types and numbers."""
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
    """Facts about an episode that are known without reading it; empty or None where they are unknown."""

    index: int
    """Number of the episode in its data set."""
    steps: int
    """Number of steps T."""
    instruction: str = ""
    """Instruction in words."""
    success: float | None = None
    """Success in [0, 1]."""
    split: str = ""
    """Recorded split."""
    quality: str = ""
    """Recorded quality of the behaviour, such as expert."""
    context: str = ""
    """Name of the initial state."""


@runtime_checkable
class EpisodeDataset(Protocol):
    """Data set of episodes; each is read when it is asked for."""

    name: str
    """Folder that it was opened from."""
    fps: float
    """Control steps per second."""
    state_size: int
    """Width S of the states."""
    action_size: int
    """Width A of the actions."""
    cameras: tuple[str, ...]
    """Names of the cameras."""

    def __len__(self) -> int:
        """Return the number of episodes, unreadable ones included."""
        ...

    def summary(self, place: int) -> EpisodeSummary:
        """Return what is known of the episode at a place 0 … len−1 without reading it."""
        ...

    def __getitem__(self, place: int) -> Episode:
        """Read the episode at a place; its frames are decoded later.

        Raises:
            BadEpisodeError: If this episode cannot be used.
        """
        ...


def readable(dataset: EpisodeDataset) -> Iterator[Episode | BadEpisodeError]:
    """Yield every episode of a data set, or the error of one that cannot be used."""
    for place in range(len(dataset)):
        try:
            yield dataset[place]
        except BadEpisodeError as error:
            yield error
