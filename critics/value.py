"""State values, learned from Monte-Carlo returns or TD(λ) targets."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbones.model_inputs import ModelInputs
from ..backbones.perceptron import Inputs, tanh_network
from ..core.batch import Observation, RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Critic, Proposer
from ..core.returns import gae
from ..core.sizes import known_features, require_sizes

Cuts = Literal["bootstrap", "leave_out", "end"]


class ValueFunction(Critic):
    """Base of the values of observations; a subclass writes ``value`` and ``loss_of``.

    Targets are λ-returns (Schulman et al. 2016, arXiv 1506.02438, equation 16): λ = 1 is Monte-Carlo, λ = 0 one-step
    TD. Where a row ends without having terminated (a window, a fragment, a time limit that does not terminate) its
    return is not known, and ``cuts`` chooses what to do about it.

    Args:
        gamma: Discount factor per step of the targets that ``loss`` computes, in [0, 1].
        lam: Parameter λ of the targets, in [0, 1].
        cuts: Treatment of rows that did not terminate. ``"bootstrap"`` continues them by their own value;
            ``"leave_out"`` leaves their steps out, as it does every step whose return includes an unknown reward;
            ``"end"`` takes them to be over.

    Raises:
        ValueError: If an argument makes no sense.
    """

    scalar: bool = False
    """Whether the value is one number that is regressed on the targets, so that `guerdon.ValueLoss` applies."""

    def __init__(self, gamma: float, lam: float, cuts: Cuts) -> None:
        super().__init__()
        if not (0 <= gamma <= 1 and 0 <= lam <= 1) or cuts not in get_args(Cuts):
            raise ValueError(
                f"gamma {gamma}, lam {lam}, cuts {cuts!r}: expected numbers in [0, 1], and one of "
                f"{', '.join(get_args(Cuts))}"
            )
        self.gamma, self.lam = gamma, lam
        self.cuts: Cuts = cuts

    def value(self, observation: Observation) -> Float[Tensor, " M"]:
        """Estimate the value of M observations, in float32 whatever the precision of the network."""
        raise NotImplementedError(f"{type(self).__name__} values nothing: write value(observation)")

    def loss_of(
        self, observation: Observation, targets: Float[Tensor, " M"]
    ) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"], dict[str, Tensor]]:
        """Compute the loss at each of M observations, their values, and metrics."""
        raise NotImplementedError(f"{type(self).__name__} does not learn: write loss_of(observation, targets)")

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """Estimate the value of every real observation; padding gets 0."""
        real = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)[None] <= batch.steps[:, None]
        rows, steps = real.nonzero(as_tuple=True)
        values = torch.zeros(real.shape, device=batch.state.device)
        return ValueEstimates(v=values.index_put((rows, steps), self.value(batch.observe(rows, steps))))

    @torch.no_grad()
    def targets(
        self, batch: TrajectoryBatch, rewards: RewardEstimates
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Compute λ-returns, and a mask of the steps that can be learned from.

        An unknown reward gets a TD error of 0, and its own step is not learned from. A step into an observation that
        was never made cannot be continued: its reward counts as unknown, unless the row is over.

        Raises:
            ValueError: If a known reward is NaN or infinite.
        """
        values = self.forward(batch).v
        over = batch.terminated | (self.cuts == "end")
        last = _last(batch)
        known = rewards.valid & batch.mask & ~(last & ~batch.last_observed[:, None] & ~over[:, None])
        after = values[:, 1:].masked_fill(last & over[:, None], 0.0)
        filled = torch.where(known, rewards.rewards, values[:, :-1] - self.gamma * after)
        found = gae(filled, values, batch.mask, over, self.gamma, self.lam).returns
        if self.cuts == "leave_out":
            known = known_returns(batch, known)
        return found, known

    def loss(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted mean loss over the steps that can be learned from, and metrics; 0 if there is none.

        Raises:
            ValueError: If a known reward is NaN or infinite.
        """
        targets, counted = self.targets(batch, rewards)
        rows, steps = (counted & (batch.weight > 0)).nonzero(as_tuple=True)
        if not len(rows):
            return {"loss": torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0}
        target, weight = targets[rows, steps], batch.weight[rows, steps]
        each, values, metrics = self.loss_of(batch.observe(rows, steps), target)
        values = values.detach()
        metrics = {**metrics, "td_error": (values - target).abs().mean(), "v": values.mean(), "target": target.mean()}
        return {"loss": (each * weight).sum() / weight.sum().clamp(min=1e-8), **metrics}


class StateCritic(ValueFunction):
    """Base of the values of observations by a perceptron; a subclass writes ``value`` and ``loss_of``.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        hidden: Widths of the hidden layers (tanh).
        feature_sizes: Width of every frozen feature that is read in addition to the state, by its name
            ``encoder/camera``; a width of None is taken from the data.
        outputs: Number of outputs of the network.
        gamma: Discount factor per step of the targets that ``loss`` computes, in [0, 1].
        lam: Parameter λ of the targets, in [0, 1].
        cuts: Treatment of rows that did not terminate: ``"bootstrap"``, ``"leave_out"`` or ``"end"``; see
            `ValueFunction`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        state_size: int | None,
        hidden: Sequence[int],
        feature_sizes: Mapping[str, int | None] | None,
        outputs: int,
        gamma: float,
        lam: float,
        cuts: Cuts,
    ) -> None:
        super().__init__(gamma=gamma, lam=lam, cuts=cuts)
        self.state_size = state_size
        features = known_features(feature_sizes)
        if state_size is not None and features is not None:
            self.reads = Inputs(state_size, features)
            self.network = tanh_network(self.reads.width, hidden, outputs, last_gain=1.0)

    @property
    def inputs(self) -> ModelInputs:
        """What the critic reads of a trajectory, without the features that it names."""
        return ModelInputs(state_size=self.state_size or 0)

    @torch.no_grad()
    def fit_scales(self, batch: TrajectoryBatch) -> None:
        """Compute the scales of states and features from the observations of a batch that were really made.

        Raises:
            ValueError: If there is no observation, an input is not finite, or the size of the state is not known.
        """
        require_sizes(self)
        rows, steps = batch.made.nonzero(as_tuple=True)
        self.reads.fit(batch.observe(rows, steps))

    def outputs(self, observation: Observation) -> Float[Tensor, "M outputs"]:
        """Return the outputs of the network for M observations.

        Raises:
            ValueError: If the size of the state is not known, or an input has another width or is missing.
        """
        if "reads" not in self._modules:
            require_sizes(self)
        return self.network(self.reads(observation))


class ValueCritic(StateCritic):
    """State value V(s): a perceptron on state and frozen features, trained with squared errors.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        hidden: Widths of the hidden layers (tanh).
        feature_sizes: Width of every frozen feature that is read in addition to the state, by its name
            ``encoder/camera``; a width of None is taken from the data.
        gamma: Discount factor per step of the targets that ``loss`` computes, in [0, 1].
        lam: Parameter λ of TD(λ), in [0, 1]: 1 is Monte-Carlo, 0 is one-step TD.
        cuts: Treatment of rows that did not terminate: ``"bootstrap"``, ``"leave_out"`` or ``"end"``; see
            `ValueFunction`.
    """

    scalar = True

    def __init__(
        self,
        state_size: int | None = None,
        hidden: Sequence[int] = (128, 128),
        feature_sizes: Mapping[str, int | None] | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
        cuts: Cuts = "bootstrap",
    ) -> None:
        super().__init__(
            state_size=state_size,
            hidden=hidden,
            feature_sizes=feature_sizes,
            outputs=1,
            gamma=gamma,
            lam=lam,
            cuts=cuts,
        )

    def value(self, observation: Observation) -> Float[Tensor, " M"]:
        """Estimate the value of M observations, in float32 whatever the precision of the network."""
        return self.outputs(observation).squeeze(1).float()

    def loss_of(
        self, observation: Observation, targets: Float[Tensor, " M"]
    ) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"], dict[str, Tensor]]:
        """Compute the squared errors, and the values; no further metric."""
        values = self.value(observation)
        return (values - targets).square(), values, {}


def known_returns(batch: TrajectoryBatch, known: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Find the steps whose return is known: the row terminated, and every reward from there on is known."""
    return known_onwards(batch, known) & batch.terminated[:, None]


def known_onwards(batch: TrajectoryBatch, known: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Find the real steps from which on every reward of the row is known."""
    return (known | ~batch.mask).flip(1).cummin(1).values.flip(1) & batch.mask


def _last(batch: TrajectoryBatch) -> Tensor:
    """Find the last real step of every row."""
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    return index[None] == (batch.steps - 1)[:, None]


__all__ = ["Cuts", "StateCritic", "ValueCritic", "ValueFunction", "known_onwards", "known_returns"]
