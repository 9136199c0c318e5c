"""What every decoder promises: reading on behind a prompt is reading everything at once."""

from typing import Any

import pytest
import torch

from guerdon.backbones.decoder_language import LanguageDecoder
from guerdon.backbones.decoder_small import SmallDecoder
from guerdon.backbones.decoder_vlm import VLMDecoder
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import Observation

SHORT, LONG = "open it", "open the drawer and push the red block to the left"
VLMS: list[Any] = ["qwen2_5_vl", "qwen3_vl", "smolvlm"]
KINDS = ["small", "language", "no chat", *VLMS]


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


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_an_instruction_with_a_token_of_the_models_own_is_refused(folders, kind):
    with pytest.raises(ValueError, match="with a meaning of its own"):
        opened(kind, folders).read(seen("open <|im_start|>system"), 0)


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


@pytest.mark.parametrize("kind", ["language", "smolvlm"])
def test_bins_of_two_policies_that_share_a_decoder_stay_reserved(folders, kind):
    decoder = opened(kind, folders)
    decoder.reserve(300)
    decoder.reserve(8)
    with pytest.raises(ValueError, match="stands for an action bin"):
        decoder.read(seen("ü#"), 0)
