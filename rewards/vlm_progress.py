"""A process reward model that reads the frames of a window with a vision-language model, all in one pass."""

import torch
from torch import Tensor, nn

from ..backbones.chat import Prompt
from ..backbones.model_inputs import ModelInputs
from ..backbones.vlm import VLM
from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .encoded_observations import EncodedObservations
from .heads import Heads, PredictionSettings
from .moments import each_once, moments, steps_of, windows

_PROMPT = "A robot was told: {instruction}. After each moment, say how much of it is done."


class VlmProgressReward(RewardModel):
    """Rewards the change of a potential that heads read off a vision-language model after every frame.

    The prompt states the task, then shows frame after frame, each followed by ``marker``. The language model's
    attention is causal, so its state at the end of the marker behind frame i holds the instruction and frames up to i
    and no later one (`VLM.check_causal` makes sure, once). One pass over F frames therefore gives F estimates, where a
    model that is asked anew for every prefix reads F (F + 1) / 2 frames. Heads, reward, spread and losses are those of
    `ProgressReward` (see `Heads`); between evaluated frames an estimate holds its last value.

    A row of more than ``max_frames`` frames is read in windows. The first shows the first ``max_frames``; each later
    one shows ``context_frames`` again, the row's first frame and the last ones before it, and behind them the next
    ``max_frames`` − ``context_frames``, which alone are evaluated. Every frame is evaluated once and never sees a later
    one. A row of F frames costs about F · max_frames / (max_frames − context_frames) frames.

    Args:
        vlm: The model; with ``lora_rank`` 0 the heads alone are trained.
        cameras: Cameras to look through; at a moment when one of them has a frame each shows its last one.
        frame_size: Shorter side of the frames, in pixels; None as recorded. The model's processor scales them again.
        frames_every: Every how many recorded frames one is evaluated when scoring; the last one always is.
        max_frames: Moments shown in one pass.
        context_frames: Of these, moments shown again in a later window; less than ``max_frames``.
        micro_batch: Windows that are read together.
        prompt: What is said first; holds ``{instruction}`` once.
        marker: What is said after every moment. Its last token may stand nowhere else behind the first picture.
        max_instruction_tokens: Longer instructions are cut, with a warning.
        predicts: Which heads it has; see `Heads`.
        bins: Centres on [0, 1], at least 2.
        success_weight: Weight of the success probability in Φ.
        success_loss_weight: Weight of its loss.
        preference_loss_weight: Weight of the Bradley–Terry loss.
        remaining_loss_weight: Weight of the loss of remaining time.
        longest: Most remaining control steps told apart.

    Raises:
        ValueError: If an argument makes no sense.
    """

    causal = True

    def __init__(
        self,
        vlm: VLM,
        cameras: tuple[str, ...] | list[str],
        frame_size: int | None = None,
        frames_every: int = 1,
        max_frames: int = 16,
        context_frames: int = 4,
        micro_batch: int = 8,
        prompt: str = _PROMPT,
        marker: str = "Progress:",
        max_instruction_tokens: int = 128,
        predicts: tuple[str, ...] | list[str] = ("progress", "success"),
        bins: int = 25,
        success_weight: float = 0.0,
        success_loss_weight: float = 1.0,
        preference_loss_weight: float = 1.0,
        remaining_loss_weight: float = 1.0,
        longest: int = 1000,
    ) -> None:
        super().__init__()
        self.cameras = each_once("cameras", cameras)
        if not 0 <= context_frames < max_frames:
            raise ValueError(
                f"max_frames {max_frames}, context_frames {context_frames}: expected more frames than context"
            )
        if min(frames_every, micro_batch, max_instruction_tokens) < 1:
            raise ValueError(
                f"frames_every {frames_every}, micro_batch {micro_batch}, max_instruction_tokens "
                f"{max_instruction_tokens}: expected positive numbers"
            )
        if prompt.count("{instruction}") != 1 or not marker.strip():
            raise ValueError(f"prompt {prompt!r}, marker {marker!r}: expected {{instruction}} once, and some text")
        self.vlm = vlm
        self.frame_size, self.frames_every = frame_size, frames_every
        self.max_frames, self.context_frames, self.micro_batch = max_frames, context_frames, micro_batch
        self.prompt, self.marker, self.max_instruction_tokens = prompt, marker, max_instruction_tokens
        self.norm = nn.LayerNorm(vlm.width)  # the states of published models differ in size by orders of magnitude
        self.head = Heads(
            vlm.width,
            PredictionSettings(
                predicts=predicts,
                bins=bins,
                success_weight=success_weight,
                success_loss_weight=success_loss_weight,
                preference_loss_weight=preference_loss_weight,
                remaining_loss_weight=remaining_loss_weight,
                longest=longest,
            ),
        )

    @property
    def inputs(self) -> ModelInputs:
        """What the model reads."""
        return ModelInputs(
            cameras=self.cameras, frame_size=self.frame_size, frames_every=self.frames_every, instruction=True
        )

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate progress and success at every observation and reward their change; see `Heads.estimates`."""
        return self.head.estimates(self.encode(batch), batch)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """The loss of every head and their weighted sum; see `Heads.loss`.

        Raises:
            ValueError: If the batch holds none of the labels the heads learn from.
        """
        return self.head.loss(self.encode(batch), batch)

    def encode(self, batch: TrajectoryBatch) -> EncodedObservations:
        """Read the frames of a batch; a row without any gets no token.

        Raises:
            ValueError: If no camera of the model is there, or the vision-language model cannot read the prompts; see
                `VLM.hidden_states`.
        """
        self.vlm.check_causal()
        rows = moments(batch, self.cameras)
        asked = [self._opening(text) if row else "" for text, row in zip(batch.instructions, rows, strict=True)]
        prompts: list[Prompt] = []
        rows_of: list[int] = []
        places: list[int] = []
        evaluated: list[bool] = []
        for number, (row, opening) in enumerate(zip(rows, asked, strict=True)):
            for shown, new in windows(len(row), self.max_frames, self.context_frames):
                shots = [part for place in shown for part in (*row[place].parts, self.marker)]
                prompts.append([opening, *shots])
                rows_of += [number] * len(shown)
                places += shown
                evaluated += [i >= len(shown) - new for i in range(len(shown))]
        device, step = self.norm.weight.device, steps_of(rows)
        hidden = torch.zeros(*step.shape, self.vlm.width, device=device)
        if prompts:
            states = torch.cat([self.vlm.states_after(p, self.marker) for p in _split(prompts, self.micro_batch)])
            kept = torch.tensor(evaluated, device=device)
            where = (torch.tensor(rows_of, device=device)[kept], torch.tensor(places, device=device)[kept])
            hidden = hidden.index_put(where, self.norm(states[kept]).float())
        return EncodedObservations(step=step.to(device), hidden=hidden)

    def _opening(self, instruction: str) -> str:
        text = self.vlm.shorten(instruction.strip() or "do the task", self.max_instruction_tokens)
        return self.prompt.replace("{instruction}", text)


def _split(prompts: list[Prompt], size: int) -> list[list[Prompt]]:
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]


__all__ = ["VlmProgressReward"]
