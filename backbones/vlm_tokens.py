"""A vision-language model as the backbone of a policy; apart from the others as transformers imports slowly."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.batch import Observation
from .chat import Prompt
from .frozen_weights import require_frozen
from .model_inputs import ModelInputs
from .token_states import ObservationTokens, TokenBackbone, tokens_of
from .vlm import VLM

_PROMPT = "Question: what action should the robot take to {instruction}? Answer:"


class VLMBackbone(TokenBackbone):
    """States of the last layer of a vision-language model at every token of a prompt: pictures, then the instruction.

    The instruction stands behind the pictures, so that with causal attention its states depend on both. The state of
    the robot is not read: a policy gives it to its head (``state_size`` of `VLAPolicy`), and the states of a frozen
    model can be kept by picture and text alone.

    Args:
        vlm: Vision-language model; without low-rank updates (``lora``) nothing of it is trained.
        cameras: Names of the cameras to show, in order.
        prompt: Text behind the pictures; holds ``{instruction}`` once.
        max_instruction_tokens: Length of the longest instruction in tokens; a longer one is refused.
        micro_batch: Number of observations that are read in one pass.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        vlm: VLM,
        cameras: tuple[str, ...] | list[str],
        prompt: str = _PROMPT,
        max_instruction_tokens: int = 128,
        micro_batch: int = 32,
    ) -> None:
        super().__init__()
        if isinstance(cameras, str) or not cameras or len(set(cameras)) < len(cameras):
            raise ValueError(f"cameras {cameras!r}: expected a list of at least one name, each once")
        if prompt.count("{instruction}") != 1:
            raise ValueError(f"prompt {prompt!r}: expected {{instruction}} once")
        if min(max_instruction_tokens, micro_batch) < 1:
            raise ValueError(
                f"max_instruction_tokens {max_instruction_tokens}, micro_batch {micro_batch}: expected positive numbers"
            )
        self.vlm, self.cameras, self.prompt = vlm, tuple(cameras), prompt
        self.max_instruction_tokens, self.micro_batch = max_instruction_tokens, micro_batch
        self.width = vlm.width

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the backbone reads."""
        return ModelInputs(cameras=self.cameras, instruction=True)

    def requires_grad_(self, requires_grad: bool = True) -> "VLMBackbone":
        """Let the low-rank updates require a gradient or not; the published weights never do."""
        self.vlm.requires_grad_(requires_grad)
        return self

    @property
    def learns(self) -> bool:
        """Whether a gradient reaches a low-rank update at present.

        Raises:
            ValueError: If a published weight requires a gradient: it would be trained, and is not saved.
        """
        require_frozen(self.vlm)
        return any(weight.requires_grad for _, weight in self.own_weights())

    def own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the weights of the low-rank updates."""
        for name, parameter in self.vlm.model.named_parameters():
            if name in self.vlm.trained:
                yield name, parameter

    @property
    def version(self) -> str:
        """Hash of the published weights and of the low-rank updates; those count only where they are in use.

        Raises:
            ValueError: If a published weight requires a gradient: it would be trained, and is not saved.
        """
        require_frozen(self.vlm)
        return f"{self.vlm.fingerprint}-{super().version if self.vlm.updated else 'published'}"

    def read(self, observation: Observation) -> Observation:
        """Return the frames of the backbone's cameras and the instructions.

        Raises:
            ValueError: If a camera is missing.
        """
        missing = [camera for camera in self.cameras if camera not in observation.frames]
        if missing:
            raise ValueError(
                f"expected frames of camera {missing[0]!r}, got cameras {sorted(observation.frames) or 'none'}: load "
                "that camera with the data (cameras), or name it where the policy acts (frames of RolloutData, "
                "--camera)"
            )
        return Observation(
            state=observation.state[:, :0],
            frames={camera: observation.frames[camera] for camera in self.cameras},
            instructions=observation.instructions,
        )

    def forward(self, observation: Observation) -> ObservationTokens:
        """Compute the states at every token of M prompts.

        Raises:
            TypeError: If a frame is not uint8.
            ValueError: If a camera is missing, an instruction or a prompt is too long, or a frame cannot be read.
        """
        read = self.read(observation)
        prompts: list[Prompt] = []
        asked = {text: self._asked(text) for text in dict.fromkeys(read.instructions)}
        for row, text in enumerate(read.instructions):
            prompts.append([*(read.frames[camera][row] for camera in self.cameras), asked[text]])
        if not prompts:
            device = self.vlm.device
            mask = torch.zeros(0, 1, dtype=torch.bool, device=device)
            return ObservationTokens(hidden=torch.zeros(0, 1, self.width, device=device), mask=mask)
        parts = [prompts[i : i + self.micro_batch] for i in range(0, len(prompts), self.micro_batch)]
        states = [self.vlm.hidden_states(part) for part in parts]
        return tokens_of([ObservationTokens(hidden=part.hidden, mask=part.mask) for part in states])

    def _asked(self, instruction: str) -> str:
        text = instruction.strip() or "do the task"
        count = self.vlm.count_tokens(text)
        if count > self.max_instruction_tokens:
            raise ValueError(
                f"an instruction has {count} tokens, expected at most {self.max_instruction_tokens}: shorten it, or "
                f"raise max_instruction_tokens ({self.vlm.name} reads prompts of {self.vlm.max_tokens}): {text[:60]!r}…"
            )
        return self.prompt.replace("{instruction}", text)


__all__ = ["VLMBackbone"]
