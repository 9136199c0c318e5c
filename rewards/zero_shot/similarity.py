"""Zero-shot reward by CLIP: similarity of frames to a goal in words."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ...backbones.language import TextEncoder
from ...backbones.openai_clip import ClipEncoder, ClipText
from ...backbones.vision import VisionEncoder
from ...core.batch import TrajectoryBatch
from .likeness import SimilarityReward

_SAME = 1e-4  # distance of two unit vectors below which float32 gives no direction between them


def goal_baseline_similarity(
    state: Float[Tensor, "*#N D"], goal: Float[Tensor, "*#N D"], baseline: Float[Tensor, "*#N D"] | None, alpha: float
) -> Float[Tensor, "..."]:
    """Compute the goal-baseline regularised similarity (Rocamonde et al. 2023, arXiv:2310.12921, §3).

    1 − ½ ‖α proj_L(s) + (1 − α) s − g‖², with s, g and b of unit length and L the line through b and g. With α = 0 it
    is the cosine s · g; with α = 1 only what lies along g − b counts. It is in [−1, 1] and never below the cosine.

    Args:
        state: s, features of frames; state, goal and baseline broadcast against each other.
        goal: g, features of the goal.
        baseline: b, features of the baseline, different from the goal; None only with α = 0.
        alpha: α, strength of the regularisation, in [0, 1].
    """
    goal = functional.normalize(goal, dim=-1)
    gap = functional.normalize(state, dim=-1) - goal
    square = gap.square().sum(-1)
    if baseline is not None and alpha > 0:
        direction = functional.normalize(goal - functional.normalize(baseline, dim=-1), dim=-1)
        # proj_L(s) − g is the part of s − g along the line, so that the two parts of the gap scale apart
        along = (gap * direction).sum(-1).square()
        square = along + (1 - alpha) ** 2 * (square - along).clamp(min=0)
    return 1 - square / 2


class GoalSimilarity(SimilarityReward):
    """Reward for similarity of frames to a goal in words, by CLIP (VLM-RM, Rocamonde et al. 2023, arXiv:2310.12921).

    With α = 0 it is the cosine of picture and text. A baseline, a text that describes the scene in any state, and α > 0
    remove directions that do not matter for the goal; see `goal_baseline_similarity`. The values are in [−1, 1], of
    which CLIP uses a narrow band. With ``pays="change"`` and α = 0 it is the language reward of LIV (Ma et al. 2023,
    arXiv:2306.00958), up to a factor, on another encoder.

    The goal of a row is its instruction put into ``template``, or its entry in ``prompts``. Rows without an
    instruction, or without a baseline where one is needed, have no goal and are invalid. Texts over 77 tokens are cut,
    with a warning.

    Args:
        encoder: Image tower of the model.
        text: Text tower of the same model.
        cameras: Names of the cameras to read, each once.
        alpha: α, strength of the regularisation, in [0, 1].
        baseline: Text of the scene in any state, for all instructions or by instruction; required with α > 0.
        prompts: Instruction → text of its goal, instead of the template.
        template: Text of the goal; holds ``{instruction}`` once.
        pays: Reward: ``"level"``, as in the paper, or ``"change"``.
        frame_size: Shorter side of the frames, in pixels; None keeps the recorded size.
        frames_every: Stride over recorded frames when scoring, at least 1; the last frame is always evaluated.

    Raises:
        ValueError: If the towers are not of one model, or an argument is out of its range.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        text: TextEncoder,
        cameras: tuple[str, ...] | list[str],
        alpha: float | int = 0.0,
        baseline: str | dict[str, str] | None = None,
        prompts: dict[str, str] | None = None,
        template: str = "{instruction}",
        pays: Literal["level", "change"] = "level",
        frame_size: int | None = None,
        frames_every: int = 1,
    ) -> None:
        super().__init__(encoder=encoder, cameras=cameras, pays=pays, frame_size=frame_size, frames_every=frames_every)
        frozen = isinstance(encoder, ClipEncoder) and isinstance(text, ClipText) and not encoder.trainable
        if encoder.width != text.width or (frozen and encoder.revision != text.revision):
            raise ValueError(
                f"{encoder.name} and {text.name} are no pair (widths {encoder.width} and {text.width}): expected the "
                "image and the text tower of one model"
            )
        if not 0 <= alpha <= 1 or (alpha > 0 and not baseline):
            raise ValueError(f"alpha {alpha}, baseline {baseline!r}: expected alpha in [0, 1], and with it a baseline")
        if template.count("{instruction}") != 1:
            raise ValueError(f"template {template!r}: expected {{instruction}} once")
        self.text, self.alpha, self.template = text, float(alpha), template
        self.baseline = dict(baseline) if isinstance(baseline, dict) else baseline
        self.prompts = dict(prompts or {})

    def likeness(
        self, features: Float[Tensor, "B F D"], camera: int, batch: TrajectoryBatch
    ) -> tuple[Float[Tensor, "B F"], Bool[Tensor, " B"]]:
        """Compute `goal_baseline_similarity` of every frame to its row's goal; all cameras share the goal.

        Raises:
            ValueError: If the text tower gives a goal and its baseline the same features.
        """
        goals, baselines = self._texts(batch.instructions)
        known = torch.tensor([bool(goal) for goal in goals], device=features.device)
        goal = self._embed(goals, features.device)
        if self.alpha == 0:
            return goal_baseline_similarity(features, goal[:, None], None, 0.0).clamp(-1, 1), known
        baseline = self._embed(baselines, features.device)
        same = known & ((goal - baseline).norm(dim=-1) < _SAME)
        if bool(same.any()):
            row = int(same.nonzero()[0, 0])
            raise ValueError(
                f"goal {goals[row]!r} and baseline {baselines[row]!r} mean the same to {self.text.name}: there is no "
                "direction from one to the other; rephrase one of them"
            )
        found = goal_baseline_similarity(features, goal[:, None], baseline[:, None], self.alpha)
        return found.clamp(-1, 1), known

    def _texts(self, instructions: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return goal and baseline of every row, "" where it has none."""
        goals: list[str] = []
        baselines: list[str] = []
        for instruction in instructions:
            default = self.template.replace("{instruction}", instruction) if instruction.strip() else ""
            goal = self.prompts.get(instruction, default)
            baseline = self.baseline.get(instruction, "") if isinstance(self.baseline, dict) else self.baseline or ""
            goals.append(goal if self.alpha == 0 or baseline else "")
            baselines.append(baseline)
        return goals, baselines

    def _embed(self, texts: Sequence[str], device: torch.device) -> Float[Tensor, "B D"]:
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        found = functional.normalize(self.text(list(distinct)).float().to(device), dim=-1)
        return found[torch.tensor([distinct[text] for text in texts], dtype=torch.long, device=device)]


__all__ = ["GoalSimilarity", "goal_baseline_similarity"]
