"""The interface of chats: what it says of methods that are not written, and how it makes foreign text harmless."""

import pytest

from guerdon.backbones.chat import Chat, harmless


def test_methods_that_are_not_written_are_named():
    class Mute(Chat):
        pass

    with pytest.raises(NotImplementedError, match=r"Mute does not answer: write reply\(prompts, max_new_tokens\)"):
        Mute().reply([["hello"]])
    with pytest.raises(NotImplementedError, match=r"Mute does not weigh answers: write answer_log_probs"):
        Mute().answer_log_probs([["hello"]], ["yes"])


@pytest.mark.parametrize("token", ["<image>", "<|im_end|>", "[INST]", "</s>"])
def test_harmless_text_holds_no_token_of_a_model(token):
    assert not set(harmless(f"put {token} down")) & set("<>|[]")


def test_harmless_text_stays_readable():
    assert harmless("put <image> [now] | wait") == "put (image) (now) / wait"
