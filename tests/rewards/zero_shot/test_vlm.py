import inspect
import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from guerdon.backbones.chat import Chat, Reply
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import Sampled
from guerdon.rewards.frame_windows import FrameWindows
from guerdon.rewards.zero_shot.vlm import AnswerReward, CompletionLikelihood, ExpectedRating
from guerdon.testing import check_reward_model


class Told(Chat):
    """Answers that were written down: row n of ``rows`` for a prompt with n + 1 pictures."""

    def __init__(self, rows):
        super().__init__()
        self.name, self.rows, self.prompts = "told", rows, []

    def reply(self, prompts, max_new_tokens=512):
        return [Reply(text=None, problem="not asked for") for _ in prompts]

    def answer_log_probs(self, prompts, answers) -> Float[Tensor, "M K"]:
        self.prompts += prompts
        return torch.tensor([self.rows[sum(isinstance(p, Tensor) for p in prompt) - 1] for prompt in prompts])


def log(*shares):
    return [math.log(share) if share else -math.inf for share in shares]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "smolvlm"])
@pytest.mark.parametrize("kind", [CompletionLikelihood, ExpectedRating])
def test_keeps_what_every_reward_model_promises(folders, architecture, kind, filmed):
    model = kind(VLM(str(folders[architecture])), ["wrist"], max_frames=3, context_frames=1, min_mass=0.0)
    check_reward_model(model, filmed(), tolerance=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "smolvlm"])
def test_what_was_read_once_scores_like_what_is_read_anew(folders, architecture, filmed):
    vlm = VLM(str(folders[architecture]))
    once, anew = (
        CompletionLikelihood(
            vlm, ["wrist"], min_mass=0.0, reuse=reuse, frames=FrameWindows(max_frames=3, context_frames=1)
        )
        for reuse in (True, False)
    )
    one, other = once(filmed()), anew(filmed())
    torch.testing.assert_close(one.progress.values, other.progress.values, atol=1e-3, rtol=0)
    for name in one.terms:
        torch.testing.assert_close(one.terms[name], other.terms[name], atol=1e-3, rtol=0)
    assert one.progress.values[0].unique().numel() > 3  # the frames matter, or nothing was tested


def test_progress_is_the_share_of_yes_and_the_reward_its_change(filmed):
    # P(True), P(False) = 0.1, 0.3 → 0.25; 0.2, 0.2 → 0.5; 0.4, 0.1 → 0.8
    chat = Told([log(0.1, 0.3), log(0.2, 0.2), log(0.4, 0.1)])
    scored = CompletionLikelihood(chat, ["wrist"])(filmed((3,), ((0, 1, 3),)))
    torch.testing.assert_close(scored.progress.values, torch.tensor([[0.25, 0.5, 0.5, 0.8]]))  # held at observation 2
    torch.testing.assert_close(scored.rewards, torch.tensor([[0.25, 0.0, 0.3]]))
    torch.testing.assert_close(scored.terms["log_prob True"], torch.tensor([log(0.2, 0.2, 0.4)]))
    assert bool(scored.valid.all()) and bool(scored.progress.valid.all())


def test_a_single_answer_is_its_own_probability_however_small(filmed):
    chat = Told([log(0.001), log(0.4)])
    scored = CompletionLikelihood(chat, ["wrist"], answers=["True"])(filmed((1,), ((0, 1),)))
    torch.testing.assert_close(scored.progress.values, torch.tensor([[0.001, 0.4]]))


def test_a_rating_is_an_expectation_on_a_scale_from_0_to_1(filmed):
    # worst for sure → 0; half 1, half 5 → E = 3 → ½; all alike → 3 → ½; 4 and 5 alike → 4.5 → 3.5/4
    rows = [log(0.9, 0, 0, 0, 0), log(0.4, 0, 0, 0, 0.4), log(*[0.1] * 5), log(0, 0, 0, 0.2, 0.2)]
    rows = [[max(value, -1e4) for value in row] for row in rows]
    scored = ExpectedRating(Told(rows), ["wrist"])(filmed((3,), ((0, 1, 2, 3),)))
    torch.testing.assert_close(scored.progress.values, torch.tensor([[0.0, 0.5, 0.5, 0.875]]))


def test_no_answer_is_no_estimate_and_is_counted(filmed):
    nan = math.nan
    chat = Told([log(0.5, 0.5), [nan, nan], log(0.6, 0.2), log(1e-4, 1e-4)])
    model = CompletionLikelihood(chat, ["wrist"])
    scored = model(filmed((3,), ((0, 1, 2, 3),)))
    assert scored.progress.valid.tolist() == [[True, False, True, False]]
    assert scored.valid.tolist() == [[False, False, False]]  # each change has an unknown end
    assert bool((scored.rewards == 0).all()) and bool(scored.progress.values.isfinite().all())
    assert model.abstained == {"no answer": 1, "the answers asked for are unlikely": 1}


def test_an_unknown_estimate_is_not_replaced_by_the_one_before(filmed):
    chat = Told([log(0.5, 0.5), [math.nan, math.nan], log(0.6, 0.2)])
    scored = CompletionLikelihood(chat, ["wrist"])(filmed((4,), ((0, 2, 4),)))
    assert scored.progress.valid.tolist() == [[True, True, False, False, True]]


def test_the_prompt_holds_the_task_the_frames_so_far_and_the_question(filmed):
    chat = Told([log(0.5, 0.5)] * 3)
    shown = filmed((2,), ((0, 1, 2),))
    CompletionLikelihood(chat, ["wrist"], prompt="Task: {instruction}!", question="Done?")(shown)
    frames = shown.frames["wrist"].values[0]
    for count, prompt in enumerate(chat.prompts, 1):
        assert prompt[0] == "Task: open the drawer!" and prompt[-1] == "Done?"
        assert len(prompt) == count + 2
        for place in range(count):
            assert torch.equal(prompt[1 + place], frames[place])


def test_long_rows_show_the_first_frame_and_the_last_ones_again(filmed):
    """6 frames, 4 at a time with 2 again: frames 0 … 3, then 0, 3 and the new 4, 5."""
    chat = Told([log(0.5, 0.5)] * 4)
    shown = filmed((5,), ((0, 1, 2, 3, 4, 5),))
    CompletionLikelihood(chat, ["wrist"], frames=FrameWindows(max_frames=4, context_frames=2))(shown)
    frames = shown.frames["wrist"].values[0]
    wanted = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 3, 4], [0, 3, 4, 5]]
    for prompt, places in zip(chat.prompts, wanted, strict=True):
        pictures = [part for part in prompt if isinstance(part, Tensor)]
        assert all(torch.equal(one, frames[place]) for one, place in zip(pictures, places, strict=True))


def test_a_row_without_frames_has_no_estimate(folders, filmed):
    shown = filmed()
    none = Sampled(values=shown.frames["wrist"].values, step=torch.tensor([[0, 1, 2, 3, 4], [-1] * 5]))
    scored = CompletionLikelihood(VLM(str(folders["smolvlm"])), ["wrist"], min_mass=0.0)(
        replace(shown, frames={"wrist": none})
    )
    assert bool(scored.valid[0].all()) and not bool(scored.valid[1].any()) and not bool(scored.progress.valid[1].any())


def test_another_camera_is_an_error_that_names_both(folders, filmed):
    model = CompletionLikelihood(VLM(str(folders["smolvlm"])), ["front"])
    with pytest.raises(ValueError, match="expected frames of front, the trajectories hold frames of wrist"):
        model(filmed())


@pytest.mark.parametrize("reuse", [True, False])
def test_no_rows_give_no_estimates(folders, filmed, reuse):
    scored = CompletionLikelihood(VLM(str(folders["smolvlm"])), ["wrist"], reuse=reuse)(filmed()[:0])
    assert scored.rewards.shape == (0, 4) and scored.progress.values.shape == (0, 5)


def test_a_lone_text_is_not_taken_for_its_letters():
    for arguments, match in (
        (("wrist",), r"cameras 'wrist': expected a list, got one text: write \['wrist'\]"),
        ((["wrist"], "True"), r"answers 'True': expected a list"),
    ):
        model = CompletionLikelihood.__new__(CompletionLikelihood, Told([]), *arguments)
        # types are checked in tests: go below, to see what is said where they are not
        with pytest.raises(ValueError, match=match):
            inspect.unwrap(AnswerReward.__init__)(model, Told([]), *arguments, *([["a"]] * (2 - len(arguments))), "?")


def test_arguments_that_make_no_sense_are_refused():
    chat = Told([])
    for wrong, match in [
        ({"cameras": []}, "cameras"),
        ({"answers": ["yes", "yes"]}, "answers"),
        ({"answers": []}, "answers"),
        ({"answers": ["yes", " "]}, "blank"),
        ({"answers": ["yes", "no", "yes, nearly"]}, "'yes, nearly' begins with 'yes'"),
        ({"context_frames": 40}, "context"),
        ({"min_mass": 1.5}, "min_mass"),
        ({"prompt": "no task"}, "instruction"),
    ]:
        with pytest.raises(ValueError, match=match):
            CompletionLikelihood(chat, **{"cameras": ["wrist"], **wrong})
    with pytest.raises(ValueError, match="'10' begins with '1', so the probability of '1' would hold that of '10'"):
        ExpectedRating(chat, ["wrist"], answers=[str(rating) for rating in range(1, 11)])
    with pytest.raises(ValueError, match="'1' begins with ' 1'"):  # a blank in front is no difference
        ExpectedRating(chat, ["wrist"], answers=[" 1", "1"])
    with pytest.raises(ValueError, match="at least two ratings"):
        ExpectedRating(chat, ["wrist"], answers=["1"])


@pytest.mark.parametrize("kind", [CompletionLikelihood, ExpectedRating])
def test_frames_are_an_object_or_given_flat(kind):
    flat = kind(Told([]), ["wrist"], max_frames=20)
    whole = kind(Told([]), ["wrist"], frames=FrameWindows(max_frames=20))
    assert (flat.frames.max_frames, flat.frames.context_frames) == (20, 8), "the defaults of these rewards"
    assert (whole.frames.max_frames, whole.frames.context_frames) == (20, 4)
    assert kind(Told([]), ["wrist"]).frames.max_frames == 32
    assert kind(Told([]), ["wrist"], frame_size=64).inputs.frame_size == 64
