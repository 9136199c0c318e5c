"""Preference transformer: non-Markovian rewards of a segment, weighted by attention."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.temporal import CausalTransformer
from ..core.batch import RewardEstimates, TrajectoryBatch
from .state_action import StateActionModel


class PreferenceTransformer(StateActionModel):
    """Weighted sum of non-Markovian rewards (Kim et al. 2023, arXiv 2303.00957, §3.2), to be trained from preferences.

    A causal transformer over the steps of a segment gives x_t, which knows states and actions up to step t. A linear
    map of x_t gives a query q_t, a key k_t and a reward r̂_t. The preference attention layer is not causal:

        z_i = Σ_t softmax_t(⟨q_i, k_t⟩ / √D) r̂_t,        score = (1/L) Σ_i z_i = Σ_t w_t r̂_t,
        w_t = (1/L) Σ_i softmax_t(⟨q_i, k_t⟩ / √D),      Σ_t w_t = 1,

    over the L real steps. The reward paid at step t is w_t r̂_t, so that the rewards of a row sum to its score (train it
    with ``reduce="sum"``). A weight depends on the whole row: the model is not causal, and scores finished rows. Its
    ``terms`` hold ``"reward"``, the causal r̂_t, which the paper pays to a policy, and ``"weight"``, w_t.

    It differs from the paper's code in three places: a step is one token [s_t, a_t] and not two, the inner products are
    divided by √D, as in any attention, and blocks are pre-norm. The score is an average and not a sum: it
    does not grow with the length of a segment.

    Args:
        state_size: S, numbers per state, at least 0; None takes that of the training data.
        action_size: A, numbers per action, at least 0; None takes that of the training data.
        width: D, numbers per hidden feature vector; even, and a multiple of ``heads``.
        layers: Blocks of the causal transformer, at least 1.
        heads: Attention heads of the transformer.
        dropout: Dropout probability of the transformer, in [0, 1).
        positions: Add an encoding of the step in the row.

    Raises:
        ValueError: If a number is out of its range.
    """

    causal = False

    def __init__(
        self,
        state_size: int | None = None,
        action_size: int | None = None,
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
        dropout: float = 0.1,
        positions: bool = True,
    ) -> None:
        super().__init__(state_size=state_size, action_size=action_size)
        self.features = width
        if self.width is not None:
            self.temporal = CausalTransformer(self.width, width, layers, heads, dropout, positions)
            self.attention = nn.Linear(width, 2 * width + 1)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the weighted reward w_t r̂_t of every real step."""
        read, batch = self.read(batch)
        hidden = self.temporal(read, batch.mask)
        query, key, value = self.attention(hidden).split([self.features, self.features, 1], -1)
        rewards = torch.where(batch.mask, value[..., 0].float(), 0.0)
        weights = attention_weights(query.float(), key.float(), batch.mask)
        return RewardEstimates(
            rewards=weights * rewards, valid=batch.mask, terms={"reward": rewards, "weight": weights}
        )


def attention_weights(
    query: Float[Tensor, "B T D"], key: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Compute the attention that the steps of a row receive, averaged over the queries of its real steps.

    Args:
        query: Queries (B, T, D).
        key: Keys (B, T, D).
        mask: True on real steps (B, T), which come first.

    Returns:
        Weights (B, T) that sum to 1 in every row with a real step; 0 on padding.
    """
    logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    lowest = torch.finfo(logits.dtype).min  # not −∞: a row without any step would become NaN
    attention = torch.where(mask[:, None], logits, lowest).softmax(-1)
    attention = torch.where(mask[:, None] & mask[:, :, None], attention, 0.0)
    return attention.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


__all__ = ["PreferenceTransformer", "attention_weights"]
