"""Plays the starts of a task, part by part, so that no outcome depends on what was played before or beside it."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ...backbones.perceptron import Inputs
from ...core.interfaces import Policy
from ...core.sizes import DataSizes
from ...envs.collect import can_draw
from ...envs.task import Context, Task
from ...envs.vector import sizes_of
from ...policies.actor import observe
from ...policies.rollouts.alone import decide_alone, episode_generator, global_noise_restored
from ...policies.rollouts.pieces import Piece
from ...policies.rollouts.pool import WorkerPool
from .setting import OpenedPolicy, PlaySetting

PART = 16
"""Number of starts in a part. It is fixed, because a policy's noise follows from the part and the place in it."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What is read from a task before anything is played."""

    env: str
    """Name of the task as it was given."""
    sizes: DataSizes
    """Name that the task gives itself, and widths of its states and actions."""
    contexts: Sequence[Context]
    """Initial states that are played."""
    fps: float
    """Control steps per simulated second."""
    cameras: Sequence[str]
    """Cameras of the task."""
    draws: bool
    """Whether pictures can be rendered here."""


def read_task(env: str, episodes: int, setting: PlaySetting, policies: Sequence[OpenedPolicy]) -> TaskFacts:
    """Build a task, read what an evaluation needs, and check that every policy can act in it.

    Args:
        env: Name of the task.
        episodes: Number of starts.
        setting: Setting of the evaluation.
        policies: Policies that will act.

    Raises:
        ValueError: If the task or split is unknown, there are fewer starts, or a policy is not for this task.
    """
    with closing(setting.of(env).make(0)) as task:
        contexts = task.contexts(setting.split, episodes)
        if len(contexts) < episodes:
            raise ValueError(f"{env} has {len(contexts)} starts in split {setting.split!r}, fewer than {episodes}")
        for opened in policies:
            check_fits(opened, task, contexts[0], setting)
        return TaskFacts(
            env=env,
            sizes=sizes_of(task),
            contexts=contexts,
            fps=task.fps,
            cameras=tuple(task.cameras),
            draws=can_draw(task),
        )


def check_fits(opened: OpenedPolicy, task: Task, context: Context, setting: PlaySetting) -> None:
    """Check that a policy can act in a task, by its sizes and by one decision.

    Args:
        opened: Policy.
        task: Task; it is reset to the context.
        context: Initial state.
        setting: Setting of the evaluation.

    Raises:
        ValueError: If the policy is made for other sizes, or cannot decide at the first observation.
    """
    policy, where = opened.policy, opened.identity.get("path", type(opened.policy).__name__)
    own = [getattr(policy, name, None) for name in ("state_size", "action_size")]
    needed = [task.state_size, task.action_size]
    # a policy of state size 0 reads no state
    wrong = any(isinstance(has, int) and has not in (need, 0) for has, need in zip(own, needed, strict=True))
    if wrong:
        raise ValueError(
            f"{task.name} has states of width {needed[0]} and actions of width {needed[1]}, the policy {where} is made "
            f"for widths {own[0]} and {own[1]}: use it in the task it was trained on"
        )
    _check_features(opened, where, setting)
    observation = observe(task, task.reset(context), setting.frames)
    try:
        with acting([policy]), global_noise_restored(policy):
            decision = decide_alone(policy, observation, episode_generator(0, 0), not setting.sampled)
    except Exception as error:
        raise ValueError(
            f"the policy {where} cannot act in {task.name}: {error}; use it in the task it was trained on, with "
            "the cameras it needs"
        ) from error
    if decision.chunk.shape[2] != task.action_size:
        raise ValueError(
            f"{task.name} has actions of width {task.action_size}, the policy {where} gives actions of width "
            f"{decision.chunk.shape[2]}: use it in the task it was trained on"
        )


def _check_features(opened: OpenedPolicy, where: str, setting: PlaySetting) -> None:
    """Check that the features which a policy reads are made."""
    made: Mapping[str, int] = {} if setting.frames is None else setting.frames.feature_sizes
    read = [name for part in opened.policy.modules() if isinstance(part, Inputs) for name in part.feature_sizes]
    missing = [name for name in read if name not in made]
    if not missing:
        return
    if not made:
        raise ValueError(
            f"the policy {where} reads features, {', '.join(missing)}, which a frozen encoder makes of frames: name "
            "the folder of that encoder with --encoder DIR (encoder of RolloutFrames)"
        )
    raise ValueError(
        f"the policy {where} reads the features {', '.join(missing)}, the encoder gives {', '.join(made)}: take the "
        "encoder and the cameras that it was trained with"
    )


@contextmanager
def acting(policies: Sequence[Policy]) -> Generator[None]:
    """Put policies in evaluation mode, and torch on one thread, as in worker processes, where they run on the CPU.

    How many threads share a product may decide its last bits.

    Args:
        policies: Policies that act in the block; their modes are restored.
    """
    modes = [{name: part.training for name, part in policy.named_modules()} for policy in policies]
    threads = torch.get_num_threads()
    for policy in policies:
        policy.eval()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for policy, mode in zip(policies, modes, strict=True):
            for name, part in policy.named_modules():
                part.training = mode[name]


def part_seed(seed: int, number: int) -> int:
    """Return the random seed of a part's noise.

    Args:
        seed: Random seed of the evaluation.
        number: Number of the part.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


def play_part(
    pool: WorkerPool, policy: Policy, contexts: Sequence[Context], number: int, setting: PlaySetting
) -> list[Piece]:
    """Play the starts of one part.

    Args:
        pool: Pool that plays the task.
        policy: Policy that acts.
        contexts: All starts of the task, or the first of them.
        number: Number of the part.
        setting: Setting of the evaluation.

    Returns:
        One whole episode per start of the part, in their order.
    """
    mine = contexts[number * PART : (number + 1) * PART]
    return pool.play(policy, mine, part_seed(setting.seed, number), not setting.sampled, one_by_one=True)


__all__ = ["PART", "TaskFacts", "acting", "check_fits", "part_seed", "play_part", "read_task"]
