"""A model behind any OpenAI-compatible chat-completions endpoint; nothing is sent before the first question."""

import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import folds
from ..core.interfaces import Component
from .chat import Chat, Prompt, Reply
from .chat_completions import Failure, check_prompt, choice_of, content_of, places_of, score, short, text_of

_HEADERS = {"host", "accept", "accept-encoding", "connection", "content-length", "content-type", "user-agent"} | {
    "x-stainless-raw-response"  # by which the openai package knows that it must not parse the answer
}
_OWN_FIELDS = {"model", "messages", "temperature", "logprobs", "top_logprobs", "stream", "n"}
_LIMITS = ("max_tokens", "max_completion_tokens")
_LONGEST_WAIT = 60.0  # seconds; an endpoint that asks for an hour gets a minute, then the retries run out


class RequestSettings(Component):
    """Settings of requests to an endpoint: time-out, retries and concurrency.

    Args:
        timeout: Seconds of silence, above 0, after which an attempt has failed: to connect, to send, and to answer.
        retries: Number of attempts after the first.
        backoff: Seconds before the first retry; twice as many before each later one, up to 60, shortened at random by
            up to a half. A longer ``Retry-After`` of the endpoint is kept to, up to 60 s.
        concurrency: Number of prompts in flight at a time, at least 1.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, timeout: float | int = 60.0, retries: int = 3, backoff: float | int = 1.0, concurrency: int = 4
    ) -> None:
        super().__init__()
        if not (math.isfinite(timeout) and timeout > 0 and math.isfinite(backoff) and backoff >= 0):
            raise ValueError(f"timeout {timeout}, backoff {backoff}: expected seconds, the first above 0")
        if retries < 0 or concurrency < 1:
            raise ValueError(f"retries {retries}, concurrency {concurrency}: expected at least 0, and at least 1")
        self.timeout, self.retries, self.backoff, self.concurrency = timeout, retries, backoff, concurrency


class RemoteChat(Chat):
    """Asks an OpenAI-compatible chat-completions endpoint, several prompts at a time; their order is kept.

    Constructing and opening one contacts nothing. Requests go to ``base_url`` alone: redirects are not followed, and of
    the environment variables of the openai package (key, organisation, extra headers) none is used. Saved are the
    arguments, so the address and the names of model and variable, never a key; the model itself is somebody else's.

    A reply reports what went wrong, an unknown log-probability is NaN, and ``failures`` counts both. Time-outs, lost
    connections and the status 408, 429 and 5xx are tried again.

    **Log-probabilities of answers** come from the lists of likely tokens that an endpoint gives with ``logprobs``. A
    token is the answer if their texts are equal but for white space in front; upper and lower case differ. Several
    spellings in one list (``"Yes"`` and ``" Yes"``) add up. An answer that is in no list is unknown, NaN. With
    ``answer_tokens`` 1, as a rule, an answer of several tokens is unknown too. With more, tokens are generated, and an
    answer is known if it is what was generated so far and one token of the list that follows: the sum along that path.

    Args:
        base_url: Address up to and without ``/chat/completions``, such as ``"http://127.0.0.1:8000/v1"``.
        model: Name of the model there.
        api_key_env: Name of the environment variable that holds the key, in capitals, read when something is asked;
            None sends no key.
        requests: How requests are sent, and tried again where they fail; None takes the defaults. Its arguments may
            also be given here one by one, such as ``timeout=10.0``.
        temperature: Temperature of replies, at least 0; 0 is the most likely answer. None sends none, as some models
            accept only their own.
        top_logprobs: Number of likely tokens to ask for at each place, at least 1; many endpoints give at most 20,
            some 5.
        answer_tokens: Number of tokens to generate when answers are scored, at least 1; see above.
        token_limit: Field that limits the answer; newer models of OpenAI want ``"max_completion_tokens"``.
        extra_body: More fields of every request, such as ``{"chat_template_kwargs": {"enable_thinking": False}}`` for a
            model that would otherwise begin to think aloud where an answer is scored. Saved, so no place for keys.

    Raises:
        ValueError: If an argument makes no sense, or a key stands where it would be saved.
    """

    frozen_reference = True

    @folds(requests=RequestSettings)
    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        requests: RequestSettings | None = None,
        temperature: float | int | None = 0.0,
        top_logprobs: int = 20,
        answer_tokens: int = 1,
        token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_address(base_url)
        if not model.strip():
            raise ValueError("model is empty: name a model of the endpoint")
        if api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
            # not printed: this may be the key itself
            raise ValueError("api_key_env: expected the NAME of an environment variable, in capitals, not the key")
        if top_logprobs < 1 or answer_tokens < 1:
            raise ValueError(f"top_logprobs {top_logprobs}, answer_tokens {answer_tokens}: expected at least 1 each")
        if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature is {temperature}: expected at least 0, or None to send none")
        if taken := sorted(set(extra_body or {}) & (_OWN_FIELDS | set(_LIMITS))):
            raise ValueError(f"extra_body holds {taken[0]!r}, which is set otherwise: leave it out")
        self.base_url, self.name, self.api_key_env = base_url, model, api_key_env
        self.requests = RequestSettings() if requests is None else requests
        self.temperature, self.top_logprobs, self.answer_tokens = temperature, top_logprobs, answer_tokens
        self.token_limit, self.extra_body = token_limit, dict(extra_body or {})
        self.failures: Counter[str] = Counter()
        """What went wrong since construction, by kind: prompts without an answer, replies cut short (``"cut"``), and
        answers whose log-probability the endpoint did not return (``"answer unknown"``)."""

    def reply(self, prompts: Sequence[Prompt], max_new_tokens: int = 512) -> list[Reply]:
        """Request an answer to each of M prompts; a failed, refused or filtered one is a `Reply` without a text.

        Raises:
            ModuleNotFoundError: If the openai package is not installed.
            TypeError: If a picture is not uint8.
            ValueError: If a prompt is empty, a picture has another shape, or the variable with the key is not set.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
        settings = {self.token_limit: max_new_tokens} | self._temperature(self.temperature)
        return [self._reply(choice, max_new_tokens) for choice in self._ask_all(prompts, settings)]

    def answer_log_probs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "M K"]:
        """Compute the log-probability of each of K answers to each of M prompts, NaN where the endpoint gives none.

        Raises:
            ModuleNotFoundError: If the openai package is not installed.
            TypeError: If a picture is not uint8.
            ValueError: If a prompt or an answer is empty, a picture has another shape, or the variable with the key is
                not set.
        """
        if not all(answer.strip() for answer in answers):
            raise ValueError("an answer is empty: expected some text to find the log-probability of")
        if not answers:
            return torch.zeros(len(prompts), 0)
        settings: dict[str, Any] = {"logprobs": True, "top_logprobs": self.top_logprobs}
        settings[self.token_limit] = self.answer_tokens
        # One token: at temperature 1, an endpoint that applies the temperature returns the model's own probabilities
        # too; at 0 it would return 0 and 1. A path of several must be the likely one.
        one = self.answer_tokens == 1 and self.temperature is not None
        settings |= self._temperature(1.0 if one else self.temperature)
        table = [self._scores(choice, answers) for choice in self._ask_all(prompts, settings)]
        return torch.tensor(table, dtype=torch.float32).reshape(len(prompts), len(answers))

    def _temperature(self, temperature: float | None) -> dict[str, Any]:
        return {} if temperature is None else {"temperature": temperature}

    def _reply(self, choice: "dict[str, Any] | Failure", limit: int) -> Reply:
        text = choice if isinstance(choice, Failure) else text_of(choice)
        if isinstance(text, Failure):
            self.failures[text.kind] += 1
            return Reply(text=None, problem=text.problem)
        if isinstance(choice, dict) and choice.get("finish_reason") == "length":
            self.failures["cut"] += 1
            return Reply(text=text, problem=f"cut after {limit} tokens")
        return Reply(text=text)

    def _scores(self, choice: "dict[str, Any] | Failure", answers: Sequence[str]) -> list[float]:
        places = choice if isinstance(choice, Failure) else places_of(choice)
        if isinstance(places, Failure):
            self.failures[places.kind] += 1
            return [math.nan] * len(answers)
        scores = [score(places, answer) for answer in answers]
        self.failures["answer unknown"] += sum(map(math.isnan, scores))
        self.failures += Counter()  # drops what is 0
        return scores

    def _ask_all(self, prompts: Sequence[Prompt], settings: dict[str, Any]) -> "list[dict[str, Any] | Failure]":
        for prompt in prompts:
            check_prompt(prompt)
        if not prompts:
            return []
        key, openai = self._key(), _openai()

        def only_ours(request: Any) -> None:
            for name in [n for n in request.headers if n.lower() not in _HEADERS]:
                del request.headers[name]
            if key is not None:
                request.headers["Authorization"] = f"Bearer {key}"

        with openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"request": [only_ours]}) as http:
            client = openai.OpenAI(
                base_url=self.base_url,
                api_key="set for each request",
                http_client=http,
                timeout=float(self.requests.timeout),
                max_retries=0,
            )

            def ask(prompt: Prompt) -> dict[str, Any] | Failure:
                return self._ask(openai, client, prompt, settings, key or "\0")

            with ThreadPoolExecutor(min(self.requests.concurrency, len(prompts))) as pool:
                return list(pool.map(ask, prompts))

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError(f"the environment variable {self.api_key_env} holds no key for {self.base_url}: set it")
        return key

    def _ask(
        self, openai: Any, client: Any, prompt: Prompt, settings: dict[str, Any], hidden: str
    ) -> "dict[str, Any] | Failure":
        # what is hidden is the key: an endpoint may print what it was sent
        body, sending = self.extra_body | settings, self.requests
        messages = [{"role": "user", "content": content_of(prompt)}]
        failure = Failure("connection", "")
        for attempt in range(sending.retries + 1):
            asked = 0.0  # seconds the endpoint asked to wait
            try:
                answer = client.chat.completions.with_raw_response.create(
                    model=self.name, messages=messages, extra_body=body
                )
                return choice_of(answer.http_response.content.replace(hidden.encode(), b"..."))
            except openai.APITimeoutError:
                failure = Failure("timeout", f"no answer within {sending.timeout:g} s")
            except openai.APIConnectionError as error:
                failure = Failure("connection", f"no connection: {short(error.__cause__ or error)}")
            except openai.APIStatusError as error:
                status = int(error.status_code)
                told = error.message.removeprefix(f"Error code: {status} - ").replace(hidden, "...")
                failure = Failure(f"HTTP {status}", f"HTTP {status}: {short(told)}")
                if status not in (408, 429) and status < 500:
                    return failure
                asked = _retry_after(error.response.headers)
            if attempt < sending.retries:
                wait = sending.backoff * 2**attempt * _jitter.uniform(0.5, 1.0)
                time.sleep(min(max(wait, asked), _LONGEST_WAIT))
        tries = f" ({sending.retries + 1} attempts)" if sending.retries else ""
        return Failure(failure.kind, failure.problem + tries)


_jitter = random.Random()  # of its own: seeded experiments must not change with the network


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        seconds = float(headers.get("retry-after", "0"))
    except ValueError:  # a date
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _check_address(base_url: str) -> None:
    parts = urlsplit(base_url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        # not printed: a key may be part of it
        raise ValueError("base_url holds a name, a password or a query, which would be saved: use api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url {base_url!r}: expected an address such as 'http://127.0.0.1:8000/v1'")


def _openai() -> Any:
    try:
        import openai  # an extra, and a second to import
    except ImportError as error:
        raise ModuleNotFoundError(
            "a remote model needs the openai package: pip install 'guerdon[remote]'", name="openai"
        ) from error
    return openai


__all__ = ["RemoteChat", "RequestSettings"]
