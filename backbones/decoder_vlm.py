"""A vision-language model as an autoregressive backbone: pictures and a question are the prompt of an action."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.decisions import Observation
from .decoder import QUESTION, BinRows, Decoder, Prefix, read_behind, require_no_dropout
from .decoder_language import require_linear_head, require_no_bins, require_room, reserved_rows
from .vlm import VLM
from .vlm_answers import read_prompts
from .vlm_loading import PLAIN


class VLMDecoder(Decoder):
    """Vision-language model whose turn of the conversation is the action.

    The prompt holds the last frame of every camera, in order, and a question about the instruction. The vision tower
    runs once per decision.

    Args:
        vlm: Vision-language model, frozen or with LoRA (without dropout).
        cameras: Names of the cameras that are shown.
        prompt: Question, with ``{instruction}`` where the instruction goes.

    Raises:
        ValueError: If an argument makes no sense, the model keeps no keys and values, or it is a BLIP-2 model, for
            which there is `VLAPolicy` with `VLMBackbone`.
    """

    def __init__(self, vlm: VLM, cameras: Sequence[str], prompt: str = QUESTION) -> None:
        super().__init__()
        if not cameras:
            raise ValueError("cameras is empty: expected the names of the cameras that the model is shown")
        if "{instruction}" not in prompt:
            raise ValueError(f"prompt {prompt!r}: expected {{instruction}} in it, where the instruction goes")
        if vlm.model.config.model_type == PLAIN:
            raise ValueError(
                f"{vlm.name} is a BLIP-2 model, which VLMDecoder cannot decode actions with: expected a model with a "
                "chat template, such as Qwen2.5-VL or SmolVLM; take VLAPolicy with VLMBackbone for BLIP-2"
            )
        if vlm.gradient_checkpointing:
            raise ValueError(
                f"{vlm.name}: gradient_checkpointing keeps no keys and values, and actions are decoded with them: "
                "turn it off, and use smaller minibatches"
            )
        require_no_dropout(vlm.model)
        require_linear_head(vlm.model, vlm.name)
        self.vlm, self.cameras, self.prompt = vlm, tuple(cameras), prompt
        self.width, self.name = vlm.width, vlm.name
        self._bins: frozenset[int] = frozenset()
        self.eval()

    def requires_grad_(self, requires_grad: bool = True) -> "VLMDecoder":
        """Let the low-rank updates require a gradient or not; the published weights never do."""
        self.vlm.requires_grad_(requires_grad)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the frozen weights."""
        return self.vlm.model.dtype

    def reserve(self, bins: int) -> BinRows:
        """Reserve rows of the vocabulary for bins, see `guerdon.Decoder`."""
        reader = self.vlm.reader
        around = (reader.opening, reader.closing, self.prompt.replace("{instruction}", ""))
        taken = {token for text in around for token in reader.tokens(text)}
        return reserved_rows(self, self.vlm.model, reader.processor.tokenizer, bins, taken)

    def hold(self, tokens: tuple[int, ...]) -> None:
        """Refuse instructions that use one of these tokens from now on, beside those held before."""
        self._bins |= frozenset(tokens)

    def read(self, observation: Observation, room: int) -> Prefix:
        """Read the pictures and the question of every observation.

        Raises:
            ValueError: If a camera is missing, an instruction is too long, or it holds a token with a meaning of its
                own.
        """
        inputs = self._inputs(observation, room)
        tokens = inputs["input_ids"]
        reading = read_prompts(self.vlm.model, inputs)
        reading.cut(tokens.shape[1] - 1)  # the last token is read with what comes behind it
        after = reading.positions.amax(-1) + 1
        if after.ndim == 2:  # text goes on behind the largest of time, height and width
            after = after.amax(0, keepdim=True).expand_as(after)
        return Prefix(
            cache=reading.cache,
            pending=self.vlm.model.get_input_embeddings()(tokens[:, -1:]),
            positions=after,
            mask=None if bool(reading.mask.all()) else reading.mask,
        )

    def prompt_tokens(self, observation: Observation, room: int) -> list[list[int]]:
        """Return the token numbers of the prompts that ``read`` reads, those that stand for pictures among them."""
        return _kept(self._inputs(observation, room))

    def _inputs(self, observation: Observation, room: int) -> dict[str, Tensor]:
        """Make the inputs of the model, padded on the left."""
        if missing := [camera for camera in self.cameras if camera not in observation.frames]:
            raise ValueError(
                f"expected frames of the cameras {list(self.cameras)}, {missing[0]!r} is missing from "
                f"{sorted(observation.frames)}: load or render it, or correct the cameras of the decoder"
            )
        asked = {text: self._question(text, room) for text in dict.fromkeys(observation.instructions)}
        shown = [observation.frames[camera] for camera in self.cameras]
        inputs = self.vlm.answer_inputs(
            [[*(frames[row] for frames in shown), asked[text]] for row, text in enumerate(observation.instructions)]
        )
        for instruction, kept in zip(observation.instructions, _kept(inputs), strict=True):
            require_no_bins(kept, self._bins, self.vlm.reader.processor.tokenizer, instruction, self.name)
            require_room(len(kept), room, self.vlm.max_tokens, instruction, self.name)
        return inputs

    def _question(self, instruction: str, room: int) -> str:
        """Put an instruction into the question, and refuse one that could not be read whatever the pictures are."""
        reader, text = self.vlm.reader, self.prompt.replace("{instruction}", instruction)
        tokens = reader.tokens(reader.opening + text + reader.closing)
        require_no_bins(tokens, self._bins, reader.processor.tokenizer, instruction, self.name)
        require_room(len(tokens), room, self.vlm.max_tokens, instruction, self.name)
        return text

    def extend(self, prefix: Prefix, embeddings: Float[Tensor, "M n D"]) -> Float[Tensor, "M N D"]:
        """Read n embeddings behind every prompt."""
        return read_behind(self.vlm.model.get_decoder(), prefix, embeddings)


def _kept(inputs: dict[str, Tensor]) -> list[list[int]]:
    """Return the tokens of every prompt without padding."""
    mask = inputs["attention_mask"].bool()
    return [tokens[real].tolist() for tokens, real in zip(inputs["input_ids"], mask, strict=True)]


__all__ = ["VLMDecoder"]
