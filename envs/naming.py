"""Tasks by name: the families of guerdon, any registered Gymnasium environment, and classes of the user's own."""

import contextlib
import difflib
import importlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

from .instructions import KITCHEN, METAWORLD
from .libero_tasks.suites import SUITES, parse_name
from .reach import Reach
from .task import Task, missing_members

FORMS = (
    "mujoco/reach, metaworld/<task>-v3, kitchen/<sub-task>, libero/<suite>/<n>, gymnasium/<ID> of a registered "
    "environment, or a class of your own as package.module:Class"
)
"""Forms of a name, for people."""

_OWN_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def task_names() -> list[str]:
    """List the names of the reach task, Meta-World, Franka Kitchen (extra `sim`) and LIBERO (extra `libero`).

    `make_task` also accepts ``gymnasium/<ID>`` and ``package.module:Class``, of which there is no list.
    """
    kitchen = [f"kitchen/{name}" for name in KITCHEN]
    libero = [f"libero/{suite}/{number}" for suite, count in SUITES.items() for number in range(count)]
    return [f"metaworld/{name}" for name in METAWORLD] + kitchen + libero + ["mujoco/reach"]


def make_task(name: str, horizon: int | None = None, seed: int = 0) -> Task:
    """Build one task by name.

    | name | task |
    |---|---|
    | ``mujoco/reach`` | `guerdon.envs.reach.Reach` |
    | ``metaworld/<task>-v3`` | one of Meta-World's 50 tasks |
    | ``kitchen/<sub-task>`` | one sub-task of Franka Kitchen |
    | ``libero/<suite>/<n>`` | task n of a suite of LIBERO or LIBERO-PRO; with ``/proprio``, the robot's state alone |
    | ``gymnasium/<ID>`` | a registered environment, such as ``gymnasium/gym_pusht/PushT-v0`` |
    | ``package.module:Class`` | a class that takes ``horizon=`` and ``seed=``; the current folder is searched too |

    Args:
        name: Name of the task.
        horizon: Time limit in control steps; None takes the task's default.
        seed: Seed that fixes every context, together with the name; two seeds have different initial states.

    Raises:
        ValueError: If the name is unknown (near matches are listed), the horizon impossible, or the class no task.
        ModuleNotFoundError: If the simulator is not installed; the message names the command that installs it.
    """
    if horizon is not None and horizon < 1:
        raise ValueError(f"{name}: expected a horizon of at least one step, got {horizon}")
    family, _, rest = name.partition("/")
    if name == "mujoco/reach":
        return Reach(seed=seed) if horizon is None else Reach(horizon, seed)
    if family == "metaworld" and rest in METAWORLD:
        return _metaworld(rest, horizon, seed)
    if family == "kitchen" and rest in KITCHEN:
        return _kitchen(rest, horizon, seed)
    if family == "libero":
        return _libero(rest, horizon, seed)
    if family == "gymnasium" and rest:
        return _gymnasium(rest, horizon, seed)
    if _OWN_CLASS.fullmatch(name):
        return _own_class(name, horizon, seed)
    raise _unknown(name)


def _unknown(name: str) -> ValueError:
    """Make the error about a name that no family knows."""
    near = difflib.get_close_matches(name, task_names(), n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return ValueError(f"unknown task {name!r}: {hint}Names are {FORMS}; guerdon.task_names() lists those of guerdon")


@contextlib.contextmanager
def _needs(name: str, extra: str, *packages: str) -> Generator[None]:
    """Turn a missing package into an error that says how to install it.

    Args:
        name: Full name of the task.
        extra: Extra of guerdon that brings the packages.
        packages: Packages that the extra brings.

    Raises:
        ModuleNotFoundError: If one of them is missing inside the block.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in packages:
            raise
        raise ModuleNotFoundError(
            f"{name} needs {error.name}, which is not installed: pip install 'guerdon[{extra}]'", name=error.name
        ) from error


def _metaworld(task: str, horizon: int | None, seed: int) -> Task:
    with _needs(f"metaworld/{task}", "sim", "gymnasium", "metaworld"):
        from .sawyer import MetaWorld
    return MetaWorld(task, seed=seed) if horizon is None else MetaWorld(task, horizon, seed)


def _kitchen(task: str, horizon: int | None, seed: int) -> Task:
    with (
        _needs(f"kitchen/{task}", "sim", "gymnasium", "gymnasium_robotics"),
        contextlib.redirect_stderr(io.StringIO()),  # a notice about environments of another family
    ):
        from .franka import Kitchen
    return Kitchen(task, seed=seed) if horizon is None else Kitchen(task, horizon, seed)


def _libero(task: str, horizon: int | None, seed: int) -> Task:
    task, state = (task.removesuffix("/proprio"), "proprio") if task.endswith("/proprio") else (task, "full")
    suite, number = parse_name(task)
    with _needs(f"libero/{task}", "libero", "libero", "robosuite", "bddl"):
        from .libero_tasks.task import Libero

        return Libero(suite, number, horizon, seed, state)


def _gymnasium(identifier: str, horizon: int | None, seed: int) -> Task:
    with _needs(f"gymnasium/{identifier}", "sim", "gymnasium"):
        from .gym_tasks.task import GymnasiumTask
    with current_folder_importable():
        return GymnasiumTask(identifier, horizon, seed)


def _own_class(name: str, horizon: int | None, seed: int) -> Task:
    """Build a task of a user's class, or by a function of theirs."""
    module_name, _, attribute = name.partition(":")
    with current_folder_importable():
        make = _find(name, _import(name, module_name), attribute)
        arguments = {"seed": seed} if horizon is None else {"horizon": horizon, "seed": seed}
        _check_arguments(name, make, arguments)
        task = make(**arguments)
    missing = missing_members(task)
    if missing:
        raise ValueError(
            f"{name} is no task: it lacks {', '.join(missing)}. guerdon.Task describes every member, "
            "guerdon.check_task checks them, and docs/simulators.md shows a whole class"
        )
    return task


@contextlib.contextmanager
def current_folder_importable() -> Generator[None]:
    """Let modules of the current folder be imported, which the console script does not; installed ones come first."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            raise ModuleNotFoundError(
                f"{name}: there is no module {missing}: run the command in the folder that holds it, or put that "
                "folder on PYTHONPATH",
                name=missing,
            ) from error
        raise ModuleNotFoundError(
            f"{name}: {module} imports {missing}, which is not installed", name=missing
        ) from error


def _find(name: str, module: ModuleType, attribute: str) -> Callable[..., Any]:
    """Return the class or function of a module.

    Raises:
        ValueError: If it is not there, or cannot be called; the classes of the module are listed.
    """
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    own = sorted(n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__)
    near = difflib.get_close_matches(attribute, own, n=1)
    what = f"it is {type(found).__name__}, no class" if found is not None else f"{module.__name__} has no {attribute}"
    has = f"its classes are {', '.join(own)}" if own else f"{module.__file__ or module.__name__} defines no class"
    raise ValueError(f"{name}: {what}; {f'did you mean {near[0]}? ' if near else ''}{has}")


def _check_arguments(name: str, make: Callable[..., Any], arguments: dict[str, int]) -> None:
    """Check that a class accepts the arguments that it is made with.

    Raises:
        ValueError: If it does not, or needs others.
    """
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # written in C: the call will tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{name}: expected a class that is made by (horizon=…, seed=…) with defaults for everything else, got "
            f"{signature} ({error}): write __init__(self, horizon: int = 100, seed: int = 0)"
        ) from None
