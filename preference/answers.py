"""Answers of people to preference questions, one JSON object a line."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.files import write_text

Choice = Literal["first", "second", "tie", "skip"]
"""Which segment of a pair is better; ``"tie"``: neither; ``"skip"``: the rater cannot tell."""

_LABELS: dict[Choice, float | None] = {"first": 1.0, "second": 0.0, "tie": 0.5, "skip": None}


class Answer(BaseModel):
    """Answer of one rater to one pair."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    pair: str = Field(min_length=1)
    """Name of the pair (`SegmentPair.id`)."""
    choice: Choice
    """Better segment."""
    rater: str = ""
    """Name of the rater."""
    confidence: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """How sure the rater is, in [0, 1]; None where not asked."""
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Time from the first sight of the pair to the answer; None where not measured."""
    answered: str | None = None
    """When it was given (ISO 8601, UTC); None where not recorded."""

    @property
    def label(self) -> float | None:
        """Probability that the first segment is better: 1, 0.5 (tie) or 0; None where skipped."""
        return _LABELS[self.choice]


def write_answers(answers: Sequence[Answer], path: Path) -> None:
    """Write answers as one JSON object a line, whole or not at all.

    Args:
        answers: Answers, in the order of the file.
        path: File, such as ``answers.jsonl``.
    """
    write_text(path, "".join(answer.model_dump_json() + "\n" for answer in answers))


def check_answers(answers: Sequence[Answer], pairs: Collection[str] | None = None, source: str = "answers") -> None:
    """Check that every answer names a known pair, and that no rater answers a pair twice.

    Args:
        answers: Answers to check.
        pairs: Names of the pairs that were asked about; None accepts any.
        source: Name of what holds the answers, such as a file, for errors.

    Raises:
        ValueError: If a pair is unknown, or a rater answers one twice.
    """
    known = None if pairs is None else set(pairs)
    for answer in answers:
        if known is not None and answer.pair not in known:
            raise ValueError(
                f"{source}: rater {answer.rater!r} answers pair {answer.pair!r}, which is not among the {len(known)} "
                "pairs: read the answers with the file of pairs that they were collected for"
            )
    for (pair, rater), times in Counter((answer.pair, answer.rater) for answer in answers).items():
        if times > 1:
            given = [answer.choice for answer in answers if (answer.pair, answer.rater) == (pair, rater)]
            raise ValueError(
                f"{source}: rater {rater!r} answers pair {pair!r} {times} times ({', '.join(given)}): expected one "
                "answer of a rater to a pair; keep one of them, or ask again under another name of the pair"
            )


__all__ = ["Answer", "Choice", "check_answers", "write_answers"]
