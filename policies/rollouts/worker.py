"""One worker of a pool: its link, its unfinished episodes, and what is done when it dies or hangs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...core.interfaces import Policy
from .alone import device_of
from .decisions import Asked, Records, hash_seed
from .host import Answer, Collect, Order, Restore
from .links import Link, LinkDownError, Reply, WorkerError
from .simulators import Losses

MOST_RESTARTS = 2
"""Number of times that a worker is started again for one order before its failure is raised."""


class Worker:
    """Worker of a pool, which is started again where it dies or hangs.

    It then repeats its unfinished episodes and its order, so that the result is that of an undisturbed run. If it fails
    again, its unfinished episodes are given up, and it collects with another seed. A third failure is raised.

    Args:
        link: Link to its host.
        count: Function that is called with what was lost.
        tell: Function that is called with the reason of a restart.
    """

    def __init__(self, link: Link, count: Callable[[Losses], None], tell: Callable[[str], None]) -> None:
        self.link, self._count, self._tell = link, count, tell
        self.unfinished = Answer()
        """Episodes that go on in the next rollouts, and the contexts drawn for those to come."""
        self.busy = False
        """Whether an order is being carried out."""
        self._order: Order | Restore = Restore(pieces=())
        self._weights: Any = None
        self._policy: Policy | None = None
        self._decide: Callable[[Asked], Records] | None = None
        self._reasons: list[str] = []

    def begin(self, order: Order | Restore, weights: Any, policy: Policy | None = None) -> None:
        """Send an order.

        Args:
            order: Order.
            weights: Policy that decides there, as the link takes it; None if it decides here.
            policy: Policy that decides here; None if it decides there.
        """
        self._order, self._weights, self._policy, self._reasons, self.busy = order, weights, policy, [], True
        self._start()

    def reply(self) -> Reply:
        """Wait for the answer, or for the next question; start the worker again where it is down.

        Raises:
            WorkerError: If it failed, or is down again and again.
        """
        while True:
            try:
                reply = self.link.receive()
            except LinkDownError as error:
                self._again(error)
                continue
            except BaseException:
                self.busy = False
                raise
            if isinstance(reply, Answer):
                self.busy = False
                self._count(reply.lost)
            return reply

    def decide(self, question: Asked) -> None:
        """Decide on what the worker asked, and send the decisions."""
        assert self._decide is not None
        self.link.send(self._decide(question), None)

    def restore(self, unfinished: Answer) -> None:
        """Send the order to repeat unfinished episodes."""
        self.unfinished = unfinished
        self.begin(Restore(pieces=unfinished.pieces, prepared=unfinished.prepared), None)

    def _start(self) -> None:
        """Send the order, with new noise for a policy that decides here."""
        if self._policy is not None and not isinstance(self._order, Restore):
            self._decide = _decider(self._order, self._policy)
        self.link.send(self._order, self._weights)

    def _again(self, error: LinkDownError) -> None:
        """Start the worker again, and send its unfinished episodes and its order."""
        while True:
            self._reasons.append(str(error))
            if len(self._reasons) > MOST_RESTARTS:
                self.busy = False
                raise WorkerError(
                    f"{self._reasons[-1]}; it was started again {MOST_RESTARTS} times for the same order, before "
                    f"because {self._reasons[0]}"
                ) from None
            self._tell(f"{self._reasons[-1]}; it is started again")
            try:
                self.link.restart()
                if len(self._reasons) > 1:
                    self._give_up()
                if not isinstance(self._order, Restore) and (self.unfinished.pieces or self.unfinished.prepared):
                    self.link.send(Restore(pieces=self.unfinished.pieces, prepared=self.unfinished.prepared), None)
                    answer = self.link.receive()
                    assert isinstance(answer, Answer)
                    self._count(answer.lost)
                self._start()
                return
            except LinkDownError as next_error:
                error = next_error

    def _give_up(self) -> None:
        """Give up unfinished episodes that may be why the worker failed twice, and collect with another seed."""
        lost = Losses()
        for piece in self.unfinished.pieces:
            lost.add(f"{piece.context.task}: an episode in progress was given up, its worker failed twice", 0)
        self._count(lost)
        self.unfinished = Answer()
        if isinstance(self._order, Collect):
            self._order = replace(self._order, seed=hash_seed(self._order.seed, 1))
        if isinstance(self._order, Restore):
            self._order = Restore(pieces=())


def _decider(order: Order, policy: Policy) -> Callable[[Asked], Records]:
    """Make what decides here for one worker."""
    acting = order.acting(policy, torch.Generator().manual_seed(order.seed))
    device = device_of(policy)
    if device.type == "cpu":
        return acting
    return lambda asked: acting(replace(asked, observation=asked.observation.to(device)))


__all__ = ["MOST_RESTARTS", "Worker"]
