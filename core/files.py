"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Another path beside the one given, to be written to; it takes its place when the block ends without an error.

    An error removes what was written, and a process that is killed leaves the old file as it was.

    Args:
        path: File to write or to replace, in a folder that is there.

    Raises:
        OSError: If the file cannot be put there.
    """
    fresh = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one go; the folder is made if it is not there.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, in one go; the folder is made if it is not there.

    Raises:
        ValueError: If a number is NaN or infinite.
        OSError: If the file cannot be written.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
