"""Gradient steps of a training module with manual optimization, without a wrapper where none is needed."""

from collections.abc import Callable, Iterable
from typing import cast

import lightning
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from ..backbones.optimization import ClippedGradients

_BACKWARD_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


class Updates:
    """Updates of the one optimizer of a training module, for the length of a batch.

    On a single device in full precision, and where no callback or module uses a hook around the backward pass,
    gradients are computed and applied directly: for small networks the wrappers cost as much as the arithmetic.
    Everywhere else Lightning's own path is taken. Both count ``global_step`` alike and compute the same numbers.

    Args:
        module: Training module with manual optimization and one optimizer.
        settings: Clipping of its gradients.
        idle: Parameters that do not learn from this batch.
    """

    def __init__(
        self, module: lightning.LightningModule, settings: ClippedGradients, idle: Iterable[nn.Parameter] = ()
    ) -> None:
        self._module, self._settings, self._idle = module, settings, list(idle)
        self._wrapped = cast(LightningOptimizer, module.optimizers())
        self._plain = steps_plainly(module)
        groups = cast(list[dict[str, list[nn.Parameter]]], self._wrapped.optimizer.param_groups)
        self._parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        if self._plain and all(p.device.type == "cpu" for p in self._parameters):
            # before each step torch asks whether a graph is captured on an accelerator, and for that opens the driver's
            # library anew: as much time as the step itself
            self._wrapped.optimizer.__dict__["_accelerator_graph_capture_health_check"] = _nothing

    def step(self, loss: Tensor, when: str, propagate: Callable[[], None] | None = None) -> Tensor:
        """Minimise a loss by one step.

        Args:
            loss: Loss with gradients.
            when: The place in the run, for the error.
            propagate: Function that takes gradients on to the parameters after the backward pass; None where they are
                there already.

        Returns:
            Norm of the gradient before clipping.

        Raises:
            FloatingPointError: If the gradient is NaN or infinite; no parameter is changed.
        """
        if not self._plain:
            norm = self._settings.backward(self._module, loss, when, propagate, self._idle)
            self._wrapped.step()
            return norm
        optimizer = self._wrapped.optimizer
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        if propagate is not None:
            propagate()
        norm = self._settings.clipped(self._parameters, when)
        # what the wrapper does around a step: it counts global_step and asks the profiler
        self._wrapped._on_before_step()  # pyright: ignore[reportPrivateUsage]
        optimizer.step()
        self._wrapped._on_after_step()  # pyright: ignore[reportPrivateUsage]
        return norm


def steps_plainly(module: lightning.LightningModule) -> bool:
    """Return whether a step needs nothing of the trainer: one device, full precision, no hook around the gradient."""
    trainer = module.trainer
    if type(trainer.strategy) is not SingleDeviceStrategy or type(trainer.precision_plugin) is not Precision:
        return False
    listens = any(is_overridden(hook, c, lightning.Callback) for c in _callbacks(trainer) for hook in _BACKWARD_HOOKS)
    own = any(is_overridden(hook, module, lightning.LightningModule) for hook in (*_BACKWARD_HOOKS, "backward"))
    return not listens and not own


def _nothing() -> None:
    """Check nothing."""


def _callbacks(trainer: lightning.Trainer) -> list[lightning.Callback]:
    return cast(list[lightning.Callback], trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


__all__ = ["Updates", "steps_plainly"]
