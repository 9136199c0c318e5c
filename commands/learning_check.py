"""Check that a training run changes what it saves: a run without a usable sample must not end with a saved model."""

import sys
from collections import Counter
from typing import Any, Protocol, cast, runtime_checkable

import lightning
import torch
from torch import nn

from ..core.batch import TrajectoryBatch
from ..core.hub import is_component

_SHARED = ("component", "reward", "critic", "policy")
_COUNTS = ("pairs", "train_pairs", "train_flags", "decisions", "groups_compared", "updates")
"""Logged numbers of what could be learned from; one of 0 explains why nothing was."""


class NothingLearnedError(ValueError):
    """Error of a training run that changed no weight."""


def trained_component(module: nn.Module) -> nn.Module:
    """Return the component that a LightningModule trains: its ``component``, or its reward, critic or policy.

    Raises:
        ValueError: If it has none of them.
    """
    for name in _SHARED:
        found = getattr(module, name, None)
        if is_component(found):
            return cast(nn.Module, found)
    raise ValueError(
        f"{type(module).__name__} has no component to save: give it a property `component` that returns what it trains"
    )


@runtime_checkable
class Explains(Protocol):
    """A component that explains why it cannot use a row, such as `guerdon.GrapeScore`."""

    def why(self, batch: TrajectoryBatch) -> list[str]:
        """Explain each row; a row that can be used gets an empty text."""
        ...


class LearningCheck(lightning.Callback):
    """Callback that stops a run whose first epoch changed no trainable weight at any time.

    A later epoch without a change, one of a resumed run, or one in which the run was asked to stop is only warned
    about, once: what was learned before is kept.
    """

    def __init__(self) -> None:
        self._learned = self._warned = False
        self._before: dict[str, list[tuple[float, float]]] = {}
        self._last: Any = None
        self.component_unchanged = False
        """Whether the run has changed other weights, but none of the component that is saved."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the weights of the component that the run starts from."""
        component = trained_component(pl_module)
        self._learned, self._warned = trainer.ckpt_path is not None, False
        self.component_unchanged = any(p.requires_grad for p in component.parameters())
        self._before["component"] = _summary(component)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the weights before the epoch."""
        self._before["module"] = _summary(pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the weights with those before, until one has changed; keep the batch, to ask why none has."""
        if "module" in self._before:
            changed = self._before["module"] != _summary(pl_module)
            self._last = None if changed else batch
            if changed:
                self._learned = True
                del self._before["module"]
        if self.component_unchanged:
            self.component_unchanged = self._before["component"] == _summary(trained_component(pl_module))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse a first epoch that has changed nothing, and warn about a later one; a trial run of batches may.

        Raises:
            NothingLearnedError: If no weight has changed since the run began, and it continues no other.
        """
        if self._last is None or not self._before["module"] or getattr(trainer, "fast_dev_run", False):
            return
        component = trained_component(pl_module)
        what = (
            f"an epoch of {int(trainer.num_training_batches)} batches changed no weight"
            f"{self._reason(trainer, component)}"
        )
        if not self._learned and not trainer.should_stop:
            raise NothingLearnedError(f"{type(component).__name__} learned nothing: {what}; nothing was saved")
        if not self._warned and trainer.is_global_zero:
            self._warned = True
            print(f"guerdon: warning: {what}; what was learned before is kept", file=sys.stderr)

    def _reason(self, trainer: lightning.Trainer, component: nn.Module) -> str:
        counts = [name for name in _COUNTS if float(trainer.callback_metrics.get(name, torch.ones(()))) == 0]
        reasons = [f"{name.removeprefix('train_')}: 0" for name in counts[:1]]
        if isinstance(component, Explains) and isinstance(self._last, TrajectoryBatch):
            given = Counter(text for text in component.why(self._last) if text)
            reasons += [f"of {count} of {len(self._last)} rows: {text}" for text, count in given.most_common(1)]
        if not reasons:
            return ", so no sample gave a gradient: compare the data with what the loss needs (labels, instructions)"
        return f" ({'; '.join(reasons)})"


def _summary(module: nn.Module) -> list[tuple[float, float]]:
    """Sum the weights and their squares, parameter by parameter: a copy of them would double the memory."""
    return [
        (float(p.detach().double().sum()), float(p.detach().double().square().sum()))
        for p in module.parameters()
        if p.requires_grad
    ]


__all__ = ["Explains", "LearningCheck", "NothingLearnedError", "trained_component"]
