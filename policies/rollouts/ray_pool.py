"""Rollouts on Ray actors, on this machine or on a cluster, behind the same pool as worker processes."""

import os
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ...core.sizes import DataSizes
from .host import Host
from .links import Link, LinkDownError, Message, Reply, WorkerError, answer_to, packed_policy, wait_for_reply
from .pool import WorkerPool
from .setting import TaskSetting


class RayPool(WorkerPool):
    """Pool of Ray actors that hold several environments each; see `WorkerPool`.

    Weights are put into Ray's object store once per order. An actor that dies is made again, as a worker process is.

    Args:
        setting: Tasks that are run.
        envs: Number of environments in all.
        workers: Number of actors, 1 or more.
        sizes: Names and sizes of the tasks, if they are known and checked.
        policy_stays: Whether the policy decides in this process.
        patience: Time in seconds without a step or decision after which an actor counts as hanging; None waits for
            ever.
        address: Address of a cluster, such as ``"HOST:6379"`` on one of its nodes or ``"ray://HOST:10001"`` from
            elsewhere; None takes a Ray that was initialised in this process or is named in the variable RAY_ADDRESS,
            and else starts one on this machine.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If no cluster answers at the address.
        ValueError: As `WorkerPool` does.
    """

    def __init__(
        self,
        setting: TaskSetting,
        envs: int,
        workers: int,
        sizes: Sequence[DataSizes] | None = None,
        policy_stays: bool = False,
        patience: float | int | None = 600.0,
        address: str | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers {workers}: expected at least one Ray actor")
        self._address = address
        super().__init__(setting, envs, workers, sizes, policy_stays, patience)

    def _connect(self, workers: int) -> list[Link]:
        """Start the actors."""
        ray = _ray()
        if not ray.is_initialized():
            found = self._address or os.environ.get("RAY_ADDRESS") or None
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if found is None:  # a Ray of our own: an actor for which there is no CPU would wait for ever
                quiet |= {"include_dashboard": False, "num_cpus": max(workers, os.cpu_count() or 1)}
            ray.init(address=found, **quiet)
        free = ray.cluster_resources().get("CPU", 0)
        if free < workers:
            warnings.warn(
                f"{workers} Ray actors need a CPU each, and the cluster has {free:g}: rollouts wait until it has more; "
                "lower workers, or add nodes",
                RuntimeWarning,
                stacklevel=3,
            )
        pairs = zip(self._share, self._first, strict=True)
        return [RayLink(self.setting, count, first, self._patience) for count, first in pairs]

    def _pack(self, policy: Any) -> Any:
        """Put the weights into the object store, from which all actors of a machine read them."""
        return _ray().put(packed_policy(policy))


class RayLink:
    """Link to a host in a Ray actor.

    Args:
        setting: Tasks that are run.
        envs: Number of environments of the actor.
        first: Number of the first among those of all actors.
        patience: Time in seconds without a step or decision after which the actor counts as hanging; None waits for
            ever.
    """

    def __init__(self, setting: TaskSetting, envs: int, first: int, patience: float | int | None = None) -> None:
        self._setting, self._envs, self._first, self.patience = setting, envs, first, patience
        self._reply: Any = None
        self.actor: Any = None
        self.restart()

    def send(self, message: Message, weights: Any) -> None:
        """Send a message; a dead actor is noticed with the reply."""
        self._reply = self.actor.answer.remote(message, weights)

    def receive(self) -> Reply:
        """Wait for the reply."""
        ray = _ray()
        reply, self._reply = self._reply, None
        try:
            wait_for_reply(
                lambda seconds: ray.wait([reply], timeout=seconds)[0],
                lambda: ray.get(self.actor.beats.options(concurrency_group="beats").remote()),
                self.patience,
                "a Ray actor",
            )
            return ray.get(reply)
        except ray.exceptions.RayTaskError as error:
            raise WorkerError(f"a Ray actor failed:\n{error}") from None
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise LinkDownError(f"a Ray actor died ({reason}): out of memory, or its machine is gone") from None

    def restart(self) -> None:
        """Make the actor, in place of one that died."""
        ray = _ray()
        if self.actor is not None:
            ray.kill(self.actor)
        # beats are answered in a thread of their own; rollouts stay in one thread, to which renderers are bound
        make = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={"beats": 1})(_Actor)
        self.actor = make.remote(self._setting, self._envs, self._first, os.getcwd())

    def close(self) -> None:
        """End the actor, also in the middle of an order."""
        _ray().kill(self.actor)


class _Actor:
    """Host in a Ray actor."""

    def __init__(self, setting: TaskSetting, envs: int, first: int, folder: str) -> None:
        if os.path.isdir(folder):  # on another machine it need not be there
            os.chdir(folder)
        torch.set_num_threads(1)
        self._beats = 0
        self.host = Host(setting, envs, first, self._beat)

    def _beat(self) -> None:
        self._beats += 1

    def beats(self) -> int:
        """Return the number of signs of life so far."""
        return self._beats

    def answer(self, message: Message, weights: bytes | None) -> Reply:
        """Carry out a message."""
        try:
            return answer_to(self.host, message, None if weights is None else pickle.loads(weights))
        except BaseException:
            self.host.abandon()
            raise


def make_pool(
    where: str,
    setting: TaskSetting,
    envs: int,
    workers: int,
    sizes: Sequence[DataSizes] | None = None,
    policy_stays: bool = False,
) -> WorkerPool:
    """Make the pool of a name.

    Args:
        where: ``"processes"``, ``"ray"``, or the address of a Ray cluster (``"HOST:6379"``, ``"ray://HOST:10001"``,
            ``"auto"``).
        setting: Tasks that are run.
        envs: Number of environments in all.
        workers: Number of processes or actors; 0 uses this process, or one actor.
        sizes: Names and sizes of the tasks, if they are known and checked.
        policy_stays: Whether the policy decides in this process.

    Raises:
        ValueError: If there is no pool of that name.
    """
    if where == "processes":
        return WorkerPool(setting, envs, workers, sizes, policy_stays)
    if where in ("ray", "auto") or ":" in where:
        address = None if where == "ray" else where
        return RayPool(setting, envs, max(1, workers), sizes, policy_stays, address=address)
    raise ValueError(f"pool {where!r}: expected processes, ray, or the address of a cluster such as HOST:6379")


def _ray() -> Any:
    """Import Ray, an extra.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Ray is not installed: pip install 'guerdon[ray]'", name="ray") from error
    return ray


__all__ = ["RayLink", "RayPool", "make_pool"]
