"""Trajectory-wise preference optimisation: the loss on log-ratios of pairs, its reductions and anchors."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.losses import bradley_terry

Reduce = Literal["sum", "mean", "window", "step"]
Anchor = Literal["quadratic", "cosh"]

SATURATED = 0.01
"""Share of its largest gradient below which a pair counts as saturated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairSide:
    """Log-probabilities of the decisions of one trajectory of each pair, in their order; padding may hold anything."""

    log_prob: Float[Tensor, "P N"]
    """Under the policy that learns; the only part with a gradient."""
    reference: Float[Tensor, "P N"]
    """Under the reference."""
    mask: Bool[Tensor, "P N"]
    """True on real decisions, the first ones of each row."""

    def log_ratio(self) -> Float[Tensor, "P N"]:
        """Compute log π − log π_ref of each decision; 0 in padding."""
        return torch.where(self.mask, self.log_prob, 0.0) - torch.where(self.mask, self.reference.detach(), 0.0)


class TrajectoryPreference:
    """Loss of trajectory-wise preference optimisation, TPO (GRAPE, arXiv 2411.19309, Eq. 5 and 6).

    With r = β Σ_t (log π − log π_ref) of a trajectory, the loss of a pair is −log σ(r_w − r_l): DPO on summed
    log-probabilities. A label below 1 (a tie is 0.5) makes it the cross-entropy.

    Reductions of the sum over the decisions of a trajectory:

    * ``"sum"`` as published. Its logit grows with the length, and long episodes saturate soon: one pass over a batch.
    * ``"mean"`` divides the sum by the number of decisions, so that length does not matter; β is then larger.
    * ``"window"``: the mean over windows of ``window`` consecutive decisions of the loss of their sums, as in GRAPE's
      released code. The k-th window of either trajectory lies at the same share of its length, so that no tail is lost
      where lengths differ. With ``window`` of at least the longer length it is the sum.
    * ``"step"``: windows of one decision, the step-wise DPO that GRAPE compares with.

    The gradient of −log σ depends on r_w − r_l alone, and both may fall: the chosen trajectory then becomes less likely
    than it was. An anchor on the absolute implicit rewards bounds that: ``"quadratic"`` adds α (r_w² + r_l²)/2,
    ``"cosh"`` adds α (R(r_w) + R(r_l)) with R(r) = log cosh(r/2), the even part of −log σ that DPO has for the
    difference only (PRO, arXiv 2505.23316; FlowPRO, arXiv 2606.05468, of which no formula was at hand).

    Args:
        beta: β, inverse temperature, above 0.
        reduce: Reduction over the decisions of a trajectory.
        window: Number H of decisions of a window, at least 1; the released code has 8.
        sft_coef: Weight of −log π of the better trajectory, as a mean over its decisions, at least 0. With a label
            below 1 both trajectories have a part in it.
        proximal: Weight α of the anchor on the absolute implicit rewards, at least 0; 0 is TPO as published.
        anchor: Form of that anchor.

    Raises:
        ValueError: If a number makes no sense, or a name is unknown.
    """

    def __init__(
        self,
        beta: float | int = 0.1,
        reduce: Reduce = "sum",
        window: int = 8,
        sft_coef: float | int = 0.0,
        proximal: float | int = 0.0,
        anchor: Anchor = "quadratic",
    ) -> None:
        if reduce not in get_args(Reduce) or anchor not in get_args(Anchor):
            raise ValueError(
                f"reduce {reduce!r}, anchor {anchor!r}: expected one of {', '.join(get_args(Reduce))}, and of "
                f"{', '.join(get_args(Anchor))}"
            )
        if not 0 < beta < math.inf or window < 1 or not (0 <= sft_coef < math.inf and 0 <= proximal < math.inf):
            raise ValueError(
                f"beta {beta}, window {window}, sft_coef {sft_coef}, proximal {proximal}: expected a positive number, "
                "at least one decision, and weights of at least 0"
            )
        self.beta, self.reduce, self.window = beta, reduce, 1 if reduce == "step" else window
        self.sft_coef, self.proximal, self.anchor = sft_coef, proximal, anchor

    def __call__(
        self,
        chosen: PairSide,
        rejected: PairSide,
        label: Float[Tensor, " P"] | None = None,
        weight: Float[Tensor, " P"] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of P pairs, and metrics.

        Args:
            chosen: Better trajectory of each pair.
            rejected: Worse one; its number of decisions may differ.
            label: Probability that the first is the better one; None takes 1.
            weight: Weight of each pair, at least 0; None takes 1. A pair with a side without a decision has none.

        Returns:
            ``loss``, and without gradients: ``preference_loss`` without anchors; ``accuracy`` of the implicit reward
            over pairs that are no tie, ½ for equal rewards; ``margin`` r_w − r_l of whole trajectories (sums), and
            ``margin_per_decision``; ``chosen_reward``, ``rejected_reward``: mean r; ``chosen_falls``: share of pairs
            with r_w < 0; ``chosen_log_prob``, ``rejected_log_prob``: mean log π of a decision; ``saturated``: share of
            pairs whose gradient is below a hundredth of the largest.
        """
        ratios = chosen.log_ratio(), rejected.log_ratio()
        counts = chosen.mask.sum(1), rejected.mask.sum(1)
        wanted = torch.ones_like(ratios[0][:, 0]) if label is None else label.to(ratios[0])
        weights = torch.ones_like(wanted) if weight is None else weight.to(wanted)
        weights = torch.where((counts[0] > 0) & (counts[1] > 0), weights, 0.0)
        better, worse, share = self._rewards(ratios, counts)
        each = share * weights[:, None]
        preference = bradley_terry(better, worse, label=wanted[:, None].expand_as(better), weight=each)
        loss = preference
        total = each.sum().clamp(min=torch.finfo(each.dtype).tiny)
        if self.proximal:
            loss = loss + self.proximal * torch.where(each > 0, each * self._anchor(better, worse), 0.0).sum() / total
        if self.sft_coef:
            likely = [
                torch.where(side.mask, side.log_prob, 0.0).sum(1) / count.clamp(min=1)
                for side, count in zip((chosen, rejected), counts, strict=True)
            ]
            first, second = (torch.where(weights > 0, weights * part, 0.0) for part in likely)
            # where the label is 1 the other side has no part in it, whatever its log-probability is
            nll = -(torch.where(wanted > 0, wanted * first, 0.0) + torch.where(wanted < 1, (1 - wanted) * second, 0.0))
            loss = loss + self.sft_coef * nll.sum() / total
        return {"loss": loss, **self._metrics(preference, (chosen, rejected), (better, worse), each, wanted)}

    def _rewards(
        self, ratios: tuple[Tensor, Tensor], counts: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "P K"], Float[Tensor, "P K"], Float[Tensor, "P K"]]:
        """Reduce log-ratios to K implicit rewards a side, with the share that each has in its pair."""
        if self.reduce in ("window", "step"):
            sides = [windowed(ratio, count, counts, self.window) for ratio, count in zip(ratios, counts, strict=True)]
            windows = window_count(counts, self.window)
            real = torch.arange(sides[0].shape[1], device=windows.device) < windows[:, None]
            return self.beta * sides[0], self.beta * sides[1], real.to(ratios[0]) / windows[:, None]
        sums = [ratio.sum(1) for ratio in ratios]
        if self.reduce == "mean":
            sums = [total / count.clamp(min=1) for total, count in zip(sums, counts, strict=True)]
        return self.beta * sums[0][:, None], self.beta * sums[1][:, None], torch.ones_like(sums[0][:, None])

    def _anchor(self, better: Tensor, worse: Tensor) -> Tensor:
        if self.anchor == "quadratic":
            return (better.square() + worse.square()) / 2
        return log_cosh_half(better) + log_cosh_half(worse)

    @torch.no_grad()
    def _metrics(
        self,
        preference: Tensor,
        sides: tuple[PairSide, PairSide],
        rewards: tuple[Tensor, Tensor],
        each: Tensor,
        label: Tensor,
    ) -> dict[str, Tensor]:
        used = each.sum(1) > 0
        implicit = [self.beta * side.log_ratio().sum(1)[used] for side in sides]
        margin, decided = implicit[0] - implicit[1], label[used] != 0.5
        right = torch.where(label[used] > 0.5, margin, -margin)[decided]
        gradient = (label[:, None] - torch.sigmoid(rewards[0] - rewards[1])).abs()
        counts = [side.mask.sum(1)[used] for side in sides]
        return {
            "preference_loss": preference.detach(),
            "accuracy": _mean((right > 0).float() + 0.5 * (right == 0).float()),
            "margin": _mean(margin),
            "margin_per_decision": _mean(margin / torch.maximum(*counts).clamp(min=1)),
            "chosen_reward": _mean(implicit[0]),
            "rejected_reward": _mean(implicit[1]),
            "chosen_falls": _mean((implicit[0] < 0).float()),
            "chosen_log_prob": _mean(sides[0].log_prob.detach()[sides[0].mask]),
            "rejected_log_prob": _mean(sides[1].log_prob.detach()[sides[1].mask]),
            "saturated": _mean((gradient < SATURATED).float()[each > 0]),
        }


def window_count(counts: tuple[Int[Tensor, " P"], Int[Tensor, " P"]], window: int) -> Int[Tensor, " P"]:
    """Count the windows of a pair: those of its longer trajectory, one where both are shorter than a window.

    Args:
        counts: Number of decisions of either trajectory.
        window: Number of decisions of a window.
    """
    return (torch.maximum(*counts) - window).clamp(min=0) + 1


def windowed(
    ratio: Float[Tensor, "P N"],
    count: Int[Tensor, " P"],
    counts: tuple[Int[Tensor, " P"], Int[Tensor, " P"]],
    window: int,
) -> Float[Tensor, "P K"]:
    """Sum log-ratios over windows of consecutive decisions that are spread evenly over a trajectory.

    Both trajectories of a pair have as many windows as the longer one has; the k-th begins at the same share of what a
    trajectory allows, rounded. A trajectory that is shorter than a window is one window.

    Args:
        ratio: Log-ratio of each decision, 0 in padding.
        count: Number of decisions of each row.
        counts: Number of decisions of either trajectory of each pair.
        window: Number of decisions of a window.

    Returns:
        Sums (P, K), 0 beyond the number of windows of a pair.
    """
    windows = window_count(counts, window)
    last = (count - window).clamp(min=0)
    place = torch.arange(int(windows.max()) if len(windows) else 1, device=ratio.device)[None]
    gaps = (windows[:, None] - 1).clamp(min=1)
    start = torch.minimum((2 * place * last[:, None] + gaps) // (2 * gaps), last[:, None])  # rounded, half up
    summed = torch.cat([torch.zeros_like(ratio[:, :1]), ratio.cumsum(1)], 1)
    stop = torch.minimum(start + window, count[:, None])
    return torch.where(place < windows[:, None], summed.gather(1, stop) - summed.gather(1, start), 0.0)


def log_cosh_half(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Compute log cosh(x/2), elementwise, without overflow: 0 at 0, and even.

    −log σ(x) = −x/2 + log 2 + log cosh(x/2), exactly.
    """
    size = x.abs()
    return size / 2 + F.softplus(-size) - math.log(2)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.new_full((), math.nan)


__all__ = ["Anchor", "PairSide", "Reduce", "TrajectoryPreference", "log_cosh_half", "window_count", "windowed"]
