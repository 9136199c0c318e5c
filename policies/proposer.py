"""How a critic asks the current policy for chunks: sampled in batches, kept per observation and policy version."""

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
    """Chunks drawn at one observation, and the call at which the first of them were."""

    chunks: Float[Tensor, "n H A"]
    call: int


class PolicyProposer(Component):
    """Samples chunks of a policy at observations of a batch; a `guerdon.core.interfaces.Proposer`.

    ALOE (arXiv 2602.12691) samples the next chunk for every target, which costs several passes of the policy's network
    in each update of the critic. So chunks are kept, by what was observed: the bytes of state, frames and features, and
    the instruction. The same step of the same episode is recognised in any window and any batch. Asking for more chunks
    than are kept draws the missing ones; fewer, and the first of them come back. Observations that are equal share
    their chunks.

    The policy is read, never changed: no gradients are taken, `requires_grad` is left alone, and its modules act in
    evaluation mode and get their mode back. It may therefore be one that is being trained; whoever trains it says so by
    ``updated()`` (or by setting ``version``), and what was kept is forgotten. Noise comes from a generator of its own,
    seeded by ``seed`` and the version: the global one makes no difference, nor does an interruption between two
    versions. Within a version neither chunks nor noise are saved: a critic whose training is resumed beside a policy
    that stays the same goes on with other chunks of that policy (with ``deterministic``, the same).

    Args:
        policy: What proposes.
        steps: Chunks are cut to this many steps; None takes those the policy carries out (its ``execute``), or its
            whole horizon where it does not say.
        refresh_every: Draw anew what was drawn this many calls ago (a critic's update is one call); None keeps it for
            as long as the policy stays the same.
        keep: Observations to keep chunks of; the least recently used are dropped. 0 keeps none and draws every time.
            One takes n · steps · A · 4 bytes.
        deterministic: Take the policy's one best chunk; all n are then the same.
        seed: Of the noise.
        micro_batch: Chunks sampled at a time.

    Attributes:
        version: Number of the policy; changes whenever the policy does.
        hits: Observations answered from what was kept, so far.
        misses: Observations for which something had to be drawn.

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
        self._drawn_with: int | None = None  # the version that what is kept came from
        self._generator = torch.Generator()

    def updated(self) -> None:
        """Say that the policy changed: what was kept is forgotten."""
        self.version += 1
        self._drawn_with = None  # whoever sets the version back to the number it had means another policy

    @torch.no_grad()
    def forward(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], n: int
    ) -> Float[Tensor, "n M H A"]:
        """Chunks of the policy at M observations, n at each.

        Args:
            batch: Trajectories.
            rows: Row of each observation.
            steps: Observation index, 0 … L.
            n: Chunks at each.

        Raises:
            ValueError: If an observation is not real, n is not positive, or the policy gives shorter chunks than asked.
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
                # a slice would hold on to everything drawn with it
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
        """What is kept of an observation, unless it is too old."""
        kept = self._kept.get(key)
        old = kept is not None and self.refresh_every is not None and self._calls - kept.call >= self.refresh_every
        return None if old else kept

    def _draw(self, observation: Observation, counts: Int[Tensor, " M"]) -> Float[Tensor, "N H A"]:
        """Sample as many chunks as asked at each observation, side by side, in the policy's evaluation mode."""
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
                f"{type(self.policy).__name__} gave chunks of {chunks.shape[1]} steps, expected {self.steps}: its "
                "horizon promises more"
            )
        if self.deterministic:
            chunks = chunks[index.repeat_interleave(counts).to(chunks.device)]
        return chunks[:, : self.steps]


def _keys(observation: Observation) -> list[bytes]:
    """A digest of everything that each observation holds."""
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
