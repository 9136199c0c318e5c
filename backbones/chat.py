"""Interface of models that read pictures and write text: in this process, behind an endpoint, or recorded."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..core.interfaces import Component

Prompt = Sequence[str | Tensor]
"""Texts and pictures in the order they are read; a picture is uint8 (3, H, W), RGB."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Answer to one prompt, or why there is none."""

    text: str | None
    """None where nothing usable came; ``problem`` then says why."""
    problem: str = ""
    """Empty where all is well. With a text: why it may be incomplete, such as ``"cut after 256 tokens"``."""


def harmless(text: str) -> str:
    """Replace brackets and bars of a text, so that no part of it reads like one of a model's own tokens."""
    return text.translate(_HARMLESS)


_HARMLESS = str.maketrans({"<": "(", ">": ")", "|": "/", "[": "(", "]": ")"})


class Chat(Component):
    """Answers prompts one by one, each in a conversation of its own."""

    name: str
    """Folder, repository or model name, shown in errors and stored with what is made from answers."""

    def reply(self, prompts: Sequence[Prompt], max_new_tokens: int = 512) -> list[Reply]:
        """Generate the most likely answer to each of M prompts; a failed one is a `Reply` without a text, no exception.

        Wrong input, such as a picture of another shape, does raise.
        """
        raise NotImplementedError(f"{type(self).__name__} does not answer: write reply(prompts, max_new_tokens)")

    def answer_log_probs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "M K"]:
        """Log-probability that the answer to each of M prompts begins with each of K texts, in float32.

        A text of several tokens has the sum over its tokens. NaN where it is unknown, because the endpoint
        failed or does not return it; never a number in its place.
        """
        raise NotImplementedError(f"{type(self).__name__} does not weigh answers: write answer_log_probs(…)")
