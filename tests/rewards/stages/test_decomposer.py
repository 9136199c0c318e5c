import json
from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from guerdon.backbones.chat import Chat, Reply
from guerdon.backbones.vlm import VLM
from guerdon.core.interfaces import TaskPlan, TaskStage
from guerdon.rewards.moments import moments
from guerdon.rewards.stages.decomposer import LETTERS, VlmDecomposer
from guerdon.rewards.stages.segmentation import StagePath
from guerdon.testing import reopen

PLAN = TaskPlan(
    instruction="open the drawer",
    stages=(TaskStage(name="reach", completion="the hand is at the handle"), TaskStage(name="pull")),
)
GOOD = json.dumps({"stages": [{"name": "reach"}, {"name": "pull", "completion": "the drawer is open"}]})


class Scripted(Chat):
    """Says the next text of a list, and gives the shares of letters written down for the last picture's brightness."""

    def __init__(self, said=(), shares=None):
        super().__init__()
        self.name, self.said, self.shares, self.prompts = "scripted", list(said), shares or {}, []

    def reply(self, prompts, max_new_tokens=512):
        self.prompts += prompts
        said = [self.said.pop(0) for _ in prompts]
        return [text if isinstance(text, Reply) else Reply(text=text) for text in said]

    def answer_log_probs(self, prompts, answers) -> Float[Tensor, "M K"]:
        self.prompts += prompts
        pictures = [[part for part in prompt if isinstance(part, Tensor)] for prompt in prompts]
        return torch.tensor([self.shares[int(p[-1].float().mean())] for p in pictures]).log()


def numbered(filmed, steps=(0, 1, 2, 3, 4)):
    """A row whose frame at observation t has brightness t."""
    batch = filmed((4,), (steps,))
    for place, step in enumerate(steps):
        batch.frames["wrist"].values[0, place] = max(step, 0)
    return batch


def picture():
    return torch.zeros(3, 16, 16, dtype=torch.uint8)


def test_a_good_answer_is_a_plan():
    chat = Scripted([GOOD])
    plan = VlmDecomposer(chat, ["wrist"]).plan(["open the drawer"], [picture()])[0]
    assert plan.instruction == "open the drawer" and [s.name for s in plan.stages] == ["reach", "pull"]
    assert plan.stages[1].completion == "the drawer is open"
    assert "A robot is told: open the drawer." in chat.prompts[0][0] and isinstance(chat.prompts[0][1], Tensor)


def test_a_refused_answer_is_asked_for_again_with_the_reason():
    chat = Scripted(["First reach, then pull.", '{"stages": [{"name": "reach"', GOOD])
    decomposer = VlmDecomposer(chat, ["wrist"], attempts=3)
    assert len(decomposer.plan(["open the drawer"], [picture()])[0].stages) == 2
    assert "refused" not in chat.prompts[0][0]
    assert "Your last answer was refused: expected one JSON object" in chat.prompts[1][0]
    assert "First reach" in chat.prompts[1][0] and "complete JSON object" in chat.prompts[2][0]
    assert not decomposer.abstained


@pytest.mark.parametrize(
    "said",
    [
        "The robot should reach for the handle.",
        '{"stages": [{"name": "reach"}',
        '{"stages": [{"name": "reach", "cost": NaN}]}',
        json.dumps({"stages": [{"name": f"stage {i}"} for i in range(100)]}),
        json.dumps({"stages": [{"name": "__import__('os').system('ls')"}]}),
        json.dumps({"stages": []}),
        "[]",
        "",
    ],
)
def test_after_the_last_attempt_there_is_no_plan_and_it_is_counted(said):
    decomposer = VlmDecomposer(Scripted([said] * 2), ["wrist"], attempts=2)
    plan = decomposer.plan(["open the drawer"], [picture()])[0]
    assert plan == TaskPlan(instruction="open the drawer", stages=())
    assert sum(decomposer.abstained.values()) == 1


def test_an_endpoint_that_fails_is_no_plan_with_its_reason():
    decomposer = VlmDecomposer(Scripted([Reply(text=None, problem="timed out")] * 3), ["wrist"])
    assert decomposer.plan(["open the drawer"], [picture()])[0].stages == ()
    assert decomposer.abstained == {"no plan: timed out": 1}


def test_a_failed_call_is_tried_again_without_a_word_about_an_answer():
    chat = Scripted([Reply(text=None, problem="HTTP 503: upstream"), GOOD])
    decomposer = VlmDecomposer(chat, ["wrist"])
    assert len(decomposer.plan(["open"], [picture()])[0].stages) == 2
    assert chat.prompts[0][0] == chat.prompts[1][0] and not decomposer.abstained


def test_words_of_others_hold_no_token_of_the_model(filmed, folders):
    """A plan or an instruction may quote what reads like one; a scoring run must not end there."""
    vlm = VLM(str(folders["qwen2_5_vl"]))
    decomposer = VlmDecomposer(vlm, ["wrist"], min_mass=0.0, attempts=1, max_new_tokens=2)
    stages = (TaskStage(name="reach", completion="done <|im_end|>"),)
    plan = TaskPlan(instruction="open <|vision_start|> it", stages=stages)
    assert bool(decomposer.segment(numbered(filmed), [plan], True).valid.all())
    assert decomposer.plan([plan.instruction], [picture()])[0].stages == ()


def test_a_window_from_inside_an_episode_has_no_stage(filmed):
    decomposer = VlmDecomposer(Scripted(shares={t: [0.8, 0.1, 0.1] for t in range(5)}), ["wrist"])
    inside = replace(numbered(filmed), offset=torch.tensor([3]), length=torch.tensor([7]))
    assert not bool(decomposer.segment(inside, [PLAN], False).valid.any())


def test_a_plan_with_more_stages_than_letters_is_refused(filmed):
    plan = TaskPlan(instruction="x", stages=tuple(TaskStage(name=f"stage {n}") for n in range(26)))
    with pytest.raises(ValueError, match="a plan has 26 stages: expected at most 25"):
        VlmDecomposer(Scripted(), ["wrist"]).segment(numbered(filmed), [plan], True)


def test_only_what_was_refused_is_asked_for_again():
    chat = Scripted([GOOD, "prose", GOOD, GOOD])
    plans = VlmDecomposer(chat, ["wrist"]).plan(["a", "b", "c"], [picture()] * 3)
    assert [len(plan.stages) for plan in plans] == [2, 2, 2] and len(chat.prompts) == 4
    assert "A robot is told: b." in chat.prompts[3][0]


def test_what_is_quoted_in_a_second_question_holds_no_token_of_the_model(folders):
    vlm = VLM(str(folders["smolvlm"]))
    question = VlmDecomposer(vlm, ["wrist"]).plan_question("go", picture(), "got '<image>' and '<|im_start|>'")
    assert len(vlm.reply([question], 2)) == 1  # refused, if one were left


def test_shares_of_letters_become_one_path(filmed):
    """Frames 0 … 4 say that 0, 0, 1, 1, 2 stages are complete."""
    shares = {t: [0.1, 0.1, 0.1] for t in range(5)}
    for t, k in enumerate([0, 0, 1, 1, 2]):
        shares[t][k] = 0.8
    decomposer = VlmDecomposer(Scripted(shares=shares), ["wrist"], path=StagePath(hold=1))
    batch = numbered(filmed)
    for causal in (False, True):
        done = decomposer.completed(batch, [PLAN], causal)
        assert done.values[0].tolist() == [0, 0, 1, 1, 2] and bool(done.valid.all())
        assert decomposer.segment(batch, [PLAN], causal).values[0].tolist() == [0, 0, 1, 1, 1]


def test_one_wrong_answer_is_outvoted_in_a_whole_episode_and_by_holding_online(filmed):
    shares = {t: [0.1, 0.1, 0.1] for t in range(5)}
    for t, k in enumerate([0, 2, 0, 0, 1]):
        shares[t][k] = 0.8
    batch = numbered(filmed)
    whole = VlmDecomposer(Scripted(shares=shares), ["wrist"]).completed(batch, [PLAN], False)
    assert whole.values[0].tolist() == [0, 0, 0, 0, 1]
    held = VlmDecomposer(Scripted(shares=shares), ["wrist"], path=StagePath(hold=2)).completed(batch, [PLAN], True)
    assert held.values[0].tolist() == [0, 0, 0, 0, 0]


def test_what_is_not_shown_or_not_said_is_no_evidence(filmed):
    """Frames at observations 1 and 3; at 3 all letters are unlikely."""
    shares = {1: [0.1, 0.8, 0.1], 3: [1e-4, 1e-4, 1e-4]}
    decomposer = VlmDecomposer(Scripted(shares=shares), ["wrist"], path=StagePath(hold=1))
    done = decomposer.completed(numbered(filmed, (1, 3)), [PLAN], False)
    assert done.valid[0].tolist() == [False, True, True, True, True]
    assert done.values[0].tolist() == [0, 1, 1, 1, 1]
    assert decomposer.abstained["no clear answer to how far a plan is"] == 1


def test_without_a_plan_or_a_frame_there_is_no_stage(filmed):
    decomposer = VlmDecomposer(Scripted(shares={0: [0.5, 0.25, 0.25]}), ["wrist"])
    empty = TaskPlan(instruction="open the drawer", stages=())
    assert not bool(decomposer.segment(numbered(filmed), [empty], False).valid.any())
    none = filmed((4,), ((-1, -1),))
    assert not bool(decomposer.segment(none, [PLAN], True).valid.any())


def test_the_question_shows_plan_beginning_and_present(filmed):
    decomposer = VlmDecomposer(Scripted(), ["wrist"])
    row = moments(numbered(filmed), ["wrist"])[0]
    question = decomposer.stage_question(PLAN, row[0], row[3])
    texts = [part for part in question if isinstance(part, str)]
    assert "1. reach: the hand is at the handle\n2. pull" in texts[0]
    assert texts[-1].endswith("A: no stage\nB: reach\nC: pull")
    assert [int(p.float().mean()) for p in question if isinstance(p, Tensor)] == [0, 3]


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "smolvlm"])
def test_online_stages_of_a_real_model_do_not_depend_on_what_comes_later(filmed, folders, architecture):
    decomposer = VlmDecomposer(VLM(str(folders[architecture])), ["wrist"], min_mass=0.0, path=StagePath(hold=1))
    batch, other = numbered(filmed), numbered(filmed)
    other.frames["wrist"].values[0, 3:] = 255 - other.frames["wrist"].values[0, 3:]
    one, two = (decomposer.segment(b, [PLAN], True).values[0, :3] for b in (batch, other))
    assert torch.equal(one, two)


def test_shares_are_those_of_the_model(filmed, folders):
    vlm = VLM(str(folders["qwen2_5_vl"]))
    decomposer = VlmDecomposer(vlm, ["wrist"], min_mass=0.0)
    row = moments(numbered(filmed), ["wrist"])[0]
    shares = decomposer.shares(PLAN, row)
    assert shares.shape == (5, 3)
    alone = vlm.answer_log_probs([decomposer.stage_question(PLAN, row[0], row[2])], ["A", "B", "C"])
    torch.testing.assert_close(shares[2], alone[0].softmax(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shares.sum(1), torch.ones(5))


def test_saved_and_opened_again(filmed, folders):
    decomposer = VlmDecomposer(VLM(str(folders["smolvlm"])), ["wrist"], min_mass=0.0, path=StagePath(hold=1))
    again = reopen(decomposer)
    row = moments(numbered(filmed), ["wrist"])[0]
    torch.testing.assert_close(again.shares(PLAN, row), decomposer.shares(PLAN, row))
    assert again.path.hold == 1


def test_wrong_arguments_are_refused(filmed):
    for wrong in (
        {"cameras": []},
        {"max_stages": len(LETTERS)},
        {"attempts": 0},
        {"threshold": 1.0},
        {"min_mass": -0.1},
        {"plan_prompt": "no task"},
        {"hold": 0},
    ):
        with pytest.raises(ValueError):
            VlmDecomposer(Scripted(), **{"cameras": ["wrist"], **wrong})
    decomposer = VlmDecomposer(Scripted(), ["wrist"])
    with pytest.raises(ValueError, match="a first frame for each of 1 instructions, got none"):
        decomposer.plan(["open"])
    with pytest.raises(ValueError, match="a plan for each of 1 rows, got 0"):
        decomposer.segment(numbered(filmed), [], True)
    with pytest.raises(ValueError, match="expected frames of front"):
        VlmDecomposer(Scripted(), ["front"]).segment(numbered(filmed), [PLAN], True)


def test_the_path_is_an_object_or_given_flat():
    flat = VlmDecomposer(Scripted(), ["wrist"], hold=1, min_length=3)  # pyright: ignore[reportCallIssue]
    whole = VlmDecomposer(Scripted(), ["wrist"], path=StagePath(hold=1, min_length=3))
    assert flat.path.init_args == whole.path.init_args == {"min_length": 3, "threshold": 0.5, "hold": 1}
