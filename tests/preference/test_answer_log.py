"""The log of answers: what is confirmed stays, once, whatever happens to the process, the file or the disk."""

import errno
import json
import os
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.preference.answer_log import AlreadyAnsweredError, AnswerLog, AnswerNotSavedError, read_answers
from guerdon.preference.answers import Answer


def answer(pair="p1", choice: Any = "first", rater="ada", **more):
    return Answer(pair=pair, choice=choice, rater=rater, **more)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def filled(path, count=3):
    with AnswerLog(path) as log:
        for number in range(count):
            log.append(answer(f"p{number}", seconds=1.5))
    return path.read_bytes()


def test_answers_come_back_in_order_without_the_withdrawn_ones(path):
    with AnswerLog(path) as log:
        log.append(answer("p1", "first"))
        log.append(answer("p1", "second", rater="bo"))
        log.append(answer("p2", "tie"))
        assert log.undo("ada").pair == "p2"
        log.append(answer("p2", "skip", seconds=2.5))
        assert log.undo("bo").choice == "second"
        expected = [answer("p1", "first"), answer("p2", "skip", seconds=2.5)]
        assert log.answers() == expected and log.answers("bo") == []
        with pytest.raises(LookupError, match="bo"):
            log.undo("bo")
        with pytest.raises(LookupError, match="is to 'p2', expected 'p1'"):
            log.undo("ada", pair="p1")
    assert read_answers(path) == expected
    assert len(path.read_text().splitlines()) == 6  # nothing is rewritten
    with AnswerLog(path) as log:
        assert log.answers() == expected and log.repaired == ""
        assert log.undo("ada").pair == "p2" and log.undo("ada").pair == "p1"
    assert read_answers(path) == []


def test_every_line_is_on_the_disk_before_append_returns(path, monkeypatch):
    calls = []
    real_write, real_fsync = os.write, os.fsync
    with AnswerLog(path) as log:
        monkeypatch.setattr(os, "write", lambda fd, data: (calls.append(("write", data)), real_write(fd, data))[1])
        monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", path.read_bytes())), real_fsync(fd))[1])
        log.append(answer("p1"))
        log.undo("ada")
    assert [name for name, _ in calls] == ["write", "fsync", "write", "fsync"]
    assert calls[0][1] == calls[1][1] and calls[3][1] == calls[0][1] + calls[2][1]


def test_a_second_answer_of_one_rater_to_one_pair_is_refused(path):
    with AnswerLog(path) as log:
        log.append(answer("p1", "first"))
        with pytest.raises(AlreadyAnsweredError, match=r"'p1'.*ada.*first.*undo") as raised:
            log.append(answer("p1", "second"))
        assert raised.value.answer == answer("p1", "first")
        log.append(answer("p1", "second", rater="bo"))
    with AnswerLog(path) as log, pytest.raises(AlreadyAnsweredError):
        log.append(answer("p1", "first"))
    assert len(read_answers(path)) == 2


def test_threads_that_answer_at_once_write_each_pair_once(path):
    refused = []

    def work(log):
        for number in range(20):
            try:
                log.append(answer(f"p{number}"))
            except AlreadyAnsweredError as error:
                refused.append(error)

    with AnswerLog(path) as log:
        threads = [threading.Thread(target=work, args=(log,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == 60 and sorted(a.pair for a in read_answers(path)) == sorted(f"p{n}" for n in range(20))


@given(cut=st.integers(1, 400), tail=st.sampled_from([b"", b"\n", b"\0\0\0", b"\xff\n"]))
def test_a_line_cut_anywhere_is_set_aside_and_never_joined(tmp_path_factory, cut, tail):
    path = tmp_path_factory.mktemp("cut") / "answers.jsonl"
    whole = filled(path)
    lines = whole.splitlines(keepends=True)
    kept = whole[: len(lines[0]) + cut % (len(whole) - len(lines[0]))] + tail
    path.write_bytes(kept)
    start, rest = [], kept
    for line in lines:  # the lines that are there as they were, to the last byte but the line break
        if not rest.startswith(line) and rest.rstrip(b"\n") != line.rstrip(b"\n"):
            break
        start.append(line)
        rest = rest[len(line) :]
    expected = [Answer.model_validate_json(line) for line in start]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = read_answers(path)
    assert path.read_bytes() == kept and before == expected  # reading changes nothing
    with AnswerLog(path) as log:
        assert log.answers() == expected
        assert bool(log.repaired) == bool(rest.strip(b"\n"))
        log.append(answer("new", "tie"))
    assert path.read_bytes() == b"".join(start) + (answer("new", "tie").model_dump_json() + "\n").encode() or (
        not rest.strip(b"\n") and read_answers(path) == [*expected, answer("new", "tie")]
    )
    if rest.strip(b"\n"):
        assert path.with_name("answers.jsonl.torn").read_bytes().strip(b"\n") == rest.strip(b"\n")


def test_reading_a_cut_file_warns_and_keeps_the_rest(path):
    whole = filled(path)
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match=r"last line is cut off"):
        assert [a.pair for a in read_answers(path)] == ["p0", "p1"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"pair": "p', r"line 2 is damaged"),
        ('{"pair": "p9", "choice": "left"}', r"line 2: expected an answer such as .*choice"),
        ('{"undo": "p9", "rater": "ada"}', r"line 2 withdraws .*'p9', which was not given"),
        ('{"pair": "p0", "choice": "tie", "rater": "ada"}', r"line 2 answers pair 'p0' of rater 'ada' a second time"),
    ],
)
def test_a_bad_line_in_the_middle_is_named_and_nothing_is_changed(path, line, says):
    lines = filled(path).decode().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=says):
        AnswerLog(path)
    with pytest.raises(ValueError, match=says):
        read_answers(path)
    assert path.read_bytes() == before and not path.with_name("answers.jsonl.torn").exists()


def test_empty_lines_and_foreign_line_breaks_are_passed_over(path):
    path.write_bytes(b'\n{"pair": "p1", "choice": "tie"}\r\n\n{"pair": "p2", "choice": "first"}')
    with AnswerLog(path) as log:
        log.append(answer("p3"))
        assert log.repaired == ""
    assert [a.pair for a in read_answers(path)] == ["p1", "p2", "p3"]


def test_two_processes_cannot_write_one_file(path):
    code = (
        "import sys; from guerdon.preference.answer_log import AnswerLog\n"
        "try: AnswerLog(sys.argv[1])\nexcept BlockingIOError as error: print(error)"
    )
    with AnswerLog(path):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
        assert "is open in another process" in done.stdout, done.stderr
        with pytest.raises(BlockingIOError, match="another process"):
            AnswerLog(path)
    AnswerLog(path).close()


def test_a_full_disk_leaves_the_file_as_it_was(path, monkeypatch):
    before = filled(path)
    real = os.write

    def short(descriptor, data):
        real(descriptor, data[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with AnswerLog(path) as log:
        for broken in (short, lambda fd, data: real(fd, data[:7])):
            monkeypatch.setattr(os, "write", broken)
            with pytest.raises(AnswerNotSavedError, match=r"not saved .*(No space|disk is full).*free some space"):
                log.append(answer("new"))
            with pytest.raises(AnswerNotSavedError):
                log.undo("ada")
            assert path.read_bytes() == before
        monkeypatch.setattr(os, "write", real)
        log.append(answer("new"))
        assert log.undo("ada").pair == "new" and log.undo("ada").pair == "p2"


def test_an_answer_that_does_not_reach_the_disk_is_not_confirmed(path, monkeypatch):
    before = filled(path)
    with AnswerLog(path) as log:
        real, failures = os.fsync, iter([OSError(errno.EIO, "Input/output error")])

        def fsync(descriptor):
            for failure in failures:
                raise failure
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(AnswerNotSavedError, match="Input/output"):
            log.append(answer("new"))
        assert path.read_bytes() == before
        log.append(answer("new"))


@pytest.mark.slow
def test_a_real_limit_on_the_file_cuts_nothing_off(path):
    """A limit of the operating system makes the write short, as a full disk does."""
    code = """
import resource, signal, sys
from guerdon.preference.answer_log import AnswerLog, AnswerNotSavedError
from guerdon.preference.answers import Answer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = AnswerLog(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
saved = 0
try:
    while True:
        log.append(Answer(pair=f"p{saved}", choice="first"))
        saved += 1
except AnswerNotSavedError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append(Answer(pair=f"p{saved}", choice="tie"))
print(saved)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = read_answers(path)
    assert 2 < int(done.stdout) and [a.pair for a in found] == [f"p{n}" for n in range(int(done.stdout) + 1)]
    assert found[-1].choice == "tie"


def test_a_file_that_somebody_else_changed_or_moved_is_not_written(path, tmp_path):
    filled(path)
    with AnswerLog(path) as log:
        path.write_text(path.read_text() + json.dumps({"pair": "x", "choice": "tie"}) + "\n")
        with pytest.raises(AnswerNotSavedError, match="changed by another program"):
            log.append(answer("new"))
    with AnswerLog(path) as log:
        path.rename(tmp_path / "moved.jsonl")
        with pytest.raises(AnswerNotSavedError, match="is gone"):
            log.append(answer("new"))
    assert [a.pair for a in read_answers(tmp_path / "moved.jsonl")] == ["p0", "p1", "p2", "x"]
    with pytest.raises(AnswerNotSavedError, match="closed"):
        log.append(answer("new"))


@pytest.mark.slow
def test_kills_lose_and_double_nothing_that_was_confirmed(path):
    code = (
        "import sys; from guerdon.preference.answer_log import AnswerLog, Answer\n"
        "log = AnswerLog(sys.argv[1]); n = len(log.answers())\n"
        "while True: log.append(Answer(pair=f'p{n}', choice='first')); print(n, flush=True); n += 1"
    )
    confirmed = []
    for round in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(5 + round):
            confirmed.append(int(process.stdout.readline()))
        process.kill()
        rest, _ = process.communicate()
        confirmed += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    with AnswerLog(path) as log:
        pairs = [a.pair for a in log.answers()]
    assert len(pairs) == len(set(pairs)) and {f"p{n}" for n in confirmed} <= set(pairs)
