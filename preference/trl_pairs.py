"""Answers of a language model as preference pairs, in the data set form of TRL's ``DPOTrainer``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import datasets

from ..backbones.chat import Prompt
from ..backbones.chat_rows import content_of, pictures_of
from .rules import group_pairs


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """Two answers to one prompt."""

    prompt: Prompt
    """Texts and pictures that both answers are to."""
    chosen: str
    """Better answer."""
    rejected: str
    """Other answer."""
    margin: float = 0.0
    """Score of the better answer minus that of the other one."""


def answer_pairs(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float | int | None]],
    top: int = 1,
    margin: float | int = 0.0,
) -> list[AnswerPair]:
    """Pair scored answers, those to one prompt only, the best with the worst; see `group_pairs`.

    Equal answers make no pair, whatever their scores.

    Args:
        prompts: M prompts.
        answers: Answers to each prompt, such as task decompositions or verdicts on success.
        scores: Score of each answer; None or NaN where there is none, such as from a reward function for TRL.
        top: Largest number of answers on either side.
        margin: A pair is made if its scores differ by more than this, at least 0.

    Raises:
        ValueError: If the numbers of prompts, answers and scores differ, a score is infinite, or ``top`` or ``margin``
            is out of range.
    """
    if not len(prompts) == len(answers) == len(scores):
        raise ValueError(
            f"expected answers and scores of each of {len(prompts)} prompts, got {len(answers)} and {len(scores)}"
        )
    made: list[AnswerPair] = []
    for place, (prompt, texts, numbers) in enumerate(zip(prompts, answers, scores, strict=True)):
        if len(texts) != len(numbers):
            raise ValueError(f"prompt {place}: expected a score of each of {len(texts)} answers, got {len(numbers)}")
        score = torch.tensor([float("nan") if number is None else float(number) for number in numbers])
        group = torch.zeros(len(texts), dtype=torch.long)
        better, worse = group_pairs(score, group, top, margin, ~score.isnan())
        made += [
            AnswerPair(prompt=prompt, chosen=texts[a], rejected=texts[b], margin=float(score[a] - score[b]))
            for a, b in zip(map(int, better), map(int, worse), strict=True)
            if texts[a] != texts[b]
        ]
    return made


def answer_dataset(pairs: Sequence[AnswerPair]) -> datasets.Dataset:
    """Convert pairs of answers into a preference data set for TRL's ``DPOTrainer``.

    The columns are ``prompt``, ``chosen`` and ``rejected``, conversations of one turn each, and ``margin``. If a prompt
    holds a picture there is a column ``images``, and contents are lists of parts, as vision-language models need; else
    they are texts.

    Args:
        pairs: At least one pair.

    Raises:
        ValueError: If there is no pair, or some prompts have pictures and others have none.
    """
    if not pairs:
        raise ValueError("no pair of answers: expected at least one; score more answers, or lower the margin")
    shown = {any(isinstance(part, Tensor) for part in pair.prompt) for pair in pairs}
    if len(shown) > 1:
        raise ValueError("some prompts have pictures and others have none: make two data sets")
    seen = shown.pop()
    rows = [_row(pair, seen) for pair in pairs]
    return datasets.Dataset.from_list(rows, features=_columns(seen))


def _row(pair: AnswerPair, seen: bool) -> dict[str, Any]:
    def turn(role: str, parts: Prompt) -> list[dict[str, Any]]:
        return [{"role": role, "content": content_of(parts) if seen else "".join(str(part) for part in parts)}]

    row: dict[str, Any] = {
        "prompt": turn("user", pair.prompt),
        "chosen": turn("assistant", [pair.chosen]),
        "rejected": turn("assistant", [pair.rejected]),
        "margin": pair.margin,
    }
    return row | ({"images": pictures_of(pair.prompt)} if seen else {})


def _columns(seen: bool) -> datasets.Features:
    text = datasets.Value("string")
    content: Any = [{"type": text, "text": text}] if seen else text
    columns: Mapping[str, Any] = {
        name: [{"role": text, "content": content}] for name in ("prompt", "chosen", "rejected")
    }
    pictures: Mapping[str, Any] = {"images": [datasets.Image()]} if seen else {}
    return datasets.Features({**columns, "margin": datasets.Value("float64"), **pictures})


__all__ = ["AnswerPair", "answer_dataset", "answer_pairs"]
