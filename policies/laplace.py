"""A Laplace policy over chunks of continuous actions."""

from .chunks import PerceptronPolicy
from .distributions import LaplaceActions


class LaplacePolicy(PerceptronPolicy):
    """Laplace policy that predicts the mean of H actions at once and executes the first ``execute`` of them.

    It is the stochastic form of a head that imitates by absolute errors, as RIPT-VLA (arXiv 2505.17016) makes one of
    OpenVLA-OFT: the mean's network is trained by absolute errors, the scale by negative log-likelihood with the mean
    detached, rollouts are sampled, and evaluations take the mean.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Number H of steps in a chunk.
        execute: Number of steps executed before the next decision, 1 … H.
        hidden: Widths of the hidden layers (tanh).
        log_scale: Initial logarithm of the scale b of every action dimension, within ``log_scale_range``; the standard
            deviation is √2·b. Or a network that predicts it from the inputs.
        log_scale_range: Lowest and highest logarithm of the scale, in every use.
        feature_sizes: Width of every frozen feature that is read in addition to the state, by its name
            ``encoder/camera``; a width of None is taken from the data.

    Raises:
        ValueError: If an argument makes no sense.
    """

    kind = LaplaceActions


__all__ = ["LaplacePolicy"]
