"""Optimizers of the training modules as objects: clipped gradient steps, and AdamW with a schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Literal, cast, get_args

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

Schedule = Literal["constant", "cosine"]


class ClippedGradients:
    """Learning rate and clipping of gradient steps; a subclass chooses the optimizer.

    Args:
        learning_rate: Learning rate, above 0.
        max_grad_norm: Largest norm of the gradient, above 0; a longer gradient is scaled down to it.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, learning_rate: float, max_grad_norm: float) -> None:
        if not (learning_rate > 0 and max_grad_norm > 0):
            raise ValueError(f"learning_rate {learning_rate}, max_grad_norm {max_grad_norm}: expected positive numbers")
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm

    def backward(
        self,
        module: lightning.LightningModule,
        loss: Tensor,
        when: str,
        propagate: Callable[[], None] | None = None,
        idle: Iterable[nn.Parameter] = (),
    ) -> Tensor:
        """Compute the gradients of a loss for the one optimizer of a module, and clip them.

        Args:
            module: Training module with manual optimization and one optimizer.
            loss: Loss with gradients.
            when: The place in the run, for the error.
            propagate: Function that takes gradients on to the parameters after the backward pass; None where they are
                there already.
            idle: Parameters that do not learn from this loss; their gradients are removed.

        Returns:
            Norm of the gradient before clipping.

        Raises:
            FloatingPointError: If the gradient is NaN or infinite.
        """
        optimizer = cast(LightningOptimizer, module.optimizers())
        optimizer.zero_grad()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if isinstance(module.trainer.strategy, DDPStrategy):
            # DDP waits for a gradient of every parameter; a frozen policy or the deviation of a cloned one has none
            loss = loss + 0.0 * torch.stack([p.sum() for p in parameters]).sum()
        module.manual_backward(loss)
        if propagate is not None:
            propagate()
        for parameter in idle:  # a gradient of 0 would count as a step of Adam, whose first real one is then too large
            parameter.grad = None
        return self.clipped(parameters, when)

    def clipped(self, parameters: Iterable[nn.Parameter], when: str) -> Tensor:
        """Clip the gradients of parameters; those without one are left out.

        Args:
            parameters: Parameters after a backward pass.
            when: The place in the run, for the error.

        Returns:
            Norm of the gradient before clipping.

        Raises:
            FloatingPointError: If the gradient is NaN or infinite.
        """
        norm = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], self.max_grad_norm)
        if not bool(norm.isfinite()):
            raise FloatingPointError(
                f"the gradient became {float(norm)} {when}: lower the learning rate, or look for extreme rewards or "
                "states in the data"
            )
        return norm


class ScheduledAdamW(ClippedGradients):
    """AdamW with clipped gradients, a warm-up and a schedule; biases and norms are not decayed.

    Args:
        learning_rate: Largest learning rate, above 0.
        betas: Decay rates of AdamW's two moments, in [0, 1); the defaults are ALOE's.
        weight_decay: Weight decay of weights with two dimensions or more, 0 or more.
        max_grad_norm: Largest norm of the gradient, above 0; a longer gradient is scaled down to it.
        warmup_steps: Number of updates over which the learning rate rises from 0.
        schedule: Learning rate after the warm-up: ``"constant"``, or ``"cosine"``, which falls to 0 as half a cosine
            until the last update.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        warmup_steps: int = 100,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(learning_rate=learning_rate, max_grad_norm=max_grad_norm)
        if weight_decay < 0 or warmup_steps < 0 or schedule not in get_args(Schedule):
            raise ValueError(
                f"weight_decay {weight_decay}, warmup_steps {warmup_steps}, schedule {schedule!r}: expected none below "
                "0, and constant or cosine"
            )
        self.betas, self.weight_decay, self.warmup_steps = betas, weight_decay, warmup_steps
        self.schedule: Schedule = schedule

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate ever changes."""
        return self.schedule != "constant" or self.warmup_steps > 0

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """Build the optimizer of parameters; those that do not learn are left out."""
        trained = [p for p in parameters if p.requires_grad]
        return torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
                {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
            betas=self.betas,
        )

    def factor(self, update: int, total: int) -> float:
        """Compute the share of the learning rate in an update.

        Args:
            update: Number of the update, from 0.
            total: Number of updates of the whole run; only the cosine schedule uses it.
        """
        if update < self.warmup_steps:
            return (update + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        done = (update - self.warmup_steps) / max(total - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def configure(self, parameters: Iterable[nn.Parameter], total: Callable[[], int]) -> OptimizerLRScheduler:
        """Build the optimizer of parameters and its schedule by update, as ``configure_optimizers`` returns them.

        Args:
            parameters: Parameters; those that do not learn are left out.
            total: Function that counts the updates of the whole run; only the cosine schedule calls it.
        """
        optimizer = self.make(parameters)
        if not self.scheduled:
            return optimizer
        updates = total() if self.schedule == "cosine" else 0
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: self.factor(update, updates))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


__all__ = ["ClippedGradients", "Schedule", "ScheduledAdamW"]
