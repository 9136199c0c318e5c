"""Tiny vision-language checkpoints with random weights, in the layout of published ones, for tests and examples."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

_LINES = (
    "Task: open the drawer and push the red block to the left.",
    "How much of the task is done after each picture? Progress: 0.5 Success: yes",
    "close the door, pull the handle, lift the blue cube",
)
_QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_SMOL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)),
)
_BLIP_TOKENS = ("<pad>", "<unk>", "</s>", "<image>")
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMOL_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_PATCH, _MERGE, _SIDE = 4, 2, 16  # pixels of a patch's side, patches merged along a side, pixels of a SmolVLM picture


def tiny_vlm(
    path: str | Path,
    architecture: Literal["qwen2_5_vl", "qwen3_vl", "smolvlm", "blip2"] = "qwen2_5_vl",
    width: int = 32,
    layers: int = 2,
    max_tokens: int = 2048,
    seed: int = 0,
) -> Path:
    """Write a small vision-language model with random weights that transformers and guerdon open like a published one.

    Its weights are larger than at the start of a training (standard deviation 0.2), so that what a picture shows
    reaches the last layer. Its tokeniser knows every byte.

    Args:
        path: The folder to write; it must not exist.
        architecture: Qwen2.5-VL or Qwen3-VL, whose pictures give one token per 8 × 8 pixels, SmolVLM, whose pictures
            give four, or BLIP-2 with OPT, whose pictures give four and which has no chat template.
        width: Width of both towers; a multiple of 32, for two attention heads.
        layers: Number of layers of the language model.
        max_tokens: Length of the longest prompt in tokens, as its configuration states.
        seed: Random seed of the weights.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is something at the path.
        ValueError: If the width does not fit.
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists: choose another folder")
    if width < 32 or width % 32:
        raise ValueError(f"width is {width}: expected a positive multiple of 32")
    text = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_tokens,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        makers = {"qwen2_5_vl": _qwen, "qwen3_vl": _qwen3, "smolvlm": _smol, "blip2": _blip2}
        model, processor = makers[architecture](text, width)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        fresh.chmod(0o755)
        os.rename(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _tokeniser(special: tuple[str, ...]) -> Any:
    """Byte-level pairs learned from a few lines, with the special tokens first."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    pairs.train_from_iterator(_LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        pad_token=special[0],
        eos_token=special[2],
        extra_special_tokens=[token for token in special if token not in (special[0], special[2])],
    )


def _qwen(text: dict[str, Any], width: int) -> tuple[Any, Any]:
    tokeniser = _tokeniser(_QWEN_TOKENS)
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text(text, width, tokeniser),
        vision_config=_qwen_vision(width) | {"window_size": 2 * _PATCH * _MERGE, "fullatt_block_indexes": [1]},
        **_qwen_numbers(tokeniser),
    )
    pictures, size = _qwen_pictures()
    videos = Qwen2VLVideoProcessor(patch_size=_PATCH, merge_size=_MERGE, size=size)
    processor = Qwen2_5_VLProcessor(pictures, tokeniser, videos, chat_template=_QWEN_TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config).eval(), processor


def _qwen3(text: dict[str, Any], width: int) -> tuple[Any, Any]:
    tokeniser = _tokeniser(_QWEN_TOKENS)
    spread: dict[str, Any] = _qwen_text(text, width, tokeniser) | {"head_dim": width // 2}
    spread["rope_parameters"]["mrope_interleaved"] = True
    config = Qwen3VLConfig(
        text_config=spread,
        vision_config=_qwen_vision(width) | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **_qwen_numbers(tokeniser),
    )
    pictures, size = _qwen_pictures()
    videos = Qwen3VLVideoProcessor(patch_size=_PATCH, merge_size=_MERGE, size=size)
    processor = Qwen3VLProcessor(pictures, tokeniser, videos, chat_template=_QWEN_TEMPLATE)
    return Qwen3VLForConditionalGeneration(config).eval(), processor


def _qwen_text(text: dict[str, Any], width: int, tokeniser: Any) -> dict[str, Any]:
    half = width // 4  # half an attention head, shared by the three directions of its positions
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    return text | {
        "vocab_size": len(tokeniser),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections},
        "bos_token_id": None,
        "eos_token_id": tokeniser.eos_token_id,
        "pad_token_id": tokeniser.pad_token_id,
    }


def _qwen_vision(width: int) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": width,
        "intermediate_size": width,
        "out_hidden_size": width,
        "num_heads": 2,
        "patch_size": _PATCH,
        "spatial_merge_size": _MERGE,
        "initializer_range": 0.2,
    }


def _qwen_numbers(tokeniser: Any) -> dict[str, Any]:
    number = tokeniser.convert_tokens_to_ids
    return {
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
        "tie_word_embeddings": True,
    }


def _qwen_pictures() -> tuple[Any, dict[str, int]]:
    cell = _PATCH * _MERGE
    size = {"shortest_edge": cell**2, "longest_edge": (4 * cell) ** 2}  # in pixels of the whole picture, as Qwen's
    return Qwen2VLImageProcessor(patch_size=_PATCH, merge_size=_MERGE, size=size), size


def _smol(text: dict[str, Any], width: int) -> tuple[Any, Any]:
    tokeniser = _tokeniser(_SMOL_TOKENS)
    config = SmolVLMConfig(
        text_config=text
        | {
            "model_type": "llama",
            "vocab_size": len(tokeniser),
            "bos_token_id": None,
            "eos_token_id": tokeniser.eos_token_id,
            "pad_token_id": tokeniser.pad_token_id,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": _SIDE,
            "patch_size": _PATCH,
            "initializer_range": 0.2,
        },
        scale_factor=_MERGE,
        image_token_id=tokeniser.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
    )
    # published ones cut a large picture into tiles, and so does this one unless told otherwise
    pictures = SmolVLMImageProcessor(size={"longest_edge": 2 * _SIDE}, max_image_size={"longest_edge": _SIDE})
    videos = SmolVLMVideoProcessor(size={"longest_edge": _SIDE}, max_image_size={"longest_edge": _SIDE})
    tokens = (_SIDE // _PATCH) ** 2 // _MERGE**2
    processor = SmolVLMProcessor(pictures, tokeniser, videos, image_seq_len=tokens, chat_template=_SMOL_TEMPLATE)
    return SmolVLMForConditionalGeneration(config).eval(), processor


def _blip2(text: dict[str, Any], width: int) -> tuple[Any, Any]:
    tokeniser = _tokeniser(_BLIP_TOKENS)
    end = tokeniser.eos_token_id
    # OPT's texts begin with the token that ends them
    tokeniser.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", end)]
    )
    queries = 4
    config = Blip2Config(
        vision_config={
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": _SIDE,
            "patch_size": _PATCH,
            "initializer_range": 0.2,
        },
        qformer_config={
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(tokeniser),
            "initializer_range": 0.2,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": width,
            "word_embed_proj_dim": width,
            "ffn_dim": text["intermediate_size"],
            "num_hidden_layers": text["num_hidden_layers"],
            "num_attention_heads": text["num_attention_heads"],
            "max_position_embeddings": text["max_position_embeddings"],
            "init_std": text["initializer_range"],
            "vocab_size": len(tokeniser),
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": tokeniser.pad_token_id,
        },
        num_query_tokens=queries,
        image_token_index=tokeniser.convert_tokens_to_ids("<image>"),
        initializer_range=0.2,
    )
    pictures = BlipImageProcessor(size={"height": _SIDE, "width": _SIDE})
    model = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)  # as they are made, all queries are 0 and alike
    return model, Blip2Processor(pictures, tokeniser, num_query_tokens=queries)
