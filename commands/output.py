"""Output of commands: files that can be written, and consoles wide enough for tables."""

import os
import sys
from pathlib import Path

from rich.console import Console


def require_writable(path: Path | None) -> None:
    """Refuse an output file that cannot be written before the work is done, not after.

    Args:
        path: File to write; None where none is asked for.

    Raises:
        IsADirectoryError: If it is a folder.
        PermissionError: If it cannot be written, or its folder cannot be made.
    """
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the file to write")
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK) or not (existing.is_dir() or existing == path.absolute()):
        raise PermissionError(f"cannot write {path}: {existing} is no folder that can be written; choose another place")


def table_console(width: int) -> Console:
    """Make a console for tables on standard output.

    Args:
        width: Columns where standard output is no terminal; tables would be folded at 80 there.
    """
    return Console(width=None if sys.stdout.isatty() else width)
