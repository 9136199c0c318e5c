"""What reward models that look at observations share: inputs, normalisation, fusion, time, and holding values."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.language import TextEncoder
from ..backbones.model_inputs import ModelInputs
from ..backbones.temporal import CausalTransformer
from ..backbones.vision import VisionEncoder
from ..core.batch import Labelled, Sampled, TrajectoryBatch
from ..core.interfaces import RewardModel

_CLIP = 10.0  # standard deviations; a policy that leaves the training data must not blow a reward up


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Evaluated observations: the model looks here and holds what it saw in between."""

    step: Int[Tensor, "B K"]
    """Observation index, ascending; −1 pads, at the end."""
    hidden: Float[Tensor, "B K D"]

    @property
    def mask(self) -> Bool[Tensor, "B K"]:
        """True on real tokens."""
        return self.step >= 0

    def beside(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """The batch on the device of the tokens."""
        return batch if batch.mask.device == self.step.device else batch.to(self.step.device)

    def held(self, batch: TrajectoryBatch) -> tuple[Int[Tensor, "B Tp1"], Bool[Tensor, "B Tp1"]]:
        """Token held at every observation, and whether there is one and the observation was made."""
        index = torch.arange(batch.mask.shape[1] + 1, device=self.step.device).expand(len(batch), -1)
        token = _last_at_or_before(self.step, index.contiguous())
        return token.clamp(min=0), (token >= 0) & batch.made

    def at(self, label: Labelled) -> Labelled:
        """A label per observation at the tokens' observations; invalid on padding."""
        step = self.step.clamp(min=0)
        valid = label.valid.gather(1, step) & self.mask
        values = label.values.gather(1, step).float()
        return Labelled(values=torch.where(valid, values, 0.0), valid=valid)

    def weight(self, batch: TrajectoryBatch) -> Float[Tensor, "B K"]:
        """Weight of each token: that of the heavier of the two steps at its observation."""
        weight = torch.where(batch.mask, batch.weight, 0.0)
        around = torch.maximum(functional.pad(weight, (0, 1)), functional.pad(weight, (1, 0)))
        return torch.where(self.mask, around.gather(1, self.step.clamp(min=0)), 0.0)


def _last_at_or_before(step: Tensor, wanted: Tensor) -> Tensor:
    """Place of the last of the ascending steps (−1 pads) at or before each wanted one; −1 where there is none."""
    far = torch.iinfo(step.dtype).max
    ascending = torch.where(step >= 0, step, far).contiguous()
    return torch.searchsorted(ascending, wanted.to(step.dtype), right=True) - 1


class ObservedReward(RewardModel):
    """Base of reward models over any subset of state, frames and instruction.

    Without cameras every observation is evaluated; with cameras those at which a camera has a frame, each with what the
    other cameras showed last. A row without any frame gets no estimate.

    Args:
        state_size: S; 0 reads no state.
        cameras: Cameras to look through.
        encoder: Turns frames into features. A frozen one reads ``batch.features["<encoder.name>/<camera>"]`` where that
            is there, and frames otherwise.
        text: Turns instructions into features, which scale and shift every channel (FiLM, Perez et al. 2018,
            arXiv:1709.07871), so that the instruction can change any decision.
        width: D of the hidden stream.
        layers: Blocks of the causal transformer; 0 looks at each observation alone.
        heads: Attention heads.
        dropout: Of the transformer.
        positions: Tell the transformer the time, which makes it easy to read progress off a clock.
        fusion: Mean or sum of the cameras' projections.
        frame_size: Shorter side of the frames, in pixels; None as recorded.
        frames_every: Every how many recorded frames one is evaluated when scoring; the last one always is.
        since_start: Also show how a camera's features changed since the row's first frame, so that what a scene looked
            like before need not be learned by heart.

    Raises:
        ValueError: If it would read nothing, or cameras come without an encoder or the other way round.
    """

    causal = True

    def __init__(
        self,
        state_size: int = 0,
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
        if state_size < 0 or (state_size == 0 and not cameras):
            raise ValueError(f"state_size {state_size} and no camera: the model would see nothing; give one of them")
        if bool(cameras) != (encoder is not None):
            raise ValueError("cameras and an encoder belong together: give both or neither")
        if frames_every < 1 or width < 1 or layers < 0:
            raise ValueError(f"width {width}, layers {layers}, frames_every {frames_every}: expected positive numbers")
        self.state_size, self.cameras, self.fusion = state_size, tuple(cameras), fusion
        self.frame_size, self.frames_every, self.width = frame_size, frames_every, width
        self.encoder, self.text, self.since_start = encoder, text, since_start
        if state_size:
            self.register_buffer("state_mean", torch.zeros(state_size))
            self.register_buffer("state_std", torch.ones(state_size))
            self.register_buffer("state_count", torch.zeros((), dtype=torch.float64))
            self.state_in = nn.Linear(state_size, width)
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

    state_mean: Tensor
    state_std: Tensor
    state_count: Tensor

    @property
    def inputs(self) -> ModelInputs:
        """What the model reads."""
        frozen = self.encoder is not None and not self.encoder.trainable
        return ModelInputs(
            state_size=self.state_size,
            cameras=self.cameras,
            frame_size=self.frame_size,
            frames_every=self.frames_every,
            encoder=self.encoder if frozen else None,
            instruction=self.text is not None,
        )

    @property
    def normalised(self) -> bool:
        """Whether the state's mean and deviation are known, or there is no state."""
        return not self.state_size or float(self.state_count) > 0

    @torch.no_grad()
    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Set the state's mean and deviation from the observations of a data set; a constant number keeps its scale.

        Raises:
            ValueError: If the batches hold no observation.
        """
        if not self.state_size:
            return
        count, mean, square = 0, torch.zeros(self.state_size).double(), torch.zeros(self.state_size).double()
        for batch in batches:
            self._check_state(batch)
            seen = batch.state[batch.made].double().cpu()
            if not len(seen):
                continue
            # Chan et al. (1983): merge means and sums of squares, so that large offsets cost no digits
            total, gap = count + len(seen), seen.mean(0) - mean
            square += (seen - seen.mean(0)).square().sum(0) + gap.square() * count * len(seen) / total
            mean += gap * len(seen) / total
            count = total
        if not count:
            raise ValueError("cannot normalise: the training data hold no observation with a state")
        std = (square / count).sqrt()
        self.state_mean.copy_(mean)
        self.state_std.copy_(torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0))
        self.state_count.fill_(count)

    def _check_state(self, batch: TrajectoryBatch) -> None:
        got = batch.state.shape[2]
        if got != self.state_size:
            raise ValueError(
                f"{type(self).__name__} reads a state of {self.state_size} numbers, these trajectories have {got}: "
                "train a model for this robot, or pass the trajectories the model was made for"
            )

    def look(self, batch: TrajectoryBatch) -> Tokens:
        """Encode the evaluated observations of a batch.

        Raises:
            ValueError: If the state has another width, no camera of the model is there, or a real number is NaN.
        """
        device = self.norm.weight.device
        batch = batch if batch.mask.device == device else batch.to(device)
        seen = {c: self._seen(batch, c) for c in self.cameras}
        step = self._steps(batch.made, [s.step for s in seen.values() if s is not None])
        stream = torch.zeros(*step.shape, self.width, device=device)
        if self.state_size:
            self._check_state(batch)
            state = batch.state.gather(1, step.clamp(min=0)[..., None].expand(-1, -1, self.state_size)).float()
            state = torch.where((step >= 0)[..., None], (state - self.state_mean) / self.state_std, 0.0)
            if not bool(state.isfinite().all()):
                raise ValueError("a state is NaN or infinite at a real observation: remove or repair the episode")
            stream = stream + self.state_in(state.clamp(-_CLIP, _CLIP))
        if self.cameras:
            stream = stream + self._vision(seen, step)
        stream = self.mix(stream)
        if self.text is not None:
            scale, shift = self._instruction(batch).unsqueeze(1).chunk(2, dim=-1)
            stream = stream * (1 + scale) + shift
        stream = self.after(stream)
        if self.temporal is not None:
            stream = stream + self.temporal(stream, step >= 0, step.clamp(min=0))
        hidden = torch.where((step >= 0)[..., None], self.norm(stream), 0.0)
        return Tokens(step=step, hidden=hidden)

    def _instruction(self, batch: TrajectoryBatch) -> Float[Tensor, "B W"]:
        assert self.text is not None
        distinct = {text: i for i, text in enumerate(dict.fromkeys(batch.instructions))}
        film = self.film(self.text(list(distinct)).float())
        return film[torch.tensor([distinct[t] for t in batch.instructions], device=film.device)]

    def _seen(self, batch: TrajectoryBatch, camera: str) -> Sampled | None:
        """Features (B, F, E) of a camera where the batch has it."""
        assert self.encoder is not None
        device = self.norm.weight.device
        stored = batch.features.get(f"{self.encoder.name}/{camera}") if not self.encoder.trainable else None
        if stored is not None:
            values = stored.values.to(device).float()
            values = values.mean(2) if values.ndim == 4 else values
            return Sampled(values=values, step=stored.step.to(device))
        frames = batch.frames.get(camera)
        return None if frames is None else encode_frames(self.encoder, frames)

    def _steps(self, made: Bool[Tensor, "B Tp1"], steps: list[Tensor]) -> Int[Tensor, "B K"]:
        """Observations to evaluate, ascending, −1 padded; at least one column."""
        index = torch.arange(made.shape[1], device=made.device).expand_as(made)
        if not self.cameras:
            return torch.where(made, index, -1)
        if not steps:
            names = ", ".join(self.cameras)
            raise ValueError(f"{type(self).__name__} looks through {names}: the trajectories hold no frame of these")
        shown = torch.zeros_like(made)
        for step in steps:
            row, place = (step >= 0).nonzero(as_tuple=True)
            shown[row, step[row, place]] = True
        shown &= made
        longest = max(int(shown.sum(1).max()) if len(made) else 0, 1)
        far = made.shape[1]
        ascending = torch.where(shown, index, far).sort(1).values[:, :longest]
        return torch.where(ascending == far, -1, ascending)

    def _vision(self, seen: dict[str, Sampled | None], step: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """What the cameras show at the tokens, each its last frame, fused."""
        total = torch.zeros(*step.shape, self.width, device=step.device)
        count = torch.zeros(*step.shape, 1, device=step.device)
        for i, camera in enumerate(self.cameras):
            sampled = seen[camera]
            if sampled is None or not sampled.step.shape[1]:
                continue
            place = _last_at_or_before(sampled.step, step.contiguous())
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
    """Features (B, F, E) of the frames that are there, on the encoder's device; a trained encoder gets its gradient."""
    shown = frames.values[frames.mask]
    grad = encoder.trainable and torch.is_grad_enabled()
    encoded = (encoder(shown) if grad else encoder.encode(shown)).float()
    mask = frames.mask.to(encoded.device)
    values = encoded.new_zeros(*mask.shape, encoded.shape[-1]).masked_scatter(mask[..., None], encoded)
    return Sampled(values=values, step=frames.step.to(encoded.device))


def balanced_bernoulli(
    logit: Float[Tensor, "B K"], target: Labelled, weight: Float[Tensor, "B K"]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Cross-entropy of success in which positives and negatives count the same, however rare one of them is.

    ½ · mean over positives of −log σ(z) + ½ · mean over negatives of −log(1 − σ(z)); means weighted by ``weight`` and
    by the target itself where it lies between 0 and 1. A side without an entry contributes 0.

    Returns:
        The loss, and how many positives and negatives it was made of (by weight).
    """
    used = torch.where(target.valid, weight, 0.0)
    positive, negative = used * target.values, used * (1 - target.values)

    def mean(loss: Tensor, share: Tensor) -> Tensor:
        total = share.sum()
        return (loss * share).sum() / torch.where(total > 0, total, 1.0)

    loss = 0.5 * mean(functional.softplus(-logit), positive) + 0.5 * mean(functional.softplus(logit), negative)
    return loss, {"success_positives": positive.sum().detach(), "success_negatives": negative.sum().detach()}


def required_label(batch: TrajectoryBatch, names: tuple[str, ...], model: str) -> dict[str, Labelled]:
    """Those of the named labels that the batch holds.

    Raises:
        ValueError: If it holds none of them.
    """
    found = {name: batch.labels[name] for name in names if name in batch.labels}
    if not found:
        raise ValueError(
            f"{model} learns from labels {' and '.join(names)}, this batch holds {sorted(batch.labels) or 'none'}: add "
            "them with guerdon.datasets.labels.LabelFactory, or train through EpisodeData, which does"
        )
    return found
