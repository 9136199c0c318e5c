"""Language models as decoders: their own states and rows, saved files, and what is refused."""

import pytest
import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, OPTConfig, OPTForCausalLM

from guerdon.backbones.decoder_language import LanguageDecoder
from guerdon.backbones.decoder_vlm import VLMDecoder
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.testing.language_checkpoints import tiny_language

from .test_decoder import LONG, SHORT, embeddings, opened, seen


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


def test_unused_rows_are_taken_first_then_the_last_ordinary_tokens(folders):
    decoder = opened("language", folders)
    tokens = len(decoder.tokeniser)
    assert decoder.reserve(64).tokens == tuple(range(tokens, tokens + 64))
    more = decoder.reserve(70).tokens
    assert more[-64:] == tuple(range(tokens, tokens + 64)) and len(more) == 70
    asked = set(decoder._tokens_of(""))
    last = [token for token in range(tokens - 1, -1, -1) if token not in asked][:6]
    assert sorted(last) == list(more[:6])


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
