"""Encodes observations into hidden features: inputs, normalisation, fusion, and a causal transformer over time."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..backbones.language import TextEncoder
from ..backbones.model_inputs import ModelInputs
from ..backbones.temporal import CausalTransformer
from ..backbones.vision import VisionEncoder
from ..core.batch import Sampled, TrajectoryBatch
from ..core.interfaces import Component
from ..core.sizes import require_sizes
from .encoded_observations import EncodedObservations, last_at_or_before
from .standardise import fit_moments

_CLIP = 10.0  # standard deviations; a policy that leaves the training data must not blow a reward up


class ObservationEncoder(Component):
    """Causal encoder of any subset of state, frames and instruction.

    Without cameras every observation is evaluated. With cameras those are at which a camera has a frame, each with the
    last frame of the other cameras. A row without any frame has no evaluated observation.

    Args:
        state_size: S, numbers per state; 0 reads no state. None with cameras reads no state either; None without
            cameras takes the number from the data set that the model is trained on.
        cameras: Names of the cameras to read.
        encoder: Vision encoder of the frames. A frozen one reads ``batch.features["<encoder.name>/<camera>"]`` where
            the batch holds them, and frames otherwise.
        text: Text encoder of the instructions. Its features scale and shift every channel (FiLM, Perez et al. 2018,
            arXiv:1709.07871), so that the instruction can change any decision.
        width: D, numbers per hidden feature vector.
        layers: Blocks of the causal transformer; 0 encodes each observation alone.
        heads: Attention heads of the transformer.
        dropout: Dropout probability of the transformer, in [0, 1).
        positions: Add an encoding of the time, which makes it easy to read progress off a clock.
        fusion: Mean or sum of the cameras' projections.
        frame_size: Shorter side of the frames, in pixels; None keeps the recorded size.
        frames_every: Stride over recorded frames when scoring, at least 1; the last frame is always evaluated.
        since_start: Also read how a camera's features changed since the row's first frame, so that the look of a scene
            need not be memorised.

    Raises:
        ValueError: If the encoder would read nothing, cameras come without a vision encoder or the other way round, or
            a number is out of its range.
    """

    state_mean: Tensor
    state_std: Tensor
    state_count: Tensor

    def __init__(
        self,
        state_size: int | None = None,
        cameras: tuple[str, ...] | list[str] = (),
        encoder: VisionEncoder | None = None,
        text: TextEncoder | None = None,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        positions: bool = False,
        fusion: Literal["mean", "sum"] = "mean",
        frame_size: int | None = None,
        frames_every: int = 1,
        since_start: bool = True,
    ) -> None:
        super().__init__()
        size = 0 if state_size is None and cameras else state_size
        if size is not None and (size < 0 or (size == 0 and not cameras)):
            raise ValueError(
                f"state_size {size} and no camera: the model would read nothing; give a positive state_size, leave it "
                "out to take it from the data, or name cameras"
            )
        if bool(cameras) != (encoder is not None):
            raise ValueError("cameras and a vision encoder belong together: give both or neither")
        if frames_every < 1 or width < 1 or layers < 0:
            raise ValueError(
                f"width {width}, layers {layers}, frames_every {frames_every}: expected a positive width and stride, "
                "and at least 0 layers"
            )
        self.state_size, self.cameras, self.fusion = size, tuple(cameras), fusion
        self.frame_size, self.frames_every, self.width = frame_size, frames_every, width
        self.encoder, self.text, self.since_start = encoder, text, since_start
        if size is None:
            return
        if size:
            self.register_buffer("state_mean", torch.zeros(size))
            self.register_buffer("state_std", torch.ones(size))
            self.register_buffer("state_count", torch.zeros((), dtype=torch.float64))
            self.state_in = nn.Linear(size, width)
        if encoder is not None:
            self.vision_norm = nn.LayerNorm(encoder.width)
            self.vision_in = nn.Linear(encoder.width, width)
            if since_start:
                self.change_in = nn.Linear(encoder.width, width, bias=False)
            self.camera_embedding = nn.Parameter(torch.randn(len(self.cameras), width) * 0.1)
        if text is not None:
            self.film = nn.Sequential(
                nn.LayerNorm(text.width), nn.Linear(text.width, width), nn.GELU(), nn.Linear(width, 2 * width)
            )
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.after = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.temporal = CausalTransformer(width, width, layers, heads, dropout, positions) if layers else None
        self.norm = nn.LayerNorm(width)

    def fill_state_size(self, state_size: int) -> None:
        """Build an encoder that was made without a state size, in place; one that has a size keeps it.

        Args:
            state_size: S, numbers per state; 0 reads no state.

        Raises:
            ValueError: If the encoder was made for another number.
        """
        given = self.init_args.get("state_size", self.state_size)
        if given is None:
            self.init_args["state_size"] = state_size
            if state_size != self.state_size:
                training = self.training
                type(self).__init__(self, **self.init_args)
                self.train(training)
        elif given != state_size:
            raise ValueError(
                f"state_size {state_size} of the model, and {given} of its observer: give the number to one of them"
            )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.norm.weight.device

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the encoder reads."""
        frozen = self.encoder is not None and not self.encoder.trainable
        return ModelInputs(
            state_size=self.state_size or 0,
            cameras=self.cameras,
            frame_size=self.frame_size,
            frames_every=self.frames_every,
            encoder=self.encoder if frozen else None,
            instruction=self.text is not None,
        )

    @property
    def normalised(self) -> bool:
        """Whether mean and standard deviation of the state are known, or no state is read."""
        return self.state_size == 0 or (self.state_size is not None and float(self.state_count) > 0)

    @torch.no_grad()
    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Fit mean and standard deviation of the state on the observations of a data set; a constant keeps its scale.

        Raises:
            ValueError: If the batches hold no observation, their state has another width, or the state size is not
                known yet.
        """
        self._check_built()
        if not self.state_size:
            return
        count, mean, std = fit_moments((self._observed(batch) for batch in batches), self.state_size)
        if not count:
            raise ValueError("cannot normalise: the training data hold no observation with a state")
        self.state_mean.copy_(mean)
        self.state_std.copy_(std)
        self.state_count.fill_(count)

    def _observed(self, batch: TrajectoryBatch) -> Float[Tensor, "N S"]:
        self._check_state(batch)
        return batch.state[batch.made]

    def _check_built(self) -> None:
        if self.state_size is None:
            require_sizes(self)

    def _check_state(self, batch: TrajectoryBatch) -> None:
        got = batch.state.shape[2]
        if got != self.state_size:
            raise ValueError(
                f"the model reads a state of {self.state_size} numbers, these trajectories have {got}: "
                "train a model for this robot, or pass the trajectories the model was made for"
            )

    def encode(self, batch: TrajectoryBatch) -> EncodedObservations:
        """Encode the evaluated observations of a batch, on the device of the weights.

        Raises:
            ValueError: If the state has another width, the batch holds no camera of the model, a real number is NaN, or
                the state size is not known yet.
        """
        self._check_built()
        device = self.device
        batch = batch if batch.mask.device == device else batch.to(device)
        features = {camera: self._features(batch, camera) for camera in self.cameras}
        step = self._steps(batch.made, [f.step for f in features.values() if f is not None])
        stream = torch.zeros(*step.shape, self.width, device=device)
        if self.state_size:
            stream = stream + self._state(batch, step)
        if self.cameras:
            stream = stream + self._vision(features, step)
        stream = self.mix(stream)
        if self.text is not None:
            scale, shift = self._instruction(batch).unsqueeze(1).chunk(2, dim=-1)
            stream = stream * (1 + scale) + shift
        stream = self.after(stream)
        if self.temporal is not None:
            stream = stream + self.temporal(stream, step >= 0, step.clamp(min=0))
        return EncodedObservations(step=step, hidden=torch.where((step >= 0)[..., None], self.norm(stream), 0.0))

    def _state(self, batch: TrajectoryBatch, step: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Project the normalised states at the evaluated observations."""
        self._check_state(batch)
        state = batch.state.gather(1, step.clamp(min=0)[..., None].expand(-1, -1, batch.state.shape[2])).float()
        state = torch.where((step >= 0)[..., None], (state - self.state_mean) / self.state_std, 0.0)
        if not bool(state.isfinite().all()):
            raise ValueError("a state is NaN or infinite at a real observation: remove or repair the episode")
        return self.state_in(state.clamp(-_CLIP, _CLIP))

    def _instruction(self, batch: TrajectoryBatch) -> Float[Tensor, "B W"]:
        assert self.text is not None
        distinct = {text: i for i, text in enumerate(dict.fromkeys(batch.instructions))}
        film = self.film(self.text(list(distinct)).float())
        return film[torch.tensor([distinct[t] for t in batch.instructions], device=film.device)]

    def _features(self, batch: TrajectoryBatch, camera: str) -> Sampled | None:
        """Return the features (B, F, E) of a camera, None where the batch does not hold it."""
        assert self.encoder is not None
        device = self.device
        stored = batch.features.get(f"{self.encoder.name}/{camera}") if not self.encoder.trainable else None
        if stored is not None:
            values = stored.values.to(device).float()
            values = values.mean(2) if values.ndim == 4 else values
            return Sampled(values=values, step=stored.step.to(device))
        frames = batch.frames.get(camera)
        return None if frames is None else encode_frames(self.encoder, frames)

    def _steps(self, made: Bool[Tensor, "B Tp1"], steps: list[Tensor]) -> Int[Tensor, "B K"]:
        """List the observations to evaluate, ascending, −1 padded; at least one column."""
        index = torch.arange(made.shape[1], device=made.device).expand_as(made)
        if not self.cameras:
            return torch.where(made, index, -1)
        if not steps:
            names = ", ".join(self.cameras)
            raise ValueError(f"the model looks through {names}: the trajectories hold no frame of these")
        shown = torch.zeros_like(made)
        for step in steps:
            row, place = (step >= 0).nonzero(as_tuple=True)
            shown[row, step[row, place]] = True
        shown &= made
        longest = max(int(shown.sum(1).max()) if len(made) else 0, 1)
        far = made.shape[1]
        ascending = torch.where(shown, index, far).sort(1).values[:, :longest]
        return torch.where(ascending == far, -1, ascending)

    def _vision(self, features: dict[str, Sampled | None], step: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Fuse the last frame of every camera at each evaluated observation."""
        total = torch.zeros(*step.shape, self.width, device=step.device)
        count = torch.zeros(*step.shape, 1, device=step.device)
        for i, camera in enumerate(self.cameras):
            sampled = features[camera]
            if sampled is None or not sampled.step.shape[1]:
                continue
            place = last_at_or_before(sampled.step, step.contiguous())
            known = ((place >= 0) & (step >= 0))[..., None]
            shown = self.vision_norm(torch.where(sampled.mask[..., None], sampled.values, 0.0))
            projected = self.vision_in(shown) + self.camera_embedding[i]
            if self.since_start:
                projected = projected + self.change_in(shown - shown[:, :1])
            taken = projected.gather(1, place.clamp(min=0)[..., None].expand(-1, -1, self.width))
            total = total + torch.where(known, taken, 0.0)
            count = count + known
        return total / count.clamp(min=1) if self.fusion == "mean" else total


def encode_frames(encoder: VisionEncoder, frames: Sampled) -> Sampled:
    """Encode the real frames of a camera into features (B, F, E), on the device of the vision encoder.

    A trainable encoder gets gradients. Padding holds 0.

    Args:
        encoder: Vision encoder.
        frames: uint8 frames (B, F, 3, H, W) with their observation indices.
    """
    shown = frames.values[frames.mask]
    grad = encoder.trainable and torch.is_grad_enabled()
    encoded = (encoder(shown) if grad else encoder.encode(shown)).float()
    mask = frames.mask.to(encoded.device)
    values = encoded.new_zeros(*mask.shape, encoded.shape[-1]).masked_scatter(mask[..., None], encoded)
    return Sampled(values=values, step=frames.step.to(encoded.device))


__all__ = ["ObservationEncoder", "encode_frames"]
