"""Answers kept in a file: recorded from any model once, given again without one."""

import hashlib
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from .chat import Chat, Prompt, Reply
from .chat_completions import check_prompt

_FIELDS = {"reply": ("text", "problem"), "answers": ("log_probs",)}


def prompt_key(prompt: Prompt, **settings: str | int) -> str:
    """Hash of a prompt, texts and every byte of its pictures, and of settings; 32 hexadecimal digits.

    Raises:
        TypeError: If a picture is not uint8.
        ValueError: If the prompt is empty, or a picture has another shape than (3, H, W).
    """
    check_prompt(prompt)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode())
    for part in prompt:
        if isinstance(part, str):
            content = part.encode("utf-8", "surrogatepass")
            digest.update(f"\ntext {len(content)}\n".encode())
        else:
            content = part.cpu().contiguous().numpy().tobytes()
            digest.update(f"\npicture {part.shape[1]} {part.shape[2]}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


class _Records:
    """Contents of a file: one JSON object a line; a later one replaces an earlier one of the same key."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.replies: dict[str, Reply] = {}
        self.log_probs: dict[str, dict[str, float]] = {}
        self.names: set[str] = set()
        self._lead = b""  # what is missing to begin a new line
        self._cut: int | None = None  # where the last line, written half, begins
        if file.is_file():
            self._read()

    def _read(self) -> None:
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n"), 1):
            if line.strip():
                self._add(line, f"{self.file}, line {number}")
        if not (rest := content[whole:]).strip():
            return
        try:
            self._add(rest, "")
            self._lead = b"\n"
        except ValueError:
            self._cut = whole
            warnings.warn(
                f"{self.file} ends within a line, which is left out: the recording stopped there", stacklevel=4
            )

    def _add(self, line: bytes, where: str) -> None:
        try:
            record: Any = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {error}") from error
        if not isinstance(record, dict) or cast(dict[str, Any], record).get("kind") not in _FIELDS:
            raise ValueError(f"{where}: expected an object with the kind 'reply' or 'answers'")
        fields = cast(dict[str, Any], record)
        if lacking := [f for f in ("key", "name", *_FIELDS[fields["kind"]]) if f not in fields]:
            raise ValueError(f"{where}: lacks {lacking[0]!r}")
        if fields["kind"] == "reply":
            self.replies[str(fields["key"])] = _reply(fields["text"], fields["problem"], where)
        else:
            self.log_probs.setdefault(str(fields["key"]), {}).update(_log_probs(fields["log_probs"], where))
        self.names.add(str(fields["name"]))

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write records behind the last whole line, and take them in."""
        if not records:
            return
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False).encode() for record in records]
        for line in lines:
            self._add(line, "the answer to be recorded")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self._cut is not None:
            os.truncate(self.file, self._cut)
        with self.file.open("ab") as file:
            file.write(self._lead + b"\n".join(lines) + b"\n")
        self._lead, self._cut = b"", None

    def reply(self, key: str) -> Reply | None:
        """Return the reply kept under a key."""
        return self.replies.get(key)

    def answers(self, key: str, answers: Sequence[str]) -> list[float] | None:
        """Return the log-probabilities kept under a key, if all these answers are among them."""
        told = self.log_probs.get(key, {})
        return [told[answer] for answer in answers] if set(answers) <= told.keys() else None


def _reply(text: object, problem: object, where: str) -> Reply:
    if not isinstance(text, str | None) or not isinstance(problem, str) or (text is None and not problem):
        raise ValueError(f"{where}: expected a text, or null and a problem that says why")
    return Reply(text=text, problem=problem)


def _log_probs(told: object, where: str) -> dict[str, float]:
    if not isinstance(told, dict):
        raise ValueError(f"{where}: expected log_probs by answer")
    found: dict[str, float] = {}
    for answer, value in cast(dict[str, Any], told).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and -math.inf < value <= 0):
            raise ValueError(f"{where}: {answer!r} has {value!r}, expected a log-probability or null for unknown")
        found[answer] = math.nan if value is None else float(value)
    return found


class RecordedChat(Chat):
    """Gives the answers that a file holds, and no others: for tests, and for results that others can repeat.

    An answer belongs to a prompt with all its texts and picture bytes, the model's name and ``max_new_tokens``; a
    prompt that differs in a pixel was not recorded. Other settings of the model, such as a temperature, are not known
    here: keep a file for each. `RecordingChat` writes such files.

    Args:
        file: JSON lines as `RecordingChat` writes them.
        name: Model whose answers are given; None takes the only one there is.
        missing: What to do about a prompt without an answer: ``"error"`` raises; ``"problem"`` gives a `Reply` without
            a text, or NaN, and counts it in ``failures``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is damaged, or the file holds several models and none is named, or not this one.
    """

    frozen_reference = True

    def __init__(self, file: str, name: str | None = None, missing: Literal["error", "problem"] = "error") -> None:
        super().__init__()
        path = Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no recorded answers at {file}: expected a file that RecordingChat wrote (if it was moved, change "
                "'file' where it is written: in the YAML, or in component.json)"
            )
        self._records = _Records(path)
        names = self._records.names
        if (name is None and len(names) != 1) or (name is not None and name not in names):
            held = ", ".join(sorted(names)) or "nothing"
            raise ValueError(f"{file} holds answers of {held}: expected {name or 'one model, or its name'}")
        self.name: str = next(iter(names)) if name is None else name
        self.init_args |= {"name": self.name}
        self.missing = missing
        self.failures: Counter[str] = Counter()
        """Prompts without a recorded answer, as ``"not recorded"``."""

    def reply(self, prompts: Sequence[Prompt], max_new_tokens: int = 512) -> list[Reply]:
        """Return the recorded answers.

        Raises:
            KeyError: If one was not recorded and ``missing`` is ``"error"``.
        """
        found = [self._records.reply(_reply_key(self.name, p, max_new_tokens)) for p in prompts]
        self._count(prompts, found)
        return [Reply(text=None, problem="not recorded") if reply is None else reply for reply in found]

    def answer_log_probs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "M K"]:
        """Return the recorded log-probabilities; NaN where they were unknown.

        Raises:
            KeyError: If one was not recorded and ``missing`` is ``"error"``.
        """
        found = [self._records.answers(_answers_key(self.name, p), answers) for p in prompts]
        self._count(prompts, found)
        return _table(found, len(answers))

    def _count(self, prompts: Sequence[Prompt], found: Sequence[object | None]) -> None:
        absent = [prompt for prompt, one in zip(prompts, found, strict=True) if one is None]
        if absent and self.missing == "error":
            raise KeyError(_not_recorded(self._records.file, self.name, absent))
        if absent:
            self.failures["not recorded"] += len(absent)


class RecordingChat(Chat):
    """Asks another model, and keeps what it answered in a file that `RecordedChat` reads.

    Only answers are kept: a prompt that failed is asked again next time. Every answer is written before the next call.

    Args:
        chat: The model that is asked.
        file: JSON lines, made when the first answer comes; those already there stay.
        mode: ``"add"`` asks what the file does not hold; ``"renew"`` asks everything and replaces; ``"replay"`` asks
            nothing and raises where an answer is not there, so that a test needs no network.
        batch_size: Prompts asked at a time, so that a run that stops keeps what it paid for.

    Raises:
        ValueError: If a line of the file is damaged, or ``batch_size`` is below 1.
    """

    def __init__(
        self, chat: Chat, file: str, mode: Literal["add", "renew", "replay"] = "add", batch_size: int = 16
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least one prompt at a time")
        self.chat = chat
        self.name: str = chat.name
        self.mode, self.batch_size = mode, batch_size
        self._records = _Records(Path(file).expanduser())

    def reply(self, prompts: Sequence[Prompt], max_new_tokens: int = 512) -> list[Reply]:
        """Return the answer to each of M prompts, from the file or from the model.

        Raises:
            KeyError: If one is not in the file and the mode is ``"replay"``.
        """
        keys = [_reply_key(self.name, prompt, max_new_tokens) for prompt in prompts]
        prompt_of, fresh = dict(zip(keys, prompts, strict=True)), dict[str, Reply]()
        for part in self._parts(keys, prompts, [self._records.reply(key) for key in keys]):
            asked = [prompt_of[key] for key in part]
            replies = dict(zip(part, self.chat.reply(asked, max_new_tokens), strict=True))
            settings = {"max_new_tokens": max_new_tokens}
            self._records.append(
                [
                    self._record("reply", key, prompt_of[key], settings)
                    | {"text": reply.text, "problem": reply.problem}
                    for key, reply in replies.items()
                    if reply.text is not None
                ]
            )
            fresh |= replies
        found = [fresh.get(key) or self._records.reply(key) for key in keys]
        return [Reply(text=None, problem="not recorded") if reply is None else reply for reply in found]

    def answer_log_probs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "M K"]:
        """Log-probability of each of K answers to each of M prompts, from the file or from the model.

        An answer without a log-probability is kept as unknown; a prompt without any is not kept.

        Raises:
            KeyError: If one is not in the file and the mode is ``"replay"``.
        """
        keys = [_answers_key(self.name, prompt) for prompt in prompts]
        prompt_of, fresh = dict(zip(keys, prompts, strict=True)), dict[str, list[float]]()
        for part in self._parts(keys, prompts, [self._records.answers(key, answers) for key in keys]):
            asked = [prompt_of[key] for key in part]
            rows = self.chat.answer_log_probs(asked, answers).cpu().tolist()
            fresh |= dict(zip(part, rows, strict=True))
            self._records.append(
                [
                    self._record("answers", key, prompt_of[key], {})
                    | {"log_probs": {a: None if math.isnan(v) else v for a, v in zip(answers, fresh[key], strict=True)}}
                    for key in part
                    if not all(map(math.isnan, fresh[key]))
                ]
            )
        return _table([fresh.get(key) or self._records.answers(key, answers) for key in keys], len(answers))

    def _parts(self, keys: list[str], prompts: Sequence[Prompt], held: Sequence[object | None]) -> list[list[str]]:
        """Keys to ask for, each once, some at a time."""
        absent = [place for place, one in enumerate(held) if one is None or self.mode == "renew"]
        if absent and self.mode == "replay":
            raise KeyError(_not_recorded(self._records.file, self.name, [prompts[place] for place in absent]))
        wanted = list(dict.fromkeys(keys[place] for place in absent))
        return [wanted[i : i + self.batch_size] for i in range(0, len(wanted), self.batch_size)]

    def _record(self, kind: str, key: str, prompt: Prompt, settings: dict[str, int]) -> dict[str, Any]:
        # the prompt is there for people; what counts is the key
        return {"key": key, "kind": kind, "name": self.name, **settings, "prompt": [_shown(part) for part in prompt]}


def _reply_key(name: str, prompt: Prompt, max_new_tokens: int) -> str:
    return prompt_key(prompt, kind="reply", name=name, max_new_tokens=max_new_tokens)


def _answers_key(name: str, prompt: Prompt) -> str:
    return prompt_key(prompt, kind="answers", name=name)


def _table(found: Sequence[Sequence[float] | None], width: int) -> Float[Tensor, "M K"]:
    rows = [[math.nan] * width if row is None else list(row) for row in found]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(found), width)


def _shown(part: str | Tensor) -> str:
    return part if isinstance(part, str) else f"<picture {part.shape[1]} x {part.shape[2]}>"


def _not_recorded(file: Path, name: str, absent: Sequence[Prompt]) -> str:
    first = " ".join(_shown(part) for part in absent[0])[:200]
    return (
        f"{len(absent)} prompts to {name} are not recorded in {file}, first: {first!r}; record them with RecordingChat "
        "in mode 'add' (another picture or another wording is another prompt)"
    )


__all__ = ["RecordedChat", "RecordingChat", "prompt_key"]
