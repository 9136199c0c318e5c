"""Suites of LIBERO and LIBERO-PRO: their tasks, instructions, time limits and files."""

import contextlib
import difflib
import functools
import io
import os
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_BASE = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
_VARIED = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
VARIATIONS: Mapping[str, str] = {
    "lan": "the same task in other words",
    "object": "objects of other looks or sizes",
    "swap": "objects in each other's places",
    "task": "another task in the same scene",
}
"""What each kind of LIBERO-PRO suite changes, by the ending of its name."""

SUITES: Mapping[str, int] = _BASE | {f"{suite}_{kind}": 10 for suite in _VARIED for kind in VARIATIONS}
"""Number of tasks of each suite: five of LIBERO, and the sixteen of LIBERO-PRO that change one thing."""

_HORIZONS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}

EXTRA = "pip install 'guerdon[libero]'"
"""Command that installs the simulator."""


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """Task of a suite, with its files."""

    suite: str
    """Name of the suite."""
    number: int
    """Number of the task in its suite, from 0, in the order of LIBERO's benchmark (its task order 0)."""
    instruction: str
    """Instruction; see `instruction_of`."""
    bddl: Path
    """BDDL file: scene, regions, initial and goal state."""
    states: Path | None
    """File of the official initial states; None if the suite has none for this task."""

    @property
    def name(self) -> str:
        """Full name of the task."""
        return f"libero/{self.suite}/{self.number}"


def horizon_of(suite: str) -> int:
    """Return the time limit of a suite in control steps, as used in published results; a variant has that of its base.

    Args:
        suite: Name of the suite.
    """
    base = max((name for name in _HORIZONS if suite.startswith(name)), key=len, default=None)
    return 400 if base is None else _HORIZONS[base]


def instruction_of(suite: str, from_name: str, from_bddl: str) -> str:
    """Choose between the two instructions that LIBERO has for a task.

    Published policies of the five suites were trained and evaluated with the words in the name of the file. The
    variants with other words or another task kept the name of the file and changed the BDDL: there the name is the
    instruction of the unchanged task, so the BDDL decides.

    Args:
        suite: Name of the suite.
        from_name: Instruction in the name of the file.
        from_bddl: Instruction in the file.
    """
    same = suite in _BASE or any(suite == f"{base}_{kind}" for base in _VARIED for kind in ("object", "swap"))
    return " ".join((from_name if same and from_name else from_bddl).split())


def parse_name(name: str) -> tuple[str, int]:
    """Split ``"<suite>/<n>"`` into the suite and the number of the task.

    Args:
        name: Name of the task without ``"libero/"``.

    Raises:
        ValueError: If it is no such name, or the suite has fewer tasks; near names are listed.
    """
    suite, _, number = name.partition("/")
    if suite in SUITES and re.fullmatch(r"\d+", number) and int(number) < SUITES[suite]:
        return suite, int(number)
    if suite in SUITES:
        raise ValueError(
            f"unknown task 'libero/{name}': {suite} has the tasks libero/{suite}/0 … libero/{suite}/{SUITES[suite] - 1}"
        )
    near = difflib.get_close_matches(suite, SUITES, n=3, cutoff=0.5) or list(_BASE)
    raise ValueError(
        f"unknown task 'libero/{name}': there is no suite {suite!r}; did you mean "
        + ", ".join(f"libero/{one}/{number if number.isdigit() else 0}" for one in near)
        + "?"
    )


def find_task(suite: str, number: int) -> SuiteTask:
    """Find the files and the instruction of a task.

    Args:
        suite: Name of the suite.
        number: Number of the task in the suite.

    Raises:
        ModuleNotFoundError: If the simulator is not installed; the message names the command that installs it.
        ValueError: If the suite or the task does not exist, or its BDDL file is missing from the installed package.
    """
    parse_name(f"{suite}/{number}")
    package = load_package()
    entry = list(package.task_maps[suite].values())[number]
    bddl = Path(package.path("bddl_files"), entry.problem_folder, entry.bddl_file)
    if not bddl.is_file():
        raise ValueError(f"libero/{suite}/{number}: {bddl} is missing; install the simulator again: {EXTRA}")
    states = Path(package.path("init_states"), entry.problem_folder, entry.init_states_file + ".npz")
    words = package.info(str(bddl))["language_instruction"]
    return SuiteTask(
        suite=suite,
        number=number,
        instruction=instruction_of(suite, entry.language, words),
        bddl=bddl,
        states=states if states.is_file() else None,
    )


def official_states(task: SuiteTask) -> np.ndarray:
    """Read the official initial states of a task, (N, W) float64: time, positions and velocities of the simulation.

    Args:
        task: Task.
    """
    if task.states is None:
        return np.zeros((0, 0))
    with np.load(task.states, allow_pickle=False) as file:
        return np.asarray(file["states"], np.float64)


def parse_suite(suite: str) -> list[Mapping[str, Any]]:
    """Parse the BDDL files of all tasks of a suite.

    Args:
        suite: Name of the suite.

    Returns:
        For each task the parts of its file, such as ``"objects"`` and ``"fixtures"`` (kind → names) and
        ``"goal_state"`` (predicates as lists of words).
    """
    return [load_package().parse(str(find_task(suite, number).bddl)) for number in range(SUITES[suite])]


@dataclass(frozen=True)
class _Package:
    """What is used of the installed packages."""

    task_maps: Mapping[str, Mapping[str, Any]]
    path: Any
    info: Any
    parse: Any
    environments: Mapping[str, Any]
    controller: Any
    placement_error: type[Exception]


@functools.cache
def load_package() -> _Package:
    """Import LIBERO and robosuite without their prints, warnings and changes of the environment.

    robosuite sets ``MUJOCO_GL`` when it is imported, and opens the OpenGL library that it names. Nothing of that is
    needed for states, and pictures are rendered by `guerdon.envs.render`.

    Raises:
        ModuleNotFoundError: If the packages are not installed; the message names the command that installs them.
    """
    with quiet(), _without_opengl():
        try:
            from libero.libero import get_libero_path
            from libero.libero.benchmark import task_maps
            from libero.libero.envs import TASK_MAPPING
            from libero.libero.envs.bddl_utils import get_problem_info, robosuite_parse_problem
            from robosuite import load_controller_config
            from robosuite.utils.errors import RandomizationError
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if missing not in ("libero", "robosuite", "bddl"):
                raise
            raise ModuleNotFoundError(
                f"tasks of LIBERO need {missing}, which is not installed: {EXTRA} (2.1 GB)", name=missing
            ) from error
    return _Package(
        task_maps,
        get_libero_path,
        get_problem_info,
        robosuite_parse_problem,
        TASK_MAPPING,
        load_controller_config,
        RandomizationError,
    )


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silence what the simulator prints and warns."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _without_opengl() -> Generator[None]:
    """Keep robosuite from opening an OpenGL library, and put the environment's variables back afterwards."""
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    before = {name: os.environ.get(name) for name in names}
    os.environ["MUJOCO_GL"] = "glx"  # the one value with which robosuite imports no OpenGL library
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def goal_of(parsed: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return the predicates of a goal, such as ``("in", "milk_1", "basket_1_contain_region")``.

    Args:
        parsed: Parts of a BDDL file; see `parse_suite`.
    """
    goal: Sequence[Sequence[str]] = parsed["goal_state"]
    return tuple(tuple(predicate) for predicate in goal)
