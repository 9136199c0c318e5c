"""Queues of pairs that raters answer: which pair is next, how many are left and how long they will take."""

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..preference.answer_log import AnswerLog
from ..preference.answers import Answer, Choice
from ..preference.segments import SegmentPair

_RECENT = 50  # answers whose median time predicts the time left
_LONGEST_NAME = 64


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """Where one rater stands."""

    pair: SegmentPair | None
    """First open pair; None where all are answered."""
    following: SegmentPair | None
    """Open pair after it, to load in advance."""
    answered: int
    """Number of answered pairs."""
    total: int
    """Number of pairs."""
    seconds_left: float | None
    """Median time of the last answers times the number of open pairs; None before the first answer."""
    last: str | None
    """Name of the pair that was answered last, which `LabelQueue.undo` withdraws."""


class LabelQueue:
    """Pairs that every rater answers once, in their order; answers go to a log.

    Args:
        pairs: Pairs with names that differ.
        log: Log that holds earlier answers and receives new ones; answers to other pairs in it are left alone.
        raters: Names of the raters; empty allows any name.

    Raises:
        ValueError: If there is no pair, or a name is not acceptable.
    """

    def __init__(self, pairs: Sequence[SegmentPair], log: AnswerLog, raters: Sequence[str] = ()) -> None:
        if not pairs:
            raise ValueError("expected at least one pair to answer, got none")
        self.pairs = {pair.id: pair for pair in pairs}
        self.log = log
        self.raters = tuple(raters)
        for name in raters:
            _require_name(name)

    def require_rater(self, rater: str) -> None:
        """Check the name of a rater.

        Raises:
            ValueError: If it is empty, too long, not printable or, where names were given, not one of them.
        """
        _require_name(rater)
        if self.raters and rater not in self.raters:
            raise ValueError(f"{rater!r} is no rater of this session: expected one of {', '.join(self.raters)}")

    def state(self, rater: str) -> QueueState:
        """Return where a rater stands."""
        answers = [answer for answer in self.log.answers(rater) if answer.pair in self.pairs]
        done = {answer.pair for answer in answers}
        remaining = [pair for pair in self.pairs.values() if pair.id not in done]
        times = [answer.seconds for answer in answers if answer.seconds is not None][-_RECENT:]
        return QueueState(
            pair=remaining[0] if remaining else None,
            following=remaining[1] if len(remaining) > 1 else None,
            answered=len(done),
            total=len(self.pairs),
            seconds_left=statistics.median(times) * len(remaining) if times else None,
            last=answers[-1].pair if answers else None,
        )

    def answer(self, rater: str, pair: str, choice: Choice, seconds: float | None = None) -> None:
        """Write an answer; it is on the disk when this returns.

        Args:
            rater: Name of the rater.
            pair: Name of the pair.
            choice: Better segment.
            seconds: Time from the first sight of the pair to the answer.

        Raises:
            LookupError: If there is no such pair.
            AlreadyAnsweredError: If the rater has answered it.
            AnswerNotSavedError: If it could not be written.
        """
        if pair not in self.pairs:
            raise LookupError(f"there is no pair {pair!r} in this session")
        self.log.append(Answer(pair=pair, choice=choice, rater=rater, seconds=seconds, answered=_now()))

    def undo(self, rater: str, pair: str) -> None:
        """Withdraw the last answer of a rater; the withdrawal is on the disk when this returns.

        Args:
            rater: Name of the rater.
            pair: Name of the pair that was answered last, so that a request that comes twice withdraws one answer.

        Raises:
            LookupError: If another pair was answered last, or none.
            AnswerNotSavedError: If it could not be written.
        """
        self.log.undo(rater, pair=pair, answered=_now())


def _require_name(name: str) -> None:
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(
            f"{name!r} is no name of a rater: expected 1 to {_LONGEST_NAME} printable characters without space around"
        )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


__all__ = ["LabelQueue", "QueueState"]
