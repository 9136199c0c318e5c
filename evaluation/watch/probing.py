"""Probing of a reward model during training: which probes, on which clips."""

from collections.abc import Mapping, Sequence
from typing import cast

import lightning

from ...core.batch import TrajectoryBatch
from ...core.interfaces import RewardModel
from .claim import SuccessClaim
from .probes import PROBES, ProbeResult, probe, probe_metrics
from .rollouts import RolloutSummary


class Probing:
    """Evaluation of a reward model on clips that should earn nothing.

    Args:
        probes: Names of the probes, some of `PROBES`; empty evaluates none.
        probe_rows: Largest number of clips per rollout.
        clips: Data module with fixed clips, the first batch of its training loader; None takes clips of the rollouts.
        instructions: Instructions of other tasks for the probe ``"other_task"``; empty takes those of other rows.

    Raises:
        ValueError: If a probe is unknown, or ``probe_rows`` is less than 1.
    """

    def __init__(
        self,
        probes: Sequence[str] = PROBES,
        probe_rows: int = 16,
        clips: lightning.LightningDataModule | None = None,
        instructions: Sequence[str] = (),
    ) -> None:
        if unknown := [name for name in probes if name not in PROBES]:
            raise ValueError(f"no probe {unknown[0]!r}: expected some of {', '.join(PROBES)}")
        if probe_rows < 1:
            raise ValueError(f"probe_rows {probe_rows}: expected at least 1")
        self.probes, self.probe_rows = tuple(probes), probe_rows
        self.clips, self.instructions = clips, tuple(instructions)
        self._batch: TrajectoryBatch | None = None

    def load(self) -> None:
        """Load the fixed clips, where there are such."""
        if self.clips is not None:
            self.clips.setup("fit")
            self._batch = cast(TrajectoryBatch, next(iter(self.clips.train_dataloader())))

    def run(
        self, reward: RewardModel, rollout: TrajectoryBatch, claim: SuccessClaim, rank: int = 0
    ) -> Mapping[str, ProbeResult]:
        """Evaluate a reward model on probes.

        Args:
            reward: Reward model in evaluation mode.
            rollout: Rollout of this process, from which clips are taken unless they are fixed.
            claim: Rule by which the reward model claims a success.
            rank: Rank of this process; fixed clips are evaluated on rank 0 only.

        Returns:
            Results by name of the probe, and ``"honest"``; empty where nothing is evaluated.
        """
        if not self.probes or (self._batch is not None and rank):
            return {}
        clips = rollout[rollout.offset == 0] if self._batch is None else self._batch.to(rollout.mask.device)
        found = probe(reward, clips, claim.threshold, claim.score, self.instructions, self.probe_rows)
        return {name: result for name, result in found.items() if name in (*self.probes, "honest")}

    def metrics(self, summaries: Sequence[RolloutSummary], level: float | int = 0.95) -> dict[str, float]:
        """Compute the metrics of the probes over rollouts.

        Args:
            summaries: Summaries of the rollouts, the oldest first. Fixed clips count once: evaluating them again is no
                more evidence.
            level: Confidence level of the lower bounds, in (0, 1).

        Returns:
            Metrics of `probe_metrics`; empty without probes.
        """
        if not self.probes:
            return {}
        counted = summaries if self.clips is None else summaries[-1:]
        return probe_metrics(sum(counted, RolloutSummary()).probes, self.probes, level)
