"""Files that appear whole or not at all, strict JSON, and content hashes."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path in the same folder; it replaces the given path when the block ends without an error.

    An error removes what was written. A process that is killed leaves the old file as it was.

    Args:
        path: File to write or to replace, in a folder that exists.

    Raises:
        OSError: If the file cannot be put there.
    """
    fresh = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all, and make its folder where there is none.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write values as strict JSON, whole or not at all, and make the folder where there is none.

    Raises:
        ValueError: If a number is NaN or infinite; see `without_nan`.
        OSError: If the file cannot be written.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: File to read.
        what: Name of its expected contents, for the error message, such as ``"the settings of a demo"``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}; expected JSON with {what}") from error


def without_nan(value: Any) -> Any:
    """Convert nested mappings and sequences to JSON-able values; NaN and infinity become None, as JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        entries: Mapping[Any, Any] = value
        return {str(name): without_nan(entry) for name, entry in entries.items()}
    if isinstance(value, list | tuple):
        items: Sequence[Any] = value
        return [without_nan(item) for item in items]
    return value


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's contents as 64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(values: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of JSON-able values, independent of the order of keys.

    Raises:
        TypeError: If a value has no JSON form.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
