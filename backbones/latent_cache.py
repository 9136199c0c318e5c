"""Cache of the tokens that a frozen backbone makes of observations, so that each is encoded once."""

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.batch import Observation
from ..core.interfaces import Component
from .token_states import ObservationTokens, TokenBackbone


class LatentCache(Component):
    """Least-recently-used cache of a backbone's tokens, by observation and by version of the backbone.

    Of an observation it compares what the backbone reads (`TokenBackbone.read`), by a hash of 128 bits: with a backbone
    that reads pictures and text, another state of the robot is the same observation. All entries are dropped once the
    version of the backbone is another one. Tokens stay on the host, in the number type of the backbone. They are not
    part of a saved policy or of a copy.

    Args:
        max_bytes: Largest size of all entries together, in bytes; an entry that is larger is not kept.
        micro_batch: Number of observations that are encoded at a time.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, max_bytes: int = 2**30, micro_batch: int = 32) -> None:
        super().__init__()
        if min(max_bytes, micro_batch) < 1:
            raise ValueError(f"max_bytes {max_bytes}, micro_batch {micro_batch}: expected positive numbers")
        self.max_bytes, self.micro_batch = max_bytes, micro_batch
        self.hits = 0
        """Number of observations that were looked up."""
        self.misses = 0
        """Number of observations that were encoded."""
        self._clear()

    def _clear(self) -> None:
        self._entries: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0
        self._made_by = ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the entries out of copies and of what is sent to other processes."""
        return self.__dict__ | {"_entries": OrderedDict(), "_bytes": 0, "_made_by": ""}

    @property
    def entries(self) -> int:
        """Number of observations that are kept."""
        return len(self._entries)

    @property
    def size(self) -> int:
        """Size of all entries together, in bytes."""
        return self._bytes

    @torch.no_grad()
    def tokens(self, backbone: TokenBackbone, observation: Observation) -> ObservationTokens:
        """Look up the tokens of M observations, on the backbone's device; each one not met before is encoded once.

        The backbone is in evaluation mode meanwhile.

        Args:
            backbone: Backbone of which no weight requires a gradient.
            observation: M observations.

        Raises:
            ValueError: If the backbone learns: its tokens change with every step and must carry gradients.
        """
        if backbone.learns:
            raise ValueError(
                f"{type(backbone).__name__} learns, so its tokens cannot be kept: freeze it with frozen_parts of "
                "PolicyAdam (outside of a training: PolicyAdam(frozen_parts=[...]).freeze(policy)), or leave the cache "
                "out"
            )
        version = backbone.version
        if version != self._made_by:
            self._clear()
            self._made_by = version
        if not len(observation):
            return backbone(observation)
        read = backbone.read(observation)
        keys = _keys(read)
        found = {key: self._entries[key] for key in dict.fromkeys(keys) if key in self._entries}
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        rows = torch.tensor(list(missing.values()), dtype=torch.long)
        device = next((weight.device for _, weight in backbone.named_parameters()), torch.device("cpu"))
        for part in rows.split(self.micro_batch) if len(rows) else ():
            made = _frozen(backbone, read[part])
            for row, hidden, mask in zip(part.tolist(), made.hidden, made.mask, strict=True):
                found[keys[row]] = hidden[mask].cpu()
        self._keep(found)
        longest = max(len(hidden) for hidden in found.values())
        first = next(iter(found.values()))
        hidden = first.new_zeros(len(keys), longest, first.shape[1])
        mask = torch.zeros(len(keys), longest, dtype=torch.bool)
        for row, key in enumerate(keys):
            hidden[row, : len(found[key])], mask[row, : len(found[key])] = found[key], True
        return ObservationTokens(hidden=hidden.to(device), mask=mask.to(device))

    def _keep(self, found: dict[bytes, Tensor]) -> None:
        for key, hidden in found.items():
            if key not in self._entries:
                self._entries[key] = hidden
                self._bytes += hidden.nbytes
            self._entries.move_to_end(key)
        while self._bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.nbytes


def tokens_from(
    backbone: TokenBackbone, observation: Observation, cache: LatentCache | None = None
) -> ObservationTokens:
    """Compute the tokens of M observations: with gradients of a backbone that learns, else without, through a cache.

    A frozen backbone is in evaluation mode meanwhile, whatever the mode of the policy around it.

    Args:
        backbone: Backbone.
        observation: M observations.
        cache: Cache of a frozen backbone's tokens; it is not asked while the backbone learns. None keeps nothing.
    """
    if backbone.learns:
        return backbone(observation)
    return _frozen(backbone, observation) if cache is None else cache.tokens(backbone, observation)


@torch.no_grad()
def _frozen(backbone: TokenBackbone, observation: Observation) -> ObservationTokens:
    """Compute tokens in evaluation mode."""
    training = backbone.training
    if not training:
        return backbone(observation)
    try:
        return backbone.eval()(observation)
    finally:
        backbone.train(training)


def _keys(read: Observation) -> list[bytes]:
    """Hash each observation: names, types, shapes and bytes of its parts, and its instruction."""
    parts = [("state", read.state), *sorted(read.frames.items()), *sorted(read.features.items())]
    held = [(f"\0{name} {v.dtype} {tuple(v.shape[1:])}".encode(), _rows_as_bytes(v)) for name, v in parts]
    keys: list[bytes] = []
    for row, instruction in enumerate(read.instructions):
        digest = hashlib.blake2b(instruction.encode(), digest_size=16)
        for name, rows in held:
            digest.update(name)
            digest.update(rows[row].data)
        keys.append(digest.digest())
    return keys


def _rows_as_bytes(values: Tensor) -> np.ndarray:
    """Return the numbers of M rows as bytes (M, n)."""
    return values.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()


__all__ = ["LatentCache", "tokens_from"]
