"""Any registered Gymnasium environment behind the task protocol."""

import copy
import logging
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from ..saved import SavedState, check_saved
from ..task import Context, Step, check_action, check_context, check_state, list_contexts
from .building import (
    BuildEnvironment,
    build_environment,
    call_reset,
    call_step,
    registered_time_limit,
    time_limit,
)
from .cameras import find_views, resize
from .observations import Observations
from .snapshots import Snapshot, Snapshots, mujoco_parts
from .success import SuccessSignal, find_success

_log = logging.getLogger(__name__)
_announced: set[str] = set()

_PROBE_STEPS = 4


class GymnasiumTask:
    """Gymnasium environment as a task; ``gymnasium/<ID>`` names it with the defaults of this class.

    | of the environment | becomes |
    |---|---|
    | numbers of the observation (Box, Dict of Box) | the state, in the order of the space; see `state_parts` |
    | pictures of the observation (Box of uint8) | cameras, before those that are drawn |
    | ``render()``, or the cameras of a MuJoCo model | cameras; ``"render"`` is the environment's own view |
    | bounds of the actions (Box) | actions in [−1, 1], scaled linearly |
    | ``reset(seed=…)`` | contexts: a seed for each index |
    | its time limit | the horizon; the environment itself does not truncate |

    An environment that terminates on success is stepped on, as all tasks here. One that truncates before the horizon
    ends the episode as if it had terminated; this is logged once.

    A MuJoCo environment is saved as a snapshot; another one is restored by repeating its actions from the reset, which
    takes as long as the steps did. An environment that does not repeat itself bit by bit has no `save` and no
    `restore`, which is logged once.

    A class of your own sets what its task needs, and ``--env my_module:MyClass`` names it:

        class PushT(GymnasiumTask):
            def __init__(self, horizon=None, seed=0):
                super().__init__("gym_pusht/PushT-v0", horizon, seed, instruction="push the T onto its outline")

    Args:
        env: ID of a registered environment, or a function that builds one.
        horizon: Time limit in control steps; None takes the one the environment was registered with.
        seed: Seed that fixes the contexts.
        instruction: Instruction; None takes the words of the ID, which is logged.
        success: Signal of success; None takes ``info["is_success"]`` or ``info["success"]``.
        state_keys: Parts of the observation that are the state, in this order; None takes all numbers.
        stages: Keys of ``info`` with one number each, at every step, that are recorded as stages.
        options: Arguments of the environment's constructor; not with a function.
        fps: Control steps per second; None takes ``metadata["render_fps"]``, or 1 / ``dt``.
        name: Full name; None takes ``gymnasium/<ID>``, or ``module:Class`` for a class of your own.

    Raises:
        ValueError: If the environment is unknown or does not fit: actions that are no finite Box, observations that are
            neither numbers nor pictures, no signal of success, no time limit, or the old API of the gym package.
        ModuleNotFoundError: If the environment needs a package that is not installed.
    """

    save: Callable[[], SavedState]
    """See `guerdon.ResumableTask.save`; missing if the environment does not repeat itself."""
    restore: Callable[[SavedState], np.ndarray]
    """See `guerdon.ResumableTask.restore`; missing if the environment does not repeat itself."""

    def __init__(
        self,
        env: str | BuildEnvironment,
        horizon: int | None = None,
        seed: int = 0,
        instruction: str | None = None,
        success: SuccessSignal | None = None,
        state_keys: Sequence[str] | None = None,
        stages: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        fps: float | int | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or _default_name(type(self), env)
        if not isinstance(env, str) and options:
            raise ValueError(f"{self.name}: options are given to a registered environment: give its ID, or bind them")
        self._env = build_environment(env, options) if isinstance(env, str) else env()
        limit = time_limit(self._env) or (registered_time_limit(env) if isinstance(env, str) else None)
        self.horizon = _require_horizon(self.name, limit if horizon is None else horizon)
        self.seed, self.stage_names = seed, tuple(stages)
        self.instruction = instruction or _words_of(env if isinstance(env, str) else self.name)
        self.fps = _control_rate(self.name, self._env, fps)
        self._middle, self._half = _action_range(self.name, self._env.action_space)
        self.action_size = len(self._half)
        self.action_low = np.full(self.action_size, -1, np.float32)
        self.action_high = np.full(self.action_size, 1, np.float32)
        self._observations = Observations(self.name, self._env.observation_space, state_keys)
        self.state_size = self._observations.state_size
        self._views = find_views(self.name, self._env)
        self.draws_without_opengl = not self._views.need_opengl
        self.cameras = tuple(dict.fromkeys((*self._observations.pictures, *self._views.names)))
        self._snapshots = Snapshots(self._env) if mujoco_parts(self._env) is not None else None
        self._pristine = self._snapshots.take() if self._snapshots is not None else None
        self._context: Context | None = None
        self._actions: list[np.ndarray] = []
        self._observation: Any = None
        self._told_truncation = False
        self._probe(success)
        if instruction is None:
            _announce(
                f"{self.name}: no instruction was given, so its episodes carry {self.instruction!r}, the words of its "
                "ID; a class of your own can give one (docs/simulators.md)"
            )

    @property
    def state_parts(self) -> Mapping[str, slice]:
        """Place of each part of the observation in the state, by name."""
        return self._observations.state_parts

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """See `Task.contexts`."""
        return list_contexts(self.name, split, count)

    def reset(self, context: Context) -> np.ndarray:
        """See `Task.reset`."""
        check_context(self.name, context)
        if self._snapshots is not None and self._pristine is not None:
            self._snapshots.restore(self._pristine)  # some resets depend, in the last digits, on what went before them
        seed = int(np.random.SeedSequence([self.seed, context.index]).generate_state(1)[0])
        observation, _ = call_reset(self.name, self._env, seed)
        self._context, self._actions = context, []
        return self._observe(observation)

    def step(self, action: np.ndarray) -> Step:
        """See `Task.step`."""
        action = check_action(self.name, action, self.action_low, self.action_high)
        if self._context is None:
            raise RuntimeError(f"{self.name}: expected a reset before the first step")
        observation, reward, terminated, truncated, info = self._advance(action)
        self._actions.append(action)
        solved = self._success(float(reward), bool(terminated), info)
        return Step(
            state=self._observe(observation),
            reward=float(reward),
            success=bool(solved),
            terminated=(bool(terminated) and not solved) or self._cut_short(bool(truncated)),
            stages={stage: self._stage(info, stage) for stage in self.stage_names},
            tracks=self.tracks(),
        )

    def tracks(self) -> Mapping[str, np.ndarray]:
        """See `Task.tracks`; none, as Gymnasium does not name points: a class of your own may read some."""
        return {}

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        """See `Task.render`."""
        if not self.cameras:
            raise ValueError(
                f"{self.name}: the environment draws no pictures (its render modes lack rgb_array): record states only"
            )
        camera = self.cameras[0] if camera is None else camera
        if camera not in self.cameras:
            raise ValueError(f"{self.name}: unknown camera {camera!r}; it has {', '.join(self.cameras)}")
        if min(size) < 1:
            raise ValueError(f"{self.name}: expected a picture of at least 1 × 1, got {size}")
        if camera in self._observations.pictures:
            return resize(self._observations.picture(self._observation, camera), size)
        return self._views.draw(camera, size)

    def close(self) -> None:
        """See `Task.close`."""
        self._views.close()
        self._env.close()

    def _advance(self, action: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment by an action in [−1, 1]."""
        space: Any = self._env.action_space
        own = np.clip((self._middle + self._half * action).reshape(space.shape), space.low, space.high)
        return call_step(self.name, self._env, own.astype(space.dtype))

    def _observe(self, observation: Any) -> np.ndarray:
        """Keep an observation for its pictures; return its state (S,) float32."""
        self._observation = observation
        return check_state(self.name, self._observations.state(observation))

    def _cut_short(self, truncated: bool) -> bool:
        """Return whether the environment truncated the episode before the horizon, and log the first time."""
        if not truncated or len(self._actions) >= self.horizon:
            return False
        if not self._told_truncation:
            self._told_truncation = True
            _log.warning(
                "%s truncated an episode itself after %d of %d steps, which counts as terminated: if that is its own "
                "time limit, give it as the horizon",
                *(self.name, len(self._actions), self.horizon),
            )
        return True

    def _stage(self, info: Mapping[str, Any], stage: str) -> float:
        if stage not in info or np.size(info[stage]) != 1:
            raise ValueError(
                f"{self.name}: expected one number info[{stage!r}] at every step, as stages names it; info holds "
                f"{', '.join(map(repr, info)) or 'nothing'}"
            )
        return float(np.asarray(info[stage], np.float64).reshape(()))

    def _probe(self, success: SuccessSignal | None) -> None:
        """Play a few steps twice: find the signal of success, check observations, and see if the simulator repeats."""
        context = self.contexts("train", 1)[0]
        actions = np.random.default_rng(0).uniform(-1, 1, (_PROBE_STEPS, self.action_size))
        self.reset(context)
        self._observations.check(self._observation)
        self._success: SuccessSignal = success or find_success(self.name, self._advance(actions[0])[4])
        if self._snapshots is not None and not self._snapshots_repeat(context, actions):
            self._snapshots = None
        if self._play(context, actions) == self._play(context, actions):
            self.save, self.restore = self._save, self._restore
        else:
            _announce(
                f"{self.name} gives another episode for the same seed and actions: its contexts are not exact, and it "
                "cannot be saved and restored; does its reset use the seed?"
            )
        self._context = None

    def _play(self, context: Context, actions: np.ndarray) -> list[bytes]:
        """Play actions from a reset; return what came of each in a form that compares bit by bit."""
        return [self.reset(context).tobytes(), *(self._bits(self.step(action)) for action in actions)]

    @staticmethod
    def _bits(step: Step) -> bytes:
        return step.state.tobytes() + np.array([step.reward, step.success, step.terminated], np.float64).tobytes()

    def _snapshots_repeat(self, context: Context, actions: np.ndarray) -> bool:
        """Return whether the environment goes on from a snapshot as it did before."""
        assert self._snapshots is not None
        self._play(context, actions[:2])
        try:
            snapshot = self._snapshots.take()
            first = [self._bits(self.step(action)) for action in actions[2:]]
            self._snapshots.restore(snapshot)
        except Exception:  # whatever an environment that cannot be copied raises
            return False
        return [self._bits(self.step(action)) for action in actions[2:]] == first

    def _save(self) -> SavedState:
        """See `guerdon.ResumableTask.save`."""
        if self._context is None:
            raise RuntimeError(f"{self.name}: expected a reset before save()")
        state = check_state(self.name, self._observations.state(self._observation))
        parts: dict[str, Any] = {"context": self._context, "actions": list(self._actions)}
        if self._snapshots is not None:
            parts |= {"snapshot": self._snapshots.take(), "observation": copy.deepcopy(self._observation)}
        return SavedState(task=self.name, seed=self.seed, kind=type(self).__name__, state=state, parts=parts)

    def _restore(self, saved: SavedState) -> np.ndarray:
        """See `guerdon.ResumableTask.restore`.

        Raises:
            RuntimeError: If repeating the actions led to another state: the environment is not deterministic.
        """
        parts = check_saved(self, saved).parts
        snapshot: Snapshot | None = parts.get("snapshot")
        if snapshot is not None and self._snapshots is not None:
            self._snapshots.restore(snapshot)
            self._context, self._actions = parts["context"], list(parts["actions"])
            return self._observe(parts["observation"])
        state = self.reset(parts["context"])
        for action in parts["actions"]:
            state = self._observe(self._advance(action)[0])
            self._actions.append(action)
        if not np.array_equal(state, saved.state):
            raise RuntimeError(
                f"{self.name}: the same seed and actions led to another state than the saved one: the environment is "
                "not deterministic, so it cannot be restored"
            )
        return state


def _announce(text: str) -> None:
    """Log a warning once, and not from worker processes."""
    if text not in _announced and multiprocessing.parent_process() is None:
        _announced.add(text)
        _log.warning("%s", text)


def _default_name(kind: type[GymnasiumTask], env: str | BuildEnvironment) -> str:
    if kind is not GymnasiumTask:
        return f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(env, str):
        return f"gymnasium/{env}"
    raise ValueError("expected a name for an environment that a function builds: give name=, or write a class")


def _words_of(identifier: str) -> str:
    """Make an instruction of an ID: ``gym_pusht/PushT-v0`` gives "push t"."""
    bare = re.sub(r"-v\d+$", "", re.split(r"[/:]", identifier)[-1])
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[-_]+", " ", bare)
    return " ".join(spaced.lower().split())


def _require_horizon(name: str, horizon: int | None) -> int:
    if horizon is None:
        raise ValueError(
            f"{name} was registered without a time limit: give a horizon in control steps (on the command line, "
            "--horizon)"
        )
    if horizon < 1:
        raise ValueError(f"{name}: expected a horizon of at least one step, got {horizon}")
    return int(horizon)


def _control_rate(name: str, env: Any, fps: float | int | None) -> float:
    """Return the number of control steps per second.

    Raises:
        ValueError: If neither the environment nor the caller knows it.
    """
    rate = fps or (env.metadata or {}).get("render_fps")
    if not rate:
        duration = getattr(env.unwrapped, "dt", None)
        rate = 1 / float(duration) if isinstance(duration, float | int) and duration > 0 else None
    if rate is None or not (np.isfinite(rate) and rate > 0):
        raise ValueError(
            f"{name}: how long a control step takes is not known (no metadata['render_fps'], no dt): give fps= to "
            "guerdon.GymnasiumTask in a class of your own; docs/simulators.md has an example"
        )
    return float(rate)


def _action_range(name: str, space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle and the half range (A,) of every action dimension.

    Raises:
        ValueError: If the actions are not continuous, or unbounded.
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"{name}: expected continuous actions (a Box), got {space}: policies here choose real numbers. Wrap the "
            "environment so that a Box chooses (gymnasium.wrappers.TransformAction), in a function that builds it"
        )
    low, high = np.asarray(space.low, np.float64).reshape(-1), np.asarray(space.high, np.float64).reshape(-1)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(
            f"{name}: expected actions with finite bounds, lower below upper, got {space}: wrap the environment with "
            "gymnasium.wrappers.TransformAction and a bounded Box, in a function that builds it"
        )
    return (low + high) / 2, (high - low) / 2
