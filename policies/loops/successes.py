"""Successful trajectories of rollouts, gathered while a policy learns and written as a data set."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning
import numpy as np
import torch
from torch import Tensor

from ...core.batch import End, Sampled, TrajectoryBatch
from ...core.interfaces import Policy
from ...datasets.episodes import ArrayFrames, Column, Episode
from ...datasets.formats.lerobot_writer import LeRobotWriter
from ...envs.quality import POLICY, SOURCES
from ...envs.task import Task
from ..rollouts.stream import evaluating

Keep = Literal["last", "shortest"]


@dataclass(frozen=True, kw_only=True)
class SuccessBuffer:
    """Settings of the online buffer: which successful trajectories of a task are kept, and how they are stored.

    The iRe-VLA paper (arXiv 2501.16664) keeps every success. Here the number is limited for each task, because early
    successes are noisy and later ones many.

    Raises:
        ValueError: If a number makes no sense, or ``keep`` is unknown.
    """

    size: int = 50
    """Largest number of trajectories of each task, at least 1."""
    keep: Keep = "last"
    """Which trajectories stay once there are more: the latest ones, or those with the fewest steps."""
    hold_steps: int = 0
    """Number of control steps that are kept after the first success, where the episode went on; 0 or more."""
    relabel: bool = False
    """Store the deterministic actions of the policy as it is at the end of an episode, at the episode's observations,
    in place of the executed ones."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.size < 1 or self.hold_steps < 0 or self.keep not in get_args(Keep):
            raise ValueError(
                f"size {self.size}, keep {self.keep!r}, hold_steps {self.hold_steps}: expected at least one "
                f"trajectory, {' or '.join(get_args(Keep))}, and no negative number of steps"
            )


@dataclass(frozen=True, kw_only=True)
class Success:
    """One successful trajectory, cut at its success."""

    state: Tensor
    """State (T+1, S) of each observation."""
    actions: Tensor
    """Action (T, A) of each step."""
    instruction: str
    group: int
    """Number of the initial state, or of its draw where rollouts are made in groups."""
    success_step: int
    """Observation of the first success."""
    frames: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])
    """Frames (F, 3, H, W) uint8 of each camera, and the observation (F,) of each."""

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.actions)


def successes_in(batch: TrajectoryBatch, policy: Policy, setting: SuccessBuffer) -> list[Success]:
    """Take the successful episodes that ended in a rollout, each cut at its first success.

    A row of a rollout holds its episode from the start, also where earlier rollouts held a part of it.

    Args:
        batch: Rollout, with its outcomes.
        policy: Policy that acted, in evaluation mode; asked only if actions are relabelled.
        setting: Settings of the buffer.

    Raises:
        ValueError: If the batch holds features in place of the frames that the policy saw: they cannot be stored.
    """
    won = batch.success_known & (batch.success > 0) & (batch.end != int(End.CUT)) & (batch.offset == 0)
    rows = won.nonzero()[:, 0].tolist()
    if rows and batch.features and not batch.frames:
        raise ValueError(
            f"the rollouts hold features ({', '.join(batch.features)}) in place of frames, and a data set stores "
            "frames only: leave the encoder out of frames, and put it into the policy"
        )
    flags = batch.labels.get("success")
    found: list[Success] = []
    for row in rows:
        length = int(batch.steps[row])
        first = length
        if flags is not None:
            reached = (flags.values[row] > 0) & flags.valid[row]
            first = int(reached.nonzero()[0, 0]) if bool(reached.any()) else length
        steps = min(length, first + setting.hold_steps)
        actions = _mean_actions(batch, policy, row, length) if setting.relabel else batch.actions[row, :length]
        found.append(
            Success(
                state=_host(batch.state[row, : steps + 1]),
                actions=_host(actions[:steps]),
                instruction=batch.instructions[row],
                group=int(batch.group[row]),
                success_step=first,
                frames={camera: _frames(sampled, row, steps) for camera, sampled in batch.frames.items()},
            )
        )
    return found


def _mean_actions(batch: TrajectoryBatch, policy: Policy, row: int, length: int) -> Tensor:
    """Compute the deterministic actions (T, A) of a policy at the decisions of a row."""
    steps = batch.decision_step[row][batch.decision_mask[row]]
    observation = batch.observe(torch.full_like(steps, row), steps)
    chunks = policy.act(observation, deterministic=True).chunk
    actions = batch.actions[row, :length].clone()
    ends = [*steps[1:].tolist(), length]
    for chunk, start, end in zip(chunks, steps.tolist(), ends, strict=True):
        taken = min(end - start, len(chunk))
        actions[start : start + taken] = chunk[:taken].to(actions)
    return actions


def _host(values: Tensor) -> Tensor:
    return values.detach().cpu().clone()


def _frames(sampled: Sampled, row: int, steps: int) -> tuple[Tensor, Tensor]:
    step = sampled.step[row]
    held = (step >= 0) & (step <= steps)
    return _host(sampled.values[row][held]), _host(step[held])


class GatherSuccesses(lightning.Callback):
    """Callback that gathers the successful trajectories of the rollouts of one task.

    What it holds goes into every checkpoint, so that an interruption loses none.

    Args:
        setting: Settings of the buffer.
    """

    def __init__(self, setting: SuccessBuffer) -> None:
        self.setting = setting
        self.kept: list[Success] = []
        """Trajectories that are kept, in the order in which they were found."""
        self.episodes, self.found = 0, 0
        """Number of episodes that ended, and of those that were successful."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the successes of a rollout, before the policy that made it learns from it."""
        rollout = cast(TrajectoryBatch, batch)
        policy = cast(Policy, pl_module.policy)
        with evaluating(policy):
            new = successes_in(rollout, policy, self.setting)
        self.episodes += int((rollout.end != int(End.CUT)).sum())
        self.found += len(new)
        self.kept = kept_of([*self.kept, *new], self.setting)

    def state_dict(self) -> dict[str, Any]:
        """Return the trajectories and the counts as plain tensors and numbers."""
        return {
            "episodes": self.episodes,
            "found": self.found,
            "kept": [
                {
                    "state": one.state,
                    "actions": one.actions,
                    "instruction": one.instruction,
                    "group": one.group,
                    "success_step": one.success_step,
                    "frames": {camera: list(parts) for camera, parts in one.frames.items()},
                }
                for one in self.kept
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        self.episodes, self.found = int(state_dict["episodes"]), int(state_dict["found"])
        self.kept = [
            Success(
                state=one["state"],
                actions=one["actions"],
                instruction=one["instruction"],
                group=int(one["group"]),
                success_step=int(one["success_step"]),
                frames={camera: (parts[0], parts[1]) for camera, parts in one["frames"].items()},
            )
            for one in state_dict["kept"]
        ]


def kept_of(found: Sequence[Success], setting: SuccessBuffer) -> list[Success]:
    """Choose the trajectories that stay, in the order in which they were found.

    Args:
        found: Trajectories, the earliest first.
        setting: Settings of the buffer.
    """
    if setting.keep == "last":
        return list(found[-setting.size :])
    order = sorted(range(len(found)), key=lambda place: (found[place].steps, -place))  # of equal ones the later
    return [found[place] for place in sorted(order[: setting.size])]


def write_successes(kept: Sequence[Success], task: Task, folder: Path, grouped: bool) -> None:
    """Write trajectories as a data set of successes, whole or not at all; an earlier one in the folder is replaced.

    Args:
        kept: Trajectories, at least one.
        task: Simulator of the task, whose action bounds hold for relabelled actions.
        folder: Folder of the data set.
        grouped: Whether ``group`` numbers draws, so that the initial state of a trajectory is not known.
    """
    name = f"{task.name}#{task.seed}"
    if folder.exists():
        shutil.rmtree(folder)
    with LeRobotWriter(folder, task.fps, robot_type=task.name) as writer:
        for index, one in enumerate(kept):
            context = "" if grouped else f"{name}.{one.group}"
            writer.add(_episode(one, index, context, task.action_low, task.action_high, task.fps))


def _episode(one: Success, index: int, context: str, low: np.ndarray, high: np.ndarray, fps: float) -> Episode:
    observation = np.arange(one.steps + 1)
    solved, known = observation == one.success_step, (observation > 0) & (observation <= one.success_step)
    return Episode(
        index=index,
        state=one.state.numpy().astype(np.float32),
        actions=one.actions.numpy().clip(low, high).astype(np.float32),
        instruction=one.instruction,
        fps=fps,
        end=End.SUCCESS,
        success=1.0,
        frames={camera: _recorded(values, step) for camera, (values, step) in one.frames.items()},
        labels={"success": Column(values=solved.astype(np.float32), valid=known)},
        group=one.group,
        source=SOURCES.index(POLICY),
        quality=POLICY,
        context=context,
        split="train",
    )


def _recorded(values: Tensor, step: Tensor) -> ArrayFrames:
    pictures = values.numpy()
    identity = hashlib.blake2b(pictures.tobytes(), digest_size=16).hexdigest()
    return ArrayFrames(values=pictures, step=step.numpy().astype(np.int64), identity=identity)


__all__ = ["GatherSuccesses", "Keep", "Success", "SuccessBuffer", "kept_of", "successes_in", "write_successes"]
