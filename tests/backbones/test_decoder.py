"""What every decoder promises: reading on behind a prompt is reading everything at once."""

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, OPTConfig, OPTForCausalLM

from guerdon.backbones.decoder_language import LanguageDecoder
from guerdon.backbones.decoder_small import SmallDecoder
from guerdon.backbones.decoder_vlm import VLMDecoder
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import Observation
from guerdon.testing.language_checkpoints import tiny_language
from guerdon.testing.vlm_checkpoints import tiny_vlm

SHORT, LONG = "open it", "open the drawer and push the red block to the left"
VLMS: list[Any] = ["qwen2_5_vl", "qwen3_vl", "smolvlm"]
KINDS = ["small", "language", "no chat", *VLMS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("decoders")
    found = {name: tiny_vlm(place / name, name) for name in VLMS}
    return found | {
        "language": tiny_language(place / "language"),
        "no chat": tiny_language(place / "no_chat", chat=False),
    }


@pytest.fixture(params=KINDS)
def decoder(request, folders) -> Any:
    return opened(request.param, folders)


def opened(kind: str, folders, lora: LoRA | None = None) -> Any:
    if kind == "small":
        return SmallDecoder(width=16, heads=2, buckets=32)
    if kind in VLMS:
        return VLMDecoder(VLM(str(folders[kind]), lora=lora), cameras=["front"])
    return LanguageDecoder(str(folders[kind]), lora=lora)


def seen(*instructions: str, side: int = 16) -> Observation:
    frames = torch.randint(0, 256, (len(instructions), 3, side, side), generator=torch.Generator().manual_seed(0))
    return Observation(
        state=torch.zeros(len(instructions), 1), frames={"front": frames.to(torch.uint8)}, instructions=instructions
    )


def embeddings(decoder, count: int, length: int):
    drawn = torch.randn(count, length, decoder.width, generator=torch.Generator().manual_seed(1))
    return 0.3 * drawn


def test_one_embedding_at_a_time_gives_the_states_of_all_at_once(decoder):
    observation, behind = seen(SHORT, LONG), embeddings(decoder, 2, 4)
    with torch.no_grad():
        whole = decoder.extend(decoder.read(observation, 4), behind)
        prefix = decoder.read(observation, 4)
        apart = [decoder.extend(prefix, behind[:, :0])] + [decoder.extend(prefix, one) for one in behind.split(1, 1)]
    assert whole.shape == (2, 5, decoder.width) and whole.dtype == torch.float32
    torch.testing.assert_close(torch.cat(apart, 1), whole, atol=1e-5, rtol=1e-4)


def test_padding_before_a_prompt_changes_nothing(decoder):
    """The same instruction alone, next to a longer one, and next to a much longer one."""
    behind = embeddings(decoder, 1, 2)
    with torch.no_grad():
        alone = decoder.extend(decoder.read(seen(SHORT), 2), behind)
        for other in (LONG, f"{LONG} and then {LONG}"):
            both = decoder.extend(decoder.read(seen(SHORT, other), 2), behind.expand(2, -1, -1))
            torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(both[1], both[0], atol=1e-3), "it does not read the instruction"


@pytest.mark.parametrize("kind", ["language", "no chat"])
def test_states_are_those_of_a_plain_pass_over_the_tokens(folders, kind):
    decoder = opened(kind, folders)
    tokens = torch.tensor([decoder._tokens_of(LONG)])
    behind = embeddings(decoder, 1, 3)
    with torch.no_grad():
        inputs = torch.cat([decoder.model.get_input_embeddings()(tokens), behind], 1)
        wanted = decoder.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -4:]
        found = decoder.extend(decoder.read(seen(LONG), 3), behind)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", VLMS)
def test_the_state_after_a_prompt_with_pictures_gives_the_models_own_next_token(folders, kind):
    decoder = opened(kind, folders)
    observation = seen(SHORT, LONG)
    asked = [decoder.prompt.format(instruction=text) for text in (SHORT, LONG)]
    prompts = list(zip(observation.frames["front"], asked, strict=True))
    with torch.no_grad():
        wanted = decoder.vlm.begin_answers(prompts)[0].logits
        state = decoder.extend(decoder.read(observation, 0), embeddings(decoder, 2, 0))[:, 0]
        found = decoder.vlm.model.get_output_embeddings()(state)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_gradients_reach_low_rank_updates_and_embeddings_and_nothing_else(folders, kind):
    decoder = opened(kind, folders, LoRA(rank=2))
    behind = embeddings(decoder, 2, 2).requires_grad_()
    decoder.extend(decoder.read(seen(SHORT, LONG), 2), behind).square().sum().backward()
    reached = {n for n, p in decoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    learns = {n for n, p in decoder.named_parameters() if p.requires_grad}
    # W + BA with B = 0: the gradient of A is 0 at the start, but it is there
    assert reached == {n for n in learns if "lora_B" in n} and learns == {n for n in learns if "lora_" in n}
    assert behind.grad is not None and behind.grad.abs().amax((0, 2)).min() > 0


def test_a_decoder_is_never_in_training_mode(decoder):
    around = torch.nn.ModuleList([decoder]).train()
    assert around.training and not any(part.training for part in decoder.modules())


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_low_rank_updates_with_dropout_are_refused(folders, kind):
    with pytest.raises(ValueError, match="set the dropout of LoRA to 0"):
        opened(kind, folders, LoRA(rank=2, dropout=0.1))


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_low_rank_updates_of_layers_that_are_not_there_are_refused(folders, kind):
    with pytest.raises(ValueError, match=r"targets \['c_attn'\]: expected 'all-linear' or some of"):
        opened(kind, folders, LoRA(rank=2, targets=["c_attn"]))


# --- rows of the vocabulary ------------------------------------------------------------------------------------------


def test_unused_rows_are_taken_first_then_the_last_ordinary_tokens(folders):
    decoder = opened("language", folders)
    tokens = len(decoder.tokeniser)
    assert decoder.reserve(64).tokens == tuple(range(tokens, tokens + 64))
    more = decoder.reserve(70).tokens
    assert more[-64:] == tuple(range(tokens, tokens + 64)) and len(more) == 70
    asked = set(decoder._tokens_of(""))
    last = [token for token in range(tokens - 1, -1, -1) if token not in asked][:6]
    assert sorted(last) == list(more[:6])


def test_rows_are_those_of_the_model(decoder):
    rows = decoder.reserve(8)
    assert rows.inputs.shape == rows.outputs.shape == (8, decoder.width) and len(set(rows.tokens)) == 8
    if not isinstance(decoder, SmallDecoder):
        model = decoder.vlm.model if isinstance(decoder, VLMDecoder) else decoder.model
        assert torch.equal(rows.inputs, model.get_input_embeddings().weight[list(rows.tokens)])
        assert torch.equal(rows.outputs, model.get_output_embeddings().weight[list(rows.tokens)])


def test_special_and_added_tokens_and_those_of_the_question_stay_free(decoder):
    if isinstance(decoder, SmallDecoder):
        return
    tokeniser = decoder.vlm.reader.processor.tokenizer if isinstance(decoder, VLMDecoder) else decoder.tokeniser
    bins = 200
    taken = set(decoder.reserve(bins).tokens)
    assert not taken & {*tokeniser.all_special_ids, *tokeniser.get_added_vocab().values()}
    assert not taken & set(tokeniser("What action should the robot take to ?", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", ["language", "qwen2_5_vl"])
def test_a_vocabulary_without_room_is_refused(folders, kind):
    with pytest.raises(ValueError, match=r"free for action bins, expected 500: take fewer bins"):
        opened(kind, folders).reserve(500)


# --- instructions that cannot be read --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_an_instruction_that_uses_a_token_of_a_bin_is_refused(folders, kind):
    decoder = opened(kind, folders)
    decoder.reserve(300)
    with pytest.raises(ValueError, match=r"'ü#' uses token \d+ .*stands for an action bin.*word it differently"):
        decoder.read(seen("ü#"), 0)


def test_an_instruction_longer_than_the_context_is_refused(folders, tmp_path):
    short = tiny_language(tmp_path / "short", max_tokens=96)
    decoder = LanguageDecoder(str(short))
    held = len(decoder._tokens_of(SHORT))
    decoder.read(seen(SHORT), 96 - held)
    with pytest.raises(ValueError, match=f"prompt of {held} tokens, with {97 - held} behind it .* longer than.* 96"):
        decoder.read(seen(SHORT), 97 - held)
    with pytest.raises(ValueError, match=r"'open open .*\.\.\.': its prompt of .* shorten the instruction"):
        decoder.read(seen("open " * 100), 0)


def test_an_instruction_that_leaves_no_room_in_a_models_context_is_refused(folders):
    vlm = VLM(str(folders["smolvlm"]), max_tokens=80)
    decoder = VLMDecoder(vlm, ["front"])
    with pytest.raises(ValueError, match="with 60 behind it for state and actions, is longer than the context of 80"):
        decoder.read(seen(SHORT), 60)


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_an_instruction_with_a_token_of_the_models_own_is_refused(folders, kind):
    with pytest.raises(ValueError, match="with a meaning of its own"):
        opened(kind, folders).read(seen("open <|im_start|>system"), 0)


def test_a_missing_camera_is_named(folders):
    with pytest.raises(ValueError, match=r"cameras \['front'\], 'front' is missing from \[\]"):
        opened("smolvlm", folders).read(Observation(state=torch.zeros(1, 1), instructions=(SHORT,)), 0)


def test_wrong_arguments_are_refused(folders):
    with pytest.raises(ValueError, match="multiple of twice the heads, 8"):
        SmallDecoder(width=20, heads=4)
    with pytest.raises(ValueError, match="gradient_checkpointing keeps no keys and values"):
        VLMDecoder(VLM(str(folders["smolvlm"]), gradient_checkpointing=True), ["front"])
    with pytest.raises(ValueError, match="cameras is empty"):
        VLMDecoder(VLM(str(folders["smolvlm"])), [])
    for prompt in ("What now?", "Do {x}"):
        with pytest.raises(ValueError, match=r"expected {instruction} in it"):
            LanguageDecoder(str(folders["language"]), prompt=prompt)
        with pytest.raises(ValueError, match=r"expected {instruction} in it"):
            VLMDecoder(VLM(str(folders["smolvlm"])), ["front"], prompt=prompt)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_what_is_no_language_model_is_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        LanguageDecoder(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="nothing is downloaded unless download=True"):
        LanguageDecoder("nobody/nothing")
    with pytest.raises(ValueError, match="qwen2_5_vl model, which does not write text"):
        LanguageDecoder(str(folders["qwen2_5_vl"]))
    with pytest.raises(ValueError, match="is a folder, which has no revision main"):
        LanguageDecoder(str(folders["language"]), revision="main")


def test_other_weights_than_those_of_the_fingerprint_are_refused(folders, tmp_path):
    fingerprint = opened("language", folders).fingerprint
    assert LanguageDecoder(str(folders["language"]), fingerprint=fingerprint).fingerprint == fingerprint
    other = tiny_language(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=f"expected {fingerprint}: these are others"):
        LanguageDecoder(str(other), fingerprint=fingerprint)


def test_a_saved_decoder_holds_its_low_rank_updates_only(folders, tmp_path):
    decoder = opened("language", folders, LoRA(rank=2))
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    decoder.save_pretrained(tmp_path / "saved")
    assert all("lora_" in name for name in decoder.state_dict())
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 40_000
    again = LanguageDecoder.from_pretrained(tmp_path / "saved")
    observation, behind = seen(SHORT), embeddings(decoder, 1, 2)
    with torch.no_grad():
        one, other = (d.extend(d.read(observation, 2), behind) for d in (decoder, again))
    assert torch.equal(one, other)


def test_capped_logits_are_refused(folders, tmp_path):
    config = Gemma2Config(
        vocab_size=500,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.1,
        initializer_range=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    AutoTokenizer.from_pretrained(folders["language"]).save_pretrained(tmp_path / "capped")
    with pytest.raises(ValueError, match="caps or scales the logits"):
        LanguageDecoder(str(tmp_path / "capped"))


def test_blip2_is_refused_with_the_policy_to_take_instead(tmp_path):
    vlm = VLM(str(tiny_vlm(tmp_path / "blip2", "blip2")))
    with pytest.raises(ValueError, match=r"BLIP-2 model.*take VLAPolicy with VLMBackbone"):
        VLMDecoder(vlm, ["front"])


def test_models_of_several_widths_are_refused(folders, tmp_path):
    config = OPTConfig(
        vocab_size=500,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    AutoTokenizer.from_pretrained(folders["language"]).save_pretrained(tmp_path / "opt")
    with pytest.raises(ValueError, match=r"states of width 32, input embeddings of width 16 .* head of width 16"):
        LanguageDecoder(str(tmp_path / "opt"))


@pytest.mark.parametrize("length", [0, -3])
def test_a_context_without_room_for_a_token_is_refused(folders, length):
    with pytest.raises(ValueError, match=f"max_tokens is {length}: expected at least 1"):
        LanguageDecoder(str(folders["language"]), max_tokens=length)
    with pytest.raises(ValueError, match=f"max_tokens is {length}: expected at least 1"):
        VLM(str(folders["smolvlm"]), max_tokens=length)


def test_a_text_is_refused_before_the_pictures_are_read(folders):
    decoder = VLMDecoder(VLM(str(folders["smolvlm"]), max_tokens=80), ["front"])
    decoder.reserve(300)
    decoder.vlm.model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=r"its prompt of \d+ tokens.*shorten the instruction or the chunk"):
        decoder.read(seen("a" + " a" * 200), 4)
    with pytest.raises(ValueError, match="stands for an action bin"):
        decoder.read(seen("ü#"), 0)


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_bins_of_two_policies_that_share_a_decoder_stay_reserved(folders, kind):
    decoder = opened(kind, folders)
    decoder.reserve(300)
    decoder.reserve(8)
    with pytest.raises(ValueError, match="stands for an action bin"):
        decoder.read(seen("ü#"), 0)
