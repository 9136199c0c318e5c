from typing import Any

import pytest
import torch

from guerdon.backbones.chat import Chat
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.testing.vlm_checkpoints import tiny_vlm

ARCHITECTURES: list[Any] = ["qwen2_5_vl", "qwen3_vl", "smolvlm"]
ANSWERS = ["yes", "no", "open the drawer", "0.5"]  # of one token and of several


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm(place / name, name) for name in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def vlm(request, folders):
    return VLM(str(folders[request.param]))


def pictures(count, seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8))


def asked(count, text="Is the drawer open?", seed=0, size=16):
    return ["Look", *pictures(count, seed, size), text]


def slow_log_prob(vlm, prompt, answer):
    """One pass over prompt and answer, no cache, no padding."""
    inputs = vlm._inputs([prompt], answering=True)
    tokens = vlm.reader.answer_tokens(answer)
    start = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)
    for key in ("attention_mask", "mm_token_type_ids"):
        if key in inputs:
            fill = inputs[key].new_full((1, len(tokens)), int(key == "attention_mask"))
            inputs[key] = torch.cat([inputs[key], fill], 1)
    with torch.no_grad():
        logits = vlm.model(**inputs).logits[0].log_softmax(-1)
    return sum(float(logits[start - 1 + i, token]) for i, token in enumerate(tokens))


def test_a_model_in_this_process_is_a_chat(vlm):
    assert isinstance(vlm, Chat)


@pytest.mark.slow
def test_log_probabilities_are_those_of_whole_passes_over_prompt_and_answer(vlm):
    rows = [asked(1), asked(3, "Which way is the arm moving, and is the door closed?", 1), asked(2, seed=2, size=24)]
    got = vlm.answer_log_probs(rows, ANSWERS)
    assert got.shape == (3, 4) and got.dtype == torch.float32
    for row, prompt in enumerate(rows):
        for column, answer in enumerate(ANSWERS):
            assert float(got[row, column]) == pytest.approx(slow_log_prob(vlm, prompt, answer), abs=1e-3)


def test_a_longer_answer_is_never_likelier_than_its_beginning(vlm):
    begin, whole = vlm.answer_log_probs([asked(2)], ["open", "open the drawer"])[0].tolist()
    assert whole < begin < 0


def test_batches_change_nothing(folders):
    prompts = [asked(1 + row % 3, seed=row) for row in range(5)]
    at_once = VLM(str(folders["smolvlm"]), batch_size=5)
    in_pairs = VLM(str(folders["smolvlm"]), batch_size=2)
    torch.testing.assert_close(
        at_once.answer_log_probs(prompts, ANSWERS), in_pairs.answer_log_probs(prompts, ANSWERS), atol=1e-4, rtol=1e-4
    )
    assert at_once.reply(prompts, 6) == in_pairs.reply(prompts, 6)


def test_no_prompts_give_no_rows(vlm):
    assert vlm.answer_log_probs([], ANSWERS).shape == (0, 4)
    assert vlm.answer_log_probs_along([], "Done?", ANSWERS).shape == (0, 4)
    assert vlm.reply([]) == []


def test_growing_prompts_read_once_give_what_reading_each_anew_gives(vlm):
    frames = pictures(6)
    both = ["then", frames[2], " wrist", frames[3]]
    parts = [["Task: open the drawer", frames[0]], [frames[1]], both, *(["then", f] for f in frames[4:])]
    question = "How much of the task is done?"
    got = vlm.answer_log_probs_along(parts, question, ANSWERS)
    naive = vlm.answer_log_probs([[*(p for part in parts[: n + 1] for p in part), question] for n in range(5)], ANSWERS)
    assert got.shape == (5, 4)
    torch.testing.assert_close(got, naive, atol=1e-3, rtol=0)
    assert float((naive[1:] - naive[:-1]).abs().max()) > 1e-2  # the pictures matter, or nothing was tested


def test_every_picture_is_encoded_once_however_many_prefixes_there_are(vlm):
    """Counted where pictures enter the vision tower: 16 × 16 pixels each."""
    seen = []
    tower = vlm.model.base_model.visual if hasattr(vlm.model.base_model, "visual") else vlm.model.model.vision_model
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or tuple(kwargs.values()))[0].numel()), with_kwargs=True
    )
    counts = {}
    for frames in (4, 8):
        seen.clear()
        vlm.answer_log_probs_along([[picture] for picture in pictures(frames)], "Done?", ["yes"])
        counts[frames] = sum(seen) / (3 * 16 * 16)
    per_picture = (counts[8] - counts[4]) / 4
    assert counts[4] == pytest.approx(4 * per_picture)  # linear, nothing beside
    seen.clear()
    vlm.answer_log_probs([[*pictures(n + 1), "Done?"] for n in range(8)], ["yes"])
    assert sum(seen) / (3 * 16 * 16) >= 36 * per_picture  # 1 + … + 8, and padding where a model pads


def test_parts_must_end_with_their_picture(vlm):
    picture = pictures(1)[0]
    for parts in ([[picture, "text"]], [[picture], []], [["text"]]):
        with pytest.raises(ValueError, match="must end with a picture"):
            vlm.answer_log_probs_along(parts, "Done?", ["yes"])


def test_an_answer_must_be_a_text_without_the_models_own_tokens(vlm):
    with pytest.raises(ValueError, match="expected a text"):
        vlm.answer_log_probs([asked(1)], [""])
    with pytest.raises(ValueError, match="a meaning of its own"):
        vlm.answer_log_probs([asked(1)], [vlm.processor.tokenizer.eos_token])


def test_a_reply_is_the_greedy_one(vlm):
    prompts = [asked(1), asked(3, seed=1)]
    replies = vlm.reply(prompts, 5)
    for prompt, reply in zip(prompts, replies, strict=True):
        inputs = vlm._inputs([prompt], answering=True)
        tokens = []
        for _ in range(5):  # no cache, no padding, one token at a time
            with torch.no_grad():
                token = int(vlm.model(**inputs).logits[0, -1].argmax())
            tokens.append(token)
            if token == vlm.processor.tokenizer.eos_token_id:
                break
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
            for key in ("attention_mask", "mm_token_type_ids"):
                if key in inputs:
                    fill = inputs[key].new_full((1, 1), int(key == "attention_mask"))
                    inputs[key] = torch.cat([inputs[key], fill], 1)
        assert reply.text == vlm.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        ended = vlm.processor.tokenizer.eos_token_id in tokens
        assert reply.problem == ("" if ended else "cut after 5 tokens")


@pytest.mark.slow
def test_settings_of_the_checkpoint_that_change_what_is_said_are_not_used(vlm):
    plain = vlm.reply([asked(2)], 12)[0].text
    vlm.model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, top_k=50)
    assert {vlm.reply([asked(2)], 12)[0].text for _ in range(3)} == {plain}
    assert vlm.model.generation_config.do_sample  # left as it was
    vlm.model.generation_config.update(do_sample=False, repetition_penalty=1.9, no_repeat_ngram_size=1)
    assert vlm.reply([asked(2)], 12)[0].text == plain


def test_what_trains_answers_like_what_does_not(folders):
    """In training a checkpointed model of transformers would keep nothing of what it read, and say so in the log."""
    trained = VLM(str(folders["qwen2_5_vl"]), gradient_checkpointing=True, lora=LoRA(rank=2))
    rows, parts = [asked(2), asked(1)], [[picture] for picture in pictures(3)]
    ways = (
        lambda: trained.answer_log_probs(rows, ANSWERS),
        lambda: trained.answer_log_probs_along(parts, "Done?", ANSWERS),
        lambda: trained.reply(rows, 6),
    )
    wanted = [way() for way in ways]
    trained.train()
    got = [way() for way in ways]
    assert trained.training and trained.model.training  # left as it was
    torch.testing.assert_close(got[:2], wanted[:2])
    assert got[2] == wanted[2]


def test_a_growing_prompt_that_is_too_long_with_its_question_is_refused(vlm):
    parts = [[picture] for picture in pictures(2)]
    vlm.max_tokens = vlm._inputs([[p for part in parts for p in part]])["input_ids"].shape[1] + 3
    with pytest.raises(ValueError, match="2 parts with the question and an answer are"):
        vlm.answer_log_probs_along(parts, "How much of the task is done?", ["yes"])


def test_the_answer_stands_where_the_template_puts_it(folders):
    """SmolVLM's template writes a blank before an answer, Qwen's does not."""
    smol, qwen = VLM(str(folders["smolvlm"])), VLM(str(folders["qwen2_5_vl"]))
    assert smol.processor.tokenizer.decode(smol.reader.answer_tokens("yes")) == " yes"
    assert qwen.processor.tokenizer.decode(qwen.reader.answer_tokens("yes")) == "yes"
    assert smol.reader.closing == "<end_of_utterance>\nAssistant:"
    assert qwen.reader.closing == "<|im_end|>\n<|im_start|>assistant\n"


def test_without_lora_the_published_model_answers(folders):
    torch.manual_seed(0)
    trained = VLM(str(folders["qwen2_5_vl"]), lora=LoRA(rank=2))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    published = VLM(str(folders["qwen2_5_vl"])).answer_log_probs([asked(1)], ANSWERS)
    with trained.without_lora():
        torch.testing.assert_close(trained.answer_log_probs([asked(1)], ANSWERS), published)
    assert float((trained.answer_log_probs([asked(1)], ANSWERS) - published).abs().max()) > 1e-3


def test_a_batch_size_of_nothing_is_refused(folders):
    with pytest.raises(ValueError, match="batch_size is 0"):
        VLM(str(folders["smolvlm"]), batch_size=0)
