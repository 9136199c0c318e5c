"""The server of the label page over a real socket: who is let in, and what is durable when it says so."""

import errno
import json
import os
import socket
import struct
import threading

import pytest

from guerdon.pages.label_server import HOST, bind
from guerdon.preference.answer_log import read_answers

from .labelling import NASTY, Memory, make_pairs, serving


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


@pytest.fixture
def running(path):
    with serving(path) as running:
        yield running


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A page that refuses everything it is asked."""
    with serving(tmp_path_factory.mktemp("label") / "answers.jsonl") as running:
        yield running
        assert running.json("/state?rater=ada")[1]["answered"] == 0
        assert running.page.queue.log.path.read_bytes() == b""


def answer(running, pair, choice="first", rater="ada", **more):
    return running.json("/answer", {"rater": rater, "pair": pair, "choice": choice, **more})


@pytest.mark.parametrize(
    ("address", "sent", "headers"),
    [
        ("/", None, {"X-Guerdon-Token": None}),
        ("/?token=", None, {"X-Guerdon-Token": None}),
        ("/?token=wrong", None, {"X-Guerdon-Token": None}),
        ("/?token=%C3%A4", None, {"X-Guerdon-Token": None}),
        ("/state?rater=ada", None, {"X-Guerdon-Token": "wrong"}),
        ("/clip?pair=p0&side=first", None, {"X-Guerdon-Token": None}),
        ("/nothing", None, {"X-Guerdon-Token": None}),
        ("/openapi.json", None, {"X-Guerdon-Token": None}),
        ("/state?rater=ada", None, {"Host": "evil.example"}),
        ("/state?rater=ada", None, {"Host": "127.0.0.1.evil.example:80"}),
        ("/state?rater=ada", None, {"Host": "[::1"}),
        ("/answer", {"rater": "ada", "pair": "p0", "choice": "tie"}, {"Origin": None}),
        ("/answer", {"rater": "ada", "pair": "p0", "choice": "tie"}, {"Origin": "http://evil.example"}),
        ("/answer", {"rater": "ada", "pair": "p0", "choice": "tie"}, {"Origin": "null"}),
        ("/answer", {"rater": "ada", "pair": "p0", "choice": "tie"}, {"X-Guerdon-Token": None}),
        ("/undo", {"rater": "ada", "pair": "p0"}, {"Origin": "http://127.0.0.1:1"}),
    ],
)
def test_whoever_is_not_the_page_is_refused(untouched, address, sent, headers):
    status, got, body = untouched.request(address, sent, headers)
    assert status == 403 and b"refused" in body and untouched.token.encode() not in body
    assert not any(name.lower().startswith("access-control") for name in got)


def test_the_page_comes_with_the_token_alone_and_allows_no_foreign_content(path):
    with serving(path, raters=[NASTY]) as running:
        status, headers, body = running.request(f"/?token={running.token}", headers={"X-Guerdon-Token": None})
        assert status == 200 and b"<!doctype html>" in body and NASTY.encode() not in body
        assert b"<script>alert" not in body and b"http://" not in body and b"https://" not in body
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
        assert len(running.token) >= 32


def test_a_tunnel_to_the_loopback_interface_may_use_another_port(running):
    headers = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}
    assert running.request("/answer", {"rater": "ada", "pair": "p0", "choice": "tie"}, headers)[0] == 200


def test_only_the_loopback_interface_is_bound_and_a_taken_port_is_explained():
    with bind() as sock:
        assert sock.getsockname()[0] == HOST == "127.0.0.1"
        with pytest.raises(OSError, match=r"cannot use port \d+ .*--port"):
            bind(sock.getsockname()[1])
        with socket.socket() as other:
            other.connect(sock.getsockname())


def test_an_answer_is_in_the_file_when_it_is_confirmed(path, running):
    for number, choice in enumerate(("first", "second", "tie", "skip")):
        status, state = answer(running, f"p{number}", choice, seconds=2.0 + number)
        assert status == 200 and state["answered"] == number + 1 and state["last"] == f"p{number}"
        assert [(a.pair, a.choice) for a in read_answers(path)][-1] == (f"p{number}", choice)
    last = read_answers(path)[-1]
    assert last.rater == "ada" and last.seconds == 5.0 and (last.answered or "").endswith("+00:00")
    assert state["pair"] is None and state["following"] is None


def test_time_left_is_the_median_time_of_the_open_pairs(running):
    assert running.json("/state?rater=ada")[1]["seconds_left"] is None
    for number, seconds in enumerate((1.0, 50.0, 2.0)):
        _, state = answer(running, f"p{number}", seconds=seconds)
    assert state["seconds_left"] == 2.0


def test_a_second_answer_is_refused_with_the_next_open_pair(path, running):
    assert answer(running, "p0", "first")[0] == 200
    status, state = answer(running, "p0", "second")
    assert status == 409 and state["choice"] == "first" and state["pair"]["id"] == "p1"
    assert "undo" in state["detail"]
    assert [(a.pair, a.choice) for a in read_answers(path)] == [("p0", "first")]


def test_answers_at_the_same_moment_are_saved_once(path, running):
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(answer(running, "p0")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [409] * 7 and len(read_answers(path)) == 1


def test_every_rater_has_a_queue_and_withdraws_own_answers_only(path, running):
    answer(running, "p0", "first", "ada")
    answer(running, "p1", "tie", "ada")
    answer(running, "p0", "second", "bo")
    assert running.json("/state?rater=bo")[1]["pair"]["id"] == "p1"
    status, state = running.json("/undo", {"rater": "ada", "pair": "p1"})
    assert status == 200 and state["pair"]["id"] == "p1" and state["last"] == "p0" and state["answered"] == 1
    status, state = running.json("/undo", {"rater": "ada", "pair": "p1"})  # the same request a second time
    assert status == 409 and state["answered"] == 1
    assert running.json("/undo", {"rater": "cy", "pair": "p0"})[0] == 409
    assert [(a.rater, a.pair) for a in read_answers(path)] == [("ada", "p0"), ("bo", "p0")]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"rater": "ada", "pair": "p99", "choice": "tie"}, 404),
        ({"rater": "ada", "pair": "p0", "choice": "left"}, 422),
        ({"rater": "ada", "pair": "p0", "choice": "tie", "more": 1}, 422),
        ({"rater": "ada", "pair": "p0", "choice": "tie", "seconds": -1}, 422),
        ({"rater": " ", "pair": "p0", "choice": "tie"}, 422),
        ({"rater": "a\nb", "pair": "p0", "choice": "tie"}, 422),
        ({"rater": "x" * 65, "pair": "p0", "choice": "tie"}, 422),
        ("text", 422),
    ],
)
def test_a_bad_request_changes_nothing(untouched, sent, status):
    assert untouched.json("/answer", sent)[0] == status


def test_named_raters_are_the_only_ones(path):
    with serving(path, raters=["ada", "bo"]) as running:
        assert answer(running, "p0", rater="bo")[0] == 200
        status, body = answer(running, "p0", rater="cy")
        assert status == 422 and "expected one of ada, bo" in body["detail"]


def test_the_same_file_goes_on_where_it_ended(path):
    with serving(path) as running:
        answer(running, "p0", seconds=4.0)
        answer(running, "p2")
    with serving(path) as running:
        state = running.json("/state?rater=ada")[1]
        assert (state["pair"]["id"], state["following"]["id"], state["answered"]) == ("p1", "p3", 2)
        assert (state["last"], state["seconds_left"]) == ("p2", 8.0)


def test_a_full_disk_is_said_and_the_answer_may_be_sent_again(path, running, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.write
    # the event loop writes to its own descriptors
    monkeypatch.setattr(os, "write", lambda fd, data: full(fd, data) if b'"pair"' in data else real(fd, data))
    status, body = answer(running, "p0")
    assert status == 507 and "No space left" in body["detail"] and "free some space" in body["detail"]
    assert path.read_bytes() == b""
    monkeypatch.undo()
    assert answer(running, "p0")[0] == 200 and len(read_answers(path)) == 1


def unpacked(body):
    """Header and pictures of a clip."""
    (length,) = struct.unpack(">I", body[:4])
    header, at, pictures = json.loads(body[4 : 4 + length]), 4 + length, []
    for size in header["sizes"]:
        pictures.append(body[at : at + size])
        at += size
    assert at == len(body)
    return header, pictures


def test_a_clip_holds_the_frames_of_its_segment(running):
    status, headers, body = running.request("/clip?pair=p1&side=first")
    header, pictures = unpacked(body)
    assert status == 200 and headers["content-type"] == "application/octet-stream"
    assert header["times"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5] and header["seconds"] == 0.5
    assert len(pictures) == 6 and all(p[:2] == b"\xff\xd8" for p in pictures)


def test_a_clip_that_cannot_be_read_is_explained_and_the_pair_can_be_skipped(path):
    pairs = make_pairs(2, make_pairs(1)[0].second.model_copy(update={"episode": 9}))
    with serving(path, pairs) as running:
        status, body = running.json("/clip?pair=p0&side=second")
        assert status == 422 and "episode 9: the file is <cut>" in body["detail"]
        assert running.request("/clip?pair=p0&side=first")[0] == 200
        assert answer(running, "p0", "skip")[0] == 200


def test_unknown_clips_are_not_found(running):
    assert running.request("/clip?pair=p99&side=first")[0] == 404
    assert running.request("/clip?pair=p0&side=third")[0] == 422


def test_clips_are_made_once(path):
    dataset = Memory()
    with serving(path, dataset=dataset) as running:
        bodies = {running.request("/clip?pair=p0&side=first")[2] for _ in range(3)}
    assert len(bodies) == 1 and dataset.reads == 1
