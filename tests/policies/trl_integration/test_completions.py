"""Completions as TRL passes them: texts, conversations, tokens and columns."""

import pytest

from guerdon.policies.trl_integration.completions import Completion, completions_of


def test_a_conversation_gives_what_the_assistant_wrote():
    turns = [
        {"role": "assistant", "content": "I act. ", "tool_calls": []},
        {"role": "tool", "name": "act", "content": "moved"},
        {"role": "assistant", "content": [{"type": "text", "text": "done"}, {"type": "image", "image": None}]},
        {"role": "assistant", "content": None},
    ]
    assert completions_of(["plain", turns], None, {})[1].text == "I act. done"
    assert completions_of(["plain", turns], None, {})[0].text == "plain"


def test_tokens_and_columns_belong_to_their_completion():
    given = {"episode": [4, 5], "name": ("a", "b"), "trainer_state": object(), "log_metric": print, "odd": [1, 2, 3]}
    first, second = completions_of(["x", "y"], [[1, 2], [3]], given)
    assert (first.tokens, second.tokens) == ((1, 2), (3,))
    assert dict(second.columns) == {"episode": 5, "name": "b"}
    assert second.number("episode") == 5


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column 'step', or it is empty in a row; it has the columns episode"):
        Completion(text="", columns={"episode": 1}).number("step")
    for wrong in (True, 1.0, "1"):
        with pytest.raises(ValueError, match="column 'step': expected a whole number"):
            Completion(text="", columns={"step": wrong}).number("step")


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="expected the tokens of 2 completions, got those of 1"):
        completions_of(["x", "y"], [[1]], {})
    with pytest.raises(ValueError, match="a text or a list of messages, got a int"):
        completions_of([3], None, {})
