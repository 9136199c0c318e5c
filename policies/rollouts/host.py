"""Orders for rollouts, and the host that carries them out in one process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ...core.interfaces import Policy
from ...envs.task import Context
from .decisions import Acting, ActingAlone, Asked, Records
from .pieces import Piece
from .runner import Rounds, Runner, decided
from .setting import TaskSetting
from .simulators import Losses


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Order of rollouts that are cut after a number of steps."""

    steps: int
    """Number of environment steps."""
    contexts: Sequence[Context]
    """Initial states that new episodes are drawn from."""
    seed: int
    """Random seed of contexts and noise."""
    version: int | None = None
    """Version of the policy, recorded with each decision."""
    weights: Sequence[float] | None = None
    """Weight of each initial state in the draws; None draws all alike."""

    def start(self, runner: Runner) -> tuple[Rounds, torch.Generator]:
        """Start the rollouts; return them, and the generator of the policy's noise."""
        generator = torch.Generator().manual_seed(self.seed)
        return runner.collecting(self.steps, self.contexts, generator, self.weights), generator

    def acting(self, policy: Policy, generator: torch.Generator) -> Acting:
        """Make what decides."""
        return Acting(policy, generator, version=self.version)


@dataclass(frozen=True, kw_only=True)
class Play:
    """Order of whole episodes."""

    contexts: Sequence[Context]
    """Initial states."""
    seed: int
    """Random seed of the policy's noise."""
    deterministic: bool = True
    """Take the policy's deterministic chunks."""
    draws: Sequence[int] | None = None
    """Number of the draw of each context, which becomes the group of its row."""
    numbers: Sequence[int] | None = None
    """Number of each episode in the whole order; the policy then decides on one observation at a time, with noise that
    depends on the seed and this number alone. None decides on all observations at once."""
    version: int | None = None
    """Version of the policy, recorded with each decision."""

    def start(self, runner: Runner) -> tuple[Rounds, torch.Generator]:
        """Start the episodes; return them, and the generator of the policy's noise."""
        return runner.playing(self.contexts, self.draws, self.numbers is not None), torch.Generator().manual_seed(
            self.seed
        )

    def acting(self, policy: Policy, generator: torch.Generator) -> Acting | ActingAlone:
        """Make what decides."""
        if self.numbers is not None:
            return ActingAlone(policy, self.seed, self.deterministic, self.numbers, self.version)
        return Acting(policy, generator, self.deterministic, self.version)


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Order to repeat unfinished episodes from their contexts."""

    pieces: Sequence[Piece]
    """Unfinished episodes."""
    prepared: Sequence[Context] = ()
    """Contexts that were drawn for episodes to come."""


Order = Collect | Play


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of an order."""

    pieces: list[Piece] = field(default_factory=list[Piece])
    """Pieces, packed."""
    prepared: list[Context] = field(default_factory=list[Context])
    """Contexts that are drawn for episodes to come."""
    lost: Losses = field(default_factory=Losses)
    """What was lost since the answer before."""
    seconds: float = 0.0
    """Time that the order took, in seconds."""


class Host:
    """Host of the environments of one process: carries out one order after the other.

    Args:
        setting: Tasks that are run; they are built with the first order.
        envs: Number of environments.
        first: Number of the first among those of all processes.
        beat: Function that is called after every round, to show that the host is alive; None shows nothing.
    """

    def __init__(self, setting: TaskSetting, envs: int, first: int = 0, beat: Callable[[], None] | None = None) -> None:
        self.setting, self.envs, self.first, self.beat = setting, envs, first, beat
        self._runner: Runner | None = None
        self._rounds: Rounds | None = None
        self._begun = 0.0

    @property
    def runner(self) -> Runner:
        """Environments, built when they are first asked for."""
        if self._runner is None:
            self._runner = self.setting.runner(self.envs, self.first)
            self._runner.simulators.beat = self.beat
        return self._runner

    def carry_out(self, order: Order, policy: Policy) -> Answer:
        """Carry out an order with a policy that decides here.

        Args:
            order: Order.
            policy: Policy, in evaluation mode.
        """
        self._begun = time.perf_counter()
        rounds, generator = order.start(self.runner)
        return self._answer(decided(rounds, order.acting(policy, generator)))

    def begin(self, order: Order) -> Asked | Answer:
        """Begin an order whose policy decides elsewhere; return the first observations, or the answer."""
        self.abandon()
        self._begun = time.perf_counter()
        self._rounds, _ = order.start(self.runner)
        return self._until_asked(None)

    def go_on(self, records: Records) -> Asked | Answer:
        """Execute decisions that were made elsewhere; return the next observations, or the answer."""
        return self._until_asked(records)

    def _until_asked(self, records: Records | None) -> Asked | Answer:
        assert self._rounds is not None
        try:
            return next(self._rounds) if records is None else self._rounds.send(records)
        except StopIteration as done:
            self._rounds = None
            return self._answer(done.value)

    def abandon(self) -> None:
        """Give up an order that was begun."""
        if self._rounds is not None:
            self._rounds.close()
            self._rounds = None

    def restore(self, order: Restore) -> Answer:
        """Repeat unfinished episodes, so that the next order goes on with them."""
        self._begun = time.perf_counter()
        self.runner.restore(order.pieces, order.prepared)
        return self._answer([])

    def _answer(self, pieces: list[Piece]) -> Answer:
        runner = self.runner
        lost, runner.simulators.lost = runner.simulators.lost, Losses()
        return Answer(pieces=pieces, prepared=runner.prepared, lost=lost, seconds=time.perf_counter() - self._begun)

    def close(self) -> None:
        """Free the simulators."""
        self.abandon()
        if self._runner is not None:
            self._runner.close()
            self._runner = None


__all__ = ["Answer", "Collect", "Host", "Order", "Play", "Restore"]
