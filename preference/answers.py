"""Answers of people to preference questions, one JSON object a line."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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


__all__ = ["Answer", "Choice"]
