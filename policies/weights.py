"""Weights of imitated chunks from their advantages: exponential, filtered, best share, or by progress gained."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.interfaces import Component

_CLIP = math.log(20.0)  # weights in [1/20, 20]
_LARGEST = 80.0  # e^80 is still a float32


@torch.no_grad()
def exponential_weights(
    advantages: Float[Tensor, " N"], beta: float | int, clip: float | int = _CLIP
) -> Float[Tensor, " N"]:
    """Compute exp(clip(A/β, ±c)) (ALOE, arXiv 2602.12691, Eq. 11), in [e^−c, e^c].

    With the clip this is not the exact solution of a KL-constrained improvement: all advantages beyond it get the same
    weight.

    Args:
        advantages: Advantages A.
        beta: Temperature β, above 0.
        clip: Largest exponent c, above 0 and at most 80.

    Raises:
        ValueError: If an advantage is not finite, or β or c is not positive.
    """
    if not 0 < beta < math.inf or not 0 < clip <= _LARGEST:
        raise ValueError(f"beta {beta}, clip {clip}: expected positive numbers, the clip at most {_LARGEST}")
    return (_finite(advantages).double() / beta).clamp(-clip, clip).exp().to(advantages.dtype)


@torch.no_grad()
def filtered_weights(advantages: Float[Tensor, " N"], threshold: float | int = 0.0) -> Float[Tensor, " N"]:
    """Compute 1[A > threshold]: imitate only chunks that were better than expected.

    Args:
        advantages: Advantages A.
        threshold: Value that an advantage must exceed.

    Raises:
        ValueError: If an advantage is not finite.
    """
    return (_finite(advantages) > threshold).to(advantages.dtype)


@torch.no_grad()
def aligned_weights(
    gains: Float[Tensor, " N"],
    mean: float | int,
    std: float | int,
    low: float | int = -2.0,
    high: float | int = 2.0,
) -> Float[Tensor, " N"]:
    """Compute weights that rise from 0 at ``low`` standard deviations to 1 at ``high``: (Δ − (μ − 2σ))/4σ by default.

    This is the soft part of reward-aligned behaviour cloning (SARM, arXiv:2509.25358). It does not depend on the unit
    of the gains. If all gains are equal (σ = 0), a gain at the mean has the weight −low/(high − low).

    Args:
        gains: Progress gained, Δ.
        mean: Mean gain μ.
        std: Standard deviation σ of the gains, 0 or more.
        low: Standard deviations from the mean at which the weight is 0.
        high: Standard deviations from the mean at which the weight is 1.

    Raises:
        ValueError: If a gain is not finite, or the bounds are not in order.
    """
    if not low < high or std < 0:
        raise ValueError(f"low {low}, high {high}, std {std}: expected low < high, and no negative deviation")
    apart = _finite(gains).double() - mean
    # without a spread, a gain at the mean counts as the middle, and any other as an extreme
    deviations = apart / std if std > 0 else torch.where(apart == 0, 0.0, apart.sign() * math.inf)
    return ((deviations - low) / (high - low)).clamp(0.0, 1.0).to(gains.dtype)


@torch.no_grad()
def effective_share(weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Compute the effective sample size over the number of samples, (Σw)²/(N·Σw²).

    It is 1 for equal weights, 1/N for a single one, and 0 if no weight is positive or there is none.
    """
    top = weights.amax() if len(weights) else weights.new_zeros(())
    scaled = weights.double() / torch.where(top > 0, top, 1.0)  # squares of large weights would overflow
    return (scaled.sum().square() / (scaled.square().sum() * len(weights)).clamp(min=1e-300)).to(weights.dtype)


class AdvantageMemory(nn.Module):
    """Memory of the most recent advantages with their tasks, for statistics that change slowly; saved with the weights.

    Args:
        size: Number of advantages that are kept; older ones are dropped, because critic and policy change.

    Raises:
        ValueError: If the size is below 1.
    """

    values: Tensor
    """Advantages, in float64."""
    tasks: Tensor
    """Number of the task of each."""
    count: Tensor
    """Number of advantages that were ever added."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"memory {size}: expected to remember at least one advantage")
        self.register_buffer("values", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("tasks", torch.zeros(size, dtype=torch.long))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> None:
        """Add the advantages of a batch; of a batch larger than the memory, evenly spaced ones.

        Args:
            advantages: Advantages.
            task: Number of the task of each.

        Raises:
            ValueError: If an advantage is not finite.
        """
        _finite(advantages)
        size = len(self.values)
        if len(advantages) > size:
            chosen = torch.linspace(0, len(advantages) - 1, size, dtype=torch.float64).round().long()
            advantages, task = advantages[chosen.to(advantages.device)], task[chosen.to(task.device)]
        place = (int(self.count) + torch.arange(len(advantages), device=self.values.device)) % size
        self.values[place] = advantages.to(self.values)
        self.tasks[place] = task.to(self.tasks)
        self.count += len(advantages)

    def held(self, task: int | None = None) -> Float[Tensor, " K"]:
        """Return the kept advantages of one task, or of all.

        Raises:
            ValueError: If there is none.
        """
        known = min(int(self.count), len(self.values))
        values = self.values[:known]
        if task is not None:
            values = values[self.tasks[:known] == task]
        if not len(values):
            of = "" if task is None else f" of task {task}"
            raise ValueError(
                f"no advantage{of} was added yet, so none can be compared: pass those of a whole batch to update() "
                "first, as PolicyOptimizer does"
            )
        return values

    def moments(self) -> tuple[float, float]:
        """Compute mean and standard deviation (ddof = 0); the latter is exactly 0 if all advantages are equal.

        Raises:
            ValueError: If no advantage was added yet.
        """
        values = self.held()
        if bool(values.max() == values.min()):
            return float(values[0]), 0.0
        top = values.abs().max()  # squares of very large ones would overflow
        scaled = values / top
        return float(scaled.mean() * top), float(scaled.std(correction=0) * top)


class Weighting(Component):
    """Base of what turns advantages into weights of 0 or more; a subclass writes ``forward``.

    ``update`` is called once per batch with all its known advantages, before their weights are computed. A weight
    depends on the advantage itself and on what ``update`` keeps, not on the rest of its minibatch.
    """

    def update(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> None:
        """Update statistics with the advantages of a batch. Here: none are kept.

        Args:
            advantages: All known advantages of the batch, those of all processes of a distributed run.
            task: Number of the task of each.
        """

    def forward(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Compute the weight of each advantage, 0 or more."""
        raise NotImplementedError(f"{type(self).__name__} weighs nothing: write forward(advantages, task)")


class Exponential(Weighting):
    """ALOE's weights exp(clip(A/β, ±c)) (arXiv 2602.12691, Eq. 11), with β fixed or a multiple of the spread.

    Advantages have the unit of returns, so that a β for one reward does not fit another. Either bring returns into
    [−1, 0] (`guerdon.StepCost`) and give β, or take it from the data: β = κ · standard deviation of
    the last ``memory`` advantages. If all of them are equal, each has the weight 1.

    Args:
        beta: Fixed temperature β, above 0; None takes κ times the standard deviation.
        kappa: Factor κ of the standard deviation, above 0.
        clip: Largest exponent c, above 0; ln 20 keeps weights in [0.05, 20].
        memory: Number of advantages whose standard deviation is taken; the first batch is added before its weights are
            computed.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self, beta: float | None = None, kappa: float = 1.0, clip: float = _CLIP, memory: int = 32_768
    ) -> None:
        super().__init__()
        if not (beta is None or 0 < beta < math.inf) or not 0 < kappa < math.inf or not 0 < clip <= _LARGEST:
            raise ValueError(
                f"beta {beta}, kappa {kappa}, clip {clip}: expected positive numbers, the clip at most {_LARGEST}"
            )
        self.beta, self.kappa, self.clip = beta, kappa, clip
        self.memory = AdvantageMemory(memory) if beta is None else None

    def update(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> None:
        """Add the advantages to the memory."""
        if self.memory is not None:
            self.memory.add(advantages, task)

    @torch.no_grad()
    def forward(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Compute the weight of each advantage.

        Raises:
            ValueError: If an advantage is not finite, or the spread is needed and no advantage was added.
        """
        if self.memory is None:
            assert self.beta is not None
            return exponential_weights(advantages, self.beta, self.clip)
        spread = self.kappa * self.memory.moments()[1]
        if not spread > 0:
            return torch.ones_like(_finite(advantages))
        return exponential_weights(advantages, spread, self.clip)


class Positive(Weighting):
    """Weights of filtered behaviour cloning, 1[A > threshold].

    Args:
        threshold: Value that an advantage must exceed.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(threshold):
            raise ValueError(f"threshold {threshold}: expected a finite number")
        self.threshold = threshold

    def forward(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Compute the weight of each advantage, 1 or 0."""
        return filtered_weights(advantages, self.threshold)


class TopShare(Weighting):
    """RECAP's improvement indicator as a weight, 1[A > ε], with ε such that a share of recent advantages exceeds it.

    RECAP (arXiv 2511.14759) sets ε for each task so that about 30 % of its frames are positive, and conditions the
    policy on the indicator; here it is a weight. ε is the quantile of the last ``memory`` advantages, of the task or of
    all. It is not that of a minibatch, in which even the best third may be bad. If more than the share equal the
    largest advantage, all of those get the weight 1; so do all advantages if they are equal.

    Args:
        share: Share of the advantages that get the weight 1, between 0 and 1.
        per_task: Compare within a task, by its number in the batch; tasks differ in the spread of their advantages.
        memory: Number of advantages that the quantile is taken of.

    Raises:
        ValueError: If the share is not between 0 and 1.
    """

    def __init__(self, share: float = 0.3, per_task: bool = True, memory: int = 32_768) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"share {share}: expected a number between 0 and 1")
        self.share, self.per_task = share, per_task
        self.memory = AdvantageMemory(memory)

    def update(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> None:
        """Add the advantages to the memory."""
        self.memory.add(advantages, task)

    @torch.no_grad()
    def forward(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Compute the weight of each advantage, 1 or 0.

        Raises:
            ValueError: If an advantage is not finite, or none was added.
        """
        values = _finite(advantages).double()
        weights = torch.zeros_like(values)
        known = set(self.memory.tasks[: int(self.memory.count)].tolist())
        for one in task.unique().tolist() if self.per_task else [None]:
            # for a task too rare to be in the memory, all tasks together are the best there is
            held = self.memory.held(one if one in known else None).sort().values
            # the largest that is not among the best share: exactly ⌊share · K⌋ exceed it unless some are equal
            best = int(self.share * len(held) + 1e-6)  # 0.57 · 100 is a little below 57 in floating point
            threshold = held[len(held) - 1 - min(best, len(held) - 1)]
            mine = torch.ones_like(task, dtype=torch.bool) if one is None else task == one
            good = (values > threshold) | ((threshold == held[-1]) & (values >= threshold))
            weights[mine & good] = 1.0
        return weights.to(advantages.dtype)


class RewardAligned(Weighting):
    """Weights of reward-aligned behaviour cloning (SARM, arXiv:2509.25358), larger for chunks with more progress.

    They are made for the gains of `guerdon.ProgressGain`. The weight rises from 0 at
    ``low`` standard deviations from the mean gain to 1 at ``high``; mean and standard deviation are those of the last
    ``memory`` gains. The published rule also gives full weight to all gains above a constant in units of progress,
    which fits one model and chunk length only; here ``high`` takes its place.

    Args:
        low: Standard deviations from the mean at which the weight is 0.
        high: Standard deviations from the mean from which on the weight is 1.
        drop_losses: Give negative gains the weight 0, as published.
        memory: Number of gains whose mean and standard deviation are taken.

    Raises:
        ValueError: If the bounds are not in order.
    """

    def __init__(self, low: float = -2.0, high: float = 2.0, drop_losses: bool = True, memory: int = 32_768) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"low {low}, high {high}: expected low < high")
        self.low, self.high, self.drop_losses = low, high, drop_losses
        self.memory = AdvantageMemory(memory)

    def update(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> None:
        """Add the gains to the memory."""
        self.memory.add(advantages, task)

    @torch.no_grad()
    def forward(self, advantages: Float[Tensor, " N"], task: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Compute the weight of each gain, in [0, 1].

        Raises:
            ValueError: If a gain is not finite, or none was added.
        """
        weights = aligned_weights(advantages, *self.memory.moments(), self.low, self.high)
        return weights.masked_fill(advantages < 0, 0.0) if self.drop_losses else weights


def _finite(values: Tensor) -> Tensor:
    """Return values, or refuse them if one is not finite."""
    if not bool(values.isfinite().all()):
        wrong = values[~values.isfinite()]
        raise ValueError(
            f"{len(wrong)} of {len(values)} advantages are NaN or infinite (the first is {float(wrong[0])}): leave out "
            "what is unknown, or look for a critic that diverged"
        )
    return values


__all__ = [
    "AdvantageMemory",
    "Exponential",
    "Positive",
    "RewardAligned",
    "TopShare",
    "Weighting",
    "aligned_weights",
    "effective_share",
    "exponential_weights",
    "filtered_weights",
]
