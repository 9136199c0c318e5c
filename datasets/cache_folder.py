"""Folder of a feature cache: its marker, its entries, and the removal of entries without touching anything else."""

import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..core.files import write_json
from .kept_rows import BLOCK, FORMAT, PART, DamagedError, folders_in_use, read_footer

MARKER = "guerdon-cache.json"
_ADDRESS = re.compile(r"[0-9a-f]{32}")
_EARLIER = re.compile(r"\.?[0-9a-f]{32}(-\w+)?(\.npy)?")  # files of format 1, complete or left by a killed process
_BLOCK_FILE = re.compile(r"\d{5,}\.npy")
_PART_FILE = re.compile(r"\.\d{5,}-[0-9a-f]{8}\.part")
_ABANDONED = 3600.0  # seconds after which a file that is still being written belongs to a process that was killed


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """Features or frames of one camera in one episode under one encoder."""

    path: Path
    """Folder of the entry; a file in format 1."""
    encoder: str
    """Name of the encoder; ``"frames"`` for frames at one size."""
    revision: str
    """Revision of the encoder's weights; for frames their size."""
    bytes: int
    """Size on disk in bytes."""
    last_used: float
    """Time of the last use, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Entries of one encoder and revision."""

    encoder: str
    """Name of the encoder; ``"frames"`` for frames at one size."""
    revision: str
    """Revision of the encoder's weights; for frames their size."""
    entries: int
    """Number of entries."""
    bytes: int
    """Size of the entries in bytes."""
    known: int
    """Number of frames that are computed."""
    places: int
    """Number of recorded frames of the recordings that have an entry."""
    damaged: int
    """Number of damaged files, which are made again when they are needed; only damage at the end of a file is seen."""
    last_used: float
    """Time of the last use, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """Content of a cache."""

    folder: Path
    """Folder of the cache."""
    groups: tuple[CacheGroup, ...]
    """Groups of entries, largest first."""

    @property
    def entries(self) -> int:
        """Number of entries."""
        return sum(group.entries for group in self.groups)

    @property
    def bytes(self) -> int:
        """Size of all entries in bytes."""
        return sum(group.bytes for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """Result of removing entries from a cache."""

    removed: int
    """Number of entries that were removed."""
    freed: int
    """Number of bytes that were freed."""
    left: int
    """Number of bytes that stay; above the limit only where entries in use are larger."""
    in_use: int
    """Number of entries that stay only because this process uses them."""


def is_cache(folder: Path) -> bool:
    """Tell whether a folder is marked as a feature cache."""
    return (folder / MARKER).is_file()


def mark(folder: Path) -> None:
    """Mark a folder as a feature cache, or check that it is one.

    Args:
        folder: Folder of the cache; made where it is not there.

    Raises:
        OSError: If the folder cannot be made or written.
        ValueError: If it holds other files, or the cache of a later version.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the feature cache {folder}: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write into the feature cache {folder}: choose another folder")
    # listed before the marker is looked for: another process that makes this cache at the moment marks it first
    held = [p for p in folder.iterdir() if not p.name.startswith(f".{Path(MARKER).stem}.") and p.name != MARKER]
    if is_cache(folder):
        found = _marked_format(folder / MARKER)
        if found > FORMAT:
            raise ValueError(f"{folder} was made by a later version (format {found}): update, or choose another folder")
        if found == FORMAT:
            return
    elif any(_foreign(path) for path in held):
        raise ValueError(
            f"{folder} is no feature cache and holds other files: choose a new or empty folder, so that making room "
            "in it never removes anything else"
        )
    about = "features kept by guerdon; see `guerdon inspect`, which can also make room"
    write_json(folder / MARKER, {"format": FORMAT, "about": about})


def _marked_format(marker: Path) -> int:
    try:
        content = cast(dict[str, Any], json.loads(marker.read_text(encoding="utf-8")))
        return int(content["format"])
    except (ValueError, KeyError, TypeError):
        warnings.warn(f"{marker} is damaged and is written again", stacklevel=3)
        return 0


def _foreign(path: Path) -> bool:
    """Tell whether a path is not from a cache of format 1, which had no marker: ``encoder/revision/address.npy``."""
    if path.is_symlink() or not path.is_dir():
        return True
    files = [p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()]
    return any(len(f.relative_to(path).parts) != 2 or not _EARLIER.fullmatch(f.name) for f in files)


def entries(folder: Path) -> Iterator[CacheEntry]:
    """Yield the entries of a cache; links and everything that does not look like an entry are left out.

    Args:
        folder: Folder of the cache.
    """
    for encoder in _folders(folder):
        for revision in _folders(encoder):
            for path in sorted(revision.iterdir()):
                if path.is_symlink() or not _ADDRESS.fullmatch(path.name.removesuffix(".npy")):
                    continue
                with suppress(FileNotFoundError):  # another process removes it
                    size = sum(f.stat().st_size for f in _files(path))
                    used = path.stat().st_mtime
                    yield CacheEntry(
                        path=path, encoder=encoder.name, revision=revision.name, bytes=size, last_used=used
                    )


def _folders(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink()]


def _files(path: Path) -> list[Path]:
    """List the files of an entry; an entry of format 1 is a file itself."""
    if not path.is_dir():
        return [path]
    named = [p for p in path.iterdir() if _BLOCK_FILE.fullmatch(p.name) or _PART_FILE.fullmatch(p.name)]
    return [p for p in sorted(named) if p.is_file() and not p.is_symlink()]


def report(folder: Path) -> CacheReport:
    """Summarise a cache by encoder and revision; the ends of files are read, not their rows.

    Args:
        folder: Folder of the cache.

    Raises:
        ValueError: If the folder is no cache.
    """
    _require(folder)
    grouped: dict[tuple[str, str], list[CacheEntry]] = {}
    for entry in entries(folder):
        grouped.setdefault((entry.encoder, entry.revision), []).append(entry)
    groups: list[CacheGroup] = []
    for (encoder, revision), members in grouped.items():
        counted = [_count(entry.path) for entry in members]
        group = CacheGroup(
            encoder=encoder,
            revision=revision,
            entries=len(members),
            bytes=sum(e.bytes for e in members),
            known=sum(known for known, _, _ in counted),
            places=sum(places for _, places, _ in counted),
            damaged=sum(damaged for _, _, damaged in counted),
            last_used=max(e.last_used for e in members),
        )
        groups.append(group)
    return CacheReport(folder=folder, groups=tuple(sorted(groups, key=lambda g: (-g.bytes, g.encoder, g.revision))))


def _count(path: Path) -> tuple[int, int, int]:
    """Count the known rows, the places and the damaged files of an entry."""
    known = places = damaged = 0
    if not path.is_dir():  # files of format 1 do not describe themselves
        return 0, 0, 0
    for file in _files(path):
        if file.suffix == PART:
            continue
        try:
            with file.open("rb") as opened:
                footer, _ = read_footer(opened, file.stat().st_size)
            known += int(footer["shape"][0])
            places = max(places, int(footer["count"]))
        except FileNotFoundError:
            continue
        except (DamagedError, KeyError, IndexError, TypeError):
            damaged += 1
            places = max(places, int(file.stem) * BLOCK)
    return known, places, damaged


def evict(folder: Path, max_bytes: int) -> Eviction:
    """Remove the entries used longest ago until at most ``max_bytes`` are left.

    Entries that this process uses stay. Other processes are safe too: a file they have open stays readable, and a
    removed entry is computed again. Half-written files of killed processes are removed as well.

    Args:
        folder: Folder of the cache.
        max_bytes: Size that is to be left, in bytes.

    Raises:
        ValueError: If the folder is no cache, or the limit is negative.
    """
    _require(folder)
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}: expected 0 or more")
    found = sorted(entries(folder), key=lambda e: (e.last_used, e.path))
    left = sum(e.bytes for e in found) - sum(_remove_abandoned(e.path) for e in found)
    before, removed, kept = left, 0, 0
    busy = folders_in_use()
    for entry in found:
        if left <= max_bytes:
            break
        if entry.path.resolve() in busy:
            kept += 1
            continue
        gone = sum(_remove(file) for file in _files(entry.path))
        for parent in (entry.path, entry.path.parent, entry.path.parent.parent):
            with suppress(OSError):  # it holds something else, or a process writes into it again
                parent.rmdir()
        left, removed = left - gone, removed + 1
    return Eviction(removed=removed, freed=before - left, left=left, in_use=kept)


def _remove_abandoned(path: Path) -> int:
    old = time.time() - _ABANDONED
    parts = [p for p in (_files(path) if path.is_dir() else []) if p.suffix == PART]
    freed = 0
    for part in parts:
        with suppress(FileNotFoundError):
            freed += _remove(part) if part.stat().st_mtime < old else 0
    return freed


def _remove(file: Path) -> int:
    """Remove a file and return the number of bytes that frees."""
    try:
        size = file.stat().st_size
        file.unlink()
    except FileNotFoundError:
        return 0
    return size


def _require(folder: Path) -> None:
    if not is_cache(folder):
        raise ValueError(f"{folder} is no feature cache: expected a folder that guerdon made, with the file {MARKER}")
