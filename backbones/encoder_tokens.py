"""A backbone of separate encoders: frozen pictures and texts and the state as tokens, mixed by a small transformer."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.batch import Observation
from ..core.sizes import require_sizes
from .language import TextEncoder
from .model_inputs import ModelInputs
from .perceptron import Inputs, tanh_network
from .temporal import TransformerBlock
from .token_states import ObservationTokens, TokenBackbone
from .vision import VisionEncoder


class EncoderBackbone(TokenBackbone):
    """Tokens of the state, the cameras and the instruction, each projected to one width, then transformer layers.

    The projections and layers are trained from scratch; the encoders are frozen ones, or learn along if they are
    trainable. With the state alone and ``layers=0`` the backbone is the perceptron of the state.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        cameras: Names of the cameras to read.
        encoder: Vision encoder of the frames. A frozen one reads ``observation.features["<encoder.name>/<camera>"]``
            where the observation holds them, and frames otherwise.
        text: Text encoder of the instructions; None reads no instruction.
        width: D, numbers per token; a multiple of ``heads``.
        hidden: Widths of the hidden layers (tanh) of the perceptron of the state.
        state_tokens: Number of tokens that the state is turned into.
        layers: Number of transformer layers, in which every token attends to all; 0 mixes nothing.
        heads: Number of attention heads.

    Raises:
        ValueError: If the backbone would read nothing, cameras come without an encoder or the other way round, or a
            number is out of its range.
    """

    def __init__(
        self,
        state_size: int | None = None,
        cameras: tuple[str, ...] | list[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        width: int = 128,
        hidden: Sequence[int] = (128,),
        state_tokens: int = 1,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if isinstance(cameras, str) or len(set(cameras)) < len(cameras):
            raise ValueError(f"cameras {cameras!r}: expected a list of names, each once")
        if bool(cameras) != (encoder is not None):
            raise ValueError("cameras and a vision encoder belong together: give both or neither")
        if min(width, heads, state_tokens) < 1 or layers < 0 or width % heads:
            raise ValueError(
                f"width {width}, heads {heads}, state_tokens {state_tokens}, layers {layers}: expected positive "
                "numbers, the width a multiple of the heads, and at least 0 layers"
            )
        if state_size is not None and (state_size < 0 or (state_size == 0 and not cameras and text is None)):
            raise ValueError(
                f"state_size {state_size}, and neither camera nor text encoder: the backbone would read nothing; leave "
                "state_size out to take it from the data, or name cameras"
            )
        self.state_size, self.cameras, self.width = state_size, tuple(cameras), width
        self.encoder, self.text, self.state_tokens = encoder, text, state_tokens
        if state_size is None:
            return
        if state_size:
            self.state_in = Inputs(state_size)
            self.state_network = tanh_network(state_size, hidden, state_tokens * width, last_gain=1.0)
        if encoder is not None:
            self.vision_in = nn.Sequential(nn.LayerNorm(encoder.width), nn.Linear(encoder.width, width))
            self.camera_embedding = nn.Parameter(torch.randn(len(self.cameras), width) * 0.1)
        if text is not None:
            self.text_in = nn.Sequential(nn.LayerNorm(text.width), nn.Linear(text.width, width))
            self.text_embedding = nn.Parameter(torch.randn(width) * 0.1)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, 0.0) for _ in range(layers)])
        self.norm = nn.LayerNorm(width) if layers else nn.Identity()

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the backbone reads."""
        frozen = self.encoder is not None and not self.encoder.trainable
        return ModelInputs(
            state_size=self.state_size or 0,
            cameras=self.cameras,
            encoder=self.encoder if frozen else None,
            instruction=self.text is not None,
        )

    def own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over all weights and buffers but those of frozen encoders."""
        frozen = tuple(
            f"{name}."
            for name, part in (("encoder", self.encoder), ("text", self.text))
            if part is not None and not part.trainable
        )
        for name, weight in super().own_weights():
            if not name.startswith(frozen):
                yield name, weight

    def read(self, observation: Observation) -> Observation:
        """Return the state, the features or frames of the cameras, and the instructions, as far as they are read.

        Raises:
            ValueError: If the state has another width, a camera is missing, or the state size is not known yet.
        """
        if self.state_size is None:
            require_sizes(self)
        if self.state_size and observation.state.shape[1] != self.state_size:
            raise ValueError(
                f"expected a state of width {self.state_size}, got {observation.state.shape[1]}: the backbone was made "
                "for another robot, or other data"
            )
        frames: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for camera in self.cameras:
            name = self._feature(camera)
            if name in observation.features:
                features[name] = observation.features[name]
            elif camera in observation.frames:
                frames[camera] = observation.frames[camera]
            else:
                held = sorted([*observation.frames, *observation.features]) or "none"
                raise ValueError(
                    f"expected frames of camera {camera!r}" + (f" or features {name!r}" if name else "") + f", got "
                    f"{held}: load that camera with the data (cameras), or name it where the policy acts (frames of "
                    "RolloutData, --camera)"
                )
        return Observation(
            state=observation.state if self.state_size else observation.state[:, :0],
            frames=frames,
            features=features,
            instructions=observation.instructions if self.text is not None else ("",) * len(observation),
        )

    def _feature(self, camera: str) -> str:
        """Return the name of a camera's features; of a trainable encoder none may be kept, and the name is empty."""
        return f"{self.encoder.name}/{camera}" if self.encoder is not None and not self.encoder.trainable else ""

    def forward(self, observation: Observation) -> ObservationTokens:
        """Compute the tokens of M observations: state, cameras in order, instruction.

        Raises:
            ValueError: If something that is read is missing or has another width.
        """
        read = self.read(observation)
        parts: list[Tensor] = []
        if self.state_size:
            parts.append(self.state_network(self.state_in(read)).unflatten(1, (self.state_tokens, self.width)))
        for place, camera in enumerate(self.cameras):
            parts.append(self.vision_in(self._seen(read, camera)) + self.camera_embedding[place])
        if self.text is not None:
            parts.append(self._instructed(self.text, read.instructions)[:, None] + self.text_embedding)
        stream = torch.cat(parts, 1)
        mask = torch.ones(stream.shape[:2], dtype=torch.bool, device=stream.device)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            stream = block.mix(stream, *block.split(stream), mask[:, None, None])
        return ObservationTokens(hidden=self.norm(stream), mask=mask)

    def _seen(self, read: Observation, camera: str) -> Float[Tensor, "M K E"]:
        """Return the features of a camera: K tokens of an encoder that gives several, else one."""
        assert self.encoder is not None
        device = self.camera_embedding.device
        found = read.features.get(self._feature(camera))
        if found is None:
            frames = read.frames[camera]
            grad = self.encoder.trainable and torch.is_grad_enabled()
            found = self.encoder(frames) if grad else self.encoder.encode(frames)
        found = found.to(device).float()
        found = found[:, None] if found.ndim == 2 else found
        if found.shape[-1] != self.encoder.width:
            raise ValueError(
                f"expected features of width {self.encoder.width} of camera {camera!r}, got {found.shape[-1]}: load "
                f"those of {self.encoder.name}, or frames"
            )
        return found

    def _instructed(self, text: TextEncoder, instructions: Sequence[str]) -> Float[Tensor, "M D"]:
        distinct = {instruction: place for place, instruction in enumerate(dict.fromkeys(instructions))}
        encoded = self.text_in(text(list(distinct)).float())
        return encoded[torch.tensor([distinct[i] for i in instructions], dtype=torch.long, device=encoded.device)]


__all__ = ["EncoderBackbone"]
