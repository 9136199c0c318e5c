"""Staged reward of a pick-and-place task: for the first grasp, for holding, and for the object on its target."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel


class StagedGraspReward(RewardModel):
    """Change of the staged score Φ of RL4VLA (arXiv 2505.19789), undiscounted: r_t = Φ_{t+1} − Φ_t.

    Φ = 0.1·[grasped so far] + 0.1·[held for 5 steps in a row so far] + 1.0·[on target now, and grasped so far]. The
    first two are latched: each is paid once, and dropping the object costs nothing. Leaving the target takes the last
    one back. Success at the end of a row is worth 1.2 in all.

    The published environment reports grasps. Here the object counts as grasped where it is near the hand and away from
    where it was at observation 0, by the tracks of the simulator: Meta-World's own flag ``grasp_success`` is 1 from the
    first step on in drawer-open, and 0 in push until the last step. So a handle that is pulled counts as well. "On
    target" is the recorded success flag. Pieces of rollouts hold their episode from its start, so that the latched
    flags are right; rows that begin later (``offset`` > 0) are not valid.

    Args:
        hand: Name of the track of the hand (B, T+1, 3), in metres.
        moved_object: Name of the track of the object (B, T+1, 3), in metres.
        near: Largest distance between hand and object of a grasp, in metres, above 0.
        displacement: Least distance of a grasped object from its first position, in metres, at least 0.
        hold_steps: Number of steps in a row after which a grasp counts as held, at least 1.
        bonuses: Payments for grasping, for holding, and for being on target.
        needs_grasp: Whether an object on its target counts only if it was ever grasped, as published. False suits
            tasks without a grasp, such as pressing a button.

    Raises:
        ValueError: If an argument is out of its range.
    """

    causal = True

    def __init__(
        self,
        hand: str = "end_effector",
        moved_object: str = "object",
        near: float = 0.06,
        displacement: float = 0.01,
        hold_steps: int = 5,
        bonuses: Sequence[float] = (0.1, 0.1, 1.0),
        needs_grasp: bool = True,
    ) -> None:
        super().__init__()
        if not near > 0 or displacement < 0 or hold_steps < 1 or len(bonuses) != 3:
            raise ValueError(
                f"near {near}, displacement {displacement}, hold_steps {hold_steps}, bonuses {list(bonuses)}: expected "
                "a distance above 0, one of at least 0, at least 1 step, and three payments"
            )
        self.hand, self.moved_object, self.near, self.displacement = hand, moved_object, near, displacement
        self.hold_steps, self.bonuses, self.needs_grasp = hold_steps, tuple(map(float, bonuses)), needs_grasp

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the change of the score at every step; ``terms`` holds those of the three parts.

        Raises:
            ValueError: If a track or the success flags are missing.
        """
        hand, thing = self._track(batch, self.hand), self._track(batch, self.moved_object)
        flags = batch.labels.get("success")
        if flags is None:
            raise ValueError(
                "StagedGraspReward needs labels['success'] for the object on its target, and this batch has none: set "
                "hide_outcome of RolloutData to false, or record it"
            )
        known = hand.valid & thing.valid
        apart = (hand.values - thing.values).norm(dim=2)
        away = (thing.values - thing.values[:, :1]).norm(dim=2)
        grasped = known & (apart <= self.near) & (away >= self.displacement)
        ever = grasped.cummax(1).values
        held = held_for(grasped, self.hold_steps).cummax(1).values
        reached = torch.where(flags.valid, flags.values, 0.0) >= 0.5
        on_target = reached & ever if self.needs_grasp else reached
        # observation 0 has no flag, and nothing is grasped there; any other unknown one hides what follows from it
        told = known & (flags.valid | (torch.arange(known.shape[1], device=known.device) == 0))
        sure = told.cummin(1).values & (batch.offset == 0)[:, None]
        valid = batch.mask & sure[:, 1:]
        terms = {
            name: torch.where(valid, bonus * (score[:, 1:].float() - score[:, :-1].float()), 0.0)
            for name, bonus, score in zip(
                ("grasp", "hold", "target"), self.bonuses, (ever, held, on_target), strict=True
            )
        }
        return RewardEstimates(rewards=torch.stack(list(terms.values())).sum(0), valid=valid, terms=terms)

    def _track(self, batch: TrajectoryBatch, name: str) -> Labelled:
        track = batch.tracks.get(name)
        if track is None or track.values.dim() != 3:
            there = ", ".join(sorted(batch.tracks)) or "none"
            raise ValueError(
                f"StagedGraspReward needs the track {name!r} of points (B, T+1, 3), and this batch has {there}: name "
                "the tracks of the hand and of the object, or take a task that records them"
            )
        return track


def held_for(grasped: Bool[Tensor, "B K"], steps: int) -> Bool[Tensor, "B K"]:
    """Find the observations that end a run of at least ``steps`` grasped ones.

    Args:
        grasped: Observations at which the object is grasped.
        steps: Number of observations in a row, at least 1.
    """
    number = torch.arange(1, grasped.shape[1] + 1, device=grasped.device).expand_as(grasped)
    last_free = torch.where(grasped, 0, number).cummax(1).values
    return grasped & (number - last_free >= steps)


__all__ = ["StagedGraspReward", "held_for"]
