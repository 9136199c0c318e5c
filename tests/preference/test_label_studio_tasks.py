"""Label Studio's JSON: what is written comes back, real exports are read, bad ones are refused."""

import copy
import json
import xml.etree.ElementTree as ElementTree

import pytest

from guerdon.preference.answers import Answer
from guerdon.preference.label_studio_tasks import (
    label_studio_config,
    read_label_studio_answers,
    write_label_studio_tasks,
)
from guerdon.preference.segments import Segment, SegmentPair

# The shape of a version 1.x export (format JSON): ids, time stamps and empty lists that a project really has.
EXPORT = [
    {
        "id": 11,
        "annotations": [
            {
                "id": 101,
                "completed_by": 1,
                "result": [
                    {
                        "value": {"selected": "right"},
                        "id": "Z4QFwmrx5I",
                        "from_name": "pw",
                        "to_name": "first",
                        "type": "pairwise",
                        "origin": "manual",
                    }
                ],
                "was_cancelled": False,
                "ground_truth": False,
                "created_at": "2024-03-09T22:16:08.728353Z",
                "updated_at": "2024-03-09T22:16:08.728378Z",
                "draft_created_at": None,
                "lead_time": 4.288,
                "prediction": {},
                "result_count": 1,
                "unique_id": "7bb4e3a2",
                "import_id": None,
                "last_action": None,
                "task": 11,
                "project": 83,
                "updated_by": 1,
                "parent_prediction": None,
                "parent_annotation": None,
                "last_created_by": None,
            },
            {
                "id": 102,
                "completed_by": {"id": 2, "email": "ann@example.com", "first_name": "Ann", "last_name": ""},
                "result": [
                    {
                        "value": {"choices": ["tie"]},
                        "id": "a1",
                        "from_name": "neither",
                        "to_name": "first",
                        "type": "choices",
                        "origin": "manual",
                    },
                    {
                        "value": {"number": 0.7},
                        "id": "a2",
                        "from_name": "sure",
                        "to_name": "first",
                        "type": "number",
                        "origin": "manual",
                    },
                ],
                "was_cancelled": False,
                "created_at": "2024-03-09T23:00:00Z",
                "lead_time": 12,
                "task": 11,
            },
        ],
        "file_upload": "tasks.json",
        "drafts": [],
        "predictions": [],
        "data": {"pair": "p1", "first": "/data/1.mp4", "second": "/data/2.mp4"},
        "meta": {},
        "created_at": "2024-03-09T21:52:49.513742Z",
        "total_annotations": 2,
        "project": 83,
    },
    {
        "id": 12,
        "annotations": [{"id": 103, "completed_by": 1, "result": [], "was_cancelled": True, "lead_time": None}],
        "data": {"pair": "p2", "first": "/data/3.mp4", "second": "/data/4.mp4"},
    },
    {"id": 13, "annotations": [], "data": {"pair": "p3", "first": "a", "second": "b"}},
]


def pairs(count: int = 4) -> list[SegmentPair]:
    return [SegmentPair(id=f"p{n}", first=Segment(episode=n), second=Segment(episode=n + 1)) for n in range(count)]


def save(folder, tasks):
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def test_an_export_is_read(tmp_path):
    assert read_label_studio_answers(save(tmp_path, EXPORT), pairs=["p1", "p2", "p3"]) == [
        Answer(pair="p1", choice="second", rater="1", seconds=4.288, answered="2024-03-09T22:16:08.728353Z"),
        Answer(
            pair="p1",
            choice="tie",
            rater="ann@example.com",
            confidence=0.7,
            seconds=12,
            answered="2024-03-09T23:00:00Z",
        ),
        Answer(pair="p2", choice="skip", rater="1"),
    ]


def test_answers_come_back_as_they_were_written(tmp_path):
    media = {pair.id: (f"/data/{pair.id}-1.mp4", f"/data/{pair.id}-2.mp4") for pair in pairs()}
    answers = [
        Answer(pair="p0", choice="first", rater="7", confidence=1.0, seconds=0.0, answered="2026-01-02T03:04:05Z"),
        Answer(pair="p0", choice="second", rater="007"),
        Answer(pair="p0", choice="tie", rater="ann"),
        Answer(pair="p2", choice="skip", rater="ann", confidence=0.0),
        Answer(pair="p2", choice="second"),
    ]
    path = tmp_path / "new" / "tasks.json"
    write_label_studio_tasks(pairs(), media, path, answers)
    assert read_label_studio_answers(path, [pair.id for pair in pairs()]) == answers
    tasks = json.loads(path.read_text())
    assert [SegmentPair.model_validate_json(json.dumps(task["data"]["segments"])) for task in tasks] == pairs()
    assert tasks[1]["data"]["first"] == "/data/p1-1.mp4"
    assert "annotations" not in tasks[1]


def test_the_configuration_shows_both_fields_and_names_every_control_once():
    view = ElementTree.fromstring(label_studio_config("Video", 'Which is "better" & safer?'))
    names = {node.get("name"): node for node in view.iter() if node.get("name")}
    assert set(names) == {"better", "first", "second", "neither", "confidence"}
    assert names["better"].tag == "Pairwise"
    assert names["better"].get("toName") == "first,second"
    assert names["first"].tag == "Video"
    assert (names["first"].get("value"), names["second"].get("value")) == ("$first", "$second")
    assert [choice.get("value") for choice in names["neither"]] == ["tie"]
    assert view[0].get("value") == 'Which is "better" & safer?'
    assert ElementTree.fromstring(label_studio_config("Text")).find(".//Text") is not None


def changed(change) -> list:
    tasks = copy.deepcopy(EXPORT)
    change(tasks)
    return tasks


def first(tasks) -> dict:
    return tasks[0]["annotations"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tasks: first(tasks).update(result=[]), r"task 1 \(pair 'p1'\): expected one answer, got none"),
        (lambda tasks: first(tasks)["result"].append(tasks[0]["annotations"][1]["result"][0]), "got second, tie"),
        (lambda tasks: first(tasks)["result"][0]["value"].update(selected="none"), "got none"),
        (lambda tasks: first(tasks)["result"][0]["value"].update(selected="up"), "selected: expected"),
        (lambda tasks: first(tasks)["result"][0].update(type="rating"), "type 'rating' from control 'pw'.*ignore"),
        (lambda tasks: first(tasks)["result"][0].update(type="choices", value={"choices": ["bad"]}), "choices of 'pw'"),
        (lambda tasks: first(tasks).update(completed_by=2.5), "completed_by: expected"),
        (lambda tasks: first(tasks).update(lead_time="long"), "seconds: .*'long'"),
        (lambda tasks: first(tasks).pop("result"), "list of results"),
        (lambda tasks: tasks[0]["annotations"].append(first(tasks)), "rater '1' answers pair 'p1' 2 times"),
        (lambda tasks: tasks[1]["data"].pop("pair"), r"task 2: .*data\['pair'\]"),
        (lambda tasks: tasks[1]["data"].update(pair="p9"), "'p9', which is not among the 3 pairs"),
        (lambda tasks: tasks[1].update(annotations={}), "expected a list, got dict"),
        (lambda tasks: tasks.append({"pair": "p1", "pw": {"selected": "left"}}), "task 4: .*JSON-MIN"),
    ],
)
def test_bad_exports_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_label_studio_answers(save(tmp_path, changed(change)), pairs=["p1", "p2", "p3"])


def test_a_cut_export_is_refused(tmp_path):
    path = save(tmp_path, EXPORT)
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match="is no JSON"):
        read_label_studio_answers(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected a list of tasks"):
        read_label_studio_answers(path)


def test_further_controls_are_passed_over_by_name(tmp_path):
    comment = {"from_name": "why", "to_name": "first", "type": "textarea", "value": {"text": ["faster"]}}
    path = save(tmp_path, changed(lambda tasks: first(tasks)["result"].append(comment)))
    assert read_label_studio_answers(path, ignore=["why"])[0].choice == "second"
    with pytest.raises(ValueError, match="control 'why'"):
        read_label_studio_answers(path)


def test_a_cancelled_annotation_is_a_skip_whatever_was_clicked_before(tmp_path):
    path = save(tmp_path, changed(lambda tasks: first(tasks).update(was_cancelled=True)))
    assert read_label_studio_answers(path)[0].choice == "skip"


def test_tasks_need_media_and_known_pairs(tmp_path):
    with pytest.raises(ValueError, match="two addresses or texts for pair 'p0'"):
        write_label_studio_tasks(pairs(), {}, tmp_path / "tasks.json")
    with pytest.raises(ValueError, match="'p9', which is not among"):
        write_label_studio_tasks(pairs(), {}, tmp_path / "tasks.json", [Answer(pair="p9", choice="tie")])
    assert not list(tmp_path.iterdir())
