"""Opening of published vision-language models without running their code."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .published import PublishedKind, open_published

PLAIN = "blip-2"
"""Type of the models that read a plain prompt, pictures in front of a text: BLIP-2 knows no conversation."""


def open_vlm(name: str, revision: str | None, download: bool, dtype: torch.dtype) -> tuple[Any, Any, str | None]:
    """Open a model and its processor, and find the commit of a repository; see `guerdon.VLM`.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it lacks a part.
        ValueError: If the checkpoint reads no pictures, or has no chat template and is no BLIP-2.
    """
    model, processor, commit = open_published(name, revision, download, dtype, _VLM)
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ValueError(f"{name} holds no processor of pictures and texts: copy the whole checkpoint")
    if not getattr(processor, "image_token", None):
        raise ValueError(f"{name} has no token that stands for a picture in a text: take another model")
    if model.config.model_type == PLAIN:
        _check_plain(name, model.config, processor)
    elif not processor.chat_template:
        raise ValueError(f"{name} has no chat template: take a checkpoint that was tuned on instructions")
    return model, processor, commit


def _check_plain(name: str, config: Any, processor: Any) -> None:
    """Make sure that a BLIP-2 checkpoint says how pictures stand in its texts, and ends in a causal language model."""
    if not config.use_decoder_only_language_model:
        raise ValueError(
            f"{name} ends in a {config.text_config.model_type} model, which has an encoder of its own: expected BLIP-2 "
            "with a causal language model, such as Salesforce/blip2-opt-2.7b"
        )
    if config.image_token_id is None or processor.num_query_tokens is None:
        raise ValueError(
            f"{name} says neither which token stands for a picture nor how many do (image_token_index in config.json, "
            "num_query_tokens in processor_config.json): it was written by an early version of transformers; save it "
            "again with a later one"
        )


_VLM = PublishedKind(
    model=AutoModelForImageTextToText,
    processor=AutoProcessor,
    types=MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    name="vision-language model",
    lacks="read pictures and write text",
    expected="one that transformers opens with AutoModelForImageTextToText, such as Qwen/Qwen2.5-VL-3B-Instruct",
)

_RATES = ("attention_dropout", "dropout", "layerdrop")


def freeze(model: Any) -> None:
    """Train nothing, and run without dropout."""
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for rate in _RATES:
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
