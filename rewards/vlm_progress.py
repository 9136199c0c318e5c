"""A process reward model over the hidden states of a vision-language model, one pass for all frames of a window."""

import torch
from torch import Tensor, nn

from ..backbones.chat import Prompt
from ..backbones.model_inputs import ModelInputs
from ..backbones.vlm import VLM
from ..core.arguments import folds
from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .encoded_observations import EncodedObservations
from .frame_windows import FrameWindows
from .heads import Heads, PredictionSettings
from .moments import each_once, moments, steps_of

_PROMPT = "A robot was told: {instruction}. After each moment, say how much of it is done."


class VlmProgressReward(RewardModel):
    """Reward for the change of a potential that heads predict from a vision-language model's state after every frame.

    The prompt states the task, then shows frame after frame, each followed by ``marker``. The language model's
    attention is causal, so its state at the end of the marker behind frame i depends on the instruction and the frames
    up to i, and on no later one (`VLM.check_causal` tests this once). One pass over F frames therefore gives F
    estimates, where a model that is asked anew for every prefix reads F (F + 1) / 2 frames. Heads, reward, standard
    deviation and losses are those of `ProgressReward`; see `Heads`. Between evaluated frames an estimate holds its last
    value.

    A row of more than ``frames.max_frames`` frames is read in windows; see `FrameWindows`.

    Args:
        vlm: Vision-language model; without low-rank updates (``lora``) the heads alone are trained.
        cameras: Names of the cameras to read; at a moment when one of them has a frame each shows its last one.
        frames: Frames that are read, and how many in one pass; None takes the defaults. Its arguments may also be given
            here one by one, such as ``max_frames=8``.
        micro_batch: Number of windows that are read together.
        prompt: Text in front of the frames; holds ``{instruction}`` once.
        marker: Text behind every moment. Its last token may stand nowhere else behind the first picture.
        max_instruction_tokens: Longest instruction, in tokens; a longer one is cut, with a warning.
        predictions: What is predicted, and with what weights; None predicts progress and success. Its arguments may
            also be given here one by one, such as ``bins=51``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    causal = True

    @folds(frames=FrameWindows, predictions=PredictionSettings)
    def __init__(
        self,
        vlm: VLM,
        cameras: tuple[str, ...] | list[str],
        frames: FrameWindows | None = None,
        micro_batch: int = 8,
        prompt: str = _PROMPT,
        marker: str = "Progress:",
        max_instruction_tokens: int = 128,
        predictions: PredictionSettings | None = None,
    ) -> None:
        super().__init__()
        self.cameras = each_once("cameras", cameras)
        if min(micro_batch, max_instruction_tokens) < 1:
            raise ValueError(
                f"micro_batch {micro_batch}, max_instruction_tokens {max_instruction_tokens}: expected positive numbers"
            )
        if prompt.count("{instruction}") != 1 or not marker.strip():
            raise ValueError(f"prompt {prompt!r}, marker {marker!r}: expected {{instruction}} once, and some text")
        self.vlm, self.micro_batch = vlm, micro_batch
        self.frames = FrameWindows() if frames is None else frames
        self.prompt, self.marker, self.max_instruction_tokens = prompt, marker, max_instruction_tokens
        self.norm = nn.LayerNorm(vlm.width)  # the states of published models differ in size by orders of magnitude
        self.head = Heads(vlm.width, predictions)

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the model reads."""
        return self.frames.inputs(self.cameras)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate progress and success at every observation and reward their change; see `Heads.estimates`."""
        return self.head.estimates(self.encode(batch), batch)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the loss of every head and their weighted sum; see `Heads.loss`.

        Raises:
            ValueError: If the batch holds none of the labels the heads learn from.
        """
        return self.head.loss(self.encode(batch), batch)

    def encode(self, batch: TrajectoryBatch) -> EncodedObservations:
        """Encode the frames of a batch; a row without any frame has no evaluated observation.

        Raises:
            ValueError: If the batch holds no camera of the model, or the vision-language model cannot read the prompts;
                see `VLM.hidden_states`.
        """
        self.vlm.check_causal()
        rows = moments(batch, self.cameras)
        asked = [self._opening(text) if row else "" for text, row in zip(batch.instructions, rows, strict=True)]
        prompts: list[Prompt] = []
        rows_of: list[int] = []
        places: list[int] = []
        evaluated: list[bool] = []
        for number, (row, opening) in enumerate(zip(rows, asked, strict=True)):
            for shown, new in self.frames.split(len(row)):
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
