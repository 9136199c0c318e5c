"""Simulators of one process and their episodes: begun, stepped chunk by chunk, and built again after a crash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.batch import End
from ...envs.task import Context, Task
from ...envs.vector import check_same_sizes, make_task, sizes_of
from .frames import Eye, RolloutFrames
from .pieces import Piece
from .spares import Prepared, Spares, Start, Supply

MOST_FAILURES = 3
"""Failures of one environment in a row after which its error is raised: the simulator will not recover."""


@dataclass
class Losses:
    """What was lost because simulators or processes failed."""

    fragments: int = 0
    """Number of episodes that were given up, or begun again."""
    steps: int = 0
    """Number of their environment steps that were not handed out."""
    reasons: list[str] = field(default_factory=list[str])
    """Reason of each, in one line."""

    def add(self, reason: str, steps: int) -> None:
        """Count one episode.

        Args:
            reason: Reason in one line.
            steps: Number of its steps that were not handed out.
        """
        self.fragments += 1
        self.steps += steps
        self.reasons.append(reason)

    def merge(self, other: "Losses") -> None:
        """Add what was lost elsewhere."""
        self.fragments += other.fragments
        self.steps += other.steps
        self.reasons += other.reasons


class Simulators:
    """Simulators of this process, each with the episode that it plays.

    Args:
        names: Name of the task of each environment, see `guerdon.make_task`, and its number in the run.
        horizon: Time limit in control steps; None takes that of each task.
        end_on_success: Whether the first success ends an episode.
        task_seed: Seed that fixes the contexts.
        frames: Cameras that are rendered; None renders nothing.
        spares: Number of further simulators that reset in the background while the others play.
        first: Number of this process's first environment among those of all processes.

    Raises:
        ValueError: If a task is unknown, sizes differ, or a task lacks a camera.
    """

    def __init__(
        self,
        names: Sequence[tuple[int, str]],
        horizon: int | None,
        end_on_success: bool,
        task_seed: int,
        frames: RolloutFrames | None,
        spares: int,
        first: int,
    ) -> None:
        self._names, self._horizon, self._task_seed = [name for _, name in names], horizon, task_seed
        self.first = first
        """Number of the first environment among those of all processes."""
        self.numbers = [number for number, _ in names]
        """Number of the task of each environment in the run."""
        self.tasks = [self._build(name) for name in self._names]
        """Simulator of each environment."""
        check_same_sizes([sizes_of(task) for task in self.tasks])
        own = list(dict.fromkeys(self._names))
        idle = [self._build(own[j % len(own)]) for j in range(spares)]
        self._spares = Spares(idle) if spares else None
        self._eye = None if frames is None else Eye(frames, [*self.tasks, *idle])
        self.low = np.stack([task.action_low for task in self.tasks])
        """Smallest action of each environment, (n, A)."""
        self.high = np.stack([task.action_high for task in self.tasks])
        """Largest action of each environment, (n, A)."""
        self.end_on_success = end_on_success
        self.open: list[Piece | None] = [None] * len(self.tasks)
        """Episode of each environment; None where it is free."""
        self.lost = Losses()
        self.beat: Callable[[], None] | None = None
        """Function that is called after the steps of each decision, to show that this process is alive."""
        self.plays_again = False
        """Whether an episode whose simulator failed is played again from its start; it is not counted as lost then."""
        self._failures = [0] * len(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def _build(self, name: str) -> Task:
        return make_task(name, self._horizon, self._task_seed)

    def begin(self, index: int, supply: Supply) -> Start | None:
        """Begin the next episode in a free environment.

        Args:
            index: Number of the environment in this process.
            supply: Starts of the episodes to come.

        Returns:
            The start, or None where there is no more.
        """
        begun = self._reset(index, supply)
        if begun is None:
            return None
        tracks = begun.task.tracks()  # a reset returns the state only
        cameras = () if self._eye is None else self._eye.frames.cameras
        self.open[index] = Piece(
            context=begun.start.context,
            task=self.numbers[index],
            env=self.first + index,
            draw=begun.start.draw,
            instruction=begun.task.instruction,
            state=[np.array(begun.state, np.float32)],
            tracks=[_side_by_side(tracks.values())],
            track_widths={name: len(point) for name, point in tracks.items()},
            frames={camera: [] for camera in cameras},
            features={} if self._eye is None else {name: [] for name in self._eye.frames.feature_sizes},
        )
        return begun.start

    def _reset(self, index: int, supply: Supply) -> Prepared | None:
        """Reset a free environment, or exchange its simulator for one that was reset."""
        task = self.tasks[index]
        if self._spares is None:
            start = supply(task.name)
            return None if start is None else Prepared(start=start, task=task, state=task.reset(start.context))
        begun = self._spares.begin(task, supply)
        if begun is not None:
            self.tasks[index] = begun.task
        return begun

    def execute(self, index: int, actions: np.ndarray) -> tuple[Piece | None, int]:
        """Execute actions one after the other, until they are used up or the episode ends.

        An error of the simulator gives up the episode, and builds the simulator again.

        Args:
            index: Number of the environment in this process.
            actions: Actions (h, A) within the bounds.

        Returns:
            The piece if the episode ended, and the number of steps that were taken. Of an episode that was given up
            None, and its steps that will not be handed out, negative.

        Raises:
            RuntimeError: If the environment failed several times in a row.
        """
        piece, task = self.open[index], self.tasks[index]
        assert piece is not None
        # lists while it grows
        states, taken, tracks = _grown(piece.state), _grown(piece.actions), _grown(piece.tracks)
        piece.state, piece.actions, piece.tracks = states, taken, tracks
        before, horizon, eye = len(taken), task.horizon, self._eye
        for action in actions:
            try:
                step = task.step(action)
            except Exception as error:  # whatever a simulator raises: the rollouts of the others go on
                self._give_up(index, piece, error)
                return None, min(0, piece.fresh - before)
            states.append(np.array(step.state, np.float32))  # a copy: a simulator may use its buffer again
            tracks.append(_side_by_side(step.tracks.values()))
            taken.append(action)
            piece.reward.append(float(step.reward))
            success = bool(step.success)
            piece.success.append(success)
            if self.end_on_success and success:
                piece.end = End.SUCCESS
            elif step.terminated:
                piece.end = End.SUCCESS if success else End.FAILURE
            elif len(taken) >= horizon:
                piece.end = End.TIME_LIMIT
            ended = piece.end != End.CUT
            if eye is not None and (ended or eye.frames.due(len(taken))):
                self.look(index)
            if ended:
                self.open[index], self._failures[index] = None, 0
                break
        if self.beat is not None:
            self.beat()
        return (piece if piece.end != End.CUT else None), len(taken) - before

    def _give_up(self, index: int, piece: Piece, error: Exception) -> None:
        """Give up an episode whose simulator failed, and build the simulator again."""
        task = self.tasks[index]
        self._failures[index] += 1
        reason = f"{task.name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        if self._failures[index] >= MOST_FAILURES:
            raise RuntimeError(
                f"{task.name}, environment {piece.env}: the simulator failed {MOST_FAILURES} times in a row, last at "
                f"step {len(piece.actions)} of context {piece.context.index}: {type(error).__name__}: {error}"
            ) from error
        if self.plays_again:
            self.lost.reasons.append(f"{reason}; the simulator was built again, and its episode is played again")
        else:
            reason = f"{reason}; the simulator was built again, and its episode given up"
            self.lost.add(reason, max(0, len(piece.actions) - piece.fresh))
        self.open[index] = None
        try:
            task.close()
        except Exception:  # it is broken: there is nothing else to do with it
            pass
        self.tasks[index] = self._build(self._names[index])
        if self._eye is not None:
            self._eye = Eye(self._eye.frames, [self.tasks[index]])

    def look(self, index: int) -> None:
        """Render the current observation of an environment, unless that was done."""
        piece = self.open[index]
        if self._eye is None or piece is None:
            return
        step = len(piece.actions)
        if piece.frame_step and piece.frame_step[-1] == step:
            return
        for camera, frame in self._eye.render(self.tasks[index]).items():
            shown = piece.frames[camera] = _grown(piece.frames[camera])
            shown.append(frame)
        piece.frame_step.append(step)

    def encode(self, pieces: Sequence[Piece], alone: bool = False) -> None:
        """Encode the frames of episodes that are not encoded yet, if there is an encoder.

        Args:
            pieces: Episodes.
            alone: Encode those of each episode by themselves: a product of other rows may round differently.
        """
        frames = None if self._eye is None else self._eye.frames
        if frames is None or frames.encoder is None or not pieces:
            return
        if alone and len(pieces) > 1:
            for piece in pieces:
                self.encode([piece])
            return
        for camera, name in zip(frames.cameras, frames.feature_sizes, strict=True):
            waiting = [frame for piece in pieces for frame in piece.frames[camera]]
            if not waiting:
                continue
            encoded = iter(frames.encode(waiting))
            for piece in pieces:
                held = piece.features[name] = _grown(piece.features[name])
                held += [next(encoded) for _ in piece.frames[camera]]
                piece.frames[camera] = []

    def replay(self, index: int, piece: Piece) -> bool:
        """Bring an environment to where an unfinished episode was, by its reset and its actions.

        The states, rewards, success flags, tracks and frames of the piece are made again; its last state must be that
        of before, bit by bit.

        Args:
            index: Number of the environment in this process.
            piece: Unfinished episode of its task, as it was handed out; of its states only the last is used.

        Returns:
            Whether the episode goes on; otherwise the environment is free and the episode is counted as lost.
        """
        self.open[index] = None
        wanted, shown = np.asarray(piece.state[-1]), set(piece.frame_step)
        start = Start(context=piece.context, draw=piece.draw)
        spares, self._spares = self._spares, None  # the start is not one of those that are prepared
        try:
            self.begin(index, lambda name: start)
        finally:
            self._spares = spares
        made = self.open[index]
        assert made is not None
        made.decision_step, made.behaviour = list(piece.decision_step), dict(piece.behaviour)
        made.fresh, lost = len(piece.actions), self.lost.fragments  # all of it was handed out
        for number, action in enumerate(np.asarray(piece.actions, np.float32)):
            if number in shown:
                self.look(index)
            ended, steps = self.execute(index, action[None])
            if ended is not None or steps < 1:
                break
        if len(piece.actions) in shown:
            self.look(index)
        now = self.open[index]
        if now is not None and len(now.actions) == len(piece.actions) and np.array_equal(now.state[-1], wanted):
            return True
        self.open[index] = None
        name = self.tasks[index].name
        if self.lost.fragments == lost:  # a simulator that failed counted it already
            self.lost.add(f"{name}: an episode in progress could not be repeated to its last state", 0)
        return False

    @property
    def prepared(self) -> list[Context]:
        """Contexts of the episodes that spare simulators have begun, in their order."""
        return [] if self._spares is None else self._spares.prepared()

    def drop_prepared(self) -> None:
        """Give up the episodes that spare simulators have begun."""
        if self._spares is not None:
            self._spares.drop()

    def close(self) -> None:
        """Close every simulator, and end the thread of the spares."""
        if self._spares is not None:
            self._spares.close()
        for task in self.tasks:
            task.close()


_NO_TRACKS = np.zeros(0, np.float32)


def _grown(values: Any) -> list[Any]:
    """Return a list that can grow; an array becomes a list of its rows."""
    return values if isinstance(values, list) else list(values)  # pyright: ignore[reportUnknownVariableType]


def _side_by_side(points: Any) -> np.ndarray:
    """Concatenate along the last axis; no points give an empty array."""
    held = tuple(points)
    return np.concatenate(held, dtype=np.float32) if held else _NO_TRACKS


__all__ = ["MOST_FAILURES", "Losses", "Simulators"]
