"""Checkpoints between rollouts, from which a run goes on as if it had not been interrupted."""

import time
from pathlib import Path
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Checkpoint

from ...core.files import replacing


class RolloutCheckpoint(Checkpoint):
    """Callback that keeps one checkpoint, ``last.ckpt``, and renews it after rollouts.

    A run that is killed at any moment loses at most what came after it: the file is replaced in one step, when it is
    complete. The checkpoint holds the weights, the state of the optimizer, the counters of the data module, the
    episodes in progress and what is remembered of initial states. A run of `guerdon.RolloutData` that goes on from it
    is the uninterrupted one, bit by bit, as long as tasks repeat themselves and the numbers of environments and workers
    are the same.

    A validation that an interruption cut short is made up for when the run goes on.

    Args:
        folder: Folder of the checkpoint; None takes that of the trainer's first checkpoint callback that has one, or
            ``checkpoints`` in its root folder.
        every: Number of rollouts from one checkpoint to the next.
        seconds: Least time in seconds from one checkpoint to the next, for large policies.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(self, folder: str | Path | None = None, every: int = 1, seconds: float = 0.0) -> None:
        super().__init__()
        if every < 1 or seconds < 0:
            raise ValueError(f"every {every}, seconds {seconds}: expected at least 1 rollout, and no negative time")
        self.folder, self.every, self.seconds = folder, every, seconds
        self.path: Path | None = None
        """Checkpoint that was written; None before the first."""
        self._saved = -float("inf")
        self._rollouts = 0
        self._validation_due = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make up for the validation that should have followed the rollout of the checkpoint."""
        if self._validation_due:
            self._validation_due = False
            _validate(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Renew the checkpoint if its turn has come."""
        self._rollouts += 1
        due = self._rollouts % self.every == 0 and time.monotonic() - self._saved >= self.seconds
        if trainer.world_size > 1:  # clocks differ, and saving needs all processes
            due = trainer.strategy.broadcast(due)
        if due:
            self._validation_due = _validation_follows(trainer, batch_idx)
            self._save(trainer)
            self._validation_due = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Renew the checkpoint, so that the validation is not repeated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.path is not None:
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Renew the checkpoint with the weights that the run ends with."""
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rollouts, and whether a validation should follow."""
        return {"rollouts": self._rollouts, "validation_due": self._validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self._rollouts, self._validation_due = int(state_dict["rollouts"]), bool(state_dict["validation_due"])

    def _save(self, trainer: lightning.Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        self.path = replace_checkpoint(trainer, self._folder(trainer))
        self._saved = time.monotonic()

    def _folder(self, trainer: lightning.Trainer) -> Path:
        if self.folder is not None:
            return Path(self.folder)
        for callback in trainer.checkpoint_callbacks:  # one with a folder of its own
            found = getattr(callback, "dirpath", None)
            if found:
                return Path(found)
        return Path(trainer.default_root_dir) / "checkpoints"


def replace_checkpoint(trainer: lightning.Trainer, folder: Path) -> Path:
    """Write the checkpoint ``last.ckpt`` of a folder, in place of an earlier one once it is complete.

    Args:
        trainer: Trainer of the run.
        folder: Folder of the checkpoint; it is made where it is missing.

    Returns:
        Path of the checkpoint.
    """
    target = folder / "last.ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(".last.*.part.ckpt"):  # left by a process that was killed
        part.unlink(missing_ok=True)
    if trainer.world_size > 1:
        trainer.save_checkpoint(target)  # every rank takes part, and the strategy writes
    else:
        with replacing(target) as fresh:
            trainer.save_checkpoint(fresh)
    return target


def _validation_follows(trainer: lightning.Trainer, batch_index: int) -> bool:
    """Tell whether a validation comes after a batch."""
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    interval = trainer.val_check_batch
    return interval not in (None, float("inf")) and (batch_index + 1) % int(interval) == 0


def _validate(trainer: lightning.Trainer) -> None:
    """Run a validation inside of training, as Lightning's loop does between two batches."""
    connector = cast(Any, trainer)._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first


__all__ = ["RolloutCheckpoint", "replace_checkpoint"]
