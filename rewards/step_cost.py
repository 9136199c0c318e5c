"""Cost of every step until success, and of failure: the reward of RECAP and ALOE."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..core.batch import End, RewardEstimates, TrajectoryBatch, named_ends
from ..core.interfaces import RewardModel


class StepCost(RewardModel):
    """Reward −1 on every step, 0 on the step of success, −C on the last step of a failure, all divided by a scale.

    ALOE (arXiv 2602.12691, section 1.1 of its set-up) takes it from RECAP (arXiv 2511.14759, equation 5), with C the
    mean length of an episode. Values then estimate how many steps are left, and a failure is worse than a slow success.
    Name the ends that terminate in ``terminating`` of `EpisodeData`: an end that costs C should be one of them.

    The papers leave these cases open:

    * A row that is cut has −1 on its last step, as on any other, and its value continues it. The same holds for an
      episode that simply stops, without an end and with an unknown outcome.
    * A time limit whose outcome is unknown may have been a success: the reward of its last step is unknown.
    * An episode that is known to have succeeded earlier and ran on into its time limit has not failed: −1. It is
      better to stop it at its success.

    With a ``scale`` taken from data the returns of its episodes lie in [−1, 0]. The scale is then the largest magnitude
    of the discounted return of an episode that is no longer than the longest one, of N steps,

        max(C, Σ_{k<N−1} γ^k + γ^{N−1} · max(C, 1)).

    An episode that takes longer than any in the data may fall a little below −1.

    Args:
        failure_cost: C, cost of a failure in steps, at least 0; None takes the mean episode length in ``fit``.
        failures: Names of the ends that are failures.
        scale: Divisor of the rewards, above 0; None takes it in ``fit``.
        gamma: Discount factor of the returns per control step, in [0, 1]; that of the critic.

    Raises:
        ValueError: If an argument is out of its range.
    """

    causal = True
    cost: Tensor
    divisor: Tensor
    fitted: Tensor

    def __init__(
        self,
        failure_cost: float | None = None,
        failures: Sequence[str] = ("failure", "time_limit", "takeover"),
        scale: float | None = None,
        gamma: float = 0.99,
    ) -> None:
        super().__init__()
        if failure_cost is not None and not 0 <= failure_cost < math.inf:
            raise ValueError(f"failure_cost is {failure_cost}: expected a finite number of 0 or more, or None")
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}: expected a positive finite number, or None")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}: expected 0 … 1")
        self.failures = named_ends("failures", failures)
        if End.SUCCESS in self.failures:
            raise ValueError("failures: a success is no failure; leave it out")
        self.failure_cost, self.scale, self.gamma = failure_cost, scale, gamma
        self.register_buffer("cost", torch.tensor(float(failure_cost or 0.0)))
        self.register_buffer("divisor", torch.tensor(float(scale or 1.0)))
        self.register_buffer("fitted", torch.tensor(failure_cost is not None and scale is not None))

    def extra_repr(self) -> str:
        """Describe the numbers in use by the names of the constructor's arguments."""
        if not bool(self.fitted):
            return "failure cost or scale not fitted yet"
        return f"failure_cost={float(self.cost):.7g}, scale={float(self.divisor):.7g}, gamma={self.gamma}"

    @torch.no_grad()
    def fit(self, batches: Iterable[TrajectoryBatch]) -> "StepCost":
        """Fit failure cost and scale, where they are None, to episode lengths; windows of one episode count once.

        Raises:
            ValueError: If there is no episode.
        """
        length: dict[int, int] = {}
        for batch in batches:
            real = batch.steps > 0
            length |= dict(zip(batch.episode[real].tolist(), batch.length[real].tolist(), strict=True))
        if not length:
            raise ValueError("StepCost cannot fit a failure cost or a scale to data without an episode")
        cost = sum(length.values()) / len(length) if self.failure_cost is None else self.failure_cost
        steps = max(length.values()) - 1
        slow = steps if self.gamma == 1 else (1 - self.gamma**steps) / (1 - self.gamma)
        largest = max(cost, slow + self.gamma**steps * max(cost, 1.0))  # a cut pays 1 where a failure pays C
        self.cost.fill_(cost)
        self.divisor.fill_(self.scale or largest)
        self.fitted.fill_(True)
        return self

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the reward of every real step; only the last step of a time limit with an unknown outcome is invalid.

        Raises:
            ValueError: If the failure cost or the scale has not been fitted yet.
        """
        if not bool(self.fitted):
            raise ValueError(
                "StepCost has no failure cost or no scale yet, which training fits to its data: name "
                "the checkpoint (--ckpt_path) or the reward that a run left (RUN/reward), give failure_cost and scale, "
                "or call fit(batches)"
            )
        index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        last = (index == batch.steps[:, None] - 1) & batch.mask
        failures = torch.tensor([int(end) for end in self.failures], device=batch.end.device, dtype=batch.end.dtype)
        late = batch.end == End.TIME_LIMIT
        failed = torch.isin(batch.end, failures) & ~(late & batch.success_known & (batch.success >= 1))
        unknown = failed & late & ~batch.success_known
        paid = torch.full(batch.mask.shape, -1.0, device=batch.mask.device)
        paid = torch.where(last & failed[:, None], -self.cost.to(paid.device), paid)
        paid = torch.where(last & (batch.end == End.SUCCESS)[:, None], 0.0, paid) / self.divisor.to(paid.device)
        valid = batch.mask & ~(last & unknown[:, None])
        return RewardEstimates(rewards=torch.where(valid, paid, 0.0), valid=valid)


__all__ = ["StepCost"]
