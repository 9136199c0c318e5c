"""The folder of a feature cache: its marker, what lies in it, and making room without touching anything else."""

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
_EARLIER = re.compile(r"\.?[0-9a-f]{32}(-\w+)?(\.npy)?")  # files of format 1, and what it left when killed
_BLOCK_FILE = re.compile(r"\d{5,}\.npy")
_PART_FILE = re.compile(r"\.\d{5,}-[0-9a-f]{8}\.part")
_ABANDONED = 3600.0  # seconds after which a file that is still being written belongs to a process that was killed


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """What is kept of one camera in one episode under one encoder."""

    path: Path
    encoder: str
    """Its name; ``"frames"`` for frames at one size."""
    revision: str
    """Of the encoder's weights; the size of frames."""
    bytes: int
    last_used: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Entries of one encoder and revision."""

    encoder: str
    revision: str
    entries: int
    bytes: int
    known: int
    """Frames computed."""
    places: int
    """Frames recorded, of the recordings that have an entry."""
    damaged: int
    """Files that will be made again when they are asked for; found by their ends, so not every one."""
    last_used: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What lies in a cache."""

    folder: Path
    groups: tuple[CacheGroup, ...]
    """Largest first."""

    @property
    def entries(self) -> int:
        """Number of entries."""
        return sum(group.entries for group in self.groups)

    @property
    def bytes(self) -> int:
        """Size of all entries."""
        return sum(group.bytes for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """What was removed from a cache."""

    removed: int
    """Entries."""
    freed: int
    """Bytes."""
    left: int
    """Bytes that stay; above the limit only if what is in use is larger."""
    in_use: int
    """Entries that would have gone, had this process not been using them."""


def is_cache(folder: Path) -> bool:
    """Whether a folder is marked as a feature cache."""
    return (folder / MARKER).is_file()


def mark(folder: Path) -> None:
    """Make a folder a cache, or check that it is one.

    Raises:
        OSError: If it cannot be made or written.
        ValueError: If it holds anything else, or the cache of a later version.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the feature cache {folder}: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write into the feature cache {folder}: choose another folder")
    # listed before the marker is looked for: another process that makes this cache right now marks it first
    held = [p for p in folder.iterdir() if not p.name.startswith(f".{Path(MARKER).stem}.") and p.name != MARKER]
    if is_cache(folder):
        found = _marked_format(folder / MARKER)
        if found > FORMAT:
            raise ValueError(f"{folder} was made by a later version (format {found}): update, or choose another folder")
        if found == FORMAT:
            return
    elif any(_foreign(path) for path in held):
        raise ValueError(
            f"{folder} is no feature cache and holds other files: choose a new or empty folder, which can then be "
            "emptied again without a risk for anything else"
        )
    about = "features kept by guerdon; see `guerdon inspect`, which can also make room"
    write_json(folder / MARKER, {"format": FORMAT, "about": about})


def _marked_format(marker: Path) -> int:
    try:
        said = cast(dict[str, Any], json.loads(marker.read_text(encoding="utf-8")))
        return int(said["format"])
    except (ValueError, KeyError, TypeError):
        warnings.warn(f"{marker} is damaged and is written again", stacklevel=3)
        return 0


def _foreign(path: Path) -> bool:
    """Whether something is not from a cache of format 1, which had no marker: ``encoder/revision/address.npy``."""
    if path.is_symlink() or not path.is_dir():
        return True
    files = [p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()]
    return any(len(f.relative_to(path).parts) != 2 or not _EARLIER.fullmatch(f.name) for f in files)


def entries(folder: Path) -> Iterator[CacheEntry]:
    """What a cache made, and nothing else: whatever does not look it, and every link, is passed over."""
    for encoder in _folders(folder):
        for revision in _folders(encoder):
            for path in sorted(revision.iterdir()):
                if path.is_symlink() or not _ADDRESS.fullmatch(path.name.removesuffix(".npy")):
                    continue
                with suppress(FileNotFoundError):  # another process makes room
                    size = sum(f.stat().st_size for f in _files(path))
                    used = path.stat().st_mtime
                    yield CacheEntry(
                        path=path, encoder=encoder.name, revision=revision.name, bytes=size, last_used=used
                    )


def _folders(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink()]


def _files(path: Path) -> list[Path]:
    """Files of an entry, one of format 1 being a file itself."""
    if not path.is_dir():
        return [path]
    named = [p for p in path.iterdir() if _BLOCK_FILE.fullmatch(p.name) or _PART_FILE.fullmatch(p.name)]
    return [p for p in sorted(named) if p.is_file() and not p.is_symlink()]


def report(folder: Path) -> CacheReport:
    """Sum up a cache by encoder and revision; ends of files are read, not their rows.

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
    """Rows known, places, and damaged files of an entry."""
    known = places = damaged = 0
    if not path.is_dir():  # format 1 said nothing of itself
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

    What another process uses right now is safe too: a file it has open stays readable, and what it asks for next is
    computed again. Entries that this process uses stay. What killed processes left half-written goes as well.

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
            with suppress(OSError):  # it holds something else, or somebody writes into it again
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
    """Remove a file; how many bytes that frees."""
    try:
        size = file.stat().st_size
        file.unlink()
    except FileNotFoundError:
        return 0
    return size


def _require(folder: Path) -> None:
    if not is_cache(folder):
        raise ValueError(f"{folder} is no feature cache: expected one that guerdon made, with the file {MARKER}")
