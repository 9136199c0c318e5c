"""Attention pooling of tokens into one vector (iRe-VLA's token learner)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ..core.interfaces import Component


class TokenLearner(Component):
    """Pooling by multihead attention: Q learned queries attend to the tokens (Set Transformer, PMA).

    With tokens Z and queries S, H = LayerNorm(S + Multihead(S, Z, Z)) and the result is LayerNorm(H + rFF(H)), its Q
    rows side by side (Lee et al. 2019, arXiv:1810.00825, Eq. 6, 7 and 11). The order of the tokens does not count.
    Tokens are normalised first, as the states of published models differ in size by orders of magnitude.

    Args:
        width: W, numbers per query; a multiple of ``heads``.
        queries: Number Q of learned queries.
        heads: Number of attention heads.
        token_width: D, numbers per token; None takes the backbone's, once a policy or a value builds it.

    Raises:
        ValueError: If a number is not positive, or the width no multiple of the heads.
    """

    def __init__(self, width: int = 128, queries: int = 1, heads: int = 4, token_width: int | None = None) -> None:
        super().__init__()
        if min(width, queries, heads) < 1 or width % heads or (token_width is not None and token_width < 1):
            raise ValueError(
                f"width {width}, queries {queries}, heads {heads}, token_width {token_width}: expected positive "
                "numbers, the width a multiple of the heads"
            )
        self.width, self.query_count, self.heads, self.token_width = width, queries, heads, token_width
        self.output_width = queries * width
        """Q · W, numbers per observation."""
        if token_width is not None:
            self.build(token_width)

    def build(self, token_width: int) -> None:
        """Build the network; one that is built for this width stays as it is.

        Args:
            token_width: D, numbers per token.

        Raises:
            ValueError: If the token learner was made for another width.
        """
        if "queries" in self._parameters and self.token_width == token_width:
            return
        if self.token_width not in (None, token_width):
            raise ValueError(
                f"the token learner is made for tokens of width {self.token_width}, the backbone gives tokens of width "
                f"{token_width}: leave token_width out to take the backbone's"
            )
        self.token_width = token_width
        width = self.width
        self.queries = nn.Parameter(torch.randn(self.query_count, width) * width**-0.5)
        self.token_norm = nn.LayerNorm(token_width)
        self.query_in = nn.Linear(width, width)
        self.key_value = nn.Linear(token_width, 2 * width)
        self.attended = nn.Linear(width, width)
        self.query_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "M L D"], mask: Bool[Tensor, "M L"]) -> Float[Tensor, "M QW"]:
        """Pool the real tokens of M observations; one without any gives 0.

        Args:
            tokens: Token vectors; padding may hold anything.
            mask: True on real tokens.

        Raises:
            ValueError: If tokens have another width, or, on the CPU, a real one is NaN or infinite.
        """
        if tokens.shape[2] != self.token_width:
            raise ValueError(
                f"expected tokens of width {self.token_width}, got {tokens.shape[2]}: the token learner was made for "
                "another backbone"
            )
        shown = tokens.masked_fill(~mask[..., None], 0.0).to(self.queries.dtype)
        # on a GPU the question would stop every pass until the device is done; NaN goes on to the actions and the loss
        if shown.device.type == "cpu" and not bool(shown.isfinite().all()):
            raise ValueError(
                "a real token is NaN or infinite: look for a broken observation, or a backbone in overflow"
            )
        count = len(tokens)
        key, value = self.key_value(self.token_norm(shown)).chunk(2, dim=-1)
        queries = self.queries.expand(count, -1, -1)
        present = mask.any(1)
        allowed = mask | ~present[:, None]  # a row that may see nothing would be NaN
        attended = functional.scaled_dot_product_attention(
            self._split(self.query_in(queries)), self._split(key), self._split(value), allowed[:, None, None]
        )
        pooled = self.query_norm(queries + self.attended(attended.transpose(1, 2).flatten(2)))
        pooled = self.norm(pooled + self.perceptron(pooled))
        return pooled.flatten(1).masked_fill(~present[:, None], 0.0)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


__all__ = ["TokenLearner"]
