"""State values on a backbone of their own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.latent_cache import LatentCache
from ..backbones.perceptron import Inputs, tanh_network
from ..backbones.pooled_tokens import PooledTokens
from ..backbones.token_learner import TokenLearner
from ..backbones.token_states import TokenBackbone
from ..core.batch import Observation, TrajectoryBatch
from ..core.sizes import require_sizes
from .value import Cuts, ValueFunction


class BackboneValue(PooledTokens, ValueFunction):
    """State value V(s): tokens of a backbone, pooled by attention, then a perceptron; trained with squared errors.

    The backbone is the value's own: what the value learns does not move the policy, and a policy that learns does not
    move the value. How far a batch of texts is padded does not change a value.

    Args:
        backbone: Backbone, which learns unless it is frozen.
        state_size: Width S of the state that the perceptron reads beside the pooled tokens, as proprioception; 0 reads
            none, None takes it from the data.
        hidden: Widths of the hidden layers (tanh).
        token_learner: Pooling of the tokens; None takes the defaults of `TokenLearner`.
        cache: Cache of the tokens, used while the backbone is frozen; None encodes every observation anew.
        gamma: Discount factor per step of the targets that ``loss`` computes, in [0, 1].
        lam: Parameter λ of TD(λ), in [0, 1]: 1 is Monte-Carlo, 0 is one-step TD.
        cuts: Treatment of rows that did not terminate: ``"bootstrap"``, ``"leave_out"`` or ``"end"``; see
            `ValueFunction`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    scalar = True

    def __init__(
        self,
        backbone: TokenBackbone,
        state_size: int | None = 0,
        hidden: Sequence[int] = (256,),
        token_learner: TokenLearner | None = None,
        cache: LatentCache | None = None,
        gamma: float = 0.99,
        lam: float = 0.95,
        cuts: Cuts = "bootstrap",
    ) -> None:
        super().__init__(gamma=gamma, lam=lam, cuts=cuts)
        self.build_reader(backbone, state_size, token_learner, cache)
        if state_size is not None:
            self.network = tanh_network(self.pooled_width, hidden, 1, last_gain=1.0)

    @torch.no_grad()
    def fit_scales(self, batch: TrajectoryBatch) -> None:
        """Compute the scales of the states from the observations of a batch that were really made.

        Scales of the backbone that are fitted already stay as they are: it was trained with them.

        Raises:
            ValueError: If there is no observation, an input is not finite, or the size of the state is not known.
        """
        require_sizes(self)
        rows, steps = batch.made.nonzero(as_tuple=True)
        observation = batch.observe(rows, steps)
        if self.state_size:
            self.proprioception.fit(observation)
        for part in self.backbone.modules():
            if isinstance(part, Inputs) and not bool(part.fitted):
                part.fit(observation)

    def value(self, observation: Observation) -> Float[Tensor, " M"]:
        """Estimate the value of M observations, in float32 whatever the precision of the backbone, and under autocast.

        Raises:
            ValueError: If a size is not known, or an input has another width or is missing.
        """
        if "network" not in self._modules:
            require_sizes(self)
        with torch.autocast(self.token_learner.queries.device.type, enabled=False):
            return self.network(self.pooled(observation)).squeeze(1).float()

    def loss_of(
        self, observation: Observation, targets: Float[Tensor, " M"]
    ) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"], dict[str, Tensor]]:
        """Compute the squared errors, and the values; no further metric."""
        values = self.value(observation)
        return (values - targets).square(), values, {}


__all__ = ["BackboneValue"]
