"""Generative value learning: a model estimates progress of shuffled frames of an episode."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.chat import Chat, Prompt
from ...backbones.model_inputs import ModelInputs
from ...core.batch import RewardEstimates, TrajectoryBatch
from ...core.interfaces import RewardModel
from ..moments import Moment, each_once, held_progress, moments, steps_of

_PROMPT = (
    "A robot was told: {instruction}. The first picture shows the scene before it began, where 0 % of the task is "
    "done. All later pictures were taken while it worked, and are shown in no particular order. For each of them say "
    "how much of the task is done in it, from 0 % to 100 %. Write one line for every picture and nothing else, like "
    "this:\n"
    "Frame 1: 35%\n"
)
_BEGINS = re.compile(r"[\s*-]*frame[\s*]*([0-9]{1,6})(?![0-9])(.*)", re.IGNORECASE | re.DOTALL)
_SAYS = re.compile(r"[\s*]*:[\s*]*([0-9]+(?:\.[0-9]+)?)\s*%[\s*]*(?:\.[\s*]*)?")


class ShuffledFrames(RewardModel):
    """Reward for progress that a model estimates from shuffled frames (GVL: Ma et al. 2024, arXiv:2411.04549).

    With frames in order, a model may just count up from 0 to 100; shuffled frames must be looked at. The prompt shows
    the first frame, named as the beginning, and then ``max_frames`` frames spread evenly over the episode, first and
    last included, in an order that depends on the seed and their number alone. It is not causal, because all frames
    are seen before any estimate.

    A frame has no estimate where its line is missing, unclear (see `frame_values`), given twice with different numbers,
    or outside 0 … 100, and where the whole answer is missing. Such frames are counted in ``abstained``. The last line
    of an answer that was cut does not count. Between frames an estimate holds its last value, but not across a frame
    without an estimate.

    A row that is a window from the middle of an episode (``batch.offset`` > 0) does not show the beginning. It is
    invalid without being asked about, and its frames are counted in ``abstained``.

    Args:
        chat: A `guerdon.VLM`, or another model behind the same protocol.
        cameras: Names of the cameras to read; at a moment when one of them has a frame each shows its last one.
        max_frames: Largest number of frames in one prompt, at least 2.
        prompt: Text in front of the frames; holds ``{instruction}`` once.
        frame_size: Shorter side of the frames, in pixels; None keeps the recorded size.
        max_new_tokens: Longest answer, in tokens; None takes 64 and 16 for every frame.
        seed: Random seed of the order.

    Raises:
        ValueError: If an argument is out of its range.
    """

    causal = False

    def __init__(
        self,
        chat: Chat,
        cameras: tuple[str, ...] | list[str],
        max_frames: int = 20,
        prompt: str = _PROMPT,
        frame_size: int | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.cameras = each_once("cameras", cameras)
        if max_frames < 2 or (max_new_tokens is not None and max_new_tokens < 1):
            raise ValueError(
                f"max_frames {max_frames}, max_new_tokens {max_new_tokens}: expected at least 2, and at least 1"
            )
        if prompt.count("{instruction}") != 1:
            raise ValueError(f"prompt {prompt!r}: expected {{instruction}} once")
        self.chat, self.max_frames = chat, max_frames
        self.prompt, self.frame_size, self.max_new_tokens, self.seed = prompt, frame_size, max_new_tokens, seed
        self.abstained: Counter[str] = Counter()
        """Reason why frames have no estimate → number of frames, since construction."""

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the model reads."""
        return ModelInputs(cameras=self.cameras, frame_size=self.frame_size, instruction=True)

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate progress at every observation, and reward its change.

        Raises:
            ValueError: If the batch holds no camera of the model, or the model cannot read the prompts.
        """
        rows = [_spread(row, self.max_frames) for row in moments(batch, self.cameras)]
        orders = [self.order(len(row)) for row in rows]
        whole = (batch.offset == 0).tolist()
        asked = [number for number, row in enumerate(rows) if row and whole[number]]
        for number, row in enumerate(rows):
            if row and not whole[number]:
                self.abstained["a window without the beginning"] += len(row)
        prompts = [self._prompt(rows[n], orders[n], batch.instructions[n]) for n in asked]
        room = self.max_new_tokens or 64 + 16 * max((len(row) for row in rows), default=0)
        step = steps_of(rows)
        values = torch.full(step.shape, torch.nan)
        for number, reply in zip(asked, self.chat.reply(prompts, room), strict=True):
            count = len(rows[number])
            if reply.text is None:
                self.abstained[f"no answer: {reply.problem}"] += count
                continue
            found = frame_values(reply.text, count, cut=bool(reply.problem))
            self.abstained["a frame without a clear value"] += int(found.isnan().sum())
            values[number, orders[number]] = found
        known = values.isfinite()
        return held_progress(step, torch.where(known, values, 0.0), known, batch.to("cpu"))

    def order(self, count: int) -> list[int]:
        """Return which of ``count`` frames stands at each place of the prompt.

        Args:
            count: Number of frames.
        """
        generator = torch.Generator().manual_seed(self.seed * 100_003 + count)
        return torch.randperm(count, generator=generator).tolist()

    def _prompt(self, row: Sequence[Moment], order: Sequence[int], instruction: str) -> Prompt:
        text = self.prompt.replace("{instruction}", instruction.strip() or "do the task")
        shown = [part for place, i in enumerate(order) for part in (f"Frame {place + 1}:", *row[i].parts)]
        return [text, "The beginning:", *row[0].parts, *shown]


def frame_values(text: str, count: int, cut: bool = False) -> Float[Tensor, " count"]:
    """Parse the values in [0, 1] of frames 1 … ``count`` in an answer; NaN where a frame has no single clear one.

    Only a line ``Frame N: <number> %`` counts, with stars, list dashes, blanks and a full stop around it. Any other
    line that begins with ``Frame N`` leaves that frame without a value: words, signs, ranges, a second number, a number
    without its percent sign (0.35 may be a share or a percentage), separated thousands.

    Args:
        text: Answer of the model.
        count: Number of frames in the prompt.
        cut: Whether the answer may be incomplete. Its last line is dropped then, because "Frame 5: 10" may be the
            beginning of "Frame 5: 100%".
    """
    lines = text.split("\n")
    if cut:
        del lines[-1]
    found: dict[int, set[float]] = {}
    for line in lines:
        if not (begins := _BEGINS.fullmatch(line)):
            continue
        says = _SAYS.fullmatch(begins[2])
        value = float(says[1]) / 100 if says else math.nan
        found.setdefault(int(begins[1]), set()).add(value if 0 <= value <= 1 else math.nan)
    clear = (found.get(number + 1, set()) for number in range(count))
    return torch.tensor([next(iter(values)) if len(values) == 1 else math.nan for values in clear])


def _spread(row: Sequence[Moment], most: int) -> list[Moment]:
    """Select at most ``most`` moments, evenly spread, first and last included."""
    if len(row) <= most:
        return list(row)
    return [row[int(i)] for i in torch.linspace(0, len(row) - 1, most).round().tolist()]


__all__ = ["ShuffledFrames", "frame_values"]
