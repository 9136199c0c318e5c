"""Interface of autoregressive backbones: a prompt is read once, and embeddings of any kind go on behind it."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.decisions import Observation
from ..core.interfaces import Component

D = TypeVar("D", bound="Decoder")

QUESTION = "What action should the robot take to {instruction}?"
"""Prompt of OpenVLA (Kim et al. 2024, arXiv:2406.09246)."""


@dataclass(kw_only=True, eq=False)
class BinRows:
    """Rows of a vocabulary that stand for the bins of an action."""

    tokens: tuple[int, ...]
    """Token number of each bin."""
    inputs: Float[Tensor, "bins D"]
    """Row of each bin in the input embedding."""
    outputs: Float[Tensor, "bins D"]
    """Row of each bin in the output head."""
    bias: Float[Tensor, " bins"] | None = None
    """Bias of each bin in the output head, if it has one."""


@dataclass(kw_only=True, eq=False)
class Prefix:
    """Prompts of M decision points, extended in place as more is read behind them.

    The last token of every prompt is not read yet: it is read together with what comes behind it, which saves a pass
    and gives its state.
    """

    cache: Any
    """Keys and values of all layers (a ``transformers.DynamicCache``)."""
    pending: Float[Tensor, "M 1 D"] | None
    """Embedding of the last token of every prompt; None once it was read."""
    positions: Int[Tensor, "*R M"]
    """Place of the next token; with R rows where a model counts time, height and width apart."""
    mask: Bool[Tensor, "M L"] | None = None
    """False on what was padded, always before a prompt; None where nothing was."""


def read_behind(trunk: Any, prefix: Prefix, embeddings: Float[Tensor, "M n D"]) -> Float[Tensor, "M N D"]:
    """Read embeddings behind prompts with a transformers model without its head; gradients flow.

    Args:
        trunk: Model that takes ``inputs_embeds`` and ``past_key_values``.
        prefix: Prompts; they are extended in place.
        embeddings: n embeddings behind every prompt.

    Returns:
        States of the last layer in float32: of the prompt's last token, if that was pending (N = n + 1), and of the
        embeddings.
    """
    if prefix.pending is not None:
        embeddings, prefix.pending = torch.cat([prefix.pending.to(embeddings.dtype), embeddings], 1), None
    count = embeddings.shape[1]
    positions = prefix.positions[..., None] + torch.arange(count, device=embeddings.device)
    prefix.positions = prefix.positions + count
    if prefix.mask is not None:
        prefix.mask = torch.cat([prefix.mask, prefix.mask.new_ones(len(embeddings), count)], 1)
    out = trunk(
        inputs_embeds=embeddings.to(trunk.dtype),
        attention_mask=None if prefix.mask is None else prefix.mask.long(),
        position_ids=positions,
        past_key_values=prefix.cache,
        use_cache=True,
    )
    return out.last_hidden_state.float()


class Decoder(Component):
    """Base of autoregressive backbones, for policies whose actions are tokens.

    It is in evaluation mode always: dropout between acting and learning would move ratios of probabilities.
    """

    width: int
    """D, width of embeddings and states."""

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the model's computations."""
        return torch.float32

    def reserve(self, bins: int) -> BinRows:
        """Reserve rows of the vocabulary for bins; instructions that use one of their tokens are refused from then on.

        Rows that no token of the tokeniser uses come first, then its last ordinary tokens, never special or added ones
        and never those of the prompt around an instruction.

        Args:
            bins: Number of bins.

        Raises:
            ValueError: If the vocabulary has no room for them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no vocabulary: write reserve(bins)")

    def read(self, observation: Observation, room: int) -> Prefix:
        """Read the prompts of M observations, each up to where the model's turn begins.

        Args:
            observation: M observations.
            room: Number of embeddings that will be read behind each prompt.

        Raises:
            ValueError: If an instruction is too long, or holds a token with a meaning of its own.
        """
        raise NotImplementedError(f"{type(self).__name__} reads nothing: write read(observation, room)")

    def prompt_tokens(self, observation: Observation, room: int) -> list[list[int]]:
        """Return the token numbers of the prompts that ``read`` reads, those that stand for pictures among them.

        Args:
            observation: M observations.
            room: Number of embeddings that will be read behind each prompt.

        Raises:
            ValueError: As ``read``.
        """
        raise NotImplementedError(f"{type(self).__name__} lists no tokens: write prompt_tokens(observation, room)")

    def extend(self, prefix: Prefix, embeddings: Float[Tensor, "M n D"]) -> Float[Tensor, "M N D"]:
        """Read n embeddings behind every prompt, see `read_behind`.

        Args:
            prefix: Result of ``read``; extended in place.
            embeddings: Embeddings, such as rows of bins, or a projected state.
        """
        raise NotImplementedError(f"{type(self).__name__} reads nothing: write extend(prefix, embeddings)")

    def train(self: D, mode: bool = True) -> D:
        """Stay in evaluation mode, whatever the mode of the module around it."""
        return super().train(False)


def free_tokens(rows: int, tokeniser: Any, taken: set[int], count: int, name: str) -> list[int]:
    """Choose the token numbers that stand for bins, in ascending order.

    Args:
        rows: Number of rows of the vocabulary's embedding.
        tokeniser: Tokeniser of the checkpoint.
        taken: Tokens of the prompt, which keep their meaning.
        count: Number of bins.
        name: Name of the checkpoint, for the error.

    Raises:
        ValueError: If there is no room for so many.
    """
    used = set(tokeniser.get_vocab().values())
    special = {*tokeniser.get_added_vocab().values(), *tokeniser.all_special_ids, *taken}
    unused = [row for row in range(rows) if row not in used and row not in taken]
    ordinary = [row for row in range(rows - 1, -1, -1) if row in used and row not in special]
    found = [*unused, *ordinary][:count]
    if len(found) < count:
        raise ValueError(
            f"{name} has a vocabulary of {rows} rows, {len(found)} of them free for action bins, expected {count}: "
            "take fewer bins, or a model with a larger vocabulary"
        )
    return sorted(found)


def require_no_dropout(module: torch.nn.Module) -> None:
    """Refuse low-rank updates with dropout, which a decoder never applies.

    Raises:
        ValueError: If there is one.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Dropout) and part.p > 0:
            raise ValueError(
                f"{name} drops inputs with probability {part.p}: a decoder acts and learns without dropout, so that "
                "ratios of probabilities start at 1; set the dropout of LoRA to 0"
            )


__all__ = ["QUESTION", "BinRows", "Decoder", "Prefix", "free_tokens", "read_behind", "require_no_dropout"]
