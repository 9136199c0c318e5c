"""Rows that are computed when first read and kept on disk, in blocks written whole and checked when opened."""

import io
import json
import os
import secrets
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import numpy as np

BLOCK = 128
"""Number of places in a file; a killed process loses at most the work on so many rows."""

FORMAT = 2
"""Format of the files; part of every address, so that another format is another entry."""

SUFFIX, PART = ".npy", ".part"
"""Suffixes of blocks, and of files that are still being written."""

_TAIL = struct.Struct("<II4s")  # length and CRC of the footer, and the sign of the writer
_SIGN = b"GUER"
_REST = 60.0  # seconds between two records that rows are in use


class DamagedError(ValueError):
    """Error of a block that is not the one that was written."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Known rows of `BLOCK` consecutive places."""

    rows: np.ndarray
    """Rows (n, …) in the order of their places, memory-mapped."""
    known: np.ndarray
    """Mask of the places that have a row, bool (at most BLOCK,)."""


class KeptRows:
    """F rows of one shape in blocks of `BLOCK` places, each computed once and kept in a folder.

    A block is a ``.npy`` file of the rows known so far, followed by a footer with their places, their owner and a check
    sum of every byte. A block is written under a temporary name, flushed and renamed, so that a killed process leaves
    the old block or the new one. Of two processes that write one block at the same moment, the later keeps the rows it
    found; a row that is lost is computed again. A block in which any byte is wrong is removed with a warning and made
    again.

    Args:
        folder: Folder of these rows alone; made with the first block.
        count: Number of places F.
        dtype: Type of the rows.
        axes: Axis of a row → required size; other axes may have any size.
        compute: Function that makes the rows of ascending, distinct places: (M,) → (M, …) of that type.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        dtype: np.dtype[Any],
        axes: Mapping[int, int],
        compute: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.folder, self.count, self.dtype, self.axes, self._compute = folder, count, dtype, dict(axes), compute
        self._checked: dict[int, tuple[int, int, int]] = {}  # blocks whose bytes were checked: inode, time, size
        self._noted = -_REST
        _alive.add(self)

    @property
    def files(self) -> list[Path]:
        """Files of the blocks on disk."""
        return sorted(self.folder.glob(f"[0-9]*{SUFFIX}"))

    def known(self) -> np.ndarray:
        """Return which rows are on disk, bool (F,)."""
        known = np.zeros(self.count, bool)
        for number in range(-(-self.count // BLOCK)):
            if (block := self._open(number)) is not None:
                known[number * BLOCK : number * BLOCK + len(block.known)] = block.known
        return known

    def fill(self, places: np.ndarray | None = None) -> None:
        """Compute the missing rows, `BLOCK` at a time; each lot is on disk before the next begins.

        Args:
            places: Places (M,) whose rows are wanted; None takes all.

        Raises:
            IndexError: If a place is outside 0 … F−1.
            OSError: If the folder cannot be written.
        """
        wanted = np.arange(self.count) if places is None else self._places(places)
        pending = np.zeros(0, np.int64)
        for number, inside in _by_block(np.unique(wanted)):
            block = self._open(number)  # opened only now: another process may have computed it since
            missing = inside if block is None else inside[~block.known[inside]]
            pending = np.concatenate([pending, number * BLOCK + missing])
            while len(pending) >= BLOCK:
                self._make(pending[:BLOCK])
                pending = pending[BLOCK:]
        if len(pending):
            self._make(pending)

    def read(self, places: np.ndarray) -> np.ndarray:
        """Return the rows of some places; missing ones are computed.

        Args:
            places: Places (M,) in any order, with repeats allowed.

        Returns:
            Rows (M, …).

        Raises:
            IndexError: If a place is outside 0 … F−1.
            OSError: If the folder cannot be written.
        """
        wanted = self._places(places)
        if not len(wanted):
            return self.read(np.zeros(1, np.int64))[:0]  # a row has the shape
        for _ in range(3):
            if (rows := self._stored(wanted)) is not None:
                self._note_use()
                return rows
            self.fill(wanted)
        # another process removes them as fast as they are made
        distinct, back = np.unique(wanted, return_inverse=True)
        return self._computed(distinct)[back]

    def _places(self, places: np.ndarray) -> np.ndarray:
        places = np.asarray(places, np.int64)
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < self.count:
            raise IndexError(f"places {places.min()} … {places.max()}: expected 0 … {self.count - 1}")
        return places

    def _stored(self, places: np.ndarray) -> np.ndarray | None:
        """Return rows from disk, or None where one is missing."""
        rows: np.ndarray | None = None
        of = places // BLOCK
        for number, inside in _by_block(np.unique(places)):
            block = self._open(number)
            if block is None or not block.known[inside].all():
                return None
            rank = np.cumsum(block.known) - 1
            here = of == number
            if rows is None:
                rows = np.empty((len(places), *block.rows.shape[1:]), self.dtype)
            rows[here] = block.rows[rank[places[here] - number * BLOCK]]
        return rows

    def _computed(self, places: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(self._compute(places))
        if len(rows) != len(places) or rows.dtype != self.dtype or not self._fits(rows.shape[1:]):
            raise ValueError(
                f"expected {len(places)} rows of {self.dtype} with axes {self.axes}, got {rows.shape} of {rows.dtype}"
            )
        return rows

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return all(-len(shape) <= axis < len(shape) and shape[axis] == size for axis, size in self.axes.items())

    def _make(self, places: np.ndarray) -> None:
        rows = self._computed(places)
        for number, inside in _by_block(places):
            self._write(number, inside, rows[places // BLOCK == number])

    def _write(self, number: int, inside: np.ndarray, rows: np.ndarray) -> None:
        """Add rows to a block."""
        known = np.zeros(min(BLOCK, self.count - number * BLOCK), bool)
        merged = np.zeros((len(known), *rows.shape[1:]), self.dtype)
        if (old := self._open(number)) is not None and old.rows.shape[1:] == rows.shape[1:]:
            known[old.known] = True
            merged[old.known] = old.rows
        known[inside] = True
        merged[inside] = rows
        content = _block_bytes(merged[known], known, self._owner(number))
        for attempt in range(5):
            try:
                _write_whole(self.folder / f"{number:05d}{SUFFIX}", content)
                return
            except FileNotFoundError:  # evicted between making the folder and writing into it
                if attempt == 4:
                    raise
            except OSError as error:
                raise OSError(
                    f"cannot write into the cache {self.folder}: {error.strerror}; make room there (guerdon inspect "
                    "CACHE --evict 20GB) or choose another folder"
                ) from error

    def _owner(self, number: int) -> dict[str, Any]:
        return {"format": FORMAT, "entry": self.folder.name, "block": number, "count": self.count}

    def _open(self, number: int) -> Block | None:
        """Open a block; None where it is missing or damaged. A damaged block is named in a warning and removed."""
        path = self.folder / f"{number:05d}{SUFFIX}"
        try:
            with path.open("rb") as file:
                return self._opened(file, number)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            path.unlink(missing_ok=True)
            warnings.warn(f"{path} is damaged ({error}): its rows are computed again", stacklevel=2)
            return None

    def _opened(self, file: io.BufferedReader, number: int) -> Block:
        status = os.fstat(file.fileno())
        footer, end = read_footer(file, status.st_size)
        for key, expected in self._owner(number).items():
            if footer.get(key) != expected:
                raise DamagedError(f"it is {key} {footer.get(key)}, expected {expected}")
        slots = min(BLOCK, self.count - number * BLOCK)
        known = np.unpackbits(np.frombuffer(bytes.fromhex(footer["known"]), np.uint8), count=slots).astype(bool)
        shape = tuple(int(n) for n in footer["shape"])
        if footer["dtype"] != self.dtype.str or not self._fits(shape[1:]) or shape[0] != int(known.sum()):
            raise DamagedError(
                f"it holds {shape} of {footer['dtype']}, expected {int(known.sum())} rows of {self.dtype.str} with "
                f"axes {self.axes}"
            )
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._checked.get(number) != state:
            file.seek(0)
            if zlib.crc32(file.read(end)) != footer["crc32"]:
                raise DamagedError("its check sum is wrong")
            self._checked[number] = state
        # mapping uses the descriptor and an offset from the start, wherever the buffered file has been read to
        rows = np.memmap(file, self.dtype, "r", int(footer["offset"]), shape)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return Block(rows=rows, known=known)

    def _note_use(self) -> None:
        """Record the last use of these rows as the time of their folder, which no other reader changes."""
        now = time.monotonic()
        if now - self._noted >= _REST:
            self._noted = now
            with suppress(OSError):
                os.utime(self.folder)


_alive: WeakSet[KeptRows] = WeakSet()


def folders_in_use() -> set[Path]:
    """List the folders of rows that this process holds."""
    return {rows.folder.resolve() for rows in list(_alive)}


def read_footer(file: io.BufferedReader, size: int) -> tuple[dict[str, Any], int]:
    """Read the footer of a block.

    Args:
        file: Opened file of the block.
        size: Size of the file in bytes.

    Returns:
        The footer, and the place in the file where it begins.

    Raises:
        DamagedError: If the file is not a whole block.
    """
    if size < _TAIL.size:
        raise DamagedError(f"it has {size} bytes")
    file.seek(size - _TAIL.size)
    length, check, sign = _TAIL.unpack(file.read(_TAIL.size))
    if sign != _SIGN or length + _TAIL.size > size:
        raise DamagedError("its end is missing")
    file.seek(size - _TAIL.size - length)
    text = file.read(length)
    if zlib.crc32(text) != check:
        raise DamagedError("its footer is not what was written")
    return cast(dict[str, Any], json.loads(text)), size - _TAIL.size - length


def _by_block(places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each block and the places inside it, of ascending places."""
    of = places // BLOCK
    for number in np.unique(of).tolist():
        yield number, places[of == number] - number * BLOCK


def _block_bytes(rows: np.ndarray, known: np.ndarray, owner: Mapping[str, Any]) -> list[bytes | memoryview]:
    rows = np.ascontiguousarray(rows)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
    data = rows.data.cast("B")
    footer = json.dumps(
        {
            **owner,
            "known": np.packbits(known).tobytes().hex(),
            "dtype": rows.dtype.str,
            "shape": rows.shape,
            "offset": len(header.getvalue()),
            "crc32": zlib.crc32(data, zlib.crc32(header.getvalue())),
        }
    ).encode()
    return [header.getvalue(), data, footer, _TAIL.pack(len(footer), zlib.crc32(footer), _SIGN)]


def _write_whole(path: Path, content: list[bytes | memoryview]) -> None:
    """Write under another name, flush to the disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{PART}")
    try:
        with part.open("xb") as file:
            for piece in content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
