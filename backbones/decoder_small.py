"""A small autoregressive transformer that is trained from scratch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel

from ..core.decisions import Observation
from .decoder import BinRows, Decoder, Prefix, read_behind
from .language import HashedText
from .temporal import sinusoidal

_SCALE = 0.1  # size of embeddings at the start
_EVEN = 0.01  # standard deviation of the logits of bins at the start


class SmallDecoder(Decoder):
    """Llama of a few layers, without a vocabulary of texts, for experiments with thousands of decisions per second.

    The prompt is one token: a learned start, to which the mean embedding of the instruction's hashed words is added.

    Args:
        width: D, width of the states; a multiple of ``heads`` with an even width per head.
        layers: Number of layers.
        heads: Number of attention heads.
        buckets: Number of buckets of hashed words, see `guerdon.HashedText`; 0 reads no instruction.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4, buckets: int = 1024) -> None:
        super().__init__()
        if min(width, layers, heads) < 1 or buckets < 0 or width % (2 * heads):
            raise ValueError(
                f"width {width}, layers {layers}, heads {heads}, buckets {buckets}: expected positive numbers, and a "
                f"width that is a multiple of twice the heads, {2 * heads}"
            )
        self.width = width
        config = LlamaConfig(
            vocab_size=1,  # no texts
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            initializer_range=width**-0.5,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = LlamaModel(config)
        self.model.set_input_embeddings(nn.Identity())
        self.start = nn.Parameter(torch.randn(width) * _SCALE)
        self.words = HashedText(width, buckets, _SCALE) if buckets else None
        self.eval()

    def reserve(self, bins: int) -> BinRows:
        """Make rows for bins: sinusoids, so that neighbours are alike, and small random outputs.

        All bins are nearly as likely at the start, and which of them are the k likeliest depends on the observation.
        """
        place = self.start
        inputs = sinusoidal(torch.arange(bins, device=place.device), self.width, 4.0, 4.0 * bins) * _SCALE
        outputs = torch.randn(bins, self.width, device=place.device) * (_EVEN * self.width**-0.5)
        return BinRows(tokens=tuple(range(bins)), inputs=inputs, outputs=outputs)

    def read(self, observation: Observation, room: int) -> Prefix:
        """Make the prompts; nothing is computed before something stands behind them."""
        count = len(observation.state)
        pending = self.start.expand(count, 1, -1)
        if self.words is not None:
            distinct = list(dict.fromkeys(observation.instructions))
            place = {instruction: number for number, instruction in enumerate(distinct)}
            rows = torch.tensor([place[instruction] for instruction in observation.instructions], device=pending.device)
            pending = pending + self.words(distinct)[rows][:, None]
        positions = torch.zeros(count, dtype=torch.long, device=pending.device)
        return Prefix(cache=DynamicCache(), pending=pending, positions=positions)

    def prompt_tokens(self, observation: Observation, room: int) -> list[list[int]]:
        """Return token 0, the learned start, for every prompt: there is no vocabulary of texts."""
        return [[0] for _ in observation.instructions]

    def extend(self, prefix: Prefix, embeddings: Float[Tensor, "M n D"]) -> Float[Tensor, "M N D"]:
        """Read n embeddings behind every prompt."""
        return read_behind(self.model, prefix, embeddings)


__all__ = ["SmallDecoder"]
