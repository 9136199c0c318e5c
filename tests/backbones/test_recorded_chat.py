import json
import math

import pytest
import torch

from guerdon.backbones.chat import Chat, Reply
from guerdon.backbones.recorded_chat import RecordedChat, RecordingChat, prompt_key
from guerdon.backbones.remote import RemoteChat
from guerdon.testing import reopen


class Parrot(Chat):
    """Repeats what it was asked; a prompt with "fail" fails, "hush" tells no log-probability."""

    def __init__(self, name: str = "parrot", shout: bool = False) -> None:
        super().__init__()
        self.name, self.shout, self.asked = name, shout, []

    def reply(self, prompts, max_new_tokens=512):
        self.asked += prompts
        replies = []
        for prompt in prompts:
            text = " ".join(part if isinstance(part, str) else str(int(part.sum())) for part in prompt)
            cut = text[:max_new_tokens]
            said = Reply(text=cut.upper() if self.shout else cut, problem="cut" if cut != text else "")
            replies.append(Reply(text=None, problem="failed") if "fail" in text else said)
        return replies

    def answer_log_probs(self, prompts, answers):
        self.asked += prompts
        rows = [
            [math.nan if "hush" in (p[0], a) else -len(p[0]) / 3 - i for i, a in enumerate(answers)] for p in prompts
        ]
        return torch.tensor(rows).reshape(len(prompts), len(answers))


def picture(seed=0):
    return torch.randint(0, 256, (3, 4, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "made" / "answers.jsonl"


PROMPTS = [["what", picture(1)], ["where"], ["what", picture(2)], ["where"]]


def test_what_was_recorded_comes_again_without_the_model(file):
    parrot = Parrot()
    recording = RecordingChat(parrot, str(file))
    first = recording.reply(PROMPTS)
    scores = recording.answer_log_probs(PROMPTS[:2], ["Yes", "hush"])
    assert first == Parrot().reply(PROMPTS) and scores[:, 1].isnan().all()
    recorded = RecordedChat(str(file))
    assert isinstance(recorded, Chat) and isinstance(recording, Chat) and recorded.name == "parrot"
    assert recorded.reply(PROMPTS) == first
    assert recorded.answer_log_probs(PROMPTS[:2], ["hush", "Yes"]).equal(scores.flip(1)) is False  # NaN is not NaN
    torch.testing.assert_close(
        recorded.answer_log_probs(PROMPTS[:2], ["hush", "Yes"]), scores.flip(1), equal_nan=True, atol=0, rtol=0
    )
    assert recorded.reply([]) == [] and recorded.answer_log_probs([], ["Yes"]).shape == (0, 1)
    assert recorded.answer_log_probs(PROMPTS[:1], []).shape == (1, 0)


def test_each_prompt_is_asked_once_and_later_runs_ask_what_is_new(file):
    parrot = Parrot()
    recording = RecordingChat(parrot, str(file), batch_size=2)
    recording.reply(PROMPTS)
    assert len(parrot.asked) == 3  # the second and the fourth are one
    recording.reply([*PROMPTS, ["new"]])
    assert len(parrot.asked) == 4
    later = Parrot()
    RecordingChat(later, str(file)).reply([["newer"], *PROMPTS])
    assert later.asked == [["newer"]]
    recording.reply(PROMPTS, 3)
    assert len(parrot.asked) == 7  # a cut answer is another one
    assert RecordedChat(str(file)).reply([["where"]], 3) == [Reply(text="whe", problem="cut")]


def test_answers_are_added_to_those_of_the_same_prompt(file):
    parrot = Parrot()
    recording = RecordingChat(parrot, str(file))
    recording.answer_log_probs([["x"]], ["Yes"])
    recording.answer_log_probs([["x"]], ["No", "Maybe"])
    recording.answer_log_probs([["x"]], ["Maybe", "Yes"])
    assert len(parrot.asked) == 2


def test_failures_are_not_kept(file):
    parrot = Parrot()
    recording = RecordingChat(parrot, str(file))
    assert recording.reply([["fail"], ["x"]]) == [Reply(text=None, problem="failed"), Reply(text="x")]
    assert recording.answer_log_probs([["hush"]], ["Yes"]).isnan().all()
    recording.reply([["fail"], ["x"]])
    assert parrot.asked == [["fail"], ["x"], ["hush"], ["fail"]]
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == ["x"]


def test_modes(file):
    RecordingChat(Parrot(), str(file)).reply([["x"]])
    silent = Parrot(shout=True)
    replay = RecordingChat(silent, str(file), mode="replay")
    assert replay.reply([["x"]])[0].text == "x"
    with pytest.raises(KeyError, match=r"1 prompts to parrot are not recorded.*'y <picture 4 x 6>'"):
        replay.reply([["x"], ["y", picture()]])
    with pytest.raises(KeyError, match="not recorded"):
        replay.answer_log_probs([["x"]], ["Yes"])
    assert silent.asked == []
    assert RecordingChat(silent, str(file), mode="renew").reply([["x"]])[0].text == "X"
    assert RecordedChat(str(file)).reply([["x"]])[0].text == "X" and len(file.read_text().splitlines()) == 2


def test_nobody_is_asked_in_replay_whatever_is_inside(file, monkeypatch):
    RecordingChat(Parrot("big-model"), str(file)).reply([["x"]])
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    remote = RemoteChat("http://127.0.0.1:9/v1", "big-model")
    assert RecordingChat(remote, str(file), mode="replay").reply([["x"]]) == [Reply(text="x")]


def test_missing_prompts_raise_or_are_counted(file):
    RecordingChat(Parrot(), str(file)).reply([["x"]])
    with pytest.raises(KeyError, match="record them with RecordingChat"):
        RecordedChat(str(file)).reply([["y"]])
    recorded = RecordedChat(str(file), missing="problem")
    assert recorded.reply([["y"], ["x"]]) == [Reply(text=None, problem="not recorded"), Reply(text="x")]
    assert recorded.answer_log_probs([["x"]], ["Yes"]).isnan().all()
    assert recorded.failures == {"not recorded": 2}


def test_keys_tell_apart_what_differs():
    base = ["a", picture(), "b"]
    one_off = picture()
    one_off[2, 3, 5] ^= 1
    others = [
        ["a", one_off, "b"],
        ["a", picture().transpose(1, 2), "b"],
        ["a", picture().reshape(3, 6, 4), "b"],
        ["a", "b", picture()],
        [picture(), "a", "b"],
        ["ab", picture()],
        ["a", "b"],
        ["a\ntext 1\nb"],
        ["a"],
    ]
    keys = {prompt_key(p, name="m") for p in [base, *others]} | {prompt_key(base, name="n"), prompt_key(base, n=1)}
    assert len(keys) == len(others) + 3
    assert prompt_key(base, name="m") == prompt_key(("a", picture().clone(), "b"), name="m")
    # fixed for ever: files of older versions must still be found
    assert prompt_key(["a"], name="m") == "520a227276ec4bd19c4555916c811ea9"
    with pytest.raises(TypeError, match="uint8"):
        prompt_key([picture().float()])
    with pytest.raises(ValueError, match="empty"):
        prompt_key([])


def test_saved_and_opened(file):
    recording = RecordingChat(Parrot(), str(file))
    recording.reply([["x"]])
    assert reopen(recording).reply([["x"]]) == reopen(RecordedChat(str(file))).reply([["x"]]) == [Reply(text="x")]


def test_several_models_in_one_file(file):
    RecordingChat(Parrot("one"), str(file)).reply([["x"]])
    RecordingChat(Parrot("two", shout=True), str(file)).reply([["x"]])
    with pytest.raises(ValueError, match="answers of one, two: expected one model"):
        RecordedChat(str(file))
    with pytest.raises(ValueError, match="expected three"):
        RecordedChat(str(file), name="three")
    assert RecordedChat(str(file), name="two").reply([["x"]])[0].text == "X"


def test_a_recording_that_was_stopped_goes_on(file):
    recording = RecordingChat(Parrot(), str(file))
    recording.reply([["x"]])
    recording.reply([["y"]])
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="ends within a line"):
        again = RecordingChat(parrot := Parrot(), str(file))
    assert [r.text for r in again.reply([["x"], ["y"], ["z"]])] == ["x", "y", "z"] and parrot.asked == [["y"], ["z"]]
    assert [r.text for r in RecordedChat(str(file)).reply([["x"], ["y"], ["z"]])] == ["x", "y", "z"]


def test_a_file_without_a_last_line_break_goes_on(file):
    RecordingChat(Parrot(), str(file)).reply([["x"]])
    file.write_text(file.read_text().rstrip() + "")
    RecordingChat(Parrot(), str(file)).reply([["y"]])
    assert [r.text for r in RecordedChat(str(file)).reply([["x"], ["y"]])] == ["x", "y"]


GOOD = {"key": "k", "kind": "reply", "name": "m", "text": "t", "problem": ""}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "expected an object"),
        (json.dumps(GOOD | {"kind": "other"}), "kind 'reply' or 'answers'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "text"}), "lacks 'text'"),
        (json.dumps(GOOD | {"text": None}), "a problem that says why"),
        (json.dumps(GOOD | {"text": 3}), "expected a text"),
        ('{"key": "k", "kind": "answers", "name": "m", "log_probs": {"Yes": 0.5}}', "'Yes' has 0.5"),
        ('{"key": "k", "kind": "answers", "name": "m", "log_probs": {"Yes": NaN}}', "'Yes' has nan"),
        ('{"key": "k", "kind": "answers", "name": "m", "log_probs": {"Yes": true}}', "'Yes' has True"),
        ('{"key": "k", "kind": "answers", "name": "m", "log_probs": {"Yes": -Infinity}}', "'Yes' has -inf"),
        ('{"key": "k", "kind": "answers", "name": "m", "log_probs": [1]}', "by answer"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, told):
    file = tmp_path / "answers.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(ValueError, match=told):
        RecordedChat(str(file))


def test_wrong_arguments(file):
    with pytest.raises(FileNotFoundError, match="RecordingChat"):
        RecordedChat(str(file))
    with pytest.raises(ValueError, match="at least one prompt"):
        RecordingChat(Parrot(), str(file), batch_size=0)
