"""Promises of the task protocol: each broken one is caught, by the check that is made for it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar

import numpy as np
import pytest

from guerdon.envs.checking import check_task
from guerdon.envs.promises import TaskReport
from guerdon.envs.reach import Reach
from guerdon.envs.task import EVAL_OFFSET, Context

EVERY_CHECK = 12


class Half:
    name = "half"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed


class Sized(Reach):
    state_size = 12.0  # type: ignore


class Mute(Reach):
    instruction = " "


class Frozen(Reach):
    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(horizon, seed)
        self.fps = 0.0


class Listed(Reach):
    stage_names: ClassVar[Any] = ["distance"]


class WideBounds(Reach):
    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(horizon, seed)
        self.action_high = np.full(3, np.inf, np.float32)


class DoubleBounds(Reach):
    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(horizon, seed)
        self.action_low = np.full(3, -1.0)


class Overlapping(Reach):
    """Its evaluation contexts are training contexts under another label."""

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        found = super().contexts(split, count)
        for context in found:
            object.__setattr__(context, "index", context.index % EVAL_OFFSET)
        return found


class Drawn(Reach):
    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        found = super().contexts(split, count)
        first = 0 if split == "train" else EVAL_OFFSET
        return [replace(context, index=first + int(np.random.randint(10**5))) for context in found]


class Generous(Reach):
    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        return super().contexts("train" if split == "test" else split, count)


class Forgetful(Reach):
    """Its reset leaves something of the episode before."""

    def reset(self, context: Context) -> np.ndarray:
        time = self._data.time
        state = super().reset(context)
        state[0] += np.float32(time)
        return state


class Noisy(Reach):
    def step(self, action: np.ndarray) -> Any:
        return replace(super().step(action), reward=float(np.random.default_rng().normal()))


class Copied(Reach):
    """No two copies are the same."""

    numbers = count()

    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(horizon, seed)
        self._model.opt.gravity[2] += 0.01 * next(self.numbers)
        self._model.dof_damping[:] += 0.01 * next(self.numbers)


class Seedless(Reach):
    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(horizon, 0)


class Precise(Reach):
    def step(self, action: np.ndarray) -> Any:
        step = super().step(action)
        return replace(step, state=step.state.astype(np.float64))


class Broad(Reach):
    def reset(self, context: Context) -> np.ndarray:
        return np.append(super().reset(context), np.float32(0))


class Diverged(Reach):
    def step(self, action: np.ndarray) -> Any:
        step = super().step(action)
        step.state[3] = np.nan
        return step


class Rewarding(Reach):
    def step(self, action: np.ndarray) -> Any:
        return replace(super().step(action), reward=float("nan"))


class Numeric(Reach):
    def step(self, action: np.ndarray) -> Any:
        step = super().step(action)
        object.__setattr__(step, "success", np.float32(0.0))  # past the types that are checked in tests
        return step


class Staged(Reach):
    def step(self, action: np.ndarray) -> Any:
        step = super().step(action)
        return replace(step, stages={"distance": 0.0, "height": 1.0} if self._data.time > 0.2 else step.stages)


class Pointed(Reach):
    def tracks(self) -> Any:
        return {"end_effector": np.zeros(2, np.float32)}


class Lagging(Reach):
    def step(self, action: np.ndarray) -> Any:
        before = self.tracks()
        return replace(super().step(action), tracks=before)


class Unclipped(Reach):
    def step(self, action: np.ndarray) -> Any:
        self._data.qpos[0] += 1e-3 * float(np.abs(action).max())
        return super().step(action)


class Meddling(Reach):
    def step(self, action: np.ndarray) -> Any:
        np.clip(action, -1, 1, out=action)
        return super().step(action)


class Patient(Reach):
    def step(self, action: np.ndarray) -> Any:
        return super().step(np.nan_to_num(action) if np.shape(action) == (3,) else np.zeros(3))


class Welcoming(Reach):
    def reset(self, context: Context) -> np.ndarray:
        return super().reset(replace(context, task=self.name))


class Viewing(Reach):
    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(horizon, seed)
        self._kept = np.zeros(12, np.float32)

    def step(self, action: np.ndarray) -> Any:
        step = super().step(action)
        self._kept[:] = step.state
        return replace(step, state=self._kept)


class Limited(Reach):
    def step(self, action: np.ndarray) -> Any:
        step = super().step(action)
        return replace(step, terminated=round(self._data.time / 0.04) >= self.horizon)


class Leaving(Reach):
    """Nothing is ever solved without its expert, so only that can show that a success ends the episode."""

    def step(self, action: np.ndarray) -> Any:
        step = super().step(action)
        return replace(step, terminated=step.success)


class Saving(Reach):
    restore: Any = None

    def __getattribute__(self, name: str) -> Any:
        if name == "restore":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Slipping(Reach):
    def restore(self, saved: Any) -> np.ndarray:
        state = super().restore(saved)
        self._data.qvel[0] += 1e-9
        return state


class Stale(Reach):
    def restore(self, saved: Any) -> np.ndarray:
        return super().restore(saved) + np.float32(0.1)


class Trusting(Reach):
    def restore(self, saved: Any) -> np.ndarray:
        return super().restore(replace(saved, seed=self.seed, kind=type(self).__name__))


class Eager(Reach):
    def expert(self) -> Any:
        return lambda state: np.full(3, 2.0)


class Narrow(Reach):
    def expert(self) -> Any:
        return lambda state: np.zeros(2)


class Boastful(Reach):
    expert_noise = np.full(2, 0.5)


class Picturing(Reach):
    """Draws without OpenGL, so that its broken kin need none."""

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        if camera not in (None, *self.cameras):
            raise ValueError(f"unknown camera {camera!r}")
        picture = np.zeros((3, *size), np.uint8)
        picture[:, : size[0] // 2] = 100
        return picture


class Black(Picturing):
    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        return 0 * super().render(camera, size)


class Transposed(Picturing):
    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        return super().render(camera, size).transpose(1, 2, 0)


class OneSize(Picturing):
    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        return super().render(camera)


class AnyCamera(Picturing):
    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        return super().render(None, size)


class Moving(Picturing):
    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        self._data.qvel[0] += 1e-6
        return super().render(camera, size)


class Raising(Reach):
    def tracks(self) -> Any:
        raise KeyError("tip")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Half, "Half is no task: it lacks instruction, "),
        (Sized, r"state_size: expected a whole number of at least 0, got 12\.0"),
        (Mute, "instruction: expected a text that says something"),
        (Frozen, "fps: expected a positive number"),
        (Listed, "stage_names: expected a tuple of different texts"),
        (WideBounds, "action_low, action_high: expected finite bounds"),
        (DoubleBounds, r"action_low: expected a float32 array of shape \(3,\), got float64"),
        (Overlapping, "expected different indices for train and eval, got some in both"),
        (Drawn, r"contexts\('train'\): expected the same list every time"),
        (Generous, "expected a ValueError for the split 'test'"),
        (Forgetful, "reset: expected the same first state for one context, whatever was played before"),
        (Noisy, "step: expected the same episode for one context and the same actions, got another from step 1 on"),
        (Copied, "a fresh copy: expected the same episode for context"),
        (Seedless, "seed: expected the one that was given, 1, got 0"),
        (Precise, r"step: expected a float32 state of shape \(12,\), got float64"),
        (Broad, r"reset: expected a float32 state of shape \(12,\), got float32 of shape \(13,\)"),
        (Diverged, "step: expected a finite state"),
        (Rewarding, "step: expected a finite reward"),
        (Numeric, "step: expected success as bool, got float32"),
        (Staged, r"expected the stages \('distance',\) at every step, got \('distance', 'height'\)"),
        (Pointed, "expected track 'end_effector' as finite float32"),
        (Lagging, r"tracks: expected tracks\(\) to be those of the latest step"),
        (Unclipped, "expected an action beyond action_high to do what action_high does"),
        (Meddling, "expected the action to be left as it is, got it changed in place"),
        (Patient, r"expected a ValueError for an action with NaN.*(?s:.)*of shape \(4,\).*(?s:.)*of shape \(1, 3\)"),
        (Welcoming, "expected a ValueError for a context of another task"),
        (Viewing, "step: the state: expected a copy, got an array that later steps change"),
        (Limited, "expected the time limit to set nothing, got terminated at step 50 of 50"),
        (Leaving, "step: expected a success to end nothing, got terminated with it"),
        (Saving, "save: expected restore too, or neither"),
        (
            Slipping,
            r"restore: expected the same future for the same actions, got another \(after the future was played\)",
        ),
        (Stale, "restore: expected the state at which it was saved"),
        (Trusting, "restore: expected a ValueError for a state that a task of another seed saved"),
        (Eager, "expert: expected an action between"),
        (Narrow, r"expert: expected a finite action of shape \(3,\)"),
        (Boastful, r"expected expert_noise of shape \(3,\)"),
        (Black, r"render\('front', \(48, 64\)\): expected a picture, got one colour \(0\) everywhere"),
        (Transposed, r"expected uint8 of shape \(3, 48, 64\), got uint8 of shape \(48, 64, 3\)"),
        (OneSize, r"expected uint8 of shape \(3, 48, 64\), got uint8 of shape \(3, 96, 96\)"),
        (AnyCamera, "expected a ValueError for an unknown camera"),
        (Moving, "expected the same episode with and without pictures"),
        (Raising, "it raised KeyError: 'tip'"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_broken_promise_is_caught(broken: Callable[..., Any], says: str):
    with pytest.raises(AssertionError, match=says):
        check_task(broken, steps=8, frames=None if issubclass(broken, Picturing) else False)  # type: ignore


def test_a_sound_task_with_pictures_passes():
    report = check_task(Picturing, steps=8)
    assert len(report.checked) == EVERY_CHECK and not report.notes


def test_all_broken_promises_are_listed():
    class Worse(Reach):
        def step(self, action: np.ndarray) -> Any:
            return replace(super().step(np.nan_to_num(action)), reward=float("inf"))

        def reset(self, context: Context) -> np.ndarray:
            return super().reset(replace(context, task=self.name))

    with pytest.raises(AssertionError, match=r"mujoco/reach breaks \d+ promises of guerdon.Task:") as raised:
        check_task(Worse, steps=6, frames=False)
    for said in ("finite reward", "action with NaN", "context of another task"):
        assert f"{said}" in str(raised.value)


def test_what_is_allowed_and_may_surprise_is_noted():
    class Fixed(Reach):
        def reset(self, context: Context) -> np.ndarray:
            return super().reset(replace(context, index=0, split="train"))

        def expert(self) -> Any:
            return lambda state: np.zeros(3)

    class Long(Fixed):
        def __init__(self, horizon: int = 2000, seed: int = 0) -> None:
            super().__init__(horizon, seed)

    report = check_task(Long, steps=6, frames=False)
    notes = "\n".join(report.notes)
    assert "6 contexts have 1 first states: training and evaluation share starts" in notes
    assert "the expert solved none of 3 training contexts" in notes
    assert "the horizon of 2000 steps is longer than 1000" in notes and "frames=False" in notes


def test_a_report_can_be_printed():
    report = TaskReport("here", ["one holds"], ["another was not checked"], 123.4, 5.0)
    assert str(report).splitlines() == [
        "here: 1 checks passed, 123 steps/s, 5 resets/s",
        "  ok    one holds",
        "  note  another was not checked",
    ]
