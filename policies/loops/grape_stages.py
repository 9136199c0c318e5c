"""Settings of the stage of the GRAPE loop that learns from pairs: preference optimisation, and cloning as a control."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import lightning

from ...core.batch import PreferencePairs, TrajectoryBatch
from ...core.interfaces import Policy
from ...core.sizes import DataSizes
from ...preference.references import FrozenReference, Reference
from ...preference.rules import PairRule
from ...preference.tpo import TrajectoryPreference
from ..adam import PolicyAdam
from ..advantages.reward_to_go import Uniform
from ..objectives import WeightedImitation
from ..optimizer import PolicyOptimizer
from ..preference_optimizer import PreferenceOptimizer

Compared = Literal["previous", "initial"]


class PairedStage(ABC):
    """Settings of a stage that learns from the pairs of an iteration.

    Args:
        pairs: Rule by which rollouts are paired; None pairs the best of each group with its worst.
        held_out: Share of the groups with a pair that is kept out of training, in [0, 1), to measure how well the
            implicit reward orders rollouts that were not trained on.
        compared: Policy that the implicit reward is relative to: that before the iteration (``"previous"``), or that
            before the first one (``"initial"``).
        passes: Number of passes over the pairs.
        minibatch_pairs: Number of pairs in a minibatch.
        optimizer: Learning rates and frozen parts; None takes a rate of 2e-4.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        pairs: PairRule | None = None,
        held_out: float | int = 0.1,
        compared: Compared = "previous",
        passes: int = 1,
        minibatch_pairs: int = 16,
        optimizer: PolicyAdam | None = None,
    ) -> None:
        if not 0 <= held_out < 1 or passes < 1 or minibatch_pairs < 1 or compared not in get_args(Compared):
            raise ValueError(
                f"held_out {held_out}, passes {passes}, minibatch_pairs {minibatch_pairs}, compared {compared!r}: "
                f"expected a share in [0, 1), at least one pass and one pair, and {' or '.join(get_args(Compared))}"
            )
        self.pairs = PairRule() if pairs is None else pairs
        self.held_out, self.compared = float(held_out), compared
        self.passes, self.minibatch_pairs = passes, minibatch_pairs
        self.optimizer = PolicyAdam(learning_rate=2e-4) if optimizer is None else optimizer

    @abstractmethod
    def module(self, policy: Policy, reference: Policy, seed: int) -> lightning.LightningModule:
        """Build the training module of an iteration, whose ``component`` is the policy.

        Args:
            policy: Policy that is trained.
            reference: Policy that the implicit reward is relative to; it is not changed.
            seed: Random seed of the minibatch order.
        """

    @abstractmethod
    def batch(self, pairs: PreferencePairs) -> PreferencePairs | TrajectoryBatch:
        """Make what the module is trained on.

        Args:
            pairs: Pairs of the iteration that are learned from.
        """


class PreferenceStage(PairedStage):
    """Settings of preference optimisation on the pairs of an iteration.

    The defaults are those of GRAPE (arXiv 2411.19309): the sum over the whole trajectory, one pass over the pairs of
    fresh rollouts, and the policy before the iteration as the reference.

    Args:
        objective: Objective; None takes `guerdon.TrajectoryPreference` with its defaults. Its ``reduce="step"`` is the
            step-wise baseline.
        pairs: Rule by which rollouts are paired; None pairs the best of each group with its worst.
        held_out: Share of the groups with a pair that is kept out of training, in [0, 1).
        reference: Reference of the log-ratios: a frozen copy of the policy before the iteration (``"previous"``) or
            before the first one (``"initial"``); or a reference, such as `guerdon.RecordedReference`, which is the
            previous policy without a second copy, or `guerdon.AdapterReference`. Where a reference is given, the
            accuracy that the loop reports is still relative to the policy before the iteration. The low-rank updates
            that `guerdon.AdapterReference` leaves out include what the first stage learned, if that trained them.
        passes: Number of passes over the pairs.
        minibatch_pairs: Number of pairs in a minibatch.
        optimizer: Learning rates and frozen parts; None takes a rate of 2e-4.
        micro_batch: Largest number of decisions that are evaluated at a time, for policies that are large; None
            evaluates a minibatch at once.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        objective: TrajectoryPreference | None = None,
        pairs: PairRule | None = None,
        held_out: float | int = 0.1,
        reference: Compared | Reference = "previous",
        passes: int = 1,
        minibatch_pairs: int = 16,
        optimizer: PolicyAdam | None = None,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(
            pairs=pairs,
            held_out=held_out,
            compared="previous" if isinstance(reference, Reference) else reference,
            passes=passes,
            minibatch_pairs=minibatch_pairs,
            optimizer=optimizer,
        )
        self.micro_batch = micro_batch
        self.objective = TrajectoryPreference() if objective is None else objective
        self.reference = reference if isinstance(reference, Reference) else None

    def module(self, policy: Policy, reference: Policy, seed: int) -> PreferenceOptimizer:
        """Build the training module of an iteration; see `PairedStage.module`."""
        return PreferenceOptimizer(
            policy,
            self.objective,
            FrozenReference(reference) if self.reference is None else copy.deepcopy(self.reference),
            passes=self.passes,
            minibatch_pairs=self.minibatch_pairs,
            optimizer=self.optimizer,
            micro_batch=self.micro_batch,
            seed=seed,
        )

    def batch(self, pairs: PreferencePairs) -> PreferencePairs:
        """Return the pairs as they are."""
        return pairs


class CloningStage(PairedStage):
    """Settings of filtered behaviour cloning: a control that clones the chosen rollouts of the same pairs.

    A minibatch holds the chosen rollout of each of ``minibatch_pairs`` pairs, so that with equal ``passes`` there are
    as many updates as in preference optimisation, on the same chosen rollouts.
    """

    def module(self, policy: Policy, reference: Policy, seed: int) -> PolicyOptimizer:
        """Build the training module of an iteration; see `PairedStage.module`."""
        return PolicyOptimizer(
            policy,
            Uniform(),
            WeightedImitation(),
            passes=self.passes,
            minibatch_episodes=self.minibatch_pairs,
            optimizer=self.optimizer,
            seed=seed,
        )

    def batch(self, pairs: PreferencePairs) -> TrajectoryBatch:
        """Take the chosen rollout of every pair; one that is in several pairs comes as often."""
        return pairs.batch[pairs.chosen]


class PairData(lightning.LightningDataModule):
    """Data module of one batch.

    Args:
        batch: The batch: all pairs of an iteration, or the rollouts that are cloned.
        sizes: Widths of the states and actions.
    """

    def __init__(self, batch: PreferencePairs | TrajectoryBatch, sizes: DataSizes) -> None:
        super().__init__()
        self.batch, self.sizes = batch, sizes

    def train_dataloader(self) -> "OneBatch":
        """Return the batch as a sized stream."""
        return OneBatch([self.batch])

    def val_dataloader(self) -> list[object]:
        """Return nothing to validate on: the loop measures held-out pairs before and after training."""
        return []


class OneBatch:
    """Sized stream of given batches, used in place of a `DataLoader`, which would add nothing but warnings.

    Args:
        batches: The batches, in their order.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


__all__ = ["CloningStage", "Compared", "PairData", "PairedStage", "PreferenceStage"]
