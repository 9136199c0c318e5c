"""A causal process reward model: progress of the task at every observation, and whether it is done."""

from torch import Tensor

from ..core.arguments import folds
from ..core.batch import RewardEstimates, TrajectoryBatch
from .heads import Heads, PredictionSettings
from .observation_encoder import ObservationEncoder
from .observed import ObservedReward


class ProgressReward(ObservedReward):
    """Reward for the change of a potential, r_t = Φ_{t+1} − Φ_t with Φ = progress + success_weight · success.

    Progress in [0, 1] is a distribution over bins trained with two-hot targets and read off as its expectation (as in
    ReWiND, Zhang et al. 2025, arXiv:2505.10911, a progress model over features and instruction, but with the two-hot
    loss of MuZero, arXiv:1911.08265, appendix F). Between evaluated frames an estimate holds its last value. Being a
    difference of potentials the reward changes no optimal policy (Ng et al. 1999) when it is used as shaping.

    Args:
        state_size: S, numbers per state; 0 reads no state. None takes that of the observer, or of the training data.
        observer: Encoder of observations; None encodes the state with the default settings. The encoder's arguments
            may also be given here one by one, such as ``width=128``.
        predicts: Names of the heads, of progress, success, preference and remaining; see `Heads`.
        bins: Number of centres on [0, 1], at least 2.
        success_weight: Weight of the success probability in Φ.
        success_loss_weight: Weight of the success loss.
        preference_loss_weight: Weight of the Bradley–Terry loss.
        remaining_loss_weight: Weight of the loss of remaining time.
        longest: Largest number of remaining control steps that is predicted.

    Raises:
        ValueError: If an argument is out of its range, or the observer was made for another state size.
    """

    @folds(observer=ObservationEncoder)
    def __init__(
        self,
        state_size: int | None = None,
        observer: ObservationEncoder | None = None,
        predicts: tuple[str, ...] | list[str] = ("progress", "success"),
        bins: int = 25,
        success_weight: float = 0.0,
        success_loss_weight: float = 1.0,
        preference_loss_weight: float = 1.0,
        remaining_loss_weight: float = 1.0,
        longest: int = 1000,
    ) -> None:
        super().__init__(state_size=state_size, observer=observer)
        predictions = PredictionSettings(
            predicts=predicts,
            bins=bins,
            success_weight=success_weight,
            success_loss_weight=success_loss_weight,
            preference_loss_weight=preference_loss_weight,
            remaining_loss_weight=remaining_loss_weight,
            longest=longest,
        )
        if self.state_size is not None:
            self.head = Heads(self.observer.width, predictions)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate progress and success at every observation and reward their change; see `Heads.estimates`."""
        encoded = self.observer.encode(batch)  # first: it names a size that is not known yet
        return self.head.estimates(encoded, batch)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the loss of every head and their weighted sum; see `Heads.loss`.

        Raises:
            ValueError: If the batch holds none of the labels the heads learn from.
        """
        encoded = self.observer.encode(batch)
        return self.head.loss(encoded, batch)


__all__ = ["ProgressReward"]
