# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false, reportOptionalMemberAccess=false
"""Meta-World's 50 v3 manipulation tasks, with the goal in view and contexts that reset exactly."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task as MetaWorldTask

from .experts import scripted_expert
from .instructions import METAWORLD
from .render import OffscreenRenderer
from .saved import Physics, SavedState, check_saved
from .sawyer_speed import faster_class
from .task import Context, Controller, Step, check_action, check_context, check_state, list_contexts

_CLOSE_VIEW = (0.75, 0.075, 0.7)
"""Position of the camera ``corner2`` in published results from pixels; the shipped model has it far from the table."""

_MODEL_FIELDS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "geom_quat", "site_rgba", "geom_rgba")
"""Parts of the model that a task may change when it resets."""

_PLAIN = (bool, int, float, str, tuple, type(None))


class MetaWorld:
    """Task ``metaworld/<name>``: one Meta-World task behind the `Task` protocol.

    The observation is Meta-World's own 39 numbers **with the goal in them** (``partially_observable=False``, as in its
    MT benchmarks; the ML benchmarks hide it): hand, gripper opening and objects now and one step earlier, then the
    goal. Actions are hand displacement and gripper effort in [−1, 1]. The reward is Meta-World's dense reward in
    [0, 10]; `stages` is its ``info``. An episode never terminates by itself.

    Only the class of this one task is built. A context is the random vector that Meta-World itself stores in a task of
    its ``train_tasks``, drawn from a generator of its own; contexts cost nothing until they are used. The first reset
    to a context runs Meta-World's reset (20 to 50 ms). Later resets restore the simulator from a snapshot, bit by bit.

    Steps give Meta-World's own numbers, bit by bit, and are up to twice as fast: see `guerdon.envs.sawyer_speed`.

    Args:
        name: One of the 50 names, such as ``"push-v3"``.
        horizon: Time limit in control steps. Scripted experts need 30 to 240; Meta-World's own limit is 500.
        seed: Seed that fixes the contexts.
    """

    state_size: int = 39
    action_size: int = 4
    stage_names: tuple[str, ...] = ("near_object", "grasp_success", "grasp_reward", "in_place_reward", "obj_to_target")
    cameras: tuple[str, ...] = ("corner2", "corner", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")

    def __init__(self, name: str, horizon: int = 150, seed: int = 0) -> None:
        self.name = f"metaworld/{name}"
        self.instruction = METAWORLD[name]
        self.horizon = horizon
        self.action_low, self.action_high = np.full(4, -1, np.float32), np.full(4, 1, np.float32)
        self.seed = seed
        self._task_name = name
        self._class = ALL_V3_ENVIRONMENTS[name]
        self._env: Any = self._class()
        self._env.__class__ = faster_class(self._class)
        self._env.max_path_length = 2**31  # the time limit is kept here; Meta-World raises after its own
        self._env._partially_observable = False
        del self._env.sawyer_observation_space  # cached with the goal hidden
        model = self._env.model
        corner = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "corner2")
        model.cam_pos[corner] = _CLOSE_VIEW
        # The shipped cameras look at the table upside down: half a turn about the line of sight.
        for camera in range(model.ncam):
            if model.camera(camera).name in ("corner2", "corner3", "corner4"):
                w, x, y, z = model.cam_quat[camera]
                model.cam_quat[camera] = (-z, y, -x, w)
        self._renderer = OffscreenRenderer(model)
        self._pristine = _Snapshot(self._env, np.zeros(39, np.float32))
        self._snapshots: dict[int, _Snapshot] = {}
        self._state = np.zeros(39, np.float32)
        self.fps = float(1 / self._env.dt)

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """See `Task.contexts`."""
        return list_contexts(self.name, split, count)

    def reset(self, context: Context) -> np.ndarray:
        """See `Task.reset`."""
        check_context(self.name, context)
        snapshot = self._snapshots.get(context.index)
        if snapshot is None:
            vector = self._draw(context.index)
            self._env.set_task(
                MetaWorldTask(
                    self._task_name,
                    pickle.dumps({"rand_vec": vector, "env_cls": self._class, "partially_observable": False}),
                )
            )
            observation, _ = self._env.reset()
            snapshot = self._snapshots[context.index] = _Snapshot(self._env, check_state(self.name, observation))
        snapshot.restore(self._env)
        self._state = snapshot.state
        return self._state.copy()

    def _draw(self, index: int) -> np.ndarray:
        """Draw the random vector of a context: Meta-World's own draw (with its rejections) from our generator."""
        env = self._env
        self._pristine.restore(env)  # Meta-World's resets depend, in the last digits, on what went before them
        env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
        env.np_random = np.random.default_rng([self.seed, index])
        env.reset_model()
        return np.array(env._last_rand_vec)

    def step(self, action: np.ndarray) -> Step:
        """See `Task.step`."""
        action = check_action(self.name, action, self.action_low, self.action_high)
        observation, reward, _, _, info = self._env.step(action)
        self._state = check_state(self.name, observation)
        return Step(
            state=self._state.copy(),
            reward=float(reward),
            success=bool(info["success"]),
            terminated=False,
            stages={name: float(info[name]) for name in self.stage_names},
            tracks=self.tracks(),
        )

    def expert(self) -> Controller:
        """See `guerdon.envs.task.ExpertTask.expert`: Meta-World's own policy; a few fail on some contexts."""
        return scripted_expert(self.name)

    def save(self) -> SavedState:
        """See `ResumableTask.save`."""
        parts = {"snapshot": _Snapshot(self._env, self._state.copy())}
        return SavedState(
            task=self.name, seed=self.seed, kind=type(self).__name__, state=self._state.copy(), parts=parts
        )

    def restore(self, saved: SavedState) -> np.ndarray:
        """See `ResumableTask.restore`."""
        saved = check_saved(self, saved)
        saved.parts["snapshot"].restore(self._env)
        self._state = saved.state.copy()
        return self._state.copy()

    def tracks(self) -> Mapping[str, np.ndarray]:
        """See `Task.tracks`; the gripper is its opening, 0 closed to 1 open."""
        state = self._state
        return {
            "end_effector": state[0:3].copy(),
            "gripper": state[3:4].copy(),
            "object": state[4:7].copy(),
            "goal": state[36:39].copy(),
        }

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        """See `Task.render`."""
        return self._renderer.render(self._env.data, self.cameras[0] if camera is None else camera, size)

    def close(self) -> None:
        """See `Task.close`."""
        self._renderer.close()
        self._env.close()


class _Snapshot:
    """Everything that determines what a Meta-World environment does next: simulation, model changes, attributes."""

    def __init__(self, env: MujocoEnv, state: np.ndarray) -> None:
        self.state = state
        self._physics = Physics.of(env.model, env.data)
        self._model = {name: getattr(env.model, name).copy() for name in _MODEL_FIELDS}
        self._attributes = {
            name: _keep(value, env.data)
            for name, value in vars(env).items()
            if isinstance(value, (np.ndarray, *_PLAIN))
        }

    def restore(self, env: Any) -> None:
        for name, value in self._model.items():
            getattr(env.model, name)[:] = value
        for name, value in self._attributes.items():
            setattr(env, name, _give(value, env.data))
        for name in [n for n, v in vars(env).items() if isinstance(v, np.ndarray) and n not in self._attributes]:
            delattr(env, name)
        self._physics.put(env.model, env.data)
        if env._target_pos is not None:
            for site in env._target_site_config:
                env._set_pos_site(*site)


@dataclass(frozen=True)
class _View:
    """Place of a view on the simulator's positions: Meta-World stores some as attributes and reads them later."""

    field: str
    first: int
    size: int


def _keep(value: object, data: mujoco.MjData) -> object:
    """Copy an array; keep only the place of a view, so that it can be opened in another copy of the simulator."""
    if not isinstance(value, np.ndarray):
        return value
    for field in ("xpos", "site_xpos"):
        whole = getattr(data, field)
        if np.may_share_memory(value, whole):
            first = (value.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // whole.itemsize
            return _View(field, first, value.size)
    return value.copy()


def _give(value: object, data: mujoco.MjData) -> object:
    """Turn what `_keep` returned into an attribute again."""
    if isinstance(value, _View):
        return getattr(data, value.field).reshape(-1)[value.first : value.first + value.size]
    return value.copy() if isinstance(value, np.ndarray) else value
