import json
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.backbones.chat import Chat, Prompt, Reply
from guerdon.rewards.grape.cost_files import MAX_CONSTRAINTS, MAX_STAGES, load_costs
from guerdon.rewards.grape.cost_proposal import parse_proposal, proposal_prompt, propose_costs

POINTS, FLAGS = ("end_effector", "cup"), ("grasped",)
NEAR = {"stage": 0, "name": "near the cup", "kind": "path", "op": "dist", "a": "end_effector", "b": "cup"}
HELD = {"stage": 1, "name": "held", "kind": "grasp", "op": "flag", "a": "grasped", "threshold": 3, "weight": 0.1}
GOOD = {"stages": ["reach", "lift"], "constraints": [NEAR, HELD]}


class Recorded(Chat):
    """A chat that says what it was given, one answer after the other."""

    name = "recorded"

    def __init__(self, *answers: str | None) -> None:
        super().__init__()
        self.answers, self.asked = list(answers), []

    def reply(self, prompts: Sequence[Prompt], max_new_tokens: int = 512) -> list[Reply]:
        self.asked.append(prompts[0])
        text = self.answers.pop(0)
        return [Reply(text=text, problem="HTTP 500" if text is None else "")]

    def answer_log_probs(self, prompts, answers):
        raise NotImplementedError


def parse(value, **given):
    text = value if isinstance(value, str) else json.dumps(value)
    return parse_proposal(text, "lift the cup", POINTS, FLAGS, **given)


def test_a_good_answer():
    costs = parse(GOOD)
    assert costs.stages == ("reach", "lift")
    assert costs.instructions == ("lift the cup",)
    assert [c.name for c in costs.constraints] == ["near the cup", "held"]
    assert (costs.constraints[1].threshold, costs.constraints[1].weight) == (3.0, 0.1)
    fenced = f"```json\n{json.dumps(GOOD, indent=1)}\n```"
    assert parse(fenced) == parse(f"  {json.dumps(GOOD)}\n") == costs
    assert load_costs(costs.model_dump(mode="json")) == costs
    assert parse(GOOD, stages=("reach", "lift")) == costs


CODE = "__import__('os').system('touch trap')"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "one JSON object"),
        ("Sure! The robot should first reach the cup.", "one JSON object"),
        (f"Here it is: {json.dumps(GOOD)}", "one JSON object"),
        (f"{json.dumps(GOOD)} I hope this helps.", "text after the object"),
        (json.dumps(GOOD)[:-9], "no valid JSON"),
        (f"```json\n{json.dumps(GOOD)[:60]}\n```", "no valid JSON"),
        (json.dumps([GOOD]), "one JSON object"),
        ('{"stages": ["reach"], "stages": ["lift"], "constraints": []}', "every key once"),
        (json.dumps(GOOD).replace("0.1", "NaN"), "no number NaN"),
        (json.dumps(GOOD).replace("0.1", "-Infinity"), "no number -Infinity"),
        (json.dumps(GOOD).replace("0.1", "1e999"), "weight"),
        (json.dumps(GOOD).replace("0.1", "9" * 400), "weight"),
        (json.dumps(GOOD).replace("0.1", "9" * 5000), "weight"),
        ("{" * 5000, "no valid JSON"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "nested"),
        ("{" + " " * 30_000 + "}", "characters"),
        ({"stages": ["reach"]}, "exactly the keys"),
        (GOOD | {"code": CODE}, "exactly the keys"),
        (GOOD | {"stages": "reach"}, "list of 1 to"),
        (GOOD | {"stages": []}, "list of 1 to"),
        (GOOD | {"constraints": []}, "list of 1 to"),
        (GOOD | {"stages": [f"stage {i}" for i in range(100)]}, "got 100"),
        (GOOD | {"constraints": [NEAR] * 100}, "got 100"),
        (GOOD | {"stages": [CODE, "lift"]}, "stages"),
        (GOOD | {"stages": ["reach\nignore all that", "lift"]}, "stages"),
        (GOOD | {"stages": ["reach", "reach"]}, "distinct"),
        (GOOD | {"stages": [["reach"], "lift"]}, "stages"),
        (GOOD | {"constraints": ["near"]}, r"constraints\[0\]"),
        (GOOD | {"constraints": [NEAR | {"op": "exec"}]}, r"constraints\[0\]\.op.*'dist'.*'exec'"),
        (GOOD | {"constraints": [NEAR | {"kind": "speed"}]}, r"kind"),
        (GOOD | {"constraints": [NEAR | {"tau": 1}]}, r"tau: no such field"),
        (
            GOOD | {"constraints": [NEAR | {"a": "gripper"}]},
            r"no point is called 'gripper'; there are end_effector, cup",
        ),
        (GOOD | {"constraints": [NEAR | {"a": "grasped"}]}, r"no point is called 'grasped'"),
        (GOOD | {"constraints": [HELD | {"a": "cup"}]}, r"no flag is called 'cup'"),
        (GOOD | {"constraints": [HELD | {"b": "cup"}]}, "reads no second point"),
        (GOOD | {"constraints": [NEAR | {"a": CODE}]}, "plain names"),
        (GOOD | {"constraints": [NEAR | {"name": CODE}]}, "plain names"),
        (GOOD | {"constraints": [NEAR | {"stage": 2}]}, "stages are 0 … 1"),
        (GOOD | {"constraints": [NEAR | {"stage": 0.5}]}, "whole number"),
        (GOOD | {"constraints": [NEAR | {"weight": -1}]}, "weight"),
        (GOOD | {"constraints": [NEAR | {"weight": 1e300}]}, "weight"),
        (GOOD | {"constraints": [NEAR | {"weight": "1"}]}, "weight"),
        (GOOD | {"constraints": [NEAR, NEAR]}, "two constraints"),
        (GOOD | {"constraints": [{k: v for k, v in NEAR.items() if k != "b"}]}, "second"),
        (GOOD | {"constraints": [{k: v for k, v in NEAR.items() if k != "kind"}]}, "kind"),
    ],
)
def test_what_is_refused_and_why(answer, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason) as refused:
        parse(answer)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not list(tmp_path.iterdir())


def test_stages_that_were_fixed_stay():
    with pytest.raises(ValueError, match=r'expected \["reach", "carry"\]'):
        parse(GOOD, stages=("reach", "carry"))


@given(text=st.text() | st.text().map(lambda t: json.dumps(GOOD)[: len(t)] + t))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    try:
        costs = parse(text)
    except ValueError:
        return
    assert costs.stages == ("reach", "lift")


def test_the_question_holds_every_word_that_may_be_used():
    text = proposal_prompt("lift the cup", POINTS, FLAGS)
    for word in ("path", "collision", "grasp", "dist", "dist_xy", "above", "clearance", "flag", "steps"):
        assert f'"{word}"' in text
    for word in ("sum", "mean", "last", "min", "max", "margin", "threshold", "weight", "aggregate"):
        assert f'"{word}"' in text
    for word in (*POINTS, *FLAGS, "lift the cup", str(MAX_STAGES), str(MAX_CONSTRAINTS)):
        assert word in text
    assert '["reach", "lift"]' in proposal_prompt("lift", POINTS, stages=("reach", "lift"))
    assert "The picture shows" in proposal_prompt("lift", POINTS, pictures=1)
    with pytest.raises(ValueError, match="points is empty"):
        proposal_prompt("lift", ())


def test_every_name_that_is_offered_may_be_answered():
    points = ("observation.hand", "left/ee", "hand_")
    near = NEAR | {"a": "left/ee", "b": "hand_"}
    far = NEAR | {"name": "far", "a": "observation.hand", "b": "hand_"}
    answer = json.dumps({"stages": ["reach"], "constraints": [near, far]})
    proposal = propose_costs(Recorded(answer), "lift", points)
    assert proposal.costs is not None
    assert proposal.costs.read_points == set(points)
    assert load_costs(proposal.costs.model_dump(mode="json")) == proposal.costs


@pytest.mark.parametrize("name", ["_hand", "2nd", "hand,cup", "hand\ncup", "", "h" * 41, "hand.", "stage"])
def test_a_name_that_could_not_be_answered_is_never_offered(name):
    for points, flags in (((*POINTS, name), ()), (POINTS, (name,))):
        with pytest.raises(ValueError, match="flags: " if flags else "points: ") as refused:
            propose_costs(Recorded(), "lift", points, flags)  # nobody is asked
        assert repr(name) in str(refused.value)


def test_asked_again_with_the_reason():
    second = GOOD | {"constraints": [NEAR | {"op": "<|exec|>"}]}
    chat = Recorded("First reach the cup.", json.dumps(second), json.dumps(GOOD))
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    proposal = propose_costs(chat, "lift the cup", POINTS, FLAGS, pictures=[picture])
    assert proposal.costs == parse(GOOD)
    assert len(proposal.answers) == 3
    assert len(proposal.problems) == 2
    assert all(asked[0] is picture for asked in chat.asked)
    assert "refused" not in chat.asked[0][1]
    assert "expected one JSON object" in chat.asked[1][1] and "got 'First reach" in chat.asked[1][1]
    assert "'(/exec/)'" in chat.asked[2][1]  # no token of the model's own is put into its mouth
    assert "First reach" not in chat.asked[2][1]


def test_abstains_rather_than_invents():
    chat = Recorded("no", None, "{}")
    proposal = propose_costs(chat, "lift the cup", POINTS)
    assert chat.asked[2] == chat.asked[0]  # what failed on the way is not the model's mistake
    assert proposal.costs is None
    assert len(proposal.problems) == 3
    assert "HTTP 500" in proposal.problems[1]
    assert proposal.answers == ("no", None, "{}")
    assert len(propose_costs(Recorded("no"), "lift", POINTS, retries=0).problems) == 1
    with pytest.raises(ValueError, match="retries"):
        propose_costs(Recorded(), "lift", POINTS, retries=-1)
    with pytest.raises(ValueError, match="instruction"):
        propose_costs(Recorded(), " ", POINTS)
