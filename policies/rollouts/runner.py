"""Rollouts of a policy in simulated tasks: whole episodes for evaluation, pieces of episodes for training."""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch

from ...core.batch import Decision, End, Observation
from ...core.interfaces import Policy
from ...envs.vector import Context, VectorEnv, VectorStep, make_task
from .alone import decide_alone, episode_generator, global_noise_restored
from .frames import Eye, RolloutFrames
from .pieces import Piece, batch_pieces, snapshot
from .spares import Prepared, Spares, Start, Supply


class Runner:
    """Runner of several simulators with one policy, decision by decision.

    All simulators decide at the same moments, so that a rollout is only cut between decisions.

    Args:
        task: Name of the task, see `guerdon.make_task`, or names of several tasks with the same state and action
            sizes. Environment i plays task number (``first`` + i) modulo their number, so that each has its share.
        envs: Number of environments in this process.
        horizon: Time limit in control steps; None takes that of each task.
        end_on_success: Whether the first success ends an episode. False runs every episode to its time limit, so that
            its length shows nothing of its outcome.
        task_seed: Seed that fixes the contexts.
        frames: Cameras that are rendered; None renders nothing.
        spares: Number of further simulators that reset in the background while the others play; see
            `guerdon.policies.rollouts.spares.Spares`. They are dealt to the tasks as the environments are.
        first: Number of this process's first environment among those of all processes.

    Raises:
        ValueError: If a task is unknown, sizes differ, or a task lacks a camera.
    """

    def __init__(
        self,
        task: str | Sequence[str],
        envs: int,
        horizon: int | None = None,
        end_on_success: bool = True,
        task_seed: int = 0,
        frames: RolloutFrames | None = None,
        spares: int = 0,
        first: int = 0,
    ) -> None:
        names = (task,) if isinstance(task, str) else tuple(task)
        self._number = [(first + i) % len(names) for i in range(envs)]
        self.envs = VectorEnv([make_task(names[k], horizon, task_seed) for k in self._number])
        self.end_on_success = end_on_success
        self._open: list[Piece | None] = [None] * envs
        own = list(dict.fromkeys(self._number))
        idle = [make_task(names[own[j % len(own)]], horizon, task_seed) for j in range(spares)]
        self._spares = Spares(idle) if spares else None
        self._drawn_from: list[Context] | None = None  # contexts of the episodes that are being prepared
        self._eye = None if frames is None else Eye(frames, [*self.envs.tasks, *idle])
        self._alone: dict[int, torch.Generator] | None = None  # noise of each environment's episode, one by one

    def collect(
        self, policy: Policy, steps: int, contexts: Sequence[Context], generator: torch.Generator
    ) -> list[Piece]:
        """Act for about ``steps`` environment steps; unfinished episodes go on in the next call.

        An unfinished episode is returned as a cut piece. The next call returns it again from its start, with the steps
        that were returned before marked as context.

        Args:
            policy: Policy that acts.
            steps: Number of environment steps over all environments.
            contexts: Initial states that new episodes are drawn from, each environment's from those of its task.
            generator: Random generator of contexts and noise.

        Raises:
            ValueError: If there is no context of a task that is played here.
        """
        mine = _by_task(contexts)
        for name in dict.fromkeys(task.name for task in self.envs.tasks):
            if name not in mine:
                raise ValueError(
                    f"{name}: expected contexts of this task, got {len(contexts)} of {', '.join(mine) or 'none'}; use "
                    "its own contexts()"
                )

        def draw(name: str) -> Start:
            own = mine[name]
            return Start(context=own[int(torch.randint(len(own), (), generator=generator))])

        self._alone = None
        if self._spares is not None and self._drawn_from != list(contexts):
            self._spares.drop()
            self._drawn_from = list(contexts)
        done: list[Piece] = []
        taken = 0
        while taken < steps:
            for i, piece in enumerate(self._open):
                if piece is None:
                    self._start(i, draw)
            taken += self._round(policy, generator, deterministic=False, done=done)
        for i, piece in enumerate(self._open):
            if piece is not None:
                self._look(i, piece)
                done.append(snapshot(piece))
                piece.fresh = len(piece.actions)
        return done

    def play(
        self,
        policy: Policy,
        contexts: Sequence[Context],
        generator: torch.Generator,
        deterministic: bool = True,
        one_by_one: bool = False,
        places: Sequence[int] | None = None,
    ) -> list[Piece]:
        """Play one whole episode from every context; episodes in progress are dropped.

        Args:
            policy: Policy that acts.
            contexts: Initial states.
            generator: Random generator of the policy's noise.
            deterministic: Take the policy's deterministic chunks.
            one_by_one: Decide at one observation per forward pass, with the noise of every episode from a generator of
                its own, seeded by (initial seed of ``generator``, place). An episode is then the same whatever else is
                played, here or in other processes.
            places: Place of each context among those of all processes, for its noise; None numbers them here.

        Returns:
            One piece per context, in their order.

        Raises:
            ValueError: If no environment here plays the task of a context.
        """
        self._open = [None] * len(self.envs)
        if self._spares is not None:
            self._spares.drop()
            self._drawn_from = None
        waiting: dict[str, deque[Start]] = {task.name: deque() for task in self.envs.tasks}
        for place, context in enumerate(contexts):
            if context.task not in waiting:
                raise ValueError(f"no environment plays {context.task}: they play {', '.join(waiting)}")
            waiting[context.task].append(Start(context=context, place=place))

        def take(name: str) -> Start | None:
            return waiting[name].popleft() if waiting[name] else None

        number = range(len(contexts)) if places is None else places
        order: dict[int, int] = {}
        done: list[Piece] = []
        self._alone = {} if one_by_one else None
        with global_noise_restored(policy) if one_by_one else nullcontext():
            while True:
                for i, piece in enumerate(self._open):
                    start = self._start(i, take) if piece is None else None
                    if start is not None:
                        order[id(self._open[i])] = start.place
                        if self._alone is not None:
                            self._alone[i] = episode_generator(generator.initial_seed(), number[start.place])
                if all(piece is None for piece in self._open):
                    self._alone = None
                    return sorted(done, key=lambda piece: order[id(piece)])
                self._round(policy, generator, deterministic, done)

    def _start(self, index: int, supply: Supply) -> Start | None:
        """Begin the next episode in a free environment; return its start, or None where there is no more."""
        begun = self._begin(index, supply)
        if begun is None:
            return None
        tracks = begun.task.tracks()  # a reset returns the state only
        cameras = () if self._eye is None else self._eye.frames.cameras
        self._open[index] = Piece(
            context=begun.start.context,
            task=self._number[index],
            instruction=begun.task.instruction,
            state=[begun.state],
            tracks=[_side_by_side(list(tracks.values()))],
            track_widths={name: len(point) for name, point in tracks.items()},
            frames={camera: [] for camera in cameras},
        )
        return begun.start

    def _begin(self, index: int, supply: Supply) -> Prepared | None:
        """Reset a free environment, or exchange its simulator for one that was reset."""
        task = self.envs.tasks[index]
        if self._spares is None:
            start = supply(task.name)
            if start is None:
                return None
            return Prepared(start=start, task=task, state=self.envs.reset(index, start.context))
        begun = self._spares.begin(task, supply)
        if begun is not None:
            self.envs.exchange(index, begun.task, begun.state)
        return begun

    def _round(self, policy: Policy, generator: torch.Generator, deterministic: bool, done: list[Piece]) -> int:
        """Make one decision in every running environment and execute it; return the number of environment steps."""
        rows = [i for i, piece in enumerate(self._open) if piece is not None]
        decision = self._decide(policy, rows, generator, deterministic)
        chunk = decision.chunk.cpu().numpy()
        actions = np.zeros((len(self._open), chunk.shape[2]), np.float32)
        taken = 0
        for step in range(int(decision.executed[0])):
            actions[rows] = np.clip(chunk[:, step], self.envs.action_low[rows], self.envs.action_high[rows])
            running = np.array([piece is not None for piece in self._open])
            if not running.any():
                break
            self._record(self.envs.step(actions, running), actions, done)
            taken += int(running.sum())
        return taken

    def _decide(self, policy: Policy, rows: Sequence[int], generator: torch.Generator, deterministic: bool) -> Decision:
        """Let the policy decide in the environments ``rows``, and record what it returns.

        Raises:
            ValueError: If the policy would execute fewer steps in one environment than in another.
        """
        pieces = [_piece(self._open[i]) for i in rows]
        for i, piece in zip(rows, pieces, strict=True):
            self._look(i, piece)
        observation = Observation(
            state=torch.from_numpy(np.stack([piece.state[-1] for piece in pieces])),
            frames={c: torch.from_numpy(np.stack([p.frames[c][-1] for p in pieces])) for c in pieces[0].frames},
            instructions=tuple(piece.instruction for piece in pieces),
        )
        if self._alone is None:
            decision = policy.act(observation, deterministic, generator)
        else:
            noise = [self._alone[i] for i in rows]
            decision = decide_alone(policy, observation, noise, deterministic)
        executed = sorted(set(decision.executed.tolist()))
        if len(executed) != 1 or not 1 <= executed[0] <= decision.chunk.shape[1]:
            raise ValueError(
                f"expected decisions that execute one number of steps, 1 … {decision.chunk.shape[1]}, got {executed}: "
                "environments that decide at different moments cannot be stepped together; return one number for all"
            )
        recorded = {"sample": decision.chunk, "log_prob": decision.log_prob, **decision.extras}
        behaviour = {name: part.cpu().numpy() for name, part in recorded.items() if part is not None}
        for k, piece in enumerate(pieces):
            piece.decision_step.append(len(piece.actions))
            for name, part in behaviour.items():
                piece.behaviour.setdefault(name, []).append(part[k])
        return decision

    def _record(self, came: VectorStep, actions: np.ndarray, done: list[Piece]) -> None:
        """Append one step to every running episode, and close those that ended."""
        tracks: dict[tuple[str, ...], np.ndarray] = {}  # by their names, which are the same in one task
        for i, piece in enumerate(self._open):
            if piece is None:
                continue
            names = tuple(piece.track_widths)
            if names not in tracks:
                tracks[names] = _side_by_side([came.tracks[name] for name in names])
            piece.state.append(came.state[i])
            if names:
                piece.tracks.append(tracks[names][i])
            piece.actions.append(actions[i].copy())
            piece.reward.append(float(came.reward[i]))
            piece.success.append(bool(came.success[i]))
            if self.end_on_success and came.success[i]:
                piece.end = End.SUCCESS
            elif came.terminated[i]:
                piece.end = End.SUCCESS if came.success[i] else End.FAILURE
            elif came.truncated[i]:
                piece.end = End.TIME_LIMIT
            if piece.end != End.CUT:
                done.append(piece)
                self._open[i] = None
            if self._eye is not None and (piece.end != End.CUT or self._eye.frames.due(len(piece.actions))):
                self._look(i, piece)

    def _look(self, index: int, piece: Piece) -> None:
        """Render the current observation, unless that was done."""
        step = len(piece.actions)
        if self._eye is None or (piece.frame_step and piece.frame_step[-1] == step):
            return
        for camera, frame in self._eye.render(self.envs.tasks[index]).items():
            piece.frames[camera].append(frame)
        piece.frame_step.append(step)

    def close(self) -> None:
        """Close every simulator, and end the thread of the spares."""
        if self._spares is not None:
            self._spares.close()
        self.envs.close()


def _by_task(contexts: Sequence[Context]) -> dict[str, list[Context]]:
    """Sort contexts by task, each in their order."""
    found: dict[str, list[Context]] = {}
    for context in contexts:
        found.setdefault(context.task, []).append(context)
    return found


def _side_by_side(points: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate along the last axis; no points give an empty array."""
    return np.concatenate(points, -1, dtype=np.float32) if points else np.zeros(0, np.float32)


def _piece(piece: Piece | None) -> Piece:
    assert piece is not None
    return piece


def split_evenly(total: int, parts: int) -> list[int]:
    """Split a number into whole numbers that differ by at most one.

    Args:
        total: Number that is split.
        parts: Number of parts.
    """
    return [total // parts + (i < total % parts) for i in range(parts)]


__all__ = ["Piece", "Runner", "batch_pieces", "split_evenly"]
