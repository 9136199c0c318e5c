"""Completions that are chunks of actions: as tokens of a token policy, or as numbers in a text."""

import math
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.batch import Observation, TrajectoryBatch
from ...core.record import Sampled
from ..action_bins import ActionBins
from ..tokens import TokenPolicy
from .completions import Completion

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"[\s\[\](),;]*(?:{_NUMBER}(?:[\s\[\](),;]+|$))+")


@runtime_checkable  # the tests' shape checks ask isinstance
class ActionDecoder(Protocol):
    """Function that reads a chunk of actions from a completion."""

    horizon: int
    """Number H of steps in a chunk."""
    action_size: int
    """Width A of an action."""

    def __call__(self, completion: Completion) -> Float[Tensor, "H A"] | None:
        """Read the chunk; None where the completion is no chunk."""
        ...


class ActionTokens:
    """Chunk of H·A action tokens in the order (step, dimension), each standing for a bin, as `TokenPolicy` writes it.

    A completion is a chunk if it begins with H·A tokens of bins, and holds nothing behind them but tokens of ``end``.

    Args:
        tokens: Token number of each bin, each once.
        action_size: Width A of an action.
        horizon: Number H of steps in a chunk.
        bins: Bins of an action dimension; None takes as many as there are tokens, from −1 to 1.
        end: Token numbers that may follow a chunk, such as those of the end of a turn and of padding.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        action_size: int,
        horizon: int = 1,
        bins: ActionBins | None = None,
        end: Sequence[int] = (),
    ) -> None:
        if min(action_size, horizon) < 1:
            raise ValueError(f"action_size {action_size}, horizon {horizon}: expected positive numbers")
        self.bins = ActionBins(len(tokens)) if bins is None else bins
        self.bins.require_dimensions(action_size)
        if len(tokens) != self.bins.bins or len(set(tokens)) != len(tokens) or set(tokens) & set(end):
            raise ValueError(
                f"tokens: expected {self.bins.bins} numbers that differ, one for each bin, and none of those in end, "
                f"got {len(tokens)}, {len(set(tokens))} of them different"
            )
        self.horizon, self.action_size = horizon, action_size
        self._bin = {token: place for place, token in enumerate(tokens)}
        self._end = frozenset(end)

    @classmethod
    def of(cls, policy: TokenPolicy, end: Sequence[int] = ()) -> "ActionTokens":
        """Make the decoder of the chunks of a policy.

        Args:
            policy: Token policy that knows its sizes.
            end: Token numbers that may follow a chunk.
        """
        if policy.action_size is None:
            raise ValueError("the policy does not know its action_size yet: give it, or take it from data")
        return cls(policy.bin_tokens, policy.action_size, policy.horizon, policy.bins, end)

    def __call__(self, completion: Completion) -> Float[Tensor, "H A"] | None:
        """Return the centres of the bins of a chunk; None where the tokens are no chunk."""
        units = self.horizon * self.action_size
        bins = [self._bin.get(token) for token in completion.tokens[:units]]
        found = [place for place in bins if place is not None]
        if len(found) < units or any(token not in self._end for token in completion.tokens[units:]):
            return None
        return self.bins.centres(torch.tensor(found).view(self.horizon, self.action_size))


class ActionNumbers:
    """Chunk of H·A numbers in a text, such as ``[0.1, -0.2], [0.0, 0.3]``, in the order (step, dimension).

    The text may hold numbers, spaces, commas, semicolons and brackets, and nothing else.

    Args:
        action_size: Width A of an action.
        horizon: Number H of steps in a chunk.
        low: Smallest number of an action; a text with a smaller one is no chunk.
        high: Largest number of an action.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(self, action_size: int, horizon: int = 1, low: float | int = -1.0, high: float | int = 1.0) -> None:
        if min(action_size, horizon) < 1 or not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"action_size {action_size}, horizon {horizon}, low {low}, high {high}: expected positive numbers and "
                "finite bounds, the lower one first"
            )
        self.action_size, self.horizon, self.low, self.high = action_size, horizon, low, high

    def __call__(self, completion: Completion) -> Float[Tensor, "H A"] | None:
        """Return the numbers as a chunk; None where the text is no chunk."""
        if not _NUMBERS.fullmatch(completion.text):
            return None
        numbers = [float(number) for number in re.findall(_NUMBER, completion.text)]
        if len(numbers) != self.horizon * self.action_size or not all(self.low <= n <= self.high for n in numbers):
            return None
        return torch.tensor(numbers).view(self.horizon, self.action_size)


class LoggedTurns:
    """Reader of completions that are chunks of actions at logged observations.

    The data set's row names the observation in the columns ``episode`` and ``step``. The reader makes a trajectory of H
    steps that begins there. What would follow is unknown: the logged observation is repeated, and the last observation
    is marked as not made. So only the first observation is evidence, which suits critics of actions
    (`TRLActionValue`), and with H = 1 rewards of an observation and an action.

    Args:
        decode: Decoder of chunks.
        batch: Logged trajectories; it is pickled with the reader.
    """

    def __init__(self, decode: ActionDecoder, batch: TrajectoryBatch) -> None:
        self.decode, self.batch = decode, batch

    @property
    def horizon(self) -> int:
        """Number H of steps in a chunk."""
        return self.decode.horizon

    def __call__(self, completion: Completion) -> TrajectoryBatch | None:
        """Return the trajectory of one row; None where the completion is no chunk.

        Raises:
            ValueError: If the columns name no logged observation, or actions differ in width from the logged ones.
        """
        row, place = find_observation(self.batch, completion)
        chunk = self.decode(completion)
        if chunk is None:
            return None
        width = self.batch.actions.shape[2]
        if chunk.shape[1] != width:
            raise ValueError(f"the completions hold actions of width {chunk.shape[1]}, expected {width} as logged")
        at = self.batch.observe(torch.tensor([row]), torch.tensor([place]))
        return _turn(at, chunk.to(self.batch.actions.dtype), self.batch, row)


def find_observation(batch: TrajectoryBatch, completion: Completion) -> tuple[int, int]:
    """Find the row and the place in it of the observation that the columns ``episode`` and ``step`` name.

    Args:
        batch: Logged trajectories.
        completion: Completion with these columns.

    Raises:
        ValueError: If there is no such observation.
    """
    episode, step = completion.number("episode"), completion.number("step")
    place = step - batch.offset
    found = ((batch.episode == episode) & (place >= 0) & (place <= batch.steps)).nonzero()
    if not len(found):
        raise ValueError(
            f"episode {episode}, step {step}: no such observation among the {len(batch)} logged trajectories; pass the "
            "batch that the data set was made of"
        )
    row = int(found[0, 0])
    return row, int(place[row])


def _turn(at: Observation, chunk: Float[Tensor, "H A"], batch: TrajectoryBatch, row: int) -> TrajectoryBatch:
    steps = len(chunk)

    def once(values: Tensor) -> Sampled:
        return Sampled(values=values[:, None], step=torch.zeros(1, 1, dtype=torch.long))

    return TrajectoryBatch(
        state=at.state[:, None].expand(-1, steps + 1, -1).clone(),
        actions=chunk[None],
        mask=torch.ones(1, steps, dtype=torch.bool),
        frames={name: once(values) for name, values in at.frames.items()},
        features={name: once(values) for name, values in at.features.items()},
        instructions=at.instructions,
        task=batch.task[row : row + 1],
        episode=batch.episode[row : row + 1],
        last_observed=torch.zeros(1, dtype=torch.bool),
        decision_step=torch.zeros(1, 1, dtype=torch.long),
    )


__all__ = ["ActionDecoder", "ActionNumbers", "ActionTokens", "LoggedTurns", "find_observation"]
