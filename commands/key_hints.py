"""Hints that name the key of a configuration where an error names its value."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

_NAMED = ("path", "task")
_SIZES = re.compile(r"^\w+ has (?:state|action)_size \d+, and the (?:state|action)s of (.+) are \d+ wide")


def key_hint(message: str, config: Mapping[str, Any]) -> str:
    """Return which key to set, where a message holds the value of a ``path`` or a ``task``; else an empty text.

    Args:
        message: Error message.
        config: Configuration of the command, with its sections ``model``, ``data`` and ``trainer``.
    """
    keys = {k: v for k, v in leaves(config, "") if k.rpartition(".")[2] in _NAMED and _holds(message, v)}
    if not keys:
        return ""
    asked = [f"--{key} {key.rpartition('.')[2].upper()}" for key in dict.fromkeys(keys)]
    hint = f"to name another, give {' or '.join(asked)}"
    if _SIZES.match(message):
        models = [k for k, v in leaves(config, "") if k.startswith("model.") and k.endswith(".path") and v]
        hint += f"; the models come from {', '.join(f'--{key}' for key in models)}" if models else ""
    return hint


def leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in a configuration under their dotted names; entries of a list go by the list's name."""
    if isinstance(value, Mapping):
        for key, entry in cast(Mapping[str, Any], value).items():
            yield from leaves(entry, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for entry in cast(list[Any], value):
            yield from leaves(entry, name)
    elif isinstance(value, str):
        yield name, value


def _holds(message: str, value: str) -> bool:
    """Tell whether a message holds a value as a word of its own."""
    return bool(value) and re.search(rf"(?<![\w/.-]){re.escape(value)}(?![\w/-])", message) is not None


__all__ = ["key_hint", "leaves"]
