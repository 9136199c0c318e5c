"""Settings of the stages of iRe-VLA."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import lightning
from torch import Tensor

from ...core.interfaces import AdvantageSource, Objective, Policy
from ..adam import PolicyAdam, part_of
from ..objectives import ClippedSurrogate
from ..optimizer import PolicyOptimizer
from ..rollouts.data import RolloutData

WithoutSuccess = Literal["error", "expert", "skip"]


class SupervisedStage:
    """Settings of supervised learning on logged episodes.

    Args:
        epochs: Number of epochs.
        passes: Number of times that every decision of a batch of episodes is used.
        minibatch_size: Number of decisions in a minibatch.
        optimizer: Learning rates and frozen parts; None learns all with a rate of 1e-3.
        updates: Number of updates after which the stage ends, with the batch of episodes that reaches it; None leaves
            that to ``epochs``. Epochs grow with the data, updates do not.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(
        self,
        epochs: int = 15,
        passes: int = 20,
        minibatch_size: int = 128,
        optimizer: PolicyAdam | None = None,
        updates: int | None = None,
    ) -> None:
        if epochs < 1 or (updates is not None and updates < 1):
            raise ValueError(f"epochs {epochs}, updates {updates}: expected at least one epoch and one update")
        self.epochs, self.passes, self.minibatch_size, self.updates = epochs, passes, minibatch_size, updates
        self.optimizer = PolicyAdam(learning_rate=1e-3) if optimizer is None else optimizer


class ConsolidationStage(SupervisedStage):
    """Settings of stage 2: supervised learning on the expert data and the online buffer.

    Args:
        epochs: Number of epochs.
        passes: Number of times that every decision of a batch of episodes is used.
        minibatch_size: Number of decisions in a minibatch.
        optimizer: Learning rates and frozen parts; None learns all with a rate of 3e-4.
        online: Whether to learn from the online buffer. False replays the expert data alone.
        restart: Start from the policy after stage 0 instead of that after stage 1.
        balance_tasks: Whether each task of each data set has the same weight.
        without_success: What to do where stage 1 found no success of its task: ``"error"`` stops the run, ``"expert"``
            learns from the expert data and the successes of other tasks, ``"skip"`` goes on with the policy before
            stage 1.
        updates: Number of updates after which the stage ends, with the batch of episodes that reaches it; None leaves
            that to ``epochs``. Balanced epochs grow with the number of successes.

    Raises:
        ValueError: If a number makes no sense, or ``without_success`` is unknown.
    """

    def __init__(
        self,
        epochs: int = 5,
        passes: int = 20,
        minibatch_size: int = 128,
        optimizer: PolicyAdam | None = None,
        online: bool = True,
        restart: bool = False,
        balance_tasks: bool = True,
        without_success: WithoutSuccess = "error",
        updates: int | None = None,
    ) -> None:
        super().__init__(
            epochs=epochs,
            passes=passes,
            minibatch_size=minibatch_size,
            optimizer=PolicyAdam(learning_rate=3e-4) if optimizer is None else optimizer,
            updates=updates,
        )
        if without_success not in get_args(WithoutSuccess):
            raise ValueError(f"without_success {without_success!r}: expected {', '.join(get_args(WithoutSuccess))}")
        self.online, self.restart, self.balance_tasks = online, restart, balance_tasks
        self.without_success: WithoutSuccess = without_success


@dataclass(frozen=True, kw_only=True)
class StageEnd:
    """End of stage 1, beside the number of rollouts of the data module.

    Raises:
        ValueError: If a number makes no sense.
    """

    success: float = 0.9
    """Success rate of the latest training episodes that counts as convergence, above 0; above 1 never stops."""
    episodes: int = 20
    """Number of latest episodes that count."""
    env_steps: int | None = None
    """Number of environment steps after which the stage ends; None leaves that to the number of rollouts."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.success <= 0 or self.episodes < 1 or (self.env_steps is not None and self.env_steps < 1):
            raise ValueError(
                f"success {self.success}, episodes {self.episodes}, env_steps {self.env_steps}: expected positive "
                "numbers"
            )


class ReinforcementStage:
    """Settings of stage 1: reinforcement learning of one task with a critic of its own.

    Args:
        advantage: Advantage source, copied for each task, so that each has a fresh critic.
        objective: Objective; None takes the clipped surrogate of PPO.
        optimizer: Learning rates and ``frozen_parts``, such as ``("backbone",)``; None freezes nothing.
        passes: Number of times that every decision of a rollout is used.
        minibatch_size: Number of decisions in a minibatch.
        warmup: Number of first rollouts on which the critic alone learns: a fresh one would wreck a good policy.
        target_kl: Approximate KL divergence that ends the passes over a rollout, see `PolicyOptimizer`; None never.
        until: End of the stage; None stops at a success rate of 0.9 in the latest 20 episodes.
        carry_critic: Start from the critic of the task before instead of a fresh one.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(
        self,
        advantage: AdvantageSource,
        objective: Objective | None = None,
        optimizer: PolicyAdam | None = None,
        passes: int = 8,
        minibatch_size: int = 512,
        warmup: int = 2,
        target_kl: float | None = 0.02,
        until: StageEnd | None = None,
        carry_critic: bool = False,
    ) -> None:
        if warmup < 0:
            raise ValueError(f"warmup {warmup}: expected no negative number of rollouts")
        self.advantage = advantage
        self.objective = ClippedSurrogate() if objective is None else objective
        self.optimizer = PolicyAdam(critic_learning_rate=1e-3) if optimizer is None else optimizer
        self.passes, self.minibatch_size = passes, minibatch_size
        self.warmup, self.target_kl = warmup, target_kl
        self.until = StageEnd() if until is None else until
        self.carry_critic = carry_critic

    def module(self, policy: Policy, seed: int) -> PolicyOptimizer:
        """Build the training module of one task, with copies of the advantage source and the objective.

        Args:
            policy: Policy that is trained.
            seed: Random seed of the minibatch order.
        """
        return PolicyOptimizer(
            policy,
            copy.deepcopy(self.advantage),
            copy.deepcopy(self.objective),
            passes=self.passes,
            minibatch_size=self.minibatch_size,
            optimizer=self.optimizer,
            target_kl=self.target_kl,
            freeze_policy_batches=self.warmup,
            seed=seed,
        )

    def frozen(self, policy: Policy) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters of a policy that would learn and that the stage must not change, by name.

        Args:
            policy: Policy that is trained.
        """
        for name, value in policy.named_parameters():
            if value.requires_grad and part_of(name, self.optimizer.frozen_parts) is not None:
                yield name, value


class StopAfter(lightning.Callback):
    """Callback that ends a supervised stage after a number of updates.

    Args:
        updates: Number of updates; None never ends it.
    """

    def __init__(self, updates: int | None) -> None:
        self.updates = math.inf if updates is None else updates

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop at once where the checkpoint was the last one."""
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.updates

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where the number is reached."""
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.updates


class StopWhen(lightning.Callback):
    """Callback that ends stage 1 at a success rate or at a number of environment steps.

    Args:
        until: When it ends.
    """

    def __init__(self, until: StageEnd) -> None:
        self.until = until
        self.reason = "rollouts"
        """What ended the stage: ``rollouts``, ``success`` or ``env_steps``."""
        self._outcomes: list[float] = []

    @property
    def success(self) -> float | None:
        """Success rate of the latest training episodes; None before the first."""
        return sum(self._outcomes) / len(self._outcomes) if self._outcomes else None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop at once where the checkpoint was the last one."""
        self._look(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the outcomes of a rollout, and stop where the end is reached."""
        data = cast(RolloutData, cast(Any, trainer).datamodule)
        new = [outcome for outcome in data.outcomes if not math.isnan(outcome)]
        self._outcomes = [*self._outcomes, *new][-self.until.episodes :]
        self._look(trainer)

    def _look(self, trainer: lightning.Trainer) -> None:
        data = cast(RolloutData, cast(Any, trainer).datamodule)
        rate = self.success
        if rate is not None and len(self._outcomes) == self.until.episodes and rate >= self.until.success:
            self.reason, trainer.should_stop = "success", True
        elif self.until.env_steps is not None and data.env_steps >= self.until.env_steps:
            self.reason, trainer.should_stop = "env_steps", True

    def state_dict(self) -> dict[str, Any]:
        """Return the latest outcomes, and what ended the stage."""
        return {"outcomes": self._outcomes, "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        self._outcomes, self.reason = list(state_dict["outcomes"]), str(state_dict["reason"])


__all__ = ["ConsolidationStage", "ReinforcementStage", "StageEnd", "StopWhen", "SupervisedStage", "WithoutSuccess"]
