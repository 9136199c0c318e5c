# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false, reportOptionalMemberAccess=false
"""Tasks of the Franka kitchen, one sub-task each."""

import copy
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS, KitchenEnv

from .instructions import KITCHEN
from .render import OffscreenRenderer
from .saved import Physics, SavedState, check_saved
from .task import Context, Step, check_action, check_context, check_state, list_contexts

_SITES = {
    "microwave": "microhandle_site",
    "kettle": "kettle_site",
    "light_switch": "light_site",
    "slide_cabinet": "slide_site",
    "hinge_cabinet": "hinge_site2",
    "bottom_burner": "knob2_site",
    "top_burner": "knob4_site",
}
"""Site at which the object of each sub-task is touched."""


class Kitchen:
    """Task ``kitchen/<sub-task>``: one sub-task of gymnasium-robotics' ``FrankaKitchen-v1``.

    The state is its 59-number observation (robot joints and speeds, object joints and speeds, with the simulator's own
    sensor noise). Actions are nine joint velocities in [−1, 1]. The reward is 1 at every observation where the sub-task
    is complete, which is also `success`; the episode goes on, as in all tasks here.

    All episodes start from the same pose. The simulator varies only the noise, and with it everything that follows,
    because its controller acts on noisy joint measurements. A context is the seed of that noise.

    Args:
        name: ``"microwave"``, ``"kettle"``, ``"light_switch"``, ``"slide_cabinet"``, ``"hinge_cabinet"``,
            ``"bottom_burner"`` or ``"top_burner"``.
        horizon: Time limit in control steps.
        seed: Seed that fixes the contexts.
    """

    state_size: int = 59
    action_size: int = 9
    stage_names: tuple[str, ...] = ("distance",)
    cameras: tuple[str, ...] = ("free", "left_cap", "right_cap")

    def __init__(self, name: str, horizon: int = 280, seed: int = 0) -> None:
        self.name = f"kitchen/{name}"
        self.instruction = KITCHEN[name]
        self.horizon = horizon
        self.action_low, self.action_high = np.full(9, -1, np.float32), np.full(9, 1, np.float32)
        self.seed = seed
        self._element = name.replace("_", " ")
        self._goal = OBS_ELEMENT_GOALS[self._element]
        self._site = _SITES[name]
        self._env: Any = KitchenEnv(
            tasks_to_complete=[self._element], terminate_on_tasks_completed=False, remove_task_when_completed=False
        )
        view = mujoco.MjvCamera()
        view.distance, view.azimuth, view.elevation = 2.2, 70.0, -35.0
        view.lookat[:] = (-0.2, 0.5, 2.0)  # the view of the published renderings
        self._renderer = OffscreenRenderer(self._env.model, free_camera=view)
        self._state = np.zeros(59, np.float32)
        self.fps = float(1 / self._env.robot_env.dt)

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """See `Task.contexts`."""
        return list_contexts(self.name, split, count)

    def reset(self, context: Context) -> np.ndarray:
        """See `Task.reset`."""
        check_context(self.name, context)
        seed = int(np.random.SeedSequence([self.seed, context.index]).generate_state(1)[0])
        observation, _ = self._env.reset(seed=seed)
        self._state = check_state(self.name, observation["observation"])
        return self._state.copy()

    def step(self, action: np.ndarray) -> Step:
        """See `Task.step`."""
        action = check_action(self.name, action, self.action_low, self.action_high)
        observation, reward, _, _, info = self._env.step(action)
        distance = float(np.linalg.norm(observation["achieved_goal"][self._element] - self._goal))
        self._state = check_state(self.name, observation["observation"])
        return Step(
            state=self._state.copy(),
            reward=float(reward),
            success=self._element in info["step_task_completions"],
            terminated=False,
            stages={"distance": distance},
            tracks=self.tracks(),
        )

    def save(self) -> SavedState:
        """See `ResumableTask.save`; future sensor noise is part of the state."""
        robot = self._env.robot_env
        parts = {
            "physics": Physics.of(robot.model, robot.data),
            "noise": copy.deepcopy(robot.np_random.bit_generator.state),
            "sensed": robot._last_robot_qpos.copy(),  # the controller starts from these noisy measurements
        }
        return SavedState(
            task=self.name, seed=self.seed, kind=type(self).__name__, state=self._state.copy(), parts=parts
        )

    def restore(self, saved: SavedState) -> np.ndarray:
        """See `ResumableTask.restore`."""
        saved = check_saved(self, saved)
        robot = self._env.robot_env
        saved.parts["physics"].put(robot.model, robot.data)
        robot.np_random.bit_generator.state = copy.deepcopy(saved.parts["noise"])
        robot._last_robot_qpos = saved.parts["sensed"].copy()
        self._state = saved.state.copy()
        return self._state.copy()

    def tracks(self) -> Mapping[str, np.ndarray]:
        """See `Task.tracks`: ``end_effector``, ``object`` (where it is touched), ``gripper`` (width in metres)."""
        data = self._env.data
        return {
            "end_effector": data.site("end_effector").xpos.astype(np.float32),
            "object": data.site(self._site).xpos.astype(np.float32),
            "gripper": np.array([data.qpos[7] + data.qpos[8]], np.float32),
        }

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        """See `Task.render`."""
        return self._renderer.render(self._env.data, self.cameras[0] if camera is None else camera, size)

    def close(self) -> None:
        """See `Task.close`."""
        self._renderer.close()
        self._env.close()
