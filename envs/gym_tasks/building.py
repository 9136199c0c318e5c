"""Registered Gymnasium environments by their ID, built without their notices and without their time limit."""

import contextlib
import difflib
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from typing import Any

import gymnasium
from gymnasium import error as gym_error
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

Environment = gymnasium.Env[Any, Any]

_REGISTERING = ("gymnasium_robotics",)
"""Packages of the extra `sim` whose import registers environments without a namespace."""

_OLD_API = (
    "it is written for the old gym package: wrap it for Gymnasium (the package shimmy has GymV21CompatibilityV0 and "
    "GymV26CompatibilityV0), or let its class inherit gymnasium.Env, with reset(seed=, options=) that returns "
    "(observation, info) and a step that returns five values"
)
"""Advice about an environment with the API of the gym package."""


class _Nowhere(io.TextIOBase):
    """Text stream that keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, s: str, /) -> int:
        return len(s)


_NOWHERE = _Nowhere()


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Drop what an environment prints and warns of inside the block; its errors pass."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(_NOWHERE), contextlib.redirect_stderr(_NOWHERE):
        warnings.simplefilter("ignore")
        yield


def build_environment(identifier: str, options: Mapping[str, Any] | None = None) -> Environment:
    """Build a registered environment, with pictures where it can draw them and without its time limit.

    Args:
        identifier: ID as Gymnasium knows it: ``Name-v0``, ``namespace/Name-v0`` or ``module:Name-v0``. The module, or a
            namespace that is a module, is imported.
        options: Arguments of the environment's constructor.

    Raises:
        ValueError: If there is no such environment (near IDs are listed), or it does not follow Gymnasium's API.
        ModuleNotFoundError: If the environment needs a package that is not installed.
    """
    name = f"gymnasium/{identifier}"
    spec = _find_spec(name, identifier)
    arguments = dict(options or {})
    if "render_mode" not in arguments and "rgb_array" in _render_modes(spec):
        arguments["render_mode"] = "rgb_array"
    with quiet():
        try:
            return gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **arguments)
        except (gym_error.DependencyNotInstalled, ModuleNotFoundError) as error:
            missing = getattr(error, "name", None)
            raise ModuleNotFoundError(f"{name} needs a package that is not installed: {error}", name=missing) from error
        except TypeError as error:
            if "inherit" in str(error) or "incompatible with Gymnasium" in str(error):
                raise ValueError(f"{name} is no gymnasium.Env: {_OLD_API}") from error
            raise ValueError(f"{name}: the environment cannot be built with {arguments}: {error}") from error
        except gym_error.Error as error:
            raise ValueError(f"{name}: {error}") from error


def _find_spec(name: str, identifier: str) -> EnvSpec:
    """Find the registration of an ID, and import what registers it.

    Raises:
        ValueError: If there is none.
        ModuleNotFoundError: If the module that the ID names does not exist.
    """
    module, _, rest = identifier.rpartition(":")
    if module:
        with quiet():
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"{name}: {error}: install the package that registers {rest}", name=error.name
                ) from error
    elif identifier not in gymnasium.registry:
        _register(identifier)
    try:
        with quiet():
            return gymnasium.spec(rest)
    except gym_error.Error as error:
        near = difflib.get_close_matches(rest, [str(known) for known in gymnasium.registry], n=4, cutoff=0.6)
        hint = f"; did you mean {', '.join(f'gymnasium/{known}' for known in near)}?" if near else ""
        advice = (
            " A package's own environments are registered when it is imported: install it, and name it as "
            "gymnasium/<module>:<ID>"
        )
        raise ValueError(f"{name} is not registered: {error}{hint}{'' if near else advice}") from error


def _register(identifier: str) -> None:
    """Import the module that an ID's namespace names, or the packages of the extra `sim`."""
    namespace, slash, _ = identifier.partition("/")
    modules = (namespace.replace("-", "_").lower(), namespace.replace("-", "_")) if slash else _REGISTERING
    for module in modules:
        if module.isidentifier() and (module in sys.modules or importlib.util.find_spec(module)):
            with quiet():
                importlib.import_module(module)


def _render_modes(spec: EnvSpec) -> tuple[str, ...]:
    """Return the render modes that an environment's class names."""
    entry: Any = spec.entry_point
    try:
        with quiet():
            creator = load_env_creator(entry) if isinstance(entry, str) else entry
    except (ImportError, AttributeError):  # building it will say what is missing
        return ()
    metadata = getattr(creator, "metadata", None)
    return tuple(metadata.get("render_modes") or ()) if isinstance(metadata, dict) else ()


def time_limit(env: Environment) -> int | None:
    """Return the time limit that an environment was registered or wrapped with, and lift it.

    Args:
        env: Environment, with any wrappers.
    """
    limit: int | None = env.spec.max_episode_steps if env.spec is not None else None
    for layer in layers(env):
        if isinstance(layer, TimeLimit):
            wrapper: Any = layer
            limit = limit or wrapper._max_episode_steps
            wrapper._max_episode_steps = sys.maxsize
    return limit


def registered_time_limit(identifier: str) -> int | None:
    """Return the time limit in control steps that an ID was registered with, or None.

    Args:
        identifier: ID of an environment that was built.
    """
    return gymnasium.spec(identifier.rpartition(":")[2]).max_episode_steps


def layers(env: Environment) -> list[Environment]:
    """List the wrappers of an environment from the outside in, and the environment itself.

    Args:
        env: Environment, with any wrappers.
    """
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def call_reset(name: str, env: Environment, seed: int) -> tuple[Any, dict[str, Any]]:
    """Reset an environment; return the observation and ``info``.

    Args:
        name: Full name of the task, for errors.
        env: Environment.
        seed: Random seed, at least 0.

    Raises:
        ValueError: If it follows the old API.
    """
    with quiet():
        try:
            answer: Any = env.reset(seed=seed)
        except TypeError as error:
            if "seed" in str(error):
                raise ValueError(f"{name}: reset takes no seed: {_OLD_API}") from error
            raise
    return _expect(name, "reset", answer, 2, "(observation, info)")


def call_step(name: str, env: Environment, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """Step an environment; return observation, reward, terminated, truncated and ``info``.

    Args:
        name: Full name of the task, for errors.
        env: Environment.
        action: Action in the environment's own space.

    Raises:
        ValueError: If it follows the old API.
    """
    with quiet():
        answer: Any = env.step(action)
    return _expect(name, "step", answer, 5, "(observation, reward, terminated, truncated, info)")


def _expect(name: str, method: str, answer: Any, count: int, what: str) -> Any:
    if isinstance(answer, tuple) and len(answer) == count and isinstance(answer[-1], dict):
        return answer
    got = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
    raise ValueError(f"{name}: expected {method} to return {what}, got {got}: {_OLD_API}")


BuildEnvironment = Callable[[], Environment]
"""Function that builds a Gymnasium environment, with ``render_mode="rgb_array"`` if pictures are wanted."""
