"""Lightning callback that watches for reward hacking while a policy learns."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ...backbones.model_inputs import inputs_of
from ...core.arguments import folds
from ...core.batch import TrajectoryBatch
from ...core.hub import save_component
from ...core.interfaces import RewardModel
from .claim import SuccessClaim
from .limits import AlarmLimits, describe_alarm
from .metrics import compare
from .probing import Probing
from .questions import SpotChecks
from .retraining import Retraining
from .rollouts import RolloutSummary, finished_rows, gather, outcomes_of, records_of, reward_of, undisturbed
from .training_drift import TrainingDrift
from .watch_log import WatchLog, log_metrics
from .window import RolloutWindow

FOLDER = "watch"
"""Name of the folder of the watch, in the run directory."""


class HackingWarning(UserWarning):
    """Warning that a learned reward may pay for something else than success."""


class HackingWatch(lightning.Callback):
    """Lightning callback that compares a learned reward with the outcomes of episodes while a policy learns.

    Over the last rollouts it counts how many failed episodes the reward model takes for successes, how far the policy's
    observations lie from the reward model's training data, and what the reward model pays for clips that should earn
    nothing. It logs these metrics as ``watch_…`` and ``probe_…`` and writes them to ``watch.jsonl`` in the run
    directory. Metrics beyond their limits raise an alarm, which warns, stops training, or retrains the reward model.

    A watched run computes the same weights as an unwatched one, except for retraining: the watch draws from generators
    of its own and restores random states, modes and gradients.

    The outcome of an episode is a person's label, else what ``outcome`` returns. Without that function it is the
    batch's own success, else what a `RolloutData` with ``hide_outcome`` withholds from training.

    An object that is left out has its default arguments. The arguments of each object may also be given here, as in
    ``HackingWatch(threshold=0.7, window=5)``.

    Args:
        claim: Rule by which the reward model claims that an episode succeeded.
        history: Rollouts that metrics are computed over.
        limits: Limits of the metrics, and what happens beyond them.
        probing: Clips that should earn nothing; `Probing(probes=())` evaluates none.
        drift: Training data of the reward model; None measures no drift.
        questions: Episodes whose outcome a person is asked for; None asks for none.
        retraining: Retraining on false positives; None never retrains.
        outcome: Function that returns the success (B,) of a batch: 1, 0, or NaN where it is unknown.
        folder: Run directory; None takes the trainer's.

    Raises:
        ValueError: If an argument of an object lies outside its range.
        TypeError: If an object and some of its arguments are both given.
    """

    @folds(
        claim=SuccessClaim,
        history=RolloutWindow,
        limits=AlarmLimits,
        probing=Probing,
        drift=TrainingDrift,
        questions=SpotChecks,
        retraining=Retraining,
    )
    def __init__(
        self,
        claim: SuccessClaim | None = None,
        history: RolloutWindow | None = None,
        limits: AlarmLimits | None = None,
        probing: Probing | None = None,
        drift: TrainingDrift | None = None,
        questions: SpotChecks | None = None,
        retraining: Retraining | None = None,
        outcome: Callable[[TrajectoryBatch], Tensor] | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        self.claim = claim or SuccessClaim()
        self.history = history or RolloutWindow()
        self.limits = limits or AlarmLimits()
        self.probing = probing or Probing()
        self.drift = drift or TrainingDrift()
        self.questions = questions or SpotChecks()
        self.retraining = retraining or Retraining()
        self.outcome, self.folder = outcome, folder
        self.alarms: tuple[str, ...] = ()
        """Names of the alarms that the last evaluated rollout raised."""
        self._warned_unknown = False
        self._ended = 0.0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the reward model, open the files, and fit the features of its training data.

        Raises:
            TypeError: If the module has no advantage source with a reward model.
            FileExistsError: If the run directory holds the metrics of a run that is not being resumed.
        """
        reward = reward_of(pl_module)
        run = Path(self.folder or trainer.default_root_dir)
        self._folder, self._log = run / FOLDER, WatchLog(run)
        if trainer.is_global_zero:
            self._log.open(self.history.rollouts)
        self.questions.open(self._folder)
        with undisturbed(reward):
            self.drift.fit(reward, self._folder, trainer.is_global_zero)
            self.probing.load()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock that measures the cost of the watch."""
        self._ended = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate the reward model on a rollout, and act on the alarms."""
        number = self.history.advance()
        if self.history.evaluates(number):
            with isolate_rng():
                self._watch(trainer, pl_module, cast(TrajectoryBatch, batch), number)

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the last rollouts, and what a person was asked; collected false positives are not part."""
        parts = self.history.state_dict() | self.retraining.state_dict() | self.questions.state_dict()
        return {**parts, "alarms": list(self.alarms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.alarms = tuple(state_dict["alarms"])
        for part in (self.history, self.retraining, self.questions):
            part.load_state_dict(state_dict)

    # --- one rollout -----------------------------------------------------------------------------------------------

    def _watch(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: TrajectoryBatch, number: int
    ) -> None:
        begun = time.perf_counter()
        reward = reward_of(pl_module)
        with undisturbed(reward):
            summary, labels = self._evaluate(trainer, reward, batch, number)
        self.history.add(summary)
        self.questions.remember(summary.episodes, labels)
        metrics = self._metrics(labels)
        alarms = self.limits.alarms(metrics, bool(inputs_of(reward).cameras))
        retrained = self.retraining.is_due(alarms) and self._retrain(trainer, reward, labels)
        ended = time.perf_counter()
        metrics |= {"seconds": ended - begun, "share": (ended - begun) / max(ended - self._ended, 1e-9)}
        self._ended = ended
        log_metrics(pl_module, metrics, alarms)
        if trainer.is_global_zero:
            self._log.append(number, metrics, alarms, retrained)
            if not retrained:  # the new reward model would score these episodes otherwise
                self.questions.write(summary.episodes)
        self._react(trainer, metrics, alarms, retrained)

    def _evaluate(
        self, trainer: lightning.Trainer, reward: RewardModel, batch: TrajectoryBatch, number: int
    ) -> tuple[RolloutSummary, dict[str, int]]:
        """Return what a rollout showed on all processes, and the labels so far."""
        summary = RolloutSummary()
        chosen = finished_rows(batch)
        if len(chosen):
            rows, rank = batch[chosen], trainer.global_rank
            names = [f"{number:06d}-{rank}-{row}" for row in chosen.tolist()]
            withheld = getattr(cast(Any, trainer).datamodule, "outcomes", None)
            outcome = outcomes_of(batch, self.outcome, withheld).to(chosen.device)[chosen]
            records = records_of(reward, rows, outcome, names, self.claim)
            self.retraining.collect(rows, records, self.claim.threshold)
            summary.episodes = self.questions.ask(rows, records, self.claim.threshold, number, rank)
        summary.beyond, summary.observations = self.drift.count(reward, batch)
        summary.probes = dict(self.probing.run(reward, batch, self.claim, trainer.global_rank))
        gathered = gather(trainer, (summary, self.questions.read() if trainer.is_global_zero else {}))
        return sum((part[0] for part in gathered), RolloutSummary()), gathered[0][1]

    def _metrics(self, labels: dict[str, int]) -> dict[str, float]:
        episodes = self.questions.labelled(self.history.episodes, labels)
        return (
            compare(episodes, self.claim.threshold, self.history.level)
            | self.questions.metrics(labels)
            | self.drift.metrics(self.history.summaries)
            | self.probing.metrics(self.history.summaries, self.history.level)
        )

    def _retrain(self, trainer: lightning.Trainer, reward: RewardModel, labels: dict[str, int]) -> bool:
        """Retrain on the first process, load the weights on all, and forget what the old weights predicted."""
        collected = gather(trainer, self.retraining.collected)
        weights: dict[str, Tensor] | None = None
        if trainer.is_global_zero:
            fooled = {name: row for part in collected for name, row in part if labels.get(name, 0) == 0}
            fooled |= self.questions.false_positives(labels, self.claim.threshold, fooled)
            weights = self.retraining.weights(reward, fooled)
        weights = trainer.strategy.broadcast(weights)
        if weights is None:
            return False
        reward.load_state_dict(weights)
        self.retraining.finish()
        self.history.clear()
        self.questions.forget()
        if trainer.is_global_zero:
            save_component(reward, self._folder / f"reward_{self.retraining.retrained}")
        with undisturbed(reward):
            self.drift.fit(reward, self._folder, trainer.is_global_zero)
        return True

    def _react(
        self, trainer: lightning.Trainer, metrics: dict[str, float], alarms: tuple[str, ...], retrained: bool
    ) -> None:
        """Warn of unknown outcomes once and of alarms that are new, and stop training where the limits say so."""
        if metrics["episodes"] and not metrics["outcome_known"] and not self._warned_unknown:
            self._warned_unknown = True
            self._warn(trainer, f"no outcome is known: false positives cannot be counted; {self.questions.advice}")
        if new := [describe_alarm(alarm, metrics) for alarm in alarms if alarm not in self.alarms]:
            stops = "; training stops" if self.limits.on_alarm == "stop" else ""
            then = "; the reward was retrained" if retrained else stops
            count = self.history.rollouts
            self._warn(trainer, f"after {count} rollouts: {'; '.join(new)}{then}; see {self._log.file}")
        self.alarms = () if retrained else alarms
        if self.limits.stops(alarms, retrained):
            trainer.should_stop = True

    @staticmethod
    def _warn(trainer: lightning.Trainer, message: str) -> None:
        if trainer.is_global_zero:
            warnings.warn(message, HackingWarning, stacklevel=2)


__all__ = ["HackingWarning", "HackingWatch"]
