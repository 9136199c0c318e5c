"""Vision encoders: uint8 frames in, one feature vector per frame out, resizing and normalisation included."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ..core.interfaces import Component
from .revision import weights_revision

V = TypeVar("V", bound="VisionEncoder")

MICRO_BATCH = 256
"""Frames moved to the encoder's device at a time, unless told otherwise."""

CPU_MICRO_BATCH = 16
"""At most so many frames at a time on a CPU, whatever is asked: more leave its caches and took about twice as long."""


class VisionEncoder(Component):
    """Base of the vision encoders; a subclass writes ``preprocess`` and ``features``.

    Frames stay where they are (usually on the host); micro-batches of them move to the device of the encoder's
    parameters, and the features stay there. A frozen encoder (``trainable`` False) is in evaluation mode always, also
    when a module around it is put in training mode.
    """

    width: int
    """D, numbers per feature vector."""
    name: str
    """Stable identity without a slash: the first part of a feature key ``"encoder/camera"``."""
    trainable: bool
    """Whether gradients reach the weights; features of a trainable encoder must not be kept across updates."""

    @property
    def revision(self) -> str:
        """Hash of the weights as they are now, 16 hexadecimal digits."""
        return weights_revision(self)

    def preprocess(self, frames: UInt8[Tensor, "M 3 H W"]) -> Float[Tensor, "M 3 h w"]:
        """Resize and normalise frames that are on the encoder's device already."""
        raise NotImplementedError(f"{type(self).__name__} cannot read frames: write preprocess(frames)")

    def features(self, pixels: Float[Tensor, "M 3 h w"]) -> Float[Tensor, "M D"]:
        """Turn preprocessed pixels into features."""
        raise NotImplementedError(f"{type(self).__name__} gives no features: write features(pixels)")

    def forward(self, frames: UInt8[Tensor, "M C H W"]) -> Float[Tensor, "M D"]:
        """Encode RGB frames, with gradients where the encoder is trainable.

        Raises:
            TypeError: If the frames are not uint8.
            ValueError: If they do not have three channels or are empty.
        """
        return self._in_micro_batches(frames, MICRO_BATCH)

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "M C H W"], micro_batch: int = MICRO_BATCH) -> Float[Tensor, "M D"]:
        """Encode RGB frames without gradients, ``micro_batch`` at a time; the result is on the encoder's device."""
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: expected at least one frame at a time")
        return self._in_micro_batches(frames, micro_batch)

    def _in_micro_batches(self, frames: Tensor, micro_batch: int) -> Tensor:
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames are {frames.dtype}: expected uint8 RGB in 0…255, channels first")
        if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape[2:]:
            raise ValueError(f"frames have shape {tuple(frames.shape)}: expected (M, 3, H, W), RGB, channels first")
        device = next(self.parameters()).device
        if not len(frames):
            return torch.zeros(0, self.width, device=device)
        if device.type == "cpu":
            micro_batch = min(micro_batch, CPU_MICRO_BATCH)
        parts = [self.features(self.preprocess(part.to(device))) for part in frames.split(micro_batch)]
        return torch.cat(parts)

    def train(self: V, mode: bool = True) -> V:
        """Switch mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and self.trainable)


def resize(frames: UInt8[Tensor, "M 3 H W"], height: int, width: int, mode: str) -> Float[Tensor, "M 3 h w"]:
    """Resize with an antialiasing filter; the result holds whole numbers from 0 to 255, as an image library gives.

    Args:
        frames: RGB frames.
        height: Rows of the result.
        width: Columns of the result.
        mode: ``"bilinear"`` or ``"bicubic"`` (a = −0.5, Pillow's).
    """
    if frames.shape[2:] == (height, width):
        return frames.float()
    if frames.device.type == "cpu":  # torch has Pillow's own fixed-point kernel for bytes there, and it is faster
        frames = frames.contiguous(memory_format=torch.channels_last)
        return functional.interpolate(frames, (height, width), mode=mode, antialias=True).float()
    resized = functional.interpolate(frames.float(), (height, width), mode=mode, antialias=True)
    return resized.round().clamp(0, 255)


class ConvEncoder(VisionEncoder):
    """Small convolutional network to train from scratch, fast on a CPU.

    Stride-2 convolutions with GroupNorm (training and evaluation agree, unlike with BatchNorm), then per channel the
    mean and the expected position under a spatial softmax (Levine et al. 2016, arXiv:1504.00702, §5.2: it keeps *where*
    something is at a cost of two numbers), then a linear layer.

    Args:
        width: D, numbers per feature vector.
        channels: Channels after each stride-2 convolution; their number sets the depth.
        size: Height and width the whole frame is resized to (its aspect ratio is not kept, so nothing is cropped).
    """

    def __init__(self, width: int = 128, channels: Sequence[int] = (16, 32, 64, 128), size: int = 96) -> None:
        super().__init__()
        if width < 1 or not channels or min(channels) < 1:
            raise ValueError(f"width {width} and channels {list(channels)}: expected positive numbers, one at least")
        cells = math.ceil(size / 2 ** len(channels))
        if size < 1 or cells < 2:
            raise ValueError(
                f"size {size} leaves {max(cells, 0)} cell after {len(channels)} halvings: expected at least 2; "
                f"take a size above {2 ** len(channels)} or fewer channels"
            )
        self.width = width
        self.size = size
        self.name = f"convnet-{size}"
        self.trainable = True
        layers: list[nn.Module] = []
        incoming = 3
        for i, outgoing in enumerate(channels):
            kernel = 5 if i == 0 else 3
            layers += [
                nn.Conv2d(incoming, outgoing, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.GroupNorm(math.gcd(outgoing, 8), outgoing),
                nn.ReLU(inplace=True),
            ]
            incoming = outgoing
        self.layers = nn.Sequential(*layers)
        self.temperature = nn.Parameter(torch.ones(incoming, 1))
        self.head = nn.Linear(3 * incoming, width)
        self.register_buffer("grid", torch.linspace(-1.0, 1.0, cells), persistent=False)
        self.grid: Tensor

    def preprocess(self, frames: UInt8[Tensor, "M 3 H W"]) -> Float[Tensor, "M 3 h w"]:
        """Resize the whole frame to (size, size) and map 0…255 to −1…1."""
        return resize(frames, self.size, self.size, "bilinear").div_(127.5).sub_(1.0)

    def features(self, pixels: Float[Tensor, "M 3 h w"]) -> Float[Tensor, "M D"]:
        """Convolve, then pool each channel into its mean and its expected column and row in −1…1."""
        maps = self.layers(pixels.contiguous(memory_format=torch.channels_last))
        where = torch.softmax(maps.flatten(2) * self.temperature, dim=-1).view(maps.shape)
        column = where.sum(2) @ self.grid
        row = where.sum(3) @ self.grid
        return self.head(torch.cat([maps.mean((2, 3)), column, row], dim=1))
