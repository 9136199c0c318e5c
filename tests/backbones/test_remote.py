import base64
import copy
import io
import json
import math
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guerdon.backbones.chat import Chat, Reply
from guerdon.backbones.chat_completions import Place, picture_url, score
from guerdon.backbones.remote import RemoteChat, RequestSettings
from guerdon.core.hub import describe, load_component
from guerdon.testing import reopen

KEY = "sk-very-secret-0123456789"


def completion(text: Any = "an answer", finish="stop", **more: Any):
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **more}],
    }


def listed(*places):
    """Log-probabilities as endpoints write them; each place is (generated token, {token: probability})."""
    content = []
    for token, likely in places:
        top = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in likely.items()]
        content.append(
            {"token": token, "logprob": math.log(likely[token]), "bytes": list(token.encode()), "top_logprobs": top}
        )
    return completion("".join(token for token, _ in places), "length", logprobs={"content": content})


class Endpoint:
    """Speaks chat completions on the loopback interface; ``answer(body)`` gives (status, JSON or bytes, headers)."""

    def __init__(self):
        self.answer = lambda body: (200, completion(), {})
        self.bodies, self.headers, self.paths, self.busy, self.most = [], [], [], 0, 0
        self.lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers.items()))
                    outer.paths.append(self.path)
                    outer.busy += 1
                    outer.most = max(outer.most, outer.busy)
                status, told, headers = outer.answer(body)
                with outer.lock:
                    outer.busy -= 1
                told = told if isinstance(told, bytes) else json.dumps(told).encode()
                try:
                    self.send_response(status)
                    for name, value in {
                        "Content-Type": "application/json",
                        "Content-Length": str(len(told)),
                        **headers,
                    }.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(told)
                except OSError:  # who asked did not wait
                    pass

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def scripted(self, *answers):
        """Give these answers one after another, the last one again and again."""
        left = list(answers)

        def answer(body):
            with self.lock:
                return left.pop(0) if len(left) > 1 else left[0]

        self.answer = answer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def endpoint():
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def chat(endpoint, **more: Any):
    return RemoteChat(endpoint.url, "tiny", **{"timeout": 5.0, "backoff": 0.0, **more})


def noise(height=5, width=7, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.slow
def test_a_reply_and_what_is_sent_for_it(endpoint):
    made = chat(endpoint)
    assert isinstance(made, Chat) and made.name == "tiny"
    assert made.reply([["What is ", "this?"]], 33) == [Reply(text="an answer")]
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "What is this?"}],
            "max_tokens": 33,
            "temperature": 0.0,
        }
    ]
    assert made.failures == {}
    assert made.reply([]) == [] and made.answer_log_probs([], ["Yes"]).shape == (0, 1) and len(endpoint.bodies) == 1


@pytest.mark.slow
def test_settings_are_sent(endpoint):
    made = chat(endpoint, temperature=None, token_limit="max_completion_tokens", extra_body={"seed": 3})
    made.reply([["x"]], 9)
    assert {k: v for k, v in endpoint.bodies[0].items() if k != "messages"} == {
        "model": "tiny",
        "max_completion_tokens": 9,
        "seed": 3,
    }


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 999))
def test_a_picture_is_a_png_without_loss(height, width, seed):
    picture = noise(height, width, seed)
    kind, _, data = picture_url(picture).partition(",")
    assert kind == "data:image/png;base64"
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    assert opened.format == "PNG" and opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), picture.permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_texts_and_pictures_keep_their_order(endpoint):
    one, two = noise(seed=1), noise(seed=2).transpose(1, 2)
    chat(endpoint).reply([["first", one, "", "then", two]])
    content = endpoint.bodies[0]["messages"][0]["content"]
    assert content == [
        {"type": "text", "text": "first"},
        {"type": "image_url", "image_url": {"url": picture_url(one)}},
        {"type": "text", "text": "then"},
        {"type": "image_url", "image_url": {"url": picture_url(two)}},
    ]


@pytest.mark.slow
def test_order_is_kept_and_prompts_in_flight_are_bounded(endpoint):
    def slowest_first(body):
        number = int(body["messages"][0]["content"])
        time.sleep(0.03 * (3 - number % 4))
        return 200, completion(f"answer {number}"), {}

    endpoint.answer = slowest_first
    replies = chat(endpoint, concurrency=3).reply([[str(i)] for i in range(9)])
    assert [reply.text for reply in replies] == [f"answer {i}" for i in range(9)]
    assert endpoint.most == 3
    endpoint.most = 0
    chat(endpoint, concurrency=1).reply([[str(i)] for i in range(3)])
    assert endpoint.most == 1


FAILURES = {
    "always 500": ((500, {"error": {"message": "broken inside"}}, {}), "HTTP 500", "broken inside", 3),
    "always 429": ((429, {"error": {"message": "too many"}}, {}), "HTTP 429", "too many", 3),
    "wrong request": ((400, {"error": {"message": "context too long"}}, {}), "HTTP 400", "context too long", 1),
    "no such model": ((404, b"<html>nothing</html>", {"Content-Type": "text/html"}), "HTTP 404", "HTTP 404", 1),
    "moved": ((307, b"", {"Location": "http://127.0.0.1:9/elsewhere"}), "HTTP 307", "HTTP 307", 1),
    "half a JSON": ((200, b'{"choices": [{"mess', {}), "malformed", "no JSON", 1),
    "deep": ((200, b"[" * 100_000, {}), "malformed", "no JSON", 1),
    "no text at all": ((200, b"\xff\xfe", {}), "malformed", "no JSON", 1),
    "prose": ((200, b"I am a proxy", {"Content-Type": "text/plain"}), "malformed", "no JSON", 1),
    "a number": ((200, b"7", {}), "malformed", "no choices", 1),
    "an error that is called 200": ((200, {"error": {"message": "no credit"}}, {}), "malformed", "no credit", 1),
    "null": ((200, {"choices": None}, {}), "malformed", "no choices", 1),
    "no choice": ((200, {"choices": []}, {}), "empty", "no choice", 1),
    "no message": ((200, {"choices": [{"text": "old"}]}, {}), "malformed", "no message", 1),
    "a list": ((200, completion([{"type": "text"}]), {}), "malformed", "list", 1),
    "nothing": ((200, completion(None, "tool_calls"), {}), "empty", "tool_calls", 1),
    "white space": ((200, completion(" \n"), {}), "empty", "stop", 1),
    "filtered": ((200, completion("half a sen", "content_filter"), {}), "content filter", "content filter", 1),
    "refused": (
        (200, {"choices": [{"message": {"content": None, "refusal": "I will not"}, "finish_reason": "stop"}]}, {}),
        "refusal",
        "I will not",
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_has_no_text_says_why_and_is_counted(endpoint, case):
    answer, kind, told, attempts = FAILURES[case]
    endpoint.answer = lambda body: answer
    made = chat(endpoint, retries=2)
    (reply,) = made.reply([["x"]])
    assert reply.text is None and told in reply.problem
    assert made.failures == {kind: 1} and len(endpoint.bodies) == attempts
    if case not in ("nothing", "white space", "a list", "refused"):  # of these the text alone is bad
        assert made.answer_log_probs([["x"]], ["Yes", "No"]).isnan().all()
        assert made.failures == {kind: 2}


@pytest.mark.slow
def test_one_failure_does_not_touch_the_others(endpoint):
    endpoint.answer = lambda body: (
        (400, {"error": {"message": "bad"}}, {}) if body["messages"][0]["content"] == "1" else (200, completion(), {})
    )
    made = chat(endpoint)
    assert [r.text for r in made.reply([["0"], ["1"], ["2"]])] == ["an answer", None, "an answer"]
    assert made.failures == {"HTTP 400": 1}


def test_it_tries_again_after_429_and_500(endpoint):
    endpoint.scripted(
        (429, {}, {"Retry-After": "0.2"}), (503, {}, {"Retry-After": "in a while"}), (200, completion("at last"), {})
    )
    made, start = chat(endpoint), time.monotonic()
    assert made.reply([["x"]]) == [Reply(text="at last")]
    assert time.monotonic() - start >= 0.2
    assert made.failures == {} and len(endpoint.bodies) == 3


def test_waits_double_and_are_limited(endpoint, monkeypatch):
    waits = []
    monkeypatch.setattr("guerdon.backbones.remote.time.sleep", waits.append)
    endpoint.scripted((500, {}, {}), (500, {}, {}), (500, {}, {}), (429, {}, {"Retry-After": "86400"}), (500, {}, {}))
    chat(endpoint, backoff=2.0, retries=4).reply([["x"]])
    assert len(waits) == 4  # none behind the last attempt
    for wait, low, high in zip(waits, (1.0, 2.0, 4.0, 60.0), (2.0, 4.0, 8.0, 60.0), strict=True):
        assert low <= wait <= high


@pytest.mark.slow
def test_a_time_out_and_a_closed_port(endpoint):
    endpoint.answer = lambda body: (time.sleep(0.6), (200, completion(), {}))[1]
    made, start = chat(endpoint, timeout=0.2, retries=1), time.monotonic()
    assert made.reply([["x"]])[0] == Reply(text=None, problem="no answer within 0.2 s (2 attempts)")
    assert 0.4 <= time.monotonic() - start < 3.0
    assert made.failures == {"timeout": 1} and len(endpoint.bodies) == 2
    endpoint.scripted((200, completion("second time"), {}))
    assert made.reply([["x"]])[0].text == "second time"
    closed = RemoteChat("http://127.0.0.1:9/v1", "tiny", requests=RequestSettings(timeout=0.2, retries=0))
    (reply,) = closed.reply([["x"]])
    assert reply.text is None and "no connection" in reply.problem and closed.failures == {"connection": 1}


def test_a_cut_reply_keeps_its_text(endpoint):
    endpoint.answer = lambda body: (200, completion("half a sen", "length"), {})
    made = chat(endpoint)
    assert made.reply([["x"]], 4) == [Reply(text="half a sen", problem="cut after 4 tokens")]
    assert made.failures == {"cut": 1}


# Log-probabilities


def test_answers_are_found_among_the_likely_tokens(endpoint):
    endpoint.answer = lambda body: (
        200,
        listed(("Yes", {"Yes": 0.5, " Yes": 0.125, "yes": 0.05, "No": 0.25, "Yesterday": 0.01})),
        {},
    )
    made = chat(endpoint)
    got = made.answer_log_probs([["Done?"], ["Really?"]], ["Yes", "No", "Maybe", "Not yet", "Y"])
    assert got.shape == (2, 5) and got.dtype == torch.float32
    # "Yes" and " Yes" are two spellings of one answer: 0.5 + 0.125 = 0.625; "yes" and "Yesterday" are others
    torch.testing.assert_close(got[0, :2], torch.tensor([math.log(0.625), math.log(0.25)]))
    assert got[:, 2:].isnan().all() and got[0, :2].equal(got[1, :2])
    assert made.failures == {"answer unknown": 6}
    body = endpoint.bodies[0]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (True, 20, 1, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": "Yes"},
        {"content": [None]},
        {"content": [{"token": "Yes"}]},
        {"content": [{"token": "Yes", "logprob": "high", "top_logprobs": 3}]},
        {"content": [{"token": "Yes", "logprob": -9999.0, "top_logprobs": []}]},
        {"content": [{"token": "Yes", "logprob": float("nan"), "top_logprobs": []}]},
        {"content": [{"token": "Yes", "logprob": 0.7, "top_logprobs": []}]},
        {"content": [{"token": "Yes", "logprob": True, "top_logprobs": []}]},
        {"content": [{"token": "�", "bytes": [226, 128], "logprob": -1.0, "top_logprobs": [7, None]}]},
    ],
)
def test_what_is_not_told_is_nan(endpoint, logprobs):
    endpoint.answer = lambda body: (200, json.dumps(completion("Yes", "length", logprobs=logprobs)).encode(), {})
    made = chat(endpoint)
    assert made.answer_log_probs([["x"]], ["Yes", "�"]).isnan().all()
    assert sum(made.failures.values()) > 0


def test_tokens_without_bytes_are_read_too(endpoint):
    for token in ("Yes", " Yes", "▁Yes", "ĠYes"):
        entry = {"token": token, "logprob": -0.5, "top_logprobs": [{"token": token, "logprob": -0.5}]}
        endpoint.answer = lambda body, entry=entry: (200, completion("Yes", logprobs={"content": [entry]}), {})
        # the generated token is listed as well: counted once
        assert chat(endpoint).answer_log_probs([["x"]], ["Yes"]).tolist() == [[-0.5]]


def test_answers_of_several_tokens_along_what_was_generated(endpoint):
    endpoint.answer = lambda body: (
        200,
        listed(
            (" ", {" ": 0.5, "1": 0.25, "10": 0.0625}),
            ("1", {"1": 0.5, "2": 0.25}),
            ("0", {"0": 0.5, "1": 0.25, "": 0.125}),
        ),
        {},
    )
    got = chat(endpoint, answer_tokens=3).answer_log_probs([["x"]], ["1", "10", "11", "2", "12", "20"])[0]
    # "1": 0.25 at once, or " " and "1" = 0.5 · 0.5. "10": 0.0625 at once, or " ", "1", "0" = 0.5 · 0.5 · 0.5.
    # "11": 0.5 · 0.5 · 0.25. "2": 0.5 · 0.25. "12" and "20" leave the path.
    expected = [0.5, 0.1875, 0.0625, 0.125]
    torch.testing.assert_close(got[:4].exp(), torch.tensor(expected))
    assert got[4:].isnan().all()
    assert endpoint.bodies[0]["max_tokens"] == 3 and endpoint.bodies[0]["temperature"] == 0.0


TOKENS = ["a", "b", "ab", "ba", " a", " "]


@given(weights=st.lists(st.lists(st.integers(1, 9), min_size=6, max_size=6), min_size=1, max_size=3), data=st.data())
def test_scores_equal_a_count_of_all_ways(weights, data):
    """Slow loop: every list of tokens along the path, with each way to write an answer as its own event."""
    path = [data.draw(st.sampled_from(TOKENS)) for _ in weights]
    tables = [dict(zip(TOKENS, (w / sum(row) for w in row), strict=True)) for row in weights]
    places = [
        Place(t, math.log(p[t]), {k: math.log(v) for k, v in p.items()}) for t, p in zip(path, tables, strict=True)
    ]
    for answer in ("a", "b", "ab", "aba", "c"):
        total, found, done = 0.0, False, False
        for i, table in enumerate(tables):
            start = "".join(path[:i])
            # a way that went through the answer already is part of a shorter one
            done = done or any("".join(path[:j]).lstrip() == answer for j in range(1, i + 1))
            for token in TOKENS:
                if not done and (start + token).lstrip() == answer:
                    total += math.prod(tables[j][path[j]] for j in range(i)) * table[token]
                    found = True
        got = score(places, answer)
        assert math.isnan(got) if not found else math.isclose(math.exp(got), total, rel_tol=1e-9)


# Keys, and what is saved


def test_the_key_is_sent_and_nowhere_else(endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "of-another-service")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Other: of-another-service\nAuthorization: of-another-service")
    made = chat(endpoint, api_key_env="SOME_KEY")
    endpoint.scripted((401, {"error": {"message": f"wrong key {KEY}"}}, {}), (200, f"{'x' * 190} {KEY}".encode(), {}))
    replies = [made.reply([["x"]])[0] for _ in range(2)]
    assert replies[0].problem == "HTTP 401: wrong key ..."
    assert not any(KEY[:8] in reply.problem for reply in replies)  # not a half either, where long texts are cut
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    made.save_pretrained(tmp_path / "saved")
    written = b"".join(file.read_bytes() for file in (tmp_path / "saved").iterdir())
    assert KEY.encode() not in written and b"SOME_KEY" in written and endpoint.url.encode() in written
    assert KEY not in repr(made) + repr(vars(made))
    chat(endpoint).reply([["x"]])
    assert "Authorization" not in endpoint.headers[-1] and "Authorization" in endpoint.headers[-2]
    assert "of-another-service" not in str(endpoint.headers) and "Stainless-O" not in str(endpoint.headers)


def test_a_key_that_is_missing_or_in_the_wrong_place(endpoint, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="SOME_KEY holds no key"):
        chat(endpoint, api_key_env="SOME_KEY").reply([["x"]])
    for given_key in (KEY, "gsk_abcdef0123456789"):
        with pytest.raises(ValueError, match="NAME of an environment variable") as error:
            chat(endpoint, api_key_env=given_key)
        assert given_key not in str(error.value)
    for url in (f"http://user:{KEY}@127.0.0.1/v1", f"http://127.0.0.1/v1?key={KEY}"):
        with pytest.raises(ValueError, match="api_key_env") as error:
            RemoteChat(url, "tiny")
        assert KEY not in str(error.value)
    assert not endpoint.bodies


def test_saved_and_opened_without_a_word_to_anyone(endpoint, monkeypatch, tmp_path):
    made = chat(endpoint, api_key_env="UNSET_KEY", extra_body={"seed": 1})
    made.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    opened = load_component(tmp_path / "saved")
    assert isinstance(opened, RemoteChat) and describe(opened) == describe(made)
    assert not list(opened.parameters()) and opened.state_dict() == {}
    assert not endpoint.bodies


def test_it_works_copied_and_opened_again(endpoint):
    made = chat(endpoint)
    made.reply([["x"]])
    assert copy.deepcopy(made).reply([["x"]])[0].text == reopen(made).reply([["x"]])[0].text == "an answer"


@pytest.mark.slow
def test_importing_and_constructing_does_not_import_openai():
    code = (
        "import sys; from guerdon.backbones.remote import RemoteChat; "
        "RemoteChat('http://127.0.0.1:9/v1', 'tiny'); assert 'openai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "127.0.0.1:8000"},
        {"base_url": "ftp://127.0.0.1/v1"},
        {"base_url": ""},
        {"model": " "},
        {"timeout": 0.0},
        {"timeout": math.inf},
        {"backoff": -1.0},
        {"retries": -1},
        {"concurrency": 0},
        {"top_logprobs": 0},
        {"answer_tokens": 0},
        {"temperature": math.nan},
        {"extra_body": {"messages": []}},
    ],
)
def test_arguments_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"expected|name a model|leave it out"):
        RemoteChat(**{"base_url": "http://127.0.0.1:9/v1", "model": "tiny", **wrong})


def test_an_endpoint_must_be_named():
    with pytest.raises(TypeError):
        RemoteChat()  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        RemoteChat("http://127.0.0.1:9/v1")  # pyright: ignore[reportCallIssue]


def test_wrong_input_raises_before_anything_is_sent(endpoint):
    made = chat(endpoint)
    with pytest.raises(TypeError, match="expected uint8"):
        made.reply([["fine"], ["x", noise().float()]])
    with pytest.raises(ValueError, match=r"expected \(3, H, W\)"):
        made.reply([["x", noise().permute(1, 2, 0)]])
    with pytest.raises(ValueError, match="prompt is empty"):
        made.reply([["", " "]])
    with pytest.raises(ValueError, match="answer is empty"):
        made.answer_log_probs([["x"]], ["Yes", " "])
    with pytest.raises(ValueError, match="at least 1"):
        made.reply([["x"]], 0)
    assert not endpoint.bodies


def test_requests_are_an_object_or_given_flat():
    flat = RemoteChat(
        "http://127.0.0.1:9/v1",
        "tiny",
        timeout=5.0,  # pyright: ignore[reportCallIssue]
        retries=0,  # pyright: ignore[reportCallIssue]
        temperature=None,
    )
    whole = RemoteChat(
        "http://127.0.0.1:9/v1", "tiny", requests=RequestSettings(timeout=5.0, retries=0), temperature=None
    )
    assert describe(flat) == describe(whole)
    assert (flat.requests.timeout, flat.requests.retries, flat.requests.concurrency) == (5.0, 0, 4)
