"""A Gaussian policy over chunks of continuous actions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.perceptron import Inputs, tanh_network
from ..core.batch import Decision, Evaluation, Observation
from ..core.interfaces import Policy
from ..core.sizes import known_features, require_sizes

LOG_STD_RANGE = (-4.0, 0.5)


class GaussianPolicy(Policy):
    """Gaussian policy that predicts the mean of H actions at once and executes the first ``execute`` of them.

    The log-probability has one unit per action dimension, H·A in all; units of steps that were not executed are masked.
    Sampling, log-probability and entropy use the same mean and standard deviation. The sample is kept as drawn:
    clipping to the bounds is up to the environment.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Number H of steps in a chunk.
        execute: Number of steps executed before the next decision, 1 … H.
        hidden: Widths of the hidden layers (tanh).
        log_std: Initial logarithm of the standard deviation of every action dimension, within ``log_std_range``.
        log_std_range: Lowest and highest logarithm of the standard deviation, in every use. A learned one that reaches
            a bound comes back as soon as its gradient points inside.
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
        log_std: float = -1.0,
        log_std_range: Sequence[float] = LOG_STD_RANGE,
        feature_sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= execute <= horizon:
            raise ValueError(f"expected 1 <= execute <= horizon, got execute={execute}, horizon={horizon}")
        if action_size is not None and action_size < 1:
            raise ValueError(f"action_size {action_size}: expected at least one action dimension")
        self.state_size, self.action_size = state_size, action_size
        self.horizon, self.execute = horizon, execute
        low, high = float(log_std_range[0]), float(log_std_range[1])
        if not low <= log_std <= high:
            raise ValueError(
                f"log_std {log_std}, log_std_range ({low}, {high}): expected the initial log_std between the bounds, "
                "the lower one first; widen the range, or start within it"
            )
        self.log_std_range = (low, high)
        features = known_features(feature_sizes)
        if state_size is None or action_size is None or features is None:
            return
        self.inputs = Inputs(state_size, features)
        self.network = tanh_network(self.inputs.width, hidden, horizon * action_size, last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((horizon, action_size), float(log_std)))

    @classmethod
    def renewed(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Clamp an initial ``log_std`` outside of its range, which version 0.1 accepted and never used."""
        if "log_std" not in args:  # of a subclass, whose constructor may not have it
            return dict(args)
        low, high = args.get("log_std_range", LOG_STD_RANGE)
        return {**args, "log_std": min(max(args["log_std"], low), high)}

    def distribution(self, observation: Observation) -> tuple[Float[Tensor, "M H A"], Float[Tensor, "H A"]]:
        """Compute the mean of every action and the (state-independent) logarithm of its standard deviation.

        Raises:
            ValueError: If a size is not known, or an input has another width or is missing.
        """
        if "inputs" not in self._modules:
            require_sizes(self)
        inputs = self.inputs(observation)
        # lower precision while learning than while acting would move every ratio of probabilities away from 1
        with torch.autocast(inputs.device.type, enabled=False):
            mean = self.network(inputs)
        return mean.unflatten(1, (self.horizon, -1)), within(self.log_std, *self.log_std_range)

    @torch.no_grad()
    def act(
        self, observation: Observation, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> Decision:
        """Sample a chunk, or take its mean; noise is drawn on the generator's device."""
        mean, log_std = self.distribution(observation)
        chunk = mean
        if not deterministic:
            place = mean.device if generator is None else generator.device
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=place)
            chunk = mean + noise.to(mean.device) * log_std.exp()
        executed = torch.full((len(chunk),), self.execute, device=chunk.device)
        return Decision(chunk=chunk, executed=executed, log_prob=_log_density(chunk, mean, log_std).flatten(1))

    def evaluate(self, observation: Observation, decision: Decision) -> Evaluation:
        """Compute the log-density of every unit of earlier chunks, and the entropy of the steps that were executed.

        ``hidden`` is the last hidden layer (the standardised inputs, if there is none), for a value head on the policy.
        """
        hidden: list[Tensor] = []
        if "network" not in self._modules:
            require_sizes(self)
        # not returned by ``distribution``, which a subclass with inputs of its own overrides
        seen = self.network[-1].register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
        try:
            mean, log_std = self.distribution(observation)
        finally:
            seen.remove()
        self._check(decision.chunk)
        executed = self._executed(decision.executed)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(1)
        return Evaluation(
            log_prob=_log_density(decision.chunk, mean, log_std).flatten(1),
            unit_mask=executed[..., None].expand_as(mean).flatten(1),
            entropy=(executed * entropy).sum(1),
            hidden=hidden[-1] if hidden else None,
        )

    def imitation_loss(
        self, observation: Observation, chunk: Float[Tensor, "M H A"], chunk_mask: Bool[Tensor, "M H"]
    ) -> Float[Tensor, " M"]:
        """Compute the squared error of the mean against the logged actions, averaged over each chunk's real steps.

        The standard deviation is not trained: maximum likelihood on a handful of demonstrations would shrink it to
        almost nothing, and with it the exploration that reinforcement learning starts from.
        """
        mean, _ = self.distribution(observation)
        self._check(chunk)
        # masked before the square: a NaN behind the mask would come back in the gradient
        error = (mean - chunk).masked_fill(~chunk_mask[..., None], 0.0).square().mean(2)
        return error.sum(1) / chunk_mask.sum(1).clamp(min=1)

    def _executed(self, executed: Tensor) -> Tensor:
        return torch.arange(self.horizon, device=executed.device)[None] < executed[:, None]

    def _check(self, chunk: Tensor) -> None:
        if tuple(chunk.shape[1:]) != (self.horizon, self.action_size):
            got = tuple(chunk.shape[1:])
            raise ValueError(
                f"expected chunks of {self.horizon} steps, {self.action_size} dimensions each, got {got}: the chunks "
                "are another policy's, or another robot's"
            )


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


def _log_density(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Compute the elementwise log-density of a Gaussian."""
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
