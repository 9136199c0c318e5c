"""The policy of ``guerdon collect --policy``: opened, checked against the task, and made the actor of its episodes."""

import argparse

import numpy as np

from ..backbones.vision import VisionEncoder
from ..core.interfaces import Policy
from ..core.opening import open_component
from ..envs.quality import ActorMaker, Behaviour
from ..envs.task import Context, Task
from ..evaluation.policies.playing import check_fits
from ..evaluation.policies.setting import OpenedPolicy, PlaySetting
from ..policies.actor import actor_of
from ..policies.rollouts.frames import RolloutFrames


def open_actor(options: argparse.Namespace) -> ActorMaker:
    """Open a saved policy, and return the function that makes the actor of each episode.

    The policy acts on the CPU. Before the first episode it is checked that it can act in the task.

    Args:
        options: Parsed arguments of ``guerdon collect``.

    Raises:
        ValueError: If the folder holds no policy.
        FileNotFoundError: If there is nothing at the path.
    """
    policy, identity = open_component(options.policy, Policy, "a policy", "cpu", options.trust)
    opened = OpenedPolicy(policy=policy, identity=identity)
    encoder: VisionEncoder | None = None
    if options.encoder is not None:
        encoder, _ = open_component(options.encoder, VisionEncoder, "a vision encoder", "cpu", options.trust)
    deterministic = bool(options.deterministic)
    made: ActorMaker | None = None

    def make(task: Task, context: Context, generator: np.random.Generator) -> Behaviour:
        nonlocal made
        if made is None:
            frames = None
            if options.frames or encoder is not None:
                cameras = options.camera or task.cameras[:1]
                frames = RolloutFrames(cameras=cameras, image_size=options.image_size, encoder=encoder)
            check_fits(opened, task, context, PlaySetting(sampled=not deterministic, frames=frames))
            made = actor_of(policy, deterministic, frames)
        return made(task, context, generator)

    return make


__all__ = ["open_actor"]
