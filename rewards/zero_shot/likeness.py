"""Base of zero-shot rewards by similarity S of frames to a goal, which holds between frames.

| class | S of observation o | range |
|---|---|---|
| `similarity.GoalSimilarity` | cosine of picture and text, projected towards goal minus baseline | [−1, 1] |
| `image_goal.ImageGoalDistance`, ``"l2"`` | −‖φ(o) − φ(g)‖ (VIP) | (−∞, 0] |
| `image_goal.ImageGoalDistance`, ``"cosine"`` | cos(φ(o), φ(g)) (LIV) | [−1, 1] |

``pays="level"`` rewards step t with S_{t+1}, ``pays="change"`` with S_{t+1} − S_t. S is no progress, because it has no
scale of how much is done, until `SimilarityReward.fit_scale` fits one.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...backbones.model_inputs import ModelInputs
from ...backbones.vision import VisionEncoder
from ...core.batch import End, Labelled, RewardEstimates, Sampled, TrajectoryBatch
from ...core.interfaces import RewardModel
from ..encoded_observations import EncodedObservations
from ..moments import each_once
from ..observation_encoder import encode_frames


class SimilarityReward(RewardModel):
    """Base of rewards that are a similarity S of frames to a goal; a subclass writes ``likeness``.

    S is computed at every frame and holds until the next one. With several cameras it is the mean over those that have
    shown a frame. Steps whose observations have no S (no frame yet, no goal) are invalid. The term ``"similarity"``
    holds S of the observation after each step.

    Args:
        encoder: Vision encoder of the frames. A frozen one reads ``batch.features["<encoder.name>/<camera>"]`` where
            the batch holds them, and frames otherwise.
        cameras: Names of the cameras to read, each once.
        pays: Reward: ``"level"`` S_{t+1}, or ``"change"`` S_{t+1} − S_t, which sums over a row to the last S minus the
            first.
        frame_size: Shorter side of the frames, in pixels; None keeps the recorded size.
        frames_every: Stride over recorded frames when scoring, at least 1; the last frame is always evaluated.

    Raises:
        ValueError: If there is no camera, or one twice, or an argument is out of its range.
    """

    causal = True

    def __init__(
        self,
        encoder: VisionEncoder,
        cameras: tuple[str, ...] | list[str],
        pays: Literal["level", "change"] = "level",
        frame_size: int | None = None,
        frames_every: int = 1,
    ) -> None:
        super().__init__()
        self.cameras = each_once("cameras", cameras)
        if frames_every < 1 or pays not in ("level", "change"):
            raise ValueError(f"frames_every {frames_every}, pays {pays!r}: expected 1 or more, and 'level' or 'change'")
        self.encoder, self.pays = encoder, pays
        self.frame_size, self.frames_every = frame_size, frames_every
        self.register_buffer("scale", torch.zeros(2))
        self.scale: Tensor
        """S at progress 0 and at progress 1; equal until `fit_scale` is called."""

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the model reads."""
        return ModelInputs(
            cameras=self.cameras,
            frame_size=self.frame_size,
            frames_every=self.frames_every,
            encoder=None if self.encoder.trainable else self.encoder,
            instruction=True,
        )

    def likeness(
        self, features: Float[Tensor, "B F D"], camera: int, batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B F"], Bool[Tensor, " B"]]:
        """Compute S of the frames of one camera, and which rows have a goal for it.

        Args:
            features: Features of the frames; 0 in the padding.
            camera: Place of the camera in ``cameras``.
            batch: The trajectories, on the same device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no similarity: write likeness(features, camera, batch)")

    @torch.no_grad()
    def similarity(self, batch: TrajectoryBatch) -> Labelled:
        """Compute S at every observation (B, T+1), on the model's device; 0 and invalid where it is unknown.

        Raises:
            ValueError: If the batch has no frame or feature of any of the cameras, or a feature is not a number.
        """
        batch = batch if batch.mask.device == self.scale.device else batch.to(self.scale.device)
        total = torch.zeros_like(batch.made, dtype=torch.float32)
        count = torch.zeros_like(total)
        seen = {place: self._features(batch, camera) for place, camera in enumerate(self.cameras)}
        if all(features is None for features in seen.values()):
            held = ", ".join(sorted({*batch.frames, *batch.features})) or "nothing"
            raise ValueError(
                f"{type(self).__name__} looks through {', '.join(self.cameras)}: the trajectories hold no frame of "
                f"these, and no feature {self.encoder.name}/…, but {held}"
            )
        for place, features in seen.items():
            if features is None or not features.step.shape[1]:
                continue
            values, known = self.likeness(features.values, place, batch)
            frame, shown = EncodedObservations(step=features.step, hidden=features.values).last_at_observations(batch)
            shown = shown & known[:, None]
            total = total + torch.where(shown, values.gather(1, frame), 0.0)
            count = count + shown
        return Labelled(values=total / count.clamp(min=1), valid=count > 0)

    def _features(self, batch: TrajectoryBatch, camera: str) -> Sampled | None:
        """Return the features (B, F, D) of a camera, 0 in the padding; None where the batch does not hold it."""
        stored = None if self.encoder.trainable else batch.features.get(f"{self.encoder.name}/{camera}")
        if stored is None:
            frames = batch.frames.get(camera)
            if frames is None:
                return None
            stored = encode_frames(self.encoder, frames)
        values, step = stored.values.to(self.scale.device).float(), stored.step.to(self.scale.device)
        values = values.mean(2) if values.ndim == 4 else values
        values = torch.where((step >= 0)[..., None], values, 0.0)
        if not bool(values.isfinite().all()):
            raise ValueError(f"a feature of camera {camera} is NaN or infinite: compute the features again")
        return Sampled(values=values, step=step)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Pay the similarity or its change; progress is estimated once `fit_scale` has been called.

        Raises:
            ValueError: See `similarity`.
        """
        found = self.similarity(batch)
        mask = batch.mask.to(found.valid.device)
        valid = found.valid[:, 1:] & mask
        rewards = found.values[:, 1:]
        if self.pays == "change":
            valid = valid & found.valid[:, :-1]
            rewards = rewards - found.values[:, :-1]
        term = torch.where(valid, found.values[:, 1:], 0.0)
        return RewardEstimates(
            rewards=torch.where(valid, rewards, 0.0),
            valid=valid,
            progress=self._progress(found),
            terms={"similarity": term},
        )

    def _progress(self, found: Labelled) -> Labelled | None:
        low, high = self.scale.tolist()
        if low == high:
            return None
        values = ((found.values - low) / (high - low)).clamp(0, 1)
        return Labelled(values=torch.where(found.valid, values, 0.0), valid=found.valid)

    def fit_scale(self, batches: Iterable[TrajectoryBatch]) -> tuple[float, float]:
        """Fit the scale of progress, the same for all goals: (S − low) / (high − low), clipped to [0, 1].

        Low is the mean S at the beginnings of episodes, high the mean at the ends of successes. Whether S rises in
        between has to be measured with ``guerdon evaluate`` on other episodes.

        Args:
            batches: Batches of episodes with frames or cached features.

        Returns:
            Low and high.

        Raises:
            ValueError: If there is no beginning, no success, or S is not larger after successes.
        """
        first: list[Tensor] = []
        last: list[Tensor] = []
        for batch in batches:
            found = self.similarity(batch)
            begins = (batch.offset == 0).to(found.valid.device) & found.valid[:, 0]
            ends, rows = last_observation(batch).to(found.valid.device), succeeded(batch).to(found.valid.device)
            rows = rows & found.valid.gather(1, ends[:, None])[:, 0]
            first.append(found.values[begins, 0])
            last.append(found.values.gather(1, ends[:, None])[rows, 0])
        if not sum(map(len, first)) or not sum(map(len, last)):
            raise ValueError("cannot fit a scale: expected beginnings of episodes, and ends of successful ones")
        low, high = float(torch.cat(first).mean()), float(torch.cat(last).mean())
        if high <= low:
            raise ValueError(
                f"S is {high:.4g} at the ends of successes and {low:.4g} at beginnings: it does not tell how much is "
                "done here; try other prompts, a baseline, another encoder or another camera"
            )
        self.scale.copy_(torch.tensor([low, high]))
        return low, high


def succeeded(batch: TrajectoryBatch) -> Bool[Tensor, " B"]:
    """Find the rows that reach the end of their episode, which is known to be a success."""
    finished = (batch.offset + batch.steps >= batch.length) & (batch.steps > 0)
    return (batch.end == End.SUCCESS) | (finished & batch.success_known & (batch.success >= 1))


def last_observation(batch: TrajectoryBatch) -> Int[Tensor, " B"]:
    """Return the index (B,) of the last observation that was made; 0 in rows without a step."""
    index = torch.arange(batch.made.shape[1], device=batch.made.device)
    return torch.where(batch.made, index, 0).amax(1)


__all__ = ["SimilarityReward", "last_observation", "succeeded"]
