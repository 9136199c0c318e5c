"""A Gaussian policy over chunks of continuous actions."""

from collections.abc import Mapping, Sequence
from typing import Any

from .chunks import LOG_SCALE_RANGE as LOG_STD_RANGE
from .chunks import PerceptronPolicy, ScaleHead, within
from .distributions import GaussianActions


class GaussianPolicy(PerceptronPolicy):
    """Gaussian policy that predicts the mean of H actions at once and executes the first ``execute`` of them.

    The log-probability has one unit per action dimension, H·A in all; units of steps that were not executed are masked.
    Sampling, log-probability and entropy use the same mean and standard deviation. The sample is kept as drawn:
    clipping to the bounds is up to the environment. Imitation minimises squared errors.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Number H of steps in a chunk.
        execute: Number of steps executed before the next decision, 1 … H.
        hidden: Widths of the hidden layers (tanh).
        log_std: Initial logarithm of the standard deviation of every action dimension, within ``log_std_range``; or a
            network that predicts it from the inputs.
        log_std_range: Lowest and highest logarithm of the standard deviation, in every use. A learned one that reaches
            a bound comes back as soon as its gradient points inside.
        feature_sizes: Width of every frozen feature that is read in addition to the state, by its name
            ``encoder/camera``; a width of None is taken from the data.

    Raises:
        ValueError: If an argument makes no sense.
    """

    kind = GaussianActions

    def __init__(
        self,
        state_size: int | None = None,
        action_size: int | None = None,
        horizon: int = 1,
        execute: int = 1,
        hidden: Sequence[int] = (128, 128),
        log_std: float | ScaleHead = -1.0,
        log_std_range: Sequence[float] = LOG_STD_RANGE,
        feature_sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__(
            state_size=state_size,
            action_size=action_size,
            horizon=horizon,
            execute=execute,
            hidden=hidden,
            log_scale=log_std,
            log_scale_range=log_std_range,
            feature_sizes=feature_sizes,
        )

    @classmethod
    def renewed(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Clamp an initial ``log_std`` outside of its range, which version 0.1 accepted and never used."""
        start = args.get("log_std")  # a subclass may not have it
        if not isinstance(start, float | int):
            return dict(args)
        low, high = args.get("log_std_range", LOG_STD_RANGE)
        return {**args, "log_std": min(max(start, low), high)}


__all__ = ["LOG_STD_RANGE", "GaussianPolicy", "within"]
