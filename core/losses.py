"""Losses of rewards, critics, policies and preferences, as pure functions of tensors that carry gradients.

Masked entries may hold anything, NaN and infinity included: they are replaced before any arithmetic, so that neither
the loss nor its gradient ever sees them. A batch without a real entry gives 0.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def bradley_terry(
    chosen: Float[Tensor, "*shape"],
    rejected: Float[Tensor, "*shape"],
    margin: float | int = 0.0,
    label: Float[Tensor, "*shape"] | None = None,
    weight: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the mean of −log σ(chosen − rejected − margin) (Bradley and Terry, 1952; Christiano et al., 2017).

    Args:
        chosen: score of the preferred member of each pair.
        rejected: score of the other one.
        margin: how much larger the preferred score should be.
        label: probability that `chosen` is the better one (1 by default, 0.5 is a tie); the loss is the cross-entropy.
        weight: weight of each pair (1 by default); the mean is weighted, and pairs of weight 0 are left out.

    Raises:
        ValueError: shapes that differ.
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"rejected: expected shape {tuple(chosen.shape)}, got {tuple(rejected.shape)}")
    if weight is not None:
        used = weight > 0
        chosen, rejected = torch.where(used, chosen, 0.0), torch.where(used, rejected, 0.0)
        label = None if label is None else torch.where(used, label, 1.0)
    gap = chosen - rejected
    loss = F.softplus(margin - gap)
    if label is not None:
        loss = label * loss + (1 - label) * F.softplus(margin + gap)
    if weight is None:
        return loss.sum() / max(loss.numel(), 1)
    total = weight.sum()
    return (weight * loss).sum() / torch.where(total > 0, total, 1.0)


def two_hot(x: Float[Tensor, "*shape"], low: float | int, high: float | int, bins: int) -> Float[Tensor, "*shape bins"]:
    """Make the distribution on evenly spaced centres whose expectation is x (MuZero, arXiv 1911.08265, appendix F).

    Args:
        x: numbers; clamped to [low, high]. NaN gives NaN: fill unknown labels before.
        low: first centre.
        high: last centre.
        bins: number of centres, at least 2.

    Returns:
        Non-negative weights of the two centres around each x, which sum to 1.

    Raises:
        ValueError: fewer than 2 bins, or low not below high.
    """
    _check_support(low, high, bins)
    wide = x if x.dtype == torch.float64 else x.float()
    position = (wide.clamp(low, high) - low) * ((bins - 1) / (high - low))
    centres = torch.arange(bins, dtype=wide.dtype, device=x.device)
    return F.relu(1 - (position[..., None] - centres).abs()).to(x.dtype)


def from_two_hot(probs: Float[Tensor, "*shape bins"], low: float | int, high: float | int) -> Float[Tensor, "*shape"]:
    """Take the expectation over evenly spaced centres from low to high inclusive: the inverse of `two_hot`.

    Raises:
        ValueError: fewer than 2 bins, or low not below high.
    """
    _check_support(low, high, probs.shape[-1])
    wide = probs if probs.dtype == torch.float64 else probs.float()
    centres = torch.linspace(low, high, probs.shape[-1], dtype=wide.dtype, device=probs.device)
    return (wide * centres).sum(-1).to(probs.dtype)  # no matrix product: TF32 would blur the value


def expectile(error: Float[Tensor, "*shape"], tau: float | int) -> Float[Tensor, "*shape"]:
    """Compute asymmetric squares abs(τ − 1[error < 0]) · error² (IQL, arXiv 2110.06169, equation 4), elementwise.

    Args:
        error: target − prediction; τ > 0.5 punishes a prediction that is too low.
        tau: expectile, in [0, 1]; 0.5 is half the squared error.

    Raises:
        ValueError: tau outside [0, 1].
    """
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau: expected a number in [0, 1], got {tau}")
    return torch.where(error < 0, 1 - tau, tau) * error.square()


def clipped_surrogate(
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None,
    clip_low: float | int = 0.2,
    clip_high: float | int = 0.2,
    average: Literal["trajectory", "step"] | float | int = "trajectory",
    clip_mode: Literal["linear", "reciprocal"] = "linear",
    dual_clip: float | int | None = None,
) -> Float[Tensor, ""]:
    """Compute the clipped policy surrogate to minimise, −min(ρA, clip(ρ, low, high)A).

    This is equation 7 of PPO (arXiv 1707.06347). Asymmetric bounds are those of SimpleVLA-RL (arXiv 2509.09674), the
    reciprocal lower bound and the fixed divisor those of LOOP's released code (arXiv 2502.01600), the dual clip that of
    Ye et al. (arXiv 1912.09729, equation 3).

    Args:
        log_ratio: log π(a|s) − log π_old(a|s), per step (or token, or decision). Beyond half of what the dtype can
            exponentiate (44 in float32) it counts as that bound, so that neither loss nor gradient becomes infinite.
        advantages: constants; no gradient flows into them.
        mask: True on real steps; the rest is replaced before the exponential. None takes all for real.
        clip_low: distance of the ratio's lower bound from 1; see ``clip_mode``.
        clip_high: the ratio is clipped above at 1 + clip_high.
        average: "trajectory": mean over the real steps of each row, then over the rows that have any; "step": mean over
            all real steps, in which long rows weigh more; a number: sum of the rows' means over this number, so that a
            batch with fewer rows makes a smaller step.
        clip_mode: "linear": the ratio is clipped below at 1 − clip_low; "reciprocal": at 1/(1 + clip_low), so that
            clip_low may exceed 1.
        dual_clip: c > 1: where the advantage is negative the loss of a step is at most c·abs(A), without a gradient
            beyond; None bounds nothing there.

    Raises:
        ValueError: an unknown average or clip mode, a divisor that is not positive, negative clip bounds, a dual clip
            of 1 or less, or shapes that differ.
    """
    low = _lower_bound(clip_low, clip_high, clip_mode)
    if isinstance(average, str) or isinstance(average, bool):
        if average not in ("trajectory", "step"):
            raise ValueError(f'average: expected "trajectory", "step" or a positive number, got {average!r}')
    elif not 0 < average < math.inf:
        raise ValueError(f"average: expected a positive number to divide by, got {average}")
    if dual_clip is not None and not 1 < dual_clip < math.inf:
        raise ValueError(f"dual_clip: expected a number above 1, or None, got {dual_clip}")
    gain = advantages.detach()
    if mask is None:
        if log_ratio.dim() != 2 or gain.shape != log_ratio.shape:
            got = f"{tuple(log_ratio.shape)} and {tuple(gain.shape)}"
            raise ValueError(f"log_ratio and advantages: expected one shape (B, T), got {got}")
    else:
        _check_masked("log_ratio", log_ratio, mask)
        _check_masked("advantages", advantages, mask)
        log_ratio, gain = torch.where(mask, log_ratio, 0.0), torch.where(mask, gain, 0.0)
    bound = 0.5 * math.log(torch.finfo(log_ratio.dtype).max)
    ratio = log_ratio.clamp(max=bound).exp()
    loss = -torch.minimum(ratio * gain, ratio.clamp(low, 1 + clip_high) * gain)
    if dual_clip is not None:
        loss = torch.where(gain < 0, torch.minimum(loss, -dual_clip * gain), loss)
    if mask is None:  # rows of one length: both averages are the mean
        mask = torch.ones((), dtype=torch.bool, device=loss.device).expand_as(loss)
    if average == "step":
        return loss.sum() / mask.sum().clamp(min=1)
    length = mask.sum(1)
    rows = (loss.sum(1) / length.clamp(min=1)).sum()
    return rows / ((length > 0).sum().clamp(min=1) if isinstance(average, str) else average)


def _lower_bound(clip_low: float | int, clip_high: float | int, clip_mode: str) -> float:
    """Return the lower bound of the clipped ratio."""
    if clip_mode not in ("linear", "reciprocal"):
        raise ValueError(f'clip_mode: expected "linear" or "reciprocal", got {clip_mode!r}')
    if not (0 <= clip_low < math.inf and 0 <= clip_high):
        raise ValueError(f"clip bounds: expected at least 0, got clip_low={clip_low}, clip_high={clip_high}")
    return 1 / (1 + clip_low) if clip_mode == "reciprocal" else 1 - clip_low


def trajectory_preference(
    chosen_logp: Float[Tensor, "P T"],
    chosen_ref: Float[Tensor, "P T"],
    rejected_logp: Float[Tensor, "P U"],
    rejected_ref: Float[Tensor, "P U"],
    chosen_mask: Bool[Tensor, "P T"],
    rejected_mask: Bool[Tensor, "P U"],
    beta: float | int,
    reduce: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, ""]:
    """Compute the loss of trajectory-wise preference optimisation (GRAPE): mean over pairs of −log σ(β(Δ_w − Δ_l)).

    Δ = Σ_t (logp − ref) over the real steps of a trajectory; a trajectory without any has Δ = 0 (GRAPE, arXiv
    2411.19309).

    Args:
        chosen_logp: log-probability of each step (or token) of the better trajectory under the policy.
        chosen_ref: the same under the reference; no gradient flows into it.
        rejected_logp: log-probabilities of the worse trajectory; its T may differ.
        rejected_ref: the same under the reference.
        chosen_mask: True on real steps of the better trajectory.
        rejected_mask: True on real steps of the worse one.
        beta: inverse temperature.
        reduce: "sum" as published; "mean" divides Δ by the number of real steps, so that length does not matter.

    Raises:
        ValueError: an unknown reduce, or shapes that differ.
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f'reduce: expected "sum" or "mean", got {reduce!r}')
    better = _log_odds(chosen_logp, chosen_ref, chosen_mask, reduce)
    worse = _log_odds(rejected_logp, rejected_ref, rejected_mask, reduce)
    return F.softplus(-beta * (better - worse)).sum() / max(better.numel(), 1)


def kto(
    log_ratio: Float[Tensor, " N"],
    desirable: Bool[Tensor, " N"],
    reference_point: Float[Tensor, ""] | float | int,
    beta: float | int,
    weight_desirable: float | int = 1.0,
    weight_undesirable: float | int = 1.0,
    weight: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the Kahneman–Tversky loss of single outcomes that are desirable or not (KTO, arXiv 2402.01306, Eq. 8).

    With r the log-ratio and z the reference point, a desirable outcome costs λ_D (1 − σ(β(r − z))), an undesirable one
    λ_U (1 − σ(β(z − r))). The gradient is at most λβ/4, and vanishes far from z on both sides.

    Args:
        log_ratio: log π(a|s) − log π_ref(a|s) of each outcome, summed over what it consists of.
        desirable: True where the outcome is desirable, False where it is undesirable.
        reference_point: z, such as an estimate of the divergence from the reference; no gradient flows into it.
        beta: β, how fast the loss saturates, above 0.
        weight_desirable: λ_D, at least 0.
        weight_undesirable: λ_U, at least 0.
        weight: further factor of each outcome's loss; None takes 1.

    Returns:
        Mean over all outcomes (the sum over their number, whatever the weights); 0 without any.

    Raises:
        ValueError: shapes that differ, a β that is not positive, a negative weight or a reference point that is not
            finite.
    """
    if log_ratio.dim() != 1 or desirable.shape != log_ratio.shape or desirable.dtype != torch.bool:
        raise ValueError(
            f"log_ratio and desirable: expected (N,) and bool (N,), got {tuple(log_ratio.shape)} and "
            f"{desirable.dtype} {tuple(desirable.shape)}"
        )
    if not 0 < beta < math.inf or not (0 <= weight_desirable < math.inf and 0 <= weight_undesirable < math.inf):
        raise ValueError(
            f"beta {beta}, weight_desirable {weight_desirable}, weight_undesirable {weight_undesirable}: expected a "
            "positive number and two of at least 0"
        )
    point = reference_point.detach() if isinstance(reference_point, Tensor) else reference_point
    if not math.isfinite(float(point)):
        raise ValueError(f"reference_point is {float(point)}: expected a finite number")
    gap = beta * (log_ratio - point)
    loss = torch.where(
        desirable,
        weight_desirable * torch.sigmoid(-gap),  # 1 − σ(x) = σ(−x), without the loss of digits
        weight_undesirable * torch.sigmoid(gap),
    )
    loss = loss if weight is None else weight * loss
    return loss.sum() / max(loss.numel(), 1)


def _log_odds(
    logp: Float[Tensor, "P T"], ref: Float[Tensor, "P T"], mask: Bool[Tensor, "P T"], reduce: str
) -> Float[Tensor, " P"]:
    _check_masked("log-probabilities", logp, mask)
    _check_masked("reference log-probabilities", ref, mask)
    total = (torch.where(mask, logp, 0.0) - torch.where(mask, ref.detach(), 0.0)).sum(1)
    return total if reduce == "sum" else total / mask.sum(1).clamp(min=1)


def _check_masked(name: str, tensor: Tensor, mask: Tensor) -> None:
    if tensor.dim() != 2 or mask.dtype != torch.bool or mask.shape != tensor.shape:
        raise ValueError(
            f"{name}: expected (B, T) and a bool mask of the same shape, got {tuple(tensor.shape)} and {mask.dtype} "
            f"{tuple(mask.shape)}"
        )


def _check_support(low: float | int, high: float | int, bins: int) -> None:
    if bins < 2 or not low < high:
        raise ValueError(f"expected at least 2 bins and low < high, got bins={bins}, low={low}, high={high}")


def clipped_value_loss(
    value: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    old: Float[Tensor, "*shape"] | None = None,
    clip: float | int | None = None,
    delta: float | int | None = None,
) -> Float[Tensor, "*shape"]:
    """Compute the loss of values, elementwise: max(ℓ(V − G), ℓ(V_old + clip(V − V_old, ±c) − G)).

    ℓ is half the squared error (VLA-RL, arXiv 2505.18719), or Huber's loss (RL4VLA, arXiv 2505.19789): half the square
    up to δ, and δ(abs(e) − δ/2) beyond. Where the value is further from the old one than c in the direction of the
    target, the gradient is 0; where it is on the other side, it is that of ℓ(V − G).

    Args:
        value: values V; the gradient flows into them.
        target: returns G; no gradient flows into them.
        old: values when the advantages were formed, V_old; no gradient flows into them. Needed with a clip.
        clip: distance c, above 0; None does not clip.
        delta: δ of Huber's loss, above 0; None takes half the squared error.

    Raises:
        ValueError: shapes that differ, a number that is not positive, or a clip without old values.
    """
    for name, number in (("clip", clip), ("delta", delta)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name}: expected a positive finite number, or None, got {number}")
    if target.shape != value.shape or (old is not None and old.shape != value.shape):
        got = f"{tuple(value.shape)}, {tuple(target.shape)} and {None if old is None else tuple(old.shape)}"
        raise ValueError(f"value, target and old: expected one shape, got {got}")
    if clip is None:
        return _value_loss(value - target.detach(), delta)
    if old is None:
        raise ValueError("clip: clipping needs the values when the advantages were formed; give old, or no clip")
    before = old.detach()
    near = before + (value - before).clamp(-clip, clip)
    return torch.maximum(_value_loss(value - target.detach(), delta), _value_loss(near - target.detach(), delta))


def _value_loss(error: Float[Tensor, "*shape"], delta: float | int | None) -> Float[Tensor, "*shape"]:
    if delta is None:
        return 0.5 * error.square()
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=float(delta))
