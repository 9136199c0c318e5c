"""Bases of policies that predict chunks of continuous actions from one vector per observation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.perceptron import Inputs, tanh_network
from ..core.batch import Decision, Evaluation, Observation
from ..core.interfaces import Component, Policy
from ..core.sizes import known_features, require_sizes
from .distributions import ActionDistribution

LOG_SCALE_RANGE = (-4.0, 0.5)


class ScaleHead(Component):
    """Network that predicts the logarithm of the scale of every action dimension (RIPT-VLA, arXiv 2505.17016).

    It reads what the mean's network reads and shares no weight with it. Imitation trains it by negative log-likelihood
    with the mean detached, so that it never moves the mean. Freeze it in reinforcement learning, as RIPT-VLA does, with
    ``frozen_parts`` of `guerdon.PolicyAdam`.

    Args:
        hidden: Widths of the hidden layers (tanh).
        start: Logarithm of the scale before training, within the bounds.
        low: Lowest logarithm of the scale, in every use.
        high: Highest logarithm of the scale, in every use.
        factor: Factor of the scale after the bounds, above 0, in the sample and in its likelihood alike; above 1 it
            explores more.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        start: float | int = -1.0,
        low: float | int = -2.0,
        high: float | int = 0.5,
        factor: float | int = 1.0,
    ) -> None:
        super().__init__()
        if not (low <= start <= high and 0 < factor < math.inf):
            raise ValueError(
                f"start {start}, low {low}, high {high}, factor {factor}: expected a start between the bounds, and a "
                "positive factor"
            )
        self.hidden, self.start, self.low, self.high, self.factor = tuple(hidden), start, low, high, factor

    def build(self, width: int, outputs: int) -> None:
        """Build the network; one that is there already and has these sizes stays.

        Args:
            width: Width of what it reads.
            outputs: Number of action dimensions of a chunk.

        Raises:
            ValueError: If it was built with other sizes, for another policy.
        """
        if "network" in self._modules:
            first, last = cast(nn.Linear, self.network[0]), cast(nn.Linear, self.network[-1])
            if (first.in_features, last.out_features) != (width, outputs):
                raise ValueError(
                    f"this ScaleHead reads {first.in_features} numbers and predicts {last.out_features}, and was asked "
                    f"to read {width} and predict {outputs}: give each policy a ScaleHead of its own"
                )
            return
        self.network = tanh_network(width, self.hidden, outputs, last_gain=0.01)
        nn.init.constant_(cast(nn.Linear, self.network[-1]).bias, float(self.start))

    def forward(self, encoded: Float[Tensor, "M W"]) -> Float[Tensor, "M outputs"]:
        """Predict the logarithm of the scale, within the bounds, times the factor; no gradient reaches the input."""
        bounded = within(self.network(encoded.detach()), self.low, self.high)
        return bounded + math.log(self.factor)


class ChunkPolicy(Policy):
    """Policy that predicts H actions at once by a mean and a scale, and executes the first ``execute`` of them.

    A subclass writes ``encoded`` and calls ``build_head``. The log-probability has one unit per action dimension, H·A
    in all, in the order (step, dimension); units of steps that were not executed are masked. Sample, log-probability
    and entropy come from one distribution. The sample is kept as drawn: clipping to the bounds is up to the
    environment.

    Args:
        action_size: Width A of an action; None is filled in from the data.
        horizon: Number H of steps in a chunk.
        execute: Number of steps executed before the next decision, 1 … H.
        log_scale: Initial logarithm of the scale, of which one number is learned for every action dimension; or a
            network that predicts it from the observation.
        log_scale_range: Lowest and highest logarithm of such a number.

    Raises:
        ValueError: If an argument makes no sense.
    """

    kind: Callable[[Tensor, Tensor], ActionDistribution]
    """Class of the distribution: mean and logarithm of the scale in."""
    log_std: nn.Parameter
    """Logarithm of the scale (H, A), where it is the same in every state."""

    def __init__(
        self,
        action_size: int | None,
        horizon: int,
        execute: int,
        log_scale: float | ScaleHead = -1.0,
        log_scale_range: Sequence[float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        if not 1 <= execute <= horizon:
            raise ValueError(f"expected 1 <= execute <= horizon, got execute={execute}, horizon={horizon}")
        if action_size is not None and action_size < 1:
            raise ValueError(f"action_size {action_size}: expected at least one action dimension")
        low, high = float(log_scale_range[0]), float(log_scale_range[1])
        if not isinstance(log_scale, ScaleHead) and not low <= log_scale <= high:
            raise ValueError(
                f"log_std {log_scale}, log_std_range ({low}, {high}): expected the initial log_std between the bounds, "
                "the lower one first; widen the range, or start within it"
            )
        self.action_size, self.horizon, self.execute = action_size, horizon, execute
        self.log_std_range = (low, high)
        self.scale = log_scale if isinstance(log_scale, ScaleHead) else None
        self._start = 0.0 if isinstance(log_scale, ScaleHead) else float(log_scale)

    def build_head(self, width: int, hidden: Sequence[int]) -> None:
        """Build the networks of mean and scale.

        Args:
            width: Width of what ``encoded`` returns.
            hidden: Widths of the hidden layers of the mean's network (tanh).
        """
        assert self.action_size is not None
        outputs = self.horizon * self.action_size
        self.network = tanh_network(width, hidden, outputs, last_gain=0.01)
        if self.scale is None:
            self.log_std = nn.Parameter(torch.full((self.horizon, self.action_size), self._start))
        else:
            self.scale.build(width, outputs)

    def encoded(self, observation: Observation) -> Float[Tensor, "M W"]:
        """Compute the vector that the networks of mean and scale read."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing: write encoded(observation)")

    @property
    def hidden_size(self) -> int:
        """Width of the hidden state."""
        self._require_built()
        return cast(nn.Linear, self._reads_hidden[-1]).in_features

    @property
    def _reads_hidden(self) -> nn.Sequential:
        """The layers that follow the hidden state; here: the last layer of the mean's network."""
        return self.network

    def distribution(self, observation: Observation) -> ActionDistribution:
        """Compute the distribution of the chunk at each of M observations.

        Raises:
            ValueError: If a size is not known, or an input has another width or is missing.
        """
        self._require_built()
        inputs = self.encoded(observation)
        # lower precision while learning than while acting would move every ratio of probabilities away from 1
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.float()
            mean = self.network(inputs).unflatten(1, (self.horizon, -1))
            if self.scale is None:
                return self.kind(mean, within(self.log_std, *self.log_std_range))
            return self.kind(mean, self.scale(inputs).view_as(mean))

    @torch.no_grad()
    def act(
        self, observation: Observation, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> Decision:
        """Sample a chunk, or take its mean; noise is drawn on the generator's device."""
        actions = self.distribution(observation)
        chunk = actions.mean if deterministic else actions.sample(generator)
        executed = torch.full((len(chunk),), self.execute, device=chunk.device)
        return Decision(chunk=chunk, executed=executed, log_prob=actions.log_prob(chunk).flatten(1))

    def evaluate(self, observation: Observation, decision: Decision) -> Evaluation:
        """Compute the log-density of every unit of earlier chunks, and the entropy of the steps that were executed.

        ``hidden`` is the state that ``hidden`` returns, for a value head on the policy.

        Raises:
            ValueError: If the chunks have another shape.
        """
        actions, hidden = self._with_hidden(observation)
        self._check(decision.chunk)
        executed = torch.arange(self.horizon, device=decision.executed.device)[None] < decision.executed[:, None]
        # what was not executed may be anything, and a NaN behind the mask would come back in the gradient
        known = torch.where(executed[..., None] | decision.chunk.isfinite(), decision.chunk, actions.mean.detach())
        return Evaluation(
            log_prob=actions.log_prob(known).flatten(1),
            unit_mask=executed[..., None].expand_as(actions.mean).flatten(1),
            entropy=(executed * actions.entropy().sum(2)).sum(1),
            hidden=hidden,
        )

    def hidden(self, observation: Observation) -> Float[Tensor, "M D"]:
        """Compute the last hidden layer of the mean's network (its inputs, if there is none)."""
        return self._with_hidden(observation)[1]

    def _with_hidden(self, observation: Observation) -> tuple[ActionDistribution, Float[Tensor, "M D"]]:
        self._require_built()
        caught: list[Tensor] = []
        # not returned by ``distribution``, which a subclass with inputs of its own overrides
        last = self._reads_hidden[-1]
        seen = last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            return self.distribution(observation), caught[0]
        finally:
            seen.remove()

    def imitation_loss(
        self, observation: Observation, chunk: Float[Tensor, "M H A"], chunk_mask: Bool[Tensor, "M H"]
    ) -> Float[Tensor, " M"]:
        """Compute the error of the mean against the logged actions, averaged over each chunk's real steps.

        The error is squared for a Gaussian and absolute for a Laplace distribution. A scale that is one number per
        dimension is not trained: maximum likelihood on a handful of demonstrations would shrink it to almost nothing,
        and with it the exploration that reinforcement learning starts from. A network that predicts the scale is
        trained by the negative log-likelihood, which is added with the mean detached.

        Raises:
            ValueError: If the chunks have another shape.
        """
        actions = self.distribution(observation)
        self._check(chunk)
        # masked before the error: a NaN behind the mask would come back in the gradient
        logged = torch.where(chunk_mask[..., None], chunk, actions.mean.detach())
        error = actions.error(logged).mean(2)
        if self.scale is not None:
            around = self.kind(actions.mean.detach(), actions[1])
            error = error - around.log_prob(logged).mean(2)
        error = error.masked_fill(~chunk_mask, 0.0)
        return error.sum(1) / chunk_mask.sum(1).clamp(min=1)

    def _require_built(self) -> None:
        if "network" not in self._modules:
            require_sizes(self)

    def _check(self, chunk: Tensor) -> None:
        if tuple(chunk.shape[1:]) != (self.horizon, self.action_size):
            got = tuple(chunk.shape[1:])
            raise ValueError(
                f"expected chunks of {self.horizon} steps, {self.action_size} dimensions each, got {got}: the chunks "
                "are another policy's, or another robot's"
            )


class PerceptronPolicy(ChunkPolicy):
    """Chunk policy whose mean is a perceptron over state and frozen features.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Number H of steps in a chunk.
        execute: Number of steps executed before the next decision, 1 … H.
        hidden: Widths of the hidden layers (tanh).
        log_scale: Initial logarithm of the scale of every action dimension, within ``log_scale_range``; or a network
            that predicts it from the inputs.
        log_scale_range: Lowest and highest logarithm of the scale, in every use. A learned one that reaches a bound
            comes back as soon as its gradient points inside.
        feature_sizes: Width of every frozen feature that is read in addition to the state, by its name
            ``encoder/camera``; a width of None is taken from the data.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        state_size: int | None = None,
        action_size: int | None = None,
        horizon: int = 1,
        execute: int = 1,
        hidden: Sequence[int] = (128, 128),
        log_scale: float | ScaleHead = -1.0,
        log_scale_range: Sequence[float] = LOG_SCALE_RANGE,
        feature_sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__(
            action_size=action_size,
            horizon=horizon,
            execute=execute,
            log_scale=log_scale,
            log_scale_range=log_scale_range,
        )
        self.state_size = state_size
        features = known_features(feature_sizes)
        if state_size is None or action_size is None or features is None:
            return
        self.inputs = Inputs(state_size, features)
        self.build_head(self.inputs.width, hidden)

    def encoded(self, observation: Observation) -> Float[Tensor, "M W"]:
        """Standardise state and features.

        Raises:
            ValueError: If an input has another width or is missing.
        """
        return self.inputs(observation)


class _Within(torch.autograd.Function):
    """Clamp whose gradient is cut only where a step against it would lead further out."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        """Clamp values."""
        ctx.save_for_backward(values)
        ctx.bounds = (low, high)
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        """Pass the gradient inside the bounds, and outside of them where descent leads back."""
        values, grad = cast(Tensor, ctx.saved_tensors[0]), cast(Tensor, grads[0])
        low, high = ctx.bounds
        outwards = ((values >= high) & (grad < 0)) | ((values <= low) & (grad > 0))
        return grad.masked_fill(outwards, 0.0), None, None


def within(values: Float[Tensor, "*shape"], low: float | int, high: float | int) -> Float[Tensor, "*shape"]:
    """Clamp learned values to [low, high] so that one beyond a bound can come back.

    The gradient of ``Tensor.clamp`` is 0 outside: a parameter that a step took there would stay for good. Here it is 0
    only where gradient descent would lead further out.

    Args:
        values: Learned values.
        low: Lowest value.
        high: Highest value.
    """
    if values.device.type == "cpu" and bool(((values > low) & (values < high)).all()):
        return values  # the usual case, and on the host cheaper to see than a function of its own in the graph
    return cast(Tensor, _Within.apply(values, float(low), float(high)))  # pyright: ignore[reportUnknownMemberType]


__all__ = ["LOG_SCALE_RANGE", "ChunkPolicy", "PerceptronPolicy", "ScaleHead", "within"]
