"""The last rollouts that metrics are computed over."""

from collections import deque
from typing import Any

from .metrics import EpisodeRecord
from .rollouts import RolloutSummary


class RolloutWindow:
    """Count of rollouts, and summaries of the last ones that were evaluated.

    Args:
        window: Number of evaluated rollouts that metrics are computed over.
        every: Interval between evaluated rollouts; 1 evaluates all.
        level: Confidence level of the intervals, in (0, 1).

    Raises:
        ValueError: If a number lies outside its range.
    """

    def __init__(self, window: int = 10, every: int = 1, level: float = 0.95) -> None:
        if window < 1 or every < 1 or not 0 < level < 1:
            raise ValueError(
                f"window {window}, every {every}, level {level}: expected at least 1 of the first two, and a level "
                "between 0 and 1"
            )
        self.every, self.level = every, level
        self.rollouts = 0
        """Number of rollouts so far, whether they were evaluated or not."""
        self._summaries: deque[RolloutSummary] = deque(maxlen=window)

    @property
    def summaries(self) -> tuple[RolloutSummary, ...]:
        """Summaries of the last evaluated rollouts, the oldest first."""
        return tuple(self._summaries)

    @property
    def episodes(self) -> list[EpisodeRecord]:
        """Finished episodes of the last evaluated rollouts, the oldest first."""
        return [episode for summary in self._summaries for episode in summary.episodes]

    def advance(self) -> int:
        """Count a rollout and return its number, from 0."""
        self.rollouts += 1
        return self.rollouts - 1

    def evaluates(self, number: int) -> bool:
        """Return whether a rollout is to be evaluated.

        Args:
            number: Number of the rollout, from 0.
        """
        return number % self.every == 0

    def add(self, summary: RolloutSummary) -> None:
        """Add a rollout; the oldest one leaves a full window.

        Args:
            summary: Summary of the rollout.
        """
        self._summaries.append(summary)

    def clear(self) -> None:
        """Forget all summaries, but not how many rollouts there were."""
        self._summaries.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the summaries as plain values."""
        return {"rollouts": self.rollouts, "seen": [summary.to_state() for summary in self._summaries]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the values that ``state_dict`` returned; a smaller window keeps the last summaries.

        Args:
            state_dict: Values of a checkpoint; other keys are ignored.
        """
        self.rollouts = state_dict["rollouts"]
        self.clear()
        self._summaries.extend(RolloutSummary.from_state(state) for state in state_dict["seen"])
