"""Protocol of simulated tasks: contexts, steps, and what every simulator here can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

import numpy as np

from .saved import SavedState

EVAL_OFFSET = 1_000_000
"""Index of the first evaluation context; everything below is a training context, so the splits cannot overlap."""

OFFICIAL_OFFSET = 2 * EVAL_OFFSET
"""Index of the first context of the split ``"official"``: a benchmark's own protocol, which may repeat other states."""

_RANGES = {"train": 0, "eval": EVAL_OFFSET, "official": OFFICIAL_OFFSET}

Controller = Callable[[np.ndarray], np.ndarray]
"""Function from a state (S,) to an action (A,) within the task's bounds."""

EXPERT_NOISE = 0.5
"""Default noise of noisy experts, in half ranges of the action: enough that some of them fail."""

TRAIN_CONTEXTS = 40
EVAL_CONTEXTS = 100
"""Default number of contexts that `Task.contexts` lists for evaluation; for training it is `TRAIN_CONTEXTS`."""


@dataclass(frozen=True)
class Context:
    """Initial state of a task; with the task's seed it fixes the first observation exactly."""

    task: str
    """Full name of the task, such as ``"metaworld/push-v3"``."""
    index: int
    """Number of the initial state, unique across splits: training below `EVAL_OFFSET`, evaluation from there on."""
    split: str
    """``"train"``, ``"eval"``, or ``"official"`` in tasks with a protocol of their own."""

    def __post_init__(self) -> None:
        if self.split not in _RANGES:
            raise ValueError(f"expected split 'train' or 'eval', got {self.split!r}")
        first = _RANGES[self.split]
        if not first <= self.index < first + EVAL_OFFSET:
            raise ValueError(f"expected a {self.split} index in [{first}, {first + EVAL_OFFSET}), got {self.index}")

    @classmethod
    def numbered(cls, task: str, index: int) -> "Context":
        """Make the context of a number; the split follows from it.

        Args:
            task: Full name of the task.
            index: Number of the initial state.

        Raises:
            ValueError: If no split has this number.
        """
        return cls(task, index, list(_RANGES)[min(max(index, 0) // EVAL_OFFSET, len(_RANGES) - 1)])


@dataclass(frozen=True, kw_only=True)
class Step:
    """Result of one control step."""

    state: np.ndarray
    """State (S,) float32: the observation after the step."""
    reward: float
    """Reward of the environment itself."""
    success: bool
    """Whether the task is solved at this observation; a later step may lose it again."""
    terminated: bool
    """Whether the simulator ended the episode; neither success nor the time limit sets it."""
    stages: Mapping[str, float]
    """Numbers that the simulator reports about the progress of the task, by name."""
    tracks: Mapping[str, np.ndarray]
    """Points (3,) and scalars (1,) in SI units: ``end_effector``, ``object``, ``goal``, ``gripper``."""


@runtime_checkable
class Task(Protocol):
    """Simulated task: one process, one simulator, one episode at a time.

    A task has a time limit but does not enforce it: `VectorEnv` truncates at `horizon`.
    """

    name: str
    """Full name, such as ``"metaworld/push-v3"``."""
    instruction: str
    """Instruction: what to do, in one natural-language sentence."""
    state_size: int
    """Width S of the state."""
    action_size: int
    """Width A of an action."""
    action_low: np.ndarray
    """Smallest action (A,), float32."""
    action_high: np.ndarray
    """Largest action (A,), float32."""
    horizon: int
    """Time limit in control steps."""
    fps: float
    """Control steps per simulated second."""
    seed: int
    """Seed that fixes every context, together with the name."""
    stage_names: tuple[str, ...]
    """Names of `Step.stages`, the same at every step."""
    cameras: tuple[str, ...]
    """Names that `render` accepts; the first is the default."""

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """List the first contexts of a split, the same ones for the same (task, seed).

        Args:
            split: ``"train"`` or ``"eval"``, disjoint by construction; LIBERO's tasks have ``"official"`` as well.
            count: Number of contexts; None lists 40 for training and 100 for evaluation.
        """
        ...

    def reset(self, context: Context) -> np.ndarray:
        """Start an episode; return the first state (S,) float32, identical every time for one context.

        Raises:
            ValueError: If the context belongs to another task.
        """
        ...

    def step(self, action: np.ndarray) -> Step:
        """Execute one action (A,), clipped to the bounds.

        Raises:
            ValueError: If the action has the wrong shape or is not finite.
        """
        ...

    def tracks(self) -> Mapping[str, np.ndarray]:
        """Return the tracks at the current observation (the only way to get them right after `reset`)."""
        ...

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        """Render the current observation; return (3, H, W) uint8 RGB.

        Args:
            camera: One of `cameras`; None takes the first.
            size: Size (H, W) in pixels.
        """
        ...

    def close(self) -> None:
        """Free the simulator and its renderer."""
        ...


@runtime_checkable
class ResumableTask(Task, Protocol):
    """Task that can be saved and restored in the middle of an episode, any number of times; all simulators here can."""

    def save(self) -> SavedState:
        """Copy everything that the future depends on, also in the middle of an episode.

        From `restore` on, the same actions lead to the same states, rewards and successes, bit by bit. The state can be
        restored in this task and in every other one of its class, name and seed, any number of times.
        """
        ...

    def restore(self, saved: SavedState) -> np.ndarray:
        """Restore a saved state; return the state (S,) as it was then.

        Raises:
            ValueError: If the state was saved by a task of another class, name or seed.
        """
        ...


@runtime_checkable
class ExpertTask(Task, Protocol):
    """Task with a scripted expert, from which episodes of chosen quality are collected.

    A task may also have ``expert_noise``, an array (A,): the default noise of noisy experts per action dimension, in
    half ranges of the action; see `expert_noise`.
    """

    def expert(self) -> Controller:
        """Make a new controller for the episode in progress.

        It is called after each `Task.reset`, and the controller acts in that one episode. It may read whatever the
        simulator knows, not only the state that it is given.
        """
        ...


def expert_noise(task: Task, noise: float | int | None = None) -> np.ndarray:
    """Return the largest standard deviation of the noise of noisy experts, (A,), in half ranges of the action.

    Args:
        task: Task; its attribute ``expert_noise`` holds its default, and marks with 0 the dimensions that take no
            noise, such as a gripper. Without the attribute it is 0.5 everywhere.
        noise: Noise of every dimension that takes noise; None takes the task's default.

    Raises:
        ValueError: If the noise is negative or not finite, or the attribute has another shape.
    """
    own = np.asarray(getattr(task, "expert_noise", np.full(task.action_size, EXPERT_NOISE)), np.float64)
    if own.shape != (task.action_size,) or not (np.isfinite(own).all() and (own >= 0).all()):
        raise ValueError(
            f"{task.name}: expected expert_noise of shape ({task.action_size},), finite and at least 0, got {own}"
        )
    if noise is None:
        return own
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"expected a noise of at least 0, in half ranges of the action, got {noise}")
    return np.where(own > 0, float(noise), 0.0)


def missing_members(task: object) -> list[str]:
    """List the attributes and methods of the `Task` protocol that an object lacks, in the order of the protocol.

    Args:
        task: Object that should be a task.
    """
    methods = [name for name, value in vars(Task).items() if callable(value) and not name.startswith("_")]
    return [name for name in (*Task.__annotations__, *methods) if not hasattr(task, name)]


def list_contexts(task: str, split: str, count: int | None) -> list[Context]:
    """List contexts 0, 1, … of a split of a task; see `Task.contexts`.

    Args:
        task: Full name of the task.
        split: ``"train"`` or ``"eval"``.
        count: Number of contexts; None lists 40 for training and 100 for evaluation.

    Raises:
        ValueError: If the split is unknown, or the number out of range.
    """
    if split not in ("train", "eval"):
        official = " (only tasks of LIBERO have an official protocol)" if split == "official" else ""
        raise ValueError(f"{task}: expected split 'train' or 'eval', got {split!r}{official}")
    if count is None:
        count = TRAIN_CONTEXTS if split == "train" else EVAL_CONTEXTS
    if not 0 < count <= EVAL_OFFSET:
        raise ValueError(f"expected between 1 and {EVAL_OFFSET} contexts, got {count}")
    first = 0 if split == "train" else EVAL_OFFSET
    return [Context(task, first + i, split) for i in range(count)]


def check_context(task: str, context: Context) -> None:
    """Check that a context belongs to a task.

    Args:
        task: Full name of the task.
        context: Context.

    Raises:
        ValueError: If it belongs to another task; both are named.
    """
    if context.task != task:
        raise ValueError(f"{task}: expected a context of this task, got one of {context.task}; use its own contexts()")


def check_action(task: str, action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Check an action (A,) and clip it to its bounds; return float64, in which simulators compute.

    Args:
        task: Full name of the task, for the error.
        action: Action (A,).
        low: Smallest action (A,).
        high: Largest action (A,).

    Raises:
        ValueError: If the shape is wrong, or a number is not finite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != low.shape:
        raise ValueError(f"{task}: expected an action of shape {low.shape}, got {action.shape}")
    if not all(map(isfinite, action.tolist())):  # of so few numbers, several times faster than numpy's
        raise ValueError(f"{task}: expected a finite action, got {action.tolist()}")
    return action.clip(low, high)


def check_state(task: str, state: np.ndarray) -> np.ndarray:
    """Convert a simulator's observation to a state (S,) in float32.

    Args:
        task: Full name of the task, for the error.
        state: Observation (S,).

    Raises:
        FloatingPointError: If a number is not finite: the simulation diverged.
    """
    state = np.asarray(state, dtype=np.float32)
    if np.count_nonzero(np.isfinite(state)) < state.size:
        raise FloatingPointError(f"{task}: the simulation diverged (non-finite state); drop this episode")
    return state
