"""A success classifier over observations, paid once when it is convinced."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.language import TextEncoder
from ..backbones.vision import VisionEncoder
from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from .observed import ObservedReward, balanced_bernoulli, required_label


class SuccessReward(ObservedReward):
    """Pays 1 when the probability of success reaches a threshold, once per row or at every such step.

    Args:
        state_size: S; 0 reads no state.
        cameras: Cameras to look through.
        encoder: Turns frames into features; a frozen one takes them from ``batch.features`` where they are there.
        text: Turns instructions into features.
        width: D of the hidden stream.
        layers: Blocks of the causal transformer; 0 looks at each observation alone.
        heads: Attention heads.
        dropout: Of the transformer.
        positions: Tell the transformer the time.
        fusion: Mean or sum of the cameras' projections.
        frame_size: Shorter side of the frames, in pixels; None as recorded.
        frames_every: Every how many recorded frames one is evaluated when scoring; the last one always is.
        since_start: Also show how a camera's features changed since the row's first frame.
        threshold: Probability from which on an observation counts as done.
        patience: How many observations in a row must count as done: one flicker pays nothing. Observation 0 pays
            nothing and starts no such run, because no step leads to it.
        sparse: Pay the first such step of a row only; else every one.
    """

    def __init__(
        self,
        state_size: int = 0,
        cameras: tuple[str, ...] | list[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        width: int = 64,
        layers: int = 0,
        heads: int = 4,
        dropout: float = 0.0,
        positions: bool = False,
        fusion: Literal["mean", "sum"] = "mean",
        frame_size: int | None = None,
        frames_every: int = 1,
        since_start: bool = True,
        threshold: float = 0.5,
        patience: int = 1,
        sparse: bool = True,
    ) -> None:
        super().__init__(
            state_size=state_size,
            cameras=cameras,
            encoder=encoder,
            text=text,
            width=width,
            layers=layers,
            heads=heads,
            dropout=dropout,
            positions=positions,
            fusion=fusion,
            frame_size=frame_size,
            frames_every=frames_every,
            since_start=since_start,
        )
        if not 0 < threshold < 1 or patience < 1:
            raise ValueError(f"threshold {threshold}, patience {patience}: expected one in (0, 1) and at least 1")
        self.threshold, self.patience, self.sparse = threshold, patience, sparse
        self.head = nn.Linear(width, 1)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate success at every observation and pay where it is reached.

        Returns:
            ``terms`` holds the probability at the observation each step leads to, ``std`` the spread of that outcome.
        """
        tokens = self.look(batch)
        batch = tokens.beside(batch)
        place, valid = tokens.held(batch)
        chance = self.head(tokens.hidden).squeeze(-1).float().sigmoid()
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
        """Balanced cross-entropy at evaluated observations with a valid label; 0 where there is none.

        Raises:
            ValueError: If the batch holds no ``labels["success"]``.
        """
        required_label(batch, ("success",), type(self).__name__)
        tokens = self.look(batch)
        batch = tokens.beside(batch)
        logit: Float[Tensor, "B K"] = self.head(tokens.hidden).squeeze(-1).float()
        target = tokens.at(batch.labels["success"])
        loss, counts = balanced_bernoulli(logit, target, tokens.weight(batch))
        right = ((logit >= 0) == (target.values >= 0.5)) & target.valid
        accuracy = right.sum() / target.valid.sum().clamp(min=1)
        return {"loss": loss + 0.0 * logit.sum(), "success_accuracy": accuracy, **counts}


def first_runs(done: Bool[Tensor, "B T"], patience: int, first_only: bool) -> Bool[Tensor, "B T"]:
    """Steps that complete ``patience`` done steps in a row; of each row only the first such step if asked."""
    run = torch.zeros(len(done), dtype=torch.long, device=done.device)
    runs: list[Tensor] = []
    for step in done.unbind(1):
        run = torch.where(step, run + 1, 0)
        runs.append(run)
    reached = torch.stack(runs, 1) >= patience if runs else done
    return reached & (reached.long().cumsum(1) == 1) if first_only else reached
