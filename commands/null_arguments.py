"""``null`` on the command line, for arguments of objects inside objects."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

_NULL = "null"


def pass_nulls(arguments: Sequence[str], configs: Sequence[Path] = ()) -> list[str]:
    """Write ``--model.init_args.optimizer.init_args.critic_learning_rate null`` so that jsonargparse reads a null.

    jsonargparse hands the value of an argument down through optional objects as text, and None arrives as ``"None"``:
    "expected a float". A null inside a mapping keeps its type, so the argument becomes ``--model.init_args
    '{"optimizer": {"init_args": {"critic_learning_rate": null}}}'``, which is merged with what was given before.

    Args:
        arguments: Arguments as given.
        configs: Configurations that they override. A mapping in them that is no object is entered as it is; an argument
            of an object inside a list is left alone, save for one of the trainer's callbacks.
    """
    read = [yaml.safe_load(config.read_text(encoding="utf-8")) or {} for config in configs]
    found: list[str] = []
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if name.startswith("--") and sign and value == _NULL:
            found += _null(name[2:], read) or [argument]
        elif argument == _NULL and found and found[-1].startswith("--") and "=" not in found[-1]:
            found[-1:] = _null(found[-1][2:], read) or [found[-1], argument]
        else:
            found.append(argument)
    return found


def _null(name: str, configs: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Return the argument that sets a name to null inside an object; None where the plain argument does."""
    root, *rest = name.split(".")
    parts = [part for part in rest if part != "init_args"]
    if root == "trainer" and parts[:1] == ["callbacks"]:
        root, parts = "trainer.callbacks", parts[1:]
    if len(parts) < 2 or root == "trainer":
        return None
    inside: Any = None
    for place in range(len(parts) - 1, 0, -1):
        held = _held(root, parts[:place], configs)
        if isinstance(held, list):
            return None
        plain = isinstance(held, dict) and "class_path" not in held
        inside = {parts[place]: inside} if plain else {"init_args": {parts[place]: inside}}
    return [f"--{root}.init_args", json.dumps({parts[0]: inside})]


def _held(root: str, parts: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> Any:
    """Return what the last configuration that has it holds under a name; None where none has it."""
    for config in reversed(configs):
        value: Any = config
        for part in (*root.split("."), *parts):
            if isinstance(value, list) and value:
                value = cast(list[Any], value)[-1]  # arguments of a callback reach the last one
            value = cast(dict[str, Any], value) if isinstance(value, dict) else {}
            value = value.get(part, cast(dict[str, Any], value.get("init_args") or {}).get(part))
        if value is not None:
            return value
    return None


__all__ = ["pass_nulls"]
