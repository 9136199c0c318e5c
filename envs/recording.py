"""Recording of a simulated episode while it is played."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from ..core.batch import End
from ..datasets.episodes import ArrayFrames, Column, Episode
from .quality import SOURCES
from .task import Context, Step, Task


class Recording:
    """Recorder of one episode of a task: it starts it, executes actions, and makes an `Episode` of what was seen.

    Args:
        task: Task to act in.
        cameras: Names of the task's cameras that are recorded.
        image_size: Size (H, W) of the frames, in pixels.
        frames_every: Number of control steps from one frame to the next.
    """

    def __init__(self, task: Task, cameras: Sequence[str], image_size: tuple[int, int], frames_every: int) -> None:
        self._task, self._size, self._every = task, image_size, frames_every
        self._frame_steps: list[int] = []
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._steps: list[Step] = []
        self._tracks: list[Mapping[str, np.ndarray]] = []
        self._pictures: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}

    @property
    def task(self) -> Task:
        """Task that is acted in."""
        return self._task

    @property
    def steps(self) -> int:
        """Number of control steps so far."""
        return len(self._steps)

    def start(self, context: Context) -> np.ndarray:
        """Start the episode; return the first state (S,). A recording holds one episode.

        Args:
            context: Initial state.

        Raises:
            RuntimeError: If it was started before.
        """
        if self._states:
            raise RuntimeError("this recording holds an episode already: make another one for each episode")
        self._observe(self._task.reset(context))
        return self._states[-1]

    def take(self, action: np.ndarray) -> Step:
        """Execute one action (A,), clipped to the bounds of the task.

        Args:
            action: Action (A,).
        """
        clipped = np.clip(action, self._task.action_low, self._task.action_high).astype(np.float32)
        step = self._task.step(clipped)
        self._actions.append(clipped)
        self._steps.append(step)
        self._observe(step.state)
        return step

    def finish(self) -> None:
        """Render the last observation, if it has no frame yet."""
        self._picture(last=True)

    def _observe(self, state: np.ndarray) -> None:
        self._states.append(state)
        self._tracks.append(self._task.tracks())
        self._picture()

    def _picture(self, last: bool = False) -> None:
        """Render the current observation if its turn has come, or it is the last one and has none."""
        step = len(self._states) - 1
        due = step % self._every == 0 if not last else self._frame_steps[-1:] != [step]
        if not self._pictures or not due:
            return
        self._frame_steps.append(step)
        for camera, pictures in self._pictures.items():
            pictures.append(self._task.render(camera, self._size))

    def blank_cameras(self) -> set[str]:
        """Return the cameras whose every picture has one colour everywhere: black, most often."""
        return {
            camera
            for camera, pictures in self._pictures.items()
            if all(picture.max() == picture.min() for picture in pictures)
        }

    def episode(self, index: int, context: Context, quality: str, end: End, records: Mapping[str, Column]) -> Episode:
        """Make the episode.

        Args:
            index: Number of the episode in its data set.
            context: Initial state it was started from.
            quality: Quality of the behaviour, one of `guerdon.envs.quality.SOURCES`.
            end: End of the episode.
            records: Further recorded columns.
        """
        task = self._task
        solved = [step.success for step in self._steps]
        labels = {"success": _after_first(np.array(solved, np.float32))}
        for name in task.stage_names:
            labels[f"stage.{name}"] = _after_first(np.array([step.stages[name] for step in self._steps], np.float32))
        tracks: dict[str, Column] = {}
        for name in self._tracks[0]:
            points = np.stack([track[name] for track in self._tracks])
            tracks[name] = Column.known(points[:, 0] if points.shape[1] == 1 else points)
        return Episode(
            index=index,
            state=np.stack(self._states),
            actions=np.stack(self._actions),
            instruction=task.instruction,
            fps=task.fps,
            end=end,
            success=float(any(solved)),
            frames={camera: _frames(pictures, self._frame_steps) for camera, pictures in self._pictures.items()},
            labels=labels,
            tracks=tracks,
            recorded={"reward": Column.known(np.array([step.reward for step in self._steps], np.float32)), **records},
            group=context.index,
            source=SOURCES.index(quality),
            quality=quality,
            context=f"{task.name}#{task.seed}.{context.index}",
            split=context.split,
        )


def _after_first(values: np.ndarray) -> Column:
    """Turn values (T,) known after each step into a column (T+1,) that is unknown at the first observation."""
    return Column(values=np.concatenate([[np.float32(0)], values]), valid=np.arange(len(values) + 1) > 0)


def _frames(pictures: Sequence[np.ndarray], steps: Sequence[int]) -> ArrayFrames:
    values = np.stack(pictures)
    identity = hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
    return ArrayFrames(values=values, step=np.array(steps), identity=identity)


__all__ = ["Recording"]
