"""Predictions of a reward model and its controls on an episode, and the facts about all episodes that metrics need."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float

from ..core.metrics import value_order_correlation

MODEL = "model"
CONTROLS = ("clock", "constant", "reversed", "shuffled", "wrong_instruction")
"""clock: t / T. constant: the share of successes, everywhere. The others: the model itself on an altered episode."""
BLIND = ("clock", "constant")
"""Controls that use neither observations nor instructions."""
_NONE = np.zeros(0)
_KNOWN_ORDERS = (
    ("random", "aborted", "noisy", "expert"),
    ("failure", "suboptimal", "successful"),
    ("worse", "okay", "better"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model or a control predicts for one episode."""

    values: Float[np.ndarray, " K"]
    """Value at each evaluated observation, in order of time: progress, or what stands in for it."""
    score: float
    """Score of success: its probability at the last observation, else final progress, else the summed reward."""
    total: float
    """Reward summed over valid steps, which preferences and group baselines use."""
    final: float = math.nan
    """Progress at the last observation; NaN for a model without progress."""
    probability: Float[np.ndarray, " P"] = field(default_factory=lambda: _NONE)
    """Success probability at each observation with a known success label."""
    label: Float[np.ndarray, " P"] = field(default_factory=lambda: _NONE)
    """Success label of these observations, in [0, 1]."""
    progress: Float[np.ndarray, " Q"] = field(default_factory=lambda: _NONE)
    """Progress at each observation with a known progress label."""
    target: Float[np.ndarray, " Q"] = field(default_factory=lambda: _NONE)
    """Progress label of these observations, in [0, 1]."""

    @property
    def final_score(self) -> float:
        """Final progress; the score for a model without progress."""
        return self.score if math.isnan(self.final) else self.final

    @cached_property
    def order(self) -> float:
        """Spearman correlation of the values with time, in [−1, 1]; NaN where they never change."""
        if len(self.values) < 2:
            return math.nan
        return float(value_order_correlation(self.values[None], np.ones((1, len(self.values) - 1), bool))[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodePredictions:
    """One episode with the predictions of the model and of each control."""

    episode: int
    """Number of the episode, unique in its data set."""
    task: int
    """Number of the task."""
    instruction: str
    success: float
    """Outcome in [0, 1]; NaN where it is unknown."""
    predictions: Mapping[str, Prediction]
    """Predictions by name: `MODEL`, and the `CONTROLS` that are defined for the episode."""
    quality: str = ""
    """Recorded quality of the episode; empty where there is none."""
    under_instruction: Mapping[int, float] = field(default_factory=dict[int, float])
    """Task → `Prediction.final_score` of the model under that task's instruction; empty outside the matrix."""


@dataclass(frozen=True, kw_only=True)
class MetricContext:
    """Facts about all episodes of an evaluation, so that a metric of some of them follows the same rules."""

    unlabelled: bool
    """No outcome is labelled: order and instructions are evaluated on all episodes."""
    per_observation: bool
    """Calibration is that of single observations; otherwise that of whole episodes."""
    threshold: float
    """Score from which an episode counts as called a success; NaN where scores are no probabilities and none is set."""
    levels: Mapping[str, float]
    """Quality → level, higher is better; holds only qualities whose place in an order is known."""

    @classmethod
    def of(
        cls,
        episodes: Sequence[EpisodePredictions],
        threshold: float | int | None = None,
        quality_order: Sequence[str] = (),
    ) -> "MetricContext":
        """Derive the context from all episodes.

        Args:
            episodes: All episodes of the evaluation.
            threshold: Score from which an episode counts as called a success; None takes ½ where all scores are in
                [0, 1].
            quality_order: Qualities from worst to best; empty takes a known order, or that of numbers.

        Raises:
            ValueError: If the order names a quality twice, or none that occurs.
        """
        scores = [e.predictions[MODEL].score for e in episodes]
        probable = all(0 <= s <= 1 for s in scores if not math.isnan(s))
        chosen = threshold if threshold is not None else 0.5 if probable else math.nan
        return cls(
            unlabelled=all(math.isnan(e.success) for e in episodes),
            per_observation=any(len(e.predictions[MODEL].label) for e in episodes),
            threshold=float(chosen),
            levels=quality_levels({e.quality for e in episodes if e.quality}, quality_order),
        )

    def rising(self, episodes: Sequence[EpisodePredictions]) -> list[EpisodePredictions]:
        """Select the episodes in which values should rise: successes, or all where no outcome is labelled."""
        return list(episodes) if self.unlabelled else [e for e in episodes if e.success >= 0.5]

    def failed(self, episodes: Sequence[EpisodePredictions]) -> list[EpisodePredictions]:
        """Select the episodes that are known to have failed."""
        return [e for e in episodes if e.success < 0.5]


def by_task(episodes: Sequence[EpisodePredictions]) -> dict[int, list[EpisodePredictions]]:
    """Group episodes by task, tasks in order of their first episode."""
    return {task: [e for e in episodes if e.task == task] for task in dict.fromkeys(e.task for e in episodes)}


def quality_levels(names: set[str], order: Sequence[str] = ()) -> dict[str, float]:
    """Return the level of each quality, higher is better.

    Args:
        names: Qualities that occur.
        order: Qualities from worst to best; empty takes the known order that holds most of them, or that of numbers.

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
        known = max(_KNOWN_ORDERS, key=lambda levels: len(names & set(levels)))
        return {name: float(place) for place, name in enumerate(known) if name in names}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
