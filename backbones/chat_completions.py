"""The JSON of chat completions: prompts as messages, and checked answers; no network here."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from .chat import Prompt

_UNTOLD = -9000.0  # endpoints write −9999 for "very unlikely"; no token of a list of likely ones comes near


@dataclass(frozen=True)
class Failure:
    """Why a prompt has no answer."""

    kind: str
    """Fixed name of the kind of failure, to count by."""
    problem: str
    """Description of this failure."""


@dataclass(frozen=True)
class Place:
    """One generated token, and what was likely there."""

    token: str | None
    """None where it is only a part of a character."""
    log_prob: float | None
    """None where the endpoint did not return it."""
    likely: dict[str, float]
    """Log-probability by text, of the generated token too."""


def check_prompt(prompt: Prompt) -> None:
    """Make sure that a prompt holds something, and that its pictures are such.

    Raises:
        TypeError: If a picture is not uint8.
        ValueError: If the prompt is empty, or a picture has another shape than (3, H, W).
    """
    pictures = [part for part in prompt if isinstance(part, Tensor)]
    for picture in pictures:
        if picture.dtype != torch.uint8:
            raise TypeError(f"a picture is {picture.dtype}: expected uint8 RGB in 0…255, channels first")
        if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
            raise ValueError(f"a picture has shape {tuple(picture.shape)}: expected (3, H, W), RGB, channels first")
    if not pictures and not any(part.strip() for part in prompt if isinstance(part, str)):
        raise ValueError("a prompt is empty: expected some text or a picture")


def picture_url(picture: UInt8[Tensor, "3 H W"]) -> str:
    """Encode a picture as the data URL of a PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def content_of(prompt: Prompt) -> str | list[dict[str, Any]]:
    """Content of a message: parts in order; texts alone as one text, which endpoints without pictures read too."""
    if all(isinstance(part, str) for part in prompt):
        return "".join(cast(Sequence[str], prompt))
    parts: list[dict[str, Any]] = []
    for part in prompt:
        if isinstance(part, Tensor):
            parts.append({"type": "image_url", "image_url": {"url": picture_url(part)}})
        elif part:  # some endpoints refuse empty texts
            parts.append({"type": "text", "text": part})
    return parts


def choice_of(content: bytes) -> dict[str, Any] | Failure:
    """First choice of an answer's JSON; it has a message, and was not filtered."""
    try:
        answer: Any = json.loads(content)
    except (ValueError, RecursionError):
        return Failure("malformed", f"the answer is no JSON: {short(content[:200].decode('utf-8', 'replace'))}")
    choices: Any = _field(answer, "choices")
    if not isinstance(choices, list):
        told = _field(answer, "error")
        return Failure("malformed", f"the answer has no choices: {short(told if told else answer)}")
    if not choices:
        return Failure("empty", "the answer holds no choice")
    choice: Any = cast(list[Any], choices)[0]
    if not isinstance(_field(choice, "message"), dict):
        return Failure("malformed", f"the answer's choice has no message: {short(choice)}")
    if choice.get("finish_reason") == "content_filter":
        return Failure("content filter", "stopped by the endpoint's content filter")
    return choice


def text_of(choice: dict[str, Any]) -> str | Failure:
    """Text of a choice, if there is one and it is no refusal."""
    message = cast(dict[str, Any], choice["message"])
    if refusal := message.get("refusal"):
        return Failure("refusal", f"refused: {short(refusal)}")
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        return Failure("malformed", f"the answer is no text but a {type(text).__name__}")
    if text is None or not text.strip():
        return Failure("empty", f"the answer is empty (it ended with {short(choice.get('finish_reason'))})")
    return text


def places_of(choice: dict[str, Any]) -> list[Place] | Failure:
    """Read the generated tokens of a choice with the log-probabilities that the endpoint returned."""
    entries: Any = _field(choice.get("logprobs"), "content")
    if not isinstance(entries, list) or not entries:
        return Failure("no log-probabilities", "the endpoint gave no log-probabilities")
    places: list[Place] = []
    for entry in cast(list[Any], entries):
        token, log_prob = _token(entry), _log_prob(entry)
        listed: Any = _field(entry, "top_logprobs")
        likely: dict[str, float] = {}
        for other in [*(cast(list[Any], listed) if isinstance(listed, list) else []), entry]:
            text, value = _token(other), _log_prob(other)
            if text and value is not None:
                likely[text] = max(value, likely.get(text, value))  # the generated one is mostly listed too
        places.append(Place(token, log_prob, likely))
    return places


def score(places: Sequence[Place], answer: str) -> float:
    """Log of the summed probabilities of all ways to the answer that can be read off; NaN if there is none."""
    wanted, before, log_prob = answer.lstrip(), "", 0.0
    ways: list[float] = []
    for place in places:
        ways += [log_prob + value for text, value in place.likely.items() if (before + text).lstrip() == wanted]
        if not place.token or place.log_prob is None:
            break
        before, log_prob = before + place.token, log_prob + place.log_prob
        written = before.lstrip()
        if written == wanted or not wanted.startswith(written):
            break  # what comes later belongs to this answer already, or never will
    return min(0.0, math.log(math.fsum(map(math.exp, ways)))) if ways else math.nan


def _token(entry: Any) -> str | None:
    """Read a token's text; None where it is only a part of a character."""
    raw: Any = _field(entry, "bytes")
    if isinstance(raw, list) and raw:
        try:
            return bytes(cast(list[int], raw)).decode("utf-8")
        except (ValueError, TypeError):
            return None
    text: Any = _field(entry, "token")
    # some endpoints pass a tokeniser's own sign for a space on
    return re.sub("^[▁Ġ]", " ", text) if isinstance(text, str) else None


def _log_prob(entry: Any) -> float | None:
    value: Any = _field(entry, "logprob")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return min(float(value), 0.0) if _UNTOLD < value < 1e-3 else None  # NaN fails both; a little above 0 is rounding


def _field(value: Any, name: str) -> Any:
    return cast(Mapping[str, Any], value).get(name) if isinstance(value, dict) else None


def short(told: object) -> str:
    """Shorten a text to one line of at most 200 characters."""
    text = " ".join(str(told).split())
    return text if len(text) <= 200 else text[:199] + "…"
