"""Plans as JSON: what is read back, and what is refused in one clear line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.interfaces import TaskPlan, TaskStage
from guerdon.rewards.stages.plans import MAX_STAGES, PLAN_SCHEMA, check_plan, parse_plan, plan_to_json

TWO = '{"stages": [{"name": "reach"}, {"name": "close the hand", "completion": "it is held", "keypoints": ["mug"]}]}'
PLAN = TaskPlan(
    instruction="take the mug",
    stages=(TaskStage(name="reach"), TaskStage(name="close the hand", completion="it is held", keypoints=("mug",))),
)
name = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9 _-]{0,20}[A-Za-z0-9])?", fullmatch=True)
sentence = st.text(st.characters(exclude_categories=["C"]), max_size=60)


@st.composite
def plans(draw):
    names = draw(st.lists(name, min_size=1, max_size=MAX_STAGES, unique_by=str.casefold))
    keypoints = st.lists(name, max_size=4, unique_by=str.casefold).map(tuple)
    stages = [
        TaskStage(name=n, description=draw(sentence), completion=draw(sentence), keypoints=draw(keypoints))
        for n in names
    ]
    return TaskPlan(instruction="x", stages=tuple(stages))


@pytest.mark.parametrize(
    "text", [TWO, f"  {TWO}\n", f"```json\n{TWO}\n```", f"```\n{TWO}\n```", f"```json\r\n{TWO}\r\n```"]
)
def test_one_object_alone_or_in_one_fence_is_read(text):
    assert parse_plan(text, "take the mug") == PLAN


@given(plan=plans())
def test_what_is_written_is_read_back(plan):
    text = plan_to_json(plan)
    assert "\n" not in text
    assert parse_plan(text, "x") == plan


def stages(count):
    return json.dumps({"stages": [{"name": f"s{i}"} for i in range(count)]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "one JSON object .*got ''"),
        ("First reach for the mug, then close the hand.", "one JSON object .*got 'First reach"),
        (f"Sure! {TWO}", "one JSON object .* and nothing else, got 'Sure!"),
        (f"{TWO}\nI hope that helps.", "text after the object at line 2.*'I hope"),
        (f"```json\n{TWO}\n```\n```json\n{TWO}\n```", "text after the object"),
        (f"Here:\n```json\n{TWO}\n```", "nothing else, got 'Here"),
        (TWO[:-4], "complete JSON object .* got no valid JSON"),
        ('[{"name": "reach"}]', "one JSON object"),
        ('{"stages": [{"name": NaN}]}', "no number NaN"),
        ('{"stages": [{"name": "a"}], "score": -Infinity}', "no number -Infinity"),
        ('{"stages": [{"name": "a", "name": "b"}]}', "every key once .*'name' twice"),
        ('{"stages": [], "stages": [{"name": "b"}]}', "every key once .*'stages' twice"),
        ('{"stages": []}', "stages: .*at least 1"),
        ('{"stages": {"name": "a"}}', "stages: .*list"),
        ('{"plan": []}', "stages: expected this key"),
        ('{"stages": [{"name": "a"}], "code": "x"}', "no other keys than stages, got 'code'"),
        ('{"stages": [{"name": "a", "code": "x"}]}', r"no other keys than name, .*'stages\[0\].code'"),
        ('{"stages": [{"description": "a"}]}', r"stages\[0\].name: expected this key"),
        ('{"stages": [{"name": 3}]}', r"stages\[0\].name: .*string, got 3"),
        ('{"stages": [{"name": ' + "1" * 9000 + "}]}", r"stages\[0\].name: .*string"),
        ('{"stages": [{"name": null}]}', r"stages\[0\].name: .*string, got None"),
        ('{"stages": [{"name": "a", "keypoints": "mug"}]}', r"keypoints: .*list, got 'mug'"),
        ('{"stages": [{"name": "a", "keypoints": ["mug", "Mug"]}]}', "keypoints: expected distinct names"),
        ('{"stages": [{"name": "reach"}, {"name": "Reach"}]}', "different name for each, got 'reach' twice"),
        (stages(100), f"expected 1 to {MAX_STAGES}, got 100"),
        ('{"stages": ' + "[" * 9000, "nested far too deeply"),
        (" " + "x" * 30_000, "at most 20000 characters, got 30000"),
        (json.dumps({"stages": [{"name": "a", "description": "x" * 301}]}), "description: .*at most 300 .*got 301"),
        (json.dumps({"stages": [{"name": "a", "completion": "x\u2028y\n"}]}), "completion: .*without line breaks"),
        ('{"stages": [{"name": "a", "description": "\\ud800"}]}', "without line breaks and control"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, said):
    with pytest.raises(ValueError, match=said) as refusal:
        parse_plan(text, "x")
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "wrong",
    ["", " ", "os.system('rm')", "__import__", "a\nb", "a\x00", "<script>", "x" * 41, "a;b", "{a}", " a", "a\u202eb"],
)
def test_a_name_is_plain_words(wrong):
    with pytest.raises(ValueError, match="name: expected a name of 1 to 40 letters"):
        check_plan({"stages": [{"name": wrong}]}, "x")
    with pytest.raises(ValueError, match=r"keypoints\[0\]: expected a name"):
        check_plan({"stages": [{"name": "a", "keypoints": [wrong]}]}, "x")
    with pytest.raises(ValueError, match="expected a name"):
        plan_to_json(TaskPlan(instruction="x", stages=(TaskStage(name=wrong),)))


def test_names_in_other_scripts_are_words():
    assert check_plan({"stages": [{"name": "écarter 杯子"}]}, "x").stages[0].name == "écarter 杯子"


def test_the_number_of_stages_is_an_argument():
    assert len(parse_plan(stages(20), "x", max_stages=20).stages) == 20
    assert len(parse_plan(stages(12), "x").stages) == 12
    with pytest.raises(ValueError, match="expected 1 to 2, got 3"):
        parse_plan(stages(3), "x", max_stages=2)
    with pytest.raises(ValueError, match="max_stages is 0"):
        parse_plan(stages(1), "x", max_stages=0)
    with pytest.raises(ValueError, match="at least 1"):
        plan_to_json(TaskPlan(instruction="x", stages=()))


@given(text=st.text(max_size=80) | st.recursive(st.none() | st.text(max_size=5), st.lists).map(json.dumps))
def test_no_answer_raises_anything_but_a_one_line_value_error(text):
    try:
        plan = parse_plan(text, "x")
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert plan.stages


def test_the_schema_asks_for_stages_and_names():
    assert PLAN_SCHEMA["required"] == ["stages"]
    assert PLAN_SCHEMA["additionalProperties"] is False
    assert PLAN_SCHEMA["$defs"]["StageSchema"]["required"] == ["name"]
    json.dumps(PLAN_SCHEMA)
