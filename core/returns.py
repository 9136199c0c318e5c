"""Returns, advantages, temporal-difference targets and group baselines, as pure functions without gradients.

Time: rewards and masks have T entries, values T+1; step t leads from observation t to observation t+1. `mask` is True
on the first L steps of a row. Whatever stands elsewhere (NaN included) is never read and comes back as 0. A hole in
the mask is an unknown step: it is cut out, and the piece before it is continued by its value, as at any other cut.
Sums run in float64 and come back in the dtype of the rewards: matrix products in float32 would change with TF32 and
autocast settings. Numbers are annotated `float | int` because run-time checkers take `float` literally.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BLOCK = 16  # steps summed by one matrix product: the fastest of 16, 32, 64 and 128 over B = 16…256, T = 100…1000
_DIRECT = 64  # dividing the work does not pay up to so many rows


class GeneralisedAdvantages(NamedTuple):
    """Advantages and returns of `gae`; both are 0 on padding."""

    advantages: Float[Tensor, "B T"]
    """Exponentially weighted sum of temporal-difference errors."""
    returns: Float[Tensor, "B T"]
    """λ-returns, `advantages + values`: the target of a value function."""


@torch.no_grad()
def discounted_returns(
    rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float | int,
    bootstrap: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, "B T"]:
    """Compute the discounted reward-to-go, G_t = Σ_{k≥t} γ^{k−t} r_k over real steps (+ γ^{L−t} · bootstrap).

    Args:
        rewards: reward of each step.
        mask: True on real steps.
        gamma: discount per step, in [0, 1].
        bootstrap: value of what follows the last real step, used as given: pass 0 where the row terminated.

    Raises:
        ValueError: gamma outside [0, 1], shapes that do not fit, or a real step that is not finite.
    """
    _check_steps(rewards, mask)
    _check_unit("gamma", gamma)
    if rewards.numel() == 0:
        return torch.zeros_like(rewards)
    sums = rewards.to(torch.float64, copy=True)
    padding = _padding(mask)
    if padding is not None:
        sums.masked_fill_(padding, 0.0)
    if bootstrap is not None:
        length = _row_length(mask)
        tail = torch.where(length > 0, gamma * bootstrap.to(sums), 0.0)
        sums.scatter_add_(1, (length - 1).clamp_(min=0)[:, None], tail[:, None])
    sums = _suffix_sums(sums, gamma)
    if padding is not None and _holed(padding):
        sums.masked_fill_(padding, 0.0)
    return _finished(sums, rewards.dtype, "rewards or bootstrap")


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T+1"],
    mask: Bool[Tensor, "B T"],
    terminated: Bool[Tensor, " B"],
    gamma: float | int | Float[Tensor, "B T"],
    lam: float | int,
) -> GeneralisedAdvantages:
    """Compute generalised advantage estimates (Schulman et al., 2016, arXiv 1506.02438, equation 16).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = Σ_{k≥t} (γλ)^{k−t} δ_k over real steps. After the last real step the next
    value is V_L, or 0 where the row terminated. Computed as λ-returns, G_t = r_t + γ((1−λ) V_{t+1} + λ G_{t+1}), which
    need fewer passes; A = G − V. λ = 1 gives the discounted return minus V, λ = 0 the one-step error.

    Args:
        rewards: reward of each step.
        values: value of each observation, the one after the last step included.
        mask: True on real steps.
        terminated: True where nothing follows the last real step; False bootstraps (time limit, window boundary).
        gamma: discount per step, in [0, 1]; one number, or one per step where steps last differently long (padding may
            hold anything). The discount of a step is that of the value after it.
        lam: λ, in [0, 1].

    Raises:
        ValueError: gamma or lam outside [0, 1], shapes that do not fit, or a real step that is not finite.
    """
    _check_steps(rewards, mask)
    _check_values("values", values, rewards, terminated)
    _check_unit("lam", lam)
    if isinstance(gamma, Tensor):
        return _gae_of_discounts(rewards, values, mask, terminated, gamma, lam)
    _check_unit("gamma", gamma)
    if rewards.numel() == 0:
        return GeneralisedAdvantages(torch.zeros_like(rewards), torch.zeros_like(rewards))
    dtype = rewards.dtype
    if dtype not in (torch.float32, torch.float64):
        rewards, values = rewards.float(), values.float()
    padding = _padding(mask)
    sums = torch.add(rewards, values[:, 1:], alpha=gamma * (1 - lam)).double()
    if padding is not None:
        sums.masked_fill_(padding, 0.0)
    if padding is not None and _holed(padding):  # a hole: no trace may run across it
        ends = mask & F.pad(padding[:, 1:], (0, 1), value=True)
        stops = terminated[:, None] & (
            torch.arange(1, mask.shape[1] + 1, device=mask.device) == _row_length(mask)[:, None]
        )
        following = torch.where(stops, 0.0, gamma * values[:, 1:].double())
        sums = _window_sums(torch.where(ends, rewards.double() + following, sums), _steps_to_end(mask), gamma * lam)
    else:
        length = mask.sum(1, keepdim=True)
        last = (length - 1).clamp(min=0)
        following = gamma * values.gather(1, length).double().masked_fill_(terminated[:, None], 0.0)
        final = rewards.gather(1, last).double() + following
        sums.scatter_(1, last, final.masked_fill_(length == 0, 0.0))
        sums = _suffix_sums(sums, gamma * lam)
    advantages = sums - values[:, :-1]
    if padding is not None:
        advantages.masked_fill_(padding, 0.0)
    return GeneralisedAdvantages(
        _finished(advantages, dtype, "rewards or values"), sums.to(dtype, memory_format=torch.contiguous_format)
    )


def _gae_of_discounts(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B Tp1"],
    mask: Bool[Tensor, "B T"],
    terminated: Bool[Tensor, " B"],
    gamma: Float[Tensor, "B T"],
    lam: float | int,
) -> GeneralisedAdvantages:
    """Compute `gae` with a discount for each step."""
    if gamma.shape != rewards.shape:
        raise ValueError(f"gamma: expected a number or shape {tuple(rewards.shape)}, got {tuple(gamma.shape)}")
    if not bool(((gamma >= 0) & (gamma <= 1))[mask].all()):
        raise ValueError("gamma: expected numbers in [0, 1] on every real step")
    if rewards.numel() == 0:
        return GeneralisedAdvantages(torch.zeros_like(rewards), torch.zeros_like(rewards))
    discount = gamma.double()
    ends = mask & F.pad(~mask[:, 1:], (0, 1), value=True)  # a hole ends a trace too
    over = terminated[:, None] & (torch.arange(1, mask.shape[1] + 1, device=mask.device) == _row_length(mask)[:, None])
    after = (discount * values[:, 1:].double()).masked_fill(over, 0.0)
    sums = (rewards.double() + torch.where(ends, after, (1 - lam) * after)).masked_fill(~mask, 0.0)
    factor, width = (discount * lam).masked_fill(ends | ~mask, 0.0), 1
    while width < mask.shape[1]:  # G_t = x_t + c_t G_{t+1}, over twice as many steps in every turn
        sums = sums + factor * F.pad(sums[:, width:], (0, width))
        factor = factor * F.pad(factor[:, width:], (0, width))
        width *= 2
    advantages = (sums - values[:, :-1]).masked_fill(~mask, 0.0)
    return GeneralisedAdvantages(
        _finished(advantages, rewards.dtype, "rewards or values"),
        sums.to(rewards.dtype, memory_format=torch.contiguous_format),
    )


@torch.no_grad()
def chunk_td_targets(
    rewards: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T+1"],
    mask: Bool[Tensor, "B T"],
    terminated: Bool[Tensor, " B"],
    horizon: int | Int[Tensor, "B T"],
    gamma: float | int,
) -> Float[Tensor, "B T"]:
    """Compute the target of a critic of action chunks (ALOE, arXiv 2602.12691, equation 7), correct at a row's end.

    y_t = Σ_{k<n} γ^k r_{t+k} + γ^n · next_values[t+n] with n = min(horizon, L − t): a chunk that overruns the row is
    kept, shortened. No bootstrap where t + n = L and the row terminated.

    Args:
        rewards: reward of each step.
        next_values: bootstrap value of each observation, such as E_a'[min_i Q_i].
        mask: True on real steps.
        terminated: True where nothing follows the last real step.
        horizon: steps executed of each chunk, at least 1; one number, or one per step (padding may hold anything).
        gamma: discount per step, in [0, 1].

    Raises:
        ValueError: horizon below 1, gamma outside [0, 1], shapes that do not fit, a real step that is not finite.
    """
    _check_steps(rewards, mask)
    _check_values("next_values", next_values, rewards, terminated)
    _check_unit("gamma", gamma)
    if rewards.numel() == 0:
        return torch.zeros_like(rewards)
    left = _steps_to_end(mask)
    if isinstance(horizon, Tensor):
        if horizon.shape != rewards.shape:
            raise ValueError(f"horizon: expected an int or shape {tuple(rewards.shape)}, got {tuple(horizon.shape)}")
        count = torch.where(mask, horizon.to(left), left)
        shortest = int(torch.where(mask, count, 1).min())
    else:
        count = torch.full_like(left, min(horizon, rewards.shape[1]))
        shortest = horizon
    if shortest < 1:
        raise ValueError(f"horizon: expected at least 1 step on every real step, got {shortest}")
    count = torch.minimum(count, left)
    steps = torch.arange(rewards.shape[1], device=rewards.device)
    end = steps + count
    stops = terminated[:, None] & (end == _row_length(mask)[:, None])
    collected = _window_sums(rewards.double().masked_fill(~mask, 0.0), count, gamma)
    continued = _powers_of(gamma, count) * next_values.double().gather(1, end)
    targets = (collected + continued.masked_fill(stops, 0.0)).masked_fill(~mask, 0.0)
    return _finished(targets, rewards.dtype, "rewards or next_values")


@torch.no_grad()
def macro_rewards(
    rewards: Float[Tensor, "B T"],
    decision_step: Int[Tensor, "B N"],
    mask: Bool[Tensor, "B T"],
    gamma: float | int = 1.0,
) -> Float[Tensor, "B N"]:
    """Sum the reward from one decision to the next, Σ_{d_n ≤ k < d_{n+1}} γ^{k−d_n} r_k; the last one runs to L.

    Steps before the first decision belong to none.

    Args:
        rewards: reward of each step.
        decision_step: step of each decision, strictly increasing; −1 pads. Decisions at or after L count as padding.
        mask: True on real steps.
        gamma: discount per step inside a decision, in [0, 1].

    Returns:
        One reward per decision, 0 on padding. Between decisions discount with γ^(d_{n+1} − d_n).

    Raises:
        ValueError: decisions that do not increase or lie beyond T, gamma outside [0, 1], shapes that do not fit, or a
            real step that is not finite.
    """
    _check_steps(rewards, mask)
    _check_unit("gamma", gamma)
    rows, steps = rewards.shape
    if decision_step.dim() != 2 or decision_step.shape[0] != rows:
        raise ValueError(f"decision_step: expected shape ({rows}, N), got {tuple(decision_step.shape)}")
    count = decision_step.shape[1]
    if rewards.numel() == 0 or count == 0:
        return rewards.new_zeros((rows, count))
    decision = decision_step.long()
    real = decision >= 0
    before = F.pad(torch.where(real, decision, -1).cummax(1).values[:, :-1], (1, 0), value=-1)
    if bool(((real & (decision <= before)) | (decision >= steps)).any()):
        raise ValueError(f"decision_step: expected strictly increasing steps below {steps}, padded with -1")
    # starts[b, t] = 1 + the decision taken at t, 0 where none is; the largest so far owns the step.
    starts = decision.new_zeros((rows, steps + 1))
    number = torch.arange(1, count + 1, device=rewards.device).expand(rows, count)
    starts.scatter_(1, torch.where(real, decision, steps), number)
    owner = starts[:, :steps].cummax(1).values
    age = torch.arange(steps, device=rewards.device) - F.pad(decision, (1, 0)).gather(1, owner)
    paid = (rewards.double() * _powers_of(gamma, age)).masked_fill_(~mask | (owner == 0), 0.0)
    collected = paid.new_zeros((rows, count + 1)).scatter_add_(1, owner, paid)
    return _finished(collected[:, 1:], rewards.dtype, "rewards")


@torch.no_grad()
def leave_one_out(
    scores: Float[Tensor, " N"], group: Int[Tensor, " N"], valid: Bool[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """Subtract from each score the mean of the others of its group: (K/(K−1)) · (score − mean).

    LOOP (arXiv 2502.01600) and RLOO use this baseline.

    Args:
        scores: one score per trajectory.
        group: trajectories with the same number form a group.
        valid: False cuts a score out of its group: it counts for nothing and gets 0.

    Returns:
        Advantages; exactly 0 for a group of one and for a group of equal scores.

    Raises:
        ValueError: shapes that do not fit, or a valid score that is not finite.
    """
    index, excess, count, use = _grouped(scores, group, valid)
    total = torch.zeros_like(count).index_add_(0, index, excess)
    others = (total[index] - excess) / (count[index] - 1).clamp(min=1)
    alone = count[index] < 2
    return torch.where(use & ~alone, excess - others, 0.0).to(scores.dtype)


@torch.no_grad()
def group_standardise(
    scores: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    eps: float | int = 1e-6,
    valid: Bool[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """Standardise scores within a group: (score − mean)/(std + eps) with ddof = 1 (GRPO, arXiv 2402.03300).

    Args:
        scores: one score per trajectory.
        group: trajectories with the same number form a group.
        eps: added to the standard deviation.
        valid: False cuts a score out of its group: it counts for nothing and gets 0.

    Returns:
        Advantages; exactly 0 for a group of one and for a group whose largest score equals its smallest.

    Raises:
        ValueError: shapes that do not fit, or a valid score that is not finite.
    """
    index, excess, count, use = _grouped(scores, group, valid)
    mean = torch.zeros_like(count).index_add_(0, index, excess) / count.clamp(min=1)
    apart = torch.where(use, excess - mean[index], 0.0)
    variance = torch.zeros_like(count).index_add_(0, index, apart.square()) / (count - 1).clamp(min=1)
    largest = torch.zeros_like(count).scatter_reduce_(0, index, excess, "amax")
    varied = use & (largest > 0)[index]
    return torch.where(varied, apart / (variance.sqrt()[index] + eps), 0.0).to(scores.dtype)


@torch.no_grad()
def standardise(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], eps: float | int = 1e-8
) -> Float[Tensor, "*shape"]:
    """(x − mean)/(std + eps) with ddof = 0 over all real entries together; 0 on padding and where all are equal.

    Raises:
        ValueError: shapes that do not fit, or a real entry that is not finite.
    """
    if mask.shape != x.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool of shape {tuple(x.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    real = x[mask].double()
    if real.numel() == 0:
        return torch.zeros_like(x)
    if not bool(real.isfinite().all()):
        raise ValueError("x: a real entry is NaN or infinite; cut it out with the mask")
    excess = real - real.min()
    result = torch.zeros_like(x)
    if bool(excess.max() > 0):
        result[mask] = ((excess - excess.mean()) / (excess.std(correction=0) + eps)).to(x.dtype)
    return result


@lru_cache(maxsize=64)
def _powers(factor: float, size: int, device: torch.device) -> Float[Tensor, "K K"]:
    """Make the lower-triangular matrix of factor^(row − column): a row vector times it gives its suffix sums."""
    steps = torch.arange(size, device=device)
    return _powers_of(factor, (steps[:, None] - steps).clamp(min=0)).tril()


def _powers_of(factor: float, exponent: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Compute factor^exponent in float64, with 0^0 = 1."""
    return torch.pow(torch.tensor(factor, dtype=torch.float64, device=exponent.device), exponent.double())


def _suffix_sums(x: Float[Tensor, "B T"], factor: float) -> Float[Tensor, "B T"]:
    """Compute y_t = x_t + factor · y_{t+1}; may write to `x`.

    Blocks of steps are summed by one triangular matrix product. What follows a block reaches it through its last
    entry, and the sums at the block starts obey the same recursion with factor^block, so a thousand steps take two
    levels. Only non-negative powers occur: nothing is divided by a small number.
    """
    rows, steps = x.shape
    if steps <= _DIRECT:
        return x @ _powers(factor, steps, x.device)
    blocks = -(-steps // _BLOCK)
    x = F.pad(x, (0, blocks * _BLOCK - steps)).contiguous() if steps % _BLOCK else x.contiguous()
    matrix = _powers(factor, _BLOCK, x.device)
    flat = x.view(rows * blocks, _BLOCK)
    starts = _suffix_sums((flat @ matrix[:, 0]).view(rows, blocks), factor**_BLOCK)
    x.view(rows, blocks, _BLOCK)[:, :-1, -1].add_(starts[:, 1:], alpha=factor)
    return (flat @ matrix).view(rows, blocks * _BLOCK)[:, :steps]


def _window_sums(x: Float[Tensor, "B T"], count: Int[Tensor, "B T"], factor: float) -> Float[Tensor, "B T"]:
    """Σ_{k < count_t} factor^k x_{t+k}, where t + count_t ≤ T.

    Sums over windows of 1, 2, 4… steps are built by doubling, and every count is put together from its binary digits:
    log2 passes, and no difference of long sums in which a small reward could drown.
    """
    steps = x.shape[1]
    position = torch.arange(steps, device=x.device).expand_as(count)
    total, scale = torch.zeros_like(x), torch.ones_like(x)
    width, power, longest = 1, factor, int(count.max())
    while width <= longest:
        taken = (count & width) > 0
        total += torch.where(taken, scale * x.gather(1, position.clamp(max=steps - 1)), 0.0)
        scale = torch.where(taken, scale * power, scale)
        position = position + width * taken
        x = x + power * F.pad(x[:, width:], (0, min(width, steps)))
        width, power = 2 * width, power * power
    return total


def _padding(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"] | None:
    """Invert the mask; None where it is True everywhere, which saves passes over unpadded rollouts."""
    return None if bool(mask.all()) else ~mask


def _holed(padding: Bool[Tensor, "B T"]) -> bool:
    """Return whether a real step follows padding in some row."""
    return bool((padding[:, :-1] > padding[:, 1:]).any())


def _row_length(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Count the steps up to and including the last real one."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)


def _steps_to_end(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Count the real steps from t on without a gap: L − t where the mask has no hole, 0 on padding."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    gaps = torch.where(mask, mask.shape[1], steps)
    return gaps.flip(1).cummin(1).values.flip(1) - steps


def _grouped(
    scores: Float[Tensor, " N"], group: Int[Tensor, " N"], valid: Bool[Tensor, " N"] | None
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " G"], Bool[Tensor, " N"]]:
    """Compute group index, excess over the smallest score of the group (0 where not valid), members per group, valid.

    The excess makes groups of equal scores exactly 0: a mean of equal floats need not be equal to them.
    """
    use = torch.ones_like(group, dtype=torch.bool) if valid is None else valid
    if scores.dim() != 1 or group.shape != scores.shape or use.shape != scores.shape:
        raise ValueError(
            f"expected scores, group and valid of one shape (N,), got {tuple(scores.shape)}, {tuple(group.shape)} "
            f"and {tuple(use.shape)}"
        )
    score = torch.where(use, scores.double(), 0.0)
    if not bool(score.isfinite().all()):
        raise ValueError("scores: NaN or infinity in a score that counts; mark it with valid=False to cut it out")
    ids, index = torch.unique(group, return_inverse=True)
    smallest = score.new_full((ids.numel(),), math.inf)
    smallest.scatter_reduce_(0, index, torch.where(use, score, math.inf), "amin")
    excess = torch.where(use, score - smallest[index], 0.0)
    count = torch.zeros_like(smallest).index_add_(0, index, use.to(smallest))
    return index, excess, count, use


def _finished(result: Float[Tensor, "..."], dtype: torch.dtype, what: str) -> Float[Tensor, "..."]:
    """Cast the result to the caller's dtype; a sum finds NaN and infinity in one pass."""
    result = result.to(dtype, memory_format=torch.contiguous_format)
    if not math.isfinite(result.sum(dtype=torch.float64).item()):
        raise ValueError(f"{what}: a real step is NaN or infinite; cut it out with the mask or repair it")
    return result


def _check_steps(rewards: Tensor, mask: Tensor) -> None:
    """Check shapes here too: annotations are enforced in tests only, and broadcasting would hide a mistake."""
    if rewards.dim() != 2 or not rewards.is_floating_point():
        raise ValueError(f"rewards: expected floats of shape (B, T), got {rewards.dtype} {tuple(rewards.shape)}")
    if mask.shape != rewards.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool of shape {tuple(rewards.shape)}, got {mask.dtype} {tuple(mask.shape)}")


def _check_values(name: str, values: Tensor, rewards: Tensor, terminated: Tensor) -> None:
    rows, steps = rewards.shape
    if values.shape != (rows, steps + 1):
        raise ValueError(f"{name}: expected one more than rewards, ({rows}, {steps + 1}), got {tuple(values.shape)}")
    if terminated.shape != (rows,) or terminated.dtype != torch.bool:
        raise ValueError(f"terminated: expected bool of shape ({rows},), got {terminated.dtype} {terminated.shape}")


def _check_unit(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
