"""Vision-language-action policies: tokens of a backbone, pooled by attention, and a perceptron over chunks."""

from collections.abc import Sequence
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.latent_cache import LatentCache
from ..backbones.pooled_tokens import PooledTokens
from ..backbones.token_learner import TokenLearner
from ..backbones.token_states import TokenBackbone
from ..core.batch import Observation
from .chunks import LOG_SCALE_RANGE, ChunkPolicy, ScaleHead
from .distributions import GaussianActions, LaplaceActions

Head = Literal["gaussian", "laplace"]


class VLAPolicy(PooledTokens, ChunkPolicy):
    """Policy of iRe-VLA (arXiv 2501.16664): backbone θ, token learner and perceptron φ, over chunks of actions.

    The backbone reads pictures and the instruction (and the state, if it is an `EncoderBackbone` that does); the token
    learner pools its tokens into one vector; a perceptron turns that into the mean of H actions. Parts to freeze or to
    give learning rates of their own are ``backbone``, ``token_learner``, ``network``, and ``log_std`` or ``scale``.
    While the backbone is frozen it runs in evaluation mode and without gradients.

    The hidden state, for a value head on the policy, is what ``network`` reads.

    Args:
        backbone: Backbone, which learns unless it is frozen.
        state_size: Width S of the state that the perceptron reads beside the pooled tokens, as proprioception; 0 reads
            none, None takes it from the data. The backbone does not see it, so a cache need not tell states apart.
        action_size: Width A of an action; None takes it from the data.
        horizon: Number H of steps in a chunk.
        execute: Number of steps executed before the next decision, 1 … H.
        head: Distribution of the actions: ``"gaussian"``, cloned by squared errors, or ``"laplace"``, by absolute ones.
        hidden: Widths of the hidden layers (tanh) of the perceptron.
        log_scale: Initial logarithm of the scale of every action dimension, within ``log_scale_range``; or a network
            that predicts it.
        token_learner: Pooling of the tokens; None takes the defaults of `TokenLearner`.
        cache: Cache of the tokens, used while the backbone is frozen and passed by while it learns; None encodes every
            observation anew.
        log_scale_range: Lowest and highest logarithm of a scale that is one number per action dimension, in every use.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        backbone: TokenBackbone,
        state_size: int | None = 0,
        action_size: int | None = None,
        horizon: int = 1,
        execute: int = 1,
        head: Head = "gaussian",
        hidden: Sequence[int] = (256,),
        log_scale: float | ScaleHead = -1.0,
        token_learner: TokenLearner | None = None,
        cache: LatentCache | None = None,
        log_scale_range: Sequence[float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__(
            action_size=action_size,
            horizon=horizon,
            execute=execute,
            log_scale=log_scale,
            log_scale_range=log_scale_range,
        )
        if head not in get_args(Head):
            raise ValueError(f"head {head!r}: expected {' or '.join(get_args(Head))}")
        self.kind = GaussianActions if head == "gaussian" else LaplaceActions
        self.build_reader(backbone, state_size, token_learner, cache)
        if state_size is not None and action_size is not None:
            self.build_head(self.pooled_width, hidden)

    @property
    def _reads_hidden(self) -> nn.Sequential:
        return self.network[:1]

    def encoded(self, observation: Observation) -> Float[Tensor, "M W"]:
        """Pool the backbone's tokens, and append the standardised state where it is read.

        Raises:
            ValueError: If an input has another width or is missing.
        """
        return self.pooled(observation)


__all__ = ["VLAPolicy"]
