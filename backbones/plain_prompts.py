"""Prompts of models without a chat template: the tokens of pictures and the text as it is (BLIP-2)."""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .vlm_prompts import PromptReader


class PlainPromptReader(PromptReader):
    """Reads prompts as BLIP-2 was trained: the query tokens of the pictures, the first token of a text, the text.

    The checkpoint's own processor takes one picture in front of a text. Here pictures may stand anywhere in a prompt,
    and those in front of it come before the first token of the text, as in that processor.
    """

    def _prompt_layout(self) -> tuple[str, str]:
        return "", str(self.processor.image_token) * int(self.processor.num_query_tokens)

    def _answer_layout(self) -> tuple[str, str, str]:
        return "", "", ""

    def _process(self, texts: list[str], pictures: list[list[Tensor]], padding_side: str) -> Mapping[str, Any]:
        tokeniser = self.processor.tokenizer
        first = [number for number in tokeniser("")["input_ids"] if number != self.image_token]
        rows: list[list[int]] = []
        for text in texts:
            numbers = self.tokens(text)
            front = len(list(takewhile(lambda number: number == self.image_token, numbers)))
            rows.append([*numbers[:front], *first, *numbers[front:]])
        longest = max(len(row) for row in rows)
        tokens = torch.full((len(rows), longest), int(tokeniser.pad_token_id))
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(rows):
            real = slice(longest - len(row), None) if padding_side == "left" else slice(len(row))
            tokens[place, real], mask[place, real] = torch.tensor(row), 1
        shown = self.processor.image_processor(
            images=[picture for row in pictures for picture in row], return_tensors="pt", **self._image_options
        )
        return {"input_ids": tokens, "attention_mask": mask, "pixel_values": shown["pixel_values"]}


__all__ = ["PlainPromptReader"]
