"""An ensemble of reward models on one feature cache: a mean or a lower bound of their rewards, and how they differ."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..backbones.model_inputs import ModelInputs, inputs_of
from ..core.batch import Labelled, RewardEstimates, Sampled, TrajectoryBatch
from ..core.hub import is_component
from ..core.interfaces import Normalised, RewardModel
from ..core.sizes import unknown_sizes
from .observation_encoder import encode_frames

Aggregate = Literal["mean", "lower", "worst"]
Bound = Literal["total", "step"]
Spread = Literal["predictive", "members", "levels"]

# P(X ≤ k) of a Poisson variable of mean 1, up to where a double cannot tell it from 1
_POISSON = np.cumsum([math.exp(-1.0) / math.factorial(k) for k in range(19)])


class EnsembleReward(RewardModel):
    """K models of one kind with weights of their own, which see the same episodes with different weights.

    Progress, success and terms are means over the members, and whatever one member does not know the ensemble does not
    know. The reward is ``aggregate`` of the members' rewards; see `aggregate_rewards` for ``bound``. The spread is
    that of the members taken together, see `mixture_std`.

    Members differ by their initial weights and, with ``bootstrap``, by the data: in training, member m counts episode e
    with a weight drawn from a Poisson distribution of mean 1 (the online bootstrap of Oza and Russell 2001). The draw
    is a hash of (seed, m, e), so it is the same in every epoch, process and resumed run. A member's loss must count
    ``TrajectoryBatch.weight``, as those here do. In evaluation the loss counts all episodes alike.

    A frozen encoder (of frames or text) is shared: it is there once, frames are encoded once for all members, and
    cached features are read as by a single model. A trainable one is part of what differs, so each member has its own.

    Args:
        member: One member; the others are built from its class and arguments. It is the first of the K.
        size: K.
        aggregate: Mean, lower confidence bound (mean − ``coefficient`` · deviation over members), or the worst member.
        coefficient: Of the lower bound, at least 0.
        bootstrap: Give every member its own weights of the episodes.
        bound: Whether a lower bound or the worst member is taken of the reward summed so far, or of each step's.
        spread: What ``std`` is. ``"predictive"`` is the deviation of all that the members expect of the step's reward:
            their disagreement, and what each says of its own doubt. ``"members"`` is the disagreement alone, which is
            what falls with more data. ``"levels"`` is √(v_t + v_{t+1}), with v the members' variance of progress (of
            success, without progress) at both ends: members often agree that nothing changes while they do not agree
            on where the row is, so far from the data this one rises most.
        seed: Of the bootstrap; initial weights come from torch's generator, as for any module.

    Raises:
        ValueError: If an argument makes no sense, or the member has nothing to train.
    """

    def __init__(
        self,
        member: RewardModel,
        size: int = 5,
        aggregate: Aggregate = "mean",
        coefficient: float = 1.0,
        bootstrap: bool = True,
        bound: Bound = "total",
        spread: Spread = "predictive",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size < 1 or seed < 0:
            raise ValueError(f"size {size}, seed {seed}: expected at least one member and a seed of at least 0")
        if not (math.isfinite(coefficient) and coefficient >= 0):
            raise ValueError(f"coefficient is {coefficient}: expected a finite number of at least 0")
        for name, value, known in (
            ("aggregate", aggregate, ("mean", "lower", "worst")),
            ("bound", bound, ("total", "step")),
            ("spread", spread, ("predictive", "members", "levels")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: expected one of {', '.join(known)}")
        if not unknown_sizes(member) and not any(p.requires_grad for p in member.parameters()):
            raise ValueError(
                f"{type(member).__name__} has nothing to train, so all members would say the same: give an ensemble "
                "a model that learns"
            )
        self.members = nn.ModuleList([member, *(cast(RewardModel, build_afresh(member)) for _ in range(size - 1))])
        self.aggregate: Aggregate = aggregate
        self.bound: Bound = bound
        self.coefficient = coefficient
        self.spread: Spread = spread
        self.bootstrap, self.seed = bootstrap, seed
        self.causal = member.causal

    def _models(self) -> list[RewardModel]:
        return [cast(RewardModel, member) for member in self.members]

    @property
    def inputs(self) -> ModelInputs:
        """What every member reads."""
        return inputs_of(self._models()[0])

    @property
    def normalised(self) -> bool:
        """Whether no member waits for a mean and a deviation."""
        return all(member.normalised for member in self.members if isinstance(member, Normalised))

    @torch.no_grad()
    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Fit the first member's mean and deviation, which hold for all: read the data once, not K times.

        Raises:
            ValueError: If the batches hold no observation.
        """
        first = self._models()[0]
        if not isinstance(first, Normalised):
            return
        cast(Normalised, first).fit_normaliser(batches)
        for other in self._models()[1:]:
            for name, buffer in first.named_buffers():
                other.get_buffer(name).copy_(buffer)

    def _shown(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """The batch on the members' device, with the features of a shared encoder, so that none encodes again."""
        device = next(self.parameters()).device
        batch = batch if batch.mask.device == device else batch.to(device)
        return with_features(batch, self.inputs)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Ask every member.

        Returns:
            ``std`` is the spread of the step's reward, whatever ``aggregate`` and ``bound`` are.
        """
        batch = self._shown(batch)
        scored = [member(batch) for member in self._models()]
        valid = torch.stack([s.valid for s in scored]).all(0)
        rewards = torch.where(valid, torch.stack([s.rewards for s in scored]), 0.0)
        paid = aggregate_rewards(rewards, self.aggregate, self.coefficient, self.bound)
        return RewardEstimates(
            rewards=torch.where(valid, paid, 0.0),
            valid=valid,
            progress=_mean_column([s.progress for s in scored]),
            success=_mean_column([s.success for s in scored]),
            std=torch.where(valid, self._spread(scored, rewards), 0.0),
            terms={
                name: torch.where(valid, _mean(torch.stack([s.terms[name] for s in scored])), 0.0)
                for name in scored[0].terms
            },
        )

    def _spread(self, scored: Sequence[RewardEstimates], rewards: Tensor) -> Tensor:
        if self.spread == "levels":
            columns = [column for s in scored if (column := s.progress or s.success) is not None]
            if not columns:
                raise ValueError("spread 'levels' needs members that estimate progress or success: use 'members'")
            levels = torch.stack([torch.where(column.valid, column.values.float(), 0.0) for column in columns])
            variance = levels.double().var(0, correction=0)
            return (variance[:, 1:] + variance[:, :-1]).sqrt().to(rewards.dtype)
        doubts = [s.std for s in scored if s.std is not None]
        within = torch.stack(doubts) if self.spread == "predictive" and len(doubts) == len(scored) else None
        return mixture_std(rewards, within)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Mean of the members' losses, and of the parts of the same name.

        Members share no weight that learns, so with an optimizer that does not care for the scale of a gradient, such
        as Adam, each learns as it would alone.
        """
        batch = self._shown(batch)
        parts = [member.loss(self._resampled(batch, place)) for place, member in enumerate(self._models())]
        return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}

    def _resampled(self, batch: TrajectoryBatch, place: int) -> TrajectoryBatch:
        if not (self.bootstrap and self.training):
            return batch
        times = bootstrap_weights(batch.episode, place, self.seed).to(batch.weight)
        if bool((times > 0).any()):  # what compares rows, such as a preference head, must not meet those left out
            batch, times = batch[times > 0], times[times > 0]
        return replace(batch, weight=batch.weight * times[:, None])


def aggregate_rewards(
    rewards: Float[Tensor, "K B T"], aggregate: Aggregate = "mean", coefficient: float = 1.0, bound: Bound = "total"
) -> Float[Tensor, "B T"]:
    """One reward per step of the members' K; unknown steps hold 0.

    With ``bound="step"`` it is f(r_1t, …, r_Kt): the mean, mean − c · deviation (over the K members, ddof = 0), or the
    smallest. With ``bound="total"`` it is the change of f(G_1t, …, G_Kt), where G_kt sums member k's rewards up to step
    t. Both are the same for the mean. For the others they are not, and a bound on the total is the one to learn from:

    * Where rewards are changes of a potential, G_kt = Φ_k,t+1 − Φ_k,0, so this bounds the potential and pays its
      change: a place that members disagree on is worth less while one is there, once. Bounds on single changes add up
      instead: Σ_t (mean − c · deviation) falls by c · deviation at *every* step, and standing still pays best.
    * Where members pay a success once, but not on the same step, no single step has a smallest reward above 0. The
      total has, from the step on at which the last member has paid.

    A row is never paid less in all with ``"total"`` than with ``"step"``: the deviation of a sum is at most the sum
    of the deviations, and the smallest sum at least the sum of the smallest.
    """
    held = rewards.double()
    if aggregate == "mean":
        return held.mean(0).to(rewards.dtype)
    held = held.cumsum(2) if bound == "total" else held
    low = held.amin(0) if aggregate == "worst" else held.mean(0) - coefficient * held.std(0, correction=0)
    if bound == "total":
        low = torch.diff(low, dim=1, prepend=low.new_zeros(len(low), 1))
    return low.to(rewards.dtype)


def mixture_std(means: Float[Tensor, "K B T"], stds: Float[Tensor, "K B T"] | None = None) -> Float[Tensor, "B T"]:
    """Deviation of an evenly weighted mixture of K predictions, by the law of total variance.

    σ² = mean_k(σ_k²) + var_k(μ_k), the variance of the means with ddof = 0, because the K members are the whole mixture
    and no sample of one (Lakshminarayanan et al. 2017, arXiv:1612.01474, §2.4). Equal members give their own deviation.

    Args:
        means: What each member says.
        stds: How sure each member is of it; None leaves the first part out.
    """
    variance = means.double().var(0, correction=0)
    if stds is not None:
        variance = variance + stds.double().square().mean(0)
    return variance.sqrt().to(means.dtype)


def bootstrap_weights(episode: Int[Tensor, " B"], member: int, seed: int = 0) -> Float[Tensor, " B"]:
    """How often a member counts each episode: Poisson of mean 1, a function of (seed, member, episode) alone.

    Returns:
        Whole numbers from 0 on, on the host; about 37 % are 0.
    """
    state = np.full(len(episode), seed, np.uint64)
    for part in (np.full(len(episode), member, np.uint64), episode.cpu().numpy().astype(np.uint64)):
        state = _scrambled(_scrambled(state) ^ part)
    uniform = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy(np.searchsorted(_POISSON, uniform, side="right").astype(np.float32))


def _scrambled(state: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014): neighbouring numbers become unrelated ones; arithmetic modulo 2^64."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def with_features(batch: TrajectoryBatch, inputs: ModelInputs) -> TrajectoryBatch:
    """Encode frames a frozen encoder has no features of yet, and put them where the models look for them."""
    if inputs.encoder is None:
        return batch
    found: dict[str, Sampled] = {}
    for camera in inputs.cameras:
        name, frames = f"{inputs.encoder.name}/{camera}", batch.frames.get(camera)
        if name not in batch.features and frames is not None:
            found[name] = encode_frames(inputs.encoder, frames)
    return replace(batch, features={**batch.features, **found}) if found else batch


def build_afresh(component: nn.Module, _built: dict[int, nn.Module] | None = None) -> nn.Module:
    """Another component of the same class and arguments, with initial weights of its own.

    Frozen encoders among the arguments are passed on as they are; other components are built afresh too, one that is
    used twice once.
    """
    built: dict[int, nn.Module] = {} if _built is None else _built
    if id(component) not in built:
        args = cast(dict[str, Any], component.__dict__["init_args"])
        made = type(component)(**{name: _argument(value, built) for name, value in args.items()})
        built[id(component)] = made
    return built[id(component)]


def _argument(value: Any, built: dict[int, nn.Module]) -> Any:
    if is_component(value):
        component = cast(nn.Module, value)
        frozen = getattr(component, "frozen_reference", False) is True or getattr(component, "trainable", None) is False
        return component if frozen else build_afresh(component, built)
    if isinstance(value, Mapping):
        return {name: _argument(entry, built) for name, entry in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_argument(entry, built) for entry in cast(Sequence[Any], value)]
    return value


def _mean(values: Tensor) -> Tensor:
    """Over the members, in float64: the mean of K equal numbers is that number."""
    return values.double().mean(0).to(values.dtype)


def _mean_column(columns: Sequence[Labelled | None]) -> Labelled | None:
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return None
    valid = torch.stack([column.valid for column in known]).all(0)
    values = _mean(torch.stack([column.values.float() for column in known]))
    return Labelled(values=torch.where(valid, values, 0.0), valid=valid)


__all__ = ["EnsembleReward", "aggregate_rewards", "bootstrap_weights", "mixture_std"]
