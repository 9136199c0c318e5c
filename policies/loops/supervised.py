"""Supervised stage of a training loop: logged episodes are cloned in a folder of its own."""

import torch

from ...core.files import write_json
from ...core.interfaces import Policy
from ...datasets.module import EpisodeData
from ..advantages.reward_to_go import Uniform
from ..objectives import WeightedImitation
from ..optimizer import PolicyOptimizer
from .ire_vla_stages import StopAfter, SupervisedStage
from .stages import CHECKPOINTS, STAGE, EpochCheckpoint, StageFolder


def clone_episodes(
    stage: StageFolder, settings: SupervisedStage, policy: Policy, data: EpisodeData, seed: int, accelerator: str
) -> None:
    """Train a policy on logged episodes by imitation, and complete the stage.

    Args:
        stage: Folder of the stage.
        settings: Settings of the stage.
        policy: Policy that is trained.
        data: Logged episodes.
        seed: Random seed of initial weights and of the order of minibatches.
        accelerator: Accelerator of Lightning, such as ``"cpu"``.
    """
    torch.manual_seed(seed)
    module = PolicyOptimizer(
        policy,
        Uniform(),
        WeightedImitation(),
        passes=settings.passes,
        minibatch_size=settings.minibatch_size,
        optimizer=settings.optimizer,
        seed=seed,
    )
    callbacks = [StopAfter(settings.updates), EpochCheckpoint(stage.path / CHECKPOINTS)]
    stage.fit(module, data, callbacks, settings.epochs, accelerator)
    write_json(stage.path / STAGE, {"paths": data.folders, "updates": int(module.trainer.global_step)})
    stage.finish(module.policy)


__all__ = ["clone_episodes"]
