"""Configurations of earlier versions: renews class paths, and gathers arguments that an object takes now."""

import importlib
import inspect
import json
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml

from ..core.arguments import taken_by
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
        folder: Folder that a renewed copy is written into, under the name of the file.

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
    option = ""
    for argument in arguments:
        flag = argument.startswith("--")
        name, sign, value = argument.partition("=") if flag else ("", "", argument)
        if flag:
            more = "+" if name.endswith("+") else ""  # as in --trainer.callbacks+=…
            option = _inside_object(name[2:].removesuffix("+"), values)
            name = f"--{option}{more}"
        given = _parsed(value)
        meant = gathered(renew(given)[0])
        if option and value:
            _note_class(values, option, meant)
        if meant != given:
            value = meant if isinstance(meant, str) else json.dumps(meant)
        found.append(f"{name}{sign}{value}")
    return found


def _parsed(text: str) -> Any:
    """Return the mapping or list that a text holds as JSON, else the text, which the parser of arguments refuses."""
    try:
        return yaml.safe_load(text) if text.startswith(("{", "[")) else text
    except yaml.YAMLError:
        return text


def _note_class(values: dict[str, Any], name: str, value: Any) -> None:
    """Note the class that an argument names, which the arguments after it go by."""
    if isinstance(value, str) and not value.startswith(f"{_PACKAGE}."):
        return
    *parents, last = name.split(".")
    place = values
    for parent in parents:
        inside = _entry(place, parent)
        if inside is None:
            inside = place[parent] = {}
        place = inside
    place[last] = {"class_path": value} if isinstance(value, str) and last != "class_path" else value


def _entry(place: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the mapping under a name, in ``init_args`` where that is left out; of a list its last entry."""
    if name not in place and isinstance(place.get("init_args"), dict):
        place = cast(dict[str, Any], place["init_args"])
    entry: Any = place.get(name)
    if isinstance(entry, list) and entry:
        entry = cast(list[Any], entry)[-1]
    if isinstance(entry, str):
        entry = {"class_path": entry}
    return cast(dict[str, Any], entry) if isinstance(entry, dict) else None


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
        place = _entry(place, parent) or {}
        path = path if parent == "init_args" else place.get("class_path", "")
    objects = _objects(path)
    own = inspect.signature(_class(path).__init__).parameters if objects else {}
    for taker, make in objects.items():
        if taken_by(make, [last], own):
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
        inside = taken_by(make, arguments, own)
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
