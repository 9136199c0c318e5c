"""What a reward model promises that must see its training data once before it can be trained."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from ..core.batch import TrajectoryBatch


@runtime_checkable
class Normalised(Protocol):
    """Has means and deviations to take from data; training calls ``fit_normaliser`` once, before the first update."""

    @property
    def normalised(self) -> bool:
        """Whether they are known, or there are none."""
        ...

    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Take them from the training data; they end up in buffers whose names start with ``state_``."""
        ...
