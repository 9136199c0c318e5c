"""Training loops of several stages: each a fit in a folder of its own, which is skipped once it is complete."""

import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from ...core.hub import SPEC, load_component, save_component
from ...core.interfaces import Component, Policy
from ..rollouts.checkpoint import replace_checkpoint
from ..rollouts.decisions import hash_seed

MODEL, CHECKPOINTS = "model", "checkpoints"
STAGE = "stage.json"
"""File with the numbers of a stage."""


class TrainingLoop(ABC):
    """Loop that acts and learns in turns; ``guerdon loop`` builds one from a configuration and runs it."""

    @abstractmethod
    def run(self, folder: Path) -> Path:
        """Run the loop, or go on with a run that was interrupted.

        Args:
            folder: Folder of the run.

        Returns:
            Folder of the component that was trained, ``model`` in the folder of the run.
        """


class Terminated(KeyboardInterrupt):
    """Interruption by a request to terminate (SIGTERM) instead of Ctrl-C."""


@contextmanager
def terminating() -> Generator[None]:
    """Raise `Terminated` where the process is asked to terminate; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class EpochCheckpoint(Checkpoint):
    """Callback that keeps one checkpoint, ``last.ckpt``, and replaces it in one step at the end of each epoch.

    Args:
        folder: Folder of the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Renew the checkpoint."""
        replace_checkpoint(trainer, self.folder)


class _Interruption(lightning.Callback):
    """Callback that remembers by what a fit was interrupted: Lightning makes an exit of the process of it."""

    def __init__(self) -> None:
        self.by: BaseException | None = None

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Remember the exception."""
        self.by = exception


@dataclass(frozen=True)
class StageFolder:
    """Folder of one stage of a loop: its checkpoint, its logs, and its ``model`` once it is complete."""

    path: Path

    @property
    def model(self) -> Path:
        """Folder of the component that the stage trained."""
        return self.path / MODEL

    @property
    def checkpoint(self) -> Path:
        """Checkpoint that an unfinished stage goes on from."""
        return self.path / CHECKPOINTS / "last.ckpt"

    @property
    def finished(self) -> bool:
        """Whether the stage is complete: its model is the last thing that is written, and appears whole."""
        return (self.model / SPEC).is_file()

    def fit(
        self,
        module: lightning.LightningModule,
        data: lightning.LightningDataModule,
        callbacks: Sequence[lightning.Callback],
        epochs: int,
        accelerator: str,
    ) -> None:
        """Train in this folder, from its checkpoint if there is one.

        Args:
            module: Module that is trained.
            data: Data that it is trained on.
            callbacks: Callbacks, with one that keeps ``checkpoint``.
            epochs: Number of epochs in all.
            accelerator: Accelerator of Lightning, such as ``"cpu"``.

        Raises:
            KeyboardInterrupt: If training was interrupted; `Terminated` if the process was asked to terminate.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        interruption = _Interruption()
        before = signal.getsignal(signal.SIGINT)
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs,
            callbacks=[*callbacks, interruption],
            logger=CSVLogger(str(self.path), name="logs"),
            default_root_dir=str(self.path),
            log_every_n_steps=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        resume = str(self.checkpoint) if self.checkpoint.is_file() else None
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=None if resume is None else True)
        except SystemExit:
            if isinstance(interruption.by, KeyboardInterrupt):
                raise interruption.by from None
            raise
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)  # Lightning ignores Ctrl-C from the first one on

    def finish(self, component: Component) -> None:
        """Save what the stage trained, which makes the stage complete.

        Args:
            component: Component that the stage trained.
        """
        save_component(component, self.model)


def load_policy(folder: Path, like: Policy) -> Policy:
    """Open a policy that a stage saved.

    Args:
        folder: Folder of the policy.
        like: Policy that the run began with, whose class is trusted.
    """
    policy = load_component(folder, trust=True, known=(type(like),))
    assert isinstance(policy, Policy)
    return policy


def stage_seed(*parts: int) -> int:
    """Hash numbers, such as seed and number of the stage, to a seed of 31 bits: a training module multiplies it.

    Args:
        parts: Numbers that tell the stages of a run apart.
    """
    return hash_seed(*parts) >> 17


def tell(text: str) -> None:
    """Print a line about the progress of a loop to standard error.

    Args:
        text: Line.
    """
    print(f"guerdon: {text}", file=sys.stderr, flush=True)


def changed_tensors(before: dict[str, torch.Tensor], after: dict[str, Any]) -> list[str]:
    """List the names of tensors that are not the same bit by bit in a second mapping.

    Args:
        before: Tensors by name.
        after: Tensors by name, with at least the same names.
    """
    return [name for name, value in before.items() if not torch.equal(value, after[name].detach().cpu())]


__all__ = [
    "CHECKPOINTS",
    "MODEL",
    "STAGE",
    "EpochCheckpoint",
    "StageFolder",
    "Terminated",
    "TrainingLoop",
    "changed_tensors",
    "load_policy",
    "stage_seed",
    "tell",
    "terminating",
]
