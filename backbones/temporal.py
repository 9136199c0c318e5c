"""A causal transformer over frame features, with a step mode that costs one token per new frame."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from ..core.interfaces import Component


@dataclass(frozen=True, kw_only=True, eq=False)
class StepState:
    """Memory of the step mode: n earlier frames of B rows."""

    keys: tuple[Float[Tensor, "B heads n d"], ...]
    """Keys of each layer."""
    values: tuple[Float[Tensor, "B heads n d"], ...]
    """Values of each layer."""
    valid: Bool[Tensor, "B n"]
    """False where a row had no frame, or forgot it."""
    count: Int[Tensor, " B"]
    """Frames each row has seen: the position of its next one."""

    def reset(self, rows: Bool[Tensor, " B"]) -> "StepState":
        """Forget everything of the rows that are True, where a new episode begins."""
        valid = self.valid & ~rows[:, None]
        # drop the oldest frames that no row remembers, so that memory follows the longest episode and not the run
        used = valid.any(0).nonzero()
        start = int(used[0]) if len(used) else valid.shape[1]
        return StepState(
            keys=tuple(k[:, :, start:] for k in self.keys),
            values=tuple(v[:, :, start:] for v in self.values),
            valid=valid[:, start:],
            count=torch.where(rows, 0, self.count),
        )


def sinusoidal(
    positions: Num[Tensor, "*shape"], width: int, shortest: float, longest: float
) -> Float[Tensor, "*shape D"]:
    """Sines and cosines of positions, D = width numbers each (Vaswani et al. 2017, arXiv:1706.03762, §3.5).

    PE[2i] = sin(2π p / λ_i), PE[2i + 1] = cos(2π p / λ_i), with periods λ_i in geometric progression from ``shortest``
    to ``longest``, in the unit of the positions. Any position works, however large.
    """
    steps = torch.arange(width // 2, device=positions.device) / max(width // 2 - 1, 1)
    periods = shortest * (longest / shortest) ** steps
    # whole turns removed in double precision: seconds since 1970 would lose their fractions in single
    angles = 2 * math.pi * (positions.double()[..., None] / periods.double()).remainder(1.0).float()
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class TransformerBlock(nn.Module):
    """Pre-norm attention and perceptron, each added to the stream."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values (B, heads, F, d) of the stream (B, F, D)."""
        batch, frames, width = x.shape
        mixed = self.query_key_value(self.attention_norm(x)).view(batch, frames, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        return query, key, value

    def mix(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        """Attend, causally if ``allowed`` is None, then the perceptron."""
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, dropout_p=dropout, is_causal=allowed is None
        )
        x = x + functional.dropout(self.projection(seen.transpose(1, 2).flatten(2)), dropout)
        return x + functional.dropout(self.perceptron(self.perceptron_norm(x)), dropout)


class CausalTransformer(Component):
    """Pre-norm transformer in which frame i sees frames 0…i and nothing after.

    Sequences may be of any length. Padding may stand anywhere, may hold anything, is seen by nobody, and gives 0.

    Args:
        input_width: D_in, numbers per frame feature.
        width: D, numbers per output; even, and a multiple of ``heads``.
        layers: Number of blocks.
        heads: Number of attention heads.
        dropout: Probability of dropout, in [0, 1); training and evaluation agree at 0.
        positions: Whether to add a sinusoidal encoding of each frame's time. Without it, order enters through
            causality alone, and a model learns less easily to estimate progress from elapsed time.
        shortest: Shortest period of the encoding, in the unit of the times (frames by default).
        longest: Longest period of the encoding.
    """

    def __init__(
        self,
        input_width: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        positions: bool = True,
        shortest: float = 4.0,
        longest: float = 10_000.0,
    ) -> None:
        super().__init__()
        if min(input_width, width, layers, heads) < 1:
            raise ValueError(
                f"input_width {input_width}, width {width}, layers {layers}, heads {heads}: expected positive numbers"
            )
        if width % heads or width % 2:
            raise ValueError(f"width {width} is not even and a multiple of heads {heads}: choose another pair")
        if not 0.0 < shortest <= longest:
            raise ValueError(f"periods from {shortest} to {longest}: expected 0 < shortest <= longest")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout {dropout}: expected a probability in [0, 1)")
        self.input_width = input_width
        self.width = width
        self.heads = heads
        self.positions = positions
        self.periods = (shortest, longest)
        self.embedding = nn.Linear(input_width, width)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def _embed(self, x: Tensor, mask: Tensor, times: Tensor) -> Tensor:
        x = torch.where(mask[..., None], x, 0.0)
        times = torch.where(mask, times, 0)
        if not (x.isfinite().all() & times.isfinite().all()):
            raise ValueError("features or times of real frames hold NaN or infinity: mask those frames out")
        stream = self.embedding(x)
        if self.positions:
            stream = stream + sinusoidal(times, self.width, *self.periods).to(stream.dtype)
        return stream

    def forward(
        self,
        x: Float[Tensor, "B F D_in"],
        mask: Bool[Tensor, "B F"] | None = None,
        times: Num[Tensor, "B F"] | None = None,
    ) -> Float[Tensor, "B F D"]:
        """Transform features of B rows of F frames.

        Args:
            x: Frame features in the order of time.
            mask: True on real frames; all of them if None.
            times: Time of each frame, an observation index or seconds; by default the number of real frames before it.

        Raises:
            ValueError: If a real frame holds NaN or infinity, or the width is another.
        """
        if x.shape[-1] != self.input_width:
            raise ValueError(f"features have width {x.shape[-1]}: this transformer reads {self.input_width}")
        if 0 in x.shape[:2]:
            return x.new_zeros(*x.shape[:2], self.width)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        stream = self._embed(x, real, real.long().cumsum(1) - 1 if times is None else times)
        allowed = _causal_mask(real)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            stream = block.mix(stream, *block.split(stream), allowed)
        return torch.where(real[..., None], self.norm(stream), 0.0)

    def initial_state(self, batch_size: int) -> StepState:
        """Make the state of B rows that have seen nothing."""
        empty = self.embedding.weight.new_zeros(batch_size, self.heads, 0, self.width // self.heads)
        return StepState(
            keys=(empty,) * len(self.blocks),
            values=(empty,) * len(self.blocks),
            valid=torch.zeros(batch_size, 0, dtype=torch.bool, device=empty.device),
            count=torch.zeros(batch_size, dtype=torch.long, device=empty.device),
        )

    def step(
        self,
        state: StepState | None,
        x: Float[Tensor, "B D_in"],
        mask: Bool[Tensor, " B"] | None = None,
        times: Num[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B D"], StepState]:
        """Transform one new frame per row; the result equals that of ``forward`` on all frames so far.

        Call it under ``torch.no_grad()`` when acting, or the graph grows with the episode.

        Args:
            state: What the last call returned; None at the start.
            x: Features of the new frame.
            mask: False for rows without a new frame: they give 0 and remember nothing.
            times: As in ``forward``; by default the frames each row has seen.
        """
        if x.shape[-1] != self.input_width:
            raise ValueError(f"features have width {x.shape[-1]}: this transformer reads {self.input_width}")
        state = self.initial_state(len(x)) if state is None else state
        real = torch.ones(len(x), dtype=torch.bool, device=x.device) if mask is None else mask
        stream = self._embed(x, real, state.count if times is None else times)[:, None]
        valid = torch.cat([state.valid, real[:, None]], dim=1)
        allowed = valid.clone()
        allowed[:, -1] = True  # a row without any frame would have nothing to attend to
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for block, old_key, old_value in zip(self.blocks, state.keys, state.values, strict=True):
            assert isinstance(block, TransformerBlock)
            query, key, value = block.split(stream)
            keys.append(torch.cat([old_key, key], dim=2))
            values.append(torch.cat([old_value, value], dim=2))
            stream = block.mix(stream, query, keys[-1], values[-1], allowed[:, None, None])
        y = torch.where(real[:, None], self.norm(stream[:, 0]), 0.0)
        return y, StepState(keys=tuple(keys), values=tuple(values), valid=valid, count=state.count + real.long())


def _causal_mask(real: Bool[Tensor, "B F"]) -> Bool[Tensor, "B 1 F F"] | None:
    """Compute which frame may attend to which; None where plain causality suffices."""
    if not (real[:, 1:] & ~real[:, :-1]).any():  # padding only at the end: no real frame could see it anyway
        return None
    frames = real.shape[1]
    causal = torch.ones(frames, frames, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(frames, dtype=torch.bool, device=real.device)  # a padded frame must see something, or it is NaN
    return ((causal & real[:, None, :]) | itself)[:, None]
