"""A causal process reward model: how far a task has come at every observation, and whether it is done."""

from typing import Literal

from torch import Tensor

from ..backbones.language import TextEncoder
from ..backbones.vision import VisionEncoder
from ..core.batch import RewardEstimates, TrajectoryBatch
from .heads import Heads
from .observed import ObservedReward


class ProgressReward(ObservedReward):
    """Rewards the change of a potential, r_t = Φ_{t+1} − Φ_t with Φ = progress + success_weight · success.

    Progress in [0, 1] is a distribution over bins trained with two-hot targets and read off as its expectation (as in
    ReWiND, Zhang et al. 2025, arXiv:2505.10911, a progress model over features and instruction, but with the two-hot
    loss of MuZero, arXiv:1911.08265, appendix F). Between evaluated frames an estimate holds its last value. Being a
    difference of potentials the reward changes no optimal policy (Ng et al. 1999) when it is used as shaping.

    Args:
        state_size: S; 0 reads no state.
        cameras: Cameras to look through.
        encoder: Turns frames into features; a frozen one takes them from ``batch.features`` where they are there.
        text: Turns instructions into features.
        width: D of the hidden stream.
        layers: Blocks of the causal transformer; 0 looks at each observation alone.
        heads: Attention heads.
        dropout: Of the transformer.
        positions: Tell the transformer the time, which makes it easy to read progress off a clock.
        fusion: Mean or sum of the cameras' projections.
        frame_size: Shorter side of the frames, in pixels; None as recorded.
        frames_every: Every how many recorded frames one is evaluated when scoring; the last one always is.
        since_start: Also show how a camera's features changed since the row's first frame.
        predicts: Which heads it has, of progress, success, preference and remaining; see `Heads`.
        bins: Centres on [0, 1], at least 2.
        success_weight: Weight of the success probability in Φ.
        success_loss_weight: Weight of its loss.
        preference_loss_weight: Weight of the Bradley–Terry loss.
        remaining_loss_weight: Weight of the loss of remaining time.
        longest: Most remaining control steps told apart.
    """

    def __init__(
        self,
        state_size: int = 0,
        cameras: tuple[str, ...] | list[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        positions: bool = False,
        fusion: Literal["mean", "sum"] = "mean",
        frame_size: int | None = None,
        frames_every: int = 1,
        since_start: bool = True,
        predicts: tuple[str, ...] | list[str] = ("progress", "success"),
        bins: int = 25,
        success_weight: float = 0.0,
        success_loss_weight: float = 1.0,
        preference_loss_weight: float = 1.0,
        remaining_loss_weight: float = 1.0,
        longest: int = 1000,
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
        self.head = Heads(
            width,
            predicts=predicts,
            bins=bins,
            success_weight=success_weight,
            success_loss_weight=success_loss_weight,
            preference_loss_weight=preference_loss_weight,
            remaining_loss_weight=remaining_loss_weight,
            longest=longest,
        )

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate progress and success at every observation and reward their change; see `Heads.estimates`."""
        return self.head.estimates(self.look(batch), batch)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """The loss of every head and their weighted sum; see `Heads.loss`.

        Raises:
            ValueError: If the batch holds none of the labels the heads learn from.
        """
        return self.head.loss(self.look(batch), batch)
