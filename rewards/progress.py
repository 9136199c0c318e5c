"""A causal process reward model: how far a task has come at every observation, and whether it is done."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.language import TextEncoder
from ..backbones.vision import VisionEncoder
from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.losses import from_two_hot, two_hot
from .observed import ObservedReward, Tokens, balanced_bernoulli, required_label


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
        frames_every: Every how many recorded frames one is evaluated when scoring.
        since_start: Also show how a camera's features changed since the row's first frame.
        bins: Centres on [0, 1], at least 2.
        success_weight: Weight of the success probability in Φ.
        success_loss_weight: Weight of its loss.
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
        bins: int = 25,
        success_weight: float = 0.0,
        success_loss_weight: float = 1.0,
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
        if bins < 2:
            raise ValueError(f"bins is {bins}: expected at least 2")
        self.bins = bins
        self.success_weight = success_weight
        self.success_loss_weight = success_loss_weight
        self.progress_head = nn.Linear(width, bins)
        self.success_head = nn.Linear(width, 1)

    def _success_logit(self, tokens: Tokens) -> Float[Tensor, "B K"]:
        return self.success_head(tokens.hidden).squeeze(-1).float()

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate progress and success at every observation and reward their change.

        Returns:
            ``terms`` holds the change of progress and of success, neither weighted. ``std`` is √(σ²_t + σ²_{t+1}) of
            the predicted distributions of Φ, as if errors at both ends were independent; they are not, so it ranks
            steps rather than bounds them.
        """
        tokens = self.look(batch)
        batch = batch if batch.mask.device == tokens.step.device else batch.to(tokens.step.device)
        probs = self.progress_head(tokens.hidden).float().softmax(-1)
        mean = from_two_hot(probs, 0.0, 1.0).clamp(0, 1)
        centres = torch.linspace(0, 1, self.bins, device=mean.device)
        variance = (probs * (centres - mean[..., None]).square()).sum(-1)
        chance = self._success_logit(tokens).sigmoid()
        variance = variance + self.success_weight**2 * chance * (1 - chance)
        place, valid = tokens.held(batch)

        def hold(values: Tensor) -> Tensor:
            return torch.where(valid, values.gather(1, place), 0.0)

        progress, success, spread = hold(mean), hold(chance), hold(variance)
        known = batch.mask & valid[:, 1:] & valid[:, :-1]

        def change(values: Tensor) -> Tensor:
            return torch.where(known, values[:, 1:] - values[:, :-1], 0.0)

        return RewardEstimates(
            rewards=change(progress + self.success_weight * success),
            valid=known,
            progress=Labelled(values=progress, valid=valid),
            success=Labelled(values=success, valid=valid),
            std=torch.where(known, (spread[:, 1:] + spread[:, :-1]).sqrt(), 0.0),
            terms={"progress": change(progress), "success": change(success)},
        )

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Two-hot cross-entropy of progress plus balanced cross-entropy of success, at evaluated observations.

        Entries without a valid label are left out, and each counts with the weight of the steps at its observation. A
        batch without any gives 0 (with a gradient of 0), and the counts say so.

        Raises:
            ValueError: If the batch holds neither label.
        """
        labels = required_label(batch, ("progress", "success"), type(self).__name__)
        tokens = self.look(batch)
        batch = batch if batch.mask.device == tokens.step.device else batch.to(tokens.step.device)
        weight = tokens.weight(batch)
        logits = self.progress_head(tokens.hidden).float()
        logit = self._success_logit(tokens)
        total = 0.0 * (logits.sum() + logit.sum())
        parts: dict[str, Tensor] = {}
        if "progress" in labels:
            target = tokens.at(batch.labels["progress"])
            used = torch.where(target.valid, weight, 0.0)
            share = used / torch.where(used.sum() > 0, used.sum(), 1.0)
            wanted = two_hot(target.values, 0.0, 1.0, self.bins)
            entropy = -(wanted * functional.log_softmax(logits, -1)).sum(-1)
            parts["progress_loss"] = (entropy * share).sum()
            error = (from_two_hot(logits.softmax(-1), 0.0, 1.0) - target.values).abs()
            parts["progress_error"] = (error * share).sum().detach()
            parts["progress_labels"] = (used > 0).sum().float()
            total = total + parts["progress_loss"]
        if "success" in labels:
            loss, counts = balanced_bernoulli(logit, tokens.at(batch.labels["success"]), weight)
            parts |= {"success_loss": loss, **counts}
            total = total + self.success_loss_weight * loss
        return {"loss": total, **parts}
