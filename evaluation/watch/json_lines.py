"""Files with one JSON object a line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...core.files import write_text


def read_json_lines(path: Path) -> dict[int, dict[str, Any]]:
    """Read the objects of a JSON-lines file.

    Empty lines are left out, and so is a last line without an end that is no JSON: it is still being written.

    Args:
        path: File to read.

    Returns:
        Number of the line, from 1, to its object.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is no JSON object; the message names the file and the line.
    """
    found: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r} ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r}")
        found[number] = cast(dict[str, Any], value)
    return found


def write_json_lines(path: Path, objects: Sequence[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file in one go; the folder is made if it is not there.

    Args:
        path: File to write.
        objects: JSON objects, one a line.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a number is NaN or infinite.
    """
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in objects))
