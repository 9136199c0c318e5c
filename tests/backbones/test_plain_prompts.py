"""BLIP-2 through the real loading code, on a tiny checkpoint: prompts without a chat template."""

import json
import shutil
from typing import Any

import pytest
import torch

from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.testing.conformance import reopen
from guerdon.testing.vlm_checkpoints import tiny_vlm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vlm(tmp_path_factory.mktemp("blip2") / "blip2", "blip2")


def pictures(count, size=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8))


def edited(folder, tmp_path, file="config.json", **changes: Any):
    copy = shutil.copytree(folder, tmp_path / "copied")
    held = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(held | changes))
    return str(copy)


def test_a_picture_in_front_of_a_text_is_read_as_the_checkpoints_own_processor_reads_it(folder):
    vlm, (shown,) = VLM(str(folder)), pictures(1)
    got = vlm.hidden_states([[shown, "open the drawer"]])
    inputs = vlm.processor(images=[shown], text=["open the drawer"], return_tensors="pt")
    assert torch.equal(got.tokens, inputs["input_ids"])
    with torch.no_grad():
        out = vlm.model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(got.hidden, out.language_model_outputs.hidden_states[-1])


def test_several_pictures_stand_in_their_places_and_rows_do_not_mix(folder):
    vlm, (one, two, three) = VLM(str(folder)), pictures(3)
    prompts = [[one, two, "left"], ["a", three, "close the door"]]
    together = vlm.hidden_states(prompts)
    kinds = (together.tokens == vlm.reader.image_token) & together.mask
    assert kinds.sum(1).tolist() == [8, 4] and kinds[0, :8].all() and not kinds[1, :2].any()
    for row, prompt in enumerate(prompts):
        alone = vlm.hidden_states([prompt])
        real = together.mask[row]
        torch.testing.assert_close(together.hidden[row, real], alone.hidden[0], atol=1e-4, rtol=1e-4)
    swapped = vlm.hidden_states([[two, one, "left"]]).hidden[0]
    assert (swapped - vlm.hidden_states([prompts[0]]).hidden[0]).abs().max() > 1e-2


def test_low_rank_updates_learn_and_the_published_weights_stay_out_of_the_file(folder):
    torch.manual_seed(0)
    vlm = VLM(str(folder), lora=LoRA(rank=2, targets=["q_proj", "v_proj"]))
    prompt = [pictures(1)[0], "open the drawer"]
    before = vlm.hidden_states([prompt]).hidden
    before.square().sum().backward()
    learned = {n: p for n, p in vlm.named_parameters() if p.grad is not None}
    assert learned and all("lora_" in name for name in learned)
    with torch.no_grad():
        for parameter in learned.values():
            parameter.normal_(std=0.1)
    changed = vlm.hidden_states([prompt]).hidden
    assert (changed - before).abs().max() > 1e-3
    assert all("lora_" in name for name in vlm.state_dict())
    opened = reopen(vlm)
    assert opened.fingerprint == vlm.fingerprint and len(vlm.fingerprint) == 16
    torch.testing.assert_close(opened.hidden_states([prompt]).hidden, changed)


def test_answers_are_written_and_weighed(folder):
    vlm, (one, two) = VLM(str(folder)), pictures(2)
    prompts = [[one, "Question: is it open? Answer:"], [two, "open?"]]
    replies = vlm.reply(prompts, max_new_tokens=3)
    assert all(reply.text is not None for reply in replies)
    together = vlm.answer_log_probs(prompts, ["yes", "no it is not"])
    alone = torch.cat([vlm.answer_log_probs([prompt], ["yes", "no it is not"]) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)
    # the slow way: log-probabilities of the tokens of one prompt with its answer
    tokens = vlm.reader.answer_tokens("no it is not")
    inputs = vlm._inputs([prompts[0]], answering=True)
    longer = torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)
    with torch.no_grad():
        logits = vlm.model(input_ids=longer, pixel_values=inputs["pixel_values"]).logits[0].log_softmax(-1)
    wanted = sum(logits[len(longer[0]) - len(tokens) - 1 + i, token] for i, token in enumerate(tokens))
    torch.testing.assert_close(together[0, 1], torch.as_tensor(wanted), atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="use answer_log_probs"):
        vlm.answer_log_probs_along([["a", one]], "open?", ["yes"])


def test_it_is_causal_and_bad_prompts_are_named(folder):
    vlm, (shown,) = VLM(str(folder)), pictures(1)
    vlm.check_causal()
    with pytest.raises(ValueError, match=r"a token of .* with a meaning of its own"):
        vlm.hidden_states([[shown, "open <image>"]])
    with pytest.raises(ValueError, match=r"longer than the 12 that .* shorten the instruction"):
        VLM(str(folder), max_tokens=12).hidden_states([[shown, "open the drawer and close the door, then wait"]])


def test_layers_that_are_not_there_are_refused_with_those_that_are(folder):
    with pytest.raises(ValueError, match=r"targets \['query'\]: expected 'all-linear' or some of .*'q_proj'"):
        VLM(str(folder), lora=LoRA(targets=["query"]))


def test_an_early_checkpoint_without_the_picture_token_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="written by an early version of transformers"):
        VLM(edited(folder, tmp_path, "processor_config.json", num_query_tokens=None))
