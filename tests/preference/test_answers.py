"""Answers to preference questions."""

import pytest

from guerdon.preference.answers import Answer


@pytest.mark.parametrize(("choice", "label"), [("first", 1.0), ("second", 0.0), ("tie", 0.5), ("skip", None)])
def test_a_choice_is_the_probability_that_the_first_is_better(choice, label):
    assert Answer(pair="p", choice=choice).label == label


@pytest.mark.parametrize("wrong", [{"choice": "left"}, {"confidence": 1.5}, {"confidence": float("nan")}, {"x": 1}])
def test_what_is_no_answer_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Answer(**({"pair": "p", "choice": "first"} | wrong))
