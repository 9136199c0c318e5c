"""Networks that value chunks of actions: an ensemble of K members over state, chunk, cameras and instruction."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.language import TextEncoder
from ..backbones.temporal import TransformerBlock
from ..backbones.vision import VisionEncoder
from ..core.batch import Observation
from .observations import ObservationReader, Scale, check_values, perceptron


class ChunkNetwork(ObservationReader):
    """Base of the networks behind the critics of action chunks; a subclass writes ``members_of``.

    States and actions are standardised with scales that ``fit`` takes from data. Frames come as features of a frozen
    encoder, ``features["<encoder.name>/<camera>"]``, or are encoded where an observation holds frames only.

    Args:
        state_size: S; 0 reads no state.
        action_size: A.
        horizon: h, steps of a chunk at most.
        members: K, Q-values of the ensemble.
        cameras: Cameras to look through.
        encoder: Frozen encoder of their frames.
        text: Frozen encoder of instructions; None does not read them, so that the critic serves one task only.
        frame_size: Shorter side of the frames that the encoder is shown, in pixels; None as recorded.
        action_range: Lowest and highest number that the robot carries out in any action dimension; actions are cut to
            it before they are valued, as they are before they are carried out. None cuts nothing: a policy's sample
            beyond what was ever logged is then valued where nothing was learned.

    Raises:
        ValueError: If a size makes no sense, nothing would be read, or an encoder is not frozen.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        horizon: int,
        members: int,
        cameras: Sequence[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        frame_size: int | None = None,
        action_range: Sequence[float | int] | None = None,
    ) -> None:
        super().__init__(state_size, cameras, encoder, text, frame_size)
        if min(action_size, horizon, members) < 1:
            raise ValueError(
                f"action_size {action_size}, horizon {horizon}, members {members}: expected at least one action "
                "dimension, step and member"
            )
        if action_range is not None and (len(action_range) != 2 or not action_range[0] < action_range[1]):
            raise ValueError(f"action_range {list(action_range)}: expected a lowest and a highest number, or None")
        self.action_size, self.horizon, self.members = action_size, horizon, members
        self.action_range = None if action_range is None else (float(action_range[0]), float(action_range[1]))
        self.action_scale = Scale(action_size)

    def forward(
        self, observation: Observation, chunk: Float[Tensor, "M H A"], mask: Bool[Tensor, "M H"]
    ) -> Float[Tensor, "K M"]:
        """Value the steps of each chunk that the mask names; whatever stands behind the mask is not read.

        Args:
            observation: M observations.
            chunk: Actions, of any length H up to the horizon.
            mask: True on the steps that are carried out, the first ones of each row and at least one.

        Raises:
            ValueError: If widths or lengths do not fit, or a feature is missing.
        """
        self._check(chunk)
        device = self.fitted.device
        chunk, mask = chunk.to(device), mask.to(device)
        short = self.horizon - chunk.shape[1]
        chunk, mask = nn.functional.pad(chunk, (0, 0, 0, short)), nn.functional.pad(mask, (0, short), value=False)
        # masked before scaling: a NaN behind the mask would come back in the gradient
        chunk = chunk.masked_fill(~mask[..., None], 0.0).float()
        if self.action_range is not None:
            chunk = chunk.clamp(*self.action_range)
        actions = self.action_scale(chunk).masked_fill(~mask[..., None], 0.0)
        return self.members_of(self.scaled_state(observation), actions, mask, observation).float()

    def members_of(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        observation: Observation,
    ) -> Float[Tensor, "K M"]:
        """Q of each member, from standardised state and actions (0 behind the mask)."""
        raise NotImplementedError(f"{type(self).__name__} values nothing: write members_of(state, actions, …)")

    def fit(self, state: Float[Tensor, "M S"], actions: Float[Tensor, "N A"]) -> None:
        """Take the scales of states and actions from data.

        Raises:
            ValueError: If there is nothing to fit, widths do not fit, or something is not a number.
        """
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

    One learnable Q token a member, each read out by a perceptron of its own; the paper's size is 6 layers of width 256
    with 8 heads, h = 50 and three cameras, 56 tokens with K = 2. The paper has no instruction token, so that its
    critics serve one task each. Attention goes both ways; masked steps are seen by nobody.

    Args:
        state_size: S; 0 reads no state.
        action_size: A.
        horizon: h, steps of a chunk at most.
        members: K.
        width: D of the stream.
        layers: Blocks.
        heads: Attention heads.
        shared: One trunk with K Q tokens, as published; False gives each member a trunk of its own, whose errors agree
            less.
        cameras: Cameras to look through, a token each.
        encoder: Frozen encoder of their frames.
        pool: How the patches of a camera become one token: their mean, or attention with a learned query.
        text: Frozen encoder of instructions; None leaves that token out.
        frame_size: Shorter side of the frames that the encoder is shown, in pixels; None as recorded.
        action_range: Lowest and highest number that the robot carries out in any action dimension; actions are cut to
            it before they are valued, as they are before they are carried out. None cuts nothing: a policy's sample
            beyond what was ever logged is then valued where nothing was learned.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        horizon: int = 1,
        members: int = 2,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        shared: bool = True,
        cameras: Sequence[str] = (),
        encoder: VisionEncoder | None = None,
        pool: Literal["mean", "attention"] = "mean",
        text: TextEncoder | None = None,
        frame_size: int | None = None,
        action_range: Sequence[float | int] | None = None,
    ) -> None:
        super().__init__(state_size, action_size, horizon, members, cameras, encoder, text, frame_size, action_range)
        if min(width, layers, heads) < 1 or width % heads:
            raise ValueError(f"width {width}, layers {layers}, heads {heads}: expected heads that divide the width")
        if pool not in ("mean", "attention"):
            raise ValueError(f"pool {pool!r}: expected 'mean' or 'attention'")
        camera_width = 0 if encoder is None else encoder.width
        text_width = 0 if text is None else text.width
        inputs = (state_size, action_size, horizon, len(self.cameras), camera_width, text_width)
        trunks = [(members, 0)] if shared else [(1, k) for k in range(members)]
        self.trunks = nn.ModuleList([_Trunk(*inputs, count, width, layers, heads, pool) for count, _ in trunks])

    def members_of(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        observation: Observation,
    ) -> Float[Tensor, "K M"]:
        """See `ChunkNetwork.members_of`."""
        cameras, text = self.camera_features(observation), self.instruction_features(observation)
        return torch.cat([trunk(state, actions, mask, cameras, text) for trunk in self.trunks])


class _Trunk(nn.Module):
    """One transformer with the Q tokens it is read out at."""

    def __init__(
        self,
        state_size: int,
        action_size: int,
        horizon: int,
        cameras: int,
        camera_width: int,
        text_width: int,
        count: int,
        width: int,
        layers: int,
        heads: int,
        pool: str,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, width) * 0.1)
        self.state_in = nn.Linear(state_size, width) if state_size else None
        self.action_in = nn.Linear(action_size, width)
        self.step_embedding = nn.Parameter(torch.randn(horizon, width) * 0.1)
        self.camera_norm = nn.LayerNorm(camera_width) if cameras else None
        self.camera_in = nn.Linear(camera_width, width) if cameras else None
        self.camera_embedding = nn.Parameter(torch.randn(cameras, width) * 0.1)
        self.patch_query = nn.Parameter(torch.zeros(cameras, camera_width)) if cameras and pool == "attention" else None
        self.text_in = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width)) if text_width else None
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
        assert self.camera_norm is not None and self.camera_in is not None
        patches = self.camera_norm(patches)
        if self.patch_query is None:
            pooled = patches.mean(1)
        else:
            weight = (patches @ self.patch_query[index] / patches.shape[2] ** 0.5).softmax(1)
            pooled = (weight[..., None] * patches).sum(1)
        return self.camera_in(pooled) + self.camera_embedding[index]


class ChunkPerceptron(ChunkNetwork):
    """K separate perceptrons over everything side by side, as Q-chunking has them (arXiv 2507.07969): small and quick.

    Args:
        state_size: S; 0 reads no state.
        action_size: A.
        horizon: h, steps of a chunk at most.
        members: K.
        hidden: Widths of the hidden layers, each with layer norm and GELU.
        cameras: Cameras to look through; patches are averaged.
        encoder: Frozen encoder of their frames.
        text: Frozen encoder of instructions; None does not read them.
        frame_size: Shorter side of the frames that the encoder is shown, in pixels; None as recorded.
        action_range: Lowest and highest number that the robot carries out in any action dimension; actions are cut to
            it before they are valued, as they are before they are carried out. None cuts nothing: a policy's sample
            beyond what was ever logged is then valued where nothing was learned.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        horizon: int = 1,
        members: int = 2,
        hidden: Sequence[int] = (256, 256),
        cameras: Sequence[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        frame_size: int | None = None,
        action_range: Sequence[float | int] | None = None,
    ) -> None:
        super().__init__(state_size, action_size, horizon, members, cameras, encoder, text, frame_size, action_range)
        width = self.width + horizon * (action_size + 1)
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
