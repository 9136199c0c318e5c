"""Ensemble of reward models: mean or lower bound of their rewards, and their disagreement."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..backbones.model_inputs import ModelInputs, inputs_of
from ..core.batch import Labelled, RewardEstimates, Sampled, TrajectoryBatch
from ..core.hub import is_component
from ..core.interfaces import Normalised, RewardModel
from ..core.resampling import bootstrap_weights
from ..core.sizes import require_sizes, unknown_sizes
from .observation_encoder import encode_frames

Aggregate = Literal["mean", "lower", "worst"]
Bound = Literal["total", "step"]
Spread = Literal["predictive", "members", "levels"]


class EnsembleReward(RewardModel):
    """Ensemble of K reward models of one class, trained on the same episodes with different weights.

    Progress, success and terms are means over the members. An entry that one member leaves invalid is invalid. The
    reward is ``aggregate`` of the members' rewards; see `aggregate_rewards` for ``bound``. The standard deviation is
    that of the mixture of all members; see `mixture_std`.

    Members differ by their initial weights and, with ``bootstrap``, by the data: in training, member m counts episode e
    with a weight drawn from a Poisson distribution of mean 1 (the online bootstrap of Oza and Russell 2001). The draw
    is a hash of (seed, m, e), so it is the same in every epoch, process and resumed run. A member's loss must use
    ``TrajectoryBatch.weight``, as all losses here do. In evaluation the loss weighs all episodes alike.

    A frozen encoder (of frames or text) exists once and is shared. Frames are encoded once for all members, and cached
    features are read as by a single model. A trainable encoder is built afresh for each member.

    Args:
        member: First of the K members; the others are built from its class and arguments.
        size: K, number of members, at least 1.
        aggregate: Mean, lower confidence bound (mean − ``coefficient`` · deviation over members), or the worst member.
        coefficient: Factor of the deviation in the lower bound, at least 0.
        bootstrap: Give every member its own weights of the episodes.
        bound: Whether a lower bound or the worst member is taken of the reward summed so far, or of each step's.
        spread: Definition of ``std``. ``"predictive"`` is the deviation of the mixture of the members' predictions:
            their disagreement, and the spread that each predicts. ``"members"`` is the disagreement alone, which falls
            with more data. ``"levels"`` is √(v_t + v_{t+1}), with v the members' variance of progress (of success,
            without progress) at both ends. Members often agree that nothing changes while they disagree on where the
            row is, so this one rises most far from the data.
        seed: Random seed of the bootstrap, at least 0; initial weights come from torch's generator, as for any module.

    Raises:
        ValueError: If an argument is out of its range, or the member has nothing to train.
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
                f"{type(member).__name__} has nothing to train, so all members would predict the same: give the "
                "ensemble a model that learns"
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
        """Inputs that every member reads."""
        return inputs_of(self._models()[0])

    @property
    def normalised(self) -> bool:
        """Whether the statistics of every member are known."""
        return all(member.normalised for member in self.members if isinstance(member, Normalised))

    @torch.no_grad()
    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Fit the statistics of the first member and copy them to the others, so that the data are read once.

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

    def _prepared(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Move a batch to the members' device and add the features of a shared encoder, so that none encodes again."""
        parameter = next(self.parameters(), None)
        if parameter is None:  # members are not built before a data set names a size
            require_sizes(self)
        elif batch.mask.device != parameter.device:
            batch = batch.to(parameter.device)
        return with_features(batch, self.inputs)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate with every member and aggregate.

        Returns:
            ``std`` is the deviation of the step's reward, whatever ``aggregate`` and ``bound`` are.

        Raises:
            ValueError: If ``spread`` is ``"levels"`` and the members estimate neither progress nor success.
        """
        scored = self.estimate_members(batch)
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

    def estimate_members(self, batch: TrajectoryBatch) -> list[RewardEstimates]:
        """Estimate with every member by itself; a shared encoder encodes the batch once.

        Args:
            batch: Trajectories.
        """
        batch = self._prepared(batch)
        return [member(batch) for member in self._models()]

    def weigh_members(self, keys: Int[Tensor, " P"]) -> Float[Tensor, "K P"]:
        """Draw how often each member counts each sample in training; all count once without ``bootstrap``.

        Args:
            keys: Key of each sample: equal keys get equal weights.
        """
        if not (self.bootstrap and self.training):
            return torch.ones(len(self.members), len(keys))
        return torch.stack([bootstrap_weights(keys, place, self.seed) for place in range(len(self.members))])

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the mean of the members' losses, and of the parts of the same name.

        Members share no trained weight. With an optimizer that is invariant to the scale of gradients, such as Adam,
        each member therefore learns as it would alone.
        """
        batch = self._prepared(batch)
        parts = [member.loss(self._resampled(batch, place)) for place, member in enumerate(self._models())]
        return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}

    def _resampled(self, batch: TrajectoryBatch, place: int) -> TrajectoryBatch:
        if not (self.bootstrap and self.training):
            return batch
        times = bootstrap_weights(batch.episode, place, self.seed).to(batch.weight)
        if bool((times > 0).any()):  # heads that compare rows, such as a preference head, must not meet rows left out
            batch, times = batch[times > 0], times[times > 0]
        return replace(batch, weight=batch.weight * times[:, None])


def aggregate_rewards(
    rewards: Float[Tensor, "K B T"], aggregate: Aggregate = "mean", coefficient: float = 1.0, bound: Bound = "total"
) -> Float[Tensor, "B T"]:
    """Aggregate the rewards of K members into one reward per step.

    With ``bound="step"`` it is f(r_1t, …, r_Kt): the mean, mean − c · deviation (over the K members, ddof = 0), or the
    smallest. With ``bound="total"`` it is the change of f(G_1t, …, G_Kt), where G_kt sums member k's rewards up to step
    t. For the mean both are the same. For the others they differ, and a bound on the total is the one to learn from:

    * Where rewards are changes of a potential, G_kt = Φ_k,t+1 − Φ_k,0. The bound on the total bounds the potential and
      pays its change, so a state that members disagree on is penalised once, while the policy is there. Bounds on
      single changes add up instead: Σ_t (mean − c · deviation) falls by c · deviation at *every* step, and standing
      still pays best.
    * Where members pay a success once, but not on the same step, the smallest reward of every single step is 0. The
      smallest total rises at the step at which the last member has paid.

    The sum over a row is never smaller with ``"total"`` than with ``"step"``: the deviation of a sum is at most the sum
    of the deviations, and the smallest sum is at least the sum of the smallest.

    Args:
        rewards: Rewards of the members; unknown steps hold 0.
        aggregate: See `EnsembleReward`.
        coefficient: c, factor of the deviation, at least 0.
        bound: See `EnsembleReward`.
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
    """Compute the standard deviation of an evenly weighted mixture of K predictions, by the law of total variance.

    σ² = mean_k(σ_k²) + var_k(μ_k), the variance of the means with ddof = 0, because the K members are the whole mixture
    and no sample of one (Lakshminarayanan et al. 2017, arXiv:1612.01474, §2.4). Equal members give their own deviation.

    Args:
        means: Prediction of each member.
        stds: Standard deviation that each member predicts; None leaves the first part out.
    """
    variance = means.double().var(0, correction=0)
    if stds is not None:
        variance = variance + stds.double().square().mean(0)
    return variance.sqrt().to(means.dtype)


def with_features(batch: TrajectoryBatch, inputs: ModelInputs) -> TrajectoryBatch:
    """Add to a batch the features of a frozen encoder that it does not hold yet.

    Args:
        batch: Trajectories with frames or features.
        inputs: Inputs of the models; without a frozen encoder the batch is returned as it is.
    """
    if inputs.encoder is None:
        return batch
    found: dict[str, Sampled] = {}
    for camera in inputs.cameras:
        name, frames = f"{inputs.encoder.name}/{camera}", batch.frames.get(camera)
        if name not in batch.features and frames is not None:
            found[name] = encode_frames(inputs.encoder, frames)
    return replace(batch, features={**batch.features, **found}) if found else batch


def build_afresh(component: nn.Module, _built: dict[int, nn.Module] | None = None) -> nn.Module:
    """Build another component of the same class and arguments, with initial weights of its own.

    Frozen encoders among the arguments are passed on as they are. Other components are built afresh too; one that is
    used twice is built once.
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
    """Average over the members in float64, so that the mean of K equal numbers is that number."""
    return values.double().mean(0).to(values.dtype)


def _mean_column(columns: Sequence[Labelled | None]) -> Labelled | None:
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return None
    valid = torch.stack([column.valid for column in known]).all(0)
    values = _mean(torch.stack([column.values.float() for column in known]))
    return Labelled(values=torch.where(valid, values, 0.0), valid=valid)


__all__ = ["EnsembleReward", "aggregate_rewards", "bootstrap_weights", "mixture_std"]
