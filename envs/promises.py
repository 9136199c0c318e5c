"""Promises of the task protocol, each as a check that yields what does not hold."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .render import rendering_backend
from .task import Context, ExpertTask, ResumableTask, Step, Task, expert_noise

LONGEST = 1000
"""Largest horizon, in control steps, up to which the time limit is checked by playing it."""


MEMBERS = "members have the declared types and shapes"
"""First check; the others make no sense where it fails."""

Problems = Generator[str]
"""Promises that do not hold, each as a sentence."""


@dataclass
class TaskReport:
    """Result of `check_task`."""

    task: str
    """Full name of the task."""
    checked: list[str] = field(default_factory=list[str])
    """Promises that hold."""
    notes: list[str] = field(default_factory=list[str])
    """What could not be checked, and what is allowed but may surprise."""
    steps_per_second: float = 0.0
    """Control steps per second without pictures, of this one copy."""
    resets_per_second: float = 0.0
    """Resets per second."""

    def __str__(self) -> str:
        speed = f"{self.steps_per_second:.0f} steps/s, {self.resets_per_second:.0f} resets/s"
        lines = [f"{self.task}: {len(self.checked)} checks passed, {speed}"]
        return "\n".join([*lines, *(f"  ok    {what}" for what in self.checked), *(f"  note  {n}" for n in self.notes)])


class Promises:
    """Checks of one task; each yields the promises that do not hold."""

    def __init__(
        self,
        task: Task,
        make: Callable[[int], Any] | None,
        steps: int,
        frames: bool | None,
        report: TaskReport,
    ) -> None:
        self.task: Any = task  # nothing that it declares is taken for granted
        self.make, self.steps, self.frames, self.report = make, steps, frames, report
        self.skipped: set[str] = set()
        low, high = np.asarray(task.action_low, float), np.asarray(task.action_high, float)
        generator = np.random.default_rng(3)
        self.actions: np.ndarray = np.zeros((steps, 0))
        if low.shape == high.shape and np.isfinite(low).all() and np.isfinite(high).all():
            self.actions = generator.uniform(low, high, (steps, *low.shape))

    def all(self) -> dict[str, Callable[[], Problems]]:
        """List the checks by what they promise, the cheapest first."""
        return {
            MEMBERS: self.members,
            "contexts of train and eval are disjoint, and the same every time": self.contexts,
            "states and steps have the declared shapes and types, and finite numbers": self.steps_are_typed,
            "a context fixes the episode, bit for bit, in any order": self.repeats,
            "a context fixes the episode in a fresh copy; other seeds and contexts start elsewhere": self.fresh_copy,
            "actions are clipped to the bounds and left unchanged": self.clipping,
            "bad actions and contexts are refused": self.refusals,
            "what is returned does not change later": self.no_views,
            "the time limit is left to the caller": self.time_limit,
            "save and restore repeat the future bit for bit": self.saving,
            "the expert acts within the bounds, and a success ends nothing": self.expert,
            "pictures have the size asked for, show something and change nothing": self.pictures,
        }

    def skip(self, what: str, why: str) -> None:
        """Note that a check was left out."""
        self.skipped.add(what)
        self.report.notes.append(f"not checked: {what} ({why})")

    def play(self, task: Task, context: Context | None, actions: np.ndarray) -> list[bytes]:
        """Play actions, from a reset if a context is given; return everything that came, to compare bit by bit."""
        came = [] if context is None else [task.reset(context).tobytes()]
        return came + [_bits(task.step(action)) for action in actions]

    def members(self) -> Problems:
        """Check the attributes."""
        task = self.task
        for name in ("name", "instruction"):
            value = getattr(task, name)
            if not isinstance(value, str) or not value.strip():
                yield f"{name}: expected a text that says something, got {value!r}"
        for name in ("state_size", "action_size", "horizon", "seed"):
            value, least = getattr(task, name), int(name in ("action_size", "horizon"))
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                yield f"{name}: expected a whole number of at least {least}, got {value!r}"
        if not isinstance(task.fps, float | int) or not (np.isfinite(task.fps) and task.fps > 0):
            yield f"fps: expected a positive number of control steps per second, got {task.fps!r}"
        for name in ("stage_names", "cameras"):
            value = getattr(task, name)
            if (
                not isinstance(value, tuple)
                or not all(isinstance(v, str) for v in value)
                or len(set(value)) < len(value)
            ):
                yield f"{name}: expected a tuple of different texts, got {value!r}"
        low, high = task.action_low, task.action_high
        for name, value in (("action_low", low), ("action_high", high)):
            if not isinstance(value, np.ndarray) or value.shape != (task.action_size,) or value.dtype != np.float32:
                yield f"{name}: expected a float32 array of shape ({task.action_size},), got {_kind(value)}"
                return
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            yield f"action_low, action_high: expected finite bounds, lower below upper, got {low} and {high}"

    def contexts(self) -> Problems:
        """Check the lists of contexts."""
        task = self.task
        train: list[Any] = task.contexts("train", 6)
        evaluation: list[Any] = task.contexts("eval", 6)
        for split, listed in (("train", train), ("eval", evaluation)):
            if len(listed) != 6 or not all(isinstance(context, Context) for context in listed):
                yield f"contexts({split!r}, 6): expected 6 Context objects, got {listed!r:.80}"
                return
            if any(context.split != split or context.task != task.name for context in listed):
                yield f"contexts({split!r}): expected contexts of this task and split, got {listed[0]}"
            if len({context.index for context in listed}) < 6:
                yield f"contexts({split!r}, 6): expected different indices, got {[c.index for c in listed]}"
            if task.contexts(split, 6) != listed or task.contexts(split, 3) != listed[:3]:
                yield f"contexts({split!r}): expected the same list every time, and a shorter one as its beginning"
            if len(task.contexts(split)) < 1:
                yield f"contexts({split!r}): expected at least one context without a count, got none"
        if {context.index for context in train} & {context.index for context in evaluation}:
            yield "contexts: expected different indices for train and eval, got some in both"
        for what, call in (
            ("the split 'test'", lambda: task.contexts("test")),
            ("0 contexts", lambda: task.contexts("train", 0)),
        ):
            if not _refuses(call):
                yield f"contexts: expected a ValueError for {what}, got none"

    def steps_are_typed(self) -> Problems:
        """Check shapes and types of what reset and step return, and measure the speed."""
        task = self.task
        contexts = task.contexts("train", 3)
        begin = time.perf_counter()
        for context in contexts:
            state = task.reset(context)
            yield from _state_problems("reset", task, state)
        self.report.resets_per_second = len(contexts) / (time.perf_counter() - begin)
        first_tracks = task.tracks()
        yield from _track_problems("tracks() after reset", first_tracks)
        seconds = 0.0
        for action in self.actions:
            begin = time.perf_counter()
            step: Any = task.step(action)
            seconds += time.perf_counter() - begin
            problems = list(self._step_problems(step, set(first_tracks)))
            yield from problems
            if problems or step.terminated:
                break
        self.report.steps_per_second = len(self.actions) / max(seconds, 1e-9)

    def _step_problems(self, step: Any, tracks: set[str]) -> Problems:
        task = self.task
        if not isinstance(step, Step):
            yield f"step: expected a guerdon.envs.task.Step, got {type(step).__name__}"
            return
        yield from _state_problems("step", task, step.state)
        reward: Any = step.reward
        if not isinstance(reward, float | int) or not np.isfinite(reward):
            yield f"step: expected a finite reward, a Python number, got {reward!r}"
        for name in ("success", "terminated"):
            if not isinstance(getattr(step, name), bool):
                yield f"step: expected {name} as bool, got {_kind(getattr(step, name))}"
        stages: dict[str, Any] = dict(step.stages)
        if tuple(step.stages) != task.stage_names:
            yield f"step: expected the stages {task.stage_names} at every step, got {tuple(step.stages)}"
        odd = [name for name, value in stages.items() if not isinstance(value, float | int) or not np.isfinite(value)]
        if odd:
            yield f"step: expected a finite number for stage {odd[0]!r}, got {step.stages[odd[0]]!r}"
        yield from _track_problems("step", step.tracks)
        if set(step.tracks) != tracks:
            yield f"step: expected the tracks {sorted(tracks)}, as after reset, got {sorted(step.tracks)}"
        now = task.tracks()
        if set(now) == set(step.tracks) and any(not np.array_equal(now[n], step.tracks[n]) for n in now):
            yield "tracks: expected tracks() to be those of the latest step, got others"

    def repeats(self) -> Problems:
        """Check that a context fixes the episode."""
        task = self.task
        a, b = task.contexts("train", 1)[0], task.contexts("eval", 1)[0]
        first = self.play(task, a, self.actions)
        other = self.play(task, b, self.actions[:3])  # of another length: a reset may depend on it
        again = self.play(task, a, self.actions)
        if first[0] != again[0]:
            yield "reset: expected the same first state for one context, whatever was played before, got another"
        elif first != again:
            at = next(i for i, (x, y) in enumerate(zip(first, again, strict=True)) if x != y)
            yield f"step: expected the same episode for one context and the same actions, got another from step {at} on"
        if self.play(task, b, self.actions[:3]) != other:
            yield "reset: expected the same episode for an eval context, got another"

    def fresh_copy(self) -> Problems:
        """Check that a context fixes the episode in another copy."""
        what = "a context fixes the episode in a fresh copy; other seeds and contexts start elsewhere"
        if self.make is None:
            self.skip(what, "give the class or the name instead of a task")
            return
        listed = self.task.contexts("train", 3) + self.task.contexts("eval", 3)
        with closing(self.make(0)) as copy, closing(self.make(1)) as seeded:
            for context in (listed[3], listed[0]):
                here, there = self.play(self.task, context, self.actions), self.play(copy, context, self.actions)
                if here != there:
                    yield f"a fresh copy: expected the same episode for context {context.index}, got another"
                    return
            if seeded.seed != 1:
                yield f"seed: expected the one that was given, 1, got {seeded.seed}"
            starts = [self.task.reset(context).tobytes() for context in listed]
            if len(set(starts)) < len(starts):
                self.report.notes.append(
                    f"{len(starts)} contexts have {len(set(starts))} first states: training and evaluation share starts"
                )
            if seeded.reset(listed[0]).tobytes() == starts[0]:
                self.report.notes.append("another seed has the same first state")

    def clipping(self) -> Problems:
        """Check that actions are clipped."""
        task = self.task
        context = task.contexts("train", 1)[0]
        middle, half = (task.action_high + task.action_low) / 2, (task.action_high - task.action_low) / 2
        for name, bound, sign in (("action_high", task.action_high, 1), ("action_low", task.action_low, -1)):
            beyond = (middle + sign * 50 * half).astype(np.float64)
            kept = beyond.copy()
            if self.play(task, context, bound[None]) != self.play(task, context, beyond[None]):
                yield f"step: expected an action beyond {name} to do what {name} does, got something else"
            if not np.array_equal(beyond, kept):
                yield "step: expected the action to be left as it is, got it changed in place"

    def refusals(self) -> Problems:
        """Check that nonsense is refused."""
        task = self.task
        context = task.contexts("train", 1)[0]
        task.reset(context)
        size = task.action_size
        for what, action in (
            ("with NaN", np.full(size, np.nan)),
            (f"of shape ({size + 1},)", np.zeros(size + 1)),
            (f"of shape (1, {size})", np.zeros((1, size))),
        ):
            if not _refuses(lambda action=action: task.step(action)):
                yield f"step: expected a ValueError for an action {what}, got none"
        if not _refuses(lambda: task.reset(Context("another/task", context.index, context.split))):
            yield "reset: expected a ValueError for a context of another task, got none"

    def no_views(self) -> Problems:
        """Check that returned arrays are copies."""
        task = self.task
        state = task.reset(task.contexts("train", 1)[0])
        step = task.step(self.actions[0])
        kept = [state.copy(), step.state.copy(), *(point.copy() for point in step.tracks.values())]
        for action in self.actions[1:]:
            task.step(action)
        now = [state, step.state, *step.tracks.values()]
        names = ["reset: the state", "step: the state", *(f"step: the track {name!r}" for name in step.tracks)]
        for name, before, after in zip(names, kept, now, strict=True):
            if not np.array_equal(before, after):
                yield f"{name}: expected a copy, got an array that later steps change"

    def time_limit(self) -> Problems:
        """Check that the task can be stepped to its time limit and past it."""
        task, what = self.task, "the time limit is left to the caller"
        if task.horizon > LONGEST:
            self.skip(what, f"the horizon of {task.horizon} steps is longer than {LONGEST}")
            return
        task.reset(task.contexts("train", 1)[0])
        still = (task.action_high + task.action_low) / 2
        for count in range(1, task.horizon + 2):
            step = task.step(still)
            if step.terminated and count >= task.horizon:
                yield f"step: expected the time limit to set nothing, got terminated at step {count} of {task.horizon}"
            if step.terminated and step.success:
                yield f"step: expected a success to end nothing, got terminated with it at step {count}"
            if step.terminated:
                return

    def saving(self) -> Problems:
        """Check save and restore, if the task has them."""
        task, what = self.task, "save and restore repeat the future bit for bit"
        if not isinstance(task, ResumableTask):
            for one, other in (("save", "restore"), ("restore", "save")):
                if hasattr(task, one):
                    yield f"{one}: expected {other} too, or neither"
            self.skip(what, "it has no save and restore: no rollouts from the middle of an episode")
            return
        context, elsewhere = task.contexts("train", 1)[0], task.contexts("eval", 1)[0]
        half = self.steps // 2
        task.reset(context)
        state = [task.step(action).state for action in self.actions[:half]][-1]
        saved = task.save()
        future = self.play(task, None, self.actions[half:])
        for after in ("the future was played", "another episode"):
            if after == "another episode":
                self.play(task, elsewhere, self.actions[:3])
            restored = task.restore(saved)
            yield from _state_problems("restore", task, restored)
            if not np.array_equal(restored, state):
                yield f"restore: expected the state at which it was saved, got another (after {after})"
            if self.play(task, None, self.actions[half:]) != future:
                yield f"restore: expected the same future for the same actions, got another (after {after})"
        if self.make is None:
            return
        with closing(self.make(0)) as copy, closing(self.make(1)) as seeded:
            copy.restore(saved)
            if self.play(copy, None, self.actions[half:]) != future:
                yield "restore: expected the same future in a fresh copy, got another"
            if not _refuses(lambda: seeded.restore(saved)):
                yield "restore: expected a ValueError for a state that a task of another seed saved, got none"

    def expert(self) -> Problems:
        """Check the scripted expert, if the task has one."""
        task, what = self.task, "the expert acts within the bounds, and a success ends nothing"
        if not isinstance(task, ExpertTask):
            self.skip(what, "it has no expert: only random episodes can be collected")
            return
        expert_noise(task)
        solved = False
        for context in task.contexts("train", 3):
            state = task.reset(context)
            controller = task.expert()
            for _ in range(task.horizon):
                action = np.asarray(controller(state))
                if action.shape != (task.action_size,) or not np.isfinite(action).all():
                    yield f"expert: expected a finite action of shape ({task.action_size},), got {_kind(action)}"
                    return
                if (action < task.action_low - 1e-6).any() or (action > task.action_high + 1e-6).any():
                    yield f"expert: expected an action between {task.action_low} and {task.action_high}, got {action}"
                    return
                step = task.step(action)
                state = step.state
                if step.success and step.terminated:
                    yield "step: expected a success to end nothing, got terminated with it"
                    return
                if step.success or step.terminated:
                    solved = solved or step.success
                    break
        if not solved:
            self.report.notes.append("the expert solved none of 3 training contexts")

    def pictures(self) -> Problems:
        """Check every camera."""
        task, what = self.task, "pictures have the size asked for, show something and change nothing"
        if self.frames is False or not task.cameras:
            self.skip(what, "it has no camera" if not task.cameras else "frames=False")
            return
        context = task.contexts("train", 1)[0]
        unseen = self.play(task, context, self.actions)
        task.reset(context)
        try:
            task.render()
        except RuntimeError as error:
            if self.frames or rendering_backend() is not None:
                raise
            self.skip(what, str(error))
            return
        for camera in task.cameras:
            for size in ((48, 64), (32, 32)):
                picture: Any = task.render(camera, size)
                if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape != (3, *size):
                    yield f"render({camera!r}, {size}): expected uint8 of shape {(3, *size)}, got {_kind(picture)}"
                    break
                if picture.max() == picture.min():
                    seen = (
                        f"render({camera!r}, {size}): expected a picture, got one colour ({picture.max()}) everywhere"
                    )
                    if camera == task.cameras[0]:
                        yield seen
                    else:  # a simulator may have cameras inside a body; the first one is what is recorded
                        self.report.notes.append(seen)
                    break
        if not _refuses(lambda: task.render("no such camera")):
            yield "render: expected a ValueError for an unknown camera, got none"
        came = [task.reset(context).tobytes()]
        for action in self.actions:
            task.render()
            came.append(_bits(task.step(action)))
        if came != unseen:
            yield "render: expected the same episode with and without pictures, got another"


def _bits(step: Step) -> bytes:
    """Return state, reward, success, termination and stages of a step as bytes, the state first."""
    numbers = [step.reward, step.success, step.terminated, *step.stages.values()]
    points = b"".join(np.asarray(point).tobytes() for point in step.tracks.values())
    return step.state.tobytes() + np.array(numbers, np.float64).tobytes() + points


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _refuses(call: Callable[[], object]) -> bool:
    """Return whether a call raises ValueError."""
    try:
        call()
    except ValueError:
        return True
    return False


def _state_problems(where: str, task: Task, state: Any) -> Problems:
    if not isinstance(state, np.ndarray) or state.shape != (task.state_size,) or state.dtype != np.float32:
        yield f"{where}: expected a float32 state of shape ({task.state_size},), got {_kind(state)}"
    elif not np.isfinite(state).all():
        yield f"{where}: expected a finite state, got {state}"


def _track_problems(where: str, tracks: Any) -> Problems:
    for name, point in dict(tracks).items():
        shaped = isinstance(point, np.ndarray) and point.shape in ((3,), (1,))
        if not shaped or point.dtype != np.float32 or not np.isfinite(point).all():
            yield f"{where}: expected track {name!r} as finite float32 of shape (3,) or (1,), got {_kind(point)}"
