"""Text encoders: instructions in, one feature vector per instruction out."""

import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.interfaces import Component
from .revision import weights_revision

L = TypeVar("L", bound="TextEncoder")


class TextEncoder(Component):
    """Base of the text encoders.

    A frozen encoder (``trainable`` False) is in evaluation mode always, also when a module around it is put in training
    mode. Features come on the device of the encoder's parameters.
    """

    width: int
    """D, numbers per feature vector."""
    name: str
    """Stable identity without a slash."""
    trainable: bool
    """Whether gradients reach the weights."""

    @property
    def revision(self) -> str:
        """Hash of the weights as they are now, 16 hexadecimal digits."""
        return weights_revision(self)

    def forward(self, instructions: Sequence[str]) -> Float[Tensor, "M D"]:
        """Encode M instructions."""
        raise NotImplementedError(f"{type(self).__name__} encodes nothing: write forward(instructions)")

    def train(self: L, mode: bool = True) -> L:
        """Switch mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and self.trainable)


class InstructionCache:
    """Cache of a frozen text encoder's features by instruction; the least recently used one is dropped first.

    Args:
        capacity: Largest number of instructions kept.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self.capacity = capacity
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def lookup(
        self, instructions: Sequence[str], compute: Callable[[list[str]], Tensor], batch_size: int = 64
    ) -> list[Tensor]:
        """Look up the features of every instruction, on the host; those not met before are computed, each once.

        Args:
            instructions: M instructions.
            compute: Function that encodes m instructions into (m, D).
            batch_size: Largest number m of instructions encoded at a time.
        """
        found = {text: self._features[text] for text in dict.fromkeys(instructions) if text in self._features}
        missing = [text for text in dict.fromkeys(instructions) if text not in found]
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            with torch.no_grad():
                # cloned rows: a view would keep its whole batch alive
                found |= {text: row.clone() for text, row in zip(part, compute(part).float().cpu(), strict=True)}
        for text, row in found.items():
            self._features[text] = row
            self._features.move_to_end(text)
        while len(self._features) > self.capacity:
            self._features.popitem(last=False)
        return [found[text] for text in instructions]


_WORD = re.compile(r"\w+")


class HashedText(TextEncoder):
    """Bag of words and word pairs hashed into a table of embeddings: trained from scratch, nothing to download.

    Lower-cased words and neighbouring pairs fall into buckets by CRC-32 (the same in every process), and the feature is
    the mean of their embeddings (the hashing trick of Weinberger et al. 2009, arXiv:0902.2206). A word never seen in
    training meets a small random embedding; an instruction without a word gives zeros.

    Args:
        width: D, numbers per feature vector.
        buckets: Rows of the table; collisions become noticeable when distinct words and pairs approach it.
        scale: Standard deviation of the embeddings at the start.
    """

    def __init__(self, width: int = 64, buckets: int = 4096, scale: float = 0.1) -> None:
        super().__init__()
        if width < 1 or buckets < 1:
            raise ValueError(f"width {width} and buckets {buckets}: expected positive numbers")
        self.width = width
        self.buckets = buckets
        self.name = "hashed"
        self.trainable = True
        self.table = nn.EmbeddingBag(buckets, width, mode="mean")
        nn.init.normal_(self.table.weight, std=scale)

    def bucket_ids(self, instruction: str) -> list[int]:
        """Buckets of an instruction's words, then of its pairs of neighbouring words."""
        words = _WORD.findall(instruction.lower())
        pairs = [f"{first} {second}" for first, second in pairwise(words)]
        return [zlib.crc32(piece.encode()) % self.buckets for piece in words + pairs]

    def forward(self, instructions: Sequence[str]) -> Float[Tensor, "M D"]:
        """Encode M instructions: the mean embedding of each one's words and pairs."""
        device = self.table.weight.device
        if not instructions:
            return torch.zeros(0, self.width, device=device)
        ids = [self.bucket_ids(text) for text in instructions]
        lengths = torch.tensor([0, *[len(row) for row in ids[:-1]]])
        flat = torch.tensor([bucket for row in ids for bucket in row], dtype=torch.long, device=device)
        return self.table(flat, lengths.cumsum(0).to(device))
