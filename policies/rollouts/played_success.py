"""Success of a policy that learns from logged episodes, played in the simulator at every validation."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from ...core.interfaces import Policy
from ...core.sizes import DataSizes, HasSizes
from ...envs.task import Context
from ...envs.vector import sizes_of
from .frames import RolloutFrames
from .pool import play_episodes
from .setting import TaskSetting
from .stream import evaluating


class PlayedSuccess(lightning.Callback):
    """Play the policy on held-out starts at every validation, and log its success rate as ``val_success``.

    Logged episodes tell how often the behaviour policy succeeded (``data_success``), not how often this one does. Where
    there is no validation data, the policy is played every ``check_val_every_n_epoch`` epochs. ``val_episodes`` is the
    number of episodes. Nothing that is drawn in training changes.

    Args:
        task: Name of the task, see `guerdon.make_task`, or names of several tasks with the same state and action sizes.
        episodes: Number of held-out starts of each task, at least 1.
        envs: Number of environments.
        workers: Number of processes that hold them; 0 uses this one.
        horizon: Time limit in control steps; None takes that of each task.
        frames: Cameras that are rendered for the policy; None renders nothing.
        task_seed: Seed that fixes the starts.
        split: Split of the starts.
        seed: Random seed of the policy's noise.

    Raises:
        ValueError: If there is no task or no episode.
    """

    def __init__(
        self,
        task: str | Sequence[str],
        episodes: int = 20,
        envs: int = 8,
        workers: int = 0,
        horizon: int | None = None,
        frames: RolloutFrames | None = None,
        task_seed: int = 0,
        split: str = "eval",
        seed: int = 0,
    ) -> None:
        if episodes < 1 or envs < 1:
            raise ValueError(f"episodes {episodes}, envs {envs}: expected at least 1 each")
        self.setting = TaskSetting(task=task, horizon=horizon, task_seed=task_seed, frames=frames)
        self.episodes, self.envs, self.workers, self.split, self.seed = episodes, envs, workers, split, seed
        self._contexts: list[Context] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """List the starts, and compare the sizes of the tasks with those of the data.

        Raises:
            TypeError: If the module has no policy.
            ValueError: If the sizes differ, or there is no task of that name.
        """
        if not isinstance(getattr(pl_module, "policy", None), Policy):
            raise TypeError(
                f"PlayedSuccess needs a module with a policy, such as PolicyOptimizer, got {type(pl_module).__name__}"
            )
        data: object = cast(Any, trainer).datamodule
        given = data.sizes if isinstance(data, HasSizes) else None
        self._contexts = []
        for number in range(len(self.setting.tasks)):
            with closing(self.setting.make(number)) as task:
                _check_sizes(sizes_of(task), given)
                self._contexts += task.contexts(self.split, self.episodes)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Play and log, except in the sanity check, which logs nothing."""
        if not trainer.sanity_checking:
            self._play(pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Play and log where there is no validation data."""
        validated = sum(int(n) for n in cast(Any, trainer).num_val_batches)
        every = trainer.check_val_every_n_epoch or 1
        if not validated and (trainer.current_epoch + 1) % every == 0:
            self._play(pl_module)

    def _play(self, module: lightning.LightningModule) -> None:
        policy = cast(Policy, module.policy)
        with evaluating(policy), isolate_rng(), torch.no_grad():
            batch = play_episodes(self.setting, policy, self._contexts, self.envs, self.workers, self.seed)
        success = batch.success[batch.success_known]
        module.log("val_success", float(success.float().mean()), prog_bar=True, batch_size=len(success), sync_dist=True)
        module.log("val_episodes", float(len(success)), batch_size=1, sync_dist=True)


def _check_sizes(task: DataSizes, data: DataSizes | None) -> None:
    if data is None or (task.state_size, task.action_size) == (data.state_size, data.action_size):
        return
    raise ValueError(
        f"{task.name} has states of {task.state_size} and actions of {task.action_size} numbers, {data.name} of "
        f"{data.state_size} and {data.action_size}: give PlayedSuccess the task that was recorded"
    )


__all__ = ["PlayedSuccess"]
