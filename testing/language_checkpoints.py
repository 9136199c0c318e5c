"""Tiny language-model checkpoints with random weights, in the layout of published ones, for tests and examples."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .vlm_checkpoints import _tokeniser as tokeniser_of  # pyright: ignore[reportPrivateUsage]

_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_language(
    path: str | Path,
    width: int = 32,
    layers: int = 2,
    spare_rows: int = 64,
    max_tokens: int = 512,
    chat: bool = True,
    seed: int = 0,
) -> Path:
    """Write a small Llama with random weights that transformers and guerdon open like a published one.

    Its weights are larger than at the start of a training (standard deviation 0.2), and its tokeniser knows every byte.

    Args:
        path: The folder to write; it must not exist.
        width: Width of the states; a multiple of 4, for two attention heads.
        layers: Number of layers.
        spare_rows: Number of rows of the vocabulary that no token uses.
        max_tokens: Length of the context in tokens, as its configuration states.
        chat: Whether the checkpoint has a chat template; without one its prompts are plain texts.
        seed: Random seed of the weights.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is something at the path.
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists: choose another folder")
    tokeniser = tokeniser_of(_TOKENS)
    if chat:
        tokeniser.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokeniser) + spare_rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=max_tokens,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokeniser.eos_token_id,
        pad_token_id=tokeniser.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(fresh)
        tokeniser.save_pretrained(fresh)
        fresh.chmod(0o755)
        os.rename(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


__all__ = ["tiny_language"]
