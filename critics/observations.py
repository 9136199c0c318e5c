"""Observations as inputs of critics: standardised state, features of frozen encoders, and networks on them alone."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.language import TextEncoder
from ..backbones.model_inputs import ModelInputs
from ..backbones.vision import VisionEncoder
from ..core.arguments import folds
from ..core.batch import Observation
from ..core.interfaces import Component
from ..core.sizes import require_sizes

N = TypeVar("N", bound="ObservationReader")
_CLIP = 10.0  # standard deviations; an extreme that was never seen must not blow a value up
_MOVED = ("encoder.", "text.")  # weights that networks saved before 0.2 hold themselves, now part of ``reads``


class Scale(nn.Module):
    """Mean, standard deviation and range of W numbers, taken from data once and saved with the weights.

    Args:
        width: Number W of values.
    """

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
        """Standardise values, and clip them to ten standard deviations."""
        return ((values.to(self.mean.device) - self.mean) / self.std).clamp(-_CLIP, _CLIP)

    @torch.no_grad()
    def fit(self, values: Float[Tensor, "M W"], floor: float) -> None:
        """Compute mean, standard deviation and range of M values.

        A value that hardly varies gets the standard deviation ``floor``, and one that never varies gets 1. A gripper
        that was never moved may be moved later: in units of its rounding errors it would reach the clip at once.

        Args:
            values: Finite numbers (M, W).
            floor: Smallest standard deviation of a value that varies.
        """
        if not values.shape[1]:
            return
        self.mean.copy_(values.double().mean(0))
        self.low.copy_(values.amin(0))
        self.high.copy_(values.amax(0))
        std = values.double().std(0, correction=0).clamp(min=floor)
        self.std.copy_(torch.where(self.high > self.low, std, 1.0))


def check_values(name: str, values: Float[Tensor, "M W"], size: int) -> None:
    """Refuse to compute scales from no value, from another width, or from NaN and infinity.

    Args:
        name: What the values are, ``"state"`` or ``"action"``.
        values: Values (M, W).
        size: Width that the network was made for.

    Raises:
        ValueError: If there is no value, the width differs, or a value is not finite.
    """
    if values.shape[1] != size:
        raise ValueError(
            f"the network was made for {name}s of width {size}, the data have {values.shape[1]}: set its {name}_size, "
            "or leave it out to take it from the data"
        )
    if not len(values):
        raise ValueError(f"there is no {name} in the data to take scales from")
    if not bool(values.isfinite().all()):
        raise ValueError(f"a {name} is NaN or infinite: repair the data, or leave the episode out")


def perceptron(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """Build a perceptron with one output; layer norm and GELU follow every hidden layer.

    Args:
        width: Number of inputs.
        hidden: Widths of the hidden layers.
    """
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.LayerNorm(size), nn.GELU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


class CriticInputs(Component):
    """Inputs of a critic's network in addition to the state: features of cameras and instructions, range of actions.

    Frames come as features of a frozen encoder, ``features["<encoder.name>/<camera>"]``, or are encoded where an
    observation holds frames only.

    Args:
        cameras: Names of the cameras that are read.
        encoder: Frozen encoder of their frames; given with ``cameras``, and only with them.
        text: Frozen encoder of instructions; None reads no instruction, so that the critic serves one task only.
        frame_size: Shorter side of the frames that the encoder gets, in pixels; None as recorded.
        action_range: Lowest and highest value that the robot executes in any action dimension, in action units.
            Actions are clipped to it before they are valued, as they are before they are executed. None clips nothing:
            a policy's sample beyond all logged actions is then valued where nothing was learned. A network that reads
            no actions does not use it.

    Raises:
        ValueError: If cameras and encoder do not go together, an encoder is not frozen, or the range is empty.
    """

    def __init__(
        self,
        cameras: Sequence[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        frame_size: int | None = None,
        action_range: Sequence[float | int] | None = None,
    ) -> None:
        super().__init__()
        if bool(cameras) != (encoder is not None) or len(set(cameras)) < len(cameras):
            raise ValueError(f"cameras {list(cameras)}: expected each once, together with an encoder, or neither")
        if any(part is not None and part.trainable for part in (encoder, text)):
            raise ValueError("expected frozen encoders (trainable=False): a target network would chase a moving one")
        if action_range is not None and (len(action_range) != 2 or not action_range[0] < action_range[1]):
            raise ValueError(f"action_range {list(action_range)}: expected a lowest and a highest number, or None")
        self.cameras, self.frame_size = tuple(cameras), frame_size
        self.encoder, self.text = encoder, text
        self.action_range = None if action_range is None else (float(action_range[0]), float(action_range[1]))

    @property
    def width(self) -> int:
        """Number of values that cameras and instruction add to an input vector."""
        pictures = len(self.cameras) * (0 if self.encoder is None else self.encoder.width)
        return pictures + (0 if self.text is None else self.text.width)

    def camera_features(self, observation: Observation, device: torch.device) -> list[Float[Tensor, "M P E"]]:
        """Return the features of each camera: P patches of width E (P = 1 where the encoder pools).

        Args:
            observation: M observations.
            device: Device of the result.

        Raises:
            ValueError: If a camera is missing, or its features have another width.
        """
        found: list[Tensor] = []
        for camera in self.cameras:
            assert self.encoder is not None
            stored = observation.features.get(f"{self.encoder.name}/{camera}")
            if stored is None and camera not in observation.frames:
                raise ValueError(
                    f"the critic reads camera {camera!r}, and these observations hold neither its frames nor "
                    f"features {self.encoder.name}/{camera}: load the camera, or its features"
                )
            seen = self.encoder.encode(observation.frames[camera]) if stored is None else stored
            if seen.shape[-1] != self.encoder.width:
                raise ValueError(
                    f"features {self.encoder.name}/{camera}: expected width {self.encoder.width}, got "
                    f"{seen.shape[-1]}; they come from another encoder"
                )
            found.append(seen.to(device).float().reshape(len(seen), -1, self.encoder.width))
        return found

    def instruction_features(self, observation: Observation, device: torch.device) -> Float[Tensor, "M E"] | None:
        """Return the features of the M instructions, each distinct one encoded once; None if they are not read."""
        if self.text is None:
            return None
        distinct = {text: i for i, text in enumerate(dict.fromkeys(observation.instructions))}
        with torch.no_grad():
            features = self.text(list(distinct)).float().to(device)
        return features[[distinct[text] for text in observation.instructions]]

    def clip(self, actions: Float[Tensor, "*shape A"]) -> Float[Tensor, "*shape A"]:
        """Clip actions to the range that the robot executes."""
        return actions if self.action_range is None else actions.clamp(*self.action_range)


class ObservationReader(Component):
    """Base of the networks of critics: standardised state, and further inputs.

    States are standardised with scales that are taken from data.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        reads: Inputs in addition to the state; None has none.

    Raises:
        ValueError: If a size is negative, or nothing would be read.
    """

    fitted: Tensor

    def __init__(self, state_size: int | None, reads: CriticInputs | None) -> None:
        super().__init__()
        self.reads = CriticInputs() if reads is None else reads
        if state_size is not None and state_size < 0:
            raise ValueError(f"state_size {state_size}: expected the width of the state, or 0 to read none")
        if state_size == 0 and not self.reads.cameras:
            raise ValueError("state_size 0 and no camera: the critic would see nothing; give one of them")
        self.state_size = state_size
        if state_size is not None:
            self.state_scale = Scale(state_size)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def built(self) -> bool:
        """Whether all sizes are known, so that the network exists."""
        return self.state_size is not None

    @property
    def inputs(self) -> ModelInputs:
        """What the network reads of a trajectory."""
        return ModelInputs(
            state_size=self.state_size or 0,
            cameras=self.reads.cameras,
            frame_size=self.reads.frame_size,
            encoder=self.reads.encoder,
            instruction=self.reads.text is not None,
        )

    @property
    def width(self) -> int:
        """Number of values in ``vector``."""
        return (self.state_size or 0) + self.reads.width

    def scaled_state(self, observation: Observation) -> Float[Tensor, "M S"]:
        """Return the standardised state; it has width 0 where none is read.

        Raises:
            ValueError: If the state has another width, or the network's sizes are not known.
        """
        if not self.built:
            require_sizes(self)
        state = observation.state if self.state_size else observation.state[:, :0]
        if state.shape[1] != self.state_size:
            raise ValueError(
                f"expected a state of width {self.state_size}, got {state.shape[1]}: the network was made for another "
                "robot, or other data"
            )
        return self.state_scale(state.float())

    def vector(self, state: Float[Tensor, "M S"], observation: Observation) -> Float[Tensor, "M W"]:
        """Concatenate standardised state, mean features of each camera, and features of the instruction."""
        device = self.fitted.device
        text = self.reads.instruction_features(observation, device)
        cameras = [patches.mean(1) for patches in self.reads.camera_features(observation, device)]
        return torch.cat([state, *cameras, *([] if text is None else [text])], 1)

    def fit_state(self, state: Float[Tensor, "M S"]) -> None:
        """Compute the scale of the state from M states.

        Raises:
            ValueError: If there is no state, its width differs, a value is not finite, or the size is not known.
        """
        require_sizes(self)
        assert self.state_size is not None
        state = state if self.state_size else state[:, :0]
        check_values("state", state, self.state_size)
        # a state that hardly moves in a handful of demonstrations may move later; see Inputs.fit
        self.state_scale.fit(state, floor=0.1)
        self.fitted.fill_(True)

    def twin(self: N) -> N:
        """Make a target network: a copy with weights of its own and the same frozen encoders."""
        return copy.deepcopy(self, {id(self.reads): self.reads}).requires_grad_(False).eval()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Rename the encoders' weights of networks saved before 0.2, and load."""
        for name in [name for name in state_dict if name.startswith(tuple(prefix + part for part in _MOVED))]:
            state_dict[f"{prefix}reads.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class ObservationNetwork(ObservationReader):
    """Perceptron from an observation to one number, such as V(s); all inputs are concatenated.

    Args:
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        hidden: Widths of the hidden layers, each followed by layer norm and GELU.
        reads: Inputs in addition to the state; the patches of a camera are averaged. None has none.
    """

    @folds(reads=CriticInputs)
    def __init__(
        self,
        state_size: int | None = None,
        hidden: Sequence[int] = (256, 256),
        reads: CriticInputs | None = None,
    ) -> None:
        super().__init__(state_size=state_size, reads=reads)
        if self.built:
            self.network = perceptron(self.width, hidden)

    def forward(self, observation: Observation) -> Float[Tensor, " M"]:
        """Value M observations.

        Raises:
            ValueError: If the state has another width, a feature is missing, or the sizes are not known.
        """
        vector = self.vector(self.scaled_state(observation), observation)
        return self.network(vector).squeeze(1).float()


__all__ = ["CriticInputs", "ObservationNetwork", "ObservationReader", "Scale", "check_values", "perceptron"]
