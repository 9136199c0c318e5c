"""Zero-shot reward by a picture of the goal: distance to it in the feature space of any encoder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...backbones.vision import VisionEncoder
from ...core.batch import TrajectoryBatch
from .likeness import SimilarityReward, last_observation, succeeded

Picture = Tensor | str | Path
"""Picture as uint8 (3, H, W), RGB, or as a file that Pillow reads."""


class ImageGoalDistance(SimilarityReward):
    """Reward for nearness of frames to a picture of the goal, in the feature space of any image encoder.

    ``"l2"`` is V(o; g) = −‖φ(o) − φ(g)‖, the value of VIP (Ma et al. 2022, arXiv:2210.00030), in (−∞, 0]; ``"cosine"``
    is that of LIV (Ma et al. 2023, arXiv:2306.00958) up to a factor, in [−1, 1]. Both pay V(o_{t+1}; g) − V(o_t; g).
    With an encoder that was not trained this way it is only a distance of features: check it on failed episodes.

    Goals belong to instructions; that of ``""`` is for every instruction without its own. A row without a goal is
    invalid. Goals are stored as features and saved with the model, so pictures are not needed again.

    Args:
        encoder: φ, vision encoder of frames and goals.
        cameras: Names of the cameras to read; each has its own goal pictures.
        pictures: Instruction → file of the goal picture, or camera → file where there are several cameras. Read once
            and not saved by name.
        instructions: Instructions that have a goal already; filled in by `set_goal`, for saved models.
        distance: Distance of features: ``"l2"`` or ``"cosine"``.
        pays: Reward: ``"change"`` of V, as in the papers, or its ``"level"``.
        frame_size: Shorter side of the frames, in pixels; None keeps the recorded size.
        frames_every: Stride over recorded frames when scoring, at least 1; the last frame is always evaluated.

    Raises:
        FileNotFoundError: If there is no such picture.
        ValueError: If a file is no picture, a camera is unknown, or an argument is out of its range.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        cameras: tuple[str, ...] | list[str],
        pictures: dict[str, Any] | None = None,
        instructions: tuple[str, ...] | list[str] = (),
        distance: Literal["l2", "cosine"] = "l2",
        pays: Literal["level", "change"] = "change",
        frame_size: int | None = None,
        frames_every: int = 1,
    ) -> None:
        super().__init__(encoder=encoder, cameras=cameras, pays=pays, frame_size=frame_size, frames_every=frames_every)
        if distance not in ("l2", "cosine") or len(set(instructions)) < len(instructions):
            raise ValueError(f"distance {distance!r}: expected 'l2' or 'cosine', and each instruction once")
        self.distance = distance
        self.instructions = list(instructions)
        self.register_buffer("goals", torch.zeros(len(instructions), len(self.cameras), encoder.width))
        self.register_buffer("known", torch.zeros(len(instructions), len(self.cameras), dtype=torch.bool))
        self.goals: Tensor
        """Features φ(g) by instruction and camera."""
        self.known: Tensor
        for instruction, given in (pictures or {}).items():
            self.set_goal(instruction, given)
        self.init_args |= {"pictures": None, "instructions": list(self.instructions)}

    def set_goal(self, instruction: str, pictures: Picture | Mapping[str, Picture]) -> None:
        """Set or replace the goal of an instruction.

        Args:
            instruction: Instruction as in the batches; ``""`` for all without their own goal.
            pictures: Goal picture, or goal pictures by camera where there are several cameras. A camera left out does
                not count for this goal.

        Raises:
            FileNotFoundError: If there is no such picture.
            TypeError: If a picture is not uint8.
            ValueError: If a file is no picture, or a camera is unknown or missing.
        """
        if not isinstance(pictures, Mapping):
            if len(self.cameras) != 1:
                raise ValueError(f"the model looks through {', '.join(self.cameras)}: give a goal picture by camera")
            pictures = {self.cameras[0]: pictures}
        unknown = sorted(set(pictures) - set(self.cameras))
        if unknown or not pictures:
            raise ValueError(f"goal pictures of {unknown or 'no camera'}: expected some of {', '.join(self.cameras)}")
        found = {c: self.encoder.encode(_picture(p)[None])[0] for c, p in pictures.items()}
        self._keep(instruction, {self.cameras.index(c): self._scaled(f) for c, f in found.items()})

    @torch.no_grad()
    def fit_goals(self, batches: Iterable[TrajectoryBatch], any_instruction: bool = False) -> dict[str, int]:
        """Fit goals to the ends of successes: the mean of φ over their last observations, by instruction.

        Args:
            batches: Batches of whole episodes with frames or cached features; only successes are used.
            any_instruction: Fit one goal to all episodes, for every instruction.

        Returns:
            Instruction → number of episodes its goal was fitted to.

        Raises:
            ValueError: If no episode succeeded, or none shows its end.
        """
        sums: dict[str, dict[int, list[Tensor]]] = {}
        counts: dict[str, int] = {}
        for batch in batches:
            batch = batch if batch.mask.device == self.scale.device else batch.to(self.scale.device)
            ends, wanted = last_observation(batch), succeeded(batch)
            seen = {place: self._features(batch, camera) for place, camera in enumerate(self.cameras)}
            for row in wanted.nonzero()[:, 0].tolist():
                name, shown = "" if any_instruction else batch.instructions[row], False
                for place, features in seen.items():
                    if features is None:
                        continue
                    frames = int(((features.step[row] >= 0) & (features.step[row] <= ends[row])).sum())
                    if frames:
                        value = self._scaled(features.values[row, frames - 1])
                        sums.setdefault(name, {}).setdefault(place, []).append(value)
                        shown = True
                counts[name] = counts.get(name, 0) + shown
        if not sums:
            raise ValueError(
                "no goal: expected whole episodes that end in success and show it to a camera of the model"
            )
        for name, by_camera in sums.items():
            self._keep(name, {place: torch.stack(values).mean(0) for place, values in by_camera.items()})
        return {name: counts[name] for name in sums}

    def _scaled(self, features: Tensor) -> Tensor:
        features = features.float().to(self.scale.device)
        return functional.normalize(features, dim=-1) if self.distance == "cosine" else features

    def _keep(self, instruction: str, by_camera: Mapping[int, Tensor]) -> None:
        if instruction not in self.instructions:
            self.instructions.append(instruction)
            self.init_args |= {"instructions": list(self.instructions)}
            self.goals = torch.cat([self.goals, self.goals.new_zeros(1, len(self.cameras), self.encoder.width)])
            self.known = torch.cat([self.known, self.known.new_zeros(1, len(self.cameras))])
        row = self.instructions.index(instruction)
        self.known[row] = False
        for place, features in by_camera.items():
            self.goals[row, place], self.known[row, place] = features, True

    def likeness(
        self, features: Float[Tensor, "B F D"], camera: int, batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B F"], Bool[Tensor, " B"]]:
        """Compute V(o; g) of every frame for its row's goal.

        Raises:
            ValueError: If the model has no goal.
        """
        if not self.instructions:
            raise ValueError("ImageGoalDistance has no goal yet: call set_goal or fit_goals, or give pictures")
        places = {instruction: place for place, instruction in enumerate(self.instructions)}
        found = [places.get(text, places.get("", -1)) for text in batch.instructions]
        index = torch.tensor(found, dtype=torch.long, device=features.device)
        goal = self.goals[index.clamp(min=0), camera][:, None]
        known = (index >= 0) & self.known[index.clamp(min=0), camera]
        if self.distance == "cosine":
            return functional.cosine_similarity(features, goal, dim=-1).clamp(-1, 1), known
        return -(features - goal).norm(dim=-1), known


def _picture(picture: Picture) -> UInt8[Tensor, "3 H W"]:
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8:
            raise TypeError(f"a goal picture is {picture.dtype}: expected uint8 RGB in 0…255, channels first")
        if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
            raise ValueError(f"a goal picture has shape {tuple(picture.shape)}: expected (3, H, W), RGB")
        return picture
    path = Path(picture).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no goal picture {path}")
    try:
        with Image.open(path) as opened:
            pixels = opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return flat.view(pixels.height, pixels.width, 3).permute(2, 0, 1).contiguous()


__all__ = ["ImageGoalDistance"]
