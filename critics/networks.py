"""Networks that value chunks of actions: an ensemble of K members over state, chunk, cameras and instruction."""

import copy
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backbones.language import TextEncoder
from ..backbones.model_inputs import ModelInputs
from ..backbones.temporal import TransformerBlock
from ..backbones.vision import VisionEncoder
from ..core.batch import Observation
from ..core.interfaces import Component

N = TypeVar("N", bound="ChunkNetwork")
_CLIP = 10.0  # standard deviations; an extreme nobody has seen must not blow a value up


class Scale(nn.Module):
    """Mean and deviation of W numbers, taken from data once and kept with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, values: Float[Tensor, "*shape W"]) -> Float[Tensor, "*shape W"]:
        """Standardise, and clip to ten standard deviations."""
        return ((values.to(self.mean.device) - self.mean) / self.std).clamp(-_CLIP, _CLIP)

    @torch.no_grad()
    def fit(self, values: Float[Tensor, "M W"], floor: float) -> None:
        """Take mean and deviation; what hardly moves keeps the scale ``floor``."""
        self.mean.copy_(values.double().mean(0))
        self.std.copy_(values.double().std(0, correction=0).clamp(min=floor))


class ChunkNetwork(Component):
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

    Raises:
        ValueError: If a size makes no sense, nothing would be read, or an encoder is not frozen.
    """

    fitted: Tensor

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
    ) -> None:
        super().__init__()
        if state_size < 0 or min(action_size, horizon, members) < 1:
            raise ValueError(
                f"state_size {state_size}, action_size {action_size}, horizon {horizon}, members {members}: expected "
                "a state of 0 numbers or more, and at least one action dimension, step and member"
            )
        if not state_size and not cameras:
            raise ValueError("state_size 0 and no camera: the critic would see nothing; give one of them")
        if bool(cameras) != (encoder is not None) or len(set(cameras)) < len(cameras):
            raise ValueError(f"cameras {list(cameras)}: expected each once, together with an encoder, or neither")
        if any(part is not None and part.trainable for part in (encoder, text)):
            raise ValueError("expected frozen encoders (trainable=False): a target network would chase a moving one")
        self.state_size, self.action_size, self.horizon, self.members = state_size, action_size, horizon, members
        self.cameras, self.encoder, self.text, self.frame_size = tuple(cameras), encoder, text, frame_size
        self.state_scale = Scale(state_size)
        self.action_scale = Scale(action_size)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def inputs(self) -> ModelInputs:
        """What the network reads."""
        return ModelInputs(
            state_size=self.state_size,
            cameras=self.cameras,
            frame_size=self.frame_size,
            encoder=self.encoder,
            instruction=self.text is not None,
        )

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
        self._check(observation, chunk)
        device = self.fitted.device
        chunk, mask = chunk.to(device), mask.to(device)
        short = self.horizon - chunk.shape[1]
        chunk, mask = nn.functional.pad(chunk, (0, 0, 0, short)), nn.functional.pad(mask, (0, short), value=False)
        # masked before scaling: a NaN behind the mask would come back in the gradient
        actions = self.action_scale(chunk.masked_fill(~mask[..., None], 0.0).float()).masked_fill(~mask[..., None], 0.0)
        return self.members_of(self.state_scale(observation.state.float()), actions, mask, observation).float()

    def members_of(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        observation: Observation,
    ) -> Float[Tensor, "K M"]:
        """Q of each member, from standardised state and actions (0 behind the mask)."""
        raise NotImplementedError(f"{type(self).__name__} values nothing: write members_of(state, actions, …)")

    def camera_features(self, observation: Observation) -> list[Float[Tensor, "M P E"]]:
        """Features of each camera, P patches of width E (P = 1 where the encoder pools)."""
        found: list[Tensor] = []
        for camera in self.cameras:
            assert self.encoder is not None
            stored = observation.features.get(f"{self.encoder.name}/{camera}")
            if stored is None and camera not in observation.frames:
                raise ValueError(
                    f"the critic looks through {camera!r}, and these observations hold neither its frames nor "
                    f"features {self.encoder.name}/{camera}"
                )
            seen = self.encoder.encode(observation.frames[camera]) if stored is None else stored
            found.append(seen.to(self.fitted.device).float().reshape(len(seen), -1, self.encoder.width))
        return found

    def instruction_features(self, observation: Observation) -> Float[Tensor, "M E"] | None:
        """Features of the instructions, each distinct one encoded once; None if they are not read."""
        if self.text is None:
            return None
        distinct = {text: i for i, text in enumerate(dict.fromkeys(observation.instructions))}
        with torch.no_grad():
            features = self.text(list(distinct)).float().to(self.fitted.device)
        return features[[distinct[text] for text in observation.instructions]]

    def fit(self, state: Float[Tensor, "M S"], actions: Float[Tensor, "N A"]) -> None:
        """Take the scales of states and actions from data.

        Raises:
            ValueError: If there is nothing to fit, widths do not fit, or something is not a number.
        """
        for name, values, size in (("state", state, self.state_size), ("action", actions, self.action_size)):
            if values.shape[1] != size or not len(values):
                raise ValueError(f"expected {name}s of width {size} to take scales from, got {tuple(values.shape)}")
            if not bool(values.isfinite().all()):
                raise ValueError(f"a {name} is NaN or infinite: repair the data, or leave the episode out")
        # a state that hardly moves in a handful of demonstrations may move later; see Inputs.fit
        self.state_scale.fit(state, floor=0.1)
        self.action_scale.fit(actions, floor=1e-3)
        self.fitted.fill_(True)

    def twin(self: N) -> N:
        """A copy with weights of its own and the same frozen encoders: a target network."""
        kept = {id(part): part for part in (self.encoder, self.text) if part is not None}
        return copy.deepcopy(self, kept).requires_grad_(False).eval()

    def _check(self, observation: Observation, chunk: Tensor) -> None:
        if observation.state.shape[1] != self.state_size:
            raise ValueError(f"expected a state of width {self.state_size}, got {observation.state.shape[1]}")
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
    ) -> None:
        super().__init__(state_size, action_size, horizon, members, cameras, encoder, text, frame_size)
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
    ) -> None:
        super().__init__(state_size, action_size, horizon, members, cameras, encoder, text, frame_size)
        width = state_size + horizon * (action_size + 1)
        width += len(self.cameras) * (0 if encoder is None else encoder.width) + (0 if text is None else text.width)
        self.networks = nn.ModuleList([self._network(width, hidden) for _ in range(members)])

    @staticmethod
    def _network(width: int, hidden: Sequence[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.LayerNorm(size), nn.GELU()]
            width = size
        return nn.Sequential(*layers, nn.Linear(width, 1))

    def members_of(
        self,
        state: Float[Tensor, "M S"],
        actions: Float[Tensor, "M h A"],
        mask: Bool[Tensor, "M h"],
        observation: Observation,
    ) -> Float[Tensor, "K M"]:
        """See `ChunkNetwork.members_of`."""
        text = self.instruction_features(observation)
        cameras = [patches.mean(1) for patches in self.camera_features(observation)]
        parts = [state, actions.flatten(1), mask.float(), *cameras, *([] if text is None else [text])]
        inputs = torch.cat(parts, 1)
        return torch.stack([network(inputs).squeeze(1) for network in self.networks])


__all__ = ["ChunkNetwork", "ChunkPerceptron", "ChunkTransformer", "Scale"]
