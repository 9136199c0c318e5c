"""Rollouts of a policy in simulated tasks: whole episodes for evaluation, pieces of episodes for training."""

from collections import deque
from collections.abc import Generator, Sequence

import numpy as np
import torch

from ...core.batch import Observation
from ...core.interfaces import Policy
from ...envs.saved import SavedState
from ...envs.task import ResumableTask
from ...envs.vector import Context
from .decisions import Acting, ActingAlone, Asked, Records
from .frames import RolloutFrames
from .pieces import Piece, batch_pieces, packed
from .simulators import Losses, Simulators
from .spares import Start

Rounds = Generator[Asked, Records, list[Piece]]
"""Rollouts in progress: yields what the policy must decide on, takes its decisions, and returns pieces in the end."""


class Runner:
    """Runner of several simulators with one policy, decision by decision.

    In each round the policy decides once in every running environment, and each environment then executes as many steps
    as its decision says. So a rollout is only cut between decisions, and decisions may execute different numbers of
    steps.

    A simulator that fails is built again. In training its episode is given up and counted in ``lost``; a whole episode
    that was asked for is played again from its context.

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
        numbers = [(first + i) % len(names) for i in range(envs)]
        self.simulators = Simulators(
            [(k, names[k]) for k in numbers], horizon, end_on_success, task_seed, frames, spares, first
        )
        self._drawn_from: list[Context] | None = None  # contexts of the episodes that are being prepared
        self._ahead: deque[Context] = deque()  # contexts that were drawn before an interruption, and not used

    @property
    def lost(self) -> Losses:
        """Episodes that were given up since the runner was made."""
        return self.simulators.lost

    @property
    def prepared(self) -> list[Context]:
        """Contexts that were drawn for episodes to come."""
        return [*self.simulators.prepared, *self._ahead]

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
            RuntimeError: If a simulator fails several times in a row.
        """
        return decided(self.collecting(steps, contexts, generator), Acting(policy, generator))

    def collecting(
        self,
        steps: int,
        contexts: Sequence[Context],
        generator: torch.Generator,
        weights: Sequence[float] | None = None,
    ) -> Rounds:
        """Start rollouts that are cut after about ``steps`` steps; see ``collect``.

        Args:
            steps: Number of environment steps over all environments.
            contexts: Initial states that new episodes are drawn from, each environment's from those of its task.
            generator: Random generator of the draws.
            weights: Weight of each initial state, 0 or more, not all 0 in a task; None draws all alike. They do not
                change what spare simulators have begun.
        """
        mine = _by_task(contexts)
        chances = None if weights is None else _weights_by_task(contexts, weights)
        for name in dict.fromkeys(task.name for task in self.simulators.tasks):
            if name not in mine:
                raise ValueError(
                    f"{name}: expected contexts of this task, got {len(contexts)} of {', '.join(mine) or 'none'}; use "
                    "its own contexts()"
                )

        def draw(name: str) -> Start:
            for context in self._ahead:
                if context.task == name:
                    self._ahead.remove(context)
                    return Start(context=context)
            own = mine[name]
            if chances is None:
                return Start(context=own[int(torch.randint(len(own), (), generator=generator))])
            return Start(context=own[int(torch.multinomial(chances[name], 1, generator=generator))])

        simulators = self.simulators
        if self._drawn_from is not None and self._drawn_from != list(contexts):
            simulators.drop_prepared()
            self._ahead.clear()
        self._drawn_from = list(contexts)
        done: list[Piece] = []
        taken = 0
        while taken < steps:
            for i, piece in enumerate(simulators.open):
                if piece is None:
                    simulators.begin(i, draw)
            came, ended = yield from self._round()
            taken += came
            done += ended
        for i in range(len(simulators)):
            simulators.look(i)
        going_on = [piece for piece in simulators.open if piece is not None]
        simulators.encode([*done, *going_on])
        handed = [packed(piece) for piece in (*done, *going_on)]
        for piece in going_on:
            piece.fresh = len(piece.actions)
        return handed

    def play(
        self,
        policy: Policy,
        contexts: Sequence[Context],
        generator: torch.Generator,
        deterministic: bool = True,
        draws: Sequence[int] | None = None,
        one_by_one: bool = False,
        places: Sequence[int] | None = None,
    ) -> list[Piece]:
        """Play one whole episode from every context; episodes in progress wait meanwhile.

        Args:
            policy: Policy that acts.
            contexts: Initial states.
            generator: Random generator of the policy's noise.
            deterministic: Take the policy's deterministic chunks.
            draws: Number of the draw of each context, which becomes the group of its row; None groups by context.
            one_by_one: Decide on one observation at a time, with the noise of every episode from a generator of its
                own, seeded by (initial seed of ``generator``, place). An episode is then the same whatever else is
                played, here or in other processes.
            places: Place of each context among those of all processes, for its noise; None numbers them here.

        Returns:
            One piece per context, in their order.

        Raises:
            ValueError: If no environment here plays the task of a context.
            RuntimeError: If a simulator fails several times in a row.
        """
        acting: Acting | ActingAlone = Acting(policy, generator, deterministic)
        if one_by_one:
            acting = ActingAlone(policy, generator.initial_seed(), deterministic, places)
        return decided(self.playing(contexts, draws, one_by_one), acting)

    def playing(self, contexts: Sequence[Context], draws: Sequence[int] | None = None, alone: bool = False) -> Rounds:
        """Start whole episodes; see ``play``. Episodes in progress are saved before and restored afterwards.

        Args:
            contexts: Initial states.
            draws: Number of the draw of each context; None groups by context.
            alone: Encode the frames of each environment by themselves.
        """
        simulators = self.simulators
        waiting: dict[str, deque[Start]] = {task.name: deque() for task in simulators.tasks}
        for place, context in enumerate(contexts):
            if context.task not in waiting:
                raise ValueError(f"no environment plays {context.task}: they play {', '.join(waiting)}")
            draw = None if draws is None else draws[place]
            waiting[context.task].append(Start(context=context, place=place, draw=draw))
        saved = self._set_aside()
        simulators.plays_again = True
        starts: dict[int, Start] = {}  # of the episode that each environment plays
        done: dict[int, Piece] = {}

        def take(name: str) -> Start | None:
            return waiting[name].popleft() if waiting[name] else None

        try:
            while True:
                for i, piece in enumerate(simulators.open):
                    if piece is not None:
                        continue
                    if i in starts:  # its simulator failed: once more
                        waiting[simulators.tasks[i].name].appendleft(starts.pop(i))
                    start = simulators.begin(i, take)
                    if start is not None:
                        starts[i] = start
                if all(piece is None for piece in simulators.open):
                    return [done[place] for place in range(len(contexts))]
                _, ended = yield from self._round([s.place for _, s in sorted(starts.items())], alone)
                simulators.encode(ended, alone)
                for piece in ended:
                    done[starts.pop(piece.env - simulators.first).place] = packed(piece)
        finally:
            simulators.plays_again = False
            self._take_up(saved)

    def restore(self, pieces: Sequence[Piece], prepared: Sequence[Context] = ()) -> int:
        """Repeat unfinished episodes from their contexts, so that the next ``collect`` goes on with them.

        Args:
            pieces: Unfinished episodes that ``collect`` returned; each goes to a free environment of its task, to that
                which played it if it is here. What finds no environment is counted as lost.
            prepared: Contexts that were drawn for episodes to come.

        Returns:
            Number of episodes that go on.
        """
        simulators, found = self.simulators, 0
        simulators.drop_prepared()
        simulators.open = [None] * len(simulators)
        self._drawn_from, self._ahead = None, deque(prepared)
        for piece in pieces:
            own = piece.env - simulators.first
            places = [own, *range(len(simulators))] if 0 <= own < len(simulators) else range(len(simulators))
            free = (i for i in places if simulators.open[i] is None and simulators.tasks[i].name == piece.context.task)
            place = next(free, None)
            if place is None:
                self.lost.add(f"{piece.context.task}: no environment is free for an episode in progress", 0)
            else:
                found += simulators.replay(place, piece)
        return found

    def _set_aside(self) -> "list[tuple[Piece | None, SavedState | None]]":
        """Save every episode in progress, and free its environment."""
        simulators = self.simulators
        self._ahead = deque(self.prepared)
        simulators.drop_prepared()
        saved: list[tuple[Piece | None, SavedState | None]] = []
        for task, piece in zip(simulators.tasks, simulators.open, strict=True):
            saved.append((piece, task.save() if isinstance(task, ResumableTask) and piece is not None else None))
        simulators.open = [None] * len(simulators)
        return saved

    def _take_up(self, saved: "Sequence[tuple[Piece | None, SavedState | None]]") -> None:
        """Restore every episode that was set aside; one of a task that cannot be saved is repeated."""
        simulators = self.simulators
        simulators.drop_prepared()
        simulators.open = [None] * len(simulators)
        for i, (piece, state) in enumerate(saved):
            task = simulators.tasks[i]
            if piece is None:
                continue
            if state is not None and isinstance(task, ResumableTask):
                task.restore(state)
                simulators.open[i] = piece
            else:
                simulators.replay(i, piece)

    def _round(
        self, places: Sequence[int] | None = None, alone: bool = False
    ) -> Generator[Asked, Records, tuple[int, list[Piece]]]:
        """Let the policy decide in every running environment and execute it.

        Returns:
            The number of environment steps, and the pieces of the episodes that ended.
        """
        simulators = self.simulators
        rows = [i for i, piece in enumerate(simulators.open) if piece is not None]
        pieces = [piece for piece in simulators.open if piece is not None]
        for i in rows:
            simulators.look(i)
        simulators.encode(pieces, alone)
        features = {name: _latest([p.features[name] for p in pieces]) for name in pieces[0].features}
        observation = Observation(
            state=torch.from_numpy(np.stack([piece.state[-1] for piece in pieces])),
            frames={} if features else {c: _latest([p.frames[c] for p in pieces]) for c in pieces[0].frames},
            features=features,
            instructions=tuple(piece.instruction for piece in pieces),
        )
        records = yield Asked(
            observation=observation,
            places=tuple(range(len(rows)) if places is None else places),
            steps=tuple(len(piece.actions) for piece in pieces),
        )
        chunk = np.minimum(np.maximum(records.chunk, simulators.low[rows][:, None]), simulators.high[rows][:, None])
        taken, ended = 0, list[Piece]()
        for k, (i, piece) in enumerate(zip(rows, pieces, strict=True)):
            piece.decision_step.append(len(piece.actions))
            for name, part in records.behaviour.items():
                held = piece.behaviour.get(name)
                if not isinstance(held, list):
                    held = piece.behaviour[name] = [] if held is None else list(held)
                held.append(part[k])
            done, steps = simulators.execute(i, chunk[k, : records.executed[k]])
            taken += steps
            if done is not None:
                ended.append(done)
        return taken, ended

    def close(self) -> None:
        """Close every simulator, and end the thread of the spares."""
        self.simulators.close()


def decided(rounds: Rounds, acting: Acting | ActingAlone) -> list[Piece]:
    """Let a policy decide in this process until rollouts are done, and return their pieces.

    Args:
        rounds: Rollouts that were started.
        acting: Policy that decides.
    """
    try:
        asked = next(rounds)
        while True:
            asked = rounds.send(acting(asked))
    except StopIteration as done:
        return done.value
    finally:
        rounds.close()


def _latest(shown: Sequence[Sequence[np.ndarray] | np.ndarray]) -> torch.Tensor:
    """Stack the latest frame or feature of each episode."""
    return torch.from_numpy(np.stack([held[-1] for held in shown]))


def _by_task(contexts: Sequence[Context]) -> dict[str, list[Context]]:
    """Sort contexts by task, each in their order."""
    found: dict[str, list[Context]] = {}
    for context in contexts:
        found.setdefault(context.task, []).append(context)
    return found


def _weights_by_task(contexts: Sequence[Context], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Sort the weights of contexts by task, in the order of ``_by_task``."""
    found: dict[str, list[float]] = {}
    for context, weight in zip(contexts, weights, strict=True):
        found.setdefault(context.task, []).append(weight)
    return {task: torch.tensor(own, dtype=torch.float64) for task, own in found.items()}


def split_evenly(total: int, parts: int) -> list[int]:
    """Split a number into whole numbers that differ by at most one.

    Args:
        total: Number that is split.
        parts: Number of parts.
    """
    return [total // parts + (i < total % parts) for i in range(parts)]


__all__ = ["Piece", "Rounds", "Runner", "batch_pieces", "decided", "split_evenly"]
