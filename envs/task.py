"""What a simulated task is: its contexts, its steps, and the protocol every simulator here answers to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from .saved import SavedState

EVAL_OFFSET = 1_000_000
"""Index of the first evaluation context; everything below is a training context, so the splits cannot overlap."""

TRAIN_CONTEXTS = 40
EVAL_CONTEXTS = 100
"""How many contexts `Task.contexts` lists when no count is given."""


@dataclass(frozen=True)
class Context:
    """One cached initial state of one task; with the task's seed it fixes the first observation exactly."""

    task: str
    """Full name of the task, such as ``"metaworld/push-v3"``."""
    index: int
    """Number of the initial state, unique across splits: training below `EVAL_OFFSET`, evaluation from there on."""
    split: str
    """``"train"`` or ``"eval"``."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "eval"):
            raise ValueError(f"expected split 'train' or 'eval', got {self.split!r}")
        first, last = (0, EVAL_OFFSET) if self.split == "train" else (EVAL_OFFSET, 2 * EVAL_OFFSET)
        if not first <= self.index < last:
            raise ValueError(f"expected a {self.split} index in [{first}, {last}), got {self.index}")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one control step led to."""

    state: np.ndarray
    """(S,) float32: the observation after the step."""
    reward: float
    """The environment's own reward."""
    success: bool
    """Whether the task is solved at this observation; a later step may lose it again."""
    terminated: bool
    """The simulator's own termination; neither success nor the time limit sets it."""
    stages: Mapping[str, float]
    """Numbers the simulator knows about the progress of the task, by name."""
    tracks: Mapping[str, np.ndarray]
    """Points (3,) and scalars (1,) in SI units: ``end_effector``, ``object``, ``goal``, ``gripper``."""


@runtime_checkable
class Task(Protocol):
    """A simulated task: one process, one simulator, one episode at a time.

    A task knows its time limit but does not enforce it: `VectorEnv` truncates at `horizon`.
    """

    name: str
    """Full name, such as ``"metaworld/push-v3"``."""
    instruction: str
    """What to do, in one natural-language sentence."""
    state_size: int
    """S, the width of the state."""
    action_size: int
    """A, the width of an action."""
    action_low: np.ndarray
    """(A,) float32: smallest action."""
    action_high: np.ndarray
    """(A,) float32: largest action."""
    horizon: int
    """Time limit in control steps."""
    fps: float
    """Control steps per simulated second."""
    seed: int
    """With the name it fixes every context."""
    stage_names: tuple[str, ...]
    """Names of `Step.stages`, the same at every step."""
    cameras: tuple[str, ...]
    """Names `render` accepts; the first is the default."""

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """List the first contexts of a split, the same ones for the same (task, seed).

        Args:
            split: ``"train"`` or ``"eval"``; the two are disjoint by construction.
            count: how many; None means 40 for training and 100 for evaluation.
        """
        ...

    def reset(self, context: Context) -> np.ndarray:
        """Start an episode; returns the first state (S,) float32, identical every time for one context.

        Raises:
            ValueError: the context belongs to another task.
        """
        ...

    def step(self, action: np.ndarray) -> Step:
        """Execute one action (A,), clipped to the bounds.

        Raises:
            ValueError: the action has the wrong shape or is not finite.
        """
        ...

    def tracks(self) -> Mapping[str, np.ndarray]:
        """Tracks at the current observation (the only way to have them right after `reset`)."""
        ...

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        """Picture of the current observation, (3, H, W) uint8 RGB.

        Args:
            camera: one of `cameras`; None means the first.
            size: (H, W) in pixels.
        """
        ...

    def close(self) -> None:
        """Free the simulator and its renderer."""
        ...


@runtime_checkable
class ResumableTask(Task, Protocol):
    """A task that can go on from the middle of an episode as often as one likes; every simulator here can."""

    def save(self) -> SavedState:
        """Copy everything that what follows depends on, in the middle of an episode too.

        From `restore` on, the same actions lead to the same states, rewards and successes, bit by bit. The state is
        good for this task and for every other one of its class, name and seed, as often as one likes.
        """
        ...

    def restore(self, saved: SavedState) -> np.ndarray:
        """Go on from a saved state; returns the state (S,) as it was then.

        Raises:
            ValueError: the state was saved by a task of another class, name or seed.
        """
        ...


def list_contexts(task: str, split: str, count: int | None) -> list[Context]:
    """Contexts 0, 1, … of a split of a task; see `Task.contexts`."""
    if split not in ("train", "eval"):
        raise ValueError(f"expected split 'train' or 'eval', got {split!r}")
    if count is None:
        count = TRAIN_CONTEXTS if split == "train" else EVAL_CONTEXTS
    if not 0 < count <= EVAL_OFFSET:
        raise ValueError(f"expected between 1 and {EVAL_OFFSET} contexts, got {count}")
    first = 0 if split == "train" else EVAL_OFFSET
    return [Context(task, first + i, split) for i in range(count)]


def check_context(task: str, context: Context) -> None:
    """Refuse a context of another task.

    Raises:
        ValueError: naming both tasks.
    """
    if context.task != task:
        raise ValueError(f"{task}: expected a context of this task, got one of {context.task}; use its own contexts()")


def check_action(task: str, action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Validate an action (A,) and clip it to its bounds; returns float64, which is what simulators compute in.

    Raises:
        ValueError: wrong shape, or NaN or infinity, naming the task.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != low.shape:
        raise ValueError(f"{task}: expected an action of shape {low.shape}, got {action.shape}")
    if not np.isfinite(action).all():
        raise ValueError(f"{task}: expected a finite action, got {action.tolist()}")
    return np.clip(action, low, high)


def check_state(task: str, state: np.ndarray) -> np.ndarray:
    """Turn a simulator's observation into a finite (S,) float32 state.

    Raises:
        FloatingPointError: the simulation diverged.
    """
    state = np.asarray(state, dtype=np.float32)
    if not np.isfinite(state).all():
        raise FloatingPointError(f"{task}: the simulation diverged (non-finite state); drop this episode")
    return state
