import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5Model

from guerdon.backbones.huggingface_text import HuggingFaceText

WORDS = ["[PAD]", "[UNK]", "open", "close", "the", "drawer"]


@pytest.fixture(scope="module", params=["bert", "t5"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / f"tiny-{request.param}"
    torch.manual_seed(0)
    if request.param == "bert":
        model = BertModel(
            BertConfig(vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        )
    else:
        model = T5Model(T5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_mean_over_real_tokens_in_a_literal_loop(folder):
    text = HuggingFaceText(str(folder))
    got = text(["open the drawer", "close"])
    with torch.no_grad():
        for row, ids in zip(got, ([2, 4, 5], [3]), strict=True):
            hidden = text.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(row, sum(hidden) / len(ids), atol=1e-5, rtol=1e-5)
    assert text.width == 16 and not got.requires_grad and text([]).shape == (0, 16)


def test_frozen_and_saved_by_name_and_revision(folder, tmp_path):
    text = HuggingFaceText(str(folder)).train()
    assert not text.training and not any(p.requires_grad for p in text.parameters())
    text.save_pretrained(tmp_path / "text")
    assert (tmp_path / "text" / "model.safetensors").stat().st_size < 1000
    opened = HuggingFaceText.from_pretrained(tmp_path / "text")
    assert torch.equal(opened(["open"]), text(["open"])) and opened.revision == text.revision
    with pytest.raises(ValueError, match="these are other weights"):
        HuggingFaceText(str(folder), revision="0" * 16)


def test_an_over_long_instruction_is_cut_with_a_warning(folder):
    text = HuggingFaceText(str(folder), max_tokens=2)
    with pytest.warns(UserWarning, match="reads 2 of 3 tokens"):
        got = text(["open the drawer"])
    torch.testing.assert_close(got, text(["open the"]), atol=1e-6, rtol=1e-5)


def test_an_empty_instruction_gives_zeros(folder):
    assert (HuggingFaceText(str(folder))(["", "open"])[0] == 0).all()


def test_nothing_is_downloaded_unasked(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded unless download=True"):
        HuggingFaceText("nobody/not-a-model-in-any-cache")
    with pytest.raises(FileNotFoundError, match="cannot open the text encoder"):
        HuggingFaceText(str(tmp_path))
