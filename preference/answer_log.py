"""Log of answers that survives kills, power loss and full disks: one JSON object a line, appended and synchronised.

A line is an `Answer`, or the withdrawal of one:

    {"pair": "p1", "choice": "first", "rater": "ada", "confidence": null, "seconds": 2.4, "answered": "2026-01-02T…"}
    {"undo": "p1", "rater": "ada"}

A withdrawal removes the answer of that rater to that pair that stands before it; the rater may then answer again.
Nothing is rewritten: the file shows what was answered and withdrawn, in order. `read_answers` returns what holds.
"""

import fcntl
import json
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .answers import Answer


class AlreadyAnsweredError(ValueError):
    """Error of a second answer of one rater to one pair.

    Args:
        answer: Answer that stands.
    """

    def __init__(self, answer: Answer) -> None:
        """Make the message of the answer that stands."""
        who = answer.rater or "the unnamed rater"
        super().__init__(f"pair {answer.pair!r} has an answer of {who} ({answer.choice}): undo it to answer again")
        self.answer = answer

    def __reduce__(self) -> tuple[type["AlreadyAnsweredError"], tuple[Answer]]:
        """Pickle the answer that stands."""
        return AlreadyAnsweredError, (self.answer,)


class AnswerNotSavedError(OSError):
    """Error of an answer that could not be written, such as on a full disk; the file is as it was before."""


class Undo(BaseModel):
    """Withdrawal of an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    undo: str = Field(min_length=1)
    """Name of the pair whose answer is withdrawn."""
    rater: str = ""
    """Name of the rater who gave and withdraws it."""
    answered: str | None = None
    """When it was withdrawn (ISO 8601, UTC); None where not recorded."""


@dataclass(kw_only=True)
class _Content:
    """What the lines of a file amount to."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict[tuple[str, str], Answer])
    """Answers that hold, by rater and pair, in the order in which they were given."""
    good: int = 0
    """Bytes of the whole lines, from the start of the file."""
    torn: bytes = b""
    """Bytes of a last line that was cut off; empty where there is none."""
    open: bool = False
    """Whether the last line is whole except for its line break."""


def read_answers(path: str | Path) -> list[Answer]:
    """Read the answers of a log that hold: withdrawn ones are left out.

    A last line that was cut off in the middle belongs to an answer that was never confirmed. It is left out with a
    warning; the file is not changed.

    Args:
        path: File that `AnswerLog` wrote, or any file with one `Answer` a line; empty lines are passed over.

    Returns:
        Answers in the order in which they were given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is damaged or no answer, answers a pair a second time, or withdraws what was not answered;
            the message names the line.
    """
    path = Path(path)
    content = _read(path.read_bytes(), path)
    if content.torn:
        warnings.warn(
            f"{path}: the last line is cut off ({_shown(content.torn)}) and is left out; the answers before it are "
            "whole",
            stacklevel=2,
        )
    return list(content.answers.values())


class AnswerLog:
    """Log of answers in a file that one process at a time may write.

    `append` and `undo` return when their line is on the disk: one write, then ``fsync``. If that fails, the file is cut
    back to what it held, and an error says so. Methods may be called from several threads.

    Opening reads what the file holds. A last line that was cut off (a kill or a power loss during a write) is moved to
    ``<file>.torn``, and `repaired` says so; it is never joined with the next answer.

    Args:
        path: File, such as ``answers.jsonl``; it and its folder are made where they are missing.

    Raises:
        BlockingIOError: If another process has the file open as a log.
        ValueError: If the file holds a damaged line before its last one; see `read_answers`.
        OSError: If the file cannot be opened, read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.repaired = ""
        """What was set aside when the file was opened; empty where it was whole."""
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._take()
            content = _read(self.path.read_bytes(), self.path)
            self._answers = content.answers
            self._repair(content)
            self._size = os.fstat(self._file).st_size
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "AnswerLog":
        """Return the log; it is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log."""
        self.close()

    def close(self) -> None:
        """Close the file, so that another process may open it; everything is on the disk already."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def answers(self, rater: str | None = None) -> list[Answer]:
        """Return the answers that hold, in the order in which they were given.

        Args:
            rater: Name of the rater; None returns those of all raters.
        """
        with self._lock:
            return [a for (who, _), a in self._answers.items() if rater is None or who == rater]

    def append(self, answer: Answer) -> None:
        """Write an answer; it is on the disk when this returns.

        Raises:
            AlreadyAnsweredError: If the rater has answered this pair and not withdrawn the answer.
            AnswerNotSavedError: If the line could not be written; nothing of it stays in the file.
        """
        key = (answer.rater, answer.pair)
        with self._lock:
            if key in self._answers:
                raise AlreadyAnsweredError(self._answers[key])
            self._write(answer)
            self._answers[key] = answer

    def undo(self, rater: str, pair: str | None = None, answered: str | None = None) -> Answer:
        """Withdraw the last answer of a rater that holds; the withdrawal is on the disk when this returns.

        Args:
            rater: Name of the rater.
            pair: Name of the pair that is expected to be the last one, so that a request that comes twice withdraws
                one answer; None withdraws whatever is last.
            answered: When it is withdrawn (ISO 8601, UTC).

        Returns:
            Answer that was withdrawn.

        Raises:
            LookupError: If no answer of the rater holds, or the last one is to another pair than expected.
            AnswerNotSavedError: If the line could not be written; the answer still holds.
        """
        with self._lock:
            last = next((a for (who, _), a in reversed(self._answers.items()) if who == rater), None)
            if last is None:
                raise LookupError(f"no answer of {rater!r} is left to withdraw")
            if pair is not None and pair != last.pair:
                raise LookupError(f"the last answer of {rater!r} is to {last.pair!r}, expected {pair!r}")
            self._write(Undo(undo=last.pair, rater=rater, answered=answered))
            del self._answers[rater, last.pair]
            return last

    def _write(self, record: Answer | Undo) -> None:
        line = (record.model_dump_json() + "\n").encode()
        self._require_own_file()
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes fit: the disk is full")
            os.fsync(self._file)
        except OSError as error:
            self._cut_back()
            reason = error.strerror or str(error)
            raise AnswerNotSavedError(
                f"{self.path}: the answer was not saved ({reason}) and the file is as before: free some space and "
                "answer again"
            ) from error
        self._size += len(line)

    def _cut_back(self) -> None:
        """Remove what a failed write left; where that fails too, refuse to write until the file is opened again."""
        try:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        except OSError:
            if os.fstat(self._file).st_size != self._size:
                os.close(self._file)
                self._file = -1

    def _require_own_file(self) -> None:
        """Refuse to write where the path no longer leads to the open file, or somebody else changed it."""
        if self._file < 0:
            raise AnswerNotSavedError(f"{self.path} is closed: open the log again")
        try:
            there = os.stat(self.path)
        except OSError as error:
            raise AnswerNotSavedError(
                f"{self.path} is gone ({error.strerror}), so the answer was not saved: put it back, then start again"
            ) from error
        mine = os.fstat(self._file)
        if (there.st_dev, there.st_ino, there.st_size) != (mine.st_dev, mine.st_ino, self._size):
            raise AnswerNotSavedError(
                f"{self.path} was changed by another program while it was open, so the answer was not saved: start "
                "again"
            )

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self.path} is open in another process, which may be another `guerdon label`: use its address, stop "
                "it, or choose another --out"
            ) from error

    def _repair(self, content: _Content) -> None:
        """Move a line that was cut off out of the file; end a whole last line with its line break."""
        if content.torn:
            aside = self.path.with_name(self.path.name + ".torn")
            with aside.open("ab") as file:
                file.write(content.torn.rstrip(b"\n") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._file, content.good)
            self.repaired = (
                f"the last line of {self.path} was cut off ({_shown(content.torn)}) and moved to {aside.name}; "
                "it was never confirmed, and the answers before it are whole"
            )
        elif content.open and os.write(self._file, b"\n") != 1:
            raise OSError(f"{self.path}: the disk is full: free some space and start again")
        os.fsync(self._file)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # without this a new file may be lost with its folder's entry
        finally:
            os.close(folder)


def _read(content: bytes, path: Path) -> _Content:
    """Read lines up to the end or to a last line that was cut off.

    Raises:
        ValueError: If a line is damaged, or contradicts those before it.
    """
    lines = content.split(b"\n")
    found = _Content()
    last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=0)
    at = 0
    for number, line in enumerate(lines, 1):
        record = _json(line) if line.strip() else None
        if line.strip() and record is None:
            if number < last:
                raise ValueError(
                    f"{path}, line {number} is damaged ({_shown(line)}): expected one JSON object a line; restore the "
                    "file from a copy, or remove this line if its answer may be given again"
                )
            found.torn = content[at:]
            break
        if record is not None:
            _fold(record, found.answers, f"{path}, line {number}")
        at += len(line) + 1
    found.good = min(at, len(content))
    found.open = bool(content) and not found.torn and not content.endswith(b"\n")
    return found


def _fold(record: Mapping[str, Any], answers: dict[tuple[str, str], Answer], where: str) -> None:
    """Add the answer of a line to those before it, or withdraw one of them."""
    try:
        entry = Undo.model_validate(record) if "undo" in record else Answer.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(
            f'{where}: expected an answer such as {{"pair": "p1", "choice": "first", "rater": "ada"}} or '
            f'{{"undo": "p1", "rater": "ada"}}; {name + ": " if name else ""}{first["msg"]}'
        ) from error
    if isinstance(entry, Undo):
        if answers.pop((entry.rater, entry.undo), None) is None:
            raise ValueError(f"{where} withdraws the answer of {entry.rater!r} to {entry.undo!r}, which was not given")
    elif (entry.rater, entry.pair) in answers:
        raise ValueError(
            f"{where} answers pair {entry.pair!r} of rater {entry.rater!r} a second time: remove one of both lines"
        )
    else:
        answers[entry.rater, entry.pair] = entry


def _json(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None where it is no JSON object."""
    try:
        value = json.loads(line)
    except ValueError:  # that of the encoding too
        return None
    return value if isinstance(value, dict) else None


def _shown(line: bytes) -> str:
    text = line.rstrip(b"\n").decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:40] + "…")


__all__ = ["AlreadyAnsweredError", "AnswerLog", "AnswerNotSavedError", "Undo", "read_answers"]
