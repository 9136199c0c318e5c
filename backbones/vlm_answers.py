"""Log-probabilities of answers under a vision-language model, reusing the keys and values of a prompt's prefix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache


@dataclass(kw_only=True)
class Reading:
    """Keys and values of all layers after M prompts, extended in place as more is read."""

    cache: Any
    mask: Bool[Tensor, "M L"]
    """False on what was padded, always before a prompt."""
    positions: Int[Tensor, "*R M L"]
    """Place of every token; with R rows where a model counts time, height and width apart."""
    logits: Float[Tensor, "M V"]
    """Logits of the next token."""

    def cut(self, length: int) -> None:
        """Drop everything after the first ``length`` places; ``logits`` are no longer valid then."""
        if surplus := self.mask.shape[1] - length:
            self.cache.crop(-surplus)  # a positive number means another thing in every version of transformers
        self.mask, self.positions = self.mask[:, :length], self.positions[..., :length]


def read_prompts(model: Any, inputs: Mapping[str, Tensor]) -> Reading:
    """Read M prompts that end at the same place, padded before."""
    cache, mask = DynamicCache(), inputs["attention_mask"].bool()
    positions = _positions(model, inputs)
    rest = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    out = model(**rest, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Reading(cache=cache, mask=mask, positions=positions, logits=out.logits[:, -1].float())


def read_on(model: Any, reading: Reading, tokens: Int[Tensor, "M n"]) -> Float[Tensor, "M n V"]:
    """Read n more tokens behind every prompt, and return the logits after each of them."""
    count = tokens.shape[1]
    after = reading.positions.amax(-1, keepdim=True) + 1
    if after.ndim == 3:  # text goes on behind the largest of time, height and width
        after = after.amax(0, keepdim=True)
    positions = (after + torch.arange(count, device=tokens.device)).expand(*reading.positions.shape[:-1], count)
    reading.positions = torch.cat([reading.positions, positions], -1)
    reading.mask = torch.cat([reading.mask, reading.mask.new_ones(len(tokens), count)], 1)
    out = model(
        input_ids=tokens,
        attention_mask=reading.mask.long(),
        position_ids=positions,
        past_key_values=reading.cache,
        use_cache=True,
    )
    logits = out.logits.float()
    reading.logits = logits[:, -1]
    return logits


def answers_after(model: Any, reading: Reading, answers: Sequence[Sequence[int]]) -> Float[Tensor, "M K"]:
    """Sum the log-probabilities of each answer's tokens behind each prompt; ``reading`` stays as it was."""
    length, first = reading.mask.shape[1], reading.logits
    start = first.log_softmax(-1)
    found: list[Tensor] = []
    for answer in answers:
        total = start[:, answer[0]]
        if len(answer) > 1:
            tokens = torch.tensor(answer, device=start.device).expand(len(start), -1)
            after = read_on(model, reading, tokens[:, :-1]).log_softmax(-1)
            total = total + after.gather(2, tokens[:, 1:, None]).sum((1, 2))
            reading.cut(length)
        found.append(total)
    reading.logits = first
    return torch.stack(found, 1)


def answers_along(
    model: Any,
    inputs: Mapping[str, Tensor],
    ends: Sequence[int],
    asked: Sequence[int],
    answers: Sequence[Sequence[int]],
) -> Float[Tensor, "N K"]:
    """Sum of the log-probabilities of each answer's tokens after a question behind each of N prefixes of one prompt.

    The prompt is read once. Behind it stand, side by side, the question and the answers for many prefixes at a time;
    each sees its own prefix and itself alone, at the places it would have there.

    Args:
        model: A model with causal attention that takes masks of four dimensions.
        inputs: One prompt.
        ends: Number of the prompt's tokens in each prefix.
        asked: Tokens of the question.
        answers: Tokens of K answers.
    """
    reading = read_prompts(model, inputs)
    device, length = reading.mask.device, reading.mask.shape[1]
    piece, places, local, kept = _piece(asked, [answer[:-1] for answer in answers if len(answer) > 1])
    width = len(piece)
    here = reading.positions.flatten(0, -2).amax(0).cummax(0).values  # text goes on behind the largest place so far
    blocked = torch.finfo(model.dtype).min
    found: list[Tensor] = []
    size = max(1, _MASK_ENTRIES // (width * (length + width)))
    for first in range(0, len(ends), size):
        group = torch.tensor(ends[first : first + size], device=device)
        count = len(group)
        seen = torch.zeros(count, width, length + count * width, dtype=torch.bool, device=device)
        seen[:, :, :length] = torch.arange(length, device=device) < group[:, None, None]
        own = seen[:, :, length:].view(count, width, count, width)
        own[torch.arange(count), :, torch.arange(count)] = local.to(device)
        positions = (here[group - 1, None] + 1 + places.to(device)).view(1, -1)
        out = model(
            input_ids=torch.tensor(list(piece) * count, device=device)[None],
            attention_mask=torch.where(seen, 0.0, blocked).to(model.dtype).view(1, 1, count * width, -1),
            position_ids=positions.expand(*reading.positions.shape[:-1], -1),
            past_key_values=reading.cache,
            use_cache=True,
            logits_to_keep=(torch.arange(count)[:, None] * width + kept).flatten().to(device),
        )
        reading.cache.crop(-count * width)
        found.append(_sums(out.logits[0].float().log_softmax(-1).view(count, len(kept), -1), answers))
    return torch.cat(found)


_MASK_ENTRIES = 1 << 24  # of one pass: 64 MB in float32


def _piece(
    asked: Sequence[int], branches: Sequence[Sequence[int]]
) -> tuple[list[int], Int[Tensor, " W"], Bool[Tensor, "W W"], Int[Tensor, " P"]]:
    """Question and branches side by side: tokens, places from the question's first on, who sees whom, what is kept.

    A branch sees the question and itself, never another branch. Kept are the logits of the question's last token, and
    of all tokens of the branches.
    """
    tokens, places = list(asked), list(range(len(asked)))
    of = [0] * len(asked)
    for number, branch in enumerate(branches, 1):
        tokens += branch
        places += range(len(asked), len(asked) + len(branch))
        of += [number] * len(branch)
    order, owner = torch.arange(len(tokens)), torch.tensor(of)
    sees = (order[None] <= order[:, None]) & ((owner[None] == 0) | (owner[None] == owner[:, None]))
    return tokens, torch.tensor(places), sees, order[len(asked) - 1 :]


def _sums(log_probs: Float[Tensor, "N P V"], answers: Sequence[Sequence[int]]) -> Float[Tensor, "N K"]:
    """Log-probability of each answer, of what is kept of a piece."""
    totals: list[Tensor] = []
    place = 1
    for answer in answers:
        total = log_probs[:, 0, answer[0]]
        for token in answer[1:]:
            total = total + log_probs[:, place, token]
            place += 1
        totals.append(total)
    return torch.stack(totals, 1)


def _positions(model: Any, inputs: Mapping[str, Tensor]) -> Int[Tensor, "*R M L"]:
    """Place of every token of a prompt, as the model itself would count."""
    mask = inputs["attention_mask"]
    rope = getattr(model.base_model, "get_rope_index", None)
    if rope is None or "mm_token_type_ids" not in inputs:
        return (mask.cumsum(-1) - 1).clamp(min=0)
    positions, _ = rope(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=mask,
    )
    return positions
