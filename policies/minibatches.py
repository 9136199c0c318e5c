"""Minibatches of the decisions of a batch, all of them taken out of the batch once."""

from collections.abc import Iterator, Sequence
from typing import cast

import lightning
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.batch import Advantages, Observation, TrajectoryBatch
from ..core.interfaces import Minibatch, Policy


class DecisionPoints:
    """Valid decisions of a batch, with their observations.

    Args:
        policy: Policy that is trained.
        batch: Trajectories.
        advantages: Advantages of their decisions; invalid ones are left out.
        learns: Whether the policy is trained on the batch.
        micro_batch: Largest number of decisions that are evaluated at a time; None evaluates all at once.
    """

    def __init__(
        self,
        policy: Policy,
        batch: TrajectoryBatch,
        advantages: Advantages,
        learns: bool,
        micro_batch: int | None = None,
    ) -> None:
        self._policy, self._learns, self._micro_batch = policy, learns, micro_batch
        self.rows, self.decisions = advantages.valid.nonzero(as_tuple=True)
        self._steps = batch.decision_step[self.rows, self.decisions]
        self._observation, self._decision = batch.at(self.rows, self._steps, policy.horizon)
        same = set(self._observation.instructions)
        # picking the same text out of a tuple would wait for the device, and costs more than all other parts
        self._instruction = same.pop() if len(same) == 1 else None

    def of(self, per_decision: Float[Tensor, "B N"]) -> Float[Tensor, " M"]:
        """Take the numbers of the valid decisions.

        Args:
            per_decision: A number per decision of the batch.
        """
        return per_decision[self.rows, self.decisions]

    def blocks(self) -> tuple[Int[Tensor, " _"], ...]:
        """Return the numbers of the valid decisions of each row that has any, on the host."""
        if not len(self.rows):
            return ()
        counts = torch.unique_consecutive(self.rows, return_counts=True)[1]
        return torch.arange(len(self.rows)).split(counts.tolist())

    def minibatch(self, chosen: Int[Tensor, " m"], host: Int[Tensor, " m"]) -> Minibatch:
        """Take a minibatch.

        Args:
            chosen: Numbers of its decisions among the valid ones.
            host: The same numbers on the host, where frames are.
        """
        return Minibatch(
            policy=self._policy,
            rows=self.rows[chosen],
            decisions=self.decisions[chosen],
            steps=self._steps[chosen],
            observation=self._observed(chosen, host),
            decision=self._decision[chosen],
            learns=self._learns,
            micro_batch=self._micro_batch,
        )

    def _observed(self, chosen: Tensor, host: Tensor) -> Observation:
        whole = self._observation
        if self._instruction is None:
            instructions = tuple(whole.instructions[i] for i in host.tolist())
        else:
            instructions = (self._instruction,) * len(host)
        return Observation(
            state=whole.state[chosen],
            frames={name: _picked(values, chosen, host) for name, values in whole.frames.items()},
            features={name: _picked(values, chosen, host) for name, values in whole.features.items()},
            instructions=instructions,
        )


def shuffled(
    count: int,
    each: int,
    passes: int,
    seed: int,
    device: torch.device,
    blocks: Sequence[Int[Tensor, " _"]] | None = None,
) -> Iterator[tuple[Int[Tensor, " m"], Int[Tensor, " m"]]]:
    """Yield minibatches of shuffled numbers below ``count``, on the device and on the host.

    Args:
        count: Number of decisions, or of blocks.
        each: Number of minibatches in a pass.
        passes: Number of passes; each draws an order of its own.
        seed: Random seed of the orders.
        device: Device of the first tensor.
        blocks: Numbers of the decisions of each block that stays together; None shuffles the decisions themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        for host in torch.tensor_split(torch.randperm(count, generator=generator), each):
            if blocks is not None:
                host = torch.cat([blocks[block] for block in host.tolist()])
            yield host.to(device), host


def minibatch_count(module: lightning.LightningModule, count: int, size: int) -> int:
    """Compute the number of minibatches in a pass, the same on every rank: otherwise ranks would wait for ever.

    It is the mean of what the ranks need, but small enough that no minibatch is empty on any rank. If a rank has
    nothing to train on it is 0, and all ranks leave the batch out.

    Args:
        module: Training module, with its trainer.
        count: Number of decisions, rows or pairs of this rank.
        size: Number of them in a minibatch.
    """
    if module.trainer.world_size == 1:
        return -(-count // size)
    counts = cast(Tensor, module.all_gather(torch.tensor(count, device=module.device))).flatten()
    wanted = int((-(-counts // size)).sum()) // len(counts)
    return min(max(1, wanted), int(counts.min()))


def _picked(values: Tensor, chosen: Tensor, host: Tensor) -> Tensor:
    return values[host if values.device.type == "cpu" else chosen]


__all__ = ["DecisionPoints", "minibatch_count", "shuffled"]
