import json
import shutil
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.testing.vlm_checkpoints import tiny_vlm

ARCHITECTURES: list[Any] = ["qwen2_5_vl", "qwen3_vl", "smolvlm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm(place / name, name) for name in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def copied(folders, tmp_path):
    """A checkpoint to spoil."""
    return shutil.copytree(folders["smolvlm"], tmp_path / "copied")


def edit(path, **changes: Any):
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | changes))


def pictures(count, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8))


def prompt(count, text="open the drawer", seed=0, size=16):
    return [f"Task: {text}", *[part for shown in pictures(count, size, seed) for part in (shown, "Progress:")]]


def lora(folder, dropout=0.0, targets: str | list[str] = "all-linear", **more: Any):
    torch.manual_seed(1)
    return VLM(str(folder), lora=LoRA(rank=2, dropout=dropout, targets=targets), **more)


def stirred(vlm):
    """Low-rank updates that are not 0 any more."""
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return vlm


@pytest.mark.slow
def test_states_are_those_of_transformers_own_pass(folder):
    vlm = VLM(str(folder))
    states = vlm.hidden_states([prompt(2)])
    inputs = vlm._inputs([prompt(2)])
    with torch.no_grad():
        wanted = vlm.model(**inputs, output_hidden_states=True).hidden_states[-1]
    assert states.hidden.shape == (*states.tokens.shape, vlm.width)
    torch.testing.assert_close(states.hidden, wanted)


def test_the_prompt_is_read_in_order_with_every_picture_in_its_place(folder):
    vlm = VLM(str(folder))
    states = vlm.hidden_states([["Look", pictures(1)[0], "one:", pictures(1)[0], "two:"]])
    text = vlm.processor.tokenizer.decode(states.tokens[0])
    kinds = (states.tokens[0] == vlm.reader.image_token).int()
    assert int(kinds.diff(prepend=torch.zeros(1)).clamp(min=0).sum()) == 2  # two runs: no picture is cut into tiles
    assert int(kinds.sum()) == 8  # 16 × 16 pixels are 2 × 2 tokens, of both architectures
    assert text.index("Look") < text.index("one:") < text.index("two:") and text.endswith("two:")


def test_states_after_a_marker_are_those_where_a_prompt_cut_there_ends(folder):
    vlm = VLM(str(folder))
    whole = prompt(3)
    got = vlm.states_after([whole], "Progress:")
    assert got.shape == (3, vlm.width) and got.dtype == torch.float32
    for shown in range(3):
        alone = vlm.hidden_states([whole[: 3 + 2 * shown]]).hidden[0, -1]
        torch.testing.assert_close(got[shown], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_row_alone_is_the_row_in_a_batch(folder):
    vlm = stirred(lora(folder))
    rows = [prompt(1, seed=1), prompt(4, "close the door and push the block", seed=2), prompt(2, seed=3, size=24)]
    together = vlm.states_after(rows, "Progress:").split([1, 4, 2])
    for row, states in zip(rows, together, strict=True):
        torch.testing.assert_close(vlm.states_after([row], "Progress:"), states, atol=1e-4, rtol=1e-4)


def test_both_architectures_are_causal_over_pictures(folder):
    vlm = stirred(lora(folder))
    vlm.check_causal()
    one, other = prompt(4), prompt(4)
    other[-2] = 255 - other[-2]
    change = (vlm.states_after([one], "Progress:") - vlm.states_after([other], "Progress:")).abs().amax(1)
    assert change[:3].max() < 1e-5 < 1e-2 < change[3]


def test_a_model_that_looks_ahead_is_refused(copied):
    held = json.loads((copied / "config.json").read_text())
    held["text_config"]["is_causal"] = False  # transformers then attends to the whole prompt
    (copied / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="is not causal: the last picture changes what is read before it"):
        VLM(str(copied)).check_causal()


def test_a_model_that_does_not_see_is_refused(copied):
    weights = load_file(copied / "model.safetensors")
    weights = {k: torch.zeros_like(v) if "connector" in k else v for k, v in weights.items()}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not see pictures"):
        VLM(str(copied)).check_causal()


def test_a_template_that_puts_pictures_first_is_got_round(copied):
    template = (
        "{% for m in messages %}User:{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% endif %}"
        "{% endfor %}{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
        "{% endfor %}"
    )
    (copied / "chat_template.jinja").write_text(template)
    vlm = VLM(str(copied))
    vlm.check_causal()
    assert vlm.reader._text(["Look", pictures(1)[0], "one:"]) == "User:Look<image>one:"


@pytest.mark.slow
def test_nothing_is_trained_without_lora_and_nothing_saved(folder, tmp_path):
    vlm = VLM(str(folder))
    assert not [p for p in vlm.parameters() if p.requires_grad]
    vlm.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors") == {}
    again = VLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.hidden_states([prompt(2)]).hidden, vlm.hidden_states([prompt(2)]).hidden)


@pytest.mark.slow
def test_lora_trains_the_language_model_alone(folder):
    vlm = lora(folder).train()
    vlm.states_after([prompt(2)], "Progress:").square().sum().backward()
    decoder = {id(p) for p in vlm.model.get_decoder().parameters()}
    named = dict(vlm.named_parameters())
    assert {n for n, p in named.items() if p.requires_grad} == {n for n in named if "lora_" in n}
    for name, parameter in named.items():
        assert (parameter.grad is not None) == ("lora_" in name), name
        assert "lora_" not in name or id(parameter) in decoder, name
    # B starts at 0: A's gradient is 0, B's is not
    assert all(bool(p.grad.abs().sum() > 0) == ("lora_B" in n) for n, p in named.items() if p.grad is not None)
    torch.testing.assert_close(  # and so the update is 0
        vlm.eval().hidden_states([prompt(2)]).hidden, VLM(str(folder)).hidden_states([prompt(2)]).hidden
    )


@pytest.mark.slow
def test_lora_targets(folder):
    vlm = lora(folder, targets=["q_proj", "v_proj"])
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in vlm.trained} == {"q_proj", "v_proj"}
    assert len(vlm.trained) == 2 * 2 * 2  # two layers, two targets, A and B
    assert VLM(str(folder), lora=LoRA(rank=2, targets=["q_proj", "v_proj"])).trained == vlm.trained
    assert vlm.init_args["lora"].init_args["rank"] == 2 and "lora_rank" not in vlm.init_args
    with pytest.raises(ValueError, match=r"targets \['query'\]: expected 'all-linear' or some of .*'q_proj'"):
        lora(folder, targets=["query"])


def test_dropout_acts_on_the_updates_in_training_only(folder):
    vlm = stirred(lora(folder, dropout=0.5))
    assert not vlm.model.training

    def states():
        return vlm.states_after([prompt(1)], "Progress:").detach()

    assert torch.equal(states(), states())
    vlm.train()
    assert not torch.equal(states(), states())
    assert not vlm.model.get_decoder().training  # the frozen part stays as it was published


@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_gradients(folder):
    gradients = []
    for checkpointing in (False, True):
        vlm = stirred(lora(folder, gradient_checkpointing=checkpointing)).train()
        generator = torch.Generator().manual_seed(0)
        for _, parameter in sorted((n, p) for n, p in vlm.named_parameters() if p.requires_grad):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        vlm.states_after([prompt(2)], "Progress:").square().sum().backward()
        gradients.append({n: p.grad for n, p in vlm.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-3, rtol=1e-3)


def test_bfloat16_weights_with_float32_updates(folder):
    vlm = stirred(lora(folder, dtype="bfloat16"))
    kinds = {("lora_" in n, p.dtype) for n, p in vlm.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    vlm.check_causal()
    states = vlm.states_after([prompt(2)], "Progress:")
    assert states.dtype == torch.float32 and bool(states.isfinite().all())


@pytest.mark.slow
def test_saving_keeps_the_updates_and_the_name_of_the_rest(folder, tmp_path):
    vlm = stirred(lora(folder))
    vlm.save_pretrained(tmp_path / "saved")
    held = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(held) == {f"model.{name}" for name in vlm.trained}
    again = VLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.hidden_states([prompt(2)]).hidden, vlm.hidden_states([prompt(2)]).hidden)
    assert again.init_args["fingerprint"] == vlm.fingerprint


def test_a_strict_load_wants_the_updates_and_nothing_frozen(folder):
    vlm, around = stirred(lora(folder)), torch.nn.ModuleDict()
    around["inside"] = vlm
    held = around.state_dict()
    assert len(held) == len(vlm.trained)
    around.load_state_dict(held)
    held.popitem()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"inside.model.*lora_"):
        around.load_state_dict(held)


def test_other_weights_under_the_same_name_are_refused(copied, tmp_path):
    VLM(str(copied)).save_pretrained(tmp_path / "saved")
    weights = load_file(copied / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="these are others"):
        VLM.from_pretrained(tmp_path / "saved")


def test_a_moved_checkpoint_is_one_clear_error(copied, tmp_path):
    VLM(str(copied)).save_pretrained(tmp_path / "saved")
    copied.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*copied: .* or in component.json"):
        VLM.from_pretrained(tmp_path / "saved")


def test_a_repository_that_is_not_here_is_not_fetched():
    with pytest.raises(FileNotFoundError, match=r"cannot open .*'nobody/nothing'.*nothing is downloaded unless"):
        VLM("nobody/nothing")


def test_a_text_model_is_refused(tmp_path):
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=4, **sizes)).save_pretrained(tmp_path / "text")
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="is a llama model, which does not read pictures"):
        VLM(str(tmp_path / "text"))


def test_incomplete_checkpoints_are_named(copied):
    weights = load_file(copied / "model.safetensors")
    gone = next(k for k in weights if "q_proj" in k)
    save_file({k: v for k, v in weights.items() if k != gone}, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, first .*q_proj"):
        VLM(str(copied))
    (copied / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        VLM(str(copied))
    (copied / "chat_template.jinja").unlink()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no chat template"):
        VLM(str(copied))


def test_bad_arguments_are_named(folder):
    with pytest.raises(ValueError, match="rank -1"):
        VLM(str(folder), lora=LoRA(rank=-1))
    with pytest.raises(ValueError, match="is a folder, which has no revision main"):
        VLM(str(folder), revision="main")


def test_bad_prompts_are_named(folder):
    vlm = VLM(str(folder), max_tokens=40)
    with pytest.raises(TypeError, match="expected uint8"):
        vlm.hidden_states([["Look", torch.zeros(3, 8, 8)]])
    with pytest.raises(ValueError, match=r"expected \(3, H, W\)"):
        vlm.hidden_states([["Look", torch.zeros(8, 8, 3, dtype=torch.uint8)]])
    with pytest.raises(ValueError, match="has no picture"):
        vlm.hidden_states([["Look"]])
    with pytest.raises(ValueError, match=r"a token of .* with a meaning of its own"):
        vlm.hidden_states([[f"Look {vlm.processor.image_token}", *pictures(1)]])
    with pytest.raises(ValueError, match=r"longer than the 40 that .* reads: show fewer frames"):
        vlm.hidden_states([prompt(12)])
    with pytest.raises(ValueError, match=r"expected to find the end of 'Progress:' \[1\] times, found \[2\]"):
        vlm.states_after([["Look", *pictures(1), "Progress:", "here:"]], "Progress:")


def test_a_picture_the_processor_refuses_is_named(folders):
    with pytest.raises(ValueError, match=r"cannot read pictures of height and width \[\(2, 1000\)\]"):
        VLM(str(folders["qwen2_5_vl"])).hidden_states([["Look", torch.zeros(3, 2, 1000, dtype=torch.uint8)]])


def test_a_large_picture_is_scaled_by_the_processor(folders):
    """The tiny Qwen reads 32 × 32 pixels at most, unless told otherwise: 16 tokens of 8 × 8 pixels, then 4."""
    large = ["Look", *pictures(1, size=200)]
    for options, wanted in ((None, 16), ({"size": {"shortest_edge": 64, "longest_edge": 256}}, 4)):
        vlm = VLM(str(folders["qwen2_5_vl"]), image_options=options)
        assert int((vlm.hidden_states([large]).tokens == vlm.reader.image_token).sum()) == wanted


def test_an_instruction_is_cut_with_a_warning(folder):
    vlm = VLM(str(folder))
    text = "open the drawer " * 20
    with pytest.warns(UserWarning, match="8 of .* tokens are read"):
        short = vlm.shorten(text, 8)
    assert text.startswith(short) and 0 < vlm.count_tokens(short) <= 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vlm.shorten("open", 8) == "open"
