"""Rewards recorded with the trajectories: nothing is learned, and unknown entries stay invalid."""

import torch

from ..core.batch import End, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel


class RecordedReward(RewardModel):
    """Reward that was recorded with the trajectories.

    Args:
        key: Name of the column in ``batch.recorded``.
    """

    causal = True

    def __init__(self, key: str = "reward") -> None:
        super().__init__()
        self.key = key

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Return the recorded rewards.

        Raises:
            ValueError: If the batch has no such column, or it is not one number per step.
        """
        column = batch.recorded.get(self.key)
        if column is None:
            held = ", ".join(sorted(batch.recorded)) or "nothing"
            raise ValueError(f"no recorded column {self.key!r}: these trajectories recorded {held}; choose another key")
        if column.values.shape != batch.mask.shape:
            raise ValueError(
                f"recorded column {self.key!r}: expected one number per step {tuple(batch.mask.shape)}, got "
                f"{tuple(column.values.shape)}"
            )
        valid = column.valid & batch.mask
        values = column.values.to(batch.weight.dtype)
        wrong = valid & ~values.isfinite()
        if bool(wrong.any()):
            row, step = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"recorded {self.key!r} of episode {int(batch.episode[row])} is {float(values[row, step])} at step "
                f"{step}: mark it invalid, or repair the episode"
            )
        return RewardEstimates(rewards=torch.where(valid, values, 0.0), valid=valid)


class RecordedSuccess(RewardModel):
    """Sparse success: 1 on the last step of a row that ends in success, 0 elsewhere.

    A row that reaches the end of its episode with an unknown outcome is invalid, so that its sum is not taken for a
    failure. Valid in such a row are only steps whose next observation carries a recorded success flag, as in fragments
    of rollouts. A piece that was cut before the end of its episode has a known reward of 0.
    """

    causal = True

    def __init__(self) -> None:
        super().__init__()

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the sparse reward."""
        succeeded = batch.end == End.SUCCESS
        finished = batch.offset + batch.steps >= batch.length
        known = (batch.success_known | succeeded | ~finished)[:, None]
        flags = batch.labels.get("success")
        if flags is not None and flags.valid.shape[1] == batch.mask.shape[1] + 1:
            known = known | flags.valid[:, 1:]
        step = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        paid = (step[None] == batch.steps[:, None] - 1) & succeeded[:, None] & batch.mask
        return RewardEstimates(rewards=paid.to(batch.weight.dtype), valid=batch.mask & known)
