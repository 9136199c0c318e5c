"""How critics read an observation: standardised state, features of frozen encoders, and networks on them alone."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.language import TextEncoder
from ..backbones.model_inputs import ModelInputs
from ..backbones.vision import VisionEncoder
from ..core.batch import Observation
from ..core.interfaces import Component

N = TypeVar("N", bound="ObservationReader")
_CLIP = 10.0  # standard deviations; an extreme nobody has seen must not blow a value up


class Scale(nn.Module):
    """Mean, deviation and range of W numbers, taken from data once and kept with the weights."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("low", torch.zeros(width))
        self.register_buffer("high", torch.zeros(width))

    def forward(self, values: Float[Tensor, "*shape W"]) -> Float[Tensor, "*shape W"]:
        """Standardise, and clip to ten standard deviations."""
        return ((values.to(self.mean.device) - self.mean) / self.std).clamp(-_CLIP, _CLIP)

    @torch.no_grad()
    def fit(self, values: Float[Tensor, "M W"], floor: float) -> None:
        """Take mean, deviation and range; what hardly moves keeps the scale ``floor``, what never does the scale 1.

        A gripper that nobody moved may be moved later: in units of its rounding it would be at the clip at once.
        """
        if not values.shape[1]:
            return
        self.mean.copy_(values.double().mean(0))
        self.low.copy_(values.amin(0))
        self.high.copy_(values.amax(0))
        std = values.double().std(0, correction=0).clamp(min=floor)
        self.std.copy_(torch.where(self.high > self.low, std, 1.0))


def check_values(name: str, values: Float[Tensor, "M W"], size: int) -> None:
    """Refuse to take scales from nothing, from another width, or from what is no number."""
    if values.shape[1] != size:
        raise ValueError(
            f"the network was made for {name}s of width {size}, the data have {values.shape[1]}: set its {name}_size"
        )
    if not len(values):
        raise ValueError(f"there is no {name} in the data to take scales from")
    if not bool(values.isfinite().all()):
        raise ValueError(f"a {name} is NaN or infinite: repair the data, or leave the episode out")


def perceptron(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers with layer norm and GELU between them, down to one number."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.LayerNorm(size), nn.GELU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


class ObservationReader(Component):
    """Base of the networks of critics: what they read of an observation, and with which scales.

    States are standardised with scales that are taken from data. Frames come as features of a frozen encoder,
    ``features["<encoder.name>/<camera>"]``, or are encoded where an observation holds frames only.

    Args:
        state_size: S; 0 reads no state.
        cameras: Cameras to look through.
        encoder: Frozen encoder of their frames.
        text: Frozen encoder of instructions; None does not read them, so that the network serves one task only.
        frame_size: Shorter side of the frames that the encoder is shown, in pixels; None as recorded.

    Raises:
        ValueError: If a size makes no sense, nothing would be read, or an encoder is not frozen.
    """

    fitted: Tensor

    def __init__(
        self,
        state_size: int,
        cameras: Sequence[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        frame_size: int | None = None,
    ) -> None:
        super().__init__()
        if state_size < 0:
            raise ValueError(f"state_size {state_size}: expected the width of the state, or 0 to read none")
        if not state_size and not cameras:
            raise ValueError("state_size 0 and no camera: the critic would see nothing; give one of them")
        if bool(cameras) != (encoder is not None) or len(set(cameras)) < len(cameras):
            raise ValueError(f"cameras {list(cameras)}: expected each once, together with an encoder, or neither")
        if any(part is not None and part.trainable for part in (encoder, text)):
            raise ValueError("expected frozen encoders (trainable=False): a target network would chase a moving one")
        self.state_size, self.cameras = state_size, tuple(cameras)
        self.encoder, self.text, self.frame_size = encoder, text, frame_size
        self.state_scale = Scale(state_size)
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

    @property
    def width(self) -> int:
        """Numbers in ``vector``."""
        pictures = len(self.cameras) * (0 if self.encoder is None else self.encoder.width)
        return self.state_size + pictures + (0 if self.text is None else self.text.width)

    def scaled_state(self, observation: Observation) -> Float[Tensor, "M S"]:
        """The state, standardised; of width 0 where none is read.

        Raises:
            ValueError: If the state has another width.
        """
        state = observation.state if self.state_size else observation.state[:, :0]
        if state.shape[1] != self.state_size:
            raise ValueError(f"expected a state of width {self.state_size}, got {state.shape[1]}")
        return self.state_scale(state.float())

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
            if seen.shape[-1] != self.encoder.width:
                raise ValueError(
                    f"features {self.encoder.name}/{camera}: expected width {self.encoder.width}, got {seen.shape[-1]}"
                )
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

    def vector(self, state: Float[Tensor, "M S"], observation: Observation) -> Float[Tensor, "M W"]:
        """Standardised state, mean features of each camera and features of the instruction side by side."""
        text = self.instruction_features(observation)
        cameras = [patches.mean(1) for patches in self.camera_features(observation)]
        return torch.cat([state, *cameras, *([] if text is None else [text])], 1)

    def fit_state(self, state: Float[Tensor, "M S"]) -> None:
        """Take the scale of the state from data.

        Raises:
            ValueError: If there is nothing to fit, the width does not fit, or something is not a number.
        """
        state = state if self.state_size else state[:, :0]
        check_values("state", state, self.state_size)
        # a state that hardly moves in a handful of demonstrations may move later; see Inputs.fit
        self.state_scale.fit(state, floor=0.1)
        self.fitted.fill_(True)

    def twin(self: N) -> N:
        """A copy with weights of its own and the same frozen encoders: a target network."""
        kept = {id(part): part for part in (self.encoder, self.text) if part is not None}
        return copy.deepcopy(self, kept).requires_grad_(False).eval()


class ObservationNetwork(ObservationReader):
    """One number for an observation, such as V(s), by a perceptron over all that is read, side by side.

    Args:
        state_size: S; 0 reads no state.
        hidden: Widths of the hidden layers, each with layer norm and GELU.
        cameras: Cameras to look through; patches are averaged.
        encoder: Frozen encoder of their frames.
        text: Frozen encoder of instructions; None does not read them.
        frame_size: Shorter side of the frames that the encoder is shown, in pixels; None as recorded.
    """

    def __init__(
        self,
        state_size: int,
        hidden: Sequence[int] = (256, 256),
        cameras: Sequence[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        frame_size: int | None = None,
    ) -> None:
        super().__init__(state_size, cameras, encoder, text, frame_size)
        self.network = perceptron(self.width, hidden)

    def forward(self, observation: Observation) -> Float[Tensor, " M"]:
        """Value M observations.

        Raises:
            ValueError: If the state has another width, or a feature is missing.
        """
        return self.network(self.vector(self.scaled_state(observation), observation)).squeeze(1).float()


__all__ = ["ObservationNetwork", "ObservationReader", "Scale", "check_values", "perceptron"]
