# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false, reportOptionalMemberAccess=false
"""Small reach task in plain MuJoCo: a three-joint arm touches a ball."""

from collections.abc import Mapping
from math import sqrt
from pathlib import Path

import mujoco
import numpy as np

from .instructions import REACH
from .render import OffscreenRenderer
from .saved import Physics, SavedState, check_saved
from .task import Context, Controller, Step, check_action, check_context, check_state, list_contexts

LINK = 0.3
"""Length of both links, in metres."""

BASE = 0.3
"""Height of the shoulder, in metres."""

MAX_SPEED = 2.0
"""Joint speed of an action of 1, in rad/s."""

RADIUS = 0.04
"""Distance within which the tip is on the goal, in metres."""

_FRAME_SKIP = 4
_LOW, _HIGH = np.array([-1.5, 0.1, -2.2]), np.array([1.5, 1.3, -0.6])


def tip_position(joints: np.ndarray) -> np.ndarray:
    """Compute the position of the tip (3,), in metres, by forward kinematics.

    Args:
        joints: Joint angles (3,) yaw, shoulder, elbow, in radians.
    """
    yaw, shoulder, elbow = joints
    reach = LINK * (np.cos(shoulder) + np.cos(shoulder + elbow))
    height = BASE + LINK * (np.sin(shoulder) + np.sin(shoulder + elbow))
    return np.array([reach * np.cos(yaw), reach * np.sin(yaw), height])


def joint_angles(point: np.ndarray) -> np.ndarray:
    """Compute the joint angles (3,) that bring the tip to a point, by inverse kinematics with the elbow up.

    Args:
        point: Point (3,) within reach, in metres.
    """
    x, y, z = point[0], point[1], point[2] - BASE
    reach = np.hypot(x, y)
    # Two equal links span 2·LINK·cos(elbow / 2), and the elbow splits its angle evenly around that line.
    span = np.clip(np.hypot(reach, z) / (2 * LINK), 0.0, 1.0)
    elbow = -2 * np.arccos(span)
    return np.array([np.arctan2(y, x), np.arctan2(z, reach) - elbow / 2, elbow])


def reach_expert(state: np.ndarray, gain: float = 5.0) -> np.ndarray:
    """Move every joint of the reach task towards the angle at which the tip is on the goal, by inverse kinematics.

    Args:
        state: State (12,) of `Reach`.
        gain: Joint speed per error of the angle, in 1/s.

    Returns:
        Action (3,) in [−1, 1].
    """
    error = joint_angles(state[9:12]) - state[0:3]
    return np.clip(gain * error / MAX_SPEED, -1.0, 1.0)


class Reach:
    """Task ``mujoco/reach``: bring the tip of a yaw-shoulder-elbow arm to a ball within 50 steps of 0.04 s.

    The state (12,) holds joint angles (rad), joint speeds (rad/s), tip (m) and goal (m). An action (3,) in [−1, 1] sets
    the joint speeds; 1 is 2 rad/s. The reward is minus the distance of tip and goal in metres, plus 1 on the goal.
    Success is a distance of at most 4 cm. The task needs `mujoco` alone, and makes a few thousand steps per second.

    Args:
        horizon: Time limit in control steps.
        seed: Seed that fixes the contexts: initial joint angles, and a reachable goal at least 0.25 m from the tip.
    """

    name: str = "mujoco/reach"
    instruction: str = REACH
    state_size: int = 12
    action_size: int = 3
    stage_names: tuple[str, ...] = ("distance",)
    cameras: tuple[str, ...] = ("front", "top")

    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        self.horizon = horizon
        self.action_low, self.action_high = np.full(3, -1, np.float32), np.full(3, 1, np.float32)
        self.seed = seed
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("reach.xml")))
        self._data = mujoco.MjData(self._model)
        # Views on the simulator, always current.
        self._joints, self._speeds, self._control = self._data.qpos, self._data.qvel, self._data.ctrl
        self._tip, self._goal = self._data.site("tip").xpos, self._data.mocap_pos[0]
        self._renderer = OffscreenRenderer(self._model)
        self.fps = 1 / (self._model.opt.timestep * _FRAME_SKIP)

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """See `Task.contexts`."""
        return list_contexts(self.name, split, count)

    def reset(self, context: Context) -> np.ndarray:
        """See `Task.reset`."""
        check_context(self.name, context)
        generator = np.random.default_rng([self.seed, context.index])
        joints = generator.uniform(_LOW, _HIGH)
        goal = tip_position(generator.uniform(_LOW, _HIGH))
        while np.linalg.norm(goal - tip_position(joints)) < 0.25:
            goal = tip_position(generator.uniform(_LOW, _HIGH))
        mujoco.mj_resetData(self._model, self._data)
        self._joints[:] = joints
        self._goal[:] = goal
        mujoco.mj_forward(self._model, self._data)
        return self._state()

    def step(self, action: np.ndarray) -> Step:
        """See `Task.step`."""
        self._control[:] = MAX_SPEED * check_action(self.name, action, self.action_low, self.action_high)
        mujoco.mj_step(self._model, self._data, _FRAME_SKIP)
        mujoco.mj_kinematics(self._model, self._data)  # mj_step leaves positions one substep behind the joints
        away = self._tip - self._goal
        distance = sqrt(away.dot(away))
        success = distance <= RADIUS
        state = self._state()
        return Step(
            state=state,
            reward=float(success) - distance,
            success=success,
            terminated=False,
            stages={"distance": distance},
            tracks={"end_effector": state[6:9].copy(), "goal": state[9:12].copy()},
        )

    def expert(self) -> Controller:
        """See `guerdon.envs.task.ExpertTask.expert`."""
        return reach_expert

    def save(self) -> SavedState:
        """See `ResumableTask.save`."""
        parts = {"physics": Physics.of(self._model, self._data)}
        return SavedState(task=self.name, seed=self.seed, kind=type(self).__name__, state=self._state(), parts=parts)

    def restore(self, saved: SavedState) -> np.ndarray:
        """See `ResumableTask.restore`."""
        saved = check_saved(self, saved)
        saved.parts["physics"].put(self._model, self._data)
        return saved.state.copy()

    def tracks(self) -> Mapping[str, np.ndarray]:
        """See `Task.tracks`: ``end_effector`` and ``goal``."""
        return {"end_effector": self._tip.astype(np.float32), "goal": self._goal.astype(np.float32)}

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        """See `Task.render`."""
        return self._renderer.render(self._data, self.cameras[0] if camera is None else camera, size)

    def close(self) -> None:
        """See `Task.close`."""
        self._renderer.close()

    def _state(self) -> np.ndarray:
        parts = self._joints, self._speeds, self._tip, self._goal
        return check_state(self.name, np.concatenate(parts, dtype=np.float32))
