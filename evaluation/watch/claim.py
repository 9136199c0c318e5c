"""The rule by which a reward model claims that an episode succeeded."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ...core.batch import RewardEstimates, TrajectoryBatch
from .metrics import Score, best_and_last, score_kind, score_track


class SuccessClaim:
    """Rule by which a reward model claims that an episode succeeded: its score reaches a threshold.

    Args:
        threshold: Smallest score that claims a success.
        score: Prediction that serves as the score: ``"success"`` (success probability), ``"progress"``, or ``"return"``
            (sum of rewards so far). None takes the first of these that the reward model estimates.
        judged: Score that stands for an episode: ``"best"``, the largest one (an episode counts as a success if it ever
            was one, as in the simulated tasks), or ``"last"``.

    Raises:
        ValueError: If an argument is none of these.
    """

    def __init__(
        self,
        threshold: float | int = 0.5,
        score: Score | None = None,
        judged: Literal["best", "last"] = "best",
    ) -> None:
        if score not in (None, "success", "progress", "return"):
            raise ValueError(f'score {score!r}: expected "success", "progress", "return", or None')
        if judged not in ("best", "last"):
            raise ValueError(f'judged {judged!r}: expected "best" or "last"')
        self.threshold = threshold
        self.score: Score | None = score
        self.judged: Literal["best", "last"] = judged

    def scores(self, estimates: RewardEstimates, batch: TrajectoryBatch) -> Float[Tensor, " B"]:
        """Return the score of every episode.

        Args:
            estimates: Predictions of the reward model on the batch.
            batch: Whole episodes.

        Returns:
            Scores (B,); NaN where the reward model abstains.

        Raises:
            ValueError: If the reward model does not make the prediction that serves as the score.
        """
        best, last = best_and_last(*score_track(estimates, batch, self.score or score_kind(estimates)))
        return best if self.judged == "best" else last
