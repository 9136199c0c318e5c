"""Answers to preference questions."""

import pytest

from guerdon.preference.answers import Answer, check_answers, write_answers


@pytest.mark.parametrize(("choice", "label"), [("first", 1.0), ("second", 0.0), ("tie", 0.5), ("skip", None)])
def test_a_choice_is_the_probability_that_the_first_is_better(choice, label):
    assert Answer(pair="p", choice=choice).label == label


@pytest.mark.parametrize("wrong", [{"choice": "left"}, {"confidence": 1.5}, {"confidence": float("nan")}, {"x": 1}])
def test_what_is_no_answer_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Answer(**({"pair": "p", "choice": "first"} | wrong))


def test_written_answers_are_one_object_a_line(tmp_path):
    answers = [
        Answer(pair="p1", choice="tie", rater="ä", confidence=0.25, seconds=1.5, answered="2026-01-02T03:04:05Z"),
        Answer(pair="p2", choice="skip"),
    ]
    write_answers(answers, tmp_path / "answers.jsonl")
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Answer.model_validate_json(line) for line in lines] == answers


def test_unknown_pairs_and_second_answers_are_refused():
    answers = [Answer(pair="p1", choice="first", rater="a"), Answer(pair="p1", choice="second", rater="b")]
    check_answers(answers)
    check_answers(answers, {"p1", "p2"})
    with pytest.raises(ValueError, match="x: rater 'a' answers pair 'p1', which is not among the 1 pairs"):
        check_answers(answers, {"p2"}, "x")
    with pytest.raises(ValueError, match=r"rater 'a' answers pair 'p1' 2 times \(first, tie\)"):
        check_answers([*answers, Answer(pair="p1", choice="tie", rater="a")])
