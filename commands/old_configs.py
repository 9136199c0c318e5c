"""Configurations of earlier versions: renews class paths, and gathers arguments that an object takes now."""

import importlib
import inspect
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml

from ..core.moved import public_path, renew, warn_of_old_names
from .run_directory import resolve_config

_PACKAGE = __name__.partition(".")[0]


@contextmanager
def readable_configs(names: Sequence[str]) -> Generator[list[Path]]:
    """Find configurations by path or name, as this version reads them; copies of older ones are there inside the block.

    Args:
        names: Paths of YAML files, or names of configurations that come with guerdon.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: If a file is no YAML.
    """
    paths = [resolve_config(name) for name in names]
    with tempfile.TemporaryDirectory(prefix="guerdon-config-") as folder:
        found: list[Path] = []
        for number, path in enumerate(paths):
            copies = Path(folder) / str(number)
            copies.mkdir()
            found.append(renewed_config(path, copies))
        yield found


def renewed_config(path: Path, folder: Path) -> Path:
    """Return a configuration that this version reads: the file itself, or a renewed copy of an older one.

    A file that names classes by their modules, or gives arguments flat that an object takes now, still works, with one
    `DeprecationWarning`.

    Args:
        path: YAML file.
        folder: Where a copy is written, under the same name.

    Raises:
        ValueError: If the file is no YAML.
    """
    try:
        read: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    named, old = renew(read)
    value = gathered(named)
    if not old and value == read:
        return path
    if old:
        warn_of_old_names(str(path), old, f"Write {renew(old[0])[0]} to renew it.")
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return copy


def renewed_arguments(arguments: Sequence[str], configs: Sequence[Path] = ()) -> list[str]:
    """Renew command-line arguments: class paths, and names of arguments that an object takes now.

    Args:
        arguments: Arguments as given, such as ``--model.reward.init_args.width 8``.
        configs: Renewed configurations that they override; the last one counts most.
    """
    values: dict[str, Any] = {}
    for config in configs:
        values = _merged(values, yaml.safe_load(config.read_text(encoding="utf-8")) or {})
    found: list[str] = []
    for argument in arguments:
        name, sign, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if argument.startswith("--"):
            found.append(f"--{_inside_object(name[2:], values)}{sign}{renew(value)[0]}")
        else:
            found.append(renew(argument)[0])
    return found


def _merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; the second ones count."""
    merged = values | others
    for key in values.keys() & others.keys():
        if isinstance(values[key], dict) and isinstance(others[key], dict):
            merged[key] = _merged(values[key], others[key])
    return merged


def _inside_object(name: str, values: dict[str, Any]) -> str:
    """Return the dotted name of an argument, inside the object that takes it now where there is one."""
    *parents, last = name.split(".")
    place, path = values, ""
    for parent in parents:
        if parent not in place:
            place = place.get("init_args", {})
        entry: Any = place.get(parent)
        place = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
        if parent != "init_args":
            path = entry if isinstance(entry, str) else place.get("class_path", "")
    objects = _objects(path)
    own = inspect.signature(_class(path).__init__).parameters if objects else {}
    for taker, make in objects.items():
        if last not in own and last in inspect.signature(make).parameters:
            return ".".join((*parents, taker, *(["init_args"] if parents[-1] == "init_args" else []), last))
    return name


def gathered(value: Any) -> Any:
    """Put flat arguments of guerdon's classes into the objects that take them now (`guerdon.core.arguments.folds`)."""
    if isinstance(value, Mapping):
        entries = {key: gathered(entry) for key, entry in cast(Mapping[str, Any], value).items()}
        path, arguments = entries.get("class_path"), entries.get("init_args")
        if isinstance(path, str) and isinstance(arguments, dict):
            entries["init_args"] = _gather(path, cast(dict[str, Any], arguments))
        return entries
    if isinstance(value, list):
        return [gathered(entry) for entry in cast(list[Any], value)]
    return value


def _gather(path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    objects = _objects(path)
    if not objects:
        return arguments
    own = inspect.signature(_class(path).__init__).parameters
    flat = dict(arguments)
    for name, make in objects.items():
        inside = [key for key in arguments if key not in own and key in inspect.signature(make).parameters]
        if not inside or flat.get(name) is not None:
            continue
        cls = cast(type, make.func if isinstance(make, partial) else make)
        given = dict(make.keywords) if isinstance(make, partial) else {}
        given |= {key: flat.pop(key) for key in inside}
        flat.pop(name, None)
        flat[name] = {"class_path": public_path(cls), "init_args": _gather(public_path(cls), given)}
    return flat


def _class(path: str) -> Any:
    """Return a public class by its path; None for any other."""
    package, _, name = path.rpartition(".")
    root = importlib.import_module(_PACKAGE)
    return getattr(root, name, None) if package == _PACKAGE else None


def _objects(path: str) -> Mapping[str, Callable[..., Any]]:
    """Objects that a constructor of guerdon gathers its flat arguments into."""
    constructor = getattr(_class(path), "__init__", None)
    return cast(Mapping[str, Callable[..., Any]], getattr(constructor, "folded_objects", {}))


__all__ = ["gathered", "readable_configs", "renewed_arguments", "renewed_config"]
