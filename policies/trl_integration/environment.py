"""Simulated tasks as environments of TRL's GRPO trainer: a language model acts by calling a tool."""

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

import datasets

from ...core.batch import End, TrajectoryBatch
from ...core.interfaces import RewardModel
from ...datasets.collate import collate
from ...envs.naming import make_task
from ...envs.recording import Recording
from ...envs.task import Context, Task
from .rewards import Reduction, require_reduction, trajectory_scores

TASK_PROMPT = (
    "Control a robot arm: {instruction}. Call act with {actions} numbers from {low} to {high}, the action of the next "
    "control step, until the task is done. "
)
"""Prompt of `TRLEnvironments.dataset`."""


class TRLEnvironment:
    """Simulated task that a language model plays by calling the tool ``act``, scored by a reward model.

    TRL makes every public method a tool except ``reset`` and ``get_reward``, so there are no others; it reuses an
    environment for many episodes and never closes it. The simulator is closed when the environment is collected, or at
    the end of the process. An episode ends with the first success, when the simulator ends it, or at the time limit.
    One that the model leaves before that, or whose tokens run out, ends in failure, as an expert that gives up does.

    Args:
        task: Task; the environment closes it.
        reward: Reward model that scores whole episodes.
        reduce: Reduction of the rewards of an episode to one number; see `trajectory_scores`.
        hold: Number of control steps that every action is held for.
        cameras: Names of the task's cameras whose frames the reward model reads.
        image_size: Size (H, W) of the frames, in pixels.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        task: Task,
        reward: RewardModel,
        reduce: Reduction = "sum",
        hold: int = 1,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = (96, 96),
    ) -> None:
        require_reduction(reduce)
        if hold < 1:
            raise ValueError(f"hold {hold}: expected at least one control step for each action")
        if unknown := sorted(set(cameras) - set(task.cameras)):
            raise ValueError(f"{task.name}: unknown camera {unknown[0]!r}; it has {', '.join(task.cameras)}")
        self._task, self._reward, self._hold = task, reward, hold
        self._reduce: Reduction = reduce
        self._cameras, self._size = tuple(cameras), image_size
        self._recording: Recording | None = None
        self._context: Context | None = None
        self._end: End | None = None
        self._diverged = False
        self._crash: Exception | None = None
        self._closing = weakref.finalize(self, task.close)

    # TRL passes all columns of the data set's row, whatever they are
    def reset(self, **columns: Any) -> str:
        """Start an episode.

        Args:
            columns: Columns of the data set's row; ``context`` is the number of the initial state.

        Returns:
            First observation.

        Raises:
            ValueError: If there is no such context.
        """
        number = columns.get("context")
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(
                f"column 'context': expected the number of an initial state of {self._task.name}, got {number!r}; make "
                "the data set with TRLEnvironments.dataset, or add the column"
            )
        self._context = Context.numbered(self._task.name, number)
        self._end, self._diverged, self._crash = None, False, None
        self._recording = Recording(self._task, self._cameras, self._size, 1)
        return self._describe(self._recording.start(self._context))

    def act(self, action: list[float]) -> str:
        """Move the robot by one action.

        Args:
            action: Numbers of the action, one for each dimension, within the bounds of the robot.

        Returns:
            Observation after the action.
        """
        recording = self._playing()
        checked = self._checked(action)
        state = np.zeros(0, np.float32)
        try:
            for _ in range(self._hold):
                step = recording.take(checked)
                state = step.state
                if step.success:
                    self._end = End.SUCCESS
                elif step.terminated:
                    self._end = End.FAILURE
                elif recording.steps >= self._task.horizon:
                    self._end = End.TIME_LIMIT
                if self._end is not None:
                    break
        except FloatingPointError:  # the simulation diverged: the episode has no reward
            self._diverged = True
            raise
        except Exception as error:  # TRL shows errors of tools to the model and goes on
            self._crash = error
            raise
        return self._describe(state)

    def get_reward(self) -> float | None:
        """Score the episode.

        Returns:
            Reward; None where no action was executed, the simulation diverged, or the reward model abstains.

        Raises:
            RuntimeError: If the simulator crashed in ``act``.
        """
        if self._crash is not None:
            raise RuntimeError(f"{self._task.name} crashed while the model acted: {self._crash}") from self._crash
        batch = self._trajectory
        return None if batch is None else trajectory_scores(self._reward, batch, self._reduce)[0]

    @property
    def _trajectory(self) -> TrajectoryBatch | None:
        """Episode as a batch of one row; None where it has no step, or the simulation diverged."""
        recording, context = self._recording, self._context
        if recording is None or context is None or self._diverged or not recording.steps:
            return None
        recording.finish()
        end = End.FAILURE if self._end is None else self._end
        return collate([recording.episode(0, context, "policy", end, {})], self._cameras)

    def _close(self) -> None:
        """Close the simulator, once."""
        self._closing()

    def _playing(self) -> Recording:
        if self._recording is None:
            raise RuntimeError(f"{self._task.name} was not started: call reset before act")
        if self._end is not None or self._diverged or self._crash is not None:
            raise RuntimeError("the episode is over: stop acting")
        return self._recording

    def _checked(self, action: Any) -> np.ndarray:
        low, high = self._task.action_low, self._task.action_high
        numbers = list(action) if isinstance(action, list | tuple) else []
        right = len(numbers) == len(low) and all(
            isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
        )
        if right and all(a <= n <= b for n, a, b in zip(numbers, low.tolist(), high.tolist(), strict=True)):
            return np.array(numbers, np.float32)
        bounds = f"from {np.round(low, 4).tolist()} to {np.round(high, 4).tolist()}"
        raise ValueError(f"expected an action of {len(low)} numbers {bounds}, got {str(action)[:200]}")

    def _describe(self, state: np.ndarray) -> str:
        done = self._recording.steps if self._recording is not None else 0
        numbers = ", ".join(f"{number:.3g}" for number in state.tolist())
        after = {
            End.SUCCESS: " The task is done.",
            End.FAILURE: " The episode has ended.",
            End.TIME_LIMIT: " The time is over.",
            None: "",
        }[self._end]
        return f"Step {done} of {self._task.horizon}, state [{numbers}].{after}"


class TRLEnvironments:
    """Factory of environments for the ``environment_factory`` of TRL's GRPO trainer; it can be pickled.

    Args:
        env: Name of the task; see `guerdon.make_task`.
        reward: Reward model that scores whole episodes; the environments share it.
        reduce: Reduction of the rewards of an episode to one number; see `trajectory_scores`.
        horizon: Time limit in control steps; None takes the task's default.
        seed: Seed that fixes the initial states, together with the name.
        hold: Number of control steps that every action is held for.
        cameras: Names of the task's cameras whose frames the reward model reads.
        image_size: Size (H, W) of the frames, in pixels.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        env: str,
        reward: RewardModel,
        reduce: Reduction = "sum",
        horizon: int | None = None,
        seed: int = 0,
        hold: int = 1,
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = (96, 96),
    ) -> None:
        require_reduction(reduce)
        self.env, self.reward, self.horizon, self.seed = env, reward, horizon, seed
        self.reduce: Reduction = reduce
        self.hold, self.cameras, self.image_size = hold, tuple(cameras), image_size

    def __call__(self) -> TRLEnvironment:
        """Make an environment with a simulator of its own."""
        task = make_task(self.env, self.horizon, self.seed)
        try:
            return TRLEnvironment(task, self.reward, self.reduce, self.hold, self.cameras, self.image_size)
        except Exception:
            task.close()
            raise

    def dataset(self, count: int | None = None, split: str = "train", prompt: str = TASK_PROMPT) -> datasets.Dataset:
        """Make a data set of initial states: the columns ``prompt``, a conversation, and ``context``, a number.

        Args:
            count: Number of initial states; None takes those that the task lists.
            split: Split whose initial states are taken, ``"train"`` or ``"eval"``.
            prompt: Prompt, with ``{instruction}`` and perhaps ``{actions}``, the width of an action, ``{low}`` and
                ``{high}``, its bounds over all dimensions; the first observation is appended to it.

        Raises:
            ValueError: If the prompt holds no ``{instruction}``, or the split is unknown.
        """
        if "{instruction}" not in prompt:
            raise ValueError(f"prompt {prompt!r}: expected {{instruction}} in it, where the instruction goes")
        task = make_task(self.env, self.horizon, self.seed)
        try:
            contexts = task.contexts(split, count)
            known = {"instruction": task.instruction, "actions": str(task.action_size)}
            known |= {"low": f"{task.action_low.min():g}", "high": f"{task.action_high.max():g}"}
        finally:
            task.close()
        text = prompt
        for name, value in known.items():
            text = text.replace(f"{{{name}}}", value)
        turns = [{"role": "user", "content": text}]
        return datasets.Dataset.from_list([{"prompt": turns, "context": context.index} for context in contexts])


__all__ = ["TASK_PROMPT", "TRLEnvironment", "TRLEnvironments"]
