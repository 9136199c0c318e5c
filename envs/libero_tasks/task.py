# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false, reportOptionalMemberAccess=false
"""Tasks of LIBERO and LIBERO-PRO behind the task protocol."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np

from ..render import OffscreenRenderer
from ..saved import SavedState, check_saved
from ..task import (
    EVAL_OFFSET,
    OFFICIAL_OFFSET,
    Context,
    Controller,
    Step,
    check_action,
    check_context,
    check_state,
    list_contexts,
)
from .expert import LiberoExpert
from .goals import covers, order
from .layout import ARM, PROPRIO, suite_layout
from .places import Places
from .saved import Snapshot
from .suites import find_task, goal_of, horizon_of, load_package, official_states, quiet

SETTLING_STEPS = 10
"""Number of steps without motion and with an open gripper before an episode begins, as LIBERO's protocol asks."""

TRAIN_STATES = 40
"""Number of official initial states among the training contexts; the rest are evaluation contexts."""

_SETTLE = np.array([0.0] * 6 + [-1.0])


class Libero:
    """Task ``libero/<suite>/<n>``: one task of LIBERO or LIBERO-PRO, behind the `Task` protocol.

    **Actions** (7,) in [−1, 1]: change of the end effector's position (3) and rotation (3) for an operational-space
    controller at 20 Hz, and the gripper, −1 open and 1 closed. **Success** is LIBERO's own: all predicates of the goal
    hold, which may be so before the gripper has opened. The reward is 1 where they do, 0 elsewhere.

    **Contexts.** LIBERO brings 50 initial states of each task. The training contexts begin with the first 40, the
    evaluation contexts with the other 10; further ones are drawn by the environment's own placement, from the task's
    seed and the number of the context. With another seed than 0 all are drawn, so that two seeds share no state. The
    two splits never share one. The third split, ``"official"``, is the published protocol: all 50 states, which are
    those of training *and* evaluation. Name it only to compare with published numbers.

    Fixtures without joints (stove, cabinet, rack) are placed up to 1.5 cm apart at each reset and are not part of the
    official states. Here they follow from the task's seed and the context.

    **State.** ``"full"`` is `guerdon.envs.libero_tasks.layout.Layout`, ``"proprio"`` its first eight numbers. See
    `columns`. LIBERO's own observations are one internal step, 2 ms, older.

    **Stages.** ``satisfied``, the number of predicates of the goal that hold, and one number for each, ``goal_1`` … in
    the order of `goal`. **Tracks.** ``end_effector``, ``gripper`` (distance of the fingers in metres), every object and
    fixture by its name, and ``object`` and ``goal``: what the first of `parts` moves, and where to (a handle or knob,
    where a joint moves). Further parts have ``object_2``, ``goal_2`` and so on.

    Pictures are upright, and without shadows and reflections.

    Args:
        suite: Name of the suite, such as ``"libero_object"``; see `guerdon.envs.libero_tasks.suites.SUITES`.
        number: Number of the task in the suite, from 0.
        horizon: Time limit in control steps; None takes that of published results (spatial 220, object 280, goal 300,
            10 520, 90 400).
        seed: Seed that fixes the contexts.
        state: ``"full"``, or ``"proprio"`` for policies that see pictures.

    Raises:
        ModuleNotFoundError: If the simulator is not installed; the message names the command that installs it.
        ValueError: If the suite, the task or the kind of state does not exist.
    """

    action_size: int = 7
    expert_noise: np.ndarray = np.array([0.45] * 6 + [0.0])
    """Largest standard deviation of the noise of noisy experts by dimension; none on the gripper."""

    expert: Callable[[], Controller]
    """Function that makes the scripted expert of the episode that has just begun, see
    `guerdon.envs.libero_tasks.expert.LiberoExpert`; missing if it cannot pursue the goal."""

    def __init__(
        self,
        suite: str,
        number: int,
        horizon: int | None = None,
        seed: int = 0,
        state: str = "full",
    ) -> None:
        if state not in ("full", "proprio"):
            raise ValueError(f"expected state 'full' or 'proprio', got {state!r}")
        entry = find_task(suite, number)
        self.name = entry.name if state == "full" else f"{entry.name}/{state}"
        self.instruction = entry.instruction
        self.horizon = horizon_of(suite) if horizon is None else horizon
        self.action_low, self.action_high = np.full(7, -1, np.float32), np.full(7, 1, np.float32)
        self.seed, self.fps = seed, 20.0
        self._kind = state
        self._layout = suite_layout(suite)
        self.state_size = self._layout.size if state == "full" else PROPRIO
        self._problem = _build(str(entry.bddl))
        self.goal = goal_of(self._problem.parsed_problem)
        """Predicates of the goal, such as ``("in", "milk_1", "basket_1_contain_region")``; all must hold."""
        self.parts = order(self.goal, self._problem.parsed_problem["initial_state"])
        """Predicates in the order in which they can be made true, with the drawers that have to be opened first."""
        self.stage_names: tuple[str, ...] = ("satisfied", *(f"goal_{i + 1}" for i in range(len(self.goal))))
        if covers(self.goal):
            self.expert = lambda: LiberoExpert(self._problem)
        self._places = Places(self._problem, self.parts)
        self.cameras: tuple[str, ...] = _camera_names(self._model)
        self._renderer = OffscreenRenderer(self._model, hidden=(0,))  # group 0 holds the collision shapes
        self._states = official_states(entry)
        width = 1 + self._model.nq + self._model.nv
        if len(self._states) and self._states.shape[1] != width:
            raise ValueError(
                f"{self.name}: its official initial states have {self._states.shape[1]} numbers and the scene {width}; "
                "the installed package is inconsistent, install the one that guerdon asks for"
            )
        self._pristine = Snapshot.of(self._problem, _as_compiled(self._problem))
        self._snapshots: dict[int, Snapshot] = {}

    @property
    def columns(self) -> dict[str, tuple[int, int]]:
        """First column, and the one after the last, of each part of the state; see `layout.Layout`."""
        return {name: place for name, place in self._layout.columns.items() if place[1] <= self.state_size}

    @property
    def problem(self) -> Any:
        """Environment of robosuite that runs the task; for experts, which may look at everything."""
        return self._problem

    @property
    def _model(self) -> mujoco.MjModel:
        return self._problem.sim.model._model

    @property
    def _data(self) -> mujoco.MjData:
        return self._problem.sim.data._data

    def contexts(self, split: str, count: int | None = None) -> list[Context]:
        """List contexts; see `Task.contexts` and, for the split ``"official"``, `Libero`.

        Raises:
            ValueError: If the split is unknown, or more official states are asked for than there are.
        """
        if split != "official":
            return list_contexts(self.name, split, count)
        held = len(self._states)
        if count is not None and not 0 < count <= held:
            raise ValueError(f"{self.name}: expected between 1 and {held} official contexts, got {count}")
        return [Context(self.name, OFFICIAL_OFFSET + i, split) for i in range(held if count is None else count)]

    def official_state(self, context: Context) -> int | None:
        """Return the number of the official initial state of a context; None if it is drawn."""
        number = context.index
        if context.split == "official":
            return number - OFFICIAL_OFFSET
        if self.seed != 0:
            return None
        if context.split == "eval":
            number += TRAIN_STATES - EVAL_OFFSET
        elif number >= TRAIN_STATES:
            return None
        return number if number < len(self._states) else None

    def reset(self, context: Context) -> np.ndarray:
        """See `Task.reset`; the first reset to a context takes about 0.1 s, later ones restore it in a millisecond."""
        check_context(self.name, context)
        if context.index not in self._snapshots:
            self._begin(context)
            self._snapshots[context.index] = Snapshot.of(self._problem)
        self._snapshots[context.index].put(self._problem)
        return self._observe()

    def _begin(self, context: Context) -> None:
        """Place everything, and let it settle; what came before has no influence."""
        number = self.official_state(context)
        # an official state has the same fixtures in whatever split it is named
        seeds = np.random.SeedSequence([self.seed, context.index, 1] if number is None else [self.seed, number])
        for _ in range(100):
            self._pristine.put(self._problem)
            with _numpy_seed(int(seeds.spawn(1)[0].generate_state(1)[0])):
                try:
                    self._problem.reset()
                except load_package().placement_error:
                    continue
            self._problem.robots[0].gripper.current_action = np.zeros(1)  # a reset leaves the last command in place
            if number is not None:
                self._problem.sim.set_state_from_flattened(self._states[number])
                self._data.qacc_warmstart[:] = 0.0  # what was drawn before must not tell in the last digits
            self._problem.sim.forward()
            self._problem._post_process()
            self._settle()
            if number is not None or not all(self._predicates()):
                return
        raise RuntimeError(f"{self.name}: no initial state was found for context {context.index} in 100 attempts")

    def _settle(self) -> None:
        for _ in range(SETTLING_STEPS):
            self._advance(_SETTLE)

    def _advance(self, action: np.ndarray) -> None:
        """Run the simulation for one control step, as robosuite's own step does, without its observations."""
        problem = self._problem
        problem.timestep += 1
        for i in range(round(problem.control_timestep / problem.model_timestep)):
            problem.sim.forward()
            problem._pre_action(action, i == 0)
            problem.sim.step()
        problem.cur_time += problem.control_timestep
        problem._post_process()

    def step(self, action: np.ndarray) -> Step:
        """See `Task.step`."""
        self._advance(check_action(self.name, action, self.action_low, self.action_high))
        holds = self._predicates()
        return Step(
            state=self._observe(),
            reward=float(all(holds)),
            success=all(holds),
            terminated=False,
            stages=dict(zip(self.stage_names, (float(sum(holds)), *map(float, holds)), strict=True)),
            tracks=self.tracks(),
        )

    def _predicates(self) -> list[bool]:
        return [bool(self._problem._eval_predicate(list(predicate))) for predicate in self.goal]

    def _observe(self) -> np.ndarray:
        robot = self._places.robot(self._data)
        if self._kind == "proprio":
            return check_state(self.name, robot[:PROPRIO])
        state = np.zeros(self._layout.size)
        state[: PROPRIO + ARM] = robot
        for name, start in self._layout.first.items():
            block = self._places.block(self._data, name)
            state[start : start + len(block)] = block
        return check_state(self.name, state)

    def save(self) -> SavedState:
        """See `ResumableTask.save`."""
        return SavedState(
            task=self.name,
            seed=self.seed,
            kind=type(self).__name__,
            state=self._observe(),
            parts={"snapshot": Snapshot.of(self._problem)},
        )

    def restore(self, saved: SavedState) -> np.ndarray:
        """See `ResumableTask.restore`."""
        check_saved(self, saved).parts["snapshot"].put(self._problem)
        return self._observe()

    def tracks(self) -> Mapping[str, np.ndarray]:
        """See `Task.tracks` and `Libero`."""
        return self._places.tracks(self._data)

    def render(self, camera: str | None = None, size: tuple[int, int] = (96, 96)) -> np.ndarray:
        """See `Task.render`."""
        return self._renderer.render(self._data, self.cameras[0] if camera is None else camera, size)

    def close(self) -> None:
        """See `Task.close`; what robosuite holds is freed as well, about 0.3 GB."""
        self._renderer.close()
        self._snapshots.clear()
        self._problem.close()


def _build(bddl: str) -> Any:
    """Build the environment of robosuite, without its own renderer."""
    package = load_package()
    with quiet():
        problem = package.environments[package.info(bddl)["problem_name"]](
            bddl,
            robots=["Panda"],
            controller_configs=package.controller(default_controller="OSC_POSE"),
            initialization_noise=None,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            ignore_done=True,
            hard_reset=False,  # the model is the same after every reset, and takes seconds to build
        )
        problem.visualize({name: False for name in problem._visualizations})
    return problem


def _as_compiled(problem: Any) -> mujoco.MjModel:
    """Compile the model once more: the fixtures stand where every full reset of robosuite finds them."""
    return type(problem.sim).from_xml_string(problem.model.get_xml()).model._model


def _camera_names(model: mujoco.MjModel) -> tuple[str, ...]:
    """List the cameras; the two of published policies come first."""
    names = [model.camera(i).name for i in range(model.ncam)]
    first = [name for name in ("agentview", "robot0_eye_in_hand") if name in names]
    return (*first, *(name for name in names if name not in first))


@contextmanager
def _numpy_seed(seed: int) -> Generator[None]:
    """Seed NumPy's global generator, from which robosuite draws, and put it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
