"""A success classifier over observations, whose reward is paid once its probability reaches a threshold."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core.arguments import folds
from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from .observation_encoder import ObservationEncoder
from .observed import ObservedReward, balanced_bernoulli, required_label


class SuccessReward(ObservedReward):
    """Reward of 1 when the probability of success reaches a threshold, once per row or at every such step.

    Args:
        state_size: S, numbers per state; 0 reads no state. None takes that of the observer, or of the training data.
        observer: Encoder of observations; None encodes each state alone (0 layers). The encoder's arguments may also
            be given here one by one, such as ``width=128``.
        threshold: Probability from which on an observation counts as done, in (0, 1).
        patience: Number of consecutive observations that must count as done, at least 1, so that one flicker pays
            nothing. Observation 0 pays nothing and starts no such run, because no step leads to it.
        sparse: Pay the first such step of a row only; else every one.

    Raises:
        ValueError: If an argument is out of its range, or the observer was made for another state size.
    """

    @folds(observer=partial(ObservationEncoder, layers=0))
    def __init__(
        self,
        state_size: int | None = None,
        observer: ObservationEncoder | None = None,
        threshold: float = 0.5,
        patience: int = 1,
        sparse: bool = True,
    ) -> None:
        observer = ObservationEncoder(layers=0) if observer is None else observer
        super().__init__(state_size=state_size, observer=observer)
        if not 0 < threshold < 1 or patience < 1:
            raise ValueError(f"threshold {threshold}, patience {patience}: expected one in (0, 1) and at least 1")
        self.threshold, self.patience, self.sparse = threshold, patience, sparse
        if self.state_size is not None:
            self.head = nn.Linear(self.observer.width, 1)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate success at every observation and pay where it reaches the threshold.

        Returns:
            ``terms`` holds the probability at the observation that each step leads to, and ``std`` the standard
            deviation of that outcome.
        """
        encoded = self.observer.encode(batch)
        batch = encoded.match_device(batch)
        place, valid = encoded.last_at_observations(batch)
        chance = self.head(encoded.hidden).squeeze(-1).float().sigmoid()
        success = torch.where(valid, chance.gather(1, place), 0.0)
        known = batch.mask & valid[:, 1:] & valid[:, :-1]
        reached = torch.where(known, success[:, 1:], 0.0)
        paid = first_runs(known & (reached >= self.threshold), self.patience, self.sparse)
        return RewardEstimates(
            rewards=paid.float(),
            valid=known,
            success=Labelled(values=success, valid=valid),
            std=(reached * (1 - reached)).clamp(min=0).sqrt(),
            terms={"success": reached},
        )

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the balanced cross-entropy at evaluated observations with a valid label; 0 where there is none.

        Raises:
            ValueError: If the batch holds no ``labels["success"]``.
        """
        required_label(batch, ("success",), type(self).__name__)
        encoded = self.observer.encode(batch)
        batch = encoded.match_device(batch)
        logit: Float[Tensor, "B K"] = self.head(encoded.hidden).squeeze(-1).float()
        target = encoded.select(batch.labels["success"])
        loss, counts = balanced_bernoulli(logit, target, encoded.weights(batch))
        right = ((logit >= 0) == (target.values >= 0.5)) & target.valid
        accuracy = right.sum() / target.valid.sum().clamp(min=1)
        return {"loss": loss + 0.0 * logit.sum(), "success_accuracy": accuracy, **counts}


def first_runs(done: Bool[Tensor, "B T"], patience: int, first_only: bool) -> Bool[Tensor, "B T"]:
    """Mark the steps that complete ``patience`` done steps in a row.

    Args:
        done: Steps that count as done.
        patience: Number of consecutive done steps, at least 1.
        first_only: Mark the first such step of each row only.
    """
    run = torch.zeros(len(done), dtype=torch.long, device=done.device)
    runs: list[Tensor] = []
    for step in done.unbind(1):
        run = torch.where(step, run + 1, 0)
        runs.append(run)
    reached = torch.stack(runs, 1) >= patience if runs else done
    return reached & (reached.long().cumsum(1) == 1) if first_only else reached
