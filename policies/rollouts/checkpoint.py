"""Checkpoints between rollouts, from which a run goes on as if it had not been interrupted."""

import time
from pathlib import Path
from typing import Any

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

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Renew the checkpoint if its turn has come."""
        due = (batch_idx + 1) % self.every == 0 and time.monotonic() - self._saved >= self.seconds
        if not due or getattr(trainer, "fast_dev_run", False):
            return
        target = self._folder(trainer) / "last.ckpt"
        target.parent.mkdir(parents=True, exist_ok=True)
        for part in target.parent.glob(".last.*.part.ckpt"):  # left by a process that was killed
            part.unlink(missing_ok=True)
        if trainer.world_size > 1:
            trainer.save_checkpoint(target)  # every rank takes part, and the strategy writes
        else:
            with replacing(target) as fresh:
                trainer.save_checkpoint(fresh)
        self.path, self._saved = target, time.monotonic()

    def _folder(self, trainer: lightning.Trainer) -> Path:
        if self.folder is not None:
            return Path(self.folder)
        for callback in trainer.checkpoint_callbacks:
            found = getattr(callback, "dirpath", None)
            if found:
                return Path(found)
        return Path(trainer.default_root_dir) / "checkpoints"


__all__ = ["RolloutCheckpoint"]
