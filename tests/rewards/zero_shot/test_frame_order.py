import inspect
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from guerdon.backbones.chat import Chat, Reply
from guerdon.backbones.vlm import VLM
from guerdon.rewards.zero_shot.frame_order import ShuffledFrames, frame_values
from guerdon.testing import check_reward_model


class Seeing(Chat):
    """Reads the brightness of every shuffled picture and reports it as a percentage; says ``text`` if that is given."""

    def __init__(self, text=None, problem=""):
        super().__init__()
        self.name, self.text, self.problem, self.prompts = "seeing", text, problem, []

    def reply(self, prompts, max_new_tokens=512):
        self.prompts += prompts
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt):
        if self.text is not None or self.problem:
            return Reply(text=self.text, problem=self.problem)
        lines, number = [], None
        for part in prompt:
            if isinstance(part, str):
                number = int(part[6:-1]) if part.startswith("Frame ") else None
            elif number is not None:
                lines.append(f"Frame {number}: {100 * float(part.float().mean()) / 255:.4f}%")
        return Reply(text="\n".join(lines))

    def answer_log_probs(self, prompts, answers):
        raise AssertionError("not asked for")


def brightening(filmed, count):
    """A row whose frame i has brightness i / (count − 1)."""
    shown = filmed((count - 1,), (tuple(range(count)),))
    for i in range(count):
        shown.frames["wrist"].values[0, i] = round(255 * i / (count - 1))
    return shown


def test_values_return_to_the_frames_they_were_given_for(filmed):
    model = ShuffledFrames(Seeing(), ["wrist"])
    scored = model(brightening(filmed, 6))
    torch.testing.assert_close(scored.progress.values[0], torch.linspace(0, 1, 6), atol=2e-3, rtol=0)
    torch.testing.assert_close(scored.rewards[0], torch.full((5,), 0.2), atol=4e-3, rtol=0)
    assert not model.causal and not model.abstained["a frame without a clear value"]


def test_frames_are_shuffled_and_the_first_is_shown_as_the_beginning(filmed):
    chat = Seeing()
    shown = brightening(filmed, 8)
    model = ShuffledFrames(chat, ["wrist"])
    model(shown)
    pictures = [part for part in chat.prompts[0] if isinstance(part, Tensor)]
    assert len(pictures) == 9 and torch.equal(pictures[0], shown.frames["wrist"].values[0, 0])
    order = [round(float(p.float().mean()) / 255 * 7) for p in pictures[1:]]
    assert sorted(order) == list(range(8)) and order != sorted(order)
    assert order == model.order(8)


def test_few_frames_are_spread_over_the_episode_with_both_ends(filmed):
    chat = Seeing()
    scored = ShuffledFrames(chat, ["wrist"], max_frames=3)(brightening(filmed, 9))
    # frames 0, 4 and 8 are valued, and each value is held until the next
    torch.testing.assert_close(
        scored.progress.values[0], torch.tensor([0.0] * 4 + [0.5] * 4 + [1.0]), atol=2e-3, rtol=0
    )


@pytest.mark.slow
def test_a_real_model_keeps_what_every_reward_model_promises(folders, filmed):
    """A model with random weights writes nothing that can be read: every estimate is unknown, none is made up."""
    model = ShuffledFrames(VLM(str(folders["smolvlm"])), ["wrist"], max_new_tokens=4)
    check_reward_model(model, filmed())
    scored = model(filmed())
    assert not bool(scored.valid.any()) and model.abstained["a frame without a clear value"] > 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Frame 1: 20%\nFrame 2: 45.5%\nFrame 3: 100%", [0.2, 0.455, 1.0]),
        ("frame 2 : 50 %\r\n\n  Frame 1:0%\nFrame 3: 7%.", [0.0, 0.5, 0.07]),  # any order, blanks, a full stop
        ("**Frame 1**: **30%**\n- Frame 2: 40%\n* **Frame 3:** 90 %. ", [0.3, 0.4, 0.9]),
        ("Frame 1: 0.35\nFrame 2: 1\nFrame 3: 7", [None] * 3),  # a share or a percentage?
        ("Frame 1: the drawer is open, 90%\nFrame 2: <5%\nFrame 3: not 100%", [None] * 3),
        ("Frame 1: 10%0\nFrame 2: 20 % or 30\nFrame 3: 20%, I think", [None] * 3),
        ("Frame 1: 20 to 40%\nFrame 2: 20 - 40%\nFrame 3: 20–40 %", [None] * 3),
        ("Frame 1: 1 000%\nFrame 2: 1'000%\nFrame 3: 1\u202f0%", [None] * 3),
        ("Frame 1: 1 0%\nFrame 2: ~20%\nFrame 3: +20%", [None] * 3),
        ("Frame 1: 20%\nFrame 1 again, 40%\nFrame 2-3: 30%\nFrame 3: 40%", [None, None, 0.4]),
        ("Frame 1: ٣٠%\nFrame 2: 1.2.3%\nFrame 3: " + "9" * 400 + "%", [None] * 3),
        ("Frame " + "1" * 5000 + ": 20%\nFrame 2: 5%", [None, 0.05, None]),
        ("Frame 1: 20%\nFrame 3: 30%", [0.2, None, 0.3]),  # one is missing
        ("Frame 1: 20%\nFrame 1: 30%\nFrame 2: 20%\nFrame 2: 20%\nFrame 3: 1%", [None, 0.2, 0.01]),  # contradiction
        ("Frame 1: 120%\nFrame 2: -5%\nFrame 3: 1e3%", [None, None, None]),  # outside
        ("Frame 1: 20-40%\nFrame 2: 20%–40%\nFrame 3: 1,000%", [None, None, None]),  # a span, a span, too much
        ("Frame 1: nan%\nFrame 2: NaN\nFrame 3: inf", [None, None, None]),
        ("Frame 1: between 20% and 40%\nFrame 2: maybe 3\nFrame 3: 4 of 7", [None, None, None]),  # unclear
        ("Frame 4: 20%\nFrame 0: 10%\nFrame 99999: 3%", [None, None, None]),  # frames that were not shown
        ("The robot does well. About 80% is done.", [None, None, None]),
        ("", [None, None, None]),
        ("Frame 1: 20%\nFrame 2:", [0.2, None, None]),  # cut in the middle
    ],
)
def test_an_answer_is_read_strictly(text, wanted):
    got = [None if math.isnan(value) else pytest.approx(value) for value in frame_values(text, 3).tolist()]
    assert got == wanted


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        ("Frame 1: 20%\nFrame 2: 10%", [0.2, 0.1], [0.2, None]),  # "10%" may have become anything
        ("Frame 1: 20%\nFrame 2: 10", [0.2, None], [0.2, None]),
        ("Frame 1: 20%\nFrame 2: 10%\n", [0.2, 0.1], [0.2, 0.1]),  # ended
        ("Frame 1: 20%", [0.2, None], [None, None]),
        ("", [None, None], [None, None]),
    ],
)
def test_the_last_line_of_a_cut_answer_does_not_count(text, whole, cut):
    for is_cut, wanted in ((False, whole), (True, cut)):
        got = [None if math.isnan(v) else pytest.approx(v) for v in frame_values(text, 2, cut=is_cut).tolist()]
        assert got == wanted


def test_a_reply_with_a_problem_is_read_as_cut(filmed):
    shown = filmed((1,), ((0, 1),))
    for problem, known in (("", 2), ("cut after 9 tokens", 1)):
        model = ShuffledFrames(Seeing("Frame 1: 20%\nFrame 2: 10%", problem), ["wrist"])
        assert int(model(shown).progress.valid.sum()) == known
        assert model.abstained["a frame without a clear value"] == 2 - known


def test_a_window_from_the_middle_does_not_show_the_beginning(filmed):
    chat = Seeing()
    model = ShuffledFrames(chat, ["wrist"])
    scored = model(replace(filmed(), offset=torch.tensor([3, 0])))
    assert not bool(scored.valid[0].any()) and not bool(scored.progress.valid[0].any())
    assert bool((scored.progress.values[0] == 0).all())
    assert scored.valid[1].tolist() == [True, True, False, False]  # a row of two steps from the beginning
    assert len(chat.prompts) == 1 and model.abstained["a window without the beginning"] == 5


def test_no_rows_give_no_estimates(filmed):
    scored = ShuffledFrames(Seeing(), ["wrist"])(filmed()[:0])
    assert scored.rewards.shape == (0, 4) and scored.progress.values.shape == (0, 5)


def test_a_lone_camera_name_is_not_taken_for_its_letters():
    with pytest.raises(ValueError, match=r"cameras 'wrist': expected a list, got one text: write \['wrist'\]"):
        unchecked(ShuffledFrames, Seeing(), "wrist")


def unchecked(kind, *arguments):
    """Build a component as where types are not checked."""
    model = kind.__new__(kind, *arguments)
    inspect.unwrap(kind.__init__)(model, *arguments)
    return model


@given(st.text(max_size=200))
def test_any_text_gives_values_in_range_or_none(text):
    values = frame_values(text, 4)
    assert values.shape == (4,)
    assert bool((values.isnan() | ((values >= 0) & (values <= 1))).all())


def test_an_answer_that_did_not_come_is_counted_and_gives_nothing(filmed):
    model = ShuffledFrames(Seeing(problem="timed out"), ["wrist"])
    scored = model(filmed())
    assert not bool(scored.valid.any()) and bool((scored.rewards == 0).all())
    assert model.abstained == {"no answer: timed out": 7}  # 5 and 2 frames


def test_a_missing_line_leaves_its_frame_unknown_and_only_that(filmed):
    model = ShuffledFrames(Seeing("Frame 1: 10%\nFrame 3: 30%"), ["wrist"])
    scored = model(filmed((2,), ((0, 1, 2),)))
    unknown = model.order(3)[1]  # what stood at place 2
    assert [i for i, valid in enumerate(scored.progress.valid[0].tolist()) if not valid] == [unknown]
    assert model.abstained["a frame without a clear value"] == 1


def test_arguments_that_make_no_sense_are_refused():
    for wrong in ({"cameras": []}, {"max_frames": 1}, {"max_new_tokens": 0}, {"prompt": "nothing"}):
        with pytest.raises(ValueError):
            ShuffledFrames(Seeing(), **{"cameras": ["wrist"], **wrong})
