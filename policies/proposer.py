"""Chunks of the current policy for critics: sampled in batches, cached per observation and policy version."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.batch import Observation, TrajectoryBatch
from ..core.interfaces import Component, Policy


@dataclass
class _Kept:
    """Chunks sampled at one observation, and the number of the call that sampled the first of them."""

    chunks: Float[Tensor, "n H A"]
    call: int


class PolicyProposer(Component):
    """Proposer that samples chunks of a policy at observations of a batch; see `guerdon.Proposer`.

    ALOE (arXiv 2602.12691) samples the next chunk for every target, which costs several passes of the policy's network
    in each update of the critic. So chunks are cached. The key is the observation: the bytes of state, frames and
    features, and the instruction. The same step of the same episode is found in any window and any batch, and equal
    observations share their chunks. If more chunks are requested than are cached, the missing ones are sampled; if
    fewer, the first ones are returned.

    The policy is never changed: no gradients are taken, ``requires_grad`` stays, and its modules act in evaluation mode
    and get their mode back. So it may be a policy in training. Whoever trains it calls ``updated()`` (or sets
    ``version``), and the cache is cleared. Noise comes from a generator of its own, seeded by ``seed`` and the version.
    It depends neither on the global generator nor on an interruption between two versions. Within a version neither
    chunks nor noise are saved: if the training of a critic is resumed with a policy that stays the same, it goes on
    with other chunks of that policy (with ``deterministic``, with the same).

    Args:
        policy: Policy whose chunks are sampled.
        steps: Number of steps that chunks are cut to; None takes the number that the policy executes (its ``execute``),
            or its horizon if it has none.
        refresh_every: Number of calls after which chunks are sampled anew (a critic's update is one call); None keeps
            them as long as the policy stays the same.
        keep: Number of observations whose chunks are cached; the least recently used are dropped. 0 samples every time.
            One observation takes n · steps · A · 4 bytes.
        deterministic: Take the policy's deterministic chunk; all n are then the same.
        seed: Random seed of the noise.
        micro_batch: Number of chunks that are sampled at a time.

    Attributes:
        version: Number of the policy; it changes whenever the policy does.
        hits: Number of observations answered from the cache so far.
        misses: Number of observations for which chunks had to be sampled so far.

    Raises:
        ValueError: If a number makes no sense.
    """

    version: int

    def __init__(
        self,
        policy: Policy,
        steps: int | None = None,
        refresh_every: int | None = None,
        keep: int = 200_000,
        deterministic: bool = False,
        seed: int = 0,
        micro_batch: int = 4096,
    ) -> None:
        super().__init__()
        length = int(getattr(policy, "execute", policy.horizon)) if steps is None else steps
        if not 1 <= length <= policy.horizon:
            raise ValueError(f"steps {length}: expected 1 … {policy.horizon}, the horizon of the policy")
        if keep < 0 or micro_batch < 1 or (refresh_every is not None and refresh_every < 1):
            raise ValueError(
                f"keep {keep}, refresh_every {refresh_every}, micro_batch {micro_batch}: expected 0 observations or "
                "more, and at least one call and one chunk"
            )
        self.policy, self.steps = policy, length
        self.refresh_every, self.keep = refresh_every, keep
        self.deterministic, self.seed, self.micro_batch = deterministic, seed, micro_batch
        self.version, self.hits, self.misses = 0, 0, 0
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._calls = 0
        self._drawn_with: int | None = None  # version of the cached chunks
        self._generator = torch.Generator()

    def updated(self) -> None:
        """Note that the policy changed, and clear the cache."""
        self.version += 1
        self._drawn_with = None  # a version set back to an earlier number means another policy

    @torch.no_grad()
    def forward(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], n: int
    ) -> Float[Tensor, "n M H A"]:
        """Sample chunks of the policy at M observations, n at each.

        Args:
            batch: Trajectories.
            rows: Row of each observation.
            steps: Number of each observation, 0 … L.
            n: Number of chunks at each observation, at least 1.

        Raises:
            ValueError: If an observation is not real, n is below 1, or the policy returns chunks of too few steps.
        """
        if n < 1:
            raise ValueError(f"expected at least one chunk at each observation, got n={n}")
        if self._drawn_with != self.version:
            self._kept.clear()
            self._generator.manual_seed((self.seed * 1_000_003 + self.version) % 2**63)
            self._drawn_with = self.version
        self._calls += 1
        if not len(rows):
            return batch.state.new_zeros(n, 0, self.steps, batch.actions.shape[2])
        observation = batch.observe(rows, steps)
        chunks = self._remembered(observation, n) if self.keep else self._anew(observation, n)
        return chunks.to(batch.state.device)

    def _anew(self, observation: Observation, n: int) -> Float[Tensor, "n M H A"]:
        points = len(observation)
        self.misses += points
        return self._draw(observation, torch.full((points,), n)).unflatten(0, (points, n)).transpose(0, 1)

    def _remembered(self, observation: Observation, n: int) -> Float[Tensor, "n M H A"]:
        keys = _keys(observation)
        found: dict[bytes, _Kept | None] = {key: self._fresh(key) for key in keys}
        first: dict[bytes, int] = {}
        for point, key in enumerate(keys):
            first.setdefault(key, point)
        lacking = {key: n - (0 if kept is None else len(kept.chunks)) for key, kept in found.items()}
        lacking = {key: count for key, count in lacking.items() if count > 0}
        missed = sum(key in lacking for key in keys)
        self.misses, self.hits = self.misses + missed, self.hits + len(keys) - missed
        if lacking:
            where = torch.tensor([first[key] for key in lacking])
            counts = torch.tensor(list(lacking.values()))
            drawn = self._draw(observation[where], counts).split(counts.tolist())
            for key, more in zip(lacking, drawn, strict=True):
                kept = found[key]
                # a slice would keep everything sampled with it in memory
                chunks = more.clone() if kept is None else torch.cat([kept.chunks, more])
                found[key] = _Kept(chunks, self._calls if kept is None else kept.call)
        for key, kept in found.items():
            assert kept is not None
            self._kept[key] = kept
            self._kept.move_to_end(key)
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return torch.stack([found[key].chunks[:n] for key in keys], 1)  # pyright: ignore[reportOptionalMemberAccess]

    def _fresh(self, key: bytes) -> _Kept | None:
        """Return the cached chunks of an observation, unless they are too old."""
        kept = self._kept.get(key)
        old = kept is not None and self.refresh_every is not None and self._calls - kept.call >= self.refresh_every
        return None if old else kept

    def _draw(self, observation: Observation, counts: Int[Tensor, " M"]) -> Float[Tensor, "N H A"]:
        """Sample the requested number of chunks at each observation, in evaluation mode, and concatenate them."""
        index = torch.arange(len(counts))
        again = index if self.deterministic else index.repeat_interleave(counts)
        modes = [(module, module.training) for module in self.policy.modules()]
        self.policy.eval()
        try:
            parts = [
                self.policy.act(observation[part], self.deterministic, self._generator).chunk
                for part in again.split(self.micro_batch)
            ]
        finally:
            for module, mode in modes:
                module.training = mode
        chunks = torch.cat(parts).detach()
        if chunks.shape[1] < self.steps:
            raise ValueError(
                f"{type(self.policy).__name__} returned chunks of {chunks.shape[1]} steps, expected {self.steps}: "
                "correct its horizon, or what it returns"
            )
        if self.deterministic:
            chunks = chunks[index.repeat_interleave(counts).to(chunks.device)]
        return chunks[:, : self.steps]


def _keys(observation: Observation) -> list[bytes]:
    """Compute a digest of everything that each observation holds."""
    parts = {"state": observation.state}
    parts |= {f"frames/{name}": frames for name, frames in observation.frames.items()}
    parts |= {f"features/{name}": features for name, features in observation.features.items()}
    head = hashlib.blake2b(digest_size=16)
    for name, part in sorted(parts.items()):
        head.update(f"{name} {part.dtype} {tuple(part.shape[1:])}\n".encode())
    raw = [part.detach().cpu().flatten(1).contiguous().view(torch.uint8).numpy() for _, part in sorted(parts.items())]
    keys: list[bytes] = []
    for point, instruction in enumerate(observation.instructions):
        digest = head.copy()
        for part in raw:
            digest.update(part[point])
        digest.update(instruction.encode())
        keys.append(digest.digest())
    return keys


__all__ = ["PolicyProposer"]
