"""Prompts of texts and pictures as the tensors that a vision-language model reads."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .chat import Prompt


class PromptReader:
    """Puts prompts into a checkpoint's chat template and through its processor.

    Args:
        name: Name of the checkpoint, for errors.
        processor: Processor of the checkpoint, with a chat template.
        image_token: Number of the token that stands for a part of a picture; None takes the processor's.
        image_options: Settings of the image processor to change; see `guerdon.VLM`.
        max_tokens: Length of the longest prompt in tokens.
    """

    def __init__(
        self,
        name: str,
        processor: Any,
        image_token: int | None,
        image_options: dict[str, Any] | None,
        max_tokens: int,
    ) -> None:
        self.name, self.processor, self.max_tokens = name, processor, max_tokens
        tokeniser = processor.tokenizer
        if tokeniser.pad_token is None:
            tokeniser.pad_token = tokeniser.eos_token
        pictures = processor.image_processor
        self._image_options: dict[str, Any] = {}
        if getattr(pictures, "do_image_splitting", False):
            side = dict(pictures.max_image_size)["longest_edge"]  # else every frame is scaled up to be cut
            self._image_options = {"do_image_splitting": False, "size": {"longest_edge": side}}
        self._image_options |= image_options or {}
        self.image_token = int(image_token or processor.image_token_id)
        self.opening, self._picture = self._prompt_layout()
        self.closing, self._before_answer, self._after_answer = self._answer_layout()
        starts = tokeniser.bos_token is not None and self.opening.startswith(tokeniser.bos_token)
        self._add_special_tokens = not starts  # a template that writes the first token itself must not get a second
        added = cast(Mapping[str, int], tokeniser.get_added_vocab())
        self._reserved = sorted({*added, *tokeniser.all_special_tokens, str(processor.image_token)}, key=len)

    def _prompt_layout(self) -> tuple[str, str]:
        """Return the text before a prompt's first part, and the text that stands for a picture."""
        return _layout(self.processor)

    def _answer_layout(self) -> tuple[str, str, str]:
        """Return the texts before the model's turn, before its answer, and after its answer."""
        return _answer_layout(self.processor)

    def tokens(self, text: str) -> list[int]:
        """Tokenise a text, without tokens that start or end a prompt."""
        return list(self.processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def answer_tokens(self, answer: str) -> list[int]:
        """Tokenise an answer as it stands at the beginning of the model's turn.

        Raises:
            ValueError: If there is none, or the answer holds one of the model's own tokens.
        """
        self._refuse_reserved(answer)
        tokens = self.tokens(self._before_answer + answer)
        if not tokens or not answer.strip():
            raise ValueError(f"an answer is {answer!r}: expected a text")
        return tokens

    def end_tokens(self) -> list[int]:
        """Tokenise what ends an answer, according to the chat template."""
        return self.tokens(self._after_answer) or [int(self.processor.tokenizer.eos_token_id)]

    def shorten(self, text: str, max_tokens: int) -> str:
        """Cut a text after ``max_tokens`` tokens; a cut raises a warning."""
        tokens = self.tokens(text)
        if len(tokens) <= max_tokens:
            return text
        warnings.warn(
            f"{max_tokens} of {len(tokens)} tokens are read; the end of this instruction is ignored: {text!r}",
            stacklevel=3,
        )
        return str(self.processor.tokenizer.decode(tokens[:max_tokens], skip_special_tokens=True))

    def read(self, prompts: Sequence[Prompt], answering: bool = False) -> dict[str, Tensor]:
        """Turn M prompts into tensors on the host.

        Args:
            prompts: M prompts, each with at least one picture.
            answering: End the user's turn and begin the model's, with padding before the prompts and not behind them.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: If a picture has another shape or cannot be read, a text holds one of the model's own tokens, or
                a prompt is too long.
        """
        pictures = [[part for part in prompt if isinstance(part, Tensor)] for prompt in prompts]
        for picture in (p for row in pictures for p in row):
            if picture.dtype != torch.uint8:
                raise TypeError(f"a picture is {picture.dtype}: expected uint8 RGB in 0…255, channels first")
            if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
                raise ValueError(f"a picture has shape {tuple(picture.shape)}: expected (3, H, W), RGB, channels first")
        if not all(pictures):
            raise ValueError("a prompt has no picture: expected one at least")
        texts = [self._text(prompt) + (self.closing if answering else "") for prompt in prompts]
        try:
            read = self._process(texts, pictures, "left" if answering else "right")
        except (ValueError, RuntimeError, TypeError) as error:
            sizes = sorted({tuple(p.shape[1:]) for row in pictures for p in row})
            raise ValueError(f"{self.name} cannot read pictures of height and width {sizes}: {error}") from error
        length = int(read["attention_mask"].sum(1).max())
        if length > self.max_tokens:
            most = max(len(row) for row in pictures)
            raise ValueError(
                f"a prompt of {length} tokens with up to {most} pictures is longer than the {self.max_tokens} that "
                f"{self.name} reads: show fewer frames at a time (max_frames) or smaller ones (frame_size), make the "
                "image processor give fewer tokens (image_options), or shorten the instruction"
            )
        return {k: v for k, v in read.items() if isinstance(v, Tensor)}

    def _process(self, texts: list[str], pictures: list[list[Tensor]], padding_side: str) -> Mapping[str, Any]:
        """Turn texts, which hold the tokens of their pictures, and pictures into tensors."""
        return self.processor(
            text=texts,
            images=pictures,
            return_tensors="pt",
            text_kwargs={
                "padding": True,
                "padding_side": padding_side,
                "add_special_tokens": self._add_special_tokens,
                "verbose": False,
            },
            images_kwargs=self._image_options,
        )

    def _refuse_reserved(self, text: str) -> None:
        held = [token for token in self._reserved if token in text]
        if held:
            raise ValueError(f"{text!r} holds {held[-1]!r}, a token of {self.name} with a meaning of its own")

    def _text(self, prompt: Prompt) -> str:
        for part in prompt:
            if isinstance(part, str):
                self._refuse_reserved(part)
        return self.opening + "".join(part if isinstance(part, str) else self._picture for part in prompt)


_FIRST, _LAST, _ANSWER = "FIRSTPART", "LASTPART", "ANSWERPART"


def _render(processor: Any, content: list[dict[str, str]], answer: str | None = None, asked: bool = False) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked))


def _layout(processor: Any) -> tuple[str, str]:
    """Read from the chat template the text before a prompt's first part, and the text that stands for a picture."""
    text, picture = [{"type": "text", "text": _FIRST}], [{"type": "image"}]
    opening, _, rest = _render(processor, [*text, *picture, {"type": "text", "text": _LAST}]).partition(_FIRST)
    between, found, _ = rest.partition(_LAST)
    if found and processor.image_token in between:
        return opening, between
    # some templates move pictures to the front, where order is lost: their token alone is put in its place
    return _render(processor, text).partition(_FIRST)[0], str(processor.image_token)


def _answer_layout(processor: Any) -> tuple[str, str, str]:
    """Read from the chat template the texts before the model's turn, before its answer, and after its answer."""
    asked = _render(processor, [{"type": "text", "text": _LAST}], asked=True).rpartition(_LAST)[2]
    answered = _render(processor, [{"type": "text", "text": _LAST}], _ANSWER).rpartition(_LAST)[2]
    before, _, after = answered.partition(_ANSWER)
    # a blank after "Assistant:" belongs to the answer, where it is part of its first token
    return asked, before[len(asked) :] if before.startswith(asked) else "", after.strip()
