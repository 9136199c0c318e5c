"""Links to the hosts of rollouts: in this process, or in a process of its own."""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

import torch

from ...core.interfaces import Policy
from .decisions import Asked, Records
from .host import Answer, Host, Order, Restore
from .setting import TaskSetting


class WorkerError(RuntimeError):
    """Failure of a worker; the message holds its traceback."""


class LinkDownError(RuntimeError):
    """A worker is dead or does not answer; it can be started again."""


Message = Order | Restore | Records
Reply = Answer | Asked


@runtime_checkable
class Link(Protocol):
    """Link to a host: takes one message, and gives its reply when it is asked for."""

    def send(self, message: Message, weights: Any) -> None:
        """Send a message.

        Args:
            message: Order, or decisions on what the host asked.
            weights: Policy that decides there, as `packed_policy` packed it; None if it decides elsewhere.
        """
        ...

    def receive(self) -> Reply:
        """Wait for the reply.

        Raises:
            WorkerError: If the host failed; it goes on.
            LinkDownError: If the worker is dead or hangs.
        """
        ...

    def restart(self) -> None:
        """Start the worker again, with new environments."""
        ...

    def close(self) -> None:
        """End the worker."""
        ...


class InProcess:
    """Link to a host in this process, which works when its reply is asked for.

    Args:
        setting: Tasks that are run.
        envs: Number of environments.
        first: Number of the first among those of all processes.
    """

    def __init__(self, setting: TaskSetting, envs: int, first: int = 0) -> None:
        self.host = Host(setting, envs, first)
        _ = self.host.runner  # what is wrong with a setting fails here
        self._message: tuple[Message, Any] | None = None

    def send(self, message: Message, weights: Policy | None) -> None:
        """Keep the message; the policy is not copied."""
        self._message = (message, weights)

    def receive(self) -> Reply:
        """Carry out the message; errors are the host's own."""
        assert self._message is not None
        message, policy = self._message
        self._message = None
        return answer_to(self.host, message, policy)

    def restart(self) -> None:
        """Build new environments."""
        self.host.close()
        self.host = Host(self.host.setting, self.host.envs, self.host.first)

    def close(self) -> None:
        """Free the simulators."""
        self.host.close()


class ProcessLink:
    """Link to a host in a process of its own.

    Args:
        setting: Tasks that are run.
        envs: Number of environments of the process.
        first: Number of the first among those of all processes.
        patience: Time in seconds without a step or decision after which the process counts as hanging; None waits for
            ever.
    """

    def __init__(self, setting: TaskSetting, envs: int, first: int, patience: float | int | None = None) -> None:
        self._setting, self._envs, self._first, self.patience = setting, envs, first, patience
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._link, theirs = spawn.Pipe()
        self._beats = spawn.Value("L", 0, lock=False)
        arguments = (theirs, self._beats, self._setting, self._envs, self._first, os.getcwd(), os.getpid())
        self.process = spawn.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self._sent = True

    def send(self, message: Message, weights: bytes | None) -> None:
        """Send a message; a dead process is noticed with the reply."""
        try:
            self._link.send((message, weights))
            self._sent = True
        except OSError:
            self._sent = False

    def receive(self) -> Reply:
        """Wait for the reply."""
        if not self._sent:
            raise self._dead()
        try:
            wait_for_reply(self._link.poll, lambda: int(self._beats.value), self.patience, "a worker process")
            reply = self._link.recv()
        except (EOFError, OSError):
            raise self._dead() from None
        if isinstance(reply, str):
            raise WorkerError(f"a worker process failed:\n{reply}")
        return reply

    def _dead(self) -> LinkDownError:
        self.process.join(timeout=1)
        code = self.process.exitcode
        why = "out of memory, or killed"
        if code == 1:  # it ended by itself, as a script that makes workers when it is imported does
            why = 'see what it printed; a script that makes workers must do so under `if __name__ == "__main__":`'
        return LinkDownError(f"a worker process died (exit code {code}): {why}")

    def restart(self) -> None:
        """Kill the process and start another."""
        self.close(patience=0)
        self._start()

    def hang_up(self) -> None:
        """Close the link, at which the process ends unless it is in the middle of an order."""
        self._link.close()

    def close(self, patience: float | int = 2) -> None:
        """End the process; one in the middle of an order that is not needed any more is killed.

        Args:
            patience: Time in seconds that it may take.
        """
        self._link.close()
        if patience:
            self.process.join(timeout=patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def wait_for_reply(
    ready: Callable[[float], object], beats: Callable[[], int], patience: float | int | None, what: str
) -> None:
    """Wait until there is a reply, as long as steps are taken meanwhile; the start may take any time.

    Args:
        ready: Function that waits for the reply for a time in seconds, and returns whether it is there.
        beats: Function that returns the number of signs of life so far, 0 before the first step.
        patience: Time in seconds without a sign of life after which the worker counts as hanging; None waits for ever.
        what: Name of the kind of worker, for the error.

    Raises:
        LinkDownError: If the worker hangs.
    """
    before, since = -1, time.monotonic()
    while not ready(1.0 if patience is None else min(1.0, patience)):
        now = beats()
        if now != before:
            before, since = now, time.monotonic()
        elif patience is not None and now and time.monotonic() - since > patience:
            raise LinkDownError(f"{what} took no step for {patience:g} s: a simulator hangs")


def answer_to(host: Host, message: Message, policy: Policy | None) -> Reply:
    """Let a host carry out a message.

    Args:
        host: Host.
        message: Order, or decisions.
        policy: Policy that decides here; None if it decides elsewhere.
    """
    if isinstance(message, Restore):
        return host.restore(message)
    if isinstance(message, Records):
        return host.go_on(message)
    return host.begin(message) if policy is None else host.carry_out(message, policy)


def packed_policy(policy: Policy) -> bytes:
    """Pickle a policy by value: torch's own way would share memory with the policy in training."""
    return pickle.dumps(policy)


def _beater(beats: Any, parent: int) -> Callable[[], None]:
    """Make the function that shows that this process is alive, and ends it when its parent is gone."""

    def beat() -> None:
        beats.value += 1
        if os.getppid() != parent:
            os._exit(1)

    return beat


def _work(link: Connection, beats: Any, setting: TaskSetting, envs: int, first: int, folder: str, parent: int) -> None:
    """Run a worker: build the environments, and answer until the link closes.

    Ctrl-C and SIGTERM are handled by the parent, which may want to save first; a worker ends with its link.

    Args:
        link: Link to the parent.
        beats: Counter of signs of life.
        setting: Tasks that are run.
        envs: Number of environments of this worker.
        first: Number of its first environment.
        folder: Current folder of the parent, from which it may import tasks.
        parent: Process of the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir(folder)  # a spawned process starts where its parent started, not where that is now
    torch.set_num_threads(1)
    host = Host(setting, envs, first, _beater(beats, parent))
    while True:
        try:
            message, weights = link.recv()
        except (EOFError, OSError):
            break
        try:
            policy = None if weights is None else pickle.loads(weights)
            reply: object = answer_to(host, message, policy)
        except Exception:
            host.abandon()
            reply = traceback.format_exc()
        try:
            link.send(reply)
        except OSError:
            break
    os._exit(0)  # simulators' own clean-up at exit may hang without a display


__all__ = [
    "InProcess",
    "Link",
    "LinkDownError",
    "Message",
    "ProcessLink",
    "Reply",
    "WorkerError",
    "packed_policy",
    "wait_for_reply",
]
