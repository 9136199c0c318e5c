"""Networks of critics of action chunks: an ensemble of K members over state, chunk, cameras and instruction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.temporal import TransformerBlock
from ..core.arguments import folds
from ..core.batch import Observation
from ..core.sizes import require_sizes
from .observations import CriticInputs, ObservationReader, Scale, check_values, perceptron

Pool = Literal["mean", "attention"]


class ChunkNetwork(ObservationReader):
    """Base of the networks that value chunks of actions; a subclass writes ``members_of``.

    States and actions are standardised with scales that ``fit`` takes from data. A subclass builds its layers only
    where ``built`` is True: until then a size is not known.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Largest number h of steps in a chunk.
        members: Number K of Q-values in the ensemble.
        reads: Inputs in addition to state and actions; None has none.

    Raises:
        ValueError: If a size makes no sense, or nothing would be read.
    """

    def __init__(
        self,
        state_size: int | None,
        action_size: int | None,
        horizon: int,
        members: int,
        reads: CriticInputs | None = None,
    ) -> None:
        super().__init__(state_size=state_size, reads=reads)
        if min(1 if action_size is None else action_size, horizon, members) < 1:
            raise ValueError(
                f"action_size {action_size}, horizon {horizon}, members {members}: expected at least one action "
                "dimension, step and member"
            )
        self.action_size, self.horizon, self.members = action_size, horizon, members
        if action_size is not None:
            self.action_scale = Scale(action_size)

    @property
    def built(self) -> bool:
        """Whether all sizes are known, so that the network exists."""
        return self.state_size is not None and self.action_size is not None

    def forward(
        self, observation: Observation, chunk: Float[Tensor, "M H A"], mask: Bool[Tensor, "M H"]
    ) -> Float[Tensor, "K M"]:
        """Value the masked steps of M chunks; values behind the mask are not read.

        Args:
            observation: M observations.
            chunk: Actions of H steps, 1 … h.
            mask: True on the steps that are executed: the first ones of each row, and at least one.

        Raises:
            ValueError: If widths or lengths do not fit, a feature is missing, or the sizes are not known.
        """
        if not self.built:
            require_sizes(self)
        self._check(chunk)
        device = self.fitted.device
        chunk, mask = chunk.to(device), mask.to(device)
        short = self.horizon - chunk.shape[1]
        chunk, mask = nn.functional.pad(chunk, (0, 0, 0, short)), nn.functional.pad(mask, (0, short), value=False)
        # masked before scaling: a NaN behind the mask would come back in the gradient
        chunk = self.reads.clip(chunk.masked_fill(~mask[..., None], 0.0).float())
        actions = self.action_scale(chunk).masked_fill(~mask[..., None], 0.0)
        return self.members_of(self.scaled_state(observation), actions, mask, observation).float()

    def members_of(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        observation: Observation,
    ) -> Float[Tensor, "K M"]:
        """Return the Q-value of each member.

        Args:
            state: Standardised state.
            actions: Standardised actions, 0 behind the mask.
            mask: True on the steps that are executed.
            observation: The same observations, for further inputs.
        """
        raise NotImplementedError(f"{type(self).__name__} values nothing: write members_of(state, actions, …)")

    def fit(self, state: Float[Tensor, "M S"], actions: Float[Tensor, "N A"]) -> None:
        """Compute the scales of states and actions.

        Raises:
            ValueError: If there is no value, a width differs, a value is not finite, or a size is not known.
        """
        require_sizes(self)
        assert self.action_size is not None
        check_values("action", actions, self.action_size)
        self.fit_state(state)
        self.action_scale.fit(actions, floor=1e-3)

    def _check(self, chunk: Tensor) -> None:
        if chunk.shape[2] != self.action_size:
            raise ValueError(
                f"the critic values actions of {self.action_size} dimensions, these chunks have {chunk.shape[2]}: the "
                "policy (or the data) belongs to another robot, or pads its actions; slice them to the real ones"
            )
        if not 1 <= chunk.shape[1] <= self.horizon:
            raise ValueError(f"expected chunks of 1 … {self.horizon} steps, got {chunk.shape[1]}")


class ChunkTransformer(ChunkNetwork):
    """ALOE's critic (arXiv 2602.12691, appendix C2): [Q tokens, state, chunk steps, camera tokens, instruction token].

    Every member has one learnable Q token, read out by a perceptron of its own. The paper's size is 6 layers of width
    256 with 8 heads, h = 50 and three cameras: 56 tokens with K = 2. The paper has no instruction token, so that its
    critics serve one task each. Attention goes both ways; masked steps are not attended to.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Largest number h of steps in a chunk.
        members: Number K of Q-values in the ensemble.
        width: Width D of the stream.
        layers: Number of blocks.
        heads: Number of attention heads; it divides ``width``.
        shared: One trunk with K Q tokens, as published; False gives each member a trunk of its own, whose errors agree
            less.
        reads: Inputs in addition to state and actions: one token per camera, one for the instruction. None has none.
        pool: How the patches of a camera become one token: ``"mean"``, or ``"attention"`` with a learned query.

    Raises:
        ValueError: If an argument makes no sense.
    """

    @folds(reads=CriticInputs)
    def __init__(
        self,
        state_size: int | None = None,
        action_size: int | None = None,
        horizon: int = 1,
        members: int = 2,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        shared: bool = True,
        reads: CriticInputs | None = None,
        pool: Pool = "mean",
    ) -> None:
        super().__init__(state_size=state_size, action_size=action_size, horizon=horizon, members=members, reads=reads)
        if min(width, layers, heads) < 1 or width % heads:
            raise ValueError(f"width {width}, layers {layers}, heads {heads}: expected heads that divide the width")
        if pool not in ("mean", "attention"):
            raise ValueError(f"pool {pool!r}: expected 'mean' or 'attention'")
        if self.state_size is None or self.action_size is None:
            return
        encoder, text = self.reads.encoder, self.reads.text
        sizes = _TokenSizes(
            state=self.state_size,
            action=self.action_size,
            horizon=horizon,
            cameras=len(self.reads.cameras),
            camera=0 if encoder is None else encoder.width,
            text=0 if text is None else text.width,
        )
        counts = [members] if shared else [1] * members
        self.trunks = nn.ModuleList([_Trunk(sizes, count, width, layers, heads, pool) for count in counts])

    def members_of(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        observation: Observation,
    ) -> Float[Tensor, "K M"]:
        """See `ChunkNetwork.members_of`."""
        device = self.fitted.device
        cameras = self.reads.camera_features(observation, device)
        text = self.reads.instruction_features(observation, device)
        return torch.cat([trunk(state, actions, mask, cameras, text) for trunk in self.trunks])


@dataclass(frozen=True, kw_only=True)
class _TokenSizes:
    """Numbers and widths of what becomes tokens."""

    state: int
    """S; 0 has no state token."""
    action: int
    """A."""
    horizon: int
    """h, number of action tokens."""
    cameras: int
    """Number of camera tokens."""
    camera: int
    """Width of a camera's features."""
    text: int
    """Width of an instruction's features; 0 has no instruction token."""


class _Trunk(nn.Module):
    """One transformer with the Q tokens it is read out at."""

    def __init__(self, sizes: _TokenSizes, count: int, width: int, layers: int, heads: int, pool: Pool) -> None:
        super().__init__()
        seen, attends = sizes.cameras > 0, sizes.cameras > 0 and pool == "attention"
        self.queries = nn.Parameter(torch.randn(count, width) * 0.1)
        self.state_in = nn.Linear(sizes.state, width) if sizes.state else None
        self.action_in = nn.Linear(sizes.action, width)
        self.step_embedding = nn.Parameter(torch.randn(sizes.horizon, width) * 0.1)
        self.camera_norm = nn.LayerNorm(sizes.camera) if seen else None
        self.camera_in = nn.Linear(sizes.camera, width) if seen else None
        self.camera_embedding = nn.Parameter(torch.randn(sizes.cameras, width) * 0.1)
        self.patch_query = nn.Parameter(torch.zeros(sizes.cameras, sizes.camera)) if attends else None
        self.text_in = nn.Sequential(nn.LayerNorm(sizes.text), nn.Linear(sizes.text, width)) if sizes.text else None
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, 0.0) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)) for _ in range(count)]
        )

    def forward(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        cameras: Sequence[Float[Tensor, "M P E"]],
        text: Float[Tensor, "M L"] | None,
    ) -> Float[Tensor, "K M"]:
        points, count = len(actions), len(self.queries)
        tokens = [self.queries.expand(points, -1, -1), self.action_in(actions) + self.step_embedding]
        if self.state_in is not None:
            tokens.append(self.state_in(state)[:, None])
        tokens.extend(self._camera(i, patches)[:, None] for i, patches in enumerate(cameras))
        if self.text_in is not None and text is not None:
            tokens.append(self.text_in(text)[:, None])
        stream = torch.cat(tokens, 1)
        seen = torch.ones(stream.shape[:2], dtype=torch.bool, device=stream.device)
        seen[:, count : count + mask.shape[1]] = mask
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            stream = block.mix(stream, *block.split(stream), seen[:, None, None])
        read = self.norm(stream[:, :count])
        return torch.stack([head(read[:, k]).squeeze(1) for k, head in enumerate(self.heads)])

    def _camera(self, index: int, patches: Float[Tensor, "M P E"]) -> Float[Tensor, "M D"]:
        """Pool the patches of one camera to its token."""
        assert self.camera_norm is not None and self.camera_in is not None
        patches = self.camera_norm(patches)
        if self.patch_query is None:
            pooled = patches.mean(1)
        else:
            weight = (patches @ self.patch_query[index] / patches.shape[2] ** 0.5).softmax(1)
            pooled = (weight[..., None] * patches).sum(1)
        return self.camera_in(pooled) + self.camera_embedding[index]


class ChunkPerceptron(ChunkNetwork):
    """K separate perceptrons over all inputs concatenated, as in Q-chunking (arXiv 2507.07969): small and quick.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Largest number h of steps in a chunk.
        members: Number K of Q-values in the ensemble.
        hidden: Widths of the hidden layers, each followed by layer norm and GELU.
        reads: Inputs in addition to state and actions; the patches of a camera are averaged. None has none.

    Raises:
        ValueError: If an argument makes no sense.
    """

    @folds(reads=CriticInputs)
    def __init__(
        self,
        state_size: int | None = None,
        action_size: int | None = None,
        horizon: int = 1,
        members: int = 2,
        hidden: Sequence[int] = (256, 256),
        reads: CriticInputs | None = None,
    ) -> None:
        super().__init__(state_size=state_size, action_size=action_size, horizon=horizon, members=members, reads=reads)
        if self.action_size is not None and self.built:
            width = self.width + horizon * (self.action_size + 1)
            self.networks = nn.ModuleList([perceptron(width, hidden) for _ in range(members)])

    def members_of(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        observation: Observation,
    ) -> Float[Tensor, "K M"]:
        """See `ChunkNetwork.members_of`."""
        inputs = torch.cat([self.vector(state, observation), actions.flatten(1), mask.float()], 1)
        return torch.stack([network(inputs).squeeze(1) for network in self.networks])


__all__ = ["ChunkNetwork", "ChunkPerceptron", "ChunkTransformer", "Scale"]
