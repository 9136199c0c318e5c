"""What policies and values on a backbone share: its tokens pooled into one vector, with the state appended."""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.batch import Observation
from .latent_cache import LatentCache, tokens_from
from .model_inputs import ModelInputs
from .perceptron import Inputs
from .token_learner import TokenLearner
from .token_states import TokenBackbone

P = TypeVar("P", bound="PooledTokens")


class PooledTokens(nn.Module):
    """Base of what reads observations through a backbone and a token learner; a subclass calls ``build_reader``."""

    backbone: TokenBackbone
    token_learner: TokenLearner
    cache: LatentCache | None
    state_size: int | None

    def build_reader(
        self,
        backbone: TokenBackbone,
        state_size: int | None,
        token_learner: TokenLearner | None,
        cache: LatentCache | None,
    ) -> None:
        """Take the parts, and build what depends on their sizes.

        Args:
            backbone: Backbone.
            state_size: Width S of the state that is appended; 0 appends none, None is not known yet.
            token_learner: Pooling of the tokens; None takes the defaults of `TokenLearner`.
            cache: Cache of the tokens of a frozen backbone; None keeps nothing.
        """
        self.backbone, self.state_size, self.cache = backbone, state_size, cache
        self.token_learner = TokenLearner() if token_learner is None else token_learner
        self.token_learner.build(backbone.width)
        if state_size:
            self.proprioception = Inputs(state_size)

    @property
    def pooled_width(self) -> int:
        """Width W of what ``pooled`` returns; the size of the state must be known."""
        return self.token_learner.output_width + (self.state_size or 0)

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that are read."""
        read = self.backbone.inputs
        return ModelInputs(
            state_size=self.state_size or read.state_size,
            cameras=read.cameras,
            encoder=read.encoder,
            instruction=read.instruction,
        )

    def requires_grad_(self: P, requires_grad: bool = True) -> P:
        """Freeze or unfreeze all parts; published weights of the backbone stay frozen."""
        super().requires_grad_(requires_grad)
        self.backbone.requires_grad_(requires_grad)
        return self

    def pooled(self, observation: Observation) -> Float[Tensor, "M W"]:
        """Pool the backbone's tokens, and append the standardised state where it is read.

        Raises:
            ValueError: If an input has another width or is missing.
        """
        # another precision while learning than while acting would move every ratio of probabilities away from 1
        with torch.autocast(self.token_learner.queries.device.type, enabled=False):
            tokens = tokens_from(self.backbone, observation, self.cache)
            pooled = self.token_learner(tokens.hidden, tokens.mask)
            return torch.cat([pooled, self.proprioception(observation)], 1) if self.state_size else pooled


__all__ = ["PooledTokens"]
