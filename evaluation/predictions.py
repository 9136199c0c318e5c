"""What a model and its controls say of one episode, and which episodes a figure is computed over."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float

from ..core.metrics import value_order_correlation

MODEL = "model"
CONTROLS = ("clock", "constant", "reversed", "shuffled", "wrong_instruction")
"""clock: t / T. constant: one number, the share of successes. The others are the same model on an altered episode."""
BLIND = ("clock", "constant")
"""Controls that look at nothing, instructions included."""
_NONE = np.zeros(0)
_LEVELS = (
    ("random", "aborted", "noisy", "expert"),
    ("failure", "suboptimal", "successful"),
    ("worse", "okay", "better"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a model or a control says of one episode, in the order it was played."""

    values: Float[np.ndarray, " K"]
    """At each evaluated observation: progress, or what stands in for it."""
    score: float
    """Of success: its probability at the last observation, else final progress, else total."""
    total: float
    """Summed reward over valid steps; what preferences and group baselines use."""
    final: float = math.nan
    """Progress at the last observation; NaN for a model without progress."""
    probability: Float[np.ndarray, " P"] = field(default_factory=lambda: _NONE)
    """Success probability where the data label single observations."""
    label: Float[np.ndarray, " P"] = field(default_factory=lambda: _NONE)
    progress: Float[np.ndarray, " Q"] = field(default_factory=lambda: _NONE)
    """Progress where its label is known."""
    target: Float[np.ndarray, " Q"] = field(default_factory=lambda: _NONE)

    @property
    def end(self) -> float:
        """How far it came: final progress, else the score."""
        return self.score if math.isnan(self.final) else self.final

    @cached_property
    def order(self) -> float:
        """Spearman correlation of the values with time; NaN where they never change."""
        if len(self.values) < 2:
            return math.nan
        return float(value_order_correlation(self.values[None], np.ones((1, len(self.values) - 1), bool))[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One episode with every reading of it."""

    episode: int
    task: int
    instruction: str
    success: float
    """In [0, 1]; NaN where nobody said."""
    readings: Mapping[str, Reading]
    """By name: `MODEL` and the `CONTROLS` that are defined for the episode."""
    quality: str = ""
    under: Mapping[int, float] = field(default_factory=dict[int, float])
    """Task → the model's `Reading.end` under that task's instruction, for episodes of the instruction matrix."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What holds for all episodes of an evaluation, so that a figure of some of them is computed by the same rules."""

    unlabelled: bool
    """Nobody labelled any outcome: order and instructions are judged over all episodes."""
    per_observation: bool
    """Calibration is that of single observations."""
    threshold: float
    """From which score on an episode is called a success; NaN where scores are no probabilities and none was given."""
    levels: Mapping[str, float]
    """Quality → level, higher is better; qualities without a place in an order are not in it."""

    def rising(self, judged: Sequence[Judged]) -> list[Judged]:
        """Episodes in which values should rise: successes, or everything where nobody labelled any outcome."""
        return list(judged) if self.unlabelled else [j for j in judged if j.success >= 0.5]

    def failed(self, judged: Sequence[Judged]) -> list[Judged]:
        """Episodes that are known not to have succeeded."""
        return [j for j in judged if j.success < 0.5]


def basis_of(judged: Sequence[Judged], threshold: float | int | None = None, order: Sequence[str] = ()) -> Basis:
    """The rules for a set of episodes.

    Args:
        judged: All of them.
        threshold: From which score on an episode is called a success; None takes ½ where all scores are in [0, 1].
        order: Qualities from worst to best; empty takes a known order, or that of numbers.
    """
    scores = [j.readings[MODEL].score for j in judged]
    probable = all(0 <= s <= 1 for s in scores if not math.isnan(s))
    chosen = threshold if threshold is not None else 0.5 if probable else math.nan
    return Basis(
        unlabelled=all(math.isnan(j.success) for j in judged),
        per_observation=any(len(j.readings[MODEL].label) for j in judged),
        threshold=float(chosen),
        levels=quality_levels({j.quality for j in judged if j.quality}, order),
    )


def quality_levels(names: set[str], order: Sequence[str] = ()) -> dict[str, float]:
    """Level of each quality, higher is better.

    Args:
        names: Qualities that occur.
        order: From worst to best; empty takes the known order that holds most of them, or that of numbers.

    Raises:
        ValueError: If the order names a quality twice, or none that occurs.
    """
    if len(set(order)) < len(order):
        raise ValueError(f"expected each quality once, from worst to best, got {', '.join(order)}")
    if order:
        found = {name: float(place) for place, name in enumerate(order) if name in names}
        if not found:
            has = ", ".join(sorted(names)) or "no quality recorded"
            raise ValueError(f"none of the qualities {', '.join(order)} occurs: expected some of {has}")
        return found
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        known = max(_LEVELS, key=lambda levels: len(names & set(levels)))
        return {name: float(place) for place, name in enumerate(known) if name in names}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
